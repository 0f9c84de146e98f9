//! A storage that fails, delays, or succeeds and reports failure, at every call of a backup: what the session says
//! of the commit is what stands at the commit key (GC.md rule 5).
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use pbmfs_repo::key::{ObjectKey, prefix};
use pbmfs_repo::objects::{Committed, SnapshotDoc};
use pbmfs_repo::storage::{Fault, FaultyStorage, MemoryStorage, Op, Storage, StorageError};
use pbmfs_repo::{RepoError, Repository};

/// One call of a backup, whenever it comes: threads put calls in another order each time.
type Call = (Op, &'static str, u32);

/// Which call goes wrong, and how.
#[derive(Debug, Clone, Copy)]
struct Plan {
    call: Call,
    fault: Fault,
    /// Every later call of any kind fails, too.
    for_ever: bool,
}

fn class(key: &str) -> &'static str {
    let classes = [
        prefix::PACKS,
        prefix::SNAPSHOTS,
        prefix::DELETED,
        prefix::RELOCATIONS,
        prefix::LEASES,
        prefix::BEATS,
        prefix::CONDEMNED,
    ];
    classes
        .into_iter()
        .find(|c| key.starts_with(c))
        .unwrap_or("other")
}

/// Counts calls, notes what was put once, and carries out a plan.
#[derive(Default)]
struct Log {
    counts: BTreeMap<(&'static str, String), u32>,
    packs: HashSet<String>,
    twice: Vec<String>,
    broken: bool,
    hit: bool,
}

fn op_name(op: Op) -> String {
    format!("{op:?}")
}

fn faulty(inner: Arc<dyn Storage>, plan: Option<Plan>) -> (Arc<dyn Storage>, Arc<Mutex<Log>>) {
    let log = Arc::new(Mutex::new(Log::default()));
    let seen = log.clone();
    let decide = move |_: u64, op: Op, key: &str| {
        let mut log = seen.lock().unwrap();
        let class = class(key);
        let n = log.counts.entry((class, op_name(op))).or_default();
        *n += 1;
        let call = (op, class, *n - 1);
        if op == Op::PutOnce && !log.packs.insert(key.to_owned()) {
            log.twice.push(key.to_owned());
        }
        match plan {
            Some(plan) if log.broken || plan.call == call => {
                log.hit = true;
                log.broken = plan.for_ever;
                plan.fault
            }
            _ => Fault::None,
        }
    };
    (Arc::new(FaultyStorage::new(inner, Box::new(decide))), log)
}

const CHANGES: [Fault; 6] = [
    Fault::Fail,
    Fault::FailUnknown,
    Fault::DoneButUnknown,
    Fault::DoneButFailed,
    Fault::NoSpace,
    Fault::Delay(Duration::from_millis(5)),
];
const READS: [Fault; 3] = [
    Fault::Fail,
    Fault::FlipBit,
    Fault::Delay(Duration::from_millis(5)),
];

fn changes(op: Op) -> bool {
    matches!(op, Op::PutIfAbsent | Op::PutOnce | Op::Put | Op::Delete)
}

/// Every plan for the calls that a log counted.
fn plans(log: &Log) -> Vec<Plan> {
    let ops = [
        Op::Get,
        Op::GetRange,
        Op::PutIfAbsent,
        Op::PutOnce,
        Op::Put,
        Op::List,
        Op::Delete,
        Op::Head,
    ];
    let by_name: HashMap<String, Op> = ops.into_iter().map(|op| (op_name(op), op)).collect();
    let mut out = Vec::new();
    for ((class, name), count) in &log.counts {
        let op = by_name[name];
        let faults: &[Fault] = if changes(op) { &CHANGES } else { &READS };
        // A read backup does the same thing hundreds of times: the first, the last and some between stand for all.
        for n in (0..*count).filter(|n| *n < 4 || *n + 3 > *count || full() || n % 9 == 0) {
            for &fault in faults {
                for for_ever in [false, true] {
                    if !for_ever || !matches!(fault, Fault::Delay(_) | Fault::FlipBit) {
                        out.push(Plan {
                            call: (op, class, n),
                            fault,
                            for_ever,
                        });
                    }
                }
            }
        }
    }
    out
}

fn base_files() -> Files {
    let mut dice = Dice(4);
    let mut files = Files::default();
    files.0.insert("db".into(), None);
    files.0.insert("db/a.wt".into(), Some(dice.bytes(900_000)));
    files.0.insert("db/b.wt".into(), Some(dice.bytes(1_400_001)));
    files.0.insert("empty".into(), Some(Vec::new()));
    files
        .0
        .insert("scattered.1k".into(), Some(scattered_bytes(&mut dice, 150)));
    for i in 0..30 {
        let n = dice.below(5000) as usize;
        files.0.insert(format!("small-{i}"), Some(dice.bytes(n)));
    }
    files
}

fn changed_files() -> Files {
    let mut files = base_files();
    if let Some(Some(bytes)) = files.0.get_mut("db/b.wt") {
        bytes[70_000..200_000].fill(9);
        bytes.truncate(1_300_000);
        bytes.extend(Dice(77).bytes(1_000_000));
    }
    files.0.remove("small-3");
    files.0.insert("zz".into(), Some(Dice(5).bytes(100_000)));
    if let Some(Some(bytes)) = files.0.get_mut("scattered.1k") {
        bytes[100_000..101_000].fill(1);
        bytes.truncate(130_000);
    }
    files
}

async fn copy_of(storage: &MemoryStorage) -> Arc<MemoryStorage> {
    let copy = Arc::new(MemoryStorage::default());
    for (key, object) in storage.snapshot() {
        copy.put(&ObjectKey::parse(&key).unwrap(), object).await.unwrap();
    }
    copy
}

/// What stands at the commit keys beside the parent's.
async fn standing(repo: &Repository, parent: Option<&SnapshotDoc>) -> Vec<(String, Committed)> {
    let mut out = Vec::new();
    for listed in pbmfs_repo::storage::list_all(&**repo.storage(), prefix::SNAPSHOTS)
        .await
        .unwrap()
    {
        let name = listed.key.snapshot_name().unwrap();
        if parent.is_none_or(|p| p.name != name) {
            out.push((name.to_string(), repo.committed(&name).await.unwrap().unwrap()));
        }
    }
    out
}

/// Runs one backup under a plan and checks what became of it.
async fn one(base: &MemoryStorage, files: &Files, parent: Option<&SnapshotDoc>, plan: Plan) {
    let memory = copy_of(base).await;
    let (storage, log) = faulty(memory.clone(), Some(plan));
    let healthy = Repository::open(memory.clone(), 1 << 20).await.unwrap();
    let result = match Repository::open(storage, 1 << 20).await {
        Ok(repo) => backup(&repo, files, parent).await,
        Err(e) => Err(e),
    };
    let (twice, hit) = {
        let log = log.lock().unwrap();
        (log.twice.clone(), log.hit)
    };
    assert!(twice.is_empty(), "{plan:?}: put twice: {twice:?}");
    let standing = standing(&healthy, parent).await;
    assert!(standing.len() <= 1, "{plan:?}: {standing:?}");
    let committed = match standing.first() {
        Some((_, Committed::Snapshot(doc))) => Some(doc),
        _ => None,
    };
    match (&result, committed) {
        (Ok(doc), Some(found)) => {
            assert_eq!(doc, &**found, "{plan:?}");
            assert_same(&healthy, doc, files).await;
        }
        (Err(RepoError::CommitUnknown { name, .. }), found) => {
            assert!(plan.for_ever && changes(plan.call.0), "{plan:?}: {result:?}");
            if let Some(found) = found {
                assert_eq!(*name, found.name);
                assert_same(&healthy, found, files).await;
            }
        }
        (Err(e), None) => {
            assert!(
                !matches!(e, RepoError::CommitLost { .. } | RepoError::Poisoned(_)),
                "{plan:?}: {e}"
            );
        }
        other => panic!("{plan:?}: {other:?}"),
    }
    if matches!(plan.fault, Fault::Delay(_)) {
        assert!(result.is_ok(), "{plan:?}: {result:?}");
    }
    // What is in the way of nobody but gc: a lease of somebody who could not remove it.
    let leases = leases(&memory);
    if !(plan.for_ever || matches!(plan.call, (Op::Delete, prefix::LEASES, _))) {
        assert_eq!(leases, 0, "{plan:?}: {result:?} left a lease behind");
    }
    if !hit {
        assert!(result.is_ok(), "{plan:?} was never reached, but {result:?}");
    }
    // The storage healed: the next backup works, whatever the parent.
    let again = Repository::open(memory.clone(), 1 << 20).await.unwrap();
    let doc = backup(&again, files, parent)
        .await
        .unwrap_or_else(|e| panic!("{plan:?}: {e}"));
    assert_same(&again, &doc, files).await;
    if let Some(found) = committed {
        let doc = backup(&again, files, Some(found))
            .await
            .unwrap_or_else(|e| panic!("{plan:?}: {e}"));
        assert_same(&again, &doc, files).await;
    }
}

fn leases(memory: &MemoryStorage) -> usize {
    memory
        .snapshot()
        .keys()
        .filter(|k| k.starts_with(prefix::LEASES))
        .count()
}

async fn all_plans(base: Arc<MemoryStorage>, files: Files, parent: Option<SnapshotDoc>) {
    // A run without faults tells which calls there are.
    let (storage, log) = faulty(copy_of(&base).await, None);
    let repo = Repository::open(storage, 1 << 20).await.unwrap();
    backup(&repo, &files, parent.as_ref()).await.unwrap();
    let plans = plans(&log.lock().unwrap());
    let total: u32 = log.lock().unwrap().counts.values().sum();
    assert!(
        total > 10 && plans.len() > 60,
        "{total} calls, {} plans",
        plans.len()
    );
    let (files, parent) = (Arc::new(files), Arc::new(parent));
    let mut tasks = tokio::task::JoinSet::new();
    let gate = Arc::new(tokio::sync::Semaphore::new(8));
    for plan in plans {
        let (base, files, parent, gate) = (base.clone(), files.clone(), parent.clone(), gate.clone());
        tasks.spawn(async move {
            let _permit = gate.acquire().await.unwrap();
            one(&base, &files, (*parent).as_ref(), plan).await;
        });
    }
    let mut failed = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        if let Err(e) = joined {
            failed.push(e.to_string());
        }
    }
    assert!(
        failed.is_empty(),
        "{} plans failed; the first: {}",
        failed.len(),
        failed[0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_any_call_of_a_first_backup() {
    let base = Arc::new(MemoryStorage::default());
    new_repo(base.clone()).await;
    all_plans(base, base_files(), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_any_call_of_a_backup_with_a_parent() {
    let base = Arc::new(MemoryStorage::default());
    let repo = new_repo(base.clone()).await;
    let parent = backup(&repo, &base_files(), None).await.unwrap();
    all_plans(base, changed_files(), Some(parent)).await;
}

/// Many faults in one backup, most of them around the commit.
#[tokio::test(flavor = "multi_thread")]
async fn random_faults_all_along() {
    let base = Arc::new(MemoryStorage::default());
    let repo = new_repo(base.clone()).await;
    let parent = backup(&repo, &base_files(), None).await.unwrap();
    let files = changed_files();
    let seeds = if full() { 5000 } else { 150 };
    let mut outcomes = BTreeMap::<&str, u32>::new();
    for seed in 0..seeds {
        let memory = copy_of(&base).await;
        let storage = FaultyStorage::new(
            memory.clone(),
            Box::new(move |n, op, key| {
                let mut dice = Dice(seed << 20 ^ n);
                let one_in = match class(key) {
                    prefix::SNAPSHOTS => 2,
                    prefix::LEASES => 20,
                    _ => 400,
                };
                match (dice.below(one_in), changes(op)) {
                    (0, true) => CHANGES[dice.below(6) as usize],
                    (0, false) => READS[dice.below(3) as usize],
                    _ => Fault::None,
                }
            }),
        );
        let result = match Repository::open(Arc::new(storage), 1 << 20).await {
            Ok(repo) => backup(&repo, &files, Some(&parent)).await,
            Err(e) => Err(e),
        };
        let healthy = Repository::open(memory.clone(), 1 << 20).await.unwrap();
        let standing = standing(&healthy, Some(&parent)).await;
        let outcome = match (&result, standing.first()) {
            (Ok(doc), Some((_, Committed::Snapshot(found)))) => {
                assert_eq!(doc, &**found, "seed {seed}");
                assert_same(&healthy, doc, &files).await;
                "committed"
            }
            (Err(RepoError::CommitUnknown { .. }), _) => "unknown",
            (Err(RepoError::CommitLost { .. }), found) => panic!("seed {seed}: {result:?}, {found:?}"),
            (Err(_), None | Some((_, Committed::Tombstone(_)))) => "failed",
            other => panic!("seed {seed}: {other:?}"),
        };
        *outcomes.entry(outcome).or_default() += 1;
        let doc = backup(&healthy, &files, Some(&parent)).await.unwrap();
        assert_same(&healthy, &doc, &files).await;
    }
    assert!(
        outcomes["committed"] > 10 && outcomes["failed"] > 10,
        "{outcomes:?}"
    );
}

/// A storage that is full from some call on still reads and deletes: the error names the reason, at whichever call.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_storage_is_told_as_such() {
    for room in 0..8 {
        let memory = Arc::new(MemoryStorage::default());
        new_repo(memory.clone()).await;
        let left = Mutex::new(room);
        let storage = FaultyStorage::new(
            memory.clone(),
            Box::new(move |_, op, _| {
                let puts = matches!(op, Op::PutIfAbsent | Op::PutOnce | Op::Put);
                let mut left = left.lock().unwrap();
                match (puts, *left) {
                    (true, 0) => Fault::NoSpace,
                    (true, _) => {
                        *left -= 1;
                        Fault::None
                    }
                    _ => Fault::None,
                }
            }),
        );
        let repo = Repository::open(Arc::new(storage), 1 << 20).await.unwrap();
        match backup(&repo, &base_files(), None).await {
            Ok(doc) => assert_same(&repo, &doc, &base_files()).await,
            Err(e) => assert!(
                matches!(e, RepoError::Storage(StorageError::NoSpace { .. })),
                "with room for {room} objects: {e}"
            ),
        }
    }
}
