//! What can go wrong with a restore. Each text is one sentence that names the thing and says what to do about it;
//! [`RestoreError::kind`] is what a caller decides by.

use std::io;
use std::path::{Path, PathBuf};

use pbmfs_repo::id::{BlockId, PackId, SnapshotName};
use pbmfs_repo::{ErrorKind, RepoError};

/// Why a restore did not come to its end. Unless said otherwise what was restored so far stays beside the target, and
/// the same restore goes on from there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The repository failed.
    #[error(transparent)]
    Repo(Box<RepoError>),
    /// The map of a file cannot be read.
    #[error("{path} cannot be restored: {source}; `pbm-fs check --read-data` tells what else is damaged")]
    File {
        /// Its path in the snapshot.
        path: String,
        /// Why.
        source: Box<RepoError>,
    },
    /// A block of a file is damaged or missing.
    #[error(transparent)]
    DamagedFile(Box<DamagedFile>),
    /// The snapshot has several replica sets and none was chosen. Nothing was written.
    #[error("snapshot {snapshot} has several replica sets ({}); choose one", names.join(", "))]
    ChooseReplset {
        /// The snapshot.
        snapshot: SnapshotName,
        /// Its replica sets.
        names: Vec<String>,
    },
    /// The chosen replica set is not in the snapshot. Nothing was written.
    #[error("snapshot {snapshot} has no replica set \"{asked}\", but {}", names.join(", "))]
    NoSuchReplset {
        /// The snapshot.
        snapshot: SnapshotName,
        /// What was asked for.
        asked: String,
        /// Its replica sets.
        names: Vec<String>,
    },
    /// The target has no name of its own (`/`, `..`). Nothing was written.
    #[error("{} cannot be a target: name a directory that is to be made", target.display())]
    BadTarget {
        /// As it was given.
        target: PathBuf,
    },
    /// The directory that should hold the target is not there. Nothing was written.
    #[error("{} does not exist or is not a directory: make it first, or choose another target", parent.display())]
    NoParent {
        /// The directory.
        parent: PathBuf,
    },
    /// Something is at the target. It was left as it is.
    #[error("{} exists already: remove it, or choose another target", target.display())]
    TargetExists {
        /// The target.
        target: PathBuf,
    },
    /// The target is an empty directory on which a file system is mounted: nothing can be renamed to it.
    #[error("{} is a mount point: choose a directory in it as target", target.display())]
    MountPoint {
        /// The target.
        target: PathBuf,
    },
    /// The target lies in the repository. Nothing was written.
    #[error("{} lies inside the repository {}: choose another target", target.display(), repository.display())]
    InsideRepository {
        /// The target.
        target: PathBuf,
        /// The repository.
        repository: PathBuf,
    },
    /// There is something at the place of the files that are being restored, and no journal tells of it.
    #[error("{} has no journal beside it that tells what it is: remove it, then start again", partial.display())]
    NoJournal {
        /// The directory.
        partial: PathBuf,
    },
    /// The journal beside the target is of another restore. Nothing was changed.
    #[error(
        "{} is not of this restore ({found}): remove it and {}, or choose another target",
        journal.display(), partial.display()
    )]
    OtherRestore {
        /// The journal.
        journal: PathBuf,
        /// What belongs to it.
        partial: PathBuf,
        /// What it is of.
        found: String,
    },
    /// Another process restores to the same target.
    #[error("another restore to {} is at work: wait for its end", target.display())]
    Busy {
        /// The target.
        target: PathBuf,
    },
    /// The file system of the target has too little room. Nothing more was written.
    #[error("there is too little space for {}: {} are needed and {} are free", target.display(), human(*needed), human(*free))]
    TooLittleSpace {
        /// The target.
        target: PathBuf,
        /// Bytes that are still to be written.
        needed: u128,
        /// Bytes that are free.
        free: u128,
    },
    /// The file system became full on the way.
    #[error("no space is left for {}: make room and run the same restore again, it goes on from here", path.display())]
    NoSpace {
        /// What was being written.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The caller asked for it to stop.
    #[error("cancelled; the same restore goes on from here")]
    Cancelled,
    /// A thread of the restore failed.
    #[error("a background task failed: {0}")]
    Poisoned(String),
}

/// A file that needs a block that is damaged or missing.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path} cannot be restored: at offset {offset} it needs {} of pack {pack}, and {source}; `pbm-fs check --read-data` tells what else is damaged",
    block_name(*slot, block.as_ref())
)]
pub struct DamagedFile {
    /// Its path in the snapshot.
    pub path: String,
    /// Where in the file the block's bytes belong.
    pub offset: u64,
    /// The pack that the map names.
    pub pack: PackId,
    /// The block's number there.
    pub slot: u32,
    /// The block; not known if the pack's trailer is what is damaged.
    pub block: Option<BlockId>,
    /// What is wrong with it.
    pub source: RepoError,
}

impl From<RepoError> for RestoreError {
    fn from(e: RepoError) -> Self {
        match e {
            RepoError::Cancelled => Self::Cancelled,
            other => Self::Repo(Box::new(other)),
        }
    }
}

impl RestoreError {
    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Repo(e) | Self::File { source: e, .. } => e.kind(),
            Self::DamagedFile(e) => e.source.kind(),
            Self::ChooseReplset { .. } | Self::BadTarget { .. } | Self::InsideRepository { .. } => {
                ErrorKind::Usage
            }
            Self::NoSuchReplset { .. } | Self::NoParent { .. } => ErrorKind::NotFound,
            Self::TargetExists { .. }
            | Self::MountPoint { .. }
            | Self::NoJournal { .. }
            | Self::OtherRestore { .. }
            | Self::Busy { .. } => ErrorKind::Busy,
            Self::TooLittleSpace { .. } | Self::NoSpace { .. } | Self::Io { .. } | Self::Poisoned(_) => {
                ErrorKind::Failed
            }
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }

    /// What the operating system said about `path`; a full file system has a variant of its own.
    pub(super) fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            _ => Self::Io { op, path, source },
        }
    }

    /// What the repository said about the map of a file.
    pub(super) fn of_file(path: &str) -> impl FnOnce(RepoError) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            ErrorKind::Damaged => Self::File {
                path,
                source: source.into(),
            },
            _ => source.into(),
        }
    }
}

fn block_name(slot: u32, block: Option<&BlockId>) -> String {
    match block {
        Some(id) => format!("block {slot} ({id})"),
        None => format!("block {slot}"),
    }
}

/// A number of bytes for people.
fn human(bytes: u128) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Shorthand for this module.
pub(super) type Result<T, E = RestoreError> = std::result::Result<T, E>;
