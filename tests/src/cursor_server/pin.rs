//! A copy of the files as they were at one moment, and the journal from that moment on.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use mongodb::bson::Timestamp;
use tokio::task::{AbortHandle, spawn_blocking};

use super::{
    failure::{Failure, LOCKED},
    free_space,
    history::{FileImage, Image},
    journal::{Journal, Logs, finished, logs, without_hole},
    upstream::{OpTime, Upstream, optime},
};
use crate::error::{Doing, Result, RigError};

/// A backup cursor's files. Dropped, they are removed.
#[derive(Debug)]
pub(super) struct Pin {
    pub(super) directory: PathBuf,
    journal: Arc<Journal>,
    watcher: AbortHandle,
    /// The files that the cursor names, but for the journal.
    pub(super) files: Vec<PinnedFile>,
    /// The journal's files that were finished when the cursor was opened.
    pub(super) logs: Logs,
    /// The ends of the oplog, on a member of a set.
    pub(super) oplog: Option<(OpTime, OpTime)>,
    pub(super) checkpoint: Option<Timestamp>,
}

/// A file that is named.
#[derive(Clone, Debug)]
pub(super) struct PinnedFile {
    /// Under the dbPath.
    pub(super) name: String,
    pub(super) image: FileImage,
}

impl PinnedFile {
    /// WiredTiger's own files are always copied whole.
    pub(super) fn is_compared(&self) -> bool {
        !self.name.starts_with("WiredTiger")
    }
}

/// Why there is no pin.
#[derive(Debug)]
pub(super) enum PinError {
    /// What a real server would say.
    Refused(Failure),
    /// Something that should not happen.
    Broken(RigError),
}

impl From<RigError> for PinError {
    fn from(error: RigError) -> Self {
        Self::Broken(error)
    }
}

impl Pin {
    /// Locks the server, copies, unlocks. The server stays locked if this is cancelled.
    pub(super) async fn make(upstream: &Upstream, directory: PathBuf) -> Result<Self, PinError> {
        let admin = upstream.connect().await?;
        let status = admin.status().await?;
        let oplog_end = status.as_ref().and_then(|status| optime(status, "appliedOpTime"));
        let before = logs(&upstream.dbpath.join("journal"))?;
        if admin.lock().await? > 1 {
            admin.unlock().await?;
            return Err(PinError::Refused(Failure::usual(LOCKED)));
        }
        let pinned = async {
            let journal = Arc::new(Journal::pin(&upstream.dbpath, &directory)?);
            let mut pin = Self {
                watcher: journal.watch(),
                logs: finished(journal.catch_up()?, &before),
                journal,
                directory: directory.clone(),
                files: Vec::new(),
                oplog: None,
                checkpoint: None,
            };
            let from = upstream.dbpath.clone();
            blocking(move || copy(&from, &directory)).await?;
            if let Some(oplog_end) = oplog_end {
                let status = admin.status().await?.unwrap_or_default();
                pin.checkpoint = status.get_timestamp("lastStableRecoveryTimestamp").ok();
                pin.oplog = admin.oplog_start().await?.map(|start| (start, oplog_end));
            }
            Ok::<_, RigError>(pin)
        };
        let pinned = pinned.await;
        admin.unlock().await?;
        let mut pin = pinned?;
        let (directory, journal, logs) = (pin.directory.clone(), pin.journal(), pin.logs.clone());
        let files = move || {
            journal.detach(&logs)?;
            list(&directory)
        };
        pin.files = blocking(files).await?;
        Ok(pin)
    }

    /// Has what was written so far put into finished files, and returns all finished ones but those that are `known`.
    pub(super) async fn extend(
        journal: Arc<Journal>,
        known: Logs,
        upstream: &Upstream,
    ) -> Result<Logs, PinError> {
        let admin = upstream.connect().await?;
        let before = journal.catch_up()?;
        let locks = admin.lock().await?;
        let after = journal.catch_up();
        admin.unlock().await?;
        if locks > 1 {
            return Err(PinError::Refused(Failure::usual(LOCKED)));
        }
        let logs = finished(after?, &before);
        without_hole(&logs)?;
        let new: Logs = logs.difference(&known).cloned().collect();
        let detach = move || journal.detach(&new).map(|()| new);
        Ok(blocking(detach).await?)
    }

    pub(super) fn journal(&self) -> Arc<Journal> {
        Arc::clone(&self.journal)
    }

    /// What the next increment is compared with.
    pub(super) fn image(&self) -> Image {
        self.files
            .iter()
            .filter(|file| file.is_compared())
            .map(|file| (file.name.clone(), file.image.clone()))
            .collect()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.watcher.abort();
        // What cannot be removed is removed with the test's directory.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RigError::Check(format!("pinning files: {error}"))),
    }
}

/// Copies all but the journal, and what goes on changing under the lock.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let doing = || format!("copying {}", from.display());
    fs::create_dir_all(to).doing(doing())?;
    for entry in fs::read_dir(from).doing(doing())? {
        let entry = entry.doing(doing())?;
        let (name, kind) = (entry.file_name(), entry.file_type().doing(doing())?);
        if name == "journal" || name == "diagnostic.data" {
            continue;
        }
        let target = to.join(&name);
        if kind.is_dir() {
            copy(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target).doing(format_args!("copying {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// The files of the pin that belong to the backup.
fn list(directory: &Path) -> Result<Vec<PinnedFile>> {
    let path = directory.join("WiredTiger.backup");
    let metadata = fs::read_to_string(&path).doing(format_args!("reading {}", path.display()))?;
    let own = ["WiredTiger", "WiredTiger.backup", "WiredTiger.basecfg"];
    let own = own.into_iter().filter(|name| directory.join(name).exists());
    own.map(|name| (name.to_owned(), None))
        .chain(free_space::tables(&metadata))
        .map(|(name, checkpoint)| {
            let image = FileImage::of(&directory.join(&name), checkpoint.as_ref())
                .doing(format_args!("reading {name} of a pin"))?;
            Ok(PinnedFile { name, image })
        })
        .collect()
}
