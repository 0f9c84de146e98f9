//! Files go in and come out again, byte for byte; what is the same is stored once.

mod common;

use common::*;
use pbmfs_repo::files::{FileKind, FileMeta};
use pbmfs_repo::storage::MemoryStorage;
use pbmfs_repo::{RepoError, SnapshotReader};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_in_comes_out() {
    let repo = new_repo(Arc::new(MemoryStorage::default())).await;
    let files = sample_files(7);
    let doc = backup(&repo, &files, None).await.unwrap();
    assert_same(&repo, &doc, &files).await;
    assert_eq!(doc.stats.bytes_read, files.total());
    assert!(doc.stats.blocks_new > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_directory_costs_next_to_nothing() {
    let storage = Arc::new(MemoryStorage::default());
    let repo = new_repo(storage.clone()).await;
    let mut files = sample_files(8);
    let first = backup(&repo, &files, None).await.unwrap();
    files.touch_all();
    let before = storage.total_bytes();
    let second = backup(&repo, &files, Some(&first)).await.unwrap();
    assert_eq!(second.stats.blocks_new, 0);
    let added = storage.total_bytes() - before;
    assert!(
        added * 1000 < files.total(),
        "{added} bytes added for {} bytes unchanged",
        files.total()
    );
    assert_same(&repo, &second, &files).await;
    // Without a parent every block is looked up, and none is new.
    let third = backup(&repo, &files, None).await.unwrap();
    assert_eq!(third.stats.blocks_new, 0);
    assert_same(&repo, &third, &files).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_every_kind_follow_the_parent() {
    let repo = new_repo(Arc::new(MemoryStorage::default())).await;
    let mut files = sample_files(9);
    let mut parent = backup(&repo, &files, None).await.unwrap();
    for round in 0..12 {
        files.mutate(100 + round);
        let doc = backup(&repo, &files, Some(&parent)).await.unwrap();
        assert_same(&repo, &doc, &files).await;
        parent = doc;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_list_cannot_hold_is_refused_before_it_is_stored() {
    let repo = new_repo(Arc::new(MemoryStorage::default())).await;
    let mut files = Files::default();
    files.0.insert("a".into(), Some(b"abc".to_vec()));
    files.0.insert("d".into(), None);
    let wrong: [fn(&mut FileMeta); 7] = [
        |m| m.mode = 0o100640,
        |m| m.mtime.1 = 1_000_000_000,
        |m| (m.kind, m.size) = (FileKind::Directory, 3),
        |m| m.path = "../a".into(),
        |m| m.path = "a\0b".into(),
        |m| m.path = "x".repeat(5000),
        |m| m.path = "z".into(),
    ];
    for alter in wrong {
        let mut metas = files.metas();
        alter(&mut metas[0]);
        let result = backup_metas(&repo, &files, metas, None).await;
        assert!(matches!(result, Err(RepoError::BadInput { .. })), "{result:?}");
    }
    let unusual: [fn(&mut FileMeta); 3] = [
        |m| m.mtime = (i64::MIN, 999_999_999),
        |m| m.mtime = (i64::MAX, 0),
        |m| (m.mode, m.uid, m.gid) = (0o7777, u32::MAX, u32::MAX),
    ];
    for alter in unusual {
        let mut metas = files.metas();
        alter(&mut metas[0]);
        let doc = backup_metas(&repo, &files, metas.clone(), None).await.unwrap();
        let reader = SnapshotReader::open(&repo, doc).await.unwrap();
        let entry = reader.replsets()[0].files().get(0).await.unwrap().unwrap();
        assert_eq!(entry.meta, metas[0]);
    }
}
