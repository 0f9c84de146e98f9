//! Files go in and come out again, byte for byte; what is the same is stored once.

mod common;

use common::*;
use pbmfs_repo::storage::MemoryStorage;
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
