//! `kill -9` at random moments. `PBMFS_CAMPAIGN=full` for many runs, `PBMFS_SEED` for the moments of an earlier one.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use mongodb::{Client, bson::doc};
use pbmfs_tests::{
    DataSpec, Mounted, PbmFs, ReplSet, ReplSetOptions, Tree, campaign,
    cli::text,
    data,
    mounted::{clear, is_mount_point},
    snapshot, tree,
};
use rustix::process::Signal;
use tempfile::tempdir;

/// Within this time of a backup's death a write must succeed.
const UNLOCKED: Duration = Duration::from_secs(5);

async fn write_in_time(client: &Client) -> Duration {
    let start = Instant::now();
    let things = client.database("rig").collection("things");
    tokio::time::timeout(UNLOCKED, things.insert_one(doc! {"a": 1}))
        .await
        .expect("a write succeeds within five seconds")
        .unwrap();
    start.elapsed()
}

fn no_process_left(pbmfs: &PbmFs) {
    campaign::eventually("a process of a killed command ends", || {
        pbmfs.processes().is_empty().then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_backup_leaves_no_lock_and_no_damage() {
    let place = tempdir().unwrap();
    let mut prng = campaign::prng("killed backups");
    let set = ReplSet::start(place.path(), ReplSetOptions::single("rs0"))
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    let direct = set.members()[0].client().await.unwrap();
    let spec = DataSpec::megabytes(30);
    data::load(&client, &spec).await.unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    let uri = set.uri();
    let args = ["-q", "backup", "--uri", uri.as_str()];
    let whole = pbmfs.ok(&args).took;

    let mut snapshots = 1;
    for run in 0..campaign::runs(6, 50) {
        // Something new each time, so that there is something to store.
        data::update_orders(&client, &spec, 10, run).await.unwrap();
        let mut backup = pbmfs.start(&args);
        let moment = campaign::below(&mut prng, whole);
        tokio::time::sleep(moment).await;
        let locked = snapshot::is_locked(&direct).await.unwrap();
        backup.kill();
        let blocked = write_in_time(&client).await;
        no_process_left(&pbmfs);
        assert!(!snapshot::is_locked(&direct).await.unwrap());
        pbmfs.check();
        let found = pbmfs.names().len();
        // All or nothing; it may have been killed in the instant after its commit.
        assert!(found == snapshots || found == snapshots + 1, "{found} snapshots");
        pbmfs.ok(&args);
        snapshots = found + 1;
        eprintln!(
            "run {run}: killed after {moment:?} of {whole:?}, locked: {locked}; a write took {blocked:?}"
        );
    }
    assert_eq!(pbmfs.names().len(), snapshots);

    // And the last one can be used.
    let target = place.path().join("restored");
    pbmfs.ok(&["-q", "restore", "latest", "--target", text(&target)]);
    assert!(target.join("WiredTiger.backup").is_file());
}

/// Ctrl-C and its kin: the lock goes, the lease goes, and the exit code says what happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_backup_is_cancelled() {
    let place = tempdir().unwrap();
    let set = ReplSet::start(place.path(), ReplSetOptions::single("rs0"))
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    let direct = set.members()[0].client().await.unwrap();
    data::load(&client, &DataSpec::megabytes(20)).await.unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    let before = pbmfs.objects();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let uri = set.uri();
        let mut backup = pbmfs.start(&["-q", "backup", "--threads", "1", "--record-hashes", "--uri", &uri]);
        while !snapshot::is_locked(&direct).await.unwrap() {
            assert!(!backup.ended(), "{}", backup.stderr());
        }
        backup.signal(signal);
        let ran = tokio::task::spawn_blocking(|| backup.wait()).await.unwrap();
        assert_eq!(ran.code, Some(3), "{ran}");
        assert!(ran.stderr.ends_with("pbm-fs: cancelled\n"), "{ran}");
        write_in_time(&client).await;
        no_process_left(&pbmfs);
        assert!(pbmfs.names().is_empty() && pbmfs.leases().is_empty());
        let packs = |path: &str| path.starts_with("packs/");
        before.must_equal(&pbmfs.objects().only(|path| !packs(path)));
    }
    pbmfs.check();
}

#[test]
fn a_killed_restore_goes_on_to_the_same_directory() {
    let place = tempdir().unwrap();
    let mut prng = campaign::prng("killed restores");
    let source = place.path().join("source");
    tree::make(&source, 120, 1).unwrap();
    let wanted = Tree::read(&source).unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    pbmfs.backup_of(&source);

    let target = place.path().join("target");
    let args = ["-q", "restore", "latest", "--target", text(&target)];
    let whole = pbmfs.ok(&args).took;
    wanted.must_equal(&Tree::read(&target).unwrap());
    for run in 0..campaign::runs(8, 50) {
        fs::remove_dir_all(&target).unwrap();
        // Now and then several times in a row.
        let kills = 1 + prng.below(3);
        let mut finished = false;
        for _ in 0..kills {
            let mut restore = pbmfs.start(&args);
            let moment = campaign::below(&mut prng, whole);
            std::thread::sleep(moment);
            restore.kill();
            finished = target.exists();
            eprintln!("run {run}: killed after {moment:?} of {whole:?}, finished: {finished}");
            if finished {
                // In the instant between the last rename and the end. It is never half-made.
                break;
            }
        }
        if finished {
            wanted.must_equal(&Tree::read(&target).unwrap());
        }
        let ran = pbmfs.run(&args);
        // A finished restore whose journal is still there is one that succeeds again; without it the target is in the
        // way.
        assert!(ran.code == Some(0) || finished && ran.code == Some(5), "{ran}");
        wanted.must_equal(&Tree::read(&target).unwrap());
        assert_eq!(
            beside(&target),
            ["repo", "source", "target"],
            "nothing else stays"
        );
    }
    pbmfs.check();
}

fn beside(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What is mounted somewhere when a test ends badly.
struct Point<'a>(&'a Path);

impl Drop for Point<'_> {
    fn drop(&mut self) {
        if is_mount_point(self.0) {
            clear(self.0);
        }
    }
}

