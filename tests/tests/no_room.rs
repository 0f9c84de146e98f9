//! What fails half-way: no space is left, or the server is gone. One clear sentence; what was there before is whole,
//! and what was begun can be begun again.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use pbmfs_tests::{
    DataSpec, MongodOptions, PbmFs, ReplSet, ReplSetOptions, Tree, campaign, cli::text, data, mounted::Tmpfs,
    tree,
};
use rustix::{fs::FallocateFlags, process::Signal};
use tempfile::tempdir;

#[test]
fn no_room_for_a_backup() {
    let place = tempdir().unwrap();
    let (small, large) = (place.path().join("small"), place.path().join("large"));
    tree::make(&small, 4, 1).unwrap();
    tree::make(&large, 60, 2).unwrap();
    let tmpfs = Tmpfs::new(&place.path().join("disk"), "size=24m");
    let pbmfs = PbmFs::on(tmpfs.point().join("repo"));
    pbmfs.ok(&["init", "--pack-size", "1MiB"]);
    pbmfs.backup_of(&small);
    let before = pbmfs.objects();

    let sentence = pbmfs.refuses(1, &["backup", "--dbpath", text(&large)]);
    assert!(sentence.contains("no space left"), "{sentence}");
    assert!(pbmfs.leases().is_empty(), "no lease is left behind");
    assert_eq!(pbmfs.names().len(), 1);
    let known: Vec<_> = before.paths().map(str::to_owned).collect();
    let new = |path: &str| !known.iter().any(|known| known == path);
    before.must_equal(&pbmfs.objects().only(|path| !new(path)));
    // What was stored is of no snapshot: packs, and nothing else.
    let more = pbmfs.objects().only(new);
    assert!(more.paths().all(|path| path.starts_with("packs/")), "{more:?}");
    pbmfs.check();

    tmpfs.resize("size=200m");
    pbmfs.backup_of(&large);
    pbmfs.check();
    let target = place.path().join("target");
    pbmfs.ok(&["-q", "restore", "latest", "--target", text(&target)]);
    Tree::read(&large)
        .unwrap()
        .must_equal(&Tree::read(&target).unwrap());
}

/// Too little from the beginning: nothing is begun.
#[test]
fn too_little_room_for_a_restore() {
    let place = tempdir().unwrap();
    let source = place.path().join("source");
    tree::make(&source, 30, 3).unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    pbmfs.backup_of(&source);
    let tmpfs = Tmpfs::new(&place.path().join("disk"), "size=10m");
    let target = tmpfs.point().join("target");
    let args = ["restore", "latest", "--target", text(&target)];
    let sentence = pbmfs.refuses(1, &args);
    assert!(sentence.contains("too little space"), "{sentence}");
    assert!(!target.exists());
    tmpfs.resize("size=100m");
    pbmfs.ok(&args);
    Tree::read(&source)
        .unwrap()
        .must_equal(&Tree::read(&target).unwrap());
}

/// Enough at the beginning, and then somebody else takes it.
#[test]
fn the_room_for_a_restore_is_taken_away() {
    let place = tempdir().unwrap();
    let source = place.path().join("source");
    tree::make(&source, 100, 4).unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    pbmfs.backup_of(&source);
    let tmpfs = Tmpfs::new(&place.path().join("disk"), "size=130m");
    let target = tmpfs.point().join("target");
    let partial = tmpfs.point().join("target.pbmfs-partial");
    let args = [
        "-q",
        "--threads",
        "1",
        "restore",
        "latest",
        "--target",
        text(&target),
    ];
    let thief = tmpfs.point().join("thief");
    let mut tries = 0;
    let ran = loop {
        tries += 1;
        assert!(tries < 10, "the restore is always quicker");
        let mut restore = pbmfs.start(&args);
        while !restore.ended() && !has_bytes(&partial) {
            std::hint::spin_loop();
        }
        if !restore.ended() {
            restore.signal(Signal::STOP);
            let file = fs::File::create(&thief).unwrap();
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 80 << 20).unwrap();
            restore.signal(Signal::CONT);
        }
        let ran = restore.wait();
        if ran.code != Some(0) {
            break ran;
        }
        fs::remove_dir_all(&target).unwrap();
        let _ = fs::remove_file(&thief);
    };
    let sentence = ran.sentence(1);
    assert!(sentence.contains("no space is left"), "{sentence}");
    assert!(!target.exists() && partial.is_dir());

    fs::remove_file(&thief).unwrap();
    pbmfs.ok(&args);
    Tree::read(&source)
        .unwrap()
        .must_equal(&Tree::read(&target).unwrap());
    assert!(!partial.exists());
    pbmfs.check();
}

/// Whether a file in it has been written to.
fn has_bytes(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else {
        return false;
    };
    entries.flatten().any(|entry| {
        entry
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.blocks() > 0)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_under_the_lock() {
    let place = tempdir().unwrap();
    let mut set = ReplSet::start(place.path(), ReplSetOptions::single("rs0"))
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    data::load(&client, &DataSpec::megabytes(20)).await.unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    let uri = set.uri();
    let args = [
        "-q",
        "backup",
        "--threads",
        "1",
        "--record-hashes",
        "--uri",
        uri.as_str(),
    ];
    // Killed, and stopped in good order. A server under a lock does not stop in good order by itself.
    for signal in [Signal::KILL, Signal::TERM] {
        let before = pbmfs.names();
        // The server says that it is locked a moment before it is; this file is there when it is.
        let witness = set.members()[0].dbpath().join("WiredTiger.backup");
        let mut backup = pbmfs.start(&args);
        while !witness.exists() {
            assert!(!backup.ended(), "{}", backup.stderr());
        }
        if signal == Signal::KILL {
            set.member_mut(0).kill().unwrap();
        } else {
            set.members()[0].signal(signal).unwrap();
        }
        let ran = tokio::task::spawn_blocking(|| backup.wait()).await.unwrap();
        if signal == Signal::TERM && ran.code == Some(0) {
            // It may wait for the unlock.
            assert_eq!(pbmfs.names().len(), before.len() + 1);
        } else {
            let sentence = ran.sentence(1);
            // A file that the stopping server takes away may be met before anybody hears of the server.
            let named = sentence.contains(&set.members()[0].host());
            assert!(named || signal == Signal::TERM, "{sentence}");
            assert!(!sentence.contains("somebody else unlocked"), "{sentence}");
            assert_eq!(pbmfs.names(), before);
        }
        assert!(pbmfs.leases().is_empty());
        campaign::eventually("the guard ends", || pbmfs.processes().is_empty().then_some(()));
        // One that was told to stop under a lock does not always end, even when it was unlocked meanwhile.
        let member = set.member_mut(0);
        member.kill().unwrap();
        campaign::eventually("mongod ends", || (!member.is_running()).then_some(()));
        member
            .restart_with(MongodOptions::member_of("rs0"))
            .await
            .unwrap();
        set.wait_ready().await.unwrap();
    }
    let fresh = set.client().await.unwrap();
    fresh
        .database("rig")
        .collection("things")
        .insert_one(mongodb::bson::doc! {"a": 1})
        .await
        .unwrap();
    pbmfs.ok(&args);
    pbmfs.check();
}
