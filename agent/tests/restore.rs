//! What is restored is what was backed up; what must not be overwritten is not; what was interrupted goes on.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

#[path = "common/restoring.rs"]
mod restoring;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use pbmfs_agent::restore::{RestoreError, RestoreOptions, RestorePlan, RestoreProgress, restore};
use pbmfs_repo::ErrorKind;
use pbmfs_repo::ingest::Cancel;
use restoring::*;
use tempfile::TempDir;

struct Scene {
    dir: TempDir,
    tree: PathBuf,
    target: PathBuf,
    repo: pbmfs_repo::Repository,
    doc: pbmfs_repo::objects::SnapshotDoc,
}

async fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    make_tree(&tree, 1);
    new_repo(&dir.path().join("repo")).await;
    let repo = open_repo(&dir.path().join("repo")).await;
    let doc = back_up(&repo, &tree).await;
    Scene {
        tree,
        target: dir.path().join("out"),
        repo,
        doc,
        dir,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_come_back_as_they_were() {
    let s = scene().await;
    let summary = run(&s.repo, &s.doc, options(&s.target)).await.unwrap();
    assert_same(&s.tree, &s.target);
    assert_clean(&s.target);
    assert_eq!(summary.bytes_written, summary.bytes_data);
    assert!(!summary.resumed && summary.bytes_data < summary.bytes_total);
    for name in ["sparse.wt", "hole.wt"] {
        let allocated = |root: &Path| fs::metadata(root.join(name)).unwrap().blocks();
        // A block of 64 KiB that is not all zeros is written as a whole.
        assert!(
            allocated(&s.target) <= allocated(&s.tree) + 4 * 128,
            "{name} lost its holes"
        );
    }
    // With the least of everything, and with plenty; and what changed since then.
    change_tree(&s.tree, 5);
    let doc = back_up(&s.repo, &s.tree).await;
    for (i, (memory, threads)) in [(0, 0), (4 << 30, 16)].into_iter().enumerate() {
        let target = s.dir.path().join(format!("out-{i}"));
        let options = RestoreOptions {
            memory,
            threads,
            checkpoint_bytes: if i == 0 { 1 } else { u64::MAX },
            ..RestoreOptions::new(&target)
        };
        run(&s.repo, &doc, options).await.unwrap();
        assert_same(&s.tree, &target);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_directory_may_wait_and_keeps_its_mode() {
    let s = scene().await;
    fs::create_dir(&s.target).unwrap();
    fs::set_permissions(&s.target, fs::Permissions::from_mode(0o711)).unwrap();
    run(&s.repo, &s.doc, options(&s.target)).await.unwrap();
    assert_same(&s.tree, &s.target);
    assert_eq!(fs::metadata(&s.target).unwrap().mode() & 0o7777, 0o711);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_left_alone() {
    let s = scene().await;
    let at = |name: &str| s.dir.path().join(name);
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/x"), b"x").unwrap();
    fs::write(at("file"), b"x").unwrap();
    symlink("nowhere", at("link")).unwrap();
    fs::create_dir(partial(&at("orphan"))).unwrap();
    fs::write(journal(&at("notes")), b"my notes").unwrap();
    let repo_path = at("repo");
    type Check = fn(&RestoreError) -> bool;
    let cases: [(PathBuf, Check); 10] = [
        (at("full"), |e| matches!(e, RestoreError::TargetExists { .. })),
        (at("file"), |e| matches!(e, RestoreError::TargetExists { .. })),
        (at("link"), |e| matches!(e, RestoreError::TargetExists { .. })),
        (at("orphan"), |e| matches!(e, RestoreError::NoJournal { .. })),
        (at("notes"), |e| matches!(e, RestoreError::OtherRestore { .. })),
        (at("no/out"), |e| matches!(e, RestoreError::NoParent { .. })),
        (at("file/out"), |e| matches!(e, RestoreError::NoParent { .. })),
        (repo_path.join("out"), |e| {
            matches!(e, RestoreError::InsideRepository { .. })
        }),
        (repo_path.join("packs/../out"), |e| {
            matches!(e, RestoreError::InsideRepository { .. })
        }),
        (at("tree/.."), |e| matches!(e, RestoreError::BadTarget { .. })),
    ];
    let listing = || {
        let mut names: Vec<_> = fs::read_dir(s.dir.path())
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        names.sort();
        names
    };
    let before = listing();
    for (target, expected) in cases {
        let e = run(&s.repo, &s.doc, options(&target)).await.unwrap_err();
        assert!(expected(&e), "{}: {e:?}", target.display());
        assert!(!e.to_string().contains('\n'));
    }
    assert_eq!(listing(), before);
    assert!(!repo_path.join("out").exists());
    assert_eq!(fs::read(journal(&at("notes"))).unwrap(), b"my notes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_is_chosen_where_there_are_several() {
    let s = scene().await;
    let mut doc = s.doc.clone();
    let mut other = doc.replsets[0].clone();
    other.name = "rs1".into();
    other.file_list = None;
    doc.replsets.push(other);
    let e = run(&s.repo, &doc, options(&s.target)).await.unwrap_err();
    assert!(matches!(&e, RestoreError::ChooseReplset { names, .. } if *names == ["rs0", "rs1"]));
    let with = |name: &str| RestoreOptions {
        replset: Some(name.into()),
        ..options(&s.target)
    };
    let e = run(&s.repo, &doc, with("rs2")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
    assert!(e.to_string().contains("rs0, rs1"), "{e}");
    assert_clean(&s.target);
    run(&s.repo, &doc, with("rs0")).await.unwrap();
    assert_same(&s.tree, &s.target);
}

/// Cancels when so many bytes are written.
struct CancelAt(AtomicU64, u64, Cancel);

impl RestoreProgress for CancelAt {
    fn planned(&self, _: &RestorePlan) {}
    fn bytes(&self, done: u64) {
        if self.0.fetch_add(done, SeqCst) + done >= self.1 {
            self.2.cancel();
        }
    }
    fn finishing(&self) {}
}

async fn cancel_at(s: &Scene, bytes: u64, options: RestoreOptions) -> RestoreError {
    let cancel = Cancel::default();
    let progress = CancelAt(AtomicU64::new(0), bytes, cancel.clone());
    restore(&s.repo, s.doc.clone(), options, Arc::new(progress), cancel)
        .await
        .unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_restore_goes_on() {
    let s = scene().await;
    let mut small = options(&s.target);
    small.threads = 1;
    small.memory = 0;
    let e = cancel_at(&s, 3 << 20, small).await;
    assert_eq!(e.kind(), ErrorKind::Cancelled, "{e}");
    assert!(partial(&s.target).is_dir() && !s.target.exists());
    // Another snapshot is refused, and so is the same one while somebody is at work.
    let later = back_up(&s.repo, &s.tree).await;
    let e = run(&s.repo, &later, options(&s.target)).await.unwrap_err();
    assert!(matches!(&e, RestoreError::OtherRestore { .. }), "{e}");
    assert!(e.to_string().contains(s.doc.name.as_str()), "{e}");
    assert!(
        e.to_string().contains(partial(&s.target).to_str().unwrap()),
        "{e}"
    );
    let held = File::open(journal(&s.target)).unwrap();
    held.lock().unwrap();
    let e = run(&s.repo, &s.doc, options(&s.target)).await.unwrap_err();
    assert!(matches!(&e, RestoreError::Busy { .. }), "{e}");
    drop(held);

    let summary = run(&s.repo, &s.doc, options(&s.target)).await.unwrap();
    assert!(summary.resumed);
    assert!(
        summary.bytes_written + (2 << 20) < summary.bytes_data,
        "{summary:?} restored again what was there"
    );
    assert_same(&s.tree, &s.target);
    assert_clean(&s.target);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_vanished_from_the_partial_directory_are_restored_again() {
    let s = scene().await;
    cancel_at(&s, 6 << 20, options(&s.target)).await;
    let partial = partial(&s.target);
    fs::remove_file(partial.join("db/collection-1.wt")).unwrap();
    fs::remove_dir_all(partial.join("many")).unwrap();
    File::options()
        .write(true)
        .open(partial.join("same-2.wt"))
        .unwrap()
        .set_len(77)
        .unwrap();
    run(&s.repo, &s.doc, options(&s.target)).await.unwrap();
    assert_same(&s.tree, &s.target);

    // Without the partial directory it begins anew, whatever the journal says.
    let target = s.dir.path().join("again");
    cancel_at(&s, 6 << 20, options(&target)).await;
    fs::remove_dir_all(restoring::partial(&target)).unwrap();
    run(&s.repo, &s.doc, options(&target)).await.unwrap();
    assert_same(&s.tree, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_future_that_is_dropped_leaves_what_can_go_on() {
    let s = scene().await;
    for millis in [1, 5, 20] {
        let restoring = run(&s.repo, &s.doc, options(&s.target));
        if tokio::time::timeout(Duration::from_millis(millis), restoring)
            .await
            .is_ok()
        {
            break;
        }
    }
    let summary = loop {
        match run(&s.repo, &s.doc, options(&s.target)).await {
            Err(RestoreError::Busy { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            // It ended before it was dropped.
            Err(RestoreError::TargetExists { .. }) => break None,
            other => break Some(other.unwrap()),
        }
    };
    assert!(summary.is_none_or(|s| s.bytes_written <= s.bytes_data));
    assert_same(&s.tree, &s.target);
    assert_clean(&s.target);
}

fn packs(repo: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for dir in fs::read_dir(repo.join("packs")).unwrap() {
        out.extend(
            fs::read_dir(dir.unwrap().path())
                .unwrap()
                .map(|f| f.unwrap().path()),
        );
    }
    out.sort_by_key(|p| std::cmp::Reverse(fs::metadata(p).unwrap().len()));
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_and_mended_damage_is_no_obstacle() {
    let s = scene().await;
    let original = picture(&s.tree);
    let pack = packs(&s.dir.path().join("repo")).remove(0);
    let name = pack.file_name().unwrap().to_str().unwrap().to_owned();
    let file = File::options().read(true).write(true).open(&pack).unwrap();
    let len = file.metadata().unwrap().len();
    // In a block, and in the trailer.
    for at in [len / 2, len - 100] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        let fresh = open_repo(&s.dir.path().join("repo")).await;
        let e = run(&fresh, &s.doc, options(&s.target)).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
        let RestoreError::DamagedFile(found) = &e else {
            panic!("{e:?}");
        };
        assert_eq!(found.pack.to_string(), name);
        assert_eq!(found.block.is_some(), at == len / 2);
        if let Some(block) = found.block {
            // It is the block that belongs there.
            let bytes = fs::read(s.tree.join(&found.path)).unwrap();
            let end = bytes.len().min(found.offset as usize + (64 << 10));
            assert_eq!(
                pbmfs_repo::id::BlockId::of(&bytes[found.offset as usize..end]),
                block
            );
            assert!(e.to_string().contains(&block.to_string()), "{e}");
        }
        assert!(
            e.to_string().contains(&found.path) && e.to_string().contains(&name),
            "{e}"
        );
        assert!(!s.target.exists());
        file.write_all_at(&byte, at).unwrap();
    }
    let away = s.dir.path().join("away");
    fs::rename(&pack, &away).unwrap();
    let fresh = open_repo(&s.dir.path().join("repo")).await;
    let e = run(&fresh, &s.doc, options(&s.target)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
    assert!(e.to_string().contains("missing"), "{e}");
    assert!(!s.target.exists());
    fs::rename(&away, &pack).unwrap();
    run(&s.repo, &s.doc, options(&s.target)).await.unwrap();
    assert_pictured(&original, &s.target);
}
