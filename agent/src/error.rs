//! What can go wrong with a source.
//!
//! Each text is one sentence that names the thing and says what to do about it, so that the command line prints it
//! as it is; [`SourceError::kind`] is what a caller decides by (exit codes, retries). Nothing here ever holds a
//! connection string, because it may hold a password.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// What the user, or the caller, can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request itself is wrong: another argument is needed.
    Usage,
    /// What was named does not exist.
    NotFound,
    /// Somebody else holds it: try again later.
    Busy,
    /// A wrong password, or a user that may not do this.
    Auth,
    /// This server, or this member, cannot be backed up in this way.
    Unsupported,
    /// The server does not answer.
    Unreachable,
    /// The files were pinned and are not any more, or changed while they were read: what was read is worthless.
    Lost,
    /// The operating system refused.
    Io,
    /// The server refused, or something of ours broke.
    Failed,
    /// The caller gave up.
    Cancelled,
}

/// Why a source could not be opened, or its pin was lost.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// There is nothing at the path.
    #[error("{path} does not exist: name the directory that holds the database files")]
    Missing {
        /// As it was given.
        path: PathBuf,
    },
    /// Something else than a directory.
    #[error("{path} is not a directory: name the directory that holds the database files")]
    NotADirectory {
        /// As it was given.
        path: PathBuf,
    },
    /// A file or directory could not be read.
    #[error(
        "{path} cannot be read ({error}): run pbm-fs as the user that owns the database files, or as root"
    )]
    Unreadable {
        /// The file itself, not the directory that was asked for.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// A name that is not UTF-8.
    #[error("the name of {path:?} is not valid UTF-8, which a snapshot cannot hold: rename or remove it")]
    NotUtf8 {
        /// With its strange bytes escaped by Debug.
        path: PathBuf,
    },
    /// A symbolic link leads back to a directory above itself.
    #[error(
        "{path} is a symbolic link that leads back to itself or to a directory above it: remove it, it would be followed for ever"
    )]
    Loop {
        /// The link.
        path: PathBuf,
    },
    /// `mongod.lock` is held.
    #[error("{path} is in use by a running mongod: stop it, or back it up with --uri")]
    InUse {
        /// The dbPath.
        path: PathBuf,
    },
    /// A file is not what it was when the source was opened.
    #[error("{path} changed while it was read: nothing was saved; stop whatever writes there and try again")]
    Changed {
        /// The first file that differs.
        path: PathBuf,
    },

    /// The connection string cannot be used.
    #[error("the connection string cannot be used: {reason}")]
    Uri {
        /// What the driver said.
        reason: String,
    },
    /// No answer.
    #[error(
        "no MongoDB server answers at {node} ({reason}): check that it runs and that the address is right"
    )]
    Unreachable {
        /// host:port
        node: String,
        /// What the driver said.
        reason: String,
    },
    /// Code 18.
    #[error(
        "{node} refused the user name or password: check them, and the authSource, in the connection string"
    )]
    WrongPassword {
        /// host:port
        node: String,
    },
    /// Code 13.
    #[error(
        "the user may not run {command} on {node}: log in as a user with the roles hostManager, clusterMonitor and \
         backup"
    )]
    NotAllowed {
        /// host:port
        node: String,
        /// The command that was refused.
        command: String,
    },
    /// A router.
    #[error("{node} is a mongos, which holds no data: name a member of each shard and of the config servers")]
    Mongos {
        /// host:port
        node: String,
    },
    /// An arbiter.
    #[error("{node} is an arbiter, which holds no data: name a data-bearing member of {replset}")]
    Arbiter {
        /// host:port
        node: String,
        /// Name of the replica set.
        replset: String,
    },
    /// STARTUP2, RECOVERING, ROLLBACK and the like.
    #[error("{node} is in state {state}: wait until it is SECONDARY or PRIMARY, or name another member")]
    MemberState {
        /// host:port
        node: String,
        /// As replSetGetStatus calls it.
        state: String,
    },
    /// Started with --replSet, but no config.
    #[error("{node} was started for a replica set that has not been initiated: run rs.initiate() first")]
    NotInitiated {
        /// host:port
        node: String,
    },
    /// No member of the set has its files here.
    #[error(
        "no healthy member of {replset} has its files on this machine ({tried}): run pbm-fs beside a member, as a \
         user that can read its dbPath"
    )]
    NoLocalMember {
        /// Name of the replica set.
        replset: String,
        /// Each member and why not, separated by semicolons.
        tried: String,
    },
    /// The files at the path belong to some other server.
    #[error(
        "{dbpath} is not the dbPath of {node} ({reason}): run pbm-fs on the machine where that server runs, or say with --local-dbpath where its files are seen from here"
    )]
    NotThisServer {
        /// host:port
        node: String,
        /// Where the server says its files are.
        dbpath: PathBuf,
        /// What proved it.
        reason: String,
    },
    /// Another storage engine.
    #[error("{node} uses the storage engine {engine}: only wiredTiger keeps files that can be backed up")]
    Engine {
        /// host:port
        node: String,
        /// Its name.
        engine: String,
    },
    /// Somebody else's fsyncLock.
    #[error(
        "{node} is already locked by fsyncLock: wait for the other backup, or end the lock with db.fsyncUnlock()"
    )]
    AlreadyLocked {
        /// host:port
        node: String,
    },
    /// The lock was not granted in time.
    #[error(
        "{node} did not grant fsyncLock within {seconds} s: look for long-running operations with db.currentOp()"
    )]
    LockTimeout {
        /// host:port
        node: String,
        /// How long we waited.
        seconds: u64,
    },
    /// A command failed in a way that has no variant of its own.
    #[error("{command} failed on {node}: {reason}")]
    Command {
        /// host:port
        node: String,
        /// The command.
        command: String,
        /// What the server said.
        reason: String,
    },
    /// The pin is gone.
    #[error("the lock on {node} was lost ({reason}): nothing was saved, run the backup again")]
    Lost {
        /// host:port
        node: String,
        /// How it was noticed.
        reason: String,
    },
    /// The server's binary does not have the stage.
    #[error(
        "{node} runs mongod {version} without $backupCursor, which Percona Server for MongoDB and MongoDB Enterprise \
         have: back it up with --method lock"
    )]
    NoBackupCursor {
        /// host:port
        node: String,
        /// Of mongod.
        version: String,
    },
    /// Somebody else's backup cursor, or lock.
    #[error(
        "{node} could open no backup cursor for {seconds} s ({reason}): another backup runs there, or was killed a short \
         while ago, or a new member copies its files from it (initial sync); try again later"
    )]
    CursorBusy {
        /// host:port
        node: String,
        /// How long we waited.
        seconds: u64,
        /// What the server said last.
        reason: String,
    },
    /// The lock is not to be had while somebody's backup cursor is open.
    #[error(
        "a backup cursor is open on {node}, so it cannot be locked: another backup runs there, or was killed a short while \
         ago, or a new member copies its files from it (initial sync); try again later"
    )]
    CursorOpen {
        /// host:port
        node: String,
    },
    /// The server has checkpoints, or an oplog that rolls over, faster than it can open a cursor.
    #[error(
        "{node} could not open a backup cursor in {attempts} attempts ({reason}): try again when it is less busy"
    )]
    CursorConflict {
        /// host:port
        node: String,
        /// How often it was tried.
        attempts: u32,
        /// What the server said last.
        reason: String,
    },
    /// The cursor did not survive.
    #[error("the backup cursor on {node} was lost ({reason}): nothing was saved, run the backup again")]
    CursorLost {
        /// host:port
        node: String,
        /// How it was noticed.
        reason: String,
    },
    /// The cursor said something strange.
    #[error("the backup cursor of {node} answered something that pbm-fs does not understand: {what}")]
    CursorDocument {
        /// host:port
        node: String,
        /// The strange thing.
        what: String,
    },
    /// The journal did not get as far as the restore time.
    #[error(
        "{node} did not replicate up to its own last majority write within {seconds} s: look at its replication with \
         rs.status() and try again"
    )]
    ExtendTimeout {
        /// host:port
        node: String,
        /// How long we waited.
        seconds: u64,
    },
    /// The guard process could not be started or broke.
    #[error("the process that guards the lock failed ({reason}): nothing was locked")]
    Guard {
        /// What it said.
        reason: String,
    },
    /// A source was used before `open` or after `release`.
    #[error("nothing is pinned: the source is not open")]
    NotOpen,
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

