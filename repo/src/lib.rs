//! The repository of pbm-fs: content-addressed blocks in packs, maps of files over them, snapshots, and the storage
//! under all of it. It knows nothing of MongoDB. `docs/format.md` draws every object; `docs/architecture.md` tells
//! how the parts fit.
//!
//! From the outside in: [`Repository`] opens a storage and finds snapshots; [`SnapshotReader`] leads from a snapshot
//! to bytes; [`ingest`] writes one under a [`Session`], which obeys the rules that let gc run beside it.

pub mod check;
pub mod envelope;
pub mod error;
pub mod files;
pub mod id;
pub mod index;
pub mod ingest;
pub mod key;
pub mod local_index;
pub mod map;
pub mod objects;
pub mod pack;
pub mod reader;
pub mod relocation;
mod repository;
mod session;
pub mod stats;
pub mod storage;
pub mod table;
mod walk;
pub mod wire;

pub use error::{ErrorKind, FormatError, RepoError, Result};
pub use reader::{ReplsetReader, SnapshotReader};
pub use repository::{Listing, Repository};
pub use session::Session;
