//! Relocations: where gc moved the living slots of a pack that it removed (drawn in `docs/format.md` §8).
//!
//! A relocation carries the old pack's whole trailer, whose hash is the old pack's id: so ids and lengths of the
//! blocks stay proven although the pack is gone.

use bytes::Bytes;

use crate::envelope::{self, ObjectKind};
use crate::error::FormatError;
use crate::id::{PackId, Slot};
use crate::key::ObjectKey;
use crate::pack::{MAX_SLOTS, PackLoc, Trailer};
use crate::wire::{Reader, Writer};

/// Where one slot of an old pack is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Index in [`Relocation::packs`].
    pub pack: u32,
    /// The slot there.
    pub slot: Slot,
}

/// Where the living slots of a removed pack are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relocation {
    /// The removed pack's trailer.
    pub trailer: Trailer,
    /// The packs that took its slots. They may be gone in their turn.
    pub packs: Vec<PackLoc>,
    /// For each old slot where it is now; `None` for a dead one.
    pub targets: Vec<Option<Target>>,
}

impl Relocation {
    /// The object of this relocation and its key.
    pub fn encode(&self) -> (ObjectKey, Bytes) {
        let trailer = self.trailer.encode();
        let key = ObjectKey::relocation(&crate::pack::pack_id(&trailer));
        let mut w = Writer::with_capacity(trailer.len() + self.packs.len() * 40 + self.targets.len() * 4);
        w.u32(trailer.len() as u32);
        w.bytes(&trailer);
        w.varint(self.packs.len() as u64);
        for pack in &self.packs {
            pack.encode(&mut w);
        }
        for target in &self.targets {
            match target {
                None => w.varint(0),
                Some(t) => {
                    w.varint(u64::from(t.pack) + 1);
                    w.varint(t.slot.0.into());
                }
            }
        }
        let object = envelope::encode(ObjectKind::Relocation, &key, &w.into_vec());
        (key, object)
    }

    /// Reads the relocation of pack `id`.
    pub fn decode(id: &PackId, object: &Bytes) -> Result<Self, FormatError> {
        let payload = envelope::decode(ObjectKind::Relocation, &ObjectKey::relocation(id), object)?;
        let mut r = Reader::new(&payload);
        let trailer_len = r.u32()? as usize;
        let trailer = Trailer::decode_of(id, r.bytes(trailer_len)?)?;
        let count = r.count(PackLoc::LEN)?;
        let packs = (0..count)
            .map(|_| PackLoc::decode(&mut r))
            .collect::<Result<Vec<_>, _>>()?;
        let mut targets = Vec::with_capacity(trailer.slots().len());
        for _ in 0..trailer.len() {
            let pack = r.varint32()?;
            if pack == 0 {
                targets.push(None);
                continue;
            }
            let slot = r.varint32()?;
            if pack as usize > packs.len() || slot as usize >= MAX_SLOTS {
                return Err(FormatError::BadField("target"));
            }
            targets.push(Some(Target {
                pack: pack - 1,
                slot: Slot(slot),
            }));
        }
        r.end()?;
        Ok(Self {
            trailer,
            packs,
            targets,
        })
    }

    /// Where a slot is now.
    pub fn target(&self, slot: Slot) -> Option<(&PackLoc, Slot)> {
        let target = self.targets.get(slot.0 as usize).copied().flatten()?;
        Some((self.packs.get(target.pack as usize)?, target.slot))
    }
}
