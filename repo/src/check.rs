//! Checking of a repository: is every object what it should be, and does every byte of every file lead to a block?
//!
//! First all objects are looked at: small ones are read whole, of packs the envelope and the trailer (and with
//! `read_data` every block). Then the maps of all snapshots are walked; a node that snapshots share is looked at once.
//! Only if something was wrong are they walked again, to tell which files of which snapshots it hits, and where.

mod attribute;
mod objects;
mod walk;

use serde::Serialize;

use crate::error::{ErrorKind, RepoError, Result};
use crate::id::{BlockId, PackId, SnapshotName};
use crate::ingest::Cancel;
use crate::repository::Repository;

/// What is checked, and how.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions {
    /// Read and verify every block of every pack.
    pub read_data: bool,
    /// Packs that are read at the same time; each takes up to 8 MiB.
    pub parallel: usize,
}

/// Is told how far a check is. Must be quick.
pub trait CheckProgress: Send + Sync {
    /// A step begins, of so many bytes; 0 if that is not known.
    fn step(&self, what: &str, bytes: u64);
    /// So many more bytes of it are done.
    fn bytes(&self, done: u64);
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something cannot be read, or would be lost with the next step.
    Error,
    /// Nothing is lost, and somebody should know.
    Note,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// An object's bytes are wrong.
    DamagedObject {
        /// Its key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// One block of a pack is wrong; which files it hits is told by findings of their own.
    DamagedBlock {
        /// Key of the pack.
        key: String,
        /// The block's number.
        slot: u32,
        /// The block that should be there.
        block: BlockId,
        /// What is wrong.
        reason: String,
    },
    /// An object that a snapshot needs is gone, and nothing tells where its blocks are.
    MissingObject {
        /// Its key.
        key: String,
    },
    /// A snapshot's file list or pack table cannot be read.
    DamagedSnapshot {
        /// The snapshot.
        snapshot: SnapshotName,
        /// Its replica set.
        replset: String,
        /// What is wrong.
        reason: String,
    },
    /// Part of a file cannot be read.
    DamagedFile {
        /// The snapshot.
        snapshot: SnapshotName,
        /// Its replica set.
        replset: String,
        /// Path of the file.
        path: String,
        /// First byte that cannot be read.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// The pack in which they should be, if that much is known.
        pack: Option<PackId>,
        /// The block's number there.
        slot: Option<u32>,
        /// The block.
        block: Option<BlockId>,
        /// What is wrong.
        reason: String,
    },
    /// More findings than are listed.
    More {
        /// How many more.
        count: u64,
    },
    /// A lease: somebody writes, or was killed while writing.
    Lease {
        /// Its key.
        key: String,
        /// Who, what, and since when, by their own word.
        holder: String,
    },
    /// An object that is none of ours.
    Foreign {
        /// Its key.
        key: String,
    },
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Lease { .. } | Self::Foreign { .. } => Severity::Note,
            _ => Severity::Error,
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DamagedObject { key, reason } => write!(f, "the object {key} is damaged: {reason}"),
            Self::DamagedBlock {
                key,
                slot,
                block,
                reason,
            } => {
                write!(f, "block {slot} ({block}) of {key} is damaged: {reason}")
            }
            Self::MissingObject { key } => write!(f, "the object {key} is missing"),
            Self::DamagedSnapshot {
                snapshot,
                replset,
                reason,
            } => {
                write!(
                    f,
                    "replica set {replset} of snapshot {snapshot} cannot be read: {reason}"
                )
            }
            Self::DamagedFile {
                snapshot,
                replset,
                path,
                offset,
                len,
                pack,
                slot,
                block,
                reason,
            } => {
                write!(
                    f,
                    "{replset}/dbpath/{path} of snapshot {snapshot}: {len} bytes at offset {offset} cannot be read"
                )?;
                if let (Some(slot), Some(pack)) = (slot, pack) {
                    write!(f, ", block {slot}")?;
                    if let Some(block) = block {
                        write!(f, " ({block})")?;
                    }
                    write!(f, " of pack {pack}")?;
                }
                write!(f, ": {reason}")
            }
            Self::More { count } => write!(f, "{count} more findings are not listed"),
            Self::Lease { key, holder } => write!(f, "{key} is held by {holder}"),
            Self::Foreign { key } => write!(f, "{key} is no object of pbm-fs"),
        }
    }
}

/// What a check found, and what it looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CheckReport {
    /// Everything that is not as it should be.
    pub findings: Vec<Finding>,
    /// Snapshots that are there.
    pub snapshots: u64,
    /// Deleted and given-up ones.
    pub tombstones: u64,
    /// Files and directories in all snapshots.
    pub files: u64,
    /// Packs.
    pub packs: u64,
    /// Packs that no snapshot refers to: garbage, or a backup that is under way.
    pub packs_unreferenced: u64,
    /// Bytes of all packs.
    pub bytes_packs: u64,
    /// Blocks in all packs.
    pub blocks: u64,
    /// Blocks that were read and verified.
    pub blocks_read: u64,
}

/// Findings that are kept; more are counted.
const MAX_FINDINGS: usize = 10_000;

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|f| f.severity() == Severity::Note)
    }

    fn add(&mut self, finding: Finding) {
        if let Some(Finding::More { count }) = self.findings.last_mut() {
            *count += 1;
        } else if self.findings.len() >= MAX_FINDINGS {
            self.findings.push(Finding::More { count: 1 });
        } else if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }
}

/// Checks everything. Damage is a finding and never ends the check.
///
/// # Errors
/// `Cancelled`; the storage's, where it fails for another reason than damage.
pub async fn check(
    repo: &Repository,
    options: CheckOptions,
    progress: &dyn CheckProgress,
    cancel: &Cancel,
) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let repo = &repo.with_empty_caches()?;
    let facts = objects::look(repo, options, progress, cancel, &mut report).await?;
    progress.step("walking the maps", 0);
    let walked = walk::walk(repo, &facts, cancel, &mut report).await?;
    report.packs_unreferenced = facts
        .packs
        .keys()
        .filter(|id| !walked.referenced.contains(*id))
        .count() as u64;
    if !report.is_sound() {
        progress.step("finding the files that are hit", 0);
        attribute::attribute(repo, &facts, cancel, &mut report).await?;
    }
    Ok(report)
}

/// Whether an error is a finding; anything else ends the check.
fn is_damage(e: &RepoError) -> bool {
    matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Unsupported)
}
