//! Restore of a snapshot into a directory.
//!
//! The files of one replica set are made in `DIR.pbmfs-partial`, and `DIR.pbmfs-journal` tells which of their ranges
//! are restored. At the end the directory is renamed to `DIR`, so that `DIR` never exists half-made; an empty
//! directory that waits there is replaced and gives the new one its owner and mode. A second run of the same restore
//! goes on where the first one ended, however that was; any other restore is refused.
//!
//! # Work
//! The maps give runs of slots, which are put in the order of packs, a window of them at a time; neighbouring slots
//! are fetched by one request, and every block is verified by its id before it is written. Holes are never written.
//! Memory is the plan of a window, the reads on their way, and what the repository's caches take.
//!
//! # What is durable when
//! 1. The journal is made and locked (`flock`); its header is written and synced, and so is its name.
//! 2. The partial directory is made, then all directories and files, each with its length.
//! 3. Blocks are written. From time to time everything written so far is synced, and only then its ranges are
//!    appended to the journal, which is synced in its turn. One `syncfs` does the former where that is known to make
//!    names, lengths and bytes durable and to tell of failed writes; otherwise each touched file is synced.
//! 4. Owners, modes and times are set, of directories last and from the deepest up; everything is synced.
//! 5. The journal gets a last record, which names the directory's inode.
//! 6. The directory is renamed, and its parent synced.
//! 7. The journal is removed, and the parent synced.
//!
//! A crash, of the process or of the machine,
//! - in 1 leaves a journal without a whole header and no partial directory: the next run begins anew;
//! - in 2 leaves files missing, or of a wrong length: they are made again, and what was recorded of them, which is
//!   nothing, is not trusted;
//! - in 3 leaves bytes that no record tells of: they are written again, to the same places. A record that is torn is
//!   the end of the journal;
//! - in 4 leaves some files with their final metadata: it is all set again;
//! - between 5 and 6 leaves a complete partial directory: only 4 to 7 are done again;
//! - between 6 and 7 leaves `DIR` and a journal whose last record names its inode, and no partial directory: the next
//!   run removes the journal and reports success. If the inode is another one, `DIR` is not ours, and it is refused.
//!
//! After a sync that failed nothing is recorded any more in that run, because the next sync would no longer tell of
//! what was lost.

mod done;
mod error;
mod journal;
mod plan;
mod reads;
mod stop;
mod target;
mod tree;
mod work;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pbmfs_repo::files::FileKind;
use pbmfs_repo::id::SnapshotName;
use pbmfs_repo::ingest::Cancel;
use pbmfs_repo::objects::SnapshotDoc;
use pbmfs_repo::{ReplsetReader, Repository, SnapshotReader};
use tokio::runtime::Handle;

pub use error::{DamagedFile, RestoreError};
pub use plan::RestorePlan;
pub use target::{JOURNAL_SUFFIX, PARTIAL_SUFFIX};

use done::Done;
use error::Result;
use journal::{Header, Journal};
use plan::{Maps, Windows, survey};
use stop::Stop;
use target::{Start, Target};
use tree::{Prepared, Tree};
use work::{Rules, State, Work};

/// What to restore, and how.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The directory that is to be made.
    pub target: PathBuf,
    /// Which replica set; needed only if the snapshot has several.
    pub replset: Option<String>,
    /// Bytes for plans and buffers: at least [`MIN_MEMORY`]. The repository's caches are not among them.
    pub memory: u64,
    /// Threads that read, verify and write. Fewer are started if the memory does not suffice for their buffers.
    pub threads: usize,
    /// Bytes that are written between checkpoints.
    pub checkpoint_bytes: u64,
    /// Time between checkpoints.
    pub checkpoint_every: Duration,
}

/// Least memory of a restore: one thread's buffers and a small plan.
pub const MIN_MEMORY: u64 = 16 << 20;

/// Plain bytes of a read at most: enough that a request's latency is little beside its transfer.
const READ_BYTES: u64 = 4 << 20;

impl RestoreOptions {
    /// Into `target`, with 128 MiB of memory and two threads for each core: one reads while the other one
    /// decompresses and writes.
    pub fn new(target: impl Into<PathBuf>) -> Self {
        Self {
            target: target.into(),
            replset: None,
            memory: 128 << 20,
            threads: std::thread::available_parallelism().map_or(2, |n| n.get() * 2),
            checkpoint_bytes: 1 << 30,
            checkpoint_every: Duration::from_secs(10),
        }
    }

