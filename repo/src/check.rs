//! Check of a repository: whether every object is what it should be, and every snapshot can be read.
//!
//! 1. Every small object is read and decoded; of every pack header, trailer and footer are read and compared.
//! 2. With [`CheckOptions::read_data`] every block of every pack is read, too, and verified by its id.
//! 3. Every snapshot is walked: file list, pack table, all nodes of all maps. Every extent must fit its pack's trailer,
//!    and every slot must be there, through relocations where the pack is gone. A node that snapshots share is
//!    visited once, unless something is wrong in or below it: then all files that need it are named.
//! 4. If blocks of data are damaged the snapshots are walked again, to name the files that need them.
//!
//! Damage never ends a check; only the storage's own failures and the caller do. What is put, committed or deleted
//! while it runs may or may not be seen, and is no damage. Memory is the set of visited nodes (40 bytes each), some
//! 100 bytes for each pack, and the buffers of [`CheckOptions::memory`].

mod attribute;
mod finding;
mod maps;
mod objects;
mod packs;

use std::collections::{HashMap, HashSet};

pub use finding::{BlockUse, CheckReport, Finding, Severity};

use crate::error::{ErrorKind, RepoError, Result};
use crate::id::{PackId, SnapshotName};
use crate::ingest::Cancel;
use crate::repository::Repository;
use crate::storage::list_all;

/// How a check works.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions {
    /// Whether every block is read, and not only what describes them.
    pub read_data: bool,
    /// Bytes for buffers and caches.
    pub memory: u64,
    /// Packs that are read at the same time.
    pub threads: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            read_data: false,
            memory: 128 << 20,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
        }
    }
}

/// Is told what a check does. Must be quick.
pub trait CheckProgress: Send + Sync {
    /// So many packs of so many bytes will be looked at; the bytes are read only with `read_data`.
    fn packs(&self, total: u64, bytes: u64);
    /// A pack is done, and it has so many bytes.
    fn pack(&self, bytes: u64);
    /// So many snapshots will be walked. Called again if damaged blocks have to be traced to files.
    fn snapshots(&self, total: u64);
    /// A snapshot is done.
    fn snapshot(&self, name: &SnapshotName);
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCheckProgress;

impl CheckProgress for NoCheckProgress {
    fn packs(&self, _: u64, _: u64) {}
    fn pack(&self, _: u64) {}
    fn snapshots(&self, _: u64) {}
    fn snapshot(&self, _: &SnapshotName) {}
}

/// Checks a repository. What is wrong with it stands in the report.
///
/// # Errors
/// The storage's, if it fails otherwise than by damage; `Cancelled`.
pub async fn check(
    repo: &Repository,
    options: CheckOptions,
    progress: &dyn CheckProgress,
    cancel: &Cancel,
) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    // Caches of its own: what another reader found sound a while ago says nothing about now.
    let repo = repo.with_cache(options.memory / 2)?;
    let listed = list_all(&**repo.storage(), "").await?;
    let objects = objects::read(&repo, &listed, &mut report, cancel).await?;
    let (packs, bad) = packs::read(&repo, &objects.packs, options, progress, cancel, &mut report).await?;
    let mut walker = maps::Walker::new(&repo, &packs, &mut report, cancel);
    progress.snapshots(objects.snapshots.len() as u64);
    for doc in &objects.snapshots {
        walker.snapshot(doc).await?;
        progress.snapshot(&doc.name);
    }
    let (used, whole) = walker.finish();
    if whole {
        unreferenced(&objects.packs, &used, &mut report);
    }
    if !bad.is_empty() {
        let relocations = &objects.relocations;
        let found =
            attribute::attribute(&repo, bad, relocations, &objects.snapshots, progress, cancel).await?;
        report.findings.extend(found);
    }
    report.snapshots = objects.snapshots.len() as u64;
    report.findings.sort_by_key(|f| f.severity());
    Ok(report)
}

/// Packs that no snapshot needs: of a backup that runs or was interrupted, or of snapshots that were deleted.
fn unreferenced(packs: &HashMap<PackId, u64>, used: &HashSet<PackId>, report: &mut CheckReport) {
    let unused = packs.iter().filter(|(id, _)| !used.contains(*id));
    let (count, bytes) = unused.fold((0, 0), |(count, bytes), (_, size)| (count + 1, bytes + size));
    if count > 0 {
        report
            .findings
            .push(Finding::Unreferenced { packs: count, bytes });
    }
}

/// The text of an error that means damage; any other ends the check.
fn damage(e: RepoError) -> Result<String> {
    match e.kind() {
        ErrorKind::Damaged | ErrorKind::Unsupported => Ok(e.to_string()),
        _ => Err(e),
    }
}
