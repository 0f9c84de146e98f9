//! Catching up with the repository: packs that the index does not have are learnt from their trailers, packs that are
//! gone are no longer named, and their entries leave the index when there are many.
//!
//! A few packs are learnt one by one. Many are sorted outside of the database and taken in as finished tables: first
//! records that bind each pack to its number, then all tables at once, then records that say that they are complete.
//! A crash leaves packs that are bound and not complete, and those are loaded again under the same numbers.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::{StreamExt, TryStreamExt};
use rocksdb::SstFileWriter;
use tokio::sync::mpsc;

use crate::error::RepoError;
use crate::id::PackId;
use crate::index::LOAD_PARALLEL;
use crate::local_index::db::TABLE_LEN;
use crate::local_index::entry::{PackSeal, Record, key, number_key};
use crate::local_index::error::Fault;
use crate::local_index::filter::Dead;
use crate::local_index::packs::Usable;
use crate::local_index::shared::Shared;
use crate::local_index::sorted::{Row, Sorter};
use crate::pack::{PackKind, PackLoc, TRAILER_FIXED_LEN, TRAILER_SLOT_LEN, Trailer};
use crate::session::Session;

/// Up to so many new packs are learnt one by one.
const FEW_PACKS: usize = 128;

/// Dead entries are dropped when they are more than this share of all.
const DEAD_SHARE: u64 = 4;

/// Trailers that may wait for the learner. The largest take half a megabyte each.
const WAITING: usize = 4;

/// Bytes of trailers that are written at a time.
const TRAILER_BATCH: usize = 1 << 20;

/// What the records and the session say of the packs.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Packs to learn; those that have a number keep it.
    missing: Vec<(PackId, u64)>,
    bound: HashMap<PackId, u32>,
    dead: Vec<u32>,
    purge: bool,
}

fn slots(pack: &PackLoc) -> u64 {
    (u64::from(pack.trailer_len) - TRAILER_FIXED_LEN as u64) / TRAILER_SLOT_LEN as u64
}

/// Reads the records: what may be named is from now on, what is gone may be dropped.
pub(super) fn plan(
    shared: &Shared,
    allowed: &HashMap<PackId, u64>,
    dead: &Dead,
    records: Vec<(u32, Record)>,
) -> Result<Plan, Fault> {
    let mut plan = Plan::default();
    let mut seen = HashSet::new();
    let (mut all_slots, mut dead_slots, mut spoilt) = (0, 0, false);
    let mut batch = shared.db.batch();
    {
        let mut packs = shared.packs();
        for (number, record) in records {
            let pack = record.pack;
            let here = allowed.get(&pack.id) == Some(&pack.object_len());
            let entries = if record.kind == PackKind::Data {
                slots(&pack)
            } else {
                0
            };
            all_slots += entries;
            if record.kept {
                shared.trailers.take(pack.trailer_len.into());
            }
            if !here {
                dead_slots += entries;
                plan.dead.push(number);
                if record.complete {
                    // Its entries may be dropped from now on: should it come back, it is loaded again.
                    let record = Record {
                        complete: false,
                        ..record
                    };
                    batch.record(&number_key(number), &record.encode());
                    spoilt = true;
                }
                continue;
            }
            if record.kept {
                packs.keep(&pack.id, number);
            }
            if !record.complete {
                plan.bound.insert(pack.id, number);
                continue;
            }
            seen.insert(pack.id);
            if record.kind == PackKind::Data {
                let seal = PackSeal::of(&shared.repository, &pack);
                packs.allow(number, Usable { pack, seal });
            }
        }
    }
    if spoilt {
        batch.write()?;
        shared.db.flush()?;
    }
    dead.set(&plan.dead);
    plan.purge = dead_slots * DEAD_SHARE > all_slots;
    let missing = allowed.iter().filter(|(id, _)| !seen.contains(*id));
    plan.missing = missing.map(|(id, size)| (*id, *size)).collect();
    Ok(plan)
}

