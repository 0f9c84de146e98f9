//! The local index: which block is in which pack, in RocksDB, beside the program and not in the repository.
//!
//! It is a cache and nothing else. Everything in it can be read from the repository again, and is, whenever the index is
//! missing, of another repository or version, or damaged. Memory is bounded by a number of bytes (and about 80 bytes a
//! pack), whatever the repository's size.
//!
//! Why a hit can be trusted: an entry is made from a trailer whose hash is the pack's id, and it carries a seal over
//! everything that a snapshot will say because of it (`entry::PackSeal`). RocksDB's checksums find damage on disk; the seal
//! finds whatever gets past them. And a pack is named only if the session may refer to it (GC.md rules 3 and 4).

mod db;
mod entry;
mod error;
mod filter;
mod load;
mod packs;
mod place;
mod shared;
mod sorted;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use self::db::Database;
use self::entry::{IDENTITY_KEY, Record, foreign, identity};
use self::error::Fault;
pub use self::error::IndexError;
use self::filter::Dead;
use self::place::Place;
use self::shared::Shared;
use crate::error::RepoError;
use crate::id::BlockId;
use crate::index::{Found, KnownBlocks, MemoryIndex};
use crate::pack::{PackLoc, Trailer, TrailerStore};
use crate::session::Session;

/// Memory of an index unless told. More makes no look-up faster as long as the filters fit, which take 1.6 bytes a block;
/// and the allocator keeps about as much again, so that 20 million blocks have 160 MiB resident.
pub const DEFAULT_MEMORY: u64 = 64 << 20;

/// The least memory with which an index works.
pub const LEAST_MEMORY: u64 = 8 << 20;

/// How many indexes of one repository may lie beside each other.
const MOST_INDEXES: u32 = 16;

/// Where an index lies and how much it may use.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// The directory of local indexes: each repository has its own in it, named by its id. None: an index in memory, which
    /// is lost when the process ends.
    pub directory: Option<PathBuf>,
    /// Whether another backup that uses the repository's index is no obstacle: this one then has a second index, a third
    /// and so on, each with the whole of the repository.
    pub share: bool,
    /// Bytes of memory for RocksDB and for loading.
    pub memory: u64,
    /// Bytes of trailers that are kept on disk, so that the next process need not fetch them.
    pub trailers: u64,
}

impl IndexOptions {
    /// An index below this directory.
    pub fn below(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: Some(directory.into()),
            ..Self::in_memory()
        }
    }

    /// An index in memory.
    pub fn in_memory() -> Self {
        Self {
            directory: None,
            share: false,
            memory: DEFAULT_MEMORY,
            trailers: 1 << 30,
        }
    }
}

/// An index on local disk.
#[derive(Debug)]
pub struct LocalIndex(Arc<Shared>);

impl LocalIndex {
    /// Opens the index of the session's repository below a directory and lets it catch up; makes it if there is none, and
    /// makes it anew if it is not what it should be.
    ///
    /// # Errors
    /// As [`IndexError`] says.
    pub async fn open(session: &Session, indexes: &Path, options: &IndexOptions) -> Result<Self, IndexError> {
        let repository = session.repo().config().repository_id;
        let most = if options.share { MOST_INDEXES } else { 1 };
        let mut place = Place::lock_one(indexes, &repository, most)?;
        let directory = place.directory().to_owned();
        let unusable = |reason| IndexError::Unusable {
            directory: directory.clone(),
            reason,
        };
        for again in [false, true] {
            let fault = match Self::attempt(place, session, options).await {
                Ok(index) => return Ok(index),
                Err(fault) => fault,
            };
            match fault {
                Fault::Damage(reason) if !again => tracing::warn!(
                    "the local index in {} cannot be used ({reason}): it is built anew from the repository",
                    directory.display()
                ),
                Fault::Repo(e) => return Err(e.into()),
                other => return Err(unusable(other.reason())),
            }
            place = Place::lock(directory.clone())?;
            place.clear().map_err(|e| unusable(e.to_string()))?;
        }
        Err(unusable("it cannot be built anew".into()))
    }

