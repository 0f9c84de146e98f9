//! The packs that an index may name, in memory: about 80 bytes a pack.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use crate::id::PackId;
use crate::index::IdHasher;
use crate::local_index::entry::PackSeal;
use crate::pack::PackLoc;

/// A pack that may be named.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usable {
    /// The pack.
    pub pack: PackLoc,
    /// What its entries must fit.
    pub seal: PackSeal,
}

/// Packs by number and by id.
#[derive(Debug, Default)]
pub(super) struct Packs {
    by_number: Vec<Option<Usable>>,
    /// By the first half of the id; whoever uses a number checks the whole id by other means.
    kept: HashMap<[u8; 16], u32, BuildHasherDefault<IdHasher>>,
}

fn half(id: &PackId) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&id.0[..16]);
    out
}

impl Packs {
    /// The pack with a number, if it may be named.
    pub fn usable(&self, number: u32) -> Option<Usable> {
        *self.by_number.get(number as usize)?
    }

    /// Lets entries with this number be found.
    pub fn allow(&mut self, number: u32, usable: Usable) {
        let at = number as usize;
        if self.by_number.len() <= at {
            self.by_number.resize(at + 1, None);
        }
        self.by_number[at] = Some(usable);
    }

    /// Notes that the trailer of a pack is kept under a number.
    pub fn keep(&mut self, id: &PackId, number: u32) {
        self.kept.insert(half(id), number);
    }

    /// The number under which the trailer of a pack may be kept.
    pub fn kept(&self, id: &PackId) -> Option<u32> {
        self.kept.get(&half(id)).copied()
    }
}
