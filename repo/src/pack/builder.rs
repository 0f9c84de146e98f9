//! A pack while it is filled, and the sealing of it.

use bytes::Bytes;

use crate::envelope::{HEADER_LEN, ObjectKind, encode_header};
use crate::id::{Nonce, PackId, Slot};
use crate::key::ObjectKey;
use crate::pack::block::BlockInfo;
use crate::pack::store::PackLoc;
use crate::pack::trailer::{
    FOOTER_LEN, MAX_SLOTS, Owner, PackKind, TRAILER_FIXED_LEN, TRAILER_SLOT_LEN, Trailer, encode_footer,
    pack_id,
};

/// Length of a pack's envelope: its key has always the same length.
pub(crate) const PACK_ENVELOPE_LEN: usize = HEADER_LEN + "packs/00/".len() + PackId::LEN * 2;

/// Blocks on their way into a pack: the bytes of the later object, with room for its envelope.
#[derive(Debug)]
pub struct PackBuilder {
    kind: PackKind,
    owner: Owner,
    slots: Vec<BlockInfo>,
    buf: Vec<u8>,
}

/// A pack that is ready to be put.
#[derive(Debug, Clone)]
pub struct SealedPack {
    /// Where its trailer will lie.
    pub loc: PackLoc,
    /// Its trailer.
    pub trailer: Trailer,
    /// The whole object.
    pub object: Bytes,
}

impl PackBuilder {
    /// An empty pack. `buf` is an old buffer to use again; what is in it is dropped.
    pub fn new(kind: PackKind, owner: Owner, mut buf: Vec<u8>) -> Self {
        buf.clear();
        buf.resize(PACK_ENVELOPE_LEN, 0);
        Self {
            kind,
            owner,
            slots: Vec::new(),
            buf,
        }
    }

    /// Bytes of the later object so far, trailer included.
    pub fn len(&self) -> usize {
        self.buf.len() + TRAILER_FIXED_LEN + self.slots.len() * TRAILER_SLOT_LEN + FOOTER_LEN
    }

    /// Whether it holds no block.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Blocks so far.
    pub fn slots(&self) -> &[BlockInfo] {
        &self.slots
    }

    /// Whether another block may be added.
    pub fn has_room(&self) -> bool {
        self.slots.len() < MAX_SLOTS
    }

    /// Adds a block; `packed` is its header and its stored bytes. Returns its slot and byte offset.
    pub fn push(&mut self, info: BlockInfo, packed: &[u8]) -> (Slot, u32) {
        debug_assert_eq!(packed.len() as u64, info.packed_len());
        debug_assert!(self.has_room());
        let at = (Slot(self.slots.len() as u32), self.buf.len() as u32);
        self.slots.push(info);
        self.buf.extend_from_slice(packed);
        at
    }

    /// Seals it with this nonce.
    pub fn seal(self, nonce: Nonce) -> SealedPack {
        let end = self.buf.len();
        let trailer = Trailer::new(self.kind, self.owner, nonce, PACK_ENVELOPE_LEN as u32, self.slots)
            .expect("the builder checked the number of slots and the length of the pack");
        debug_assert_eq!(trailer.end() as usize, end);
        finish(trailer, self.buf)
    }
}

impl SealedPack {
    /// The same blocks as another object, after a put whose outcome is unknown (GC.md rule 2). Copies nothing if
    /// nobody else holds the object's bytes.
    pub fn reseal(self, nonce: Nonce) -> Self {
        let mut trailer = self.trailer;
        trailer.nonce = nonce;
        finish(trailer, Vec::from(self.object))
    }
}

/// Writes trailer, footer and envelope around the blocks that lie in `buf`.
fn finish(trailer: Trailer, mut buf: Vec<u8>) -> SealedPack {
    let bytes = trailer.encode();
    let loc = PackLoc {
        id: pack_id(&bytes),
        trailer_offset: trailer.end(),
        trailer_len: bytes.len() as u32,
    };
    buf.truncate(trailer.end() as usize);
    buf.extend_from_slice(&bytes);
    buf.extend_from_slice(&encode_footer(loc.trailer_len));
    let kind = match trailer.kind {
        PackKind::Data => ObjectKind::DataPack,
        PackKind::Map => ObjectKind::MapPack,
    };
    let payload_len = (buf.len() - PACK_ENVELOPE_LEN) as u64;
    let header = encode_header(kind, &ObjectKey::pack(&loc.id), payload_len, &bytes);
    buf[..PACK_ENVELOPE_LEN].copy_from_slice(&header);
    SealedPack {
        loc,
        trailer,
        object: buf.into(),
    }
}
