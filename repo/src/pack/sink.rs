//! Putting of packs, and a sink for map blocks that fills one pack after the other.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{RepoError, Result};
use crate::id::{BlockId, Nonce, PackId, Randomness, draw16};
use crate::key::ObjectKey;
use crate::pack::block::{Encoder, MAX_BLOCK};
use crate::pack::builder::{PackBuilder, SealedPack};
use crate::pack::store::{PackLoc, Place};
use crate::pack::trailer::{Owner, PackKind};
use crate::storage::Storage;

/// How often a pack is sealed again after a put of unknown outcome before the backup fails.
const PUT_ATTEMPTS: u32 = 5;

/// Map packs are sealed at this size, whatever the size of data packs: nodes are read one by one, so nothing is
/// gained by larger objects.
const MAP_PACK_LEN: usize = 16 << 20;

/// Seals `pack` and puts it. After an unknown outcome it is sealed again with a new nonce and put under the new id
/// (GC.md rule 2); the object of the first attempt, if it landed, is garbage that gc will find.
///
/// # Errors
/// The storage's, if it says that nothing was stored, or after five unknown outcomes.
pub async fn put_pack(
    storage: &dyn Storage,
    randomness: &dyn Randomness,
    pack: PackBuilder,
) -> Result<SealedPack> {
    let mut sealed = pack.seal(Nonce(draw16(randomness)));
    let mut attempt = 1;
    loop {
        match storage
            .put_once(&ObjectKey::pack(&sealed.loc.id), sealed.object.clone())
            .await
        {
            Ok(()) => return Ok(sealed),
            Err(e) if e.outcome_unknown() && attempt < PUT_ATTEMPTS => {
                tracing::warn!("{e}; the pack is put again under a new id");
                tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
                attempt += 1;
                sealed = sealed.reseal(Nonce(draw16(randomness)));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Stands for "the pack in which this block itself was written" inside a block: a pack's id depends on its blocks, so
/// they cannot name it.
pub(crate) const OWN_PACK: PackId = PackId([0; 32]);

/// Where a block of a sink is: the id of a pack is known only once it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OwnPlace {
    /// The sink's pack, counted from 0.
    pub pack: usize,
    /// Byte offset of the block's header.
    pub offset: u32,
    /// Length of header and stored bytes.
    pub len: u32,
    /// The block.
    pub id: BlockId,
}

/// Fills map packs one after the other.
pub struct PackSink {
    storage: Arc<dyn Storage>,
    randomness: Arc<dyn Randomness>,
    owner: Owner,
    encoder: Encoder,
    current: PackBuilder,
    sealed: Vec<PackLoc>,
    scratch: Vec<u8>,
    stored: u64,
    blocks: u64,
}

impl PackSink {
    /// A sink whose packs belong to `owner`. Nothing is put before a pack is full or [`PackSink::flush`] is called.
    pub fn new(
        storage: Arc<dyn Storage>,
        randomness: Arc<dyn Randomness>,
        owner: Owner,
        level: i32,
    ) -> std::io::Result<Self> {
        Ok(Self {
            storage,
            randomness,
            owner,
            encoder: Encoder::new(level)?,
            current: PackBuilder::new(PackKind::Map, owner, Vec::new()),
            sealed: Vec::new(),
            scratch: Vec::new(),
            stored: 0,
            blocks: 0,
        })
    }

    /// Bytes of all packs that were put.
    pub fn stored_bytes(&self) -> u64 {
        self.stored
    }

    /// Blocks that were added.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The packs that were put, in order.
    pub fn packs(&self) -> &[PackLoc] {
        &self.sealed
    }

    /// Number of the pack that the next block will be in; makes room for `max_len` plain bytes first. A block that
    /// is encoded after this may name this pack as its own.
    pub(crate) async fn reserve(&mut self, max_len: usize) -> Result<usize> {
        if !self.current.is_empty()
            && (!self.current.has_room() || self.current.len() + max_len > MAP_PACK_LEN)
        {
            self.flush().await?;
        }
        Ok(self.sealed.len())
    }

    /// Adds a block to the pack that [`PackSink::reserve`] told of.
    pub(crate) fn push(&mut self, plain: &[u8]) -> Result<OwnPlace> {
        if plain.len() > MAX_BLOCK {
            return Err(RepoError::BadInput {
                path: "the file list".into(),
                reason: format!(
                    "its root would have {} bytes, and a block has at most {MAX_BLOCK}",
                    plain.len()
                ),
            });
        }
        let id = BlockId::of(plain);
        self.scratch.clear();
        let info = self
            .encoder
            .append(id, plain, &mut self.scratch)
            .map_err(|e| RepoError::Poisoned(format!("compression failed: {e}")))?;
        let (_, offset) = self.current.push(info, &self.scratch);
        self.blocks += 1;
        Ok(OwnPlace {
            pack: self.sealed.len(),
            offset,
            len: self.scratch.len() as u32,
            id,
        })
    }

    /// Adds a block that names no pack of this sink.
    pub(crate) async fn add(&mut self, plain: &[u8]) -> Result<OwnPlace> {
        self.reserve(plain.len()).await?;
        self.push(plain)
    }

    /// Puts what is pending. Durable when this returns.
    pub async fn flush(&mut self) -> Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        let next = PackBuilder::new(PackKind::Map, self.owner, Vec::new());
        let full = std::mem::replace(&mut self.current, next);
        let sealed = put_pack(&*self.storage, &*self.randomness, full).await?;
        self.stored += sealed.object.len() as u64;
        self.sealed.push(sealed.loc);
        Ok(())
    }

    /// The pack with this number, if it was put.
    pub(crate) fn pack(&self, number: usize) -> Option<&PackLoc> {
        self.sealed.get(number)
    }

    /// The place of a block as a block in the pack `from` names it, which may be the same pack.
    pub(crate) fn named_from(&self, from: usize, own: OwnPlace) -> Result<Place> {
        if own.pack == from {
            return Ok(Place {
                pack: OWN_PACK,
                offset: own.offset,
                len: own.len,
                id: own.id,
            });
        }
        self.place(own)
    }

    /// The final place of a block whose pack was put.
    pub(crate) fn place(&self, own: OwnPlace) -> Result<Place> {
        let pack = self
            .pack(own.pack)
            .ok_or_else(|| RepoError::Poisoned("a map pack was not put".into()))?;
        Ok(Place {
            pack: pack.id,
            offset: own.offset,
            len: own.len,
            id: own.id,
        })
    }
}

/// Where the root of a list was written, or that the parent's was kept.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RootPlace {
    /// The list is empty.
    Empty,
    /// As the parent has it.
    Kept(Place),
    /// In this sink.
    Own(OwnPlace),
}

impl RootPlace {
    /// The final place; the sink must have been flushed.
    pub fn resolve(self, sink: &PackSink) -> Result<Option<Place>> {
        Ok(match self {
            Self::Empty => None,
            Self::Kept(place) => Some(place),
            Self::Own(own) => Some(sink.place(own)?),
        })
    }
}
