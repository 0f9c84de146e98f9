//! A repository: making one, opening one, and finding snapshots in it.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, TryStreamExt, future, stream};

use crate::envelope::VERSION;
use crate::error::{FormatError, RepoError, Result};
use crate::id::{Randomness, RepositoryId, SnapshotName, SystemRandomness, draw16};
use crate::key::{ObjectKey, prefix};
use crate::objects::{Committed, JsonObject, Parameters, RepoConfig, SnapshotDoc};
use crate::pack::PackStore;
use crate::storage::{PutOutcome, Storage, list_all};

/// An open repository. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    storage: Arc<dyn Storage>,
    randomness: Arc<dyn Randomness>,
    config: Arc<RepoConfig>,
    packs: Arc<PackStore>,
    /// Bytes for each of the caches of nodes and of file lists.
    cache: u64,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}

/// A snapshot in a listing.
#[derive(Debug, Clone, PartialEq)]
pub enum Listing {
    /// It is there.
    Snapshot(Box<SnapshotDoc>),
    /// Its object cannot be read; the text says why.
    Unreadable(SnapshotName, String),
}

impl Listing {
    /// Its name.
    pub fn name(&self) -> &SnapshotName {
        match self {
            Self::Snapshot(doc) => &doc.name,
            Self::Unreadable(name, _) => name,
        }
    }
}

impl Repository {
    /// Makes a repository in an empty storage. `repo.json` is created if absent, so of two at once one wins.
    ///
    /// # Errors
    /// `AlreadyARepository`; `NotEmpty` if something else lies there; the storage's.
    pub async fn init(storage: Arc<dyn Storage>, parameters: Parameters) -> Result<Self> {
        Self::init_with(storage, parameters, Arc::new(SystemRandomness)).await
    }

    /// [`Repository::init`] with another source of ids.
    ///
    /// # Errors
    /// As [`Repository::init`].
    pub async fn init_with(
        storage: Arc<dyn Storage>,
        parameters: Parameters,
        randomness: Arc<dyn Randomness>,
    ) -> Result<Self> {
        let key = ObjectKey::repository();
        let address = storage.address();
        // Asked for by its name: a listing has it behind all packs, perhaps pages later.
        match storage.head(&key).await {
            Ok(_) => return Err(RepoError::AlreadyARepository { address }),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
        let here = storage.list("", None).await?.objects;
        if here.iter().any(|o| o.key != key) {
            return Err(RepoError::NotEmpty { address });
        }
        let config = RepoConfig {
            format_version: VERSION,
            required_features: Vec::new(),
            repository_id: RepositoryId(draw16(&*randomness)),
            created: jiff::Timestamp::now(),
            parameters,
        };
        match storage.put_if_absent(&key, config.to_object(&key)).await? {
            PutOutcome::Created => Self::with(storage, config, randomness, DEFAULT_CACHE),
            PutOutcome::Exists => Err(RepoError::AlreadyARepository { address }),
        }
    }

    /// Opens the repository in `storage`; keeps up to `cache` bytes of trailers, map nodes and file lists in memory.
    /// One request.
    ///
    /// # Errors
    /// `NotARepository`, `UnknownVersion`, `UnknownFeature`, `Damaged`; the storage's.
    pub async fn open(storage: Arc<dyn Storage>, cache: u64) -> Result<Self> {
        Self::open_with(storage, cache, Arc::new(SystemRandomness)).await
    }

    /// [`Repository::open`] with another source of ids.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub async fn open_with(
        storage: Arc<dyn Storage>,
        cache: u64,
        randomness: Arc<dyn Randomness>,
    ) -> Result<Self> {
        let key = ObjectKey::repository();
        let object = match storage.get(&key).await {
            Err(e) if e.is_not_found() => {
                return Err(RepoError::NotARepository {
                    address: storage.address(),
                });
            }
            other => other?,
        };
        let config = match RepoConfig::from_object(&key, &object) {
            Err(RepoError::Damaged {
                reason: FormatError::UnknownVersion(v),
                ..
            }) => {
                return Err(RepoError::UnknownVersion(v));
            }
            Err(RepoError::Damaged {
                reason: FormatError::BadMagic,
                ..
            }) => {
                return Err(RepoError::NotARepository {
                    address: storage.address(),
                });
            }
            other => other?,
        };
        Self::with(storage, config, randomness, cache)
    }

