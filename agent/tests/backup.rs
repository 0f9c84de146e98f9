//! Backups of directories into repositories in which something is damaged: a later backup works all the same.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use pbmfs_agent::DirectorySource;
use pbmfs_agent::backup::{BackupOptions, BackupProgress, Phase, backup};
use pbmfs_repo::ingest::{Cancel, Progress};
use pbmfs_repo::key::{ObjectKey, prefix};
use pbmfs_repo::objects::{Parameters, SnapshotDoc};
use pbmfs_repo::storage::{MemoryStorage, Storage};
use pbmfs_repo::{Repository, SnapshotReader};

struct Nobody;

impl Progress for Nobody {
    fn bytes(&self, _: u64) {}
    fn stored(&self, _: u64) {}
    fn file(&self, _: &str) {}
}

impl BackupProgress for Nobody {
    fn phase(&self, _: Phase) {}
}

fn options() -> BackupOptions {
    BackupOptions {
        backup_type: pbmfs_agent::BackupType::Physical,
        replset: Some("rs0".into()),
        cluster: None,
        memory: 64 << 20,
        index: pbmfs_repo::local_index::IndexOptions::in_memory(),
        threads: Some(2),
        tool: "test".into(),
        repository: None,
    }
}

/// Opens the repository anew, so that nothing is in memory, and backs up.
async fn back_up(memory: &Arc<MemoryStorage>, directory: &Path) -> SnapshotDoc {
    let repo = Repository::open(memory.clone(), 8 << 20).await.unwrap();
    let mut source = DirectorySource::new(directory);
    backup(
        &repo,
        &mut source,
        &options(),
        Arc::new(Nobody),
        &Cancel::default(),
    )
    .await
    .unwrap()
}

async fn assert_same(memory: &Arc<MemoryStorage>, doc: &SnapshotDoc, directory: &Path) {
    let repo = Repository::open(memory.clone(), 8 << 20).await.unwrap();
    let reader = SnapshotReader::open(&repo, doc.clone()).await.unwrap();
    let set = &reader.replsets()[0];
    for name in ["a", "b"] {
        let (_, entry) = set.files().find(name).await.unwrap().unwrap();
        let read = set.read(&entry, 0, u64::MAX).await.unwrap();
        assert!(read == fs::read(directory.join(name)).unwrap(), "{name} differs");
    }
}

/// Bytes of which no two blocks are alike. Of `b` every other block is zeros, so that its map needs a node.
fn make_files(directory: &Path) {
    let mut state = 1u64;
    let mut bytes = |n: usize| -> Vec<u8> {
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(n).collect()
    };
    fs::write(directory.join("a"), bytes(300_000)).unwrap();
    let mut holey = Vec::new();
    for _ in 0..60 {
        holey.extend(bytes(65_536));
        holey.extend([0; 65_536]);
    }
    fs::write(directory.join("b"), holey).unwrap();
}

async fn world() -> (Arc<MemoryStorage>, tempfile::TempDir, SnapshotDoc) {
    let memory = Arc::new(MemoryStorage::default());
    Repository::init(memory.clone(), Parameters::default())
        .await
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    make_files(directory.path());
    let first = back_up(&memory, directory.path()).await;
    assert_same(&memory, &first, directory.path()).await;
    (memory, directory, first)
}

/// Flips a bit in a byte of an object.
async fn flip(memory: &MemoryStorage, key: &ObjectKey, at: usize) {
    let mut object = memory.get(key).await.unwrap().to_vec();
    object[at] ^= 1;
    memory.tamper(key, Some(object.into()));
}

/// Keys of packs of a kind: 2 is data, 3 is maps.
fn packs(memory: &MemoryStorage, kind: u8) -> Vec<ObjectKey> {
    let all = memory.snapshot();
    let of_kind = all
        .iter()
        .filter(|(key, object)| key.starts_with(prefix::PACKS) && object[10] == kind);
    of_kind.map(|(key, _)| ObjectKey::parse(key).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_map_of_the_previous_snapshot_is_not_built_on() {
    // One map pack holds nodes, the other the file list; the first block of either is damaged.
    for which in 0..2 {
        let (memory, directory, _) = world().await;
        let keys = packs(&memory, 3);
        assert_eq!(keys.len(), 2);
        flip(&memory, &keys[which], 169 + 44 + 3).await;
        for _ in 0..2 {
            let doc = back_up(&memory, directory.path()).await;
            assert_same(&memory, &doc, directory.path()).await;
            assert_eq!(doc.stats.blocks_new, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_a_pack_that_was_taken_away_are_stored_anew() {
    let (memory, directory, first) = world().await;
    let key = packs(&memory, 2).remove(0);
    memory.tamper(&key, None);
    let second = back_up(&memory, directory.path()).await;
    assert_same(&memory, &second, directory.path()).await;
    assert_eq!(second.stats.blocks_new, first.stats.blocks_new);
}
