//! Keys of objects: every path in a repository is made here.

use std::fmt;

use crate::id::{LeaseId, ListId, PackId, SnapshotName};

/// The key of an object: `/`-separated, relative to the repository's root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

/// Longest key: it stands in the object's own envelope, whose length field it must fit.
pub const MAX_KEY_LEN: usize = 512;

impl ObjectKey {
    /// Takes a key as a listing gave it. `None` for what cannot be a key: empty, too long, `.` or `..` or empty
    /// segments, control characters, or a leading `/`.
    pub fn parse(text: &str) -> Option<Self> {
        let sound = !text.is_empty()
            && text.len() <= MAX_KEY_LEN
            && text.split('/').all(|s| !s.is_empty() && s != "." && s != "..")
            && !text.chars().any(char::is_control);
        sound.then(|| Self(text.to_owned()))
    }

    /// `repo.json`: what makes a place a repository.
    pub fn repository() -> Self {
        Self("repo.json".into())
    }

    /// `packs/<2 hex>/<pack id>`.
    pub fn pack(id: &PackId) -> Self {
        let hex = id.to_string();
        Self(format!("packs/{}/{hex}", &hex[..2]))
    }

    /// `snapshots/<name>/snapshot.json`: the commit key of a snapshot.
    pub fn snapshot(name: &SnapshotName) -> Self {
        Self(format!("snapshots/{name}/snapshot.json"))
    }

    /// `deleted/<name>`: a hint that saves listings a read.
    pub fn deleted(name: &SnapshotName) -> Self {
        Self(format!("deleted/{name}"))
    }

    /// `relocations/<pack id>`.
    pub fn relocation(id: &PackId) -> Self {
        Self(format!("relocations/{id}"))
    }

    /// `leases/<id>`.
    pub fn lease(id: &LeaseId) -> Self {
        Self(format!("leases/{id}"))
    }

    /// `beats/<id>`.
    pub fn beat(id: &LeaseId) -> Self {
        Self(format!("beats/{id}"))
    }

    /// `condemned/<id>`.
    pub fn condemned(id: &ListId) -> Self {
        Self(format!("condemned/{id}"))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment, parsed as an id; `None` if it is not one.
    pub fn last<T: std::str::FromStr>(&self) -> Option<T> {
        self.0.rsplit('/').next()?.parse().ok()
    }

    /// The name of the snapshot whose commit key this is.
    pub fn snapshot_name(&self) -> Option<SnapshotName> {
        let name = self
            .0
            .strip_prefix("snapshots/")?
            .strip_suffix("/snapshot.json")?;
        name.parse().ok()
    }
}

/// Common beginnings of keys, for listings.
pub mod prefix {
    /// Every pack.
    pub const PACKS: &str = "packs/";
    /// Every snapshot, tombstones included.
    pub const SNAPSHOTS: &str = "snapshots/";
    /// Hints of deleted snapshots.
    pub const DELETED: &str = "deleted/";
    /// Every relocation.
    pub const RELOCATIONS: &str = "relocations/";
    /// Every lease.
    pub const LEASES: &str = "leases/";
    /// Every lease's counter.
    pub const BEATS: &str = "beats/";
    /// Every condemned list.
    pub const CONDEMNED: &str = "condemned/";
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
