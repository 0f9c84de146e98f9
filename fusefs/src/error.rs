//! Two tiers: [`FsError`] is what an operation on the mounted tree can end in, cheap to clone because every waiter
//! of a failed load gets it; [`MountError`] is what the commands `mount` and `umount` can end in, one sentence each.
//!
//! Errno is not chosen here: `adapter::errno` is the only place.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cache::Abandoned;

/// Why an operation on the tree failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    /// No such name, or an inode number that this tree never gave out.
    #[error("no such file or directory")]
    NotFound,
    /// A name was looked up in, or a listing asked of, something that is not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// A directory was opened as a file.
    #[error("is a directory")]
    IsADirectory,
    /// Anything that would change the tree.
    #[error("the file system is read-only")]
    ReadOnly,
    /// A handle that is not open.
    #[error("file handle {0} is not open")]
    BadHandle(u64),
    /// The snapshot was deleted while it was mounted.
    #[error("the snapshot was deleted")]
    Stale,
    /// The stored bytes are not what they should be. Never answered with data.
    #[error("{0}")]
    Damaged(Arc<Damage>),
    /// The storage did not answer.
    #[error("storage: {0}")]
    Unavailable(Arc<str>),
    /// A defect of ours.
    #[error("internal: {0}")]
    Internal(Arc<str>),
}

/// Which bytes of which file are lost, and where they should have been.
#[derive(Debug, thiserror::Error)]
#[error("{file} is damaged at offset {offset}: block {block} of pack {pack}: {reason}")]
pub struct Damage {
    /// Path inside the mount.
    pub file: String,
    /// Where in the file the block's first byte belongs.
    pub offset: u64,
    /// The block's id, or its slot when the id cannot be told.
    pub block: String,
    /// The pack that holds it.
    pub pack: String,
    /// What did not fit.
    pub reason: String,
}

/// Why one block could not be had. It does not know the file: the reader that wanted it adds that.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BlockError {
    /// The bytes do not verify, or are missing.
    #[error("block {block} of pack {pack}: {reason}")]
    Damaged {
        /// The block's id or slot.
        block: Arc<str>,
        /// The pack's id.
        pack: Arc<str>,
        /// What did not fit.
        reason: Arc<str>,
    },
    /// The snapshot was deleted and gc took the block.
    #[error("the snapshot was deleted")]
    Stale,
    /// The storage did not answer.
    #[error("storage: {0}")]
    Unavailable(Arc<str>),
    /// The load panicked or was dropped half-way.
    #[error("the load was abandoned")]
    Abandoned,
    /// The block has fewer bytes than the map takes from it.
    #[error("the block is shorter than the map says")]
    Short,
}

impl From<Abandoned> for BlockError {
    fn from(_: Abandoned) -> Self {
        Self::Abandoned
    }
}

impl BlockError {
    /// The error that a reader of `file` sees when the block at `offset` fails like this.
    #[must_use]
    pub fn at(self, file: &str, offset: u64) -> FsError {
        match self {
            Self::Damaged { block, pack, reason } => FsError::Damaged(Arc::new(Damage {
                file: file.to_owned(),
                offset,
                block: block.to_string(),
                pack: pack.to_string(),
                reason: reason.to_string(),
            })),
            Self::Stale => FsError::Stale,
            Self::Unavailable(why) => FsError::Unavailable(why),
            Self::Abandoned | Self::Short => {
                FsError::Internal(format!("{file} at offset {offset}: {self}").into())
            }
        }
    }
}

/// What sort of thing went wrong, for the exit code: the docs say what the user has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MountErrorKind {
    /// Give another argument: the mount point is not fit.
    Usage,
    /// Nothing is there: no such directory, or nothing is mounted.
    NotFound,
    /// Somebody uses it: wait, or stop them.
    Busy,
    /// The repository is damaged: run `check`. No mount error is of this kind yet, since a snapshot is opened before
    /// it is mounted; callers that map kinds to exit codes have it beside the repository's own.
    Damaged,
    /// The system refused: see the message.
    Io,
    /// This machine cannot mount: see the message for what is missing.
    Unsupported,
}

/// Why mounting or unmounting failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point does not exist and was not to be created.
    #[error("mount point {0} does not exist")]
    Missing(PathBuf),
    /// The mount point is a file or something stranger.
    #[error("mount point {0} is not a directory")]
    NotADirectory(PathBuf),
    /// The mount would hide what lies in the directory.
    #[error("mount point {0} is not empty")]
    NotEmpty(PathBuf),
    /// A live file system is mounted there already.
    #[error("{point} is already a mount point ({source_name}, type {fstype})")]
    AlreadyMounted {
        /// Where.
        point: PathBuf,
        /// The mount table's source column.
        source_name: String,
        /// The mount table's type column.
        fstype: String,
    },
    /// Reading the mount would read the repository, which lies under the mount: a deadlock.
    #[error("mount point {point} and the repository's directory {directory} may not contain each other")]
    Overlaps {
        /// The mount point.
        point: PathBuf,
        /// The directory that must stay outside.
        directory: PathBuf,
    },
    /// Nothing is mounted at the path.
    #[error("nothing is mounted on {0}")]
    NotMounted(PathBuf),
    /// Something is mounted there, but not by pbm-fs.
    #[error("{point} is not a pbm-fs mount ({source_name}, type {fstype}); it is left alone")]
    NotOurs {
        /// Where.
        point: PathBuf,
        /// The mount table's source column.
        source_name: String,
        /// The mount table's type column.
        fstype: String,
    },
    /// Open files or working directories keep the mount.
    #[error("{0} is in use; stop its readers, or unmount lazily")]
    Busy(PathBuf),
    /// The kernel has no FUSE here.
    #[error(
        "/dev/fuse cannot be opened ({0}); load the module (modprobe fuse), or give the container the device and \
         CAP_SYS_ADMIN"
    )]
    NoFuse(std::io::Error),
    /// mount(2) said EPERM.
    #[error("mounting on {0} is not permitted; root or CAP_SYS_ADMIN is needed")]
    NotPermitted(PathBuf),
    /// Anything else that the system refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried, as in "cannot mount on".
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl MountError {
    /// The sort of failure; the command line turns it into an exit code.
    #[must_use]
    pub fn kind(&self) -> MountErrorKind {
        match self {
            Self::NotADirectory(_) | Self::NotEmpty(_) | Self::Overlaps { .. } | Self::NotOurs { .. } => {
                MountErrorKind::Usage
            }
            Self::Missing(_) | Self::NotMounted(_) => MountErrorKind::NotFound,
            Self::AlreadyMounted { .. } | Self::Busy(_) => MountErrorKind::Busy,
            Self::NoFuse(_) | Self::NotPermitted(_) => MountErrorKind::Unsupported,
            Self::Io { .. } => MountErrorKind::Io,
        }
    }

    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Io {
            what,
            path: path.into(),
            source: source.into(),
        }
    }
}
