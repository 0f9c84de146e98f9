//! Blocks in memory, within a byte budget, loaded once however many readers want them.
//!
//! **Groups.** Readers ask for many neighbouring blocks at a time, and storage answers a run of neighbours with one
//! request. So the unit of loading is a *flight*: a run of adjacent keys that nobody has and nobody is fetching.
//! A request is split into what is cached, what is in somebody's flight already, and new flights of its own.
//!
//! **Who loads.** A flight is a task of the runtime, not of the reader that started it: a reader that goes away
//! cancels nothing, and others that wait on the same flight still get their bytes. A flight that panics or is
//! dropped clears its keys and every waiter gets [`Abandoned`]; a failed load is not remembered, the next reader
//! tries again.
//!
//! **Budget.** quick_cache evicts by weight. A block weighs its bytes plus the bookkeeping around it. Waiters hold
//! the flight's result itself, so a block that was evicted at once (or never admitted) still reaches them.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Keys that can be loaded together when they are neighbours.
pub trait Adjacent {
    /// Whether one request can fetch `before` and then this.
    fn follows(&self, before: &Self) -> bool;
}

/// The load panicked, was dropped, or gave another number of blocks than it was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Abandoned;

/// Most blocks that one flight asks for, in bytes: large enough that a request's round trip does not matter,
/// small enough that a reader waiting for the first block does not wait for a whole pack, and that several flights
/// of one read-ahead window decode on several cores.
pub const MAX_FLIGHT_BYTES: u64 = 4 << 20;

/// Bookkeeping around a cached block: key, `Bytes`, hash slot, allocation header (an estimate, rounded up).
const ENTRY_OVERHEAD: u64 = 128;

/// Share of the budget for blocks that were asked for more than once. quick_cache's default of 97 % would leave so
/// little room for newcomers that blocks fetched ahead were thrown out before they are read for the first time.
const HOT_SHARE: f64 = 0.5;

/// No shard may be smaller than this, so that the largest block (1 MiB) finds room beside others.
const MIN_SHARD: u64 = 8 << 20;

type Outcome<E> = Result<Bytes, E>;
type Landed<E> = Arc<[Outcome<E>]>;
type Waiting<E> = watch::Receiver<Option<Landed<E>>>;

#[derive(Clone)]
struct Weigh;

impl<K> Weighter<K, Bytes> for Weigh {
    fn weight(&self, _: &K, block: &Bytes) -> u64 {
        block.len() as u64 + ENTRY_OVERHEAD
    }
}

/// What the cache did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct CacheStats {
    /// Blocks found in memory.
    pub hits: u64,
    /// Blocks found in another's flight.
    pub joined: u64,
    /// Blocks that had to be loaded.
    pub misses: u64,
    /// Flights: each is one ranged request.
    pub loads: u64,
    /// Bytes held now, bookkeeping included.
    pub weight: u64,
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    joined: AtomicU64,
    misses: AtomicU64,
    loads: AtomicU64,
}

/// The cache; cheap to clone.
pub struct BlockCache<K, E> {
    inner: Arc<Inner<K, E>>,
}

struct Inner<K, E> {
    ready: Cache<K, Bytes, Weigh>,
    flying: Mutex<HashMap<K, (Waiting<E>, usize)>>,
    runtime: Handle,
    counters: Counters,
}