impl SourceError {
    /// What can be done about it.
    pub fn kind(&self) -> ErrorKind {
        use SourceError::*;
        match self {
            Missing { .. } => ErrorKind::NotFound,
            NotADirectory { .. } | Uri { .. } => ErrorKind::Usage,
            Unreadable { .. } => ErrorKind::Io,
            InUse { .. }
            | AlreadyLocked { .. }
            | LockTimeout { .. }
            | CursorBusy { .. }
            | CursorOpen { .. }
            | CursorConflict { .. } => ErrorKind::Busy,
            Changed { .. } | Lost { .. } | CursorLost { .. } => ErrorKind::Lost,
            Unreachable { .. } => ErrorKind::Unreachable,
            WrongPassword { .. } | NotAllowed { .. } => ErrorKind::Auth,
            NotUtf8 { .. }
            | Loop { .. }
            | Mongos { .. }
            | Arbiter { .. }
            | MemberState { .. }
            | NotInitiated { .. }
            | NoLocalMember { .. }
            | NotThisServer { .. }
            | NoBackupCursor { .. }
            | Engine { .. } => ErrorKind::Unsupported,
            Command { .. } | CursorDocument { .. } | ExtendTimeout { .. } | Guard { .. } | NotOpen => {
                ErrorKind::Failed
            }
            Cancelled => ErrorKind::Cancelled,
        }
    }

    /// Sorts an I/O error of `path`: missing and unreadable are different news.
    pub(crate) fn io(path: impl Into<PathBuf>, error: io::Error) -> Self {
        let path = path.into();
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::NotADirectory => Self::NotADirectory { path },
            _ => Self::Unreadable { path, error },
        }
    }
}
