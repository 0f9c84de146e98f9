//! Objects as files of a local directory.
//!
//! A new object is written to a temporary file, which is fsynced and then linked to its final name: `link(2)` fails
//! when the name is taken, so of any number of writers one wins, and a reader never sees half an object. The
//! directory is fsynced before a put returns. A crash leaves at most a temporary file under `tmp/`; [`LocalStorage::
//! sweep`] removes those whose writer no longer holds its lock.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::direct_write::write_object;
use super::{Listed, Page, PutOutcome, Storage, StorageError};
use crate::key::ObjectKey;

/// Directory of files that are being written.
const TMP: &str = "tmp";

/// Objects in a page of a listing: about 2 MB of keys.
const PAGE: usize = 10_000;

/// Temporary files younger than this are left alone by a sweep: their writer may be about to lock them.
const SWEEP_AGE: Duration = Duration::from_secs(600);

/// A local directory.
#[derive(Debug, Clone)]
pub struct LocalStorage {
    root: PathBuf,
    /// Directories whose own names this process knows to be durable.
    durable: Arc<Mutex<HashSet<PathBuf>>>,
}

static TMP_NUMBER: AtomicU64 = AtomicU64::new(0);

impl LocalStorage {
    /// The storage in `root`, which need not exist before the first put.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            durable: Arc::default(),
        }
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn error(&self, op: &'static str, key: &str, e: &io::Error) -> StorageError {
        match (e.kind(), ObjectKey::parse(key)) {
            // A directory in the place of an object is no object to read.
            (
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory,
                Some(key),
            ) => StorageError::NotFound(key),
            (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, Some(key)) => StorageError::NoSpace {
                key,
                place: self.address(),
            },
            (kind @ (io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem), _) => {
                let why = match kind {
                    io::ErrorKind::ReadOnlyFilesystem => ", because its file system is mounted read-only",
                    _ => "",
                };
                StorageError::Permission {
                    op,
                    key: format!("{}/{key}{why}", self.root.display()),
                }
            }
            _ => StorageError::Failed {
                op,
                key: format!("{}/{key}", self.root.display()),
                reason: e.to_string(),
            },
        }
    }

    /// Creates the directory and its parents; each new name is durable when this returns.
    fn create_dirs(dir: &Path) -> io::Result<()> {
        match Self::create_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty())
                    && parent.symlink_metadata().is_err()
                {
                    Self::create_dirs(parent)?;
                }
                // The parent is there now, whoever made it; one that takes no directory (a link to nothing, /proc)
                // will not take one later.
                Self::create_dir(dir)
            }
            other => other,
        }
    }

    fn create_dir(dir: &Path) -> io::Result<()> {
        match fs::create_dir(dir) {
            Ok(()) => dir.parent().map_or(Ok(()), sync_dir),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Makes the directory of an object if it is not there. Whoever else made it may not have synced its name yet, so
    /// that is done once by every process: an object is not durable in a directory that is not.
    fn ensure_dir(&self, dir: &Path) -> io::Result<()> {
        let known =
            |set: &Mutex<HashSet<PathBuf>>| set.lock().unwrap_or_else(PoisonError::into_inner).contains(dir);
        let exists = dir.is_dir();
        if exists && known(&self.durable) {
            return Ok(());
        }
        if !exists {
            Self::create_dirs(dir)?;
        }
        for parent in dir.ancestors().skip(1).take_while(|p| p.starts_with(&self.root)) {
            sync_dir(parent)?;
        }
        self.durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(dir.to_owned());
        Ok(())
    }

    /// Writes and fsyncs a temporary file. Its lock is held until the returned value is dropped, which unlinks it.
    fn write_temp(&self, object: &[u8]) -> io::Result<TempFile> {
        let dir = self.root.join(TMP);
        let name = format!("{}-{}", std::process::id(), TMP_NUMBER.fetch_add(1, Relaxed));
        let mut unique = [0u8; 8];
        getrandom::fill(&mut unique).map_err(io::Error::other)?;
        let path = dir.join(format!("{name}-{:016x}", u64::from_le_bytes(unique)));
        let open = || OpenOptions::new().write(true).create_new(true).open(&path);
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Self::create_dirs(&dir)?;
                open()
            }
            other => other,
        }?;
        let temp = TempFile { path, file };
        // The lock tells a sweep that the writer lives; a file system without locks is no reason to fail.
        let _ = temp.file.try_lock();
        write_object(&temp.file, object)?;
        temp.file.sync_all()?;
        Ok(temp)
    }

    fn prepare(&self, key: &ObjectKey, object: &[u8]) -> io::Result<(TempFile, PathBuf, PathBuf)> {
        let path = self.path(key);
        let dir = path.parent().unwrap_or(&self.root).to_owned();
        let temp = self.write_temp(object)?;
        self.ensure_dir(&dir)?;
        Ok((temp, path, dir))
    }

    fn create_now(&self, key: &ObjectKey, object: &[u8]) -> Result<PutOutcome, StorageError> {
        let (temp, path, dir) = self.prepare(key, object).map_err(|e| self.write_error(key, &e))?;
        match fs::hard_link(&temp.path, &path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // The winner may have linked and not yet synced; its object must not vanish after we were told of it.
                sync_dir(&dir).map_err(|e| self.write_error(key, &e))?;
                return Ok(PutOutcome::Exists);
            }
            Err(e) => return Err(self.write_error(key, &e)),
        }
        drop(temp);
        sync_dir(&dir).map_err(|e| unknown(key, &e))?;
        Ok(PutOutcome::Created)
    }

    fn replace_now(&self, key: &ObjectKey, object: &[u8]) -> Result<(), StorageError> {
        let (temp, path, dir) = self.prepare(key, object).map_err(|e| self.write_error(key, &e))?;
        fs::rename(&temp.path, &path).map_err(|e| self.write_error(key, &e))?;
        sync_dir(&dir).map_err(|e| unknown(key, &e))
    }

    /// A write never means "not found": a parent that vanished is a failure.
    fn write_error(&self, key: &ObjectKey, e: &io::Error) -> StorageError {
        match self.error("write", key.as_str(), e) {
            StorageError::NotFound(_) => StorageError::Failed {
                op: "write",
                key: self.path(key).display().to_string(),
                reason: e.to_string(),
            },
            other => other,
        }
    }

    fn read_range_now(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Bytes, StorageError> {
        let fail = |e: io::Error| self.error("read", key.as_str(), &e);
        let out_of_range = || StorageError::OutOfRange {
            key: key.clone(),
            offset,
            len,
        };
        let file = File::open(self.path(key)).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if meta.is_dir() {
            return Err(fail(io::ErrorKind::IsADirectory.into()));
        }
        let size = meta.len();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(out_of_range());
        }
        let mut buf = vec![0; len as usize];
        file.read_exact_at(&mut buf, offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => out_of_range(),
            _ => fail(e),
        })?;
        Ok(buf.into())
    }

    fn list_now(&self, prefix: &str, from: Option<&str>) -> Result<Page, StorageError> {
        let mut objects = Vec::new();
        let dir = prefix.rsplit_once('/').map_or("", |(dir, _)| dir);
        self.walk(dir, prefix, from, &mut objects)
            .map_err(|e| self.error("list", prefix, &e))?;
        let more = objects.len() > PAGE;
        objects.truncate(PAGE);
        let next = objects
            .last()
            .filter(|_| more)
            .map(|o: &Listed| o.key.as_str().to_owned());
        Ok(Page { objects, next })
    }

    /// Collects one object more than a page, in the order of keys.
    fn walk(&self, dir: &str, prefix: &str, from: Option<&str>, out: &mut Vec<Listed>) -> io::Result<()> {
        let entries = match fs::read_dir(self.root.join(dir)) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            let kind = entry.file_type()?;
            let is_dir = kind.is_dir();
            // A symbolic link, a socket or a pipe is nothing of ours.
            if !is_dir && !kind.is_file() {
                continue;
            }
            let key = if dir.is_empty() {
                name
            } else {
                format!("{dir}/{name}")
            };
            if dir.is_empty() && key == TMP {
                continue;
            }
            names.push((if is_dir { format!("{key}/") } else { key }, is_dir));
        }
        names.sort();
        for (key, is_dir) in names {
            if out.len() > PAGE {
                break;
            }
            if is_dir {
                let wanted = key.starts_with(prefix) || prefix.starts_with(&key);
                let passed = from.is_some_and(|from| key.as_str() <= from && !from.starts_with(&key));
                if wanted && !passed {
                    self.walk(&key[..key.len() - 1], prefix, from, out)?;
                }
            } else if key.starts_with(prefix) && from.is_none_or(|from| key.as_str() > from) {
                let Some(parsed) = ObjectKey::parse(&key) else {
                    continue;
                };
                match fs::metadata(self.root.join(&key)) {
                    Ok(meta) => out.push(Listed {
                        key: parsed,
                        size: meta.len(),
                    }),
                    // Deleted since the directory was read.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// Removes temporary files that a crash left behind: old ones whose writer's lock is gone. Best effort; returns
    /// how many were removed.
    pub fn sweep(&self) -> usize {
        let Ok(entries) = fs::read_dir(self.root.join(TMP)) else {
            return 0;
        };
        let mut removed = 0;
        for path in entries.flatten().map(|e| e.path()) {
            let old = fs::metadata(&path)
                .and_then(|m| m.modified())
                .is_ok_and(|t| t.elapsed().is_ok_and(|age| age > SWEEP_AGE));
            let abandoned = old && File::open(&path).is_ok_and(|f| f.try_lock().is_ok());
            if abandoned && fs::remove_file(&path).is_ok() {
                removed += 1;
            }
        }
        removed
    }

    async fn blocking<T: Send + 'static>(
        &self,
        op: &'static str,
        key: &str,
        call: impl FnOnce(&Self) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || call(&this))
            .await
            .unwrap_or_else(|e| {
                Err(match ObjectKey::parse(key) {
                    Some(key) if op == "write" => StorageError::Unknown {
                        op,
                        key,
                        reason: e.to_string(),
                    },
                    _ => StorageError::Failed {
                        op,
                        key: key.into(),
                        reason: e.to_string(),
                    },
                })
            })
    }
}

