//! Statistics agree with a count that knows nothing of how they are made.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::gc_tool::{collect, named, of_kind, packs, relocation};
use common::*;
use pbmfs_repo::envelope::{self, ObjectKind};
use pbmfs_repo::id::{BlockId, PackId, Slot, SnapshotName};
use pbmfs_repo::ingest::Cancel;
use pbmfs_repo::key::ObjectKey;
use pbmfs_repo::objects::{JsonObject, SnapshotDoc, TombstoneDoc};
use pbmfs_repo::pack::{FOOTER_LEN, PackKind, TRAILER_FIXED_LEN, TRAILER_SLOT_LEN, Trailer};
use pbmfs_repo::stats::{Footprint, NoStatsProgress, Stats, StatsOptions, StatsProgress, stats};
use pbmfs_repo::storage::MemoryStorage;
use pbmfs_repo::{ErrorKind, RepoError, Repository};

type Slots = BTreeSet<(PackId, u32)>;

async fn made(memory: &Arc<MemoryStorage>, names: &[SnapshotName]) -> Result<Stats, RepoError> {
    let repo = Repository::open(memory.clone(), 1 << 20).await?;
    let options = StatsOptions { memory: 2 << 20 };
    stats(&repo, names, options, &NoStatsProgress, &Cancel::default()).await
}

/// The slots that a snapshot needs, where they are now.
async fn slots(memory: &Arc<MemoryStorage>, doc: &SnapshotDoc) -> Slots {
    let repo = Repository::open(memory.clone(), 8 << 20).await.unwrap();
    let there = packs(memory);
    let mut out = Slots::new();
    for (pack, slots) in named(memory, &repo, doc).await {
        for slot in slots {
            let mut at = (pack, slot);
            while !there.contains_key(&at.0) {
                let relocation = relocation(memory, &at.0).unwrap();
                let (to, slot) = relocation.target(Slot(at.1)).unwrap();
                at = (to.id, slot.0);
            }
            out.insert(at);
        }
    }
    out
}

fn footprint(there: &BTreeMap<PackId, Trailer>, slots: &Slots) -> Footprint {
    let mut out = Footprint::default();
    for (pack, slot) in slots {
        let info = there[pack].slots()[*slot as usize];
        let stored = info.packed_len() + TRAILER_SLOT_LEN as u64;
        if there[pack].kind == PackKind::Data {
            out.blocks += 1;
            out.bytes_unique += u64::from(info.plain_len);
            out.bytes_stored_data += stored;
        } else {
            out.blocks_map += 1;
            out.bytes_stored_map += stored;
        }
    }
    out
}

fn union<'a>(all: impl IntoIterator<Item = &'a Slots>) -> Slots {
    all.into_iter().flatten().copied().collect()
}

/// Counts everything by hand and compares.
async fn must_agree(memory: &Arc<MemoryStorage>, snapshots: &[(SnapshotDoc, Files)], asked: &[usize]) {
    let names: Vec<_> = asked.iter().map(|i| snapshots[*i].0.name.clone()).collect();
    let found = made(memory, &names).await.unwrap();
    let there = packs(memory);
    let mut used = Vec::new();
    for (doc, _) in snapshots {
        used.push(slots(memory, doc).await);
    }
    let wanted: Vec<usize> = (0..snapshots.len())
        .filter(|i| asked.is_empty() || asked.contains(i))
        .collect();
    let rows: Vec<_> = found.snapshots.iter().map(|row| row.name.clone()).collect();
    let expected: Vec<_> = wanted.iter().map(|i| snapshots[*i].0.name.clone()).collect();
    assert_eq!(rows, expected);
    let without =
        |left: &dyn Fn(usize) -> bool| union((0..used.len()).filter(|i| !left(*i)).map(|i| &used[i]));
    for (row, i) in found.snapshots.iter().zip(&wanted) {
        let (_, files) = &snapshots[*i];
        assert_eq!(row.usage.files, files.0.values().flatten().count() as u64);
        assert_eq!(row.usage.bytes_logical, files.total());
        assert_eq!(row.usage.uses, footprint(&there, &used[*i]), "{}", row.name);
        let others = without(&|j| j == *i);
        let only = used[*i].difference(&others).copied().collect();
        assert_eq!(row.usage.only, footprint(&there, &only), "only {}", row.name);
    }
    let together = union(wanted.iter().map(|i| &used[*i]));
    let others = without(&|j| wanted.contains(&j));
    let only = together.difference(&others).copied().collect();
    assert_eq!(found.total.uses, footprint(&there, &together));
    assert_eq!(found.total.only, footprint(&there, &only));
    let logical = wanted.iter().map(|i| snapshots[*i].1.total()).sum::<u64>();
    assert_eq!(found.total.bytes_logical, logical);

    // What is not used and what is used are all, but for what a pack has of its own.
    let objects = memory.snapshot();
    let size = |id| objects[ObjectKey::pack(id).as_str()].len() as u64;
    let all = union(&used);
    let in_use: HashSet<_> = all.iter().map(|(pack, _)| *pack).collect();
    let own = |id| u64::from(there[id].first_block) + (TRAILER_FIXED_LEN + FOOTER_LEN) as u64;
    assert_eq!(found.contents.snapshots, snapshots.len() as u64);
    assert_eq!(found.contents.packs, there.len() as u64);
    assert_eq!(found.contents.bytes_packs, there.keys().map(size).sum::<u64>());
    assert_eq!(
        found.contents.bytes_packs,
        found.contents.bytes_unused
            + footprint(&there, &all).bytes_stored()
            + in_use.iter().map(own).sum::<u64>()
    );
}

