//! The local index as a writer sees it: what it finds, what it never names, what it costs, what it keeps.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/warnings.rs"]
mod warnings;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use common::Dice;
use common::packs::{Pack, Packs};
use pbmfs_repo::id::{BlockId, PackId};
use pbmfs_repo::index::KnownBlocks;
use pbmfs_repo::local_index::{Index, IndexError, IndexOptions, LEAST_MEMORY, LocalIndex};
use pbmfs_repo::pack::{PackKind, PackStore};
use pbmfs_repo::storage::{CountingStorage, LocalStorage};
use pbmfs_repo::{ErrorKind, Repository, Session};
use warnings::Warnings;

fn options(directory: &Path) -> IndexOptions {
    IndexOptions {
        memory: LEAST_MEMORY,
        ..IndexOptions::below(directory)
    }
}

/// Opens the index in a session of its own, has it used, and ends both.
async fn with_index<T>(
    packs: &mut Packs,
    indexes: &Path,
    act: impl AsyncFnOnce(&mut Packs, &LocalIndex) -> T,
) -> T {
    let session = packs.session().await;
    let index = LocalIndex::open(&session, indexes, &options(indexes))
        .await
        .unwrap();
    let out = act(packs, &index).await;
    drop(index);
    session.abandon().await;
    out
}

/// The requests that opening it takes.
async fn requests(packs: &Packs, indexes: &Path) -> u64 {
    let storage = Arc::new(CountingStorage::new(Arc::new(LocalStorage::new(
        &packs.directory,
    ))));
    let repo = Repository::open(storage.clone(), 8 << 20).await.unwrap();
    let session = Session::begin(&repo, "backup", jiff::Timestamp::now())
        .await
        .unwrap();
    let before = storage.counts();
    let index = LocalIndex::open(&session, indexes, &options(indexes))
        .await
        .unwrap();
    let counts = storage.counts();
    assert_eq!((counts.get, counts.list), (before.get, before.list));
    assert_eq!(packs.lost(&index), 0);
    drop(index);
    session.abandon().await;
    counts.get_range - before.get_range
}

fn db_files(indexes: &Path) -> Vec<std::path::PathBuf> {
    let own = std::fs::read_dir(indexes)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let files = std::fs::read_dir(own.join("db")).unwrap();
    files.map(|e| e.unwrap().path()).collect()
}

fn disk(indexes: &Path) -> u64 {
    let files = db_files(indexes);
    let tables = files.iter().filter(|f| f.extension().is_some_and(|e| e == "sst"));
    tables.map(|f| f.metadata().unwrap().len()).sum()
}

#[tokio::test]
async fn catching_up_costs_only_what_is_new() {
    let place = tempfile::tempdir().unwrap();
    let indexes = place.path().join("indexes");
    let mut packs = Packs::new(&place.path().join("repo"), 1).await;
    // Few enough to be learnt one by one, then so many that they are sorted first.
    for (new, of) in [(5, 40), (300, 7), (3, 40), (0, 0)] {
        for _ in 0..new {
            packs.put_new(of);
        }
        // A map pack is looked at once, too.
        let nodes = vec![packs.draw()];
        let map = packs.make(PackKind::Map, nodes);
        packs.put(&map);
        let found_map = |packs: &mut Packs| packs.packs.pop().unwrap();
        found_map(&mut packs);
        assert_eq!(requests(&packs, &indexes).await, new + 1);
        assert_eq!(requests(&packs, &indexes).await, 0);
        with_index(&mut packs, &indexes, async |_, index| {
            let node = map.ids().next().unwrap();
            assert_eq!(index.lookup(&node), None, "nodes are no blocks of files");
        })
        .await;
    }
}

