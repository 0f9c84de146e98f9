//! Writers against each other, against somebody who takes them for dead, and readers against deletion (GC.md rules
//! 5 to 8).
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use pbmfs_repo::id::SnapshotName;
use pbmfs_repo::key::{ObjectKey, prefix};
use pbmfs_repo::objects::{Committed, JsonObject, LeaseDoc, SnapshotDoc, TombstoneDoc};
use pbmfs_repo::pack::Trailer;
use pbmfs_repo::relocation::Relocation;
use pbmfs_repo::storage::{Fault, FaultyStorage, MemoryStorage, Storage};
use pbmfs_repo::{Listing, RepoError, Repository, Session, SnapshotReader};

fn small_files(seed: u64) -> Files {
    let mut dice = Dice(seed);
    let mut files = Files::default();
    files.0.insert("a".into(), Some(dice.bytes(400_000)));
    files.0.insert("b".into(), Some(dice.bytes(1_500_000)));
    files.0.insert("c".into(), None);
    files
}

fn tombstone(key: &ObjectKey, why: &str) -> Bytes {
    let doc = TombstoneDoc {
        why: why.into(),
        lease: None,
        at: jiff::Timestamp::UNIX_EPOCH,
    };
    doc.to_object(key)
}

fn empty_doc(session: &Session) -> SnapshotDoc {
    SnapshotDoc {
        name: session.name().clone(),
        lease: session.lease(),
        cluster: pbmfs_repo::objects::ClusterRef {
            name: "test".into(),
            id: None,
        },
        backup_type: "physical".into(),
        tool: "test".into(),
        started: jiff::Timestamp::UNIX_EPOCH,
        finished: jiff::Timestamp::UNIX_EPOCH,
        stats: pbmfs_repo::objects::SnapshotStats::default(),
        replsets: Vec::new(),
    }
}