    async fn attempt(place: Place, session: &Session, options: &IndexOptions) -> Result<Self, Fault> {
        let repository = session.repo().config().repository_id;
        let (memory, trailers) = (options.memory.max(LEAST_MEMORY), options.trailers);
        let allowed = session.allowed().clone();
        let opened = tokio::task::spawn_blocking(move || {
            if let Some(reason) = place.marked() {
                return Err(Fault::Damage(format!("damage was met before: {reason}")));
            }
            let dead = Dead::default();
            let db = Database::open(&place.database(), memory, &dead)?;
            let mut records = Vec::new();
            db.records(|number, record| {
                records.push(Record::decode(number, record)?);
                Ok(())
            })?;
            let found = db.meta(IDENTITY_KEY)?;
            if found.is_none() && records.is_empty() {
                db.set_meta(IDENTITY_KEY, &identity(&repository))?;
            } else if let Some(reason) = foreign(&repository, found.as_deref()) {
                return Err(Fault::Damage(reason));
            }
            let last = records.last().map(|(last, _)| *last);
            let shared = Shared::new(place, db, repository, memory, trailers, last)?;
            let shared = Arc::new(shared);
            let plan = load::plan(&shared, &allowed, &dead, records)?;
            Ok((shared, plan))
        });
        let (shared, plan) = opened
            .await
            .unwrap_or_else(|e| Err(Fault::Environment(e.to_string())))?;
        load::catch_up(&shared, session, plan).await?;
        let kept: Weak<dyn TrailerStore> = Arc::downgrade(&shared) as _;
        session.repo().packs().read_trailers_from(kept);
        Ok(Self(shared))
    }

    /// The value that was stored under a key by whoever sits above. Like everything here it may be gone at any time.
    pub fn head(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.db.head(key).unwrap_or_else(|fault| {
            self.0.unread(fault);
            None
        })
    }

    /// Stores a value under a key, durably if the disk lets it.
    pub fn put_head(&self, key: &[u8], value: &[u8]) {
        let mut batch = self.0.db.batch();
        batch.head(key, value);
        if let Err(fault) = batch.write().and_then(|()| self.0.db.flush()) {
            self.0.stop(fault);
        }
    }
}

impl KnownBlocks for LocalIndex {
    fn lookup(&self, id: &BlockId) -> Option<Found> {
        self.0.find(id).unwrap_or_else(|fault| {
            self.0.unread(fault);
            None
        })
    }

    fn learn(&self, pack: &PackLoc, trailer: &Trailer) {
        if self.0.is_stopped() {
            return;
        }
        if let Err(fault) = self.0.learn(pack, trailer, None) {
            self.0.stop(fault);
        }
    }
}

/// The index that a backup uses: on disk where that works, otherwise in memory.
#[derive(Debug)]
pub enum Index {
    /// On disk.
    Local(LocalIndex),
    /// In memory: about 60 bytes a block, and no heads.
    Memory(MemoryIndex),
}

impl Index {
    /// Opens the index of the session's repository. A directory that cannot be written and a full disk are no reason to
    /// have no backup: the index is then in memory, with a warning.
    ///
    /// # Errors
    /// `IndexBusy` if another process uses the index; the storage's.
    pub async fn open(session: &Session, options: &IndexOptions) -> Result<Self, RepoError> {
        if let Some(directory) = &options.directory {
            match LocalIndex::open(session, directory, options).await {
                Ok(index) => return Ok(Self::Local(index)),
                Err(IndexError::Repo(e)) => return Err(e),
                Err(e @ IndexError::Busy(_)) => return Err(RepoError::IndexBusy(e.to_string())),
                Err(e) => tracing::warn!(
                    "{e}; this backup keeps its index in memory, which takes about 60 bytes for each block of the repository"
                ),
            }
        }
        Ok(Self::Memory(MemoryIndex::load(session).await?))
    }

    /// As [`LocalIndex::head`]; none in memory.
    pub fn head(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Local(index) => index.head(key),
            Self::Memory(_) => None,
        }
    }

    /// As [`LocalIndex::put_head`]; nothing in memory.
    pub fn put_head(&self, key: &[u8], value: &[u8]) {
        if let Self::Local(index) = self {
            index.put_head(key, value);
        }
    }
}

impl KnownBlocks for Index {
    fn lookup(&self, id: &BlockId) -> Option<Found> {
        match self {
            Self::Local(index) => index.lookup(id),
            Self::Memory(index) => index.lookup(id),
        }
    }

    fn learn(&self, pack: &PackLoc, trailer: &Trailer) {
        match self {
            Self::Local(index) => index.learn(pack, trailer),
            Self::Memory(index) => index.learn(pack, trailer),
        }
    }
}
