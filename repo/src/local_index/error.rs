//! What can go wrong with an index: for callers, and inside.

use std::path::PathBuf;

use rocksdb::ErrorKind;

use crate::error::{FormatError, RepoError};

/// Why there is no local index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// RocksDB can be used by one process at a time.
    #[error(
        "the local index in {0} is in use by another backup: wait for its end, or give this one a directory of its own with --index"
    )]
    Busy(PathBuf),
    /// Its directory cannot be written, or the disk is full.
    #[error("the local index in {directory} cannot be used: {reason}")]
    Unusable {
        /// Where.
        directory: PathBuf,
        /// What the system or RocksDB says.
        reason: String,
    },
    /// The repository could not be read while the index caught up with it.
    #[error(transparent)]
    Repo(#[from] RepoError),
}

/// What went wrong inside, by what has to be done.
#[derive(Debug)]
pub(super) enum Fault {
    /// The index is not what it should be: build it anew.
    Damage(String),
    /// The system refuses something: the index may be whole.
    Environment(String),
    /// The repository.
    Repo(RepoError),
}

impl Fault {
    pub fn reason(self) -> String {
        match self {
            Self::Damage(reason) | Self::Environment(reason) => reason,
            Self::Repo(e) => e.to_string(),
        }
    }
}

/// What the C library says of a system that refuses, which tells nothing of the bytes on disk.
const REFUSALS: [&str; 6] = [
    "No space left",
    "Permission denied",
    "Read-only file system",
    "Too many open files",
    "quota exceeded",
    "Cannot allocate memory",
];

impl From<rocksdb::Error> for Fault {
    fn from(e: rocksdb::Error) -> Self {
        use ErrorKind::{Aborted, Busy, Incomplete, ShutdownInProgress, TimedOut, TryAgain};
        let passing = matches!(
            e.kind(),
            Aborted | Busy | Incomplete | ShutdownInProgress | TimedOut | TryAgain
        );
        let text = e.into_string();
        if passing || REFUSALS.iter().any(|words| text.contains(words)) {
            Self::Environment(text)
        } else {
            Self::Damage(text)
        }
    }
}

impl From<std::io::Error> for Fault {
    fn from(e: std::io::Error) -> Self {
        Self::Environment(e.to_string())
    }
}

impl From<FormatError> for Fault {
    fn from(e: FormatError) -> Self {
        Self::Damage(e.to_string())
    }
}