impl<K, E> Clone for BlockCache<K, E> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<K, E> BlockCache<K, E>
where
    K: Adjacent + Eq + Hash + Clone + Debug + Send + Sync + 'static,
    E: From<Abandoned> + Clone + Send + Sync + 'static,
{
    /// A cache of at most `budget` bytes; flights are tasks of `runtime`.
    #[must_use]
    pub fn new(budget: u64, runtime: Handle) -> Self {
        let budget = budget.max(MIN_SHARD);
        let shards = usize::try_from(budget / MIN_SHARD).unwrap_or(1).clamp(1, 16);
        // Rounded down to a power of two: quick_cache rounds up, which would make the shards too small.
        let shards = 1 << shards.ilog2();
        let options = OptionsBuilder::new()
            .shards(shards)
            .weight_capacity(budget)
            .estimated_items_capacity(usize::try_from(budget / (32 << 10)).unwrap_or(usize::MAX))
            .hot_allocation(HOT_SHARE)
            .build()
            .expect("invariant: both capacities are set");
        let ready = Cache::with_options(
            options,
            Weigh,
            DefaultHashBuilder::default(),
            DefaultLifecycle::default(),
        );
        let inner = Inner {
            ready,
            flying: Mutex::new(HashMap::new()),
            runtime,
            counters: Counters::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Finds or starts to load every key. Loading begins now; the result is waited for with [`Request::all`].
    ///
    /// `keys` come with the plain length of their block, by which runs are cut. `load` is called once for each run
    /// of neighbours that nobody has, and must give one result a key, in order.
    pub fn request<F, L>(&self, keys: &[(K, u64)], load: L) -> Request<E>
    where
        L: Fn(Vec<K>) -> F,
        F: Future<Output = Vec<Outcome<E>>> + Send + 'static,
    {
        let mut slots: Vec<Slot<E>> = Vec::with_capacity(keys.len());
        let mut missing = 0;
        for (key, _) in keys {
            match self.inner.ready.get(key) {
                Some(block) => slots.push(Slot::Here(block)),
                None => {
                    missing += 1;
                    slots.push(Slot::Missing);
                }
            }
        }
        count(&self.inner.counters.hits, keys.len() - missing);
        if missing > 0 {
            for flight in self.board(keys, &mut slots) {
                let run = load(flight.keys.clone());
                self.inner.runtime.spawn(flight.fly(run));
            }
        }
        Request { slots }
    }

    /// Whether all keys are in memory. Does not count as a use.
    #[must_use]
    pub fn holds_all(&self, keys: &[(K, u64)]) -> bool {
        keys.iter().all(|(key, _)| self.inner.ready.contains_key(key))
    }

    /// Counters and weight.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let of = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let c = &self.inner.counters;
        CacheStats {
            hits: of(&c.hits),
            joined: of(&c.joined),
            misses: of(&c.misses),
            loads: of(&c.loads),
            weight: self.inner.ready.weight(),
        }
    }

    /// Fills the missing slots with places on flights, and returns the flights that have yet to start.
    fn board(&self, keys: &[(K, u64)], slots: &mut [Slot<E>]) -> Vec<Flight<K, E>> {
        let mut flights = Vec::new();
        let mut run: Option<(Flight<K, E>, Waiting<E>, u64)> = None;
        let (mut joined, mut misses) = (0, 0);
        let mut flying = lock(&self.inner.flying);
        for ((key, len), slot) in keys.iter().zip(slots) {
            if !matches!(slot, Slot::Missing) {
                continue;
            }
            // A flight may have landed since the first look. It fills the cache before it leaves the table, so
            // with the table locked a key is in one of the two or in neither.
            if let Some(block) = self.inner.ready.peek(key) {
                *slot = Slot::Here(block);
                continue;
            }
            if let Some((waiting, seat)) = flying.get(key) {
                *slot = Slot::Waiting(waiting.clone(), *seat);
                joined += 1;
                continue;
            }
            misses += 1;
            let fits = run.as_ref().is_some_and(|(flight, _, bytes)| {
                bytes + len <= MAX_FLIGHT_BYTES && flight.keys.last().is_some_and(|last| key.follows(last))
            });
            if !fits && let Some((done, ..)) = run.take() {
                flights.push(done);
            }
            let (flight, waiting, bytes) = run.get_or_insert_with(|| {
                let (sender, waiting) = watch::channel(None);
                (
                    Flight {
                        inner: self.inner.clone(),
                        keys: Vec::new(),
                        sender,
                    },
                    waiting,
                    0,
                )
            });
            let seat = flight.keys.len();
            flight.keys.push(key.clone());
            *bytes += len;
            flying.insert(key.clone(), (waiting.clone(), seat));
            *slot = Slot::Waiting(waiting.clone(), seat);
        }
        drop(flying);
        flights.extend(run.map(|(flight, ..)| flight));
        count(&self.inner.counters.joined, joined);
        count(&self.inner.counters.misses, misses);
        count(&self.inner.counters.loads, flights.len());
        flights
    }
}

/// A run of keys on its way. Dropping it, landed or not, takes its keys out of the table; dropping it before it
/// landed closes the channel, which wakes the waiters.
struct Flight<K: Eq + Hash, E> {
    inner: Arc<Inner<K, E>>,
    keys: Vec<K>,
    sender: watch::Sender<Option<Landed<E>>>,
}

impl<K: Eq + Hash + Clone, E: Clone + From<Abandoned>> Flight<K, E> {
    async fn fly(self, load: impl Future<Output = Vec<Outcome<E>>>) {
        let mut outcomes = load.await;
        if outcomes.len() != self.keys.len() {
            tracing::error!(
                asked = self.keys.len(),
                got = outcomes.len(),
                "a load gave the wrong number of blocks"
            );
            return;
        }
        for (key, outcome) in self.keys.iter().zip(&mut outcomes) {
            if let Ok(block) = outcome {
                // A slice of a larger buffer would keep all of it alive, at a weight of its own length only.
                if !block.is_unique() {
                    *block = Bytes::copy_from_slice(block);
                }
                self.inner.ready.insert(key.clone(), block.clone());
            }
        }
        self.sender.send_replace(Some(outcomes.into()));
    }
}

impl<K: Eq + Hash, E> Drop for Flight<K, E> {
    fn drop(&mut self) {
        let mut flying = lock(&self.inner.flying);
        for key in &self.keys {
            flying.remove(key);
        }
    }
}

enum Slot<E> {
    Missing,
    Here(Bytes),
    Waiting(Waiting<E>, usize),
}

/// Blocks that are here or on their way.
pub struct Request<E> {
    slots: Vec<Slot<E>>,
}

impl<E: Clone + From<Abandoned>> Request<E> {
    /// Every block or its error, in the order of the keys. Ready at once when all were cached.
    pub async fn all(self) -> Vec<Outcome<E>> {
        let mut outcomes = Vec::with_capacity(self.slots.len());
        for slot in self.slots {
            outcomes.push(match slot {
                Slot::Here(block) => Ok(block),
                Slot::Missing => Err(Abandoned.into()),
                Slot::Waiting(mut waiting, seat) => match waiting.wait_for(Option::is_some).await {
                    Ok(landed) => landed
                        .as_ref()
                        .and_then(|l| l.get(seat))
                        .cloned()
                        .unwrap_or_else(|| Err(Abandoned.into())),
                    Err(_) => Err(Abandoned.into()),
                },
            });
        }
        outcomes
    }
}

fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

/// The table holds no invariant that a panic could break half-way, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
