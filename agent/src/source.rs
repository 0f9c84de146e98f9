//! Where a backup's files come from.
//!
//! A [`Source`] pins a set of files, so that what is read from them is one state of the database, and says what it
//! pinned. The reader opens `root.join(path)` itself and reads `size` bytes; a file may grow behind that (a log in
//! the dbPath), which is no part of the backup.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use pbmfs_dbpath::LeftOutReason;
pub use pbmfs_repo::files::{FileKind, path_order};
use pbmfs_repo::id::SnapshotName;
use pbmfs_repo::objects::{ChainHead, ReplsetDoc};
use serde::{Deserialize, Serialize};

use crate::error::SourceError;

/// Files that stay as they are while they are read.
///
/// Dropping a source ends the pin too, at the latest a few seconds later, but only [`Source::release`] tells
/// whether it held: without its `Ok` nothing that was read may be committed.
#[async_trait]
pub trait Source: Send {
    /// Name of the replica set, if that can be told before anything is pinned and is worth a question: a source that
    /// knows of no increments need not be asked.
    async fn replset(&mut self) -> Result<Option<String>, SourceError> {
        Ok(None)
    }

    /// The directory of the files, if it is known before anything is pinned.
    fn root(&self) -> Option<&Path> {
        None
    }

    /// What `open` is to pin; only sources that can take increments care.
    fn want(&mut self, _wanted: Wanted) {}

    /// Pins the files and tells what is pinned. Nothing is held if this fails, or if the future is dropped.
    async fn open(&mut self) -> Result<Pinned, SourceError>;

    /// Whether the pin still holds, as far as is known now. Cheap: called often while files are read. An error
    /// means that the pin was lost and the backup must abort.
    fn check(&self) -> Result<(), SourceError>;

    /// Ends the pin, whatever it answers. Ok only if the files were pinned the whole time; it must come before the
    /// commit of the snapshot.
    async fn release(&mut self) -> Result<(), SourceError>;
}

/// What kind of backup is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupType {
    /// Everything is read, and the server's history of changes is left alone.
    #[default]
    Physical,
    /// Everything is read, and the server begins a new history, on which increments build.
    Base,
    /// What changed since an earlier snapshot is read; everything where that cannot be told.
    Increment,
}

/// What is asked of a source.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// What kind of backup.
    pub backup_type: BackupType,
    /// A name that no backup of any server ever had: letters, digits, `_` and `.` only, because WiredTiger takes neither
    /// colons nor spaces.
    pub name: String,
    /// Earlier snapshots from which a server may know what changed, newest first.
    pub heads: Vec<Head>,
}

/// A snapshot, and the end of the chain that it left with a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// What its node remembers of it.
    pub head: ChainHead,
}

/// What changed since a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// By path. A file that is not here is read whole; one without ranges did not change.
    pub ranges: HashMap<String, Vec<Range<u64>>>,
}

/// What a source has pinned.
#[derive(Clone, Debug, PartialEq)]
pub struct Pinned {
    /// The directory that the paths are relative to.
    pub root: PathBuf,
    /// Sorted by [`path_order`]; a directory comes before what it holds. The root itself is not listed.
    pub files: Vec<SourceFile>,
    /// What is in the directory and not in the backup.
    pub left_out: Vec<LeftOut>,
    /// About the node that the files belong to.
    pub info: NodeInfo,
    /// What changed; None if that is not known, and everything has to be read.
    pub since: Option<Since>,
    /// What the server will remember of this backup.
    pub head: Option<ChainHead>,
}

/// One file or directory. Symbolic links were followed: this is what they lead to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Relative to the root, separated by `/`.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Bytes; 0 for a directory.
    pub size: u64,
    /// Permission bits (`mode & 0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: FileTime,
}

/// Seconds and nanoseconds since 1970, as the file system keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileTime {
    /// Negative before 1970.
    pub secs: i64,
    /// Always forward from `secs`.
    pub nanos: u32,
}

/// Something in the directory that is not in the backup. Of a directory that is left out only the directory itself
/// is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Relative to the root, separated by `/`.
    pub path: String,
    /// Why.
    pub reason: LeftOutWhy,
}

/// Why something is not in the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", untagged)]
pub enum LeftOutWhy {
    /// A rule of [`pbmfs_dbpath::selection`].
    Rule(LeftOutReason),
    /// It is nothing that holds data.
    Special(SpecialFile),
}

