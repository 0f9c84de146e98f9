//! The small objects: configuration, snapshots, tombstones, leases, beats, condemned lists. JSON or binary payloads
//! in envelopes (`docs/format.md` §3, §9 to §12).

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::envelope::{self, ObjectKind};
use crate::error::{FormatError, RepoError, Result};
use crate::id::{LeaseId, ListId, PackId, RepositoryId, SnapshotName};
use crate::key::ObjectKey;
use crate::pack::Place;
use crate::wire::{Reader, Writer};

/// `repo.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoConfig {
    /// Version of the whole format.
    pub format_version: u16,
    /// Features without which a program must not touch the repository.
    pub required_features: Vec<String>,
    /// Random; tells repositories apart.
    pub repository_id: RepositoryId,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// What writers use unless told otherwise.
    pub parameters: Parameters,
}

/// Parameters of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// Stored bytes at which a data pack is sealed.
    pub pack_size: u64,
    /// zstd level.
    pub compression_level: i32,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            pack_size: 16 << 20,
            compression_level: 1,
        }
    }
}

/// `snapshot.json`: one backup of one cluster. Creating it is the commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotDoc {
    /// Its name, as in its key.
    pub name: SnapshotName,
    /// The lease under which it was written: tells a writer that an object at its commit key is its own.
    pub lease: LeaseId,
    /// Which cluster; a repository may serve many.
    pub cluster: ClusterRef,
    /// `physical` or `incremental`, as PBM names types.
    #[serde(rename = "type")]
    pub backup_type: String,
    /// Program and version that wrote it.
    pub tool: String,
    /// When the backup began.
    pub started: jiff::Timestamp,
    /// When it was committed.
    pub finished: jiff::Timestamp,
    /// What the backup did.
    pub stats: SnapshotStats,
    /// Its replica sets; at least one.
    pub replsets: Vec<ReplsetDoc>,
}

/// Which cluster a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterRef {
    /// Its name.
    pub name: String,
    /// Its id, where it has one (a replica set's `replicaSetId`, a sharded cluster's `clusterId`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// What a backup read and stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStats {
    /// Files in the snapshot; directories are not counted.
    pub files: u64,
    /// Bytes of all files in the snapshot.
    pub bytes_total: u64,
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Bytes taken over from the parent snapshot without reading them.
    #[serde(default)]
    pub bytes_referenced: u64,
    /// Blocks cut from what was read.
    pub blocks_read: u64,
    /// Blocks that the repository did not have.
    pub blocks_new: u64,
    /// Plain bytes of those.
    pub bytes_new: u64,
    /// Bytes added to the repository by data packs.
    pub bytes_stored_data: u64,
    /// Bytes added by maps, file lists and pack tables.
    pub bytes_stored_map: u64,
    /// Seconds from begin to commit.
    pub seconds: f64ish::Seconds,
}

impl SnapshotStats {
    /// Bytes added to the repository in all packs.
    pub fn bytes_stored(&self) -> u64 {
        self.bytes_stored_data + self.bytes_stored_map
    }
}

/// Durations that compare equal: whole milliseconds, written as seconds.
pub mod f64ish {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// A duration in milliseconds, in JSON a number of seconds.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Seconds(pub u64);

    impl Serialize for Seconds {
        fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            s.serialize_f64(self.0 as f64 / 1000.0)
        }
    }

    impl<'de> Deserialize<'de> for Seconds {
        fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            Ok(Self((f64::deserialize(d)? * 1000.0).round() as u64))
        }
    }
}

/// One replica set of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplsetDoc {
    /// Its name.
    pub name: String,
    /// Root of the file list; absent if there is no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_list: Option<Place>,
    /// Root of the pack table; absent if no map names a pack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pack_table: Option<Place>,
    /// Where the next increment goes on; absent if the source has no chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_head: Option<ChainHead>,
    /// What the agent records of the node: the repository stores it and does not look into it.
    #[serde(default)]
    pub node: serde_json::Value,
}

/// From where a server can tell what changed since this snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHead {
    /// `host:port` of the node whose history it is.
    pub node: String,
    /// `settings.replicaSetId`.
    pub replset_id: String,
    /// Name of the backup in the server's history.
    pub this_backup_name: String,
    /// Granularity in MiB that the history has.
    pub block_size: u32,
    /// The checkpoint, `[seconds, increment]`.
    pub checkpoint_ts: (u32, u32),
}

/// A writer's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseDoc {
    /// The commit key that is decided before the lease may go.
    pub commit_key: String,
    /// Machine of the writer.
    pub host: String,
    /// Process of the writer.
    pub pid: u32,
    /// What it does.
    pub purpose: String,
    /// When it began, by its own clock; for people only.
    pub started: jiff::Timestamp,
}

