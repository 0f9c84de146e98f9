//! How much each snapshot uses of a repository, what it shares with others, and what only it uses.
//!
//! Snapshots are walked one after the other, and only where the next differs from the one before: what both have is
//! neither read nor counted again. For each slot it is counted how often the snapshot at hand names it, and noted
//! whether one snapshot or several use it. A slot is a block as it is stored: of two equal blocks, which writers who
//! did not know of each other may have stored, each counts.
//!
//! Memory is about 1.4 bytes for each slot that is used, about 60 for each map node of the snapshot at hand, some 100
//! for each pack, and the caches of [`StatsOptions::memory`].

mod usage;
mod walk;

use std::collections::HashMap;

use serde::Serialize;

pub use usage::Footprint;

use crate::error::{ErrorKind, RepoError, Result};
use crate::id::{PackId, SnapshotName};
use crate::ingest::Cancel;
use crate::key::prefix;
use crate::objects::SnapshotDoc;
use crate::repository::{Listing, Repository};
use crate::storage::list_all;
use usage::Share;
use walk::Gauge;

/// How statistics are made.
#[derive(Debug, Clone, Copy)]
pub struct StatsOptions {
    /// Bytes for caches.
    pub memory: u64,
}

impl Default for StatsOptions {
    fn default() -> Self {
        Self { memory: 128 << 20 }
    }
}

/// Is told how far it is. Must be quick.
pub trait StatsProgress: Send + Sync {
    /// So many files will be looked at; the same file in two snapshots counts twice. Called again if everything has to
    /// be begun anew, because a snapshot was deleted meanwhile.
    fn files(&self, total: u64);
    /// So many more are done.
    fn done(&self, files: u64);
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStatsProgress;

impl StatsProgress for NoStatsProgress {
    fn files(&self, _: u64) {}
    fn done(&self, _: u64) {}
}

/// What a snapshot, or several together, have and use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// Files; directories are not among them.
    pub files: u64,
    /// Bytes of all files, as a restore makes them.
    pub bytes_logical: u64,
    /// All blocks that are named, each once.
    pub uses: Footprint,
    /// Those that no other snapshot names: what would be free without it.
    pub only: Footprint,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotUse {
    /// Its name.
    pub name: SnapshotName,
    /// `physical` or `incremental`.
    pub backup_type: String,
    /// What it has and uses.
    pub usage: Use,
}

/// What lies in the repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// Snapshots that can be read.
    pub snapshots: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of all packs.
    pub bytes_packs: u64,
    /// Bytes in packs that no snapshot uses: of backups that run or were interrupted.
    pub bytes_unused: u64,
}

/// The statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// The snapshots that were asked for, in the order in which they began.
    pub snapshots: Vec<SnapshotUse>,
    /// These together.
    pub total: Use,
    /// The whole repository.
    pub contents: Contents,
    /// Snapshots whose objects cannot be read: what only they use counts as unused, and what others share with them as
    /// theirs alone.
    pub unreadable: Vec<SnapshotName>,
}

/// Makes the statistics of some snapshots, or of all if none is named.
///
/// # Errors
/// `Deleted` or `NoSuchSnapshot` for a name that is none; what is wrong with a map or a file list; the storage's;
/// `Cancelled`.
pub async fn stats(
    repo: &Repository,
    names: &[SnapshotName],
    options: StatsOptions,
    progress: &dyn StatsProgress,
    cancel: &Cancel,
) -> Result<Stats> {
    // Two snapshots are open at a time, each with a cache of its own.
    let repo = &repo.with_cache(options.memory / 2)?;
    // First the snapshots: what they need is there before they are, so it is in a listing that begins later.
    let (mut docs, mut unreadable) = (Vec::new(), Vec::new());
    for listing in repo.snapshots().await? {
        match listing {
            Listing::Snapshot(doc) => docs.push(*doc),
            Listing::Unreadable(name, why) => {
                tracing::warn!("{name} is not counted: {why}");
                unreadable.push(name);
            }
        }
    }
    for name in names {
        if !docs.iter().any(|doc| doc.name == *name) {
            // Says what is wrong with it.
            docs.push(repo.snapshot(name).await?);
        }
    }
    let listed: HashMap<PackId, u64> = list_all(&**repo.storage(), prefix::PACKS)
        .await?
        .iter()
        .filter_map(|o| Some((o.key.last()?, o.size)))
        .collect();
    loop {
        match gather(repo, &docs, names, &listed, progress, cancel).await {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let gone = |doc: &SnapshotDoc| matches!(&e, RepoError::Deleted(name) if *name == doc.name);
                match docs.iter().position(gone) {
                    Some(at) if !names.contains(&docs[at].name) => drop(docs.remove(at)),
                    _ => return Err(e),
                }
            }
            gathered => {
                return gathered.map(|stats| Stats { unreadable, ..stats });
            }
        }
    }
}

async fn gather(
    repo: &Repository,
    docs: &[SnapshotDoc],
    names: &[SnapshotName],
    listed: &HashMap<PackId, u64>,
    progress: &dyn StatsProgress,
    cancel: &Cancel,
) -> Result<Stats> {
    let is_wanted = |doc: &SnapshotDoc| names.is_empty() || names.contains(&doc.name);
    // Each snapshot is come to and left again, and once more on the way back if it is wanted; at the last one it ends.
    let visits = |doc: &SnapshotDoc| doc.stats.files * if is_wanted(doc) { 4 } else { 2 };
    let last = docs
        .iter()
        .find(|doc| is_wanted(doc))
        .map_or(0, |doc| doc.stats.files);
    progress.files(docs.iter().map(visits).sum::<u64>() - last);
    let mut gauge = Gauge::new(repo, listed, progress, cancel);
    let mut out = Stats {
        snapshots: Vec::new(),
        total: Use::default(),
        contents: Contents {
            snapshots: docs.len() as u64,
            packs: listed.len() as u64,
            bytes_packs: listed.values().sum(),
            bytes_unused: 0,
        },
        unreadable: Vec::new(),
    };
    for doc in docs {
        let usage = gauge.go_to(doc).await?;
        let wanted = is_wanted(doc);
        gauge.note(wanted);
        if wanted {
            out.total.files += usage.files;
            out.total.bytes_logical += usage.bytes_logical;
            out.snapshots.push(SnapshotUse {
                name: doc.name.clone(),
                backup_type: doc.backup_type.clone(),
                usage,
            });
        }
    }
    // Only now it is known what several snapshots use. The way back begins where the way ended.
    let wanted = docs.iter().rev().filter(|doc| is_wanted(doc));
    for (doc, row) in wanted.zip(out.snapshots.iter_mut().rev()) {
        gauge.go_to(doc).await?;
        row.usage.only = gauge.sum(Share::OnlyThis).await?;
    }
    out.total.uses = gauge.sum(Share::Wanted).await?;
    out.total.only = gauge.sum(Share::OnlyWanted).await?;
    out.contents.bytes_unused = gauge.unused(listed).await?;
    Ok(out)
}
