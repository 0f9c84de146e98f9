//! What all walks over snapshots need: where slots are now, and which pack tables number their packs alike.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::error::{FormatError, RepoError, Result};
use crate::id::{PackId, Slot};
use crate::key::ObjectKey;
use crate::pack::{MAX_HOPS, PackKind, PackLoc, Place, Trailer};
use crate::repository::Repository;

/// Where slots are: in their packs, or where relocations say. Knows the packs of a listing, and asks the storage for
/// others once.
pub(crate) struct Residence<'a> {
    repo: &'a Repository,
    there: HashMap<PackId, There>,
    /// Packs that are not there. An id is never used again.
    gone: HashSet<PackId>,
}

/// A pack that is there.
#[derive(Debug, Clone, Copy)]
enum There {
    /// Of so many bytes.
    Listed(u64),
    /// With its trailer here.
    Located(PackLoc),
}

impl<'a> Residence<'a> {
    /// `listed` are packs and their lengths.
    pub fn new(repo: &'a Repository, listed: impl IntoIterator<Item = (PackId, u64)>) -> Self {
        let there = |(id, size)| (id, There::Listed(size));
        Self {
            repo,
            there: listed.into_iter().map(there).collect(),
            gone: HashSet::new(),
        }
    }

    /// Spares the search for a trailer.
    pub fn located(&mut self, loc: PackLoc) {
        self.there.insert(loc.id, There::Located(loc));
    }

    /// Whether a pack is there. One that was not listed may have been put since.
    pub async fn is_there(&mut self, id: &PackId) -> Result<bool> {
        if self.there.contains_key(id) {
            return Ok(true);
        }
        if self.gone.contains(id) {
            return Ok(false);
        }
        match self.repo.storage().head(&ObjectKey::pack(id)).await {
            Ok(size) => {
                self.there.insert(*id, There::Listed(size));
                Ok(true)
            }
            Err(e) if e.is_not_found() => {
                self.gone.insert(*id);
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// A pack's trailer, from its relocation if the pack is gone.
    async fn trailer(&mut self, id: &PackId) -> Result<(PackLoc, Arc<Trailer>)> {
        self.is_there(id).await?;
        match self.there.get(id) {
            Some(There::Located(loc)) => Ok((*loc, self.repo.packs().trailer(loc).await?)),
            Some(There::Listed(size)) => {
                let (loc, trailer) = self.repo.packs().locate(id, *size).await?;
                self.located(loc);
                Ok((loc, trailer))
            }
            None => {
                let trailer = self.repo.packs().relocation(id).await?.trailer.clone();
                let loc = PackLoc {
                    id: *id,
                    trailer_offset: trailer.end(),
                    trailer_len: trailer.encode().len() as u32,
                };
                Ok((loc, Arc::new(trailer)))
            }
        }
    }

    /// The slot of a block that is read by itself, by the trailer of its pack.
    ///
    /// # Errors
    /// `DamagedBlock` if the pack has no such block there; `Damaged` if it is no map pack; `Missing`.
    pub async fn slot_of(&mut self, place: &Place) -> Result<(PackLoc, Arc<Trailer>, Slot)> {
        let (loc, trailer) = self.trailer(&place.pack).await?;
        let slot = trailer.slot_at(place.offset).filter(|slot| {
            trailer
                .slot(*slot)
                .is_some_and(|i| i.id == place.id && i.packed_len() == u64::from(place.len))
        });
        let slot = slot.ok_or(RepoError::DamagedBlock {
            pack: place.pack,
            slot: format!("at byte {}", place.offset),
            reason: FormatError::WrongId(place.id.to_string()),
        })?;
        if trailer.kind == PackKind::Map {
            return Ok((loc, trailer, slot));
        }
        Err(RepoError::Damaged {
            key: ObjectKey::pack(&place.pack),
            reason: FormatError::WrongKind {
                expected: "map pack",
                found: "data pack".into(),
            },
        })
    }

    /// Where the block of a slot is now.
    ///
    /// # Errors
    /// `Missing` if the pack is gone and not relocated; `Damaged` if its relocation leads to another block.
    pub async fn now(
        &mut self,
        loc: &PackLoc,
        trailer: &Arc<Trailer>,
        slot: Slot,
    ) -> Result<(PackLoc, Arc<Trailer>, Slot)> {
        let block = trailer.slot(slot).map(|info| info.id);
        let mut at = (*loc, trailer.clone(), slot);
        let mut hops = 0;
        while !self.is_there(&at.0.id).await? {
            let relocation = self.repo.packs().relocation(&at.0.id).await?;
            let bad = |field| RepoError::Damaged {
                key: ObjectKey::relocation(&at.0.id),
                reason: FormatError::BadField(field),
            };
            hops += 1;
            let target = relocation.target(at.2).filter(|_| hops <= MAX_HOPS);
            let (to, there) = target.ok_or_else(|| bad("target"))?;
            let trailer = self.repo.packs().trailer(to).await?;
            if trailer.slot(there).map(|info| info.id) != block {
                return Err(bad("target"));
            }
            at = (*to, trailer, there);
        }
        Ok(at)
    }
}

/// Tells pack tables apart. A leaf names packs by their numbers in a table: so two leaves mean the same only if their
/// tables begin alike.
#[derive(Debug, Default)]
pub(crate) struct Lineages {
    /// Packs of the tables that were met: each the longest of those that begin alike.
    longest: Vec<Vec<PackId>>,
}

impl Lineages {
    /// The number of the lineage to which a table belongs: tables of which one is the beginning of the other.
    pub fn of(&mut self, packs: Vec<PackId>) -> u32 {
        for (known, number) in self.longest.iter_mut().zip(0..) {
            let common = known.len().min(packs.len());
            if common > 0 && known[..common] == packs[..common] {
                if packs.len() > known.len() {
                    *known = packs;
                }
                return number;
            }
        }
        self.longest.push(packs);
        self.longest.len() as u32 - 1
    }

    /// A lineage of its own, for a table that cannot be read.
    pub fn alone(&mut self) -> u32 {
        self.of(Vec::new())
    }
}