/// A chain, a fork of it, a return to what was before, and a file that names one block very often and goes again.
async fn history(seed: u64) -> (Arc<MemoryStorage>, Vec<(SnapshotDoc, Files)>) {
    let memory = Arc::new(MemoryStorage::with_page(50));
    let repo = new_repo(memory.clone()).await;
    let mut out: Vec<(SnapshotDoc, Files)> = Vec::new();
    let mut files = sample_files(seed);
    for parent in [None, Some(0), Some(1), Some(0), Some(2), None] {
        if let Some(parent) = parent {
            files = out[parent].1.clone();
            files.mutate(seed + out.len() as u64);
        }
        match out.len() {
            1 => drop(files.0.insert("same.wt".into(), Some(vec![7; 300 << 16]))),
            4 => drop(files.0.remove("same.wt")),
            // What the fourth had cut out of the first is back.
            5 => files = out[0].1.clone(),
            _ => {}
        }
        let parent = parent.map(|i: usize| out[i].0.clone());
        let doc = backup(&repo, &files, parent.as_ref()).await.unwrap();
        out.push((doc, files.clone()));
    }
    (memory, out)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_figure_is_what_a_count_by_hand_gives() {
    let (memory, snapshots) = history(1).await;
    for asked in [&[] as &[usize], &[0], &[5], &[1, 2], &[3, 0], &[0, 1, 2, 3, 4, 5]] {
        must_agree(&memory, &snapshots, asked).await;
    }
    // The file that repeats a block names it more often than fits into a byte.
    let doc = &snapshots[1].0;
    let found = made(&memory, std::slice::from_ref(&doc.name)).await.unwrap();
    assert!(found.snapshots[0].usage.uses.bytes_unique + (290 << 16) < snapshots[1].1.total());
    // A backup that was interrupted left a pack; nobody uses it.
    let repo = Repository::open(memory.clone(), 1 << 20).await.unwrap();
    let session = pbmfs_repo::Session::begin(&repo, "backup", jiff::Timestamp::now())
        .await
        .unwrap();
    let mut lost = Files::default();
    lost.0.insert("lost.wt".into(), Some(Dice(99).bytes(400_000)));
    let before = made(&memory, &[]).await.unwrap();
    store(&repo, &session, &lost, lost.metas(), None, None)
        .await
        .unwrap();
    session.abandon().await;
    let after = made(&memory, &[]).await.unwrap();
    assert_eq!((&after.snapshots, after.total), (&before.snapshots, before.total));
    assert!(after.contents.bytes_unused > before.contents.bytes_unused + 400_000);
    must_agree(&memory, &snapshots, &[]).await;
}

/// What a snapshot is said to have alone is what is free once it is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_snapshot_frees_what_only_it_used() {
    let (memory, mut snapshots) = history(2).await;
    while snapshots.len() > 1 {
        let before = made(&memory, &[]).await.unwrap();
        let at = snapshots.len() / 2;
        let (doc, _) = snapshots.remove(at);
        let key = ObjectKey::snapshot(&doc.name);
        let tombstone = TombstoneDoc {
            why: "deleted".into(),
            lease: None,
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        memory.tamper(&key, Some(tombstone.to_object(&key)));
        let after = made(&memory, &[]).await.unwrap();
        let only = before.snapshots[at].usage.only;
        let freed = before.total.uses.bytes_stored() - after.total.uses.bytes_stored();
        assert_eq!(freed, only.bytes_stored(), "{}", doc.name);
        assert!(after.contents.bytes_unused >= before.contents.bytes_unused + freed);
        must_agree(&memory, &snapshots, &[]).await;
        let e = made(&memory, std::slice::from_ref(&doc.name)).await.unwrap_err();
        assert!(matches!(e, RepoError::Deleted(_)), "{e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_were_moved_count_where_they_are() {
    let (memory, snapshots) = history(3).await;
    for kind in [Some(PackKind::Data), Some(PackKind::Map), None] {
        let doomed = of_kind(&memory, kind);
        collect(&memory, &doomed).await;
        must_agree(&memory, &snapshots, &[]).await;
        must_agree(&memory, &snapshots, &[4]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plain_bytes_of_a_first_snapshot_are_its_different_blocks() {
    let memory = Arc::new(MemoryStorage::default());
    let repo = new_repo(memory.clone()).await;
    let files = sample_files(4);
    backup(&repo, &files, None).await.unwrap();
    // As the test's cutters cut them.
    let cut = |path: &String| if path.ends_with(".1k") { 1 << 10 } else { 1 << 16 };
    let blocks = files.0.iter().flat_map(|(path, bytes)| {
        let bytes = bytes.as_deref().unwrap_or_default();
        bytes.chunks(cut(path))
    });
    let blocks: BTreeMap<_, _> = blocks
        .filter(|block| block.iter().any(|b| *b != 0))
        .map(|block| (*BlockId::of(block).as_bytes(), block.len() as u64))
        .collect();
    let found = made(&memory, &[]).await.unwrap();
    assert_eq!(found.total.uses.blocks, blocks.len() as u64);
    assert_eq!(found.total.uses.bytes_unique, blocks.values().sum::<u64>());
    assert_eq!(found.total.uses, found.total.only);
    assert_eq!(found.contents.bytes_unused, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_told() {
    let (memory, snapshots) = history(5).await;
    let empty = Arc::new(MemoryStorage::default());
    new_repo(empty.clone()).await;
    let found = made(&empty, &[]).await.unwrap();
    assert_eq!((found.snapshots.len(), found.contents.packs), (0, 0));
    let nobody: SnapshotName = "2001-01-01T00:00:00Z".parse().unwrap();
    let e = made(&memory, &[nobody]).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);

    // A snapshot that is no JSON: the others are counted without it.
    let name = &snapshots[2].0.name;
    let key = ObjectKey::snapshot(name);
    let sound = memory.snapshot()[key.as_str()].clone();
    memory.tamper(&key, Some(envelope::encode(ObjectKind::Snapshot, &key, b"{")));
    let found = made(&memory, &[]).await.unwrap();
    assert_eq!(found.unreadable, std::slice::from_ref(name));
    assert_eq!(found.contents.snapshots, 5);
    let e = made(&memory, std::slice::from_ref(name)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged);
    memory.tamper(&key, Some(sound));

    // A pack that a map needs.
    let slots = slots(&memory, &snapshots[0].0).await;
    memory.tamper(&ObjectKey::pack(&slots.first().unwrap().0), None);
    assert_eq!(made(&memory, &[]).await.unwrap_err().kind(), ErrorKind::Damaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_reaches_what_it_promised_and_cancelling_ends_it() {
    #[derive(Default)]
    struct Watched {
        total: AtomicU64,
        done: AtomicU64,
        cancel: Option<Cancel>,
    }
    impl StatsProgress for Watched {
        fn files(&self, total: u64) {
            self.total.store(total, Relaxed);
        }

        fn done(&self, files: u64) {
            self.done.fetch_add(files, Relaxed);
            if let Some(cancel) = &self.cancel {
                cancel.cancel();
            }
        }
    }
    let (memory, snapshots) = history(6).await;
    let repo = Repository::open(memory.clone(), 1 << 20).await.unwrap();
    for names in [
        vec![],
        vec![snapshots[1].0.name.clone(), snapshots[4].0.name.clone()],
    ] {
        let watched = Watched::default();
        stats(
            &repo,
            &names,
            StatsOptions::default(),
            &watched,
            &Cancel::default(),
        )
        .await
        .unwrap();
        assert_eq!(watched.done.into_inner(), watched.total.into_inner());
    }
    let cancel = Cancel::default();
    let watched = Watched {
        cancel: Some(cancel.clone()),
        ..Watched::default()
    };
    let e = stats(&repo, &[], StatsOptions::default(), &watched, &cancel)
        .await
        .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Cancelled);
    assert!(watched.done.into_inner() < 2);
}
