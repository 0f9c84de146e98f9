//! What the index, whoever loads it, and the reader of kept trailers have in common.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::FormatError;
use crate::id::{BlockId, PackId, RepositoryId};
use crate::index::Found;
use crate::local_index::db::Database;
use crate::local_index::entry::{Entry, PackSeal, Record, key, number_key};
use crate::local_index::error::Fault;
use crate::local_index::packs::{Packs, Usable};
use crate::local_index::place::Place;
use crate::pack::{PackKind, PackLoc, Trailer, TrailerStore};

/// A number of bytes that is used up.
#[derive(Debug)]
pub(super) struct Budget(AtomicU64);

impl Budget {
    /// Whether there was so much left; then it is taken.
    pub fn take(&self, bytes: u64) -> bool {
        let less = |left: u64| left.checked_sub(bytes);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

/// What index, learner and the cache of trailers share. Fields are dropped in this order: the lock goes last.
#[derive(Debug)]
pub(super) struct Shared {
    pub db: Database,
    pub repository: RepositoryId,
    /// Bytes that the index may use.
    pub memory: u64,
    packs: RwLock<Packs>,
    next: Mutex<u32>,
    /// Room for trailers.
    pub trailers: Budget,
    /// Damage was met: told once.
    damaged: AtomicBool,
    /// Something could not be read: told once.
    unread: AtomicBool,
    /// Nothing more is written: told once.
    stopped: AtomicBool,
    pub place: Place,
}

impl Shared {
    /// Nothing is known yet; `last` is the highest number in use.
    pub fn new(
        place: Place,
        db: Database,
        repository: RepositoryId,
        memory: u64,
        trailers: u64,
        last: Option<u32>,
    ) -> Result<Self, Fault> {
        let next = last.map_or(Some(0), |last| last.checked_add(1));
        Ok(Self {
            db,
            repository,
            memory,
            packs: RwLock::default(),
            next: Mutex::new(next.ok_or(FormatError::BadField("pack number"))?),
            trailers: Budget(AtomicU64::new(trailers)),
            damaged: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            place,
        })
    }

    /// The packs that may be named, to add to them.
    pub fn packs(&self) -> RwLockWriteGuard<'_, Packs> {
        self.packs.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_packs(&self) -> RwLockReadGuard<'_, Packs> {
        self.packs.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no pack has.
    pub fn new_number(&self) -> Result<u32, Fault> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let number = *next;
        *next = number
            .checked_add(1)
            .ok_or(FormatError::BadField("pack number"))?;
        Ok(number)
    }

    fn directory(&self) -> std::path::Display<'_> {
        self.place.directory().display()
    }

    fn met_damage(&self, reason: &str) {
        if self.damaged.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(
            "the local index in {} is damaged ({reason}): some known blocks may be stored again; the next backup builds it anew",
            self.directory()
        );
        if let Err(e) = self.place.mark(reason) {
            tracing::warn!("the damaged local index cannot be marked: {e}");
        }
    }

    /// After a failed read: what was asked for counts as unknown.
    pub fn unread(&self, fault: Fault) {
        match fault {
            Fault::Damage(reason) => self.met_damage(&reason),
            other if !self.unread.swap(true, Ordering::Relaxed) => tracing::warn!(
                "the local index in {} cannot be read ({}): some known blocks may be stored again",
                self.directory(),
                other.reason()
            ),
            _ => {}
        }
    }

    /// Whether nothing more is written.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// After a failed write: the index stays as it is, and what it misses is learnt when it is opened next.
    pub fn stop(&self, fault: Fault) {
        let before = self.stopped.swap(true, Ordering::Relaxed);
        match fault {
            Fault::Damage(reason) => self.met_damage(&reason),
            other if !before => tracing::warn!(
                "the local index in {} takes nothing more ({}): the next backup catches up",
                self.directory(),
                other.reason()
            ),
            _ => {}
        }
    }

    /// Where a block is.
    pub fn find(&self, id: &BlockId) -> Result<Option<Found>, Fault> {
        let Some(value) = self.db.block(&key(id))? else {
            return Ok(None);
        };
        let entry = Entry::decode(&value)?;
        let Some(usable) = self.read_packs().usable(entry.number) else {
            return Ok(None);
        };
        if !usable.seal.fits(id, &entry) {
            return Err(Fault::Damage("an entry does not fit its block and pack".into()));
        }
        Ok(Some(Found {
            pack: usable.pack,
            slot: entry.slot.into(),
        }))
    }

    /// Learns a pack's blocks, under a number that is bound to it, or a new one.
    pub fn learn(&self, pack: &PackLoc, trailer: &Trailer, bound: Option<u32>) -> Result<(), Fault> {
        let number = match bound {
            Some(number) => number,
            None => self.new_number()?,
        };
        let seal = PackSeal::of(&self.repository, pack);
        let kept = self.trailers.take(pack.trailer_len.into());
        let record = Record {
            pack: *pack,
            kind: trailer.kind,
            complete: true,
            kept,
        };
        let mut batch = self.db.batch();
        batch.record(&number_key(number), &record.encode());
        if kept {
            batch.trailer(&number_key(number), &trailer.encode());
        }
        let data = trailer.kind == PackKind::Data;
        if data {
            for (info, slot) in trailer.slots().iter().zip(0..) {
                let entry = seal.entry(&info.id, number, slot);
                batch.block(&key(&info.id), &entry.encode());
            }
        }
        batch.write()?;
        let mut packs = self.packs();
        if kept {
            packs.keep(&pack.id, number);
        }
        if data {
            packs.allow(number, Usable { pack: *pack, seal });
        }
        Ok(())
    }
}

impl TrailerStore for Shared {
    fn trailer(&self, pack: &PackId) -> Option<Vec<u8>> {
        let number = self.read_packs().kept(pack)?;
        self.db.trailer(&number_key(number)).unwrap_or_else(|fault| {
            self.unread(fault);
            None
        })
    }
}
