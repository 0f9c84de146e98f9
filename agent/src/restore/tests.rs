use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use pbmfs_repo::ingest::Progress;
use pbmfs_repo::objects::Parameters;
use pbmfs_repo::storage::MemoryStorage;
use tempfile::tempdir;

use super::*;
use crate::DirectorySource;
use crate::backup::{BackupOptions, BackupProgress, Phase, backup};

struct Silent;

impl Progress for Silent {
    fn bytes(&self, _: u64) {}
    fn stored(&self, _: u64) {}
    fn file(&self, _: &str) {}
}

impl BackupProgress for Silent {
    fn phase(&self, _: Phase) {}
}

async fn repository() -> Repository {
    let parameters = Parameters {
        pack_size: 1 << 20,
        ..Parameters::default()
    };
    Repository::init(Arc::new(MemoryStorage::default()), parameters)
        .await
        .unwrap()
}

async fn snapshot(repo: &Repository, tree: &Path) -> SnapshotDoc {
    let options = BackupOptions {
        backup_type: crate::BackupType::Physical,
        replset: None,
        cluster: None,
        memory: 64 << 20,
        index: pbmfs_repo::local_index::IndexOptions::in_memory(),
        threads: Some(2),
        tool: "test".into(),
        repository: None,
    };
    let mut source = DirectorySource::new(tree);
    backup(repo, &mut source, &options, Arc::new(Silent), &Cancel::default())
        .await
        .unwrap()
}

/// Incompressible, and different everywhere.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        out.extend_from_slice(&(x ^ x >> 29).to_le_bytes());
    }
    out.truncate(len);
    out
}

struct CancelAt(AtomicU64, Cancel);

impl RestoreProgress for CancelAt {
    fn planned(&self, _: &RestorePlan) {}
    fn bytes(&self, done: u64) {
        if self.0.fetch_sub(done, SeqCst) <= done {
            self.1.cancel();
        }
    }
    fn finishing(&self) {}
}

/// What a machine's crash may do to bytes that no record tells of: they are anything. Nothing of that is left in the
/// end.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_recorded_are_not_trusted() {
    let dir = tempdir().unwrap();
    let (tree, out) = (dir.path().join("tree"), dir.path().join("out"));
    fs::create_dir(&tree).unwrap();
    for i in 0..9 {
        fs::write(tree.join(format!("{i}.wt")), noise(i, 900_000)).unwrap();
    }
    let repo = repository().await;
    let doc = snapshot(&repo, &tree).await;
    let mut options = RestoreOptions::new(&out);
    options.checkpoint_bytes = 1 << 20;
    // More of them would often be done before they hear that they are stopped.
    options.threads = 1;
    let mut spoiled = 0;
    for round in 1..8u64 {
        let cancel = Cancel::default();
        let progress = Arc::new(CancelAt(AtomicU64::new(round << 20), cancel.clone()));
        match restore(&repo, doc.clone(), options.clone(), progress, cancel).await {
            Ok(_) => break,
            Err(e) => assert!(matches!(e, RestoreError::Cancelled), "{e}"),
        }
        // The last record is torn off in the middle, as if it had not been synced.
        let path = dir.path().join("out.pbmfs-journal");
        let len = fs::metadata(&path).unwrap().len();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(len - round.min(len - 150)).unwrap();
        let journal::Loaded::Journal(contents) = journal::load(&path).unwrap() else {
            continue;
        };
        for i in 0..9 {
            let file = dir.path().join(format!("out.pbmfs-partial/{i}.wt"));
            let Ok(file) = File::options().write(true).open(&file) else {
                continue;
            };
            for range in contents.done.missing(i, 0..900_000) {
                let garbage = noise(round + 100, (range.end - range.start) as usize);
                file.write_all_at(&garbage, range.start).unwrap();
                spoiled += 1;
            }
        }
    }
    assert!(spoiled > 9);
    if !out.exists() {
        let done = restore(
            &repo,
            doc,
            options,
            Arc::new(NoRestoreProgress),
            Cancel::default(),
        )
        .await
        .unwrap();
        assert!(done.resumed);
    }
    for i in 0..9 {
        assert!(
            fs::read(out.join(format!("{i}.wt"))).unwrap() == noise(i, 900_000),
            "file {i}"
        );
    }
}

/// Between the rename and the removal of the journal.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_only_kept_its_journal_is_finished() {
    let dir = tempdir().unwrap();
    let (tree, out) = (dir.path().join("tree"), dir.path().join("out"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), b"a").unwrap();
    let repo = repository().await;
    let doc = snapshot(&repo, &tree).await;
    let again = |doc: &SnapshotDoc| {
        let options = RestoreOptions::new(&out);
        restore(
            &repo,
            doc.clone(),
            options,
            Arc::new(NoRestoreProgress),
            Cancel::default(),
        )
    };
    again(&doc).await.unwrap();
    let inode = fs::metadata(&out).unwrap().ino();
    let (_, header) = choose(&repo, doc.clone(), None).unwrap();
    let path = dir.path().join("out.pbmfs-journal");
    let write = |inode| {
        let file = File::create(&path).unwrap();
        Journal::begin(file, &header).unwrap().complete(inode).unwrap();
    };
    write(inode + 1);
    let e = again(&doc).await.unwrap_err();
    assert!(matches!(e, RestoreError::TargetExists { .. }), "{e}");
    write(inode);
    let mut other = doc.clone();
    other.lease.0[0] ^= 1;
    let e = again(&other).await.unwrap_err();
    assert!(matches!(e, RestoreError::OtherRestore { .. }), "{e}");
    let summary = again(&doc).await.unwrap();
    assert!(summary.resumed && summary.bytes_written == 0 && summary.files == 1);
    assert!(!path.exists() && out.join("a").exists());
    // And from now on the directory is the user's.
    let e = again(&doc).await.unwrap_err();
    assert!(matches!(e, RestoreError::TargetExists { .. }), "{e}");
    assert!(!path.exists());
}
