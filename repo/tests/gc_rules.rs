//! Writers and readers beside a gc (GC.md rules 3, 4 and 8), which here is a tool that does its steps by hand.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::sync::Arc;

use common::gc_tool::*;
use common::*;
use pbmfs_repo::id::PackId;
use pbmfs_repo::key::ObjectKey;
use pbmfs_repo::objects::SnapshotDoc;
use pbmfs_repo::pack::PackKind;
use pbmfs_repo::storage::MemoryStorage;
use pbmfs_repo::{RepoError, Repository, SnapshotReader};

fn files_for_gc(seed: u64) -> Files {
    let mut dice = Dice(seed);
    let mut files = Files::default();
    files.0.insert("a.wt".into(), Some(dice.bytes(2_500_000)));
    files.0.insert("b.wt".into(), Some(dice.bytes(700_001)));
    files
        .0
        .insert("s.1k".into(), Some(scattered_bytes(&mut dice, 400)));
    files
        .0
        .insert("t.1k".into(), Some(scattered_bytes(&mut dice, 900)));
    files.0.insert("d".into(), None);
    for i in 0..60 {
        let n = dice.below(3000) as usize;
        files.0.insert(format!("d/{i:03}"), Some(dice.bytes(n)));
    }
    files
}

/// Two snapshots, the second with the first as parent, and the files of each.
async fn two_snapshots(seed: u64) -> (Arc<MemoryStorage>, Vec<(SnapshotDoc, Files)>) {
    let memory = Arc::new(MemoryStorage::with_page(5));
    let repo = new_repo(memory.clone()).await;
    let mut files = files_for_gc(seed);
    let first = backup(&repo, &files, None).await.unwrap();
    let mut out = vec![(first.clone(), files.clone())];
    files.mutate(seed + 1);
    out.push((backup(&repo, &files, Some(&first)).await.unwrap(), files));
    (memory, out)
}

async fn assert_all(memory: &Arc<MemoryStorage>, snapshots: &[(SnapshotDoc, Files)]) {
    let repo = Repository::open(memory.clone(), 1 << 20).await.unwrap();
    for (doc, files) in snapshots {
        assert_same(&repo, doc, files).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_follow_relocations_hop_by_hop() {
    for kind in [Some(PackKind::Data), Some(PackKind::Map), None] {
        let (memory, mut snapshots) = two_snapshots(1).await;
        // A reader that opened before the gc, with its caches.
        let repo = Repository::open(memory.clone(), 8 << 20).await.unwrap();
        let early = SnapshotReader::open(&repo, snapshots[0].0.clone()).await.unwrap();
        for hop in 1..=3 {
            let doomed = of_kind(&memory, kind);
            assert!(doomed.len() > 1);
            collect(&memory, &doomed).await;
            assert!(of_kind(&memory, kind).is_disjoint(&doomed));
            assert_all(&memory, &snapshots).await;
            let rs = &early.replsets()[0];
            let (_, entry) = rs.files().find("t.1k").await.unwrap().unwrap();
            let bytes = rs.read(&entry, 0, u64::MAX).await.unwrap();
            assert_eq!(Some(bytes), snapshots[0].1.0["t.1k"]);
            // Another snapshot between the hops, so that packs of all ages go.
            let (parent, mut files) = snapshots[snapshots.len() - 1].clone();
            files.mutate(50 + hop);
            let doc = backup_checked(&memory, &files, Some(&parent), None).await;
            snapshots.push((doc, files));
        }
        assert_all(&memory, &snapshots).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_refers_to_no_condemned_pack() {
    let seeds = if full() { 200 } else { 12 };
    for seed in 0..seeds {
        let (memory, snapshots) = two_snapshots(seed).await;
        let kind = [None, Some(PackKind::Data), Some(PackKind::Map)][seed as usize % 3];
        let mut dice = Dice(seed);
        let mut doomed: Vec<PackId> = of_kind(&memory, kind).into_iter().collect();
        doomed.sort();
        // All of them, or some.
        doomed.retain(|_| seed < 3 || dice.below(2) == 0);
        let (half, rest) = doomed.split_at(doomed.len() / 2);
        condemn(&memory, half.iter().copied()).await;
        condemn(&memory, rest.iter().copied()).await;
        let (parent, mut files) = snapshots[1].clone();
        let same = backup_checked(&memory, &files, Some(&parent), None).await;
        let before = files.clone();
        files.mutate(seed + 9);
        let changed = backup_checked(&memory, &files, Some(&parent), None).await;
        let alone = backup_checked(&memory, &files, None, None).await;
        for id in &doomed {
            memory.tamper(&ObjectKey::pack(id), None);
        }
        // Not even relocations: whoever wrote after the list needs none of these packs.
        assert_all(
            &memory,
            &[(same, before), (changed, files.clone()), (alone, files)],
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_relocated_is_not_stored_again() {
    let (memory, snapshots) = two_snapshots(3).await;
    let (parent, files) = &snapshots[1];
    collect(&memory, &of_kind(&memory, None)).await;
    let doc = backup_checked(&memory, files, Some(parent), None).await;
    assert_eq!(doc.stats.blocks_new, 0);
    // The maps had to be written anew, but this snapshot's own heirs take them over again.
    let next = backup_checked(&memory, files, Some(&doc), None).await;
    assert_eq!(next.stats.blocks_new, 0);
    let (anew, heir) = (doc.stats.bytes_stored_map, next.stats.bytes_stored_map);
    assert!(
        heir * 4 < anew,
        "{heir} bytes of maps although nothing changed; {anew} when all were written"
    );
    let reader = |doc: SnapshotDoc, repo: Repository| async move {
        SnapshotReader::open(&repo, doc).await.unwrap().replsets()[0]
            .table()
            .all()
            .await
            .unwrap()
    };
    let repo = Repository::open(memory.clone(), 1 << 20).await.unwrap();
    let there = of_kind(&memory, None);
    let gone = reader(next, repo)
        .await
        .iter()
        .filter(|e| !there.contains(&e.loc.id))
        .count();
    assert_eq!(gone, 0, "packs that are gone are still in the table");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_relocation_a_pack_is_missing() {
    let (memory, snapshots) = two_snapshots(4).await;
    let doomed: HashSet<PackId> = of_kind(&memory, None);
    collect(&memory, &doomed).await;
    let (doc, _) = &snapshots[0];
    let root = doc.replsets[0].file_list.unwrap().pack;
    memory.tamper(&ObjectKey::relocation(&root), None);
    let repo = Repository::open(memory.clone(), 1 << 20).await.unwrap();
    match SnapshotReader::open(&repo, doc.clone()).await {
        Err(RepoError::Missing { key }) => assert_eq!(key, ObjectKey::pack(&root)),
        other => panic!("{other:?}"),
    }
    // A backup without that parent goes on; what was found nowhere is stored again.
    let files = &snapshots[1].1;
    backup_checked(&memory, files, None, None).await;
}