#[tokio::test]
async fn what_a_backup_learns_is_there_at_once_and_later() {
    let place = tempfile::tempdir().unwrap();
    let indexes = place.path().join("indexes");
    let mut packs = Packs::new(&place.path().join("repo"), 2).await;
    packs.put_new(10);
    with_index(&mut packs, &indexes, async |packs, index| {
        let own = packs.put_new(100);
        assert!(own.ids().all(|id| index.lookup(&id).is_none()));
        index.learn(&own.loc, &own.trailer);
        assert_eq!(packs.lost(index), 0);
        let unknown = packs.draw();
        assert_eq!(index.lookup(&unknown), None);
    })
    .await;
    assert_eq!(requests(&packs, &indexes).await, 0);
}

/// Writers, deleters and gcs at work, against a model in memory.
#[tokio::test]
async fn whatever_happens_hits_are_right_and_allowed() {
    let seeds = if common::full() { 60 } else { 6 };
    for seed in 0..seeds {
        let place = tempfile::tempdir().unwrap();
        let indexes = place.path().join("indexes");
        let mut packs = Packs::new(&place.path().join("repo"), seed).await;
        let mut dice = Dice(seed ^ 0xabcd);
        // Every pack that ever had a block.
        let mut history: HashMap<BlockId, HashSet<PackId>> = HashMap::new();
        let mut condemned: HashSet<PackId> = HashSet::new();
        for _ in 0..12 {
            for _ in 0..dice.below(4) {
                let many = if dice.below(6) == 0 { 150 } else { 1 };
                for _ in 0..many {
                    put_some(&mut packs, &mut dice, &mut history);
                }
            }
            for _ in 0..dice.below(3) {
                if let Some(pack) = some_pack(&packs, &mut dice) {
                    packs.remove(&pack.loc.id);
                }
            }
            if let Some(pack) = some_pack(&packs, &mut dice).filter(|_| dice.below(3) == 0) {
                packs.condemn(vec![pack.loc.id]).await;
                condemned.insert(pack.loc.id);
            }
            let mut usable: HashSet<_> = packs.packs.iter().map(|p| p.loc.id).collect();
            usable.retain(|id| !condemned.contains(id));
            with_index(&mut packs, &indexes, async |packs, index| {
                must_fit(packs, index, &history, &usable);
                for _ in 0..dice.below(3) {
                    let own = put_some(packs, &mut dice, &mut history);
                    index.learn(&own.loc, &own.trailer);
                    usable.insert(own.loc.id);
                }
                // Another writer's, which came after the list of packs.
                put_some(packs, &mut dice, &mut history);
                must_fit(packs, index, &history, &usable);
            })
            .await;
        }
    }
}

fn some_pack(packs: &Packs, dice: &mut Dice) -> Option<Pack> {
    let n = packs.packs.len() as u64;
    packs.packs.get(dice.below(n) as usize).cloned()
}

fn put_some(packs: &mut Packs, dice: &mut Dice, history: &mut HashMap<BlockId, HashSet<PackId>>) -> Pack {
    let mut ids: Vec<BlockId> = (0..1 + dice.below(30)).map(|_| packs.draw()).collect();
    // Some blocks are in several packs.
    if let Some(other) = some_pack(packs, dice).filter(|_| dice.below(2) == 0) {
        ids.extend(other.ids().take(3));
    }
    let pack = packs.make(PackKind::Data, ids);
    packs.put(&pack);
    for id in pack.ids() {
        history.entry(id).or_default().insert(pack.loc.id);
    }
    pack
}

fn must_fit(
    packs: &Packs,
    index: &LocalIndex,
    history: &HashMap<BlockId, HashSet<PackId>>,
    usable: &HashSet<PackId>,
) {
    let places = packs.places();
    for (id, all) in history {
        match index.lookup(id) {
            Some(found) => {
                assert!(
                    usable.contains(&found.pack.id),
                    "a pack that may not be referred to"
                );
                assert!(places[id].contains(&found));
            }
            // The index knows one place of a block: it may be one that is gone.
            None => assert!(all.iter().any(|pack| !usable.contains(pack)), "{id} is lost"),
        }
    }
}