#[test]
fn a_killed_mount_is_cleared_by_the_next() {
    let place = tempdir().unwrap();
    let mut prng = campaign::prng("killed mounts");
    let source = place.path().join("source");
    tree::make(&source, 20, 2).unwrap();
    let wanted = Tree::read(&source).unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    pbmfs.backup_of(&source);
    let point = place.path().join("point");
    let _clear = Point(&point);

    // First how long it takes to come up.
    let start = Instant::now();
    let mounted = Mounted::new(&pbmfs, "latest", &point);
    let whole = start.elapsed();
    wanted.must_equal(&Tree::read(&mounted.dbpath("standalone")).unwrap());
    mounted.unmount();

    for run in 0..campaign::runs(4, 30) {
        // At any moment of its start, or a little later.
        let mut mount = pbmfs.start(&["-q", "mount", "latest", text(&point)]);
        let moment = campaign::below(&mut prng, whole * 2);
        std::thread::sleep(moment);
        mount.kill();
        let dead = is_mount_point(&point);
        eprintln!(
            "run {run}: killed after {moment:?}, it comes up after {whole:?}; a dead mount is left: {dead}"
        );
        no_process_left(&pbmfs);
        if run % 2 == 0 && dead {
            assert_eq!(pbmfs.json(&["umount", text(&point)])["how"], "dead");
            assert!(!is_mount_point(&point));
        }
        // While somebody reads.
        let mounted = Mounted::new(&pbmfs, "latest", &point);
        let dbpath = mounted.dbpath("standalone");
        let reader = std::thread::spawn(move || Tree::read(&dbpath));
        std::thread::sleep(campaign::below(&mut prng, Duration::from_millis(100)));
        mounted.kill();
        if let Ok(read) = reader.join().unwrap() {
            wanted.must_equal(&read);
        }
        // The reader has an error, and no process hangs; the next one mounts over it.
        let mounted = Mounted::new(&pbmfs, "latest", &point);
        wanted.must_equal(&Tree::read(&mounted.dbpath("standalone")).unwrap());
        mounted.unmount();
        assert!(point.is_dir() && fs::read_dir(&point).unwrap().next().is_none());
    }
    pbmfs.check();
}