struct TempFile {
    path: PathBuf,
    file: File,
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // After a rename the name is gone already; anything else is left to a sweep.
        let _ = fs::remove_file(&self.path);
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)?.sync_all()
}

fn unknown(key: &ObjectKey, e: &io::Error) -> StorageError {
    StorageError::Unknown {
        op: "write",
        key: key.clone(),
        reason: e.to_string(),
    }
}

#[async_trait]
impl Storage for LocalStorage {
    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StorageError> {
        let k = key.clone();
        self.blocking("read", key.as_str(), move |s| {
            fs::read(s.path(&k))
                .map(Bytes::from)
                .map_err(|e| s.error("read", k.as_str(), &e))
        })
        .await
    }

    async fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Bytes, StorageError> {
        let k = key.clone();
        self.blocking("read", key.as_str(), move |s| s.read_range_now(&k, offset, len))
            .await
    }

    async fn put_if_absent(&self, key: &ObjectKey, object: Bytes) -> Result<PutOutcome, StorageError> {
        let k = key.clone();
        self.blocking("write", key.as_str(), move |s| s.create_now(&k, &object))
            .await
    }

    async fn put_once(&self, key: &ObjectKey, object: Bytes) -> Result<(), StorageError> {
        match self.put_if_absent(key, object).await? {
            PutOutcome::Created => Ok(()),
            PutOutcome::Exists => Err(StorageError::AlreadyThere(key.clone())),
        }
    }