#[tokio::test]
async fn a_pack_of_another_length_is_another_pack() {
    let place = tempfile::tempdir().unwrap();
    let indexes = place.path().join("indexes");
    let mut packs = Packs::new(&place.path().join("repo"), 3).await;
    let (whole, cut) = (packs.put_new(10), packs.put_new(10));
    with_index(&mut packs, &indexes, async |packs, index| {
        assert_eq!(packs.lost(index), 0)
    })
    .await;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(packs.path(&cut.loc.id))
        .unwrap();
    file.set_len(cut.loc.object_len() - 1).unwrap();
    for _ in 0..2 {
        with_index(&mut packs, &indexes, async |_, index| {
            assert!(whole.ids().all(|id| index.lookup(&id).is_some()));
            assert!(cut.ids().all(|id| index.lookup(&id).is_none()));
        })
        .await;
    }
    file.set_len(cut.loc.object_len()).unwrap();
    packs.packs.retain(|pack| pack.loc.id != cut.loc.id);
    packs.put(&cut);
    with_index(&mut packs, &indexes, async |packs, index| {
        assert_eq!(packs.lost(index), 0)
    })
    .await;
}

/// A list of packs that was short for once costs nothing for ever.
#[tokio::test]
async fn packs_that_come_back_are_found_again() {
    let place = tempfile::tempdir().unwrap();
    let indexes = place.path().join("indexes");
    let mut packs = Packs::new(&place.path().join("repo"), 4).await;
    let away: Vec<_> = (0..200).map(|_| packs.put_new(20)).collect();
    packs.put_new(20);
    with_index(&mut packs, &indexes, async |packs, index| {
        assert_eq!(packs.lost(index), 0)
    })
    .await;
    let before = disk(&indexes);
    for pack in &away {
        packs.remove(&pack.loc.id);
    }
    with_index(&mut packs, &indexes, async |packs, index| {
        assert_eq!(packs.lost(index), 0);
        assert!(
            away.iter()
                .flat_map(Pack::ids)
                .all(|id| index.lookup(&id).is_none())
        );
    })
    .await;
    assert!(
        disk(&indexes) < before / 4,
        "{} of {before} bytes",
        disk(&indexes)
    );
    for pack in &away {
        packs.put(pack);
    }
    with_index(&mut packs, &indexes, async |packs, index| {
        assert_eq!(packs.lost(index), 0)
    })
    .await;
}

#[tokio::test]
async fn trailers_need_no_request_and_are_bounded() {
    let place = tempfile::tempdir().unwrap();
    let mut packs = Packs::new(&place.path().join("repo"), 5).await;
    for _ in 0..150 {
        packs.put_new(50);
    }
    let one = u64::from(packs.packs[0].loc.trailer_len);
    for (name, room, kept) in [("all", 1 << 30, 150), ("some", 20 * one, 20), ("none", 0, 0)] {
        let indexes = place.path().join(name);
        let options = IndexOptions {
            trailers: room,
            ..options(&indexes)
        };
        for round in 0..2 {
            let storage = Arc::new(CountingStorage::new(Arc::new(LocalStorage::new(
                &packs.directory,
            ))));
            let repo = Repository::open(storage.clone(), 8 << 20).await.unwrap();
            let session = Session::begin(&repo, "backup", jiff::Timestamp::now())
                .await
                .unwrap();
            let index = LocalIndex::open(&session, &indexes, &options).await.unwrap();
            // Fetched while it was opened, they are in memory.
            if round == 1 {
                let before = storage.counts().get_range;
                for pack in &packs.packs {
                    let trailer = repo.packs().trailer(&pack.loc).await.unwrap();
                    assert_eq!(*trailer, pack.trailer);
                }
                assert_eq!(storage.counts().get_range - before, 150 - kept, "{name}");
            }
            drop(index);
            session.abandon().await;
        }
    }
}

