//! Reading of packs: trailers, blocks by slot and blocks by place, through relocations where a pack is gone.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use bytes::Bytes;
use futures::future::BoxFuture;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::error::{FormatError, RepoError, Result};
use crate::id::{BlockId, PackId, Slot};
use crate::key::ObjectKey;
use crate::pack::block::{BLOCK_HEADER_LEN, Codec, MAX_BLOCK, open_block, open_named_block};
use crate::pack::sink::OWN_PACK;
use crate::pack::trailer::{FOOTER_LEN, Trailer, check_trailer_len, decode_footer};
use crate::relocation::Relocation;
use crate::storage::{Storage, StorageError};
use crate::wire::{Reader, Writer};

/// A pack and where its trailer lies, so that one request fetches the trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackLoc {
    /// The pack.
    pub id: PackId,
    /// Byte offset of the trailer.
    pub trailer_offset: u32,
    /// Length of the trailer.
    pub trailer_len: u32,
}

impl PackLoc {
    /// Length in the format.
    pub const LEN: usize = 40;

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.bytes(&self.id.0);
        w.u32(self.trailer_offset);
        w.u32(self.trailer_len);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let loc = Self {
            id: PackId(r.array()?),
            trailer_offset: r.u32()?,
            trailer_len: r.u32()?,
        };
        check_trailer_len(loc.trailer_len)?;
        Ok(loc)
    }

    /// Length of the whole object.
    pub fn object_len(&self) -> u64 {
        u64::from(self.trailer_offset) + u64::from(self.trailer_len) + FOOTER_LEN as u64
    }
}

/// The place of a block that is read by itself: a map node, a file list, a pack table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// The pack.
    pub pack: PackId,
    /// Byte offset of the block's header.
    pub offset: u32,
    /// Length of header and stored bytes.
    pub len: u32,
    /// The block.
    pub id: BlockId,
}

impl Place {
    /// Length in the format.
    pub const LEN: usize = 72;

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.bytes(&self.pack.0);
        w.u32(self.offset);
        w.u32(self.len);
        w.bytes(&self.id.0);
    }

    /// `own` is the pack by whose id the block was named in which this place stands.
    pub(crate) fn decode(r: &mut Reader<'_>, own: &PackId) -> Result<Self, FormatError> {
        let pack = PackId(r.array()?);
        let pack = if pack == OWN_PACK { *own } else { pack };
        let place = Self {
            pack,
            offset: r.u32()?,
            len: r.u32()?,
            id: BlockId(r.array()?),
        };
        place.validate()
    }

    /// Checks that a block can lie there: nobody should ask a storage for gigabytes because a field says so.
    pub(crate) fn validate(self) -> Result<Self, FormatError> {
        let len = self.len as usize;
        if len <= BLOCK_HEADER_LEN || len > BLOCK_HEADER_LEN + MAX_BLOCK {
            return Err(FormatError::BadField("length of a block"));
        }
        if self.offset.checked_add(self.len).is_none() {
            return Err(FormatError::BadField("offset of a block"));
        }
        Ok(self)
    }
}

/// More relocations than this one behind the other are taken for a cycle. gc keeps chains short.
pub(crate) const MAX_HOPS: usize = 64;

#[derive(Debug, Clone)]
struct ByTrailer;

impl Weighter<PackId, Arc<Trailer>> for ByTrailer {
    fn weight(&self, _: &PackId, trailer: &Arc<Trailer>) -> u64 {
        128 + u64::from(trailer.len()) * 56
    }
}

#[derive(Debug, Clone)]
struct ByRelocation;

impl Weighter<PackId, Arc<Relocation>> for ByRelocation {
    fn weight(&self, _: &PackId, relocation: &Arc<Relocation>) -> u64 {
        128 + u64::from(relocation.trailer.len()) * 72
    }
}