    async fn put(&self, key: &ObjectKey, object: Bytes) -> Result<(), StorageError> {
        let k = key.clone();
        self.blocking("write", key.as_str(), move |s| s.replace_now(&k, &object))
            .await
    }

    async fn list(&self, prefix: &str, from: Option<String>) -> Result<Page, StorageError> {
        let p = prefix.to_owned();
        self.blocking("list", prefix, move |s| s.list_now(&p, from.as_deref()))
            .await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StorageError> {
        let k = key.clone();
        self.blocking("delete", key.as_str(), move |s| {
            let path = s.path(&k);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(s.error("delete", k.as_str(), &e)),
            }
            sync_dir(path.parent().unwrap_or(&s.root)).map_err(|e| s.error("delete", k.as_str(), &e))
        })
        .await
    }

    async fn head(&self, key: &ObjectKey) -> Result<u64, StorageError> {
        let k = key.clone();
        self.blocking("look at", key.as_str(), move |s| {
            match fs::metadata(s.path(&k)) {
                // Nothing can be put there, so "not found" would be a lie to a writer.
                Ok(meta) if meta.is_dir() => Err(StorageError::Failed {
                    op: "look at",
                    key: s.path(&k).display().to_string(),
                    reason: "a directory stands in its place".into(),
                }),
                Ok(meta) => Ok(meta.len()),
                Err(e) => Err(s.error("look at", k.as_str(), &e)),
            }
        })
        .await
    }

    fn address(&self) -> String {
        self.root.display().to_string()
    }
}
