//! The trailer of a pack: the list of its blocks, and who wrote it (drawn in `docs/format.md` §4).
//!
//! A pack's id is the BLAKE3 of its trailer. The trailer holds the id of every block, so the pack's id proves all
//! of its bytes; and it holds a random nonce, so that two packs of equal content are two objects (GC.md rule 2).

use crate::error::FormatError;
use crate::id::{BlockId, LeaseId, ListId, Nonce, PackId, Slot};
use crate::pack::block::{BlockInfo, Codec};
use crate::wire::{Reader, Writer};

/// First four bytes of a trailer.
pub const TRAILER_MAGIC: [u8; 4] = *b"PTRL";
/// Length of a trailer without its slots.
pub const TRAILER_FIXED_LEN: usize = 52;
/// Length of one slot in a trailer.
pub const TRAILER_SLOT_LEN: usize = 40;
/// Most blocks in a pack: a trailer stays under 512 KiB, so that one request fetches it.
pub const MAX_SLOTS: usize = 8192;
/// Length of the footer, the last bytes of a pack.
pub const FOOTER_LEN: usize = 16;
/// Last eight bytes of a pack.
pub const FOOTER_MAGIC: [u8; 8] = *b"PBMF-END";

const _: () = assert!(4 + 2 + 1 + 1 + 16 + 16 + 4 + 4 + 4 == TRAILER_FIXED_LEN);
const _: () = assert!(BlockId::LEN + 3 + 3 + 1 + 1 == TRAILER_SLOT_LEN);
const _: () = assert!(TRAILER_FIXED_LEN + MAX_SLOTS * TRAILER_SLOT_LEN < 512 * 1024);

/// What a pack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PackKind {
    /// Blocks of files.
    Data = 0,
    /// Map nodes, file lists and pack tables.
    Map = 1,
}

impl PackKind {
    /// The kind with this number.
    pub fn from_byte(byte: u8) -> Result<Self, FormatError> {
        match byte {
            0 => Ok(Self::Data),
            1 => Ok(Self::Map),
            _ => Err(FormatError::BadField("pack kind")),
        }
    }
}

/// Under what a pack was written: gc spares packs whose owner still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A writer's lease.
    Lease(LeaseId),
    /// A condemned list: written by a gc that relocates.
    Condemned(ListId),
}

/// A pack's trailer, parsed. About 56 bytes of memory a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// What the pack holds.
    pub kind: PackKind,
    /// Under what it was written.
    pub owner: Owner,
    /// Makes this sealing an object of its own.
    pub nonce: Nonce,
    /// Byte offset of the first block in the pack.
    pub first_block: u32,
    slots: Vec<BlockInfo>,
    /// Byte offset of each slot's header, and of the end of the last.
    offsets: Vec<u32>,
}

impl Trailer {
    /// A trailer of these blocks, which lie one behind the other from `first_block` on.
    ///
    /// # Errors
    /// `BadField` if there are no blocks, too many, or more bytes than 32 bits address.
    pub fn new(
        kind: PackKind,
        owner: Owner,
        nonce: Nonce,
        first_block: u32,
        slots: Vec<BlockInfo>,
    ) -> Result<Self, FormatError> {
        if slots.is_empty() || slots.len() > MAX_SLOTS {
            return Err(FormatError::BadField("slot count"));
        }
        let mut offsets = Vec::with_capacity(slots.len() + 1);
        let mut at = u64::from(first_block);
        for slot in &slots {
            offsets.push(at as u32);
            at += slot.packed_len();
        }
        offsets.push(u32::try_from(at).map_err(|_| FormatError::BadField("pack length"))?);
        Ok(Self {
            kind,
            owner,
            nonce,
            first_block,
            slots,
            offsets,
        })
    }

    /// Number of slots.
    pub fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Never: a pack holds at least one block.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What is in a slot.
    pub fn slot(&self, slot: Slot) -> Option<&BlockInfo> {
        self.slots.get(slot.0 as usize)
    }

    /// All slots in order.
    pub fn slots(&self) -> &[BlockInfo] {
        &self.slots
    }

    /// Byte offset in the pack of a slot's header; of the trailer, if `slot` is the number of slots.
    pub fn offset(&self, slot: Slot) -> Option<u32> {
        self.offsets.get(slot.0 as usize).copied()
    }

    /// Byte offset behind the last block: where the trailer begins.
    pub fn end(&self) -> u32 {
        self.offsets.last().copied().unwrap_or(self.first_block)
    }

    /// Checks that it was found at a byte offset of its pack, right behind the last block.
    pub(crate) fn lies_at(self, offset: u32) -> Result<Self, FormatError> {
        if self.end() == offset {
            Ok(self)
        } else {
            Err(FormatError::BadField("trailer offset"))
        }
    }

