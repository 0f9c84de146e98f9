//! The index of known blocks: which block is in which pack. A cache and nothing else: it is made from the trailers of
//! the packs that a writer may refer to, and losing it costs time.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use futures::{StreamExt, TryStreamExt};

use crate::error::{RepoError, Result};
use crate::id::BlockId;
use crate::pack::{PackKind, PackLoc, Trailer};
use crate::session::Session;

/// Where a known block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The pack.
    pub pack: PackLoc,
    /// The slot there.
    pub slot: u32,
}

/// Knows blocks that are in packs.
pub trait KnownBlocks: Send + Sync {
    /// Where a block is; only packs that the session may refer to are named.
    fn lookup(&self, id: &BlockId) -> Option<Found>;

    /// Learns the blocks of a data pack that was put.
    fn learn(&self, pack: &PackLoc, trailer: &Trailer);
}

/// Ids are uniformly distributed: eight of their bytes are a hash.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // The first byte chooses the shard, so the hash is taken from behind it.
        if let Some(chunk) = bytes.get(8..16) {
            self.0 = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        }
    }

    fn write_usize(&mut self, _: usize) {}
}

type Shard = HashMap<BlockId, (u32, u32), BuildHasherDefault<IdHasher>>;

/// Shards, each with a lock of its own.
const SHARDS: usize = 64;

/// Trailers read at the same time while an index is loaded.
pub(crate) const LOAD_PARALLEL: usize = 16;

/// An index in memory: about 60 bytes a block.
pub struct MemoryIndex {
    packs: RwLock<Vec<PackLoc>>,
    shards: Vec<Mutex<Shard>>,
}

impl Default for MemoryIndex {
    fn default() -> Self {
        Self {
            packs: RwLock::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl std::fmt::Debug for MemoryIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryIndex")
            .field("blocks", &self.len())
            .finish()
    }
}

impl MemoryIndex {
    /// Loads the trailers of all packs that the session may refer to. A pack whose trailer is damaged is passed over
    /// with a warning: what it holds is stored again.
    ///
    /// # Errors
    /// The storage's.
    pub async fn load(session: &Session) -> Result<Self> {
        let index = Self::default();
        let packs = session.repo().packs();
        let allowed: Vec<_> = session.allowed().iter().map(|(id, size)| (*id, *size)).collect();
        futures::stream::iter(allowed)
            .map(|(id, size)| async move { (id, packs.locate(&id, size).await) })
            .buffer_unordered(LOAD_PARALLEL)
            .map(|(id, located)| match located {
                Ok((loc, trailer)) => {
                    if trailer.kind == PackKind::Data {
                        index.learn(&loc, &trailer);
                    }
                    Ok(())
                }
                Err(e @ (RepoError::Damaged { .. } | RepoError::Missing { .. })) => {
                    tracing::warn!("pack {id} is not used: {e}");
                    Ok(())
                }
                // Deleted since it was listed: somebody took this writer for dead and fenced it. The commit will tell.
                Err(RepoError::Storage(e)) if e.is_not_found() => Ok(()),
                Err(e) => Err(e),
            })
            .try_collect::<()>()
            .await?;
        Ok(index)
    }

    fn shard(&self, id: &BlockId) -> MutexGuard<'_, Shard> {
        self.shards[usize::from(id.0[0]) % SHARDS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of known blocks.
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|s| s.lock().unwrap_or_else(PoisonError::into_inner).len())
            .sum()
    }

    /// Whether no block is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl KnownBlocks for MemoryIndex {
    fn lookup(&self, id: &BlockId) -> Option<Found> {
        let (pack, slot) = *self.shard(id).get(id)?;
        let packs = self.packs.read().unwrap_or_else(PoisonError::into_inner);
        Some(Found {
            pack: packs[pack as usize],
            slot,
        })
    }

    fn learn(&self, pack: &PackLoc, trailer: &Trailer) {
        let number = {
            let mut packs = self.packs.write().unwrap_or_else(PoisonError::into_inner);
            packs.push(*pack);
            packs.len() as u32 - 1
        };
        for (info, slot) in trailer.slots().iter().zip(0..) {
            self.shard(&info.id).entry(info.id).or_insert((number, slot));
        }
    }
}
