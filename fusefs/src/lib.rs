//! A read-only file system over the snapshots of a repository.
//!
//! From the bottom up:
//!
//! - [`tree`]: the two narrow traits that a snapshot has to implement, [`tree::Tree`] (names and attributes) and
//!   [`tree::Blocks`] (which blocks hold a range of a file, and fetching them).
//! - [`cache`]: blocks in memory within a byte budget; concurrent misses of one block load it once, and
//!   neighbouring misses become one ranged request.
//! - [`readahead`]: notices sequential readers of an open file and says how far to fetch ahead.
//! - [`fs`]: the file system's whole logic, a plain type with plain results, tested without a kernel.
//! - `adapter`: the only file that sees fuser; it translates calls and picks errno, in one place.
//! - [`mounts`]: the kernel's mount table, `umount`, dead mounts. [`point`]: is this directory fit to mount on?
//! - [`session`]: mounts, serves until told to stop, unmounts what it mounted and nothing else.
//! - `snapshot_tree`: a snapshot as such a tree; the only file that sees the repository.
//!
//! Nothing here knows MongoDB.

mod adapter;
pub mod cache;
pub mod error;
pub mod fs;
pub mod memory;
pub mod mounts;
pub mod point;
pub mod readahead;
pub mod session;
mod snapshot_tree;
pub mod tree;

pub use error::{Damage, FsError, MountError, MountErrorKind};
pub use fs::{Fs, FsConfig};
pub use mounts::{Umounted, clear_stale, umount};
pub use point::MountPoint;
pub use session::{Ended, MountConfig, Session};
pub use snapshot_tree::SnapshotTree;
