//! Where objects lie: one narrow trait, its implementations, and decorators that implement it again.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::ErrorKind;
use crate::key::ObjectKey;

mod counting;
mod direct_write;
mod faults;
mod local;
mod memory;

pub use counting::{CountingStorage, RequestCounts};
pub use faults::{Fault, FaultPlan, FaultyStorage, Op};
pub use local::LocalStorage;
pub use memory::MemoryStorage;

/// Why a storage call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// There is no such object.
    #[error("the object {0} does not exist")]
    NotFound(ObjectKey),
    /// The object ends before the range that was asked for.
    #[error("the object {key} is too short for the range {offset}+{len}")]
    OutOfRange {
        /// Which object.
        key: ObjectKey,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
    },
    /// `put_once` found the key taken: ids are never used twice, so something is very wrong.
    #[error("the object {0} exists already, although its id is new")]
    AlreadyThere(ObjectKey),
    /// Nothing was stored: there is no room.
    #[error("there is no space left in {place} for {key}")]
    NoSpace {
        /// Which object.
        key: ObjectKey,
        /// The storage's address.
        place: String,
    },
    /// Nothing was done: the process may not.
    #[error("no permission to {op} {key}")]
    Permission {
        /// Which call.
        op: &'static str,
        /// Which object.
        key: String,
    },
    /// The call failed and certainly changed nothing.
    #[error("cannot {op} {key}: {reason}")]
    Failed {
        /// Which call.
        op: &'static str,
        /// Which object.
        key: String,
        /// Why.
        reason: String,
    },
    /// The call failed and may have been carried out all the same, now or later.
    #[error("cannot tell whether {op} of {key} was carried out: {reason}")]
    Unknown {
        /// Which call.
        op: &'static str,
        /// Which object.
        key: ObjectKey,
        /// Why.
        reason: String,
    },
    /// The address is no address.
    #[error("{0}")]
    BadAddress(String),
    /// The address names a kind of storage that this program does not have.
    #[error("this pbm-fs has no storage \"{0}\"; give a path or file:///path as repository")]
    UnknownScheme(String),
}

impl StorageError {
    /// What a caller can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::OutOfRange { .. } => ErrorKind::Damaged,
            Self::BadAddress(_) => ErrorKind::Usage,
            Self::UnknownScheme(_) => ErrorKind::Unsupported,
            _ => ErrorKind::Failed,
        }
    }

    /// Whether the object is simply not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }

    /// Whether a put may have landed although it failed.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// What `put_if_absent` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// This call created the object.
    Created,
    /// Somebody, perhaps an earlier attempt of the same caller, was first.
    Exists,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: ObjectKey,
    /// Its length in bytes.
    pub size: u64,
}

/// One page of a listing.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Objects in the order of their keys.
    pub objects: Vec<Listed>,
    /// Give this to the next call; `None` behind the last page.
    pub next: Option<String>,
}

/// Where objects lie. Each call is atomic; a put is durable once it returned. Objects that are put, deleted or
/// listed at the same time as a listing runs may or may not be in it; every object that was there before it began
/// and is there when it ends is in it.
#[async_trait]
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// The whole object.
    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StorageError>;
    /// Exactly `len` bytes from `offset` on; `OutOfRange` if the object is shorter.
    async fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Bytes, StorageError>;
    /// Creates the object unless the key is taken. Of any number of callers at once exactly one sees `Created`.
    async fn put_if_absent(&self, key: &ObjectKey, object: Bytes) -> Result<PutOutcome, StorageError>;
    /// Creates an object whose key is new. Never repeated with the same key, by anybody (GC.md rule 2): after
    /// `Unknown` the caller makes a new id.
    async fn put_once(&self, key: &ObjectKey, object: Bytes) -> Result<(), StorageError>;
    /// Creates or replaces the object. Only for tombstones, hints and beats.
    async fn put(&self, key: &ObjectKey, object: Bytes) -> Result<(), StorageError>;
    /// The objects whose keys begin with `prefix`, a page at a time: `from` is the last page's `next`.
    async fn list(&self, prefix: &str, from: Option<String>) -> Result<Page, StorageError>;
    /// Removes the object; that it is gone already is success.
    async fn delete(&self, key: &ObjectKey) -> Result<(), StorageError>;
    /// The object's length.
    async fn head(&self, key: &ObjectKey) -> Result<u64, StorageError>;
    /// The address, for people.
    fn address(&self) -> String;
}

/// All pages of a listing.
pub async fn list_all(storage: &dyn Storage, prefix: &str) -> Result<Vec<Listed>, StorageError> {
    let mut all = Vec::new();
    let mut from = None;
    loop {
        let page = storage.list(prefix, from).await?;
        all.extend(page.objects);
        from = page.next;
        if from.is_none() {
            return Ok(all);
        }
    }
}

/// Opens a storage by address: a bare path or `file:///path`.
///
/// # Errors
/// `BadAddress`; `UnknownScheme`.
pub fn open(address: &str) -> Result<Arc<dyn Storage>, StorageError> {
    Ok(Arc::new(LocalStorage::new(local_path(address)?)))
}

/// The directory that an address names.
///
/// # Errors
/// `BadAddress` if it names none; `UnknownScheme` if it names something else.
pub fn local_path(address: &str) -> Result<std::path::PathBuf, StorageError> {
    let scheme = address.split_once("://");
    if let Some((_, path)) = scheme.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("file")) {
        if path.starts_with('/') {
            return Ok(path.into());
        }
        return Err(StorageError::BadAddress(format!(
            "\"{address}\" has no absolute path; write file:///path"
        )));
    }
    match scheme {
        Some((scheme, _)) => Err(StorageError::UnknownScheme(scheme.into())),
        None if address.is_empty() => Err(StorageError::BadAddress(
            "the repository's address is empty".into(),
        )),
        None => Ok(address.into()),
    }
}