    fn rules(&self) -> Rules {
        let memory = self.memory.max(MIN_MEMORY);
        // Half for reads on their way, each of which holds its stored and its plain bytes, and its last block may
        // go beyond; a quarter for the plan; the rest for ranges that are not recorded yet.
        let threads = self.threads.max(1) as u64;
        let workers = threads.min(memory / 2 / (3 << 20)).max(1);
        Rules {
            workers: workers as usize,
            read_bytes: (memory / 2 / workers / 3).clamp(1 << 20, READ_BYTES),
            checkpoint_bytes: self.checkpoint_bytes,
            checkpoint_every: self.checkpoint_every,
            checkpoint_ranges: (memory / 8 / 64) as usize,
        }
    }
}

/// Is told what a restore does. Called from its threads; must be quick.
pub trait RestoreProgress: Send + Sync {
    /// What there is to do.
    fn planned(&self, plan: &RestorePlan);
    /// So many more bytes were written.
    fn bytes(&self, done: u64);
    /// All bytes are written; what is left is metadata and durability.
    fn finishing(&self);
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRestoreProgress;

impl RestoreProgress for NoRestoreProgress {
    fn planned(&self, _: &RestorePlan) {}
    fn bytes(&self, _: u64) {}
    fn finishing(&self) {}
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RestoreSummary {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// The replica set.
    pub replset: String,
    /// The directory, with its parent's links resolved.
    pub target: PathBuf,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of all files, holes included.
    pub bytes_total: u64,
    /// Bytes that are not in holes.
    pub bytes_data: u64,
    /// Bytes that this run wrote.
    pub bytes_written: u64,
    /// Whether an earlier run had begun it.
    pub resumed: bool,
    /// How long this run took.
    pub seconds: f64,
}

/// Restores a snapshot into a directory. When this returns the directory is complete and durable.
///
/// If the returned future is dropped, the threads of the restore end soon after, as after a crash.
///
/// # Errors
/// Refusals change nothing. After any other error what was restored stays, and the same restore goes on from there.
pub async fn restore(
    repo: &Repository,
    doc: SnapshotDoc,
    options: RestoreOptions,
    progress: Arc<dyn RestoreProgress>,
    cancel: Cancel,
) -> Result<RestoreSummary> {
    let started = Instant::now();
    let (doc, header) = choose(repo, doc, options.replset.as_deref())?;
    let target = Target::new(&options.target, repo)?;
    let start = target.begin(&header)?;
    let reader = match SnapshotReader::open(repo, doc).await {
        Ok(reader) => reader.replsets()[0].clone(),
        Err(e) => {
            if let Start::Fresh(lock) = start {
                target.remove_journal(lock)?;
            }
            return Err(e.into());
        }
    };
    let stop = Stop::new(cancel);
    let _guard = stop.on_drop();
    let job = Job {
        reader,
        handle: Handle::current(),
        header,
        target,
        options,
        progress,
        stop: stop.clone(),
    };
    let run = tokio::task::spawn_blocking(move || job.run(start));
    let mut summary = run
        .await
        .unwrap_or_else(|e| Err(RestoreError::Poisoned(e.to_string())))?;
    summary.seconds = started.elapsed().as_secs_f64();
    Ok(summary)
}

/// Leaves only the chosen replica set in the document.
fn choose(repo: &Repository, mut doc: SnapshotDoc, asked: Option<&str>) -> Result<(SnapshotDoc, Header)> {
    let names: Vec<String> = doc.replsets.iter().map(|r| r.name.clone()).collect();
    let chosen = match (asked, &names[..]) {
        (None, [only]) => only.clone(),
        (None, _) => {
            return Err(RestoreError::ChooseReplset {
                snapshot: doc.name,
                names,
            });
        }
        (Some(asked), _) if names.iter().any(|n| n == asked) => asked.to_owned(),
        (Some(asked), _) => {
            return Err(RestoreError::NoSuchReplset {
                snapshot: doc.name,
                asked: asked.into(),
                names,
            });
        }
    };
    doc.replsets.retain(|r| r.name == chosen);
    let header = Header {
        repository: repo.config().repository_id,
        snapshot: doc.name.clone(),
        lease: doc.lease,
        replset: chosen,
    };
    Ok((doc, header))
}

/// A restore on its way, in a thread that may block.
struct Job {
    reader: Arc<ReplsetReader>,
    handle: Handle,
    header: Header,
    target: Target,
    options: RestoreOptions,
    progress: Arc<dyn RestoreProgress>,
    stop: Stop,
}

impl Job {
    fn maps(&self) -> Maps<'_> {
        Maps {
            reader: &self.reader,
            handle: &self.handle,
            stop: &self.stop,
        }
    }