    fn with(
        storage: Arc<dyn Storage>,
        config: RepoConfig,
        randomness: Arc<dyn Randomness>,
        cache: u64,
    ) -> Result<Self> {
        if config.format_version != VERSION {
            return Err(RepoError::UnknownVersion(config.format_version));
        }
        if let Some(unknown) = config.required_features.first() {
            return Err(RepoError::UnknownFeature(unknown.clone()));
        }
        let packs = Arc::new(PackStore::new(storage.clone(), cache / 2));
        Ok(Self {
            storage,
            randomness,
            config: Arc::new(config),
            packs,
            cache: cache / 4,
        })
    }

    /// The same repository with caches of its own, which are empty.
    pub(crate) fn with_cache(&self, cache: u64) -> Result<Self> {
        let (storage, randomness) = (self.storage.clone(), self.randomness.clone());
        Self::with(storage, (*self.config).clone(), randomness, cache)
    }

    /// The storage under it.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Where new ids come from.
    pub fn randomness(&self) -> &Arc<dyn Randomness> {
        &self.randomness
    }

    /// What `repo.json` says.
    pub fn config(&self) -> &RepoConfig {
        &self.config
    }

    /// Its packs.
    pub fn packs(&self) -> &Arc<PackStore> {
        &self.packs
    }

    /// Bytes for a cache of map nodes, or of file lists.
    pub(crate) fn cache(&self) -> u64 {
        self.cache
    }

    /// What stands at a snapshot's commit key; `None` if nothing does.
    ///
    /// # Errors
    /// `Damaged`; the storage's.
    pub async fn committed(&self, name: &SnapshotName) -> Result<Option<Committed>> {
        match self.storage.get(&ObjectKey::snapshot(name)).await {
            Err(e) if e.is_not_found() => Ok(None),
            other => Committed::decode(name, &other?).map(Some),
        }
    }

    /// The snapshot with this very name.
    ///
    /// # Errors
    /// `Deleted`; `NoSuchSnapshot`, which offers similar names; `Damaged`; the storage's.
    pub async fn snapshot(&self, name: &SnapshotName) -> Result<SnapshotDoc> {
        match self.committed(name).await? {
            Some(Committed::Snapshot(doc)) => Ok(*doc),
            Some(Committed::Tombstone(_)) => Err(RepoError::Deleted(name.clone())),
            None => Err(self.unknown_name(name.as_str()).await),
        }
    }

    /// Names at which something was committed and that no hint calls deleted, oldest first. One request a listing
    /// page; a name may still turn out to be a tombstone.
    async fn candidates(&self) -> Result<Vec<SnapshotName>> {
        let deleted: HashSet<SnapshotName> = list_all(&*self.storage, prefix::DELETED)
            .await?
            .iter()
            .filter_map(|o| o.key.last())
            .collect();
        let mut names: Vec<SnapshotName> = list_all(&*self.storage, prefix::SNAPSHOTS)
            .await?
            .iter()
            .filter_map(|o| o.key.snapshot_name())
            .filter(|name| !deleted.contains(name))
            .collect();
        names.sort();
        Ok(names)
    }

    /// All snapshots in the order in which they began; one whose object is damaged is listed as such.
    ///
    /// # Errors
    /// The storage's.
    pub async fn snapshots(&self) -> Result<Vec<Listing>> {
        let names = self.candidates().await?;
        let mut out: Vec<Listing> = stream::iter(names)
            .map(|name| self.listing(name))
            .buffer_unordered(AT_ONCE)
            .try_filter_map(future::ok)
            .try_collect()
            .await?;
        out.sort_by_key(|listing| match listing {
            Listing::Snapshot(doc) => (doc.started, doc.name.clone()),
            Listing::Unreadable(name, _) => (name.moment(), name.clone()),
        });
        Ok(out)
    }

    /// Snapshots by name, newest first. One request each, up to 16 ahead of whoever takes them, besides those of the
    /// listing.
    ///
    /// # Errors
    /// The storage's.
    pub async fn newest_first(&self) -> Result<impl Stream<Item = Result<Listing>>> {
        let names = self.candidates().await?.into_iter().rev();
        Ok(stream::iter(names)
            .map(|name| self.listing(name))
            .buffered(AT_ONCE)
            .try_filter_map(future::ok))
    }

    /// What a listing says of a name; `None` for one that was deleted.
    async fn listing(&self, name: SnapshotName) -> Result<Option<Listing>> {
        match self.committed(&name).await {
            Ok(Some(Committed::Snapshot(doc))) => Ok(Some(Listing::Snapshot(doc))),
            Ok(Some(Committed::Tombstone(_)) | None) => Ok(None),
            Err(e @ RepoError::Damaged { .. }) => Ok(Some(Listing::Unreadable(name, e.to_string()))),
            Err(e) => Err(e),
        }
    }

