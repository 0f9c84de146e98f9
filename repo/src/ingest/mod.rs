//! The pipeline that stores files: read → cut → hash → look up → compress → pack → put, then maps, file list and pack
//! table. Threads are joined by bounded channels, all buffers come from one budget, and the first error of any part
//! stops all of them.

mod budget;
mod cutter;
mod packer;
mod parent;
mod read;
mod stages;

use std::io;
use std::ops::Range;
use std::sync::Arc;

pub use budget::Cancel;
pub use cutter::{Cutter, FIXED_BLOCK, FixedCutter};

use crate::error::{RepoError, Result};
use crate::files::{FileMeta, is_sound_path, path_order};
use crate::index::KnownBlocks;
use crate::map::MapParams;
use crate::objects::SnapshotStats;
use crate::pack::Place;
use crate::reader::ReplsetReader;
use crate::session::Session;

/// The files that are stored.
pub trait Input: Send + Sync {
    /// Opens a regular file.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, file: &FileMeta) -> io::Result<Box<dyn ReadAt>>;

    /// What of a file may differ from the parent's file with the same path. A file that the parent does not have is
    /// read whole, whatever is answered, and so is what lies behind the end of the parent's.
    fn changes(&self, _file: &FileMeta) -> Changes {
        Changes::Whole
    }

    /// How a file, or a part of one that differs from the parent's, is cut: a new cutter at each call.
    fn cutter(&self, file: &FileMeta) -> Box<dyn Cutter>;

    /// Called about every megabyte; an error stops the backup, with this sentence.
    ///
    /// # Errors
    /// The source was lost.
    fn check(&self) -> Result<(), String>;
}

/// An open file.
pub trait ReadAt: Send {
    /// Fills `out` with what stands at `offset`. Offsets rise from call to call.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; the system's.
    fn read_exact_at(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

/// What of a file has to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Everything: nobody knows what changed.
    Whole,
    /// These ranges, in any order. The rest is as the parent has it and is taken from its map, unread.
    Ranges(Vec<Range<u64>>),
}

/// Is told what the pipeline does. Called from its threads; must be quick.
pub trait Progress: Send + Sync {
    /// So many more bytes were read and packed.
    fn bytes(&self, done: u64);
    /// This much was added to the repository.
    fn stored(&self, bytes: u64);
    /// A file is complete.
    fn file(&self, path: &str);
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn bytes(&self, _: u64) {}
    fn stored(&self, _: u64) {}
    fn file(&self, _: &str) {}
}

/// How a pipeline works.
#[derive(Debug, Clone, Copy)]
pub struct IngestOptions {
    /// Bytes for all buffers: at least [`Self::least_memory`]. The index of known blocks is not among them.
    pub memory: u64,
    /// Threads that hash and compress.
    pub threads: usize,
    /// Stored bytes at which a data pack is sealed.
    pub pack_size: u64,
    /// zstd level.
    pub level: i32,
    /// Sizes of map nodes.
    pub map: MapParams,
}

/// Largest size of a data pack.
pub const MAX_PACK_SIZE: u64 = 64 << 20;

impl IngestOptions {
    /// The least [`IngestOptions::memory`] with which packs of this size can be written: one is filled while another is
    /// put, and half as much is for what is read and compressed.
    pub fn least_memory(pack_size: u64) -> u64 {
        3 * pack_size
    }

    /// What a repository's parameters ask for, on every core.
    pub fn for_repository(config: &crate::objects::RepoConfig, memory: u64) -> Self {
        Self {
            memory,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            pack_size: config.parameters.pack_size.clamp(1 << 20, MAX_PACK_SIZE),
            level: config.parameters.compression_level,
            map: MapParams::default(),
        }
    }
}

/// What became of a set of files.
#[derive(Debug, Clone, Copy)]
pub struct Ingested {
    /// Root of the file list.
    pub file_list: Option<Place>,
    /// Root of the pack table.
    pub pack_table: Option<Place>,
    /// What was done; `seconds` is left at 0.
    pub stats: SnapshotStats,
}

/// What a pipeline works on.
pub struct Job {
    /// Opens and cuts.
    pub input: Arc<dyn Input>,
    /// Sorted by [`path_order`], each path once.
    pub files: Vec<FileMeta>,
    /// The last snapshot of the same files, or the one against which [`Input::changes`] are: blocks at the same place
    /// are compared with it first, and its maps are changed where they differ.
    pub parent: Option<Arc<ReplsetReader>>,
    /// Which blocks the repository has.
    pub known: Arc<dyn KnownBlocks>,
    /// How to work.
    pub options: IngestOptions,
    /// Who watches.
    pub progress: Arc<dyn Progress>,
    /// Who may stop it.
    pub cancel: Cancel,
}

/// Stores files under a session's lease. Everything is durable when this returns; a snapshot document that names the
/// result may then be committed.
///
/// # Errors
/// `Input` or `BadInput` for a file that cannot be read or stored; `SourceLost`; `Cancelled`; the storage's. What was
/// put until then is garbage.
pub async fn ingest(session: &Session, job: Job) -> Result<Ingested> {
    for pair in job.files.windows(2) {
        if path_order(&pair[0].path, &pair[1].path) != std::cmp::Ordering::Less {
            let reason = format!("it is listed out of order, behind {}", pair[0].path);
            return Err(RepoError::BadInput {
                path: pair[1].path.clone(),
                reason,
            });
        }
    }
    if let Some(bad) = job.files.iter().find(|f| !is_sound_path(&f.path)) {
        let reason = "its path is too long or has an empty, \".\" or \"..\" component".into();
        return Err(RepoError::BadInput {
            path: bad.path.clone(),
            reason,
        });
    }
    // A reader would refuse the whole list.
    if let Some(bad) = job.files.iter().find(|f| !f.is_sound()) {
        return Err(RepoError::BadInput {
            path: bad.path.clone(),
            reason: "its mode, modification time or size is impossible".into(),
        });
    }
    let prepared = packer::Packer::prepare(session, &job).await?;
    let handle = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || stages::run(job, prepared, &handle))
        .await
        .unwrap_or_else(|e| Err(RepoError::Poisoned(e.to_string())))
}
