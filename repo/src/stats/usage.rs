//! Which slots are used, and by how many snapshots.

use std::collections::HashMap;
use std::ops::Range;

use serde::Serialize;

use crate::id::PackId;
use crate::pack::{BlockInfo, PackKind, PackLoc, TRAILER_SLOT_LEN, Trailer};

/// Blocks and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Blocks of files.
    pub blocks: u64,
    /// Plain bytes of those.
    pub bytes_unique: u64,
    /// Bytes that those take in packs, with what their trailers say of them.
    pub bytes_stored_data: u64,
    /// Map nodes, and blocks of file lists and pack tables.
    pub blocks_map: u64,
    /// Bytes that those take.
    pub bytes_stored_map: u64,
}

impl Footprint {
    /// Bytes in packs of both kinds.
    pub fn bytes_stored(&self) -> u64 {
        self.bytes_stored_data + self.bytes_stored_map
    }

    /// Adds a block, or takes it away.
    pub(super) fn count(&mut self, kind: PackKind, info: &BlockInfo, change: Change) {
        let stored = info.packed_len() + TRAILER_SLOT_LEN as u64;
        let step = |n: &mut u64, by: u64| match change {
            Change::Add => *n += by,
            Change::Remove => *n -= by,
        };
        match kind {
            PackKind::Data => {
                step(&mut self.blocks, 1);
                step(&mut self.bytes_unique, info.plain_len.into());
                step(&mut self.bytes_stored_data, stored);
            }
            PackKind::Map => {
                step(&mut self.blocks_map, 1);
                step(&mut self.bytes_stored_map, stored);
            }
        }
    }
}

/// What becomes of a use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Add,
    Remove,
}

/// Which slots are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// Those that no snapshot but the one at hand uses.
    OnlyThis,
    /// Those that wanted snapshots use.
    Wanted,
    /// Those that no other snapshots use.
    OnlyWanted,
    /// Those that none uses.
    Nobody,
}

/// The slots of one pack.
#[derive(Debug)]
pub(super) struct PackUse {
    pub loc: PackLoc,
    /// How often the snapshot at hand names each slot; at [`FULL`] the rest is in [`Usage::beyond`].
    counts: Box<[u8]>,
    /// A bit for each slot: whether a wanted snapshot uses it.
    wanted: Box<[u64]>,
    /// Whether one that is not wanted does.
    others: Box<[u64]>,
    /// Whether two snapshots do, or more.
    several: Box<[u64]>,
}

/// The highest count that fits.
const FULL: u8 = u8::MAX;

impl PackUse {
    fn new(loc: PackLoc, slots: u32) -> Self {
        let bits = || vec![0; (slots as usize).div_ceil(64)].into_boxed_slice();
        Self {
            loc,
            counts: vec![0; slots as usize].into_boxed_slice(),
            wanted: bits(),
            others: bits(),
            several: bits(),
        }
    }

    /// Which of the slots from `word * 64` on the snapshot at hand uses.
    fn now(&self, word: usize) -> u64 {
        let counts = &self.counts[word * 64..self.counts.len().min(word * 64 + 64)];
        let bit = |bits, (i, count): (usize, &u8)| bits | u64::from(*count > 0) << i;
        counts.iter().enumerate().fold(0, bit)
    }

    fn note(&mut self, wanted: bool) {
        for word in 0..self.several.len() {
            let now = self.now(word);
            self.several[word] |= now & (self.wanted[word] | self.others[word]);
            if wanted {
                self.wanted[word] |= now;
            } else {
                self.others[word] |= now;
            }
        }
    }

    /// Slots of a share.
    pub fn pick(&self, share: Share) -> Vec<u32> {
        let mut out = Vec::new();
        for word in 0..self.several.len() {
            let (wanted, others) = (self.wanted[word], self.others[word]);
            let mut bits = match share {
                Share::OnlyThis => self.now(word) & !self.several[word],
                Share::Wanted => wanted,
                Share::OnlyWanted => wanted & !others,
                Share::Nobody => !(wanted | others),
            };
            while bits != 0 {
                out.push(word as u32 * 64 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
        out.retain(|slot| (*slot as usize) < self.counts.len());
        out
    }
}

/// The slots of all packs that any snapshot used so far.
#[derive(Debug, Default)]
pub(super) struct Usage {
    packs: HashMap<PackId, PackUse>,
    /// How often slots are named beyond [`FULL`] times.
    beyond: HashMap<(PackId, u32), u64>,
    now: Footprint,
}

impl Usage {
    /// The snapshot at hand names these slots once more, or once less.
    pub fn change(&mut self, loc: &PackLoc, trailer: &Trailer, slots: Range<u32>, change: Change) {
        let make = || PackUse::new(*loc, trailer.len());
        let pack = self.packs.entry(loc.id).or_insert_with(make);
        for slot in slots {
            let count = &mut pack.counts[slot as usize];
            let turned = match (change, *count) {
                (Change::Add, FULL) => {
                    *self.beyond.entry((loc.id, slot)).or_default() += 1;
                    false
                }
                (Change::Add, before) => {
                    *count += 1;
                    before == 0
                }
                (Change::Remove, FULL) => {
                    match self.beyond.get_mut(&(loc.id, slot)) {
                        None => *count -= 1,
                        Some(1) => drop(self.beyond.remove(&(loc.id, slot))),
                        Some(more) => *more -= 1,
                    }
                    false
                }
                (Change::Remove, before) => {
                    *count -= 1;
                    before == 1
                }
            };
            if turned {
                self.now
                    .count(trailer.kind, &trailer.slots()[slot as usize], change);
            }
        }
    }

    /// Everything that the snapshot at hand uses.
    pub fn now(&self) -> Footprint {
        self.now
    }

    /// The snapshot at hand is complete.
    pub fn note(&mut self, wanted: bool) {
        self.packs.values_mut().for_each(|pack| pack.note(wanted));
    }

    pub fn packs(&self) -> impl Iterator<Item = &PackUse> {
        self.packs.values()
    }

    pub fn has(&self, id: &PackId) -> bool {
        self.packs.contains_key(id)
    }
}
