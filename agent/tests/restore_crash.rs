//! Restores that are killed, and file systems that become full.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

#[path = "common/restoring.rs"]
mod restoring;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pbmfs_agent::restore::{RestoreError, RestorePlan, RestoreProgress, restore};
use pbmfs_repo::ingest::Cancel;
use restoring::*;

const CHILD: &str = "PBMFS_TEST_RESTORE";

/// Slow enough that a kill meets it at work.
struct Slow;

impl RestoreProgress for Slow {
    fn planned(&self, _: &RestorePlan) {}
    fn bytes(&self, done: u64) {
        std::thread::sleep(Duration::from_nanos(done * 60));
    }
    fn finishing(&self) {}
}

/// The process that is killed: this test, started again with the paths in its environment.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(paths) = std::env::var(CHILD) else {
        return;
    };
    let (repo, target) = paths.split_once(' ').unwrap();
    let repo = open_repo(Path::new(repo)).await;
    let doc = repo.resolve("latest").await.unwrap();
    restore(
        &repo,
        doc,
        options(Path::new(target)),
        Arc::new(Slow),
        Cancel::default(),
    )
    .await
    .unwrap();
}

/// Starts a restore and kills it after a while; whether it came to its end before.
fn start_and_kill(repo: &Path, target: &Path, after: Duration) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, format!("{} {}", repo.display(), target.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(after);
    let _ = child.kill();
    child.wait().unwrap().success()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_goes_on_and_is_never_half_made() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, repo_dir) = (dir.path().join("tree"), dir.path().join("repo"));
    make_tree(&tree, 3);
    let repo = new_repo(&repo_dir).await;
    let doc = back_up(&repo, &tree).await;
    let original = picture(&tree);
    let mut dice = Dice(11);
    let (mut kills, mut resumed) = (0, 0);
    for round in 0..6 {
        let target = dir.path().join(format!("out-{round}"));
        for _ in 0..8 {
            let ended = start_and_kill(&repo_dir, &target, Duration::from_millis(10 + dice.below(150)));
            if target.exists() {
                // Complete, even if it was killed before it could say so.
                assert!(!partial(&target).exists());
                assert_pictured(&original, &target);
                break;
            }
            assert!(!ended);
            kills += 1;
        }
        let had_finished = target.exists() && !journal(&target).exists();
        if !had_finished {
            let summary = run(&repo, &doc, options(&target)).await.unwrap();
            resumed += u32::from(summary.resumed);
        }
        assert_pictured(&original, &target);
        assert_clean(&target);
    }
    assert!(kills > 6, "only {kills} restores were killed at work");
    eprintln!("{kills} killed at work, {resumed} resumed at last");
}

/// A file system of its own, unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` where mounting is not allowed.
    fn mount(at: PathBuf, size: u64) -> Option<Self> {
        Self::mount_type("tmpfs", &format!("size={size},mode=755"), at)
    }

    fn mount_type(kind: &str, options: &str, at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let mount = Command::new("mount")
            .args(["-t", kind, "-o", options, "none"])
            .arg(&at)
            .output();
        match mount {
            Ok(done) if done.status.success() => Some(Self(at)),
            _ => {
                eprintln!("skipped: nothing can be mounted here");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Takes most of the room away once it was found to suffice.
struct Greedy(PathBuf);

impl RestoreProgress for Greedy {
    fn planned(&self, _: &RestorePlan) {
        fs::write(&self.0, vec![1; 15 << 20]).unwrap();
    }
    fn bytes(&self, _: u64) {}
    fn finishing(&self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_system_is_told_of_and_what_was_restored_stays() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    make_tree(&tree, 4);
    let repo = new_repo(&dir.path().join("repo")).await;
    let doc = back_up(&repo, &tree).await;
    // The tree has about 10 MB of data, and 52 MB with its holes.
    let Some(small) = Mounted::mount(dir.path().join("small"), 6 << 20) else {
        return;
    };
    let target = small.0.join("out");
    let e = run(&repo, &doc, options(&target)).await.unwrap_err();
    let RestoreError::TooLittleSpace { needed, free, .. } = e else {
        panic!("{e:?}");
    };
    assert!(
        (9 << 20..16 << 20).contains(&needed) && free <= 6 << 20,
        "{needed} {free}"
    );
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 0);

    let Some(large) = Mounted::mount(dir.path().join("large"), 20 << 20) else {
        return;
    };
    let (target, filler) = (large.0.join("out"), large.0.join("filler"));
    let greedy = Arc::new(Greedy(filler.clone()));
    let e = restore(&repo, doc.clone(), options(&target), greedy, Cancel::default())
        .await
        .unwrap_err();
    assert!(matches!(&e, RestoreError::NoSpace { .. }), "{e:?}");
    assert!(e.to_string().contains("no space is left"), "{e}");
    assert!(!target.exists() && partial(&target).is_dir());
    fs::remove_file(&filler).unwrap();
    let summary = run(&repo, &doc, options(&target)).await.unwrap();
    assert!(
        summary.resumed && summary.bytes_written < summary.bytes_data,
        "{summary:?}"
    );
    assert_same(&tree, &target);
    assert_clean(&target);
}

/// ramfs does not tell how much room it has, and `syncfs` is not known to do anything there.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_of_which_little_is_known_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    make_tree(&tree, 6);
    let repo = new_repo(&dir.path().join("repo")).await;
    let doc = back_up(&repo, &tree).await;
    let Some(mounted) = Mounted::mount_type("ramfs", "mode=755", dir.path().join("ram")) else {
        return;
    };
    let target = mounted.0.join("out");
    let cancel = Cancel::default();
    let restoring = restore(
        &repo,
        doc.clone(),
        options(&target),
        Arc::new(Slow),
        cancel.clone(),
    );
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel.cancel();
    };
    let (first, ()) = tokio::join!(restoring, cancelling);
    if first.is_err() {
        let summary = run(&repo, &doc, options(&target)).await.unwrap();
        assert!(summary.resumed);
    }
    assert_same(&tree, &target);
    assert_clean(&target);
}
