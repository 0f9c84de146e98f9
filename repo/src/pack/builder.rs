//! A pack while it is filled, and the sealing of it.

use bytes::Bytes;

use crate::envelope::{HEADER_LEN, ObjectKind, encode_header};
use crate::id::{Nonce, PackId, Slot};
use crate::key::ObjectKey;
use crate::pack::block::BlockInfo;
use crate::pack::store::PackLoc;
use crate::pack::trailer::{FOOTER_LEN, MAX_SLOTS, Owner, PackKind, Trailer, encode_footer, pack_id};

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
        Self { kind, owner, slots: Vec::new(), buf }
    }

    /// Bytes of the later object so far, trailer included.
    pub fn len(&self) -> usize {
        self.buf.len() + crate::pack::trailer::TRAILER_FIXED_LEN + self.slots.len() * 40 + FOOTER_LEN
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

    /// Seals it with this nonce. May be called again with another nonce, after a put whose outcome is unknown.
    pub fn seal(&mut self, nonce: Nonce) -> SealedPack {
        let trailer =
            Trailer::new(self.kind, self.owner, nonce, PACK_ENVELOPE_LEN as u32, self.slots.clone())
                .expect("the builder checked the number of slots and the length of the pack");
        let bytes = trailer.encode();
        let id = pack_id(&bytes);
        let end = trailer.end();
        self.buf.truncate(end as usize);
        self.buf.extend_from_slice(&bytes);
        self.buf.extend_from_slice(&encode_footer(bytes.len() as u32));
        let kind = match self.kind {
            PackKind::Data => ObjectKind::DataPack,
            PackKind::Map => ObjectKind::MapPack,
        };
        let payload_len = (self.buf.len() - PACK_ENVELOPE_LEN) as u64;
        let header = encode_header(kind, &ObjectKey::pack(&id), payload_len, &bytes);
        self.buf[..PACK_ENVELOPE_LEN].copy_from_slice(&header);
        let loc = PackLoc { id, trailer_offset: end, trailer_len: bytes.len() as u32 };
        SealedPack { loc, trailer, object: Bytes::new() }
    }

    /// Takes the object's bytes after [`PackBuilder::seal`].
    pub(crate) fn take_object(&mut self) -> Bytes {
        std::mem::take(&mut self.buf).into()
    }

    /// Gives the object's bytes back for another sealing, if nobody else holds them.
    pub(crate) fn give_back(&mut self, object: Bytes) {
        self.buf = object.try_into_mut().map_or_else(|shared| shared.to_vec(), |own| own.to_vec());
    }
}