    /// The slot whose header lies at a byte offset.
    pub fn slot_at(&self, offset: u32) -> Option<Slot> {
        let found = self.offsets.binary_search(&offset).ok()?;
        (found < self.slots.len()).then_some(Slot(found as u32))
    }

    /// The pack's id.
    pub fn pack_id(&self) -> PackId {
        pack_id(&self.encode())
    }

    /// The trailer's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(TRAILER_FIXED_LEN + self.slots.len() * TRAILER_SLOT_LEN);
        w.bytes(&TRAILER_MAGIC);
        w.u16(crate::envelope::VERSION);
        w.u8(self.kind as u8);
        match self.owner {
            Owner::Lease(id) => {
                w.u8(0);
                w.bytes(&id.0);
            }
            Owner::Condemned(id) => {
                w.u8(1);
                w.bytes(&id.0);
            }
        }
        w.bytes(&self.nonce.0);
        w.u32(self.slots.len() as u32);
        w.u32(self.first_block);
        w.u32(0);
        for slot in &self.slots {
            w.bytes(&slot.id.0);
            w.u24(slot.plain_len);
            w.u24(slot.stored_len);
            w.u8(slot.codec as u8);
            w.u8(0);
        }
        w.into_vec()
    }

    /// Reads a trailer; the caller compares its hash with the pack's id.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        if r.array()? != TRAILER_MAGIC {
            return Err(FormatError::BadMagic);
        }
        let version = r.u16()?;
        if version != crate::envelope::VERSION {
            return Err(FormatError::UnknownVersion(version));
        }
        let kind = PackKind::from_byte(r.u8()?)?;
        let owner = match r.u8()? {
            0 => Owner::Lease(LeaseId(r.array()?)),
            1 => Owner::Condemned(ListId(r.array()?)),
            _ => return Err(FormatError::BadField("owner")),
        };
        let nonce = Nonce(r.array()?);
        let count = r.u32()? as usize;
        let first_block = r.u32()?;
        let reserved = r.u32()?;
        if reserved != 0 {
            return Err(FormatError::UnknownFlags(reserved.into()));
        }
        if count > r.left() / TRAILER_SLOT_LEN {
            return Err(FormatError::TooShort);
        }
        let mut slots = Vec::with_capacity(count);
        for _ in 0..count {
            let id = BlockId(r.array()?);
            let plain_len = r.u24()?;
            let stored_len = r.u24()?;
            let codec = Codec::from_byte(r.u8()?)?;
            let flags = r.u8()?;
            if flags != 0 {
                return Err(FormatError::UnknownFlags(flags.into()));
            }
            slots.push(
                BlockInfo {
                    id,
                    plain_len,
                    stored_len,
                    codec,
                }
                .validate()?,
            );
        }
        r.end()?;
        Self::new(kind, owner, nonce, first_block, slots)
    }

    /// Reads a trailer and proves that it is the one of pack `id`.
    pub fn decode_of(id: &PackId, bytes: &[u8]) -> Result<Self, FormatError> {
        if pack_id(bytes) != *id {
            return Err(FormatError::WrongId(id.to_string()));
        }
        Self::decode(bytes)
    }
}

/// The id of the pack with this trailer.
pub fn pack_id(trailer: &[u8]) -> PackId {
    PackId(*blake3::hash(trailer).as_bytes())
}

/// The footer behind a trailer of `trailer_len` bytes.
pub fn encode_footer(trailer_len: u32) -> [u8; FOOTER_LEN] {
    let mut out = [0; FOOTER_LEN];
    out[..4].copy_from_slice(&trailer_len.to_le_bytes());
    out[8..].copy_from_slice(&FOOTER_MAGIC);
    out
}

/// The trailer's length from the last [`FOOTER_LEN`] bytes of a pack.
pub fn decode_footer(bytes: &[u8]) -> Result<u32, FormatError> {
    let mut r = Reader::new(bytes);
    let len = r.u32()?;
    if r.u32()? != 0 {
        return Err(FormatError::BadField("footer"));
    }
    if r.array()? != FOOTER_MAGIC {
        return Err(FormatError::TooShort);
    }
    r.end()?;
    check_trailer_len(len)?;
    Ok(len)
}

/// Whether a trailer of one slot or more can have this length.
pub(crate) fn check_trailer_len(len: u32) -> Result<(), FormatError> {
    let slots = (len as usize).checked_sub(TRAILER_FIXED_LEN);
    match slots {
        Some(slots)
            if slots.is_multiple_of(TRAILER_SLOT_LEN)
                && (1..=MAX_SLOTS).contains(&(slots / TRAILER_SLOT_LEN)) =>
        {
            Ok(())
        }
        _ => Err(FormatError::BadField("trailer length")),
    }
}
