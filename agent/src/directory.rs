//! A directory as a source: the dbPath of a stopped mongod, or a file-system snapshot of a running one.
//!
//! Nothing can pin such files, so they are watched instead: what was seen at `open` is compared with what is there
//! at `release`. Any directory may be backed up, whether or not a mongod ever wrote to it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use pbmfs_dbpath::JournalPolicy;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::SourceError;
use crate::source::{FileKind, NodeInfo, Pinned, Source, SourceKind};
use crate::walk::{self, Fingerprint};

/// The directory source. The journal is kept: a crashed server's journal holds writes that no table has.
#[derive(Debug)]
pub struct DirectorySource {
    path: PathBuf,
    /// What was seen at `open`; None while closed.
    seen: Option<Vec<(PathBuf, Fingerprint)>>,
}

impl DirectorySource {
    /// Nothing is looked at before `open`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            seen: None,
        }
    }
}

#[async_trait]
impl Source for DirectorySource {
    fn root(&self) -> Option<&Path> {
        Some(&self.path)
    }

    async fn open(&mut self) -> Result<Pinned, SourceError> {
        let path = self.path.clone();
        let (pinned, seen) = blocking(move || {
            refuse_if_in_use(&path)?;
            let root_seen =
                Fingerprint::at(&path)?.ok_or_else(|| SourceError::Missing { path: path.clone() })?;
            let listing = walk::list(&path, JournalPolicy::Keep)?;

            if !listing.files.iter().any(|file| file.kind == FileKind::Regular) {
                tracing::warn!(
                    "{} holds no file: is what should be mounted there mounted?",
                    path.display()
                );
            }
            let mut seen = vec![(path.clone(), root_seen)];
            seen.extend(
                listing
                    .files
                    .iter()
                    .map(|file| path.join(&file.path))
                    .zip(listing.fingerprints),
            );
            let info = NodeInfo::unknown(SourceKind::Directory);
            Ok((
                Pinned {
                    root: path,
                    files: listing.files,
                    left_out: listing.left_out,
                    info,
                    since: None,
                    head: None,
                },
                seen,
            ))
        })
        .await?;
        self.seen = Some(seen);
        Ok(pinned)
    }

    /// Only whether a mongod has started on the directory: comparing every file is for `release`.
    fn check(&self) -> Result<(), SourceError> {
        if self.seen.is_none() {
            return Err(SourceError::NotOpen);
        }
        refuse_if_in_use(&self.path)
    }

    async fn release(&mut self) -> Result<(), SourceError> {
        let seen = self.seen.take().ok_or(SourceError::NotOpen)?;
        let path = self.path.clone();
        blocking(move || {
            refuse_if_in_use(&path)?;
            // Files first, so that the error names what was written rather than the directory it is in.
            let (directories, files): (Vec<_>, Vec<_>) =
                seen.into_iter().partition(|(path, _)| path.is_dir());
            for (path, before) in files.into_iter().chain(directories) {
                if Fingerprint::at(&path)? != Some(before) {
                    return Err(SourceError::Changed { path });
                }
            }
            Ok(())
        })
        .await
    }
}

/// A mongod holds an exclusive flock on its `mongod.lock`; one that crashed leaves the file behind, not empty and
/// not held. A shared lock is asked for, since a read-only descriptor suffices for it on every file system, and
/// given back at once.
fn refuse_if_in_use(dbpath: &Path) -> Result<(), SourceError> {
    let path = dbpath.join("mongod.lock");
    match fs::metadata(&path) {
        Ok(meta) if meta.is_file() => {}
        // No lock file; what is wrong with the directory itself is for the listing to say.
        _ => return Ok(()),
    }
    let file = File::open(&path).map_err(|error| SourceError::io(&path, error))?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        // Closing the descriptor unlocks.
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(SourceError::InUse { path: dbpath.into() }),
        // A file system without flock cannot have a mongod on it either.
        Err(Errno::NOTSUP | Errno::NOLCK | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(errno) => Err(SourceError::io(path, errno.into())),
    }
}

/// Runs blocking file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(SourceError::Cancelled),
    }
}

#[cfg(test)]
mod tests;