/// Whoever keeps trailers need not be believed.
#[tokio::test]
async fn a_wrong_trailer_is_fetched_from_the_storage() {
    #[derive(Debug)]
    struct Liar(Vec<u8>);
    impl pbmfs_repo::pack::TrailerStore for Liar {
        fn trailer(&self, _: &PackId) -> Option<Vec<u8>> {
            Some(self.0.clone())
        }
    }
    let place = tempfile::tempdir().unwrap();
    let mut packs = Packs::new(&place.path().join("repo"), 6).await;
    let (one, other) = (packs.put_new(3), packs.put_new(3));
    let mut flipped = one.trailer.encode();
    flipped[60] ^= 1;
    for lie in [Vec::new(), other.trailer.encode(), flipped] {
        let store = PackStore::new(packs.repo.storage().clone(), 1 << 20);
        let liar: Arc<dyn pbmfs_repo::pack::TrailerStore> = Arc::new(Liar(lie));
        store.read_trailers_from(Arc::downgrade(&liar));
        assert_eq!(*store.trailer(&one.loc).await.unwrap(), one.trailer);
    }
}

#[tokio::test]
async fn heads_are_kept_and_overwritten() {
    let place = tempfile::tempdir().unwrap();
    let indexes = place.path().join("indexes");
    let mut packs = Packs::new(&place.path().join("repo"), 7).await;
    packs.put_new(2);
    with_index(&mut packs, &indexes, async |_, index| {
        assert_eq!(index.head(b"rs0"), None);
        index.put_head(b"rs0", b"one");
        index.put_head(b"rs1", b"");
        index.put_head(b"rs0", b"two");
    })
    .await;
    with_index(&mut packs, &indexes, async |_, index| {
        assert_eq!(index.head(b"rs0").as_deref(), Some(&b"two"[..]));
        assert_eq!(index.head(b"rs1").as_deref(), Some(&b""[..]));
        assert_eq!(index.head(b"rs"), None);
    })
    .await;
}

#[tokio::test]
async fn one_index_is_used_once_at_a_time() {
    let place = tempfile::tempdir().unwrap();
    let indexes = place.path().join("indexes");
    let mut packs = Packs::new(&place.path().join("repo"), 8).await;
    packs.put_new(2);
    let session = packs.session().await;
    let first = Index::open(&session, &options(&indexes)).await.unwrap();
    assert!(matches!(first, Index::Local(_)));
    let error = Index::open(&session, &options(&indexes)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let text = error.to_string();
    assert!(text.contains("in use") && text.contains("--index"), "{text}");
    // Another repository's lies beside it.
    let mut others = Packs::new(&place.path().join("other"), 9).await;
    others.put_new(2);
    with_index(&mut others, &indexes, async |others, index| {
        assert_eq!(others.lost(index), 0)
    })
    .await;
    drop(first);
    LocalIndex::open(&session, &indexes, &options(&indexes))
        .await
        .unwrap();
    session.abandon().await;
}

/// No place for an index is no reason to have no backup.
#[tokio::test]
async fn without_a_place_the_index_is_in_memory() {
    let place = tempfile::tempdir().unwrap();
    let mut packs = Packs::new(&place.path().join("repo"), 10).await;
    packs.put_new(20);
    let file = place.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let session = packs.session().await;
    let error = LocalIndex::open(&session, &file, &options(&file))
        .await
        .unwrap_err();
    assert!(matches!(error, IndexError::Unusable { .. }), "{error}");
    let log = Warnings::collect();
    let index = Index::open(&session, &options(&file)).await.unwrap();
    assert!(matches!(index, Index::Memory(_)));
    let lines = log.take();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("in memory"), "{lines:?}");
    assert_eq!(packs.lost(&index), 0);
    index.put_head(b"a", b"b");
    assert_eq!(index.head(b"a"), None);
    // Asked for, it is no reason for a warning.
    let index = Index::open(&session, &IndexOptions::in_memory()).await.unwrap();
    assert_eq!((packs.lost(&index), log.take().len()), (0, 0));
    session.abandon().await;
}
