//! Objects in memory: for simulations and unit tests.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Listed, Page, PutOutcome, Storage, StorageError};
use crate::key::ObjectKey;

/// Objects in a sorted map. Listings are paged, so that what depends on pages is tested here too.
#[derive(Debug)]
pub struct MemoryStorage {
    objects: Mutex<BTreeMap<String, Bytes>>,
    page: usize,
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::with_page(1000)
    }
}

impl MemoryStorage {
    /// A storage whose listings have at most `page` objects a page (at least 1).
    pub fn with_page(page: usize) -> Self {
        Self {
            objects: Mutex::default(),
            page: page.max(1),
        }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of bytes in all objects.
    pub fn total_bytes(&self) -> u64 {
        self.objects().values().map(|o| o.len() as u64).sum()
    }

    /// Replaces an object's bytes behind the repository's back, to damage it. `None` removes it.
    pub fn tamper(&self, key: &ObjectKey, object: Option<Bytes>) {
        match object {
            Some(object) => self.objects().insert(key.as_str().into(), object),
            None => self.objects().remove(key.as_str()),
        };
    }

    /// All objects at this moment.
    pub fn snapshot(&self) -> BTreeMap<String, Bytes> {
        self.objects().clone()
    }
}

#[async_trait]
impl Storage for MemoryStorage {
    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StorageError> {
        self.objects()
            .get(key.as_str())
            .cloned()
            .ok_or_else(|| StorageError::NotFound(key.clone()))
    }

    async fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Bytes, StorageError> {
        let object = self.get(key).await?;
        match offset.checked_add(len) {
            Some(end) if end <= object.len() as u64 => Ok(object.slice(offset as usize..end as usize)),
            _ => Err(StorageError::OutOfRange {
                key: key.clone(),
                offset,
                len,
            }),
        }
    }

    async fn put_if_absent(&self, key: &ObjectKey, object: Bytes) -> Result<PutOutcome, StorageError> {
        let mut objects = self.objects();
        if objects.contains_key(key.as_str()) {
            return Ok(PutOutcome::Exists);
        }
        objects.insert(key.as_str().into(), object);
        Ok(PutOutcome::Created)
    }

    async fn put_once(&self, key: &ObjectKey, object: Bytes) -> Result<(), StorageError> {
        match self.put_if_absent(key, object).await? {
            PutOutcome::Created => Ok(()),
            PutOutcome::Exists => Err(StorageError::AlreadyThere(key.clone())),
        }
    }

    async fn put(&self, key: &ObjectKey, object: Bytes) -> Result<(), StorageError> {
        self.objects().insert(key.as_str().into(), object);
        Ok(())
    }

    async fn list(&self, prefix: &str, from: Option<String>) -> Result<Page, StorageError> {
        let objects = self.objects();
        let start = match &from {
            Some(last) => Bound::Excluded(last.as_str()),
            None => Bound::Included(prefix),
        };
        let mut found = objects
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter_map(|(key, object)| {
                Some(Listed {
                    key: ObjectKey::parse(key)?,
                    size: object.len() as u64,
                })
            });
        let page: Vec<_> = found.by_ref().take(self.page).collect();
        let next = match (found.next(), page.last()) {
            (Some(_), Some(last)) => Some(last.key.as_str().to_owned()),
            _ => None,
        };
        Ok(Page { objects: page, next })
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.objects().remove(key.as_str());
        Ok(())
    }

    async fn head(&self, key: &ObjectKey) -> Result<u64, StorageError> {
        self.get(key).await.map(|o| o.len() as u64)
    }

    fn address(&self) -> String {
        "memory".into()
    }
}
