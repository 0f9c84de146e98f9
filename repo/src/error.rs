//! Errors of the repository.
//!
//! Rules: what is wrong inside an object is a [`FormatError`]; what the storage did is a
//! [`StorageError`]; what a caller sees is a [`RepoError`], which names the object and
//! whose [`ErrorKind`] says what to do. An error is given its object's key where it is first known and is never
//! downgraded on the way up. Texts are one sentence without a final stop, so that they can stand inside another.

use crate::id::{BadName, SnapshotName};
use crate::key::ObjectKey;
use crate::storage::StorageError;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes end before the object does.
    #[error("it is truncated")]
    TooShort,
    /// Bytes are left where the object should have ended.
    #[error("it is followed by bytes that do not belong to it")]
    TrailingBytes,
    /// The first bytes are not ours.
    #[error("it does not begin with the mark of a pbm-fs object")]
    BadMagic,
    /// Written by a newer program.
    #[error("it has format version {0}, and this pbm-fs knows only version {known}", known = crate::envelope::VERSION)]
    UnknownVersion(u16),
    /// A reserved bit is set: written by a newer program.
    #[error("it uses a feature that this pbm-fs does not know (flags {0:#x})")]
    UnknownFlags(u64),
    /// An object of another kind stands in its place.
    #[error("it is a {found} where a {expected} should be")]
    WrongKind {
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// Another object was put in its place.
    #[error("it is the object {0} under a wrong name")]
    WrongKey(String),
    /// The bytes were altered.
    #[error("its checksum does not match")]
    BadChecksum,
    /// A block's or a trailer's bytes do not have the id under which they are named.
    #[error("its bytes do not have the id {0}")]
    WrongId(String),
    /// A field has a value that it cannot have.
    #[error("its field \"{0}\" is invalid")]
    BadField(&'static str),
    /// JSON that does not parse.
    #[error("its JSON is invalid: {0}")]
    BadJson(String),
}

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Correct the arguments.
    Usage,
    /// Give a name or place that exists.
    NotFound,
    /// Something is there already, or somebody else was first: try again, or choose another name.
    Busy,
    /// Bytes in the repository are damaged or missing: run `check`.
    Damaged,
    /// A newer pbm-fs is needed.
    Unsupported,
    /// The caller asked for it to stop.
    Cancelled,
    /// The storage or a source failed: its text says how; try again once that is mended.
    Failed,
}

