//! What a check found.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{BlockId, LeaseId, PackId, SnapshotName};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something cannot be restored, or will be lost.
    Error,
    /// Nothing is lost, but something does not work as it should.
    Warning,
    /// Worth knowing; all is well.
    Note,
}

/// What a check did and found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Snapshots that can be read, so far as their `snapshot.json` goes.
    pub snapshots: u64,
    /// Files and directories in them. A file counts in each of its snapshots.
    pub files: u64,
    /// Map nodes that were visited.
    pub nodes: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of all packs.
    pub pack_bytes: u64,
    /// Blocks of all packs whose trailers are sound.
    pub blocks: u64,
    /// Blocks that were read and verified.
    pub blocks_read: u64,
    /// Bytes of packs that were read for that.
    pub bytes_read: u64,
    /// What was found; the worst comes first.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// How many findings are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.severity() == severity).count()
    }

    /// Whether there is no error among the findings.
    pub fn is_sound(&self) -> bool {
        self.count(Severity::Error) == 0
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// An object cannot be read.
    DamagedObject {
        /// Its key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A block's bytes are wrong.
    DamagedBlock {
        /// The pack in which it lies.
        pack: PackId,
        /// Its number there.
        slot: u32,
        /// The block that should be there.
        block: BlockId,
        /// What is wrong with it.
        reason: String,
        /// Files that need it: the first ones.
        uses: Vec<BlockUse>,
        /// Places at which files need it, beyond those.
        more_uses: u64,
    },
    /// A list of a snapshot, or a part of one, cannot be read.
    DamagedSnapshot {
        /// The snapshot.
        snapshot: SnapshotName,
        /// The replica set.
        replset: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of a snapshot cannot be restored as a whole.
    DamagedFile {
        /// The snapshot.
        snapshot: SnapshotName,
        /// The replica set.
        replset: String,
        /// The file's path.
        path: String,
        /// Where in the file what is wrong begins.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// Listings leave a snapshot out, because a hint calls it deleted and it is not.
    HiddenSnapshot {
        /// The snapshot.
        snapshot: SnapshotName,
    },
    /// A key that no object has.
    ForeignObject {
        /// The key.
        key: String,
    },
    /// A writer is at work, or was interrupted.
    Lease {
        /// Its lease.
        lease: LeaseId,
        /// Where it runs or ran.
        host: String,
        /// Its process there.
        pid: u32,
        /// What it does or did.
        purpose: String,
        /// Since when, by its own clock.
        started: jiff::Timestamp,
    },
    /// A sign of life without a lease.
    StrayBeat {
        /// Of which lease.
        lease: LeaseId,
    },
    /// Packs that no snapshot needs.
    Unreferenced {
        /// How many.
        packs: u64,
        /// Their bytes.
        bytes: u64,
    },
}

/// A place at which a file needs a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockUse {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// The replica set.
    pub replset: String,
    /// The file's path.
    pub path: String,
    /// Where in the file the block's bytes belong.
    pub offset: u64,
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::DamagedObject { .. }
            | Self::DamagedBlock { .. }
            | Self::DamagedSnapshot { .. }
            | Self::DamagedFile { .. } => Severity::Error,
            Self::HiddenSnapshot { .. } => Severity::Warning,
            Self::ForeignObject { .. }
            | Self::Lease { .. }
            | Self::StrayBeat { .. }
            | Self::Unreferenced { .. } => Severity::Note,
        }
    }
}

impl fmt::Display for BlockUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            snapshot,
            replset,
            path,
            offset,
        } = self;
        write!(f, "{path} of {replset} in snapshot {snapshot} at offset {offset}")
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DamagedObject { key, reason } => write!(f, "the object {key} is damaged: {reason}"),
            Self::DamagedBlock {
                pack,
                slot,
                block,
                reason,
                uses,
                more_uses,
            } => {
                write!(f, "block {slot} ({block}) of pack {pack} is damaged: {reason}")?;
                match uses.split_first() {
                    None => write!(f, "; no file needs it"),
                    Some((first, others)) => {
                        write!(f, "; needed by {first}")?;
                        others.iter().try_for_each(|u| write!(f, ", by {u}"))?;
                        if *more_uses > 0 {
                            write!(f, " and at {more_uses} more places")?;
                        }
                        Ok(())
                    }
                }
            }
            Self::DamagedSnapshot {
                snapshot,
                replset,
                reason,
            } => write!(f, "{replset} in snapshot {snapshot} is damaged: {reason}"),
            Self::DamagedFile {
                snapshot,
                replset,
                path,
                offset,
                reason,
            } => {
                write!(
                    f,
                    "{path} of {replset} in snapshot {snapshot} cannot be read from offset {offset} on: {reason}"
                )
            }
            Self::HiddenSnapshot { snapshot } => write!(
                f,
                "snapshot {snapshot} is left out of listings, because deleted/{snapshot} calls it deleted and it is not"
            ),
            Self::ForeignObject { key } => write!(f, "the object {key} is not of pbm-fs"),
            Self::Lease {
                lease,
                host,
                pid,
                purpose,
                started,
            } => write!(
                f,
                "process {pid} on {host} holds the lease {lease} since {started} ({purpose}): it is at work, or was interrupted"
            ),
            Self::StrayBeat { lease } => write!(f, "the lease {lease} is gone and its counter stayed"),
            Self::Unreferenced { packs, bytes } => write!(
                f,
                "{packs} packs of {bytes} bytes are needed by no snapshot: a backup runs or was interrupted, or snapshots were deleted"
            ),
        }
    }
}
