//! Backup and restore of a mongod: where the files come from, and how they are pinned while they are read.
//!
//! - [`backup`]: from a source to a committed snapshot.
//! - [`source`]: the trait that every source implements, and what it tells about the node.
//! - [`directory`]: a stopped mongod's dbPath, or a file-system snapshot.
//! - [`cursor`]: a live member of Percona Server for MongoDB or MongoDB Enterprise, through `$backupCursor`.
//! - [`cutter`]: how each file is cut into blocks.
//! - [`live`]: the better of the two that a running server can do.
//! - [`lock`]: a live MongoDB Community member, pinned by `fsyncLock` under the eyes of a guard process.
//! - [`restore`]: a snapshot back into a directory.

pub mod backup;
pub mod cursor;
pub mod cutter;
pub mod directory;
pub mod error;
mod heads;
pub mod live;
pub mod lock;
mod node;
mod quiet_read;
pub mod restore;
pub mod source;
mod walk;

pub use cursor::{CursorOptions, CursorSource};
pub use cutter::cutter_of;
pub use directory::DirectorySource;
pub use error::{ErrorKind, SourceError};
pub use live::{LiveSource, Method};
pub use lock::{FsyncLockSource, GuardCommand, LockOptions};
pub use source::{BackupType, FileKind, FileTime, LeftOut, NodeInfo, Pinned, Source, SourceFile};