/// An error of any operation on a repository.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepoError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// An object's bytes are wrong.
    #[error("the object {key} is damaged: {reason}")]
    Damaged {
        /// Which object.
        key: ObjectKey,
        /// What is wrong with it.
        reason: FormatError,
    },
    /// A block's bytes are wrong.
    #[error("block {slot} of pack {pack} is damaged: {reason}")]
    DamagedBlock {
        /// The pack that should hold it.
        pack: crate::id::PackId,
        /// Its number there, or its byte offset for a map node.
        slot: String,
        /// What is wrong with it.
        reason: FormatError,
    },
    /// An entry of a file list is wrong, although the list's bytes are those that were written.
    #[error("an entry of the file list is invalid: {reason}")]
    DamagedEntry {
        /// What is wrong with it.
        reason: FormatError,
    },
    /// An object that another one names is gone and has no relocation.
    #[error("the object {key} is missing")]
    Missing {
        /// Which object.
        key: ObjectKey,
    },
    /// There is no `repo.json`.
    #[error("{address} is not a pbm-fs repository; create one with `pbm-fs init`")]
    NotARepository {
        /// Where it was looked for.
        address: String,
    },
    /// `init` found a repository.
    #[error("{address} already holds a repository")]
    AlreadyARepository {
        /// Where.
        address: String,
    },
    /// `init` found foreign files.
    #[error("{address} is not empty and holds no repository; choose an empty directory")]
    NotEmpty {
        /// Where.
        address: String,
    },
    /// Written by a newer program.
    #[error("the repository needs the feature \"{0}\", which this pbm-fs does not know; use a newer pbm-fs")]
    UnknownFeature(String),
    /// Written by a newer program.
    #[error("the repository has format version {0}, and this pbm-fs knows only version {known}; use a newer pbm-fs", known = crate::envelope::VERSION)]
    UnknownVersion(u16),
    /// No snapshot has this name.
    #[error("there is no snapshot \"{asked}\"{}", offer(nearest))]
    NoSuchSnapshot {
        /// What was asked for.
        asked: String,
        /// Names like it, nearest first.
        nearest: Vec<SnapshotName>,
    },
    /// The repository holds no snapshot at all.
    #[error("the repository holds no snapshot yet; make one with `pbm-fs backup`")]
    NoSnapshots,
    /// A beginning of a name fits several.
    #[error("\"{asked}\" is the beginning of {} snapshots ({}); give more of the name", matches.len(), join(matches))]
    AmbiguousName {
        /// What was asked for.
        asked: String,
        /// All names that begin so.
        matches: Vec<SnapshotName>,
    },
    /// The snapshot was deleted, perhaps while it was read.
    #[error("snapshot {0} has been deleted")]
    Deleted(SnapshotName),
    /// A name is not one.
    #[error(transparent)]
    BadName(#[from] BadName),
    /// The commit key was taken: by another writer, or by a tombstone of somebody who took this one for dead.
    #[error("the backup was not committed: {by} took its place at {key}; start it again")]
    CommitLost {
        /// The commit key.
        key: ObjectKey,
        /// Who was first.
        by: String,
    },
    /// The storage failed so long that it is not known whether the commit landed.
    #[error(
        "it is unknown whether snapshot {name} was committed, because the storage keeps failing ({source}); `pbm-fs list` will tell once it answers again"
    )]
    CommitUnknown {
        /// The snapshot.
        name: SnapshotName,
        /// The last failure.
        source: StorageError,
    },
    /// Another process has the local index. The text says where it is and what to do.
    #[error("{0}")]
    IndexBusy(String),
    /// A file that should be stored could not be read.
    #[error("cannot read {path}: {source}")]
    Input {
        /// Path of the file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file list or a file in it cannot be stored.
    #[error("cannot store {path}: {reason}")]
    BadInput {
        /// Path of the file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The source was lost while its files were read. The text is the source's own.
    #[error("{0}")]
    SourceLost(String),
    /// A background task failed or panicked; the operation was stopped.
    #[error("a background task failed: {0}")]
    Poisoned(String),
    /// The caller asked for it to stop.
    #[error("cancelled")]
    Cancelled,
}

impl RepoError {
    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Storage(e) => e.kind(),
            Self::Damaged {
                reason: FormatError::UnknownVersion(_) | FormatError::UnknownFlags(_),
                ..
            } => ErrorKind::Unsupported,
            Self::Damaged { .. }
            | Self::DamagedBlock { .. }
            | Self::DamagedEntry { .. }
            | Self::Missing { .. } => ErrorKind::Damaged,
            Self::NotARepository { .. }
            | Self::NoSuchSnapshot { .. }
            | Self::NoSnapshots
            | Self::Deleted(_) => ErrorKind::NotFound,
            Self::AlreadyARepository { .. }
            | Self::NotEmpty { .. }
            | Self::CommitLost { .. }
            | Self::IndexBusy(_) => ErrorKind::Busy,
            Self::UnknownFeature(_) | Self::UnknownVersion(_) => ErrorKind::Unsupported,
            Self::AmbiguousName { .. } | Self::BadName(_) => ErrorKind::Usage,
            Self::CommitUnknown { .. }
            | Self::Input { .. }
            | Self::BadInput { .. }
            | Self::SourceLost(_)
            | Self::Poisoned(_) => ErrorKind::Failed,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }

    /// Marks `reason` as found in the object `key`.
    pub(crate) fn damaged(key: &ObjectKey) -> impl FnOnce(FormatError) -> Self + '_ {
        move |reason| Self::Damaged {
            key: key.clone(),
            reason,
        }
    }
}

fn join(names: &[SnapshotName]) -> String {
    names
        .iter()
        .map(SnapshotName::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

fn offer(nearest: &[SnapshotName]) -> String {
    if nearest.is_empty() {
        String::new()
    } else {
        format!("; the nearest names are {}", join(nearest))
    }
}

/// Shorthand for this crate.
pub type Result<T, E = RepoError> = std::result::Result<T, E>;