/// Carries a plan out.
pub(super) async fn catch_up(shared: &Arc<Shared>, session: &Session, plan: Plan) -> Result<(), Fault> {
    let Plan {
        missing,
        bound,
        dead,
        purge,
    } = plan;
    let few = missing.len() <= FEW_PACKS;
    let (to, from) = mpsc::channel(WAITING);
    let hurry = Hurry::default();
    let learner = {
        let (shared, given_up) = (shared.clone(), hurry.0.clone());
        tokio::task::spawn_blocking(move || {
            if few {
                learn_each(&shared, from, &bound)?;
            } else {
                let loaded = Bulk::new(&shared, bound, given_up)?.run(from);
                // Whether it worked or not.
                std::fs::remove_dir_all(shared.place.load())?;
                loaded?;
            }
            if purge {
                drop_dead(&shared, &dead)?;
            }
            Ok(())
        })
    };
    let fetched = fetch(session, missing, to).await;
    // The learner ends when its channel does, and what it has until then is worth keeping.
    let learnt = learner
        .await
        .unwrap_or_else(|e| Err(Fault::Environment(e.to_string())));
    fetched.map_err(Fault::Repo)?;
    learnt
}

/// Tells the learner, which nobody can stop from outside, that nobody waits for it any more.
#[derive(Default)]
struct Hurry(Arc<AtomicBool>);

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

type Located = (PackLoc, Arc<Trailer>);

/// Reads trailers. A pack whose trailer is damaged is passed over with a warning: what it holds is stored again.
async fn fetch(
    session: &Session,
    missing: Vec<(PackId, u64)>,
    to: mpsc::Sender<Located>,
) -> Result<(), RepoError> {
    let packs = session.repo().packs();
    let to = &to;
    futures::stream::iter(missing)
        .map(|(id, size)| async move { (id, packs.locate(&id, size).await) })
        .buffer_unordered(LOAD_PARALLEL)
        // If nobody listens any more, the learner failed, and its error tells why.
        .take_while(|_| std::future::ready(!to.is_closed()))
        .map(Ok)
        .try_for_each(|(id, located)| async move {
            match located {
                Ok(located) => {
                    let _ = to.send(located).await;
                    Ok(())
                }
                Err(e @ (RepoError::Damaged { .. } | RepoError::Missing { .. })) => {
                    tracing::warn!("pack {id} is not used: {e}");
                    Ok(())
                }
                // Deleted since it was listed: somebody took this writer for dead and fenced it. The commit will tell.
                Err(RepoError::Storage(e)) if e.is_not_found() => Ok(()),
                Err(e) => Err(e),
            }
        })
        .await
}

fn learn_each(
    shared: &Shared,
    mut from: mpsc::Receiver<Located>,
    bound: &HashMap<PackId, u32>,
) -> Result<(), Fault> {
    let mut any = false;
    while let Some((pack, trailer)) = from.blocking_recv() {
        shared.learn(&pack, &trailer, bound.get(&pack.id).copied())?;
        any = true;
    }
    if any { shared.db.flush() } else { Ok(()) }
}

fn drop_dead(shared: &Shared, dead: &[u32]) -> Result<(), Fault> {
    tracing::info!(
        "the local index drops the blocks of {} packs that are gone",
        dead.len()
    );
    shared.db.drop_dead_entries();
    // Only now may their numbers be used again.
    let mut batch = shared.db.batch();
    for number in dead {
        batch.forget(&number_key(*number));
    }
    batch.write()?;
    shared.db.flush()?;
    shared.db.drop_forgotten_trailers();
    Ok(())
}

/// Many packs at once.
struct Bulk<'a> {
    shared: &'a Shared,
    bound: HashMap<PackId, u32>,
    given_up: Arc<AtomicBool>,
    directory: PathBuf,
    sorter: Sorter,
    records: Vec<(u32, Record)>,
}

