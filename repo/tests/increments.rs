//! Increments by reference: only what is named as changed is read, and every snapshot is complete all the same.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::gc_tool::*;
use common::*;
use pbmfs_repo::id::PackId;
use pbmfs_repo::ingest::FIXED_BLOCK;
use pbmfs_repo::key::ObjectKey;
use pbmfs_repo::objects::SnapshotDoc;
use pbmfs_repo::pack::PackKind;
use pbmfs_repo::storage::MemoryStorage;
use pbmfs_repo::{Repository, Session};

/// A backup that is told what changed, and what it read.
async fn increment(
    repo: &Repository,
    files: &Files,
    parent: &SnapshotDoc,
    named: Named,
) -> (SnapshotDoc, Reads) {
    let session = Session::begin(repo, "backup", jiff::Timestamp::now())
        .await
        .unwrap();
    let reads = Reads::default();
    let changes = Some((named, reads.clone()));
    let doc = store(repo, &session, files, files.metas(), Some(parent), changes)
        .await
        .unwrap();
    session.commit(&doc).await.unwrap();
    (doc, reads)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_increments_is_as_good_as_full_backups() {
    let seeds = if full() { 60 } else { 4 };
    for seed in 0..seeds {
        let repo = new_repo(Arc::new(MemoryStorage::default())).await;
        let mut dice = Dice(seed);
        let mut files = sample_files(seed);
        let mut parent = backup(&repo, &files, None).await.unwrap();
        for round in 0..10 {
            let before = files.clone();
            files.mutate(1000 * seed + round);
            let granule = [4096, 16 << 10, 100_000, 1 << 20][dice.below(4) as usize];
            let named = named_changes(&before, &files, granule, &mut dice);
            let (doc, reads) = increment(&repo, &files, &parent, named.clone()).await;
            assert_same(&repo, &doc, &files).await;
            assert_little_was_read(&before, &files, &named, &doc, &reads);
            parent = doc;
        }
    }
}

/// Nothing but what was named, to the edges of blocks, what the parent does not have, and each byte once.
fn assert_little_was_read(before: &Files, files: &Files, named: &Named, doc: &SnapshotDoc, reads: &Reads) {
    let reads = reads.lock().unwrap();
    let mut total = 0;
    for (path, range) in &*reads {
        total += range.end - range.start;
        let Some(Some(old)) = before.0.get(path) else {
            continue;
        };
        let (old, size) = (old.len() as u64, files.0[path].as_ref().unwrap().len() as u64);
        let mut wanted = named[path].clone();
        wanted.push(old..size.max(old));
        for at in range.clone().step_by(512) {
            let near = |w: &std::ops::Range<u64>| {
                w.start < size
                    && w.start.saturating_sub(FIXED_BLOCK as u64) <= at
                    && at < w.end + FIXED_BLOCK as u64
            };
            assert!(wanted.iter().any(near), "byte {at} of {path} was read");
        }
    }
    assert_eq!(total, doc.stats.bytes_read);
    assert_eq!(doc.stats.bytes_read + doc.stats.bytes_referenced, files.total());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_change_is_not_even_opened() {
    let repo = new_repo(Arc::new(MemoryStorage::default())).await;
    let files = sample_files(3);
    let first = backup(&repo, &files, None).await.unwrap();
    let (doc, reads) = increment(&repo, &files, &first, Named::new()).await;
    assert_eq!(*reads.lock().unwrap(), Vec::new());
    assert_eq!(doc.stats.bytes_referenced, files.total());
    assert_same(&repo, &doc, &files).await;
    // It is the maps that say what is there: bytes that are not named are not looked at.
    let mut lied = files.clone();
    if let Some(Some(bytes)) = lied.0.get_mut("collection-1.wt") {
        bytes[100] ^= 1;
    }
    let (doc, _) = increment(&repo, &lied, &doc, Named::new()).await;
    assert_same(&repo, &doc, &files).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_named_and_did_not_change_is_not_stored() {
    let repo = new_repo(Arc::new(MemoryStorage::default())).await;
    let files = sample_files(5);
    let first = backup(&repo, &files, None).await.unwrap();
    let named = files
        .0
        .keys()
        .map(|path| (path.clone(), Vec::from([70_000..200_000, 250_000..500_000])))
        .collect();
    let (doc, reads) = increment(&repo, &files, &first, named).await;
    assert!(!reads.lock().unwrap().is_empty());
    assert_eq!((doc.stats.blocks_new, doc.stats.bytes_stored_data), (0, 0));
    assert_eq!(
        doc.stats.bytes_stored_map, 0,
        "a map was written although nothing changed"
    );
    assert_same(&repo, &doc, &files).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_increment_refers_to_a_condemned_pack() {
    let seeds = if full() { 200 } else { 12 };
    for seed in 0..seeds {
        let memory = Arc::new(MemoryStorage::with_page(5));
        let repo = new_repo(memory.clone()).await;
        let mut files = sample_files(seed);
        let first = backup(&repo, &files, None).await.unwrap();
        files.mutate(seed);
        let parent = backup(&repo, &files, Some(&first)).await.unwrap();
        let kind = [None, Some(PackKind::Data), Some(PackKind::Map)][seed as usize % 3];
        let mut dice = Dice(seed);
        let mut doomed: Vec<PackId> = of_kind(&memory, kind).into_iter().collect();
        doomed.sort();
        doomed.retain(|_| seed < 3 || dice.below(3) == 0);
        if seed % 2 == 0 {
            condemn(&memory, doomed.iter().copied()).await;
        } else {
            collect(&memory, &doomed.iter().copied().collect()).await;
        }
        let same = backup_checked(&memory, &files, Some(&parent), Some(Named::new())).await;
        let before = files.clone();
        files.mutate(seed + 9);
        let named = named_changes(&before, &files, 32 << 10, &mut dice);
        let changed = backup_checked(&memory, &files, Some(&parent), Some(named)).await;
        for id in &doomed {
            memory.tamper(&ObjectKey::pack(id), None);
            memory.tamper(&ObjectKey::relocation(id), None);
        }
        let repo = Repository::open(memory.clone(), 1 << 20).await.unwrap();
        assert_same(&repo, &same, &before).await;
        assert_same(&repo, &changed, &files).await;
    }
}
