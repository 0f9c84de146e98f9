//! A decorator that counts requests and bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

use super::{Page, PutOutcome, Storage, StorageError};
use crate::key::ObjectKey;

/// Requests so far, failed ones included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RequestCounts {
    /// Whole objects read.
    pub get: u64,
    /// Ranges read.
    pub get_range: u64,
    /// Objects put, in any of the three ways.
    pub put: u64,
    /// Pages listed.
    pub list: u64,
    /// Objects deleted.
    pub delete: u64,
    /// Lengths asked for.
    pub head: u64,
    /// Bytes that reads gave.
    pub bytes_read: u64,
    /// Bytes that puts took.
    pub bytes_written: u64,
}

impl RequestCounts {
    /// Requests that only read.
    pub fn reads(&self) -> u64 {
        self.get + self.get_range + self.list + self.head
    }
}

/// Counts what goes through it.
#[derive(Debug)]
pub struct CountingStorage {
    inner: Arc<dyn Storage>,
    get: AtomicU64,
    get_range: AtomicU64,
    put: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
    head: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl CountingStorage {
    /// Counts the requests to `inner` from now on.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            inner,
            get: zero(),
            get_range: zero(),
            put: zero(),
            list: zero(),
            delete: zero(),
            head: zero(),
            bytes_read: zero(),
            bytes_written: zero(),
        }
    }

    /// The counts at this moment.
    pub fn counts(&self) -> RequestCounts {
        RequestCounts {
            get: self.get.load(Relaxed),
            get_range: self.get_range.load(Relaxed),
            put: self.put.load(Relaxed),
            list: self.list.load(Relaxed),
            delete: self.delete.load(Relaxed),
            head: self.head.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
        }
    }

    fn put_counted(&self, object: &Bytes) {
        self.put.fetch_add(1, Relaxed);
        self.bytes_written.fetch_add(object.len() as u64, Relaxed);
    }

    fn read_counted(&self, result: Result<Bytes, StorageError>) -> Result<Bytes, StorageError> {
        if let Ok(bytes) = &result {
            self.bytes_read.fetch_add(bytes.len() as u64, Relaxed);
        }
        result
    }
}

#[async_trait]
impl Storage for CountingStorage {
    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StorageError> {
        self.get.fetch_add(1, Relaxed);
        self.read_counted(self.inner.get(key).await)
    }

    async fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Bytes, StorageError> {
        self.get_range.fetch_add(1, Relaxed);
        self.read_counted(self.inner.get_range(key, offset, len).await)
    }

    async fn put_if_absent(&self, key: &ObjectKey, object: Bytes) -> Result<PutOutcome, StorageError> {
        self.put_counted(&object);
        self.inner.put_if_absent(key, object).await
    }

    async fn put_once(&self, key: &ObjectKey, object: Bytes) -> Result<(), StorageError> {
        self.put_counted(&object);
        self.inner.put_once(key, object).await
    }

    async fn put(&self, key: &ObjectKey, object: Bytes) -> Result<(), StorageError> {
        self.put_counted(&object);
        self.inner.put(key, object).await
    }

    async fn list(&self, prefix: &str, from: Option<String>) -> Result<Page, StorageError> {
        self.list.fetch_add(1, Relaxed);
        self.inner.list(prefix, from).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.delete.fetch_add(1, Relaxed);
        self.inner.delete(key).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<u64, StorageError> {
        self.head.fetch_add(1, Relaxed);
        self.inner.head(key).await
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}