/// A lease's sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeatDoc {
    /// Raised as long as the writer lives.
    pub counter: u64,
}

/// What stands at the commit key of a deleted or given-up snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TombstoneDoc {
    /// `deleted`, `abandoned` (by its own writer) or `fenced` (by somebody who took the writer for dead).
    pub why: String,
    /// The lease of the writer that gave up; absent in any other tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
    /// When, by the clock of whoever wrote it; for people only.
    pub at: jiff::Timestamp,
}

/// An object whose payload is JSON.
pub trait JsonObject: Serialize + DeserializeOwned {
    /// Its kind.
    const KIND: ObjectKind;

    /// The object under `key`.
    fn to_object(&self, key: &ObjectKey) -> Bytes {
        let json =
            serde_json::to_vec_pretty(self).expect("the documents have string keys and no failing parts");
        envelope::encode(Self::KIND, key, &json)
    }

    /// Reads the object under `key`.
    ///
    /// # Errors
    /// `Damaged`.
    fn from_object(key: &ObjectKey, object: &Bytes) -> Result<Self> {
        envelope::decode(Self::KIND, key, object)
            .and_then(|payload| Self::from_payload(&payload))
            .map_err(RepoError::damaged(key))
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// `BadJson`.
    fn from_payload(payload: &[u8]) -> Result<Self, FormatError> {
        serde_json::from_slice(payload).map_err(|e| FormatError::BadJson(e.to_string()))
    }
}

impl JsonObject for RepoConfig {
    const KIND: ObjectKind = ObjectKind::Repository;
}
impl JsonObject for SnapshotDoc {
    const KIND: ObjectKind = ObjectKind::Snapshot;
}
impl JsonObject for LeaseDoc {
    const KIND: ObjectKind = ObjectKind::Lease;
}
impl JsonObject for BeatDoc {
    const KIND: ObjectKind = ObjectKind::Beat;
}
impl JsonObject for TombstoneDoc {
    const KIND: ObjectKind = ObjectKind::Tombstone;
}

/// What stands at a commit key.
#[derive(Debug, Clone, PartialEq)]
pub enum Committed {
    /// A snapshot.
    Snapshot(Box<SnapshotDoc>),
    /// A tombstone: the snapshot was deleted, or never came to be.
    Tombstone(TombstoneDoc),
}

impl Committed {
    /// Reads what stands at the commit key of `name`.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn decode(name: &SnapshotName, object: &Bytes) -> Result<Self> {
        let key = ObjectKey::snapshot(name);
        let read = || match envelope::decode_any(&key, object)? {
            (ObjectKind::Snapshot, payload) => {
                let doc = SnapshotDoc::from_payload(&payload)?;
                if doc.name != *name {
                    return Err(FormatError::WrongKey(doc.name.to_string()));
                }
                for place in doc
                    .replsets
                    .iter()
                    .flat_map(|r| [r.file_list, r.pack_table])
                    .flatten()
                {
                    place.validate()?;
                }
                Ok(Self::Snapshot(Box::new(doc)))
            }
            (ObjectKind::Tombstone, payload) => Ok(Self::Tombstone(TombstoneDoc::from_payload(&payload)?)),
            (other, _) => Err(FormatError::WrongKind {
                expected: "snapshot",
                found: other.name().into(),
            }),
        };
        read().map_err(RepoError::damaged(&key))
    }
}

/// A list of packs that a gc will remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CondemnedList {
    /// The packs, sorted.
    pub packs: Vec<PackId>,
}

impl CondemnedList {
    /// The object of this list.
    pub fn to_object(&self, id: &ListId) -> Bytes {
        let mut w = Writer::with_capacity(10 + self.packs.len() * PackId::LEN);
        w.varint(self.packs.len() as u64);
        self.packs.iter().for_each(|p| w.bytes(&p.0));
        envelope::encode(ObjectKind::Condemned, &ObjectKey::condemned(id), &w.into_vec())
    }

    /// Reads the list under `key`.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn from_object(key: &ObjectKey, object: &Bytes) -> Result<Self> {
        let read = || {
            let payload = envelope::decode(ObjectKind::Condemned, key, object)?;
            let mut r = Reader::new(&payload);
            let n = r.count(PackId::LEN)?;
            let packs = (0..n)
                .map(|_| r.array().map(PackId))
                .collect::<Result<Vec<_>, _>>()?;
            r.end()?;
            if !packs.is_sorted_by(|a, b| a < b) {
                return Err(FormatError::BadField("order of packs"));
            }
            Ok(Self { packs })
        };
        read().map_err(RepoError::damaged(key))
    }
}