/// Directory entries without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpecialFile {
    /// A UNIX socket.
    Socket,
    /// A named pipe.
    Fifo,
    /// A character or block device.
    Device,
    /// A symbolic link to nothing.
    DanglingLink,
}

/// Which kind of source it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// A stopped mongod's dbPath, or a file-system snapshot.
    Directory,
    /// A live member under `fsyncLock`.
    FsyncLock,
    /// A live member with an open `$backupCursor`.
    BackupCursor,
}

/// What a member was when it was backed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// The set's primary.
    Primary,
    /// A secondary.
    Secondary,
    /// No member of a replica set.
    Standalone,
}

/// MongoDB's timestamp: a second and a counter inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub t: u32,
    /// Counts within the second, from 1.
    pub i: u32,
}

/// What a snapshot remembers of the node that its files came from. Recorded as JSON: names are part of the format.
/// A directory says almost nothing about itself, hence all the options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Which kind of source it was.
    pub source: SourceKind,
    /// Name of the replica set.
    pub replset: Option<String>,
    /// The set's `replicaSetId`, hex: two sets may have one name.
    pub replica_set_id: Option<String>,
    /// On a shard or config server, the cluster's id, hex.
    pub cluster_id: Option<String>,
    /// On a shard, its name in the cluster; `config` on a config server.
    pub shard: Option<String>,
    /// host:port.
    pub node: Option<String>,
    /// What the member was.
    pub role: Option<MemberRole>,
    /// The restore time. Under a lock every write up to here is in the files and none after. The journal of a backup
    /// cursor may hold a few later ones, which a restore cuts off here.
    pub operation_time: Option<Timestamp>,
    /// Version of mongod.
    pub mongod_version: Option<String>,
    /// Feature compatibility version.
    pub fcv: Option<String>,
    /// How the files are laid out.
    pub storage: Option<StorageOptions>,
    /// The replica-set configuration, canonical extended JSON.
    pub replset_config: Option<serde_json::Value>,
    /// `dbHash` and counts, when they were asked for.
    pub hashes: Option<Vec<DbHashes>>,
    /// How the chain of increments went; absent if none was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainInfo>,
}

/// How the chain of increments went at one backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainInfo {
    /// What was done.
    pub step: ChainStep,
    /// The snapshot since which the changes are, of an increment.
    pub source_snapshot: Option<String>,
    /// Why everything was read, if a chain was asked for and it is not its base.
    pub reason: Option<String>,
    /// Granularity in MiB in which the server names changes; of a base what was asked for, of an increment what its
    /// ranges show.
    pub block_size: Option<u32>,
    /// Bytes in the ranges that the server named as changed, and in the files that it named whole.
    pub bytes_named: Option<u64>,
}

impl ChainInfo {
    /// What a snapshot recorded of a replica set; None if no chain was asked for, or nothing that this version knows.
    pub fn of(replset: &ReplsetDoc) -> Option<Self> {
        serde_json::from_value(replset.node.get("chain")?.clone()).ok()
    }
}

/// What a backup was in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainStep {
    /// The first of a chain, as it was asked for.
    Base,
    /// Only what the server named as changed was read.
    Increment,
    /// An increment was asked for and everything was read; the next increment goes on from here.
    FullRead,
}

impl ChainStep {
    /// As it is recorded.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Increment => "increment",
            Self::FullRead => "full_read",
        }
    }
}

impl NodeInfo {
    /// Of a source that says nothing about its node.
    pub fn unknown(source: SourceKind) -> Self {
        Self {
            source,
            replset: None,
            replica_set_id: None,
            cluster_id: None,
            shard: None,
            node: None,
            role: None,
            operation_time: None,
            mongod_version: None,
            fcv: None,
            storage: None,
            replset_config: None,
            hashes: None,
            chain: None,
        }
    }
}

/// Options that decide about the layout of a dbPath; a restored mongod must be started with the same ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageOptions {
    /// Storage engine.
    pub engine: String,
    /// One directory for each database.
    pub directory_per_db: bool,
    /// Indexes in directories of their own.
    pub directory_for_indexes: bool,
    /// Compressor of collections; None = the server's default.
    pub block_compressor: Option<String>,
    /// Compressor of the journal; None = the server's default.
    pub journal_compressor: Option<String>,
}

/// What one database held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DbHashes {
    /// Its name.
    pub db: String,
    /// `dbHash`'s `md5` over all collections.
    pub hash: String,
    /// Hash of each replicated collection.
    pub collections: BTreeMap<String, String>,
    /// Documents in each collection, counted one by one; without those that the user may not read.
    pub counts: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests;