/// Keeps trailers beyond the life of a process. What it gives is verified by whoever asks, so it may be wrong.
pub trait TrailerStore: Send + Sync + std::fmt::Debug {
    /// The bytes of a pack's trailer. Called where blocking is allowed.
    fn trailer(&self, pack: &PackId) -> Option<Vec<u8>>;
}

/// Reads packs. Trailers and relocations are kept in memory within a budget; blocks are not.
#[derive(Debug)]
pub struct PackStore {
    storage: Arc<dyn Storage>,
    trailers: Cache<PackId, Arc<Trailer>, ByTrailer>,
    relocations: Cache<PackId, Arc<Relocation>, ByRelocation>,
    kept: RwLock<Option<Weak<dyn TrailerStore>>>,
}

impl PackStore {
    /// Reads packs of `storage`; keeps up to `budget` bytes of trailers and relocations.
    pub fn new(storage: Arc<dyn Storage>, budget: u64) -> Self {
        let items = (budget / 10_000).max(16) as usize;
        Self {
            storage,
            trailers: Cache::with_weighter(items, budget / 4 * 3, ByTrailer),
            relocations: Cache::with_weighter(items, budget / 4, ByRelocation),
            kept: RwLock::default(),
        }
    }

    /// The storage under it.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The trailer of a pack, from its relocation if the pack is gone.
    ///
    /// # Errors
    /// `Missing` if neither the pack nor a relocation is there; `Damaged` if the bytes are not the pack's trailer.
    pub async fn trailer(&self, pack: &PackLoc) -> Result<Arc<Trailer>> {
        if let Some(found) = self.trailers.get(&pack.id) {
            return Ok(found);
        }
        if let Some(trailer) = self.kept_trailer(pack).await {
            self.trailers.insert(pack.id, trailer.clone());
            return Ok(trailer);
        }
        let trailer = match self.read_trailer(pack).await {
            Err(RepoError::Storage(StorageError::NotFound(_))) => {
                Arc::new(self.relocation(&pack.id).await?.trailer.clone())
            }
            other => Arc::new(other?),
        };
        self.trailers.insert(pack.id, trailer.clone());
        Ok(trailer)
    }

    /// Has trailers looked for there before the storage is asked, for as long as it exists.
    pub fn read_trailers_from(&self, kept: Weak<dyn TrailerStore>) {
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = Some(kept);
    }