impl<'a> Bulk<'a> {
    fn new(
        shared: &'a Shared,
        bound: HashMap<PackId, u32>,
        given_up: Arc<AtomicBool>,
    ) -> Result<Self, Fault> {
        let directory = shared.place.load();
        std::fs::create_dir_all(&directory)?;
        Ok(Self {
            sorter: Sorter::new(directory.clone(), shared.memory / 2),
            shared,
            bound,
            given_up,
            directory,
            records: Vec::new(),
        })
    }

    fn run(mut self, mut from: mpsc::Receiver<Located>) -> Result<(), Fault> {
        let mut trailers = self.shared.db.batch();
        while let Some((pack, trailer)) = from.blocking_recv() {
            let number = match self.bound.get(&pack.id) {
                Some(number) => *number,
                None => self.shared.new_number()?,
            };
            let kept = self.shared.trailers.take(pack.trailer_len.into());
            if kept {
                trailers.trailer(&number_key(number), &trailer.encode());
                if trailers.len() > TRAILER_BATCH {
                    std::mem::replace(&mut trailers, self.shared.db.batch()).write()?;
                }
            }
            let record = Record {
                pack,
                kind: trailer.kind,
                complete: false,
                kept,
            };
            self.records.push((number, record));
            if trailer.kind == PackKind::Data {
                let seal = PackSeal::of(&self.shared.repository, &pack);
                for (info, slot) in trailer.slots().iter().zip(0..) {
                    self.sorter
                        .push(Row::new(key(&info.id), seal.entry(&info.id, number, slot)))?;
                }
            }
        }
        trailers.write()?;
        self.bind(false)?;
        let sorter = std::mem::replace(&mut self.sorter, Sorter::new(PathBuf::new(), 0));
        let tables = self.write_tables(sorter)?;
        if !tables.is_empty() {
            self.shared.db.ingest(tables)?;
        }
        self.bind(true)?;
        let mut packs = self.shared.packs();
        for (number, record) in self.records {
            let pack = record.pack;
            if record.kept {
                packs.keep(&pack.id, number);
            }
            if record.kind == PackKind::Data {
                let seal = PackSeal::of(&self.shared.repository, &pack);
                packs.allow(number, Usable { pack, seal });
            }
        }
        Ok(())
    }

    /// Makes the records durable.
    fn bind(&self, complete: bool) -> Result<(), Fault> {
        let mut batch = self.shared.db.batch();
        for (number, record) in &self.records {
            let record = Record { complete, ..*record };
            batch.record(&number_key(*number), &record.encode());
        }
        batch.write()?;
        self.shared.db.flush()
    }

    /// Writes sorted rows into tables.
    fn write_tables(&self, sorter: Sorter) -> Result<Vec<PathBuf>, Fault> {
        // Asking for the size costs a call into C++.
        const LOOK_EVERY: u32 = 1024;
        let options = self.shared.db.table_options();
        let mut tables = Vec::new();
        let mut open: Option<SstFileWriter<'_>> = None;
        let mut rows = 0u32;
        sorter.finish(|row| {
            let table = match &mut open {
                Some(table) => table,
                None => {
                    let path = self.directory.join(format!("table-{}", tables.len()));
                    let table = SstFileWriter::create(options);
                    table.open(&path)?;
                    tables.push(path);
                    open.insert(table)
                }
            };
            table.put(row.key(), row.entry().encode())?;
            rows = rows.wrapping_add(1);
            if rows.is_multiple_of(LOOK_EVERY) {
                if self.given_up.load(Ordering::Relaxed) {
                    return Err(Fault::Environment("the backup was given up".into()));
                }
                if table.file_size() >= TABLE_LEN {
                    table.finish()?;
                    open = None;
                }
            }
            Ok(())
        })?;
        if let Some(mut table) = open {
            table.finish()?;
        }
        Ok(tables)
    }
}
