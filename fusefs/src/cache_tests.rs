use super::*;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    Abandoned,
    Broken(usize),
}

impl From<Abandoned> for Failure {
    fn from(_: Abandoned) -> Self {
        Self::Abandoned
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key(u32);

impl Adjacent for Key {
    fn follows(&self, before: &Self) -> bool {
        self.0 == before.0 + 1
    }
}

type TestCache = BlockCache<Key, Failure>;

fn cache(budget: u64) -> TestCache {
    BlockCache::new(budget, Handle::current())
}

fn keys(range: impl IntoIterator<Item = u32>, len: u64) -> Vec<(Key, u64)> {
    range.into_iter().map(|n| (Key(n), len)).collect()
}

fn block(key: Key, len: usize) -> Bytes {
    vec![key.0 as u8; len].into()
}

/// Loads blocks of `len` bytes after a while, and notes each run.
fn loader(
    runs: &Arc<Mutex<Vec<Vec<u32>>>>,
    len: usize,
) -> impl Fn(Vec<Key>) -> futures::future::BoxFuture<'static, Vec<Outcome<Failure>>> + use<> {
    let runs = runs.clone();
    move |run| {
        runs.lock().unwrap().push(run.iter().map(|k| k.0).collect());
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            run.into_iter().map(|k| Ok(block(k, len))).collect()
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_block_is_loaded_once_for_many_readers() {
    let cache = cache(64 << 20);
    let loads = Arc::new(AtomicUsize::new(0));
    let readers = (0..200).map(|n| {
        let (cache, loads) = (cache.clone(), loads.clone());
        tokio::spawn(async move {
            // Different, overlapping ranges.
            let wanted = keys(n % 7..n % 7 + 20, 1000);
            let request = cache.request(&wanted, |run| {
                loads.fetch_add(run.len(), Ordering::Relaxed);
                async move {
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    run.into_iter().map(|k| Ok(block(k, 1000))).collect()
                }
            });
            for (got, (key, _)) in request.all().await.into_iter().zip(wanted) {
                assert_eq!(got.unwrap(), block(key, 1000));
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    assert_eq!(loads.load(Ordering::Relaxed), 26);
}

#[tokio::test]
async fn neighbours_that_are_missing_become_one_load_each_run() {
    let cache = cache(64 << 20);
    let runs = Arc::default();
    cache.request(&keys([5, 6], 10), loader(&runs, 10)).all().await;
    cache
        .request(&keys([3, 4, 5, 6, 7, 8, 20, 21, 3], 10), loader(&runs, 10))
        .all()
        .await;
    assert_eq!(
        *runs.lock().unwrap(),
        [vec![5, 6], vec![3, 4], vec![7, 8], vec![20, 21]]
    );
    assert!(cache.holds_all(&keys(3..9, 10)));
}

#[tokio::test]
async fn a_run_is_cut_at_the_size_of_a_flight() {
    let cache = cache(64 << 20);
    let runs: Arc<Mutex<Vec<Vec<u32>>>> = Arc::default();
    cache
        .request(&keys(0..10, 1 << 20), loader(&runs, 10))
        .all()
        .await;
    assert_eq!(
        runs.lock().unwrap().iter().map(Vec::len).collect::<Vec<_>>(),
        [4, 4, 2]
    );
}

#[tokio::test]
async fn a_failure_reaches_every_waiter_spares_its_neighbours_and_is_not_remembered() {
    let cache = cache(64 << 20);
    let tries = Arc::new(AtomicUsize::new(0));
    let load = |run: Vec<Key>| {
        let attempt = tries.fetch_add(1, Ordering::Relaxed);
        async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let one = |k: Key| {
                if k.0 == 1 && attempt == 0 {
                    Err(Failure::Broken(attempt))
                } else {
                    Ok(block(k, 5))
                }
            };
            run.into_iter().map(one).collect()
        }
    };
    let wanted = keys(0..3, 5);
    let (a, b) = (cache.request(&wanted, load), cache.request(&wanted, load));
    for outcomes in [a.all().await, b.all().await] {
        assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
        assert_eq!(outcomes[1], Err(Failure::Broken(0)));
    }
    let again = cache.request(&wanted, load).all().await;
    assert!(again.iter().all(Result::is_ok));
    assert_eq!(tries.load(Ordering::Relaxed), 2);
    assert_eq!(cache.stats().misses, 4);
}

#[tokio::test]
async fn a_load_that_panics_or_lies_wedges_nobody() {
    let cache = cache(64 << 20);
    let wanted = keys(0..3, 5);
    let panics = cache.request(&wanted, |_| async { panic!("on purpose") });
    let waits = cache.request(&wanted, |_| async { unreachable!("joins the first") });
    assert_eq!(panics.all().await[0], Err(Failure::Abandoned));
    assert_eq!(waits.all().await[2], Err(Failure::Abandoned));
    let short = cache.request(&wanted, |_| async { vec![Ok(Bytes::from_static(b"only one"))] });
    assert_eq!(short.all().await, vec![Err(Failure::Abandoned); 3]);
    let good = cache.request(&wanted, loader(&Arc::default(), 5)).all().await;
    assert!(good.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_reader_that_goes_away_cancels_nothing() {
    let cache = cache(64 << 20);
    let runs = Arc::default();
    drop(cache.request(&keys(0..3, 5), loader(&runs, 5)));
    let other = cache.request(&keys(1..2, 5), loader(&runs, 5)).all().await;
    assert!(other[0].is_ok());
    assert_eq!(runs.lock().unwrap().len(), 1);
}

#[test]
fn a_runtime_that_ends_under_a_load_wedges_nobody() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cache: TestCache = BlockCache::new(64 << 20, runtime.handle().clone());
    let request = cache.request(&keys(0..3, 5), |_| std::future::pending());
    runtime.shutdown_background();
    let outcomes = futures::executor::block_on(request.all());
    assert_eq!(outcomes, vec![Err(Failure::Abandoned); 3]);
}

#[tokio::test]
async fn the_budget_holds() {
    const BUDGET: u64 = 16 << 20;
    let cache = cache(BUDGET);
    for n in 0..200 {
        // 1,000,000 bytes: near the largest block.
        let got = cache
            .request(&keys([n], 1_000_000), |run| async {
                run.into_iter().map(|k| Ok(block(k, 1_000_000))).collect()
            })
            .all()
            .await;
        assert_eq!(got[0].as_ref().unwrap().len(), 1_000_000);
        assert!(
            cache.stats().weight <= BUDGET,
            "{} bytes at block {n}",
            cache.stats().weight
        );
    }
    assert!(cache.stats().weight > BUDGET / 2);
}

#[tokio::test]
async fn a_slice_of_a_large_buffer_does_not_stay_in_the_cache() {
    let cache = cache(16 << 20);
    let large = Bytes::from(vec![7; 4 << 20]);
    let slice = large.slice(..1000);
    cache
        .request(&keys([1], 1000), move |_| {
            std::future::ready(vec![Ok(slice.clone())])
        })
        .all()
        .await;
    assert!(large.is_unique());
}

#[tokio::test]
async fn blocks_fetched_ahead_stay_until_they_are_read_though_the_cache_is_full_of_favourites() {
    const BUDGET: u64 = 64 << 20;
    const LEN: usize = 32 << 10;
    let cache = cache(BUDGET);
    let load = |run: Vec<Key>| async { run.into_iter().map(|k| Ok(block(k, LEN))).collect() };
    for _ in 0..5 {
        cache.request(&keys(0..2200, LEN as u64), load).all().await;
    }
    // A whole window: an eighth of the budget.
    let window = keys(
        1_000_000..1_000_000 + (BUDGET / 8) as u32 / LEN as u32,
        LEN as u64,
    );
    cache.request(&window, load).all().await;
    let there = window
        .iter()
        .filter(|key| cache.holds_all(std::slice::from_ref(key)))
        .count();
    assert!(there * 100 >= window.len() * 99, "{there} of {}", window.len());
}
