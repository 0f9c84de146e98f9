//! Files of a live WiredTiger home as the pipeline reads them: what is named as changed, and what was read of it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use pbmfs_agent::cutter::cutter_of;
use pbmfs_repo::{
    ReplsetReader,
    files::{FileKind, FileMeta, path_order},
    ingest::{Changes, Cutter, Input, ReadAt},
};

use crate::error::{Doing, Result, RigError};

/// One file that is to be backed up.
#[derive(Clone, Debug)]
pub struct Named {
    /// Where it is read.
    pub path: PathBuf,
    /// What changed in it; `None` for all of it.
    pub ranges: Option<Vec<Range<u64>>>,
}

/// What was read of which file.
type Reads = Arc<Mutex<Vec<(String, Range<u64>)>>>;

/// The files of one backup, by name.
#[derive(Debug)]
pub struct Files {
    named: BTreeMap<String, Named>,
    metas: Vec<FileMeta>,
    reads: Reads,
}

impl Files {
    /// These files, each as long as it is now.
    pub fn new(named: BTreeMap<String, Named>) -> Result<Self> {
        let mut metas = Vec::new();
        for (name, file) in &named {
            let meta = fs::metadata(&file.path).doing(format_args!("looking at {}", file.path.display()))?;
            metas.push(FileMeta {
                path: name.clone(),
                kind: FileKind::Regular,
                mode: meta.mode() & 0o7777,
                uid: meta.uid(),
                gid: meta.gid(),
                mtime: (meta.mtime(), meta.mtime_nsec() as u32),
                size: meta.len(),
            });
        }
        metas.sort_by(|a, b| path_order(&a.path, &b.path));
        Ok(Self {
            named,
            metas,
            reads: Reads::default(),
        })
    }

    /// For the file list.
    pub fn metas(&self) -> Vec<FileMeta> {
        self.metas.clone()
    }

    /// All reads so far.
    pub fn reads(&self) -> Vec<(String, Range<u64>)> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Open {
    name: String,
    file: File,
    reads: Reads,
}

impl ReadAt for Open {
    fn read_exact_at(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)?;
        let range = offset..offset + out.len() as u64;
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        reads.push((self.name.clone(), range));
        Ok(())
    }
}

impl Input for Files {
    fn open(&self, file: &FileMeta) -> io::Result<Box<dyn ReadAt>> {
        let named = self.named.get(&file.path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Open {
            name: file.path.clone(),
            file: File::open(&named.path)?,
            reads: self.reads.clone(),
        }))
    }

    fn changes(&self, file: &FileMeta) -> Changes {
        let named = self.named.get(&file.path).and_then(|named| named.ranges.clone());
        named.map_or(Changes::Whole, Changes::Ranges)
    }

    fn cutter(&self, file: &FileMeta) -> Box<dyn Cutter> {
        cutter_of(&file.path)
    }

    fn check(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// What the pipeline has to read: what is named, within its file; what the parent does not have; each sector once.
pub struct Asked {
    files: BTreeMap<String, Vec<Range<u64>>>,
    /// In all.
    pub bytes: u64,
    /// Ranges that begin behind the end of their file.
    pub phantoms: usize,
}

impl Asked {
    /// Of these files, as changes of the parent's.
    pub async fn of(files: &Files, parent: Option<&ReplsetReader>) -> Result<Self> {
        let mut asked = Self {
            files: BTreeMap::new(),
            bytes: 0,
            phantoms: 0,
        };
        for meta in &files.metas {
            let had = match parent {
                Some(parent) => parent
                    .files()
                    .find(&meta.path)
                    .await
                    .map_err(super::chain::failed)?,
                None => None,
            };
            let whole = 0..meta.size;
            let mut ranges = match (files.named[&meta.path].ranges.clone(), had) {
                (Some(ranges), Some((_, had))) => {
                    asked.phantoms += ranges.iter().filter(|range| range.start >= meta.size).count();
                    let mut ranges = ranges;
                    ranges.push(had.meta.size..meta.size);
                    ranges
                }
                _ => vec![whole],
            };
            ranges.sort_by_key(|range| range.start);
            let mut at = 0;
            for range in &mut ranges {
                *range = range.start.max(at)..range.end.min(meta.size);
                at = at.max(range.end);
            }
            ranges.retain(|range| !range.is_empty());
            asked.bytes += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
            asked.files.insert(meta.path.clone(), ranges);
        }
        Ok(asked)
    }

    /// Nothing else was read, but to the edges of blocks.
    pub fn check(&self, files: &Files) -> Result<()> {
        const EDGE: u64 = 1 << 20;
        for (name, read) in files.reads() {
            let ranges = &self.files[&name];
            let near = |at: u64| {
                ranges
                    .iter()
                    .any(|range| range.start.saturating_sub(EDGE) <= at && at < range.end + EDGE)
            };
            if !near(read.start) || !near(read.end - 1) {
                return Err(RigError::Check(format!(
                    "{read:?} of {name} was read, and {ranges:?} changed"
                )));
            }
        }
        Ok(())
    }
}