    async fn kept_trailer(&self, pack: &PackLoc) -> Option<Arc<Trailer>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (kept, id) = (kept?.upgrade()?, pack.id);
        let bytes = tokio::task::spawn_blocking(move || kept.trailer(&id))
            .await
            .ok()??;
        let trailer = Trailer::decode_of(&pack.id, &bytes).and_then(|t| t.lies_at(pack.trailer_offset));
        trailer.ok().map(Arc::new)
    }

    /// The trailer as it lies in the pack itself, past every cache.
    ///
    /// # Errors
    /// `Storage(NotFound)` if the pack is gone; `Damaged`.
    pub async fn read_trailer(&self, pack: &PackLoc) -> Result<Trailer> {
        let key = ObjectKey::pack(&pack.id);
        let bytes = self
            .storage
            .get_range(&key, pack.trailer_offset.into(), pack.trailer_len.into())
            .await
            .map_err(|e| truncated(&key, e))?;
        Trailer::decode_of(&pack.id, &bytes)
            .and_then(|trailer| trailer.lies_at(pack.trailer_offset))
            .map_err(RepoError::damaged(&key))
    }

    /// Finds the trailer of a pack of which only id and length are known, as a listing gives them. One request, or
    /// two for a pack of many small blocks.
    ///
    /// # Errors
    /// As [`PackStore::read_trailer`].
    pub async fn locate(&self, id: &PackId, size: u64) -> Result<(PackLoc, Arc<Trailer>)> {
        // Enough for the 256 blocks of 64 KiB that a full pack usually has.
        const GUESS: u64 = 16 << 10;
        let key = ObjectKey::pack(id);
        let tail_len = size.min(GUESS);
        let tail = self
            .storage
            .get_range(&key, size - tail_len, tail_len)
            .await
            .map_err(|e| truncated(&key, e))?;
        let footer = tail.len().checked_sub(FOOTER_LEN).ok_or(FormatError::TooShort);
        let len = footer
            .and_then(|at| decode_footer(&tail[at..]))
            .map_err(RepoError::damaged(&key))?;
        let offset = size
            .checked_sub(FOOTER_LEN as u64 + u64::from(len))
            .and_then(|offset| u32::try_from(offset).ok())
            .ok_or(FormatError::BadField("trailer length"))
            .map_err(RepoError::damaged(&key))?;
        let loc = PackLoc {
            id: *id,
            trailer_offset: offset,
            trailer_len: len,
        };
        let start = tail.len().checked_sub(FOOTER_LEN + len as usize);
        let trailer = match start {
            Some(start) => Trailer::decode_of(id, &tail[start..tail.len() - FOOTER_LEN])
                .and_then(|trailer| trailer.lies_at(offset))
                .map_err(RepoError::damaged(&key))?,
            None => self.read_trailer(&loc).await?,
        };
        let trailer = Arc::new(trailer);
        self.trailers.insert(*id, trailer.clone());
        Ok((loc, trailer))
    }

    /// The relocation of a pack that is gone.
    ///
    /// # Errors
    /// `Missing`, naming the pack, if there is none.
    pub async fn relocation(&self, id: &PackId) -> Result<Arc<Relocation>> {
        if let Some(found) = self.relocations.get(id) {
            return Ok(found);
        }
        let key = ObjectKey::relocation(id);
        let object = match self.storage.get(&key).await {
            Err(e) if e.is_not_found() => {
                return Err(RepoError::Missing {
                    key: ObjectKey::pack(id),
                });
            }
            other => other?,
        };
        let relocation = Arc::new(Relocation::decode(id, &object).map_err(RepoError::damaged(&key))?);
        self.relocations.insert(*id, relocation.clone());
        Ok(relocation)
    }

    /// The plain bytes of neighbouring slots, in order. One request if the pack is there; every block is verified
    /// against the trailer.
    ///
    /// # Errors
    /// `DamagedBlock` for the first block whose bytes are wrong; `Missing`; `Damaged` if the range is not in the pack.
    pub async fn read_slots(&self, pack: &PackLoc, slots: Range<u32>) -> Result<Vec<Bytes>> {
        self.read_slots_hop(*pack, slots, 0).await
    }

    fn read_slots_hop(
        &self,
        pack: PackLoc,
        slots: Range<u32>,
        hop: usize,
    ) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        Box::pin(async move {
            if slots.is_empty() {
                return Ok(Vec::new());
            }
            let key = ObjectKey::pack(&pack.id);
            let trailer = self.trailer(&pack).await?;
            let ends = trailer
                .offset(Slot(slots.start))
                .zip(trailer.offset(Slot(slots.end)));
            let (from, to) = ends
                .ok_or(FormatError::BadField("slot"))
                .map_err(RepoError::damaged(&key))?;
            if self.relocations.get(&pack.id).is_none() {
                match self
                    .storage
                    .get_range(&key, from.into(), (to - from).into())
                    .await
                {
                    Err(e) if e.is_not_found() => {}
                    other => {
                        let run = other.map_err(|e| truncated(&key, e))?;
                        return open_run(&pack.id, &trailer, slots, &run);
                    }
                }
            }
            self.read_relocated(&pack.id, &trailer, slots, hop).await
        })
    }

    async fn read_relocated(
        &self,
        id: &PackId,
        trailer: &Trailer,
        slots: Range<u32>,
        hop: usize,
    ) -> Result<Vec<Bytes>> {
        let key = ObjectKey::relocation(id);
        if hop == MAX_HOPS {
            return Err(RepoError::Damaged {
                key,
                reason: FormatError::BadField("target"),
            });
        }
        let relocation = self.relocation(id).await?;
        let mut out = Vec::with_capacity(slots.len());
        let mut at = slots.start;
        while at < slots.end {
            let (target, first) = relocation
                .target(Slot(at))
                .ok_or(FormatError::BadField("target"))
                .map_err(RepoError::damaged(&key))?;
            // Neighbours that moved together are still read together.
            let mut run = 1;
            while at + run < slots.end
                && relocation.target(Slot(at + run)) == Some((target, Slot(first.0 + run)))
            {
                run += 1;
            }
            let blocks = self
                .read_slots_hop(*target, first.0..first.0 + run, hop + 1)
                .await?;
            for (slot, block) in (at..at + run).zip(blocks) {
                let expected = trailer.slot(Slot(slot)).map(|info| info.id);
                if expected != Some(BlockId::of(&block)) {
                    return Err(damaged_block(id, slot.to_string())(FormatError::BadField(
                        "relocated block",
                    )));
                }
                out.push(block);
            }
            at += run;
        }
        Ok(out)
    }

    /// The plain bytes of the block at a place. One request if the pack is there.
    ///
    /// # Errors
    /// As [`PackStore::read_slots`].
    pub async fn read_place(&self, place: &Place) -> Result<Bytes> {
        let key = ObjectKey::pack(&place.pack);
        if self.relocations.get(&place.pack).is_none() {
            match self
                .storage
                .get_range(&key, place.offset.into(), place.len.into())
                .await
            {
                Err(e) if e.is_not_found() => {}
                other => {
                    let packed = other.map_err(|e| truncated(&key, e))?;
                    return open_named_block(&place.id, &packed)
                        .map_err(damaged_block(&place.pack, format!("at byte {}", place.offset)));
                }
            }
        }
        let relocation = self.relocation(&place.pack).await?;
        let slot = relocation
            .trailer
            .slot_at(place.offset)
            .ok_or(FormatError::BadField("place"))
            .map_err(RepoError::damaged(&ObjectKey::relocation(&place.pack)))?;
        let blocks = self
            .read_relocated(&place.pack, &relocation.trailer, slot.0..slot.0 + 1, 0)
            .await?;
        match blocks.into_iter().next() {
            Some(block) if BlockId::of(&block) == place.id => Ok(block),
            _ => Err(damaged_block(&place.pack, slot.to_string())(
                FormatError::WrongId(place.id.to_string()),
            )),
        }
    }
}