/// Writers that begin in the same second take names of their own, and none loses its commit to another.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_at_once_never_share_a_name() {
    let rounds = if full() { 500 } else { 40 };
    for round in 0..rounds {
        let memory = Arc::new(MemoryStorage::with_page(3));
        new_repo(memory.clone()).await;
        // Calls that all take as long keep the writers in step.
        let step = Duration::from_millis(1);
        let plan = move |_: u64, _, _: &str| {
            if round % 2 == 0 {
                Fault::Delay(step)
            } else {
                Fault::None
            }
        };
        let storage = Arc::new(FaultyStorage::new(memory.clone(), Box::new(plan)));
        let repo = Repository::open(storage, 1 << 20).await.unwrap();
        let writers = [2, 3, 2, 8, 16][round % 5];
        let start = Arc::new(tokio::sync::Barrier::new(writers));
        let tasks: Vec<_> = (0..writers)
            .map(|_| {
                let (repo, start) = (repo.clone(), start.clone());
                tokio::spawn(async move {
                    start.wait().await;
                    let session = Session::begin(&repo, "race", jiff::Timestamp::UNIX_EPOCH).await?;
                    let doc = empty_doc(&session);
                    session.commit(&doc).await.map(|()| doc)
                })
            })
            .collect();
        let mut names = HashSet::new();
        for task in tasks {
            let doc = task
                .await
                .unwrap()
                .unwrap_or_else(|e| panic!("round {round}, {writers} writers: {e}"));
            assert!(names.insert(doc.name.clone()), "{} was given twice", doc.name);
            assert_eq!(repo.snapshot(&doc.name).await.unwrap(), doc);
        }
        assert_eq!(repo.snapshots().await.unwrap().len(), writers);
        let left: Vec<_> = memory
            .snapshot()
            .into_keys()
            .filter(|k| k.starts_with("leases"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A writer whose second is taken steps ahead, so a later backup can have an earlier name. It is the latest all the
/// same.
#[tokio::test]
async fn the_latest_is_the_one_that_began_last() {
    let repo = new_repo(Arc::new(MemoryStorage::default())).await;
    let commit = |asked: i64, began: i64| {
        let repo = repo.clone();
        async move {
            let asked = jiff::Timestamp::from_second(asked).unwrap();
            let session = Session::begin(&repo, "test", asked).await.unwrap();
            let mut doc = empty_doc(&session);
            doc.started = jiff::Timestamp::from_second(began).unwrap();
            session.commit(&doc).await.unwrap();
            doc.name
        }
    };
    let long_ago = commit(500, 500).await;
    let stepped = commit(1_030, 1_000).await;
    let last = commit(1_010, 1_010).await;
    let first = commit(1_005, 1_005).await;
    assert!(last < stepped);
    assert_eq!(repo.resolve("latest").await.unwrap().name, last);
    assert_eq!(repo.newest(|_| true).await.unwrap().unwrap().name, last);
    let not_last = repo.newest(|doc| doc.name != last).await.unwrap().unwrap();
    assert_eq!(not_last.name, first);
    let listed = repo.snapshots().await.unwrap();
    let names: Vec<_> = listed
        .into_iter()
        .map(|listing| match listing {
            Listing::Snapshot(doc) => doc.name,
            Listing::Unreadable(name, why) => panic!("{name}: {why}"),
        })
        .collect();
    assert_eq!(names, [long_ago, stepped, first, last]);
}

/// Even if two writers came to the same name, one commits and the other knows that it lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_commits_at_one_key_one_wins() {
    for round in 0..50 {
        let memory = Arc::new(MemoryStorage::default());
        let repo = new_repo(memory.clone()).await;
        let first = Session::begin(&repo, "first", jiff::Timestamp::UNIX_EPOCH)
            .await
            .unwrap();
        // Its lease is hidden while the second begins, as a fencer who forgot the tombstone would do.
        let key = ObjectKey::lease(&first.lease());
        let object = memory.get(&key).await.unwrap();
        memory.tamper(&key, None);
        let second = Session::begin(&repo, "second", jiff::Timestamp::UNIX_EPOCH)
            .await
            .unwrap();
        memory.tamper(&key, Some(object));
        assert_eq!(first.name(), second.name());
        let docs = [empty_doc(&first), empty_doc(&second)];
        let name = docs[0].name.clone();
        let (a, b) = (docs[0].clone(), docs[1].clone());
        let tasks = [
            tokio::spawn(async move { first.commit(&a).await }),
            tokio::spawn(async move { second.commit(&b).await }),
        ];
        let mut won = Vec::new();
        for (task, doc) in tasks.into_iter().zip(&docs) {
            match task.await.unwrap() {
                Ok(()) => won.push(doc),
                Err(e) => assert!(matches!(e, RepoError::CommitLost { .. }), "round {round}: {e}"),
            }
        }
        assert_eq!(won.len(), 1, "round {round}");
        assert_eq!(repo.snapshot(&name).await.unwrap(), *won[0]);
    }
}

/// What rule 6 tells a fencer to do, to every writer there is.
fn fence_all(memory: &MemoryStorage) {
    for (key, object) in memory.snapshot() {
        if !key.starts_with(prefix::LEASES) {
            continue;
        }
        let key = ObjectKey::parse(&key).unwrap();
        let lease = LeaseDoc::from_object(&key, &object).unwrap();
        let commit = ObjectKey::parse(&lease.commit_key).unwrap();
        if !memory.snapshot().contains_key(commit.as_str()) {
            memory.tamper(&commit, Some(tombstone(&commit, "fenced")));
        }
        memory.tamper(&key, None);
    }
}

/// A storage on which `act` happens right before the call with a number.
fn acting(
    memory: &Arc<MemoryStorage>,
    at: u64,
    act: impl Fn(&MemoryStorage) + Send + Sync + 'static,
) -> Arc<FaultyStorage> {
    let seen = memory.clone();
    let plan = move |n: u64, _, _: &str| {
        if n == at {
            act(&seen);
        }
        Fault::None
    };
    Arc::new(FaultyStorage::new(memory.clone(), Box::new(plan)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_fenced_at_any_call_knows_it() {
    let files = small_files(3);
    let (mut lost, mut committed) = (0, 0);
    for at in 0.. {
        let memory = Arc::new(MemoryStorage::default());
        new_repo(memory.clone()).await;
        let storage = acting(&memory, at, fence_all);
        let repo = Repository::open(storage.clone(), 1 << 20).await.unwrap();
        let result = backup(&repo, &files, None).await;
        let names = memory
            .snapshot()
            .into_keys()
            .filter_map(|k| ObjectKey::parse(&k)?.snapshot_name());
        let mut standing = Vec::new();
        for name in names {
            standing.push((repo.committed(&name).await.unwrap().unwrap(), name));
        }
        match result {
            Ok(doc) => {
                committed += 1;
                assert_same(&repo, &doc, &files).await;
                // Fenced right behind its lease it takes the next name.
                assert!(standing.len() <= 2, "fenced at call {at}: {standing:?}");
            }
            Err(RepoError::CommitLost { by, .. }) => {
                lost += 1;
                assert_eq!(by, "a tombstone (fenced)");
                assert_eq!(standing.len(), 1, "fenced at call {at}");
                assert!(matches!(&standing[0].0, Committed::Tombstone(t) if t.why == "fenced"));
            }
            Err(e) => panic!("fenced at call {at}: {e}"),
        }
        let leases = memory
            .snapshot()
            .into_keys()
            .filter(|k| k.starts_with("leases"))
            .count();
        assert_eq!(leases, 0, "fenced at call {at}");
        if at > storage.calls() {
            break;
        }
    }
    assert!(lost > 5 && committed > 3, "lost {lost}, committed {committed}");
}

/// What deletion and a gc leave of a snapshot whose packs nobody else needs.
fn delete_and_collect(memory: &MemoryStorage, name: &SnapshotName, relocate: bool) {
    let key = ObjectKey::snapshot(name);
    memory.tamper(&key, Some(tombstone(&key, "deleted")));
    for (key, object) in memory.snapshot() {
        if !key.starts_with(prefix::PACKS) {
            continue;
        }
        if relocate {
            // As if each pack had held something that lived elsewhere: the relocation tells of no slot of ours.
            let footer = object.len() - 16;
            let len = u32::from_le_bytes(object[footer..footer + 4].try_into().unwrap()) as usize;
            let trailer = Trailer::decode(&object[footer - len..footer]).unwrap();
            let targets = vec![None; trailer.slots().len()];
            let (key, object) = Relocation {
                trailer,
                packs: Vec::new(),
                targets,
            }
            .encode();
            memory.tamper(&key, Some(object));
        }
        memory.tamper(&ObjectKey::parse(&key).unwrap(), None);
    }
}

async fn read_all(repo: &Repository, name: &SnapshotName, files: &Files) -> Result<(), RepoError> {
    let reader = SnapshotReader::open(repo, repo.snapshot(name).await?).await?;
    let rs = &reader.replsets()[0];
    for i in 0..rs.files().len() {
        let entry = rs.explain(rs.files().get(i).await).await?.unwrap();
        let bytes = rs.read(&entry, 0, u64::MAX).await?;
        assert_eq!(
            Some(bytes),
            files.0[&entry.meta.path].clone().or(Some(Vec::new()))
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_is_told_that_its_snapshot_was_deleted() {
    let files = small_files(5);
    for relocate in [false, true] {
        let (mut deleted, mut at) = (0, 0);
        loop {
            let memory = Arc::new(MemoryStorage::default());
            let repo = new_repo(memory.clone()).await;
            let name = backup(&repo, &files, None).await.unwrap().name;
            let gone = name.clone();
            let storage = acting(&memory, at, move |m| delete_and_collect(m, &gone, relocate));
            let repo = Repository::open(storage.clone(), 1 << 20).await.unwrap();
            match read_all(&repo, &name, &files).await {
                Ok(()) => break,
                Err(RepoError::Deleted(found)) => assert_eq!(found, name),
                Err(e) => panic!("deleted before call {at}: {e:?}"),
            }
            deleted += 1;
            at += 1;
        }
        assert!(deleted > 5, "{deleted}");
    }
}

/// The same without a tombstone is damage, and says which object.
#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_gone_without_reason_is_damage() {
    let files = small_files(6);
    let memory = Arc::new(MemoryStorage::default());
    let repo = new_repo(memory.clone()).await;
    let name = backup(&repo, &files, None).await.unwrap().name;
    for (key, object) in memory.snapshot() {
        if key.starts_with(prefix::PACKS) {
            let key = ObjectKey::parse(&key).unwrap();
            memory.tamper(&key, None);
            let repo = Repository::open(memory.clone(), 1 << 20).await.unwrap();
            match read_all(&repo, &name, &files).await {
                Err(RepoError::Missing { key: missing }) => assert_eq!(missing, key),
                other => panic!("{other:?}"),
            }
            memory.tamper(&key, Some(object));
        }
    }
}