    fn run(&self, start: Start) -> Result<RestoreSummary> {
        let resumed = !matches!(start, Start::Fresh(_));
        let (journal, tree, mut done, plan) = match start {
            Start::Finished(lock) => {
                let (plan, _) = survey(&self.maps(), &Done::default(), None, 1)?;
                self.target.remove_journal(lock)?;
                return Ok(self.summary(plan, 0, resumed));
            }
            Start::Fresh(file) => {
                let done = Done::default();
                let plan = match self.survey(&done, None) {
                    Ok(plan) => plan,
                    Err(e) => {
                        self.target.remove_journal(file)?;
                        return Err(e);
                    }
                };
                let fail = RestoreError::io("write", &self.target.journal);
                let journal = Journal::begin(file, &self.header).map_err(fail)?;
                self.target.sync_parent()?;
                let tree = Tree::open(&self.target.partial)?;
                self.target.sync_parent()?;
                (journal, tree, done, plan)
            }
            Start::Resumed(journal, done) => {
                let tree = Tree::open(&self.target.partial)?;
                let plan = self.survey(&done, Some(&tree))?;
                (journal, tree, done, plan)
            }
        };
        self.progress.planned(&plan);
        self.make_all(&tree, &mut done)?;
        let rules = self.options.rules();
        let work = Work {
            maps: self.maps(),
            tree: &tree,
            progress: &*self.progress,
            rules,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        };
        let windows = Windows {
            maps: self.maps(),
            done: &done,
            at: done.start(),
            memory: (self.options.memory.max(MIN_MEMORY) / 4) as usize,
        };
        let (written, mut journal) = work.run(windows, journal)?;
        self.progress.finishing();
        self.finish_all(&tree)?;
        let fail = RestoreError::io("write", &self.target.journal);
        journal.complete(tree.inode()?).map_err(fail)?;
        self.target.rename()?;
        self.target.remove_journal(journal)?;
        Ok(self.summary(plan, written, resumed))
    }

    /// What is to be done; refused if there is no room for it.
    fn survey(&self, done: &Done, tree: Option<&Tree>) -> Result<RestorePlan> {
        let parent = &self.target.parent;
        let fs = rustix::fs::statvfs(parent).map_err(|e| RestoreError::io("look at", parent)(e.into()))?;
        let (plan, needed) = survey(&self.maps(), done, tree, fs.f_frsize.max(1))?;
        let free = u128::from(fs.f_bavail) * u128::from(fs.f_frsize);
        // A file system that tells of no block at all does not know its size.
        if needed > free && fs.f_blocks > 0 {
            return Err(RestoreError::TooLittleSpace {
                target: self.target.dir.clone(),
                needed,
                free,
            });
        }
        Ok(plan)
    }

    /// Makes directories and files, in the order of the list: a directory stands before what it holds.
    fn make_all(&self, tree: &Tree, done: &mut Done) -> Result<()> {
        for entry in self.maps().entries() {
            let (number, entry) = entry?;
            if tree.make(&entry.meta)? == Prepared::Made && entry.meta.size > 0 {
                done.forget(number, entry.meta.size);
            }
        }
        if !tree.syncs_whole() {
            for entry in self.maps().entries() {
                let (_, entry) = entry?;
                if entry.meta.kind == FileKind::Directory {
                    tree.sync_dir(&entry.meta.path)?;
                }
            }
            tree.sync_dir("")?;
        }
        Ok(())
    }

    /// Sets metadata: of files first, then of directories, from the deepest up, then of the root. Durable when this
    /// returns.
    fn finish_all(&self, tree: &Tree) -> Result<()> {
        let maps = self.maps();
        for entry in maps.entries() {
            let (_, entry) = entry?;
            if entry.meta.kind == FileKind::Regular {
                tree.finish(&entry.meta)?;
            }
        }
        for entry in maps.entries().rev() {
            let (_, entry) = entry?;
            if entry.meta.kind == FileKind::Directory {
                tree.finish(&entry.meta)?;
            }
        }
        let first = if maps.len() > 0 {
            Some(maps.entry(0)?.meta)
        } else {
            None
        };
        tree.finish_root(self.target.waiting()?.as_ref(), first.as_ref())?;
        tree.sync([])
    }

    fn summary(&self, plan: RestorePlan, bytes_written: u64, resumed: bool) -> RestoreSummary {
        RestoreSummary {
            snapshot: self.header.snapshot.clone(),
            replset: self.header.replset.clone(),
            target: self.target.dir.clone(),
            files: plan.files,
            directories: plan.directories,
            bytes_total: plan.bytes_total,
            bytes_data: plan.bytes_data,
            bytes_written,
            resumed,
            seconds: 0.0,
        }
    }
}

#[cfg(test)]
mod tests;