    /// The snapshot that `asked` means: a whole name, the beginning of just one, or `latest`.
    ///
    /// # Errors
    /// `NoSuchSnapshot`, which offers similar names; `AmbiguousName`; `NoSnapshots`; as [`Repository::snapshot`].
    pub async fn resolve(&self, asked: &str) -> Result<SnapshotDoc> {
        if let Ok(name) = asked.parse() {
            return self.snapshot(&name).await;
        }
        if asked == "latest" {
            return self
                .last_begun(|_| true, Err)
                .await?
                .ok_or(RepoError::NoSnapshots);
        }
        let mut found = Vec::new();
        if !asked.is_empty() {
            for name in self
                .candidates()
                .await?
                .into_iter()
                .filter(|n| n.as_str().starts_with(asked))
            {
                if let Some(Committed::Snapshot(doc)) = self.committed(&name).await? {
                    found.push(doc);
                }
            }
        }
        match found.len() {
            0 => Err(self.unknown_name(asked).await),
            1 => Ok(*found.remove(0)),
            _ => Err(RepoError::AmbiguousName {
                asked: asked.into(),
                matches: found.into_iter().map(|doc| doc.name).collect(),
            }),
        }
    }

    /// The snapshot that began last of those that `wanted` accepts.
    ///
    /// # Errors
    /// The storage's; a damaged snapshot is passed over with a warning.
    pub async fn newest(&self, wanted: impl Fn(&SnapshotDoc) -> bool) -> Result<Option<SnapshotDoc>> {
        let pass_over = |e| {
            tracing::warn!("{e}");
            Ok(())
        };
        self.last_begun(wanted, pass_over).await
    }

    /// Reads snapshots from the last name on until no other can have begun later: a name is the second in which its
    /// backup began, or a later one if that was taken.
    async fn last_begun(
        &self,
        wanted: impl Fn(&SnapshotDoc) -> bool,
        on_damage: impl Fn(RepoError) -> Result<()>,
    ) -> Result<Option<SnapshotDoc>> {
        // Most often the first is it; if it is not, as for a replica set that is new here, all are read.
        const ONE_BY_ONE: usize = 2;
        let mut names = self.candidates().await?;
        names.reverse();
        let rest = names.split_off(names.len().min(ONE_BY_ONE));
        let read = |name: SnapshotName| async move {
            let committed = self.committed(&name).await;
            (name, committed)
        };
        let first = stream::iter(names).map(read).buffered(1);
        let mut committed = pin!(first.chain(stream::iter(rest).map(read).buffered(AT_ONCE)));
        let mut best: Option<Box<SnapshotDoc>> = None;
        while let Some((name, committed)) = committed.next().await {
            let at_most = name.moment().as_second();
            if best
                .as_ref()
                .is_some_and(|best| at_most < best.started.as_second())
            {
                break;
            }
            match committed {
                Ok(Some(Committed::Snapshot(doc))) if wanted(&doc) => {
                    if best.as_ref().is_none_or(|best| doc.started > best.started) {
                        best = Some(doc);
                    }
                }
                Ok(_) => {}
                Err(e @ RepoError::Damaged { .. }) => on_damage(e)?,
                Err(e) => return Err(e),
            }
        }
        Ok(best.map(|doc| *doc))
    }

    async fn unknown_name(&self, asked: &str) -> RepoError {
        let mut names = match self.candidates().await {
            Ok(names) => names,
            Err(e) => return e,
        };
        // Names sort by time, so the longest common beginning is the nearest moment.
        let common = |n: &SnapshotName| {
            n.as_str()
                .bytes()
                .zip(asked.bytes())
                .take_while(|(a, b)| a == b)
                .count()
        };
        names.sort_by_key(|n| (std::cmp::Reverse(common(n)), std::cmp::Reverse(n.clone())));
        let mut nearest = Vec::new();
        for name in names {
            if nearest.len() == 3 {
                break;
            }
            if let Ok(Some(Committed::Snapshot(_))) = self.committed(&name).await {
                nearest.push(name);
            }
        }
        RepoError::NoSuchSnapshot {
            asked: asked.into(),
            nearest,
        }
    }
}

/// Snapshots that are read at the same time.
const AT_ONCE: usize = 16;

/// Bytes of cache that a repository gets right after `init`.
const DEFAULT_CACHE: u64 = 16 << 20;