/// Opens the blocks of a run of slots that was read with one request. Each owns its memory: a raw block that stayed a
/// slice would keep the whole run alive for as long as somebody caches it.
pub(crate) fn open_run(id: &PackId, trailer: &Trailer, slots: Range<u32>, run: &Bytes) -> Result<Vec<Bytes>> {
    let start = trailer.offset(Slot(slots.start)).unwrap_or_default();
    let alone = slots.len() == 1;
    slots
        .map(|slot| {
            let fail = damaged_block(id, slot.to_string());
            let info = trailer.slot(Slot(slot)).ok_or(FormatError::TooShort);
            let at = trailer.offset(Slot(slot)).unwrap_or_default() - start;
            info.and_then(|info| {
                let end = at as usize + info.packed_len() as usize;
                let packed = (end <= run.len()).then(|| run.slice(at as usize..end));
                let plain = open_block(info, &packed.ok_or(FormatError::TooShort)?)?;
                Ok(if info.codec == Codec::Raw && !alone {
                    Bytes::copy_from_slice(&plain)
                } else {
                    plain
                })
            })
            .map_err(fail)
        })
        .collect()
}

fn damaged_block(pack: &PackId, slot: String) -> impl FnOnce(FormatError) -> RepoError + use<> {
    let pack = *pack;
    move |reason| RepoError::DamagedBlock { pack, slot, reason }
}

/// An object that is shorter than it should be is damaged.
fn truncated(key: &ObjectKey, e: StorageError) -> RepoError {
    match e {
        StorageError::OutOfRange { .. } => RepoError::Damaged {
            key: key.clone(),
            reason: FormatError::TooShort,
        },
        other => other.into(),
    }
}
