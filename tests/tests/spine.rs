//! From a live replica set to mounted and restored snapshots, and back to a mongod that holds what it held.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use mongodb::{
    Client,
    bson::{Document, Timestamp, doc},
};
use pbmfs_tests::{
    DataSpec, Mongod, MongodOptions, Mounted, PbmFs, ReplSet, ReplSetOptions, Tree, WriterOptions, Writers,
    cli::{Running, name_of, text},
    compare, data,
    restore_steps::{self, RestoredSet},
    snapshot::{self, Copied},
    writer::{self, ExactLog, WriteId},
};
use serde_json::Value;
use tempfile::tempdir;

/// The `operation_time` that a snapshot recorded.
fn operation_time(node: &Value) -> Timestamp {
    let part = |name: &str| {
        let value = node["operation_time"][name].as_u64();
        u32::try_from(value.unwrap_or_else(|| panic!("no operation time in {node}"))).unwrap()
    };
    Timestamp {
        time: part("t"),
        increment: part("i"),
    }
}

/// The same as the product records, from a server: hashes and counts by database and collection.
async fn hashes_of(
    client: &Client,
    db: &str,
    collections: &[String],
) -> (String, BTreeMap<String, (String, u64)>) {
    let database = client.database(db);
    let reply = database.run_command(doc! {"dbHash": 1}).await.unwrap();
    let mut found = BTreeMap::new();
    for (name, hash) in reply.get_document("collections").unwrap() {
        found.insert(name.clone(), (hash.as_str().unwrap().to_owned(), 0));
    }
    for name in collections {
        let count = database
            .collection::<Document>(name)
            .count_documents(doc! {})
            .await
            .unwrap();
        found.entry(name.clone()).or_default().1 = count;
    }
    (reply.get_str("md5").unwrap().to_owned(), found)
}

/// Compares a server with the hashes that were recorded under the lock; returns how many collections there were.
async fn check_recorded(client: &Client, node: &Value) -> usize {
    let mut seen = 0;
    for recorded in node["hashes"].as_array().expect("recorded hashes") {
        let db = recorded["db"].as_str().unwrap();
        let collections: BTreeMap<String, (String, u64)> = recorded["collections"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, hash)| {
                let count = recorded["counts"][name].as_u64().unwrap();
                (name.clone(), (hash.as_str().unwrap().to_owned(), count))
            })
            .collect();
        let names: Vec<_> = collections.keys().cloned().collect();
        let (hash, found) = hashes_of(client, db, &names).await;
        assert_eq!(found, collections, "collections of {db}");
        assert_eq!(hash, recorded["hash"], "{db} as a whole");
        seen += collections.len();
    }
    seen
}

/// A snapshot that was restored and looked at.
struct Restored {
    time: Timestamp,
    present: std::collections::BTreeSet<WriteId>,
}

impl Restored {
    /// Opens restored files as they are, compares them with what was recorded, and remembers which writes they hold.
    async fn open(dbpath: &Path, node: &Value, options: &MongodOptions, writers: &WriterOptions) -> Self {
        let mut mongod = restore_steps::open_recovered(dbpath, options).await.unwrap();
        let client = mongod.client().await.unwrap();
        let collections = check_recorded(&client, node).await;
        assert!(collections >= 6, "{collections} collections");
        assert!(compare::validate_all(&client).await.unwrap() >= collections);
        let present = writer::present(&client, writers).await.unwrap();
        mongod.kill().unwrap();
        Self {
            time: operation_time(node),
            present,
        }
    }

    fn check(&self, exact: &ExactLog) {
        exact.check_cut(&self.present, self.time).unwrap();
        let times = exact.times();
        assert!(!self.present.is_empty() && times.values().any(|time| *time > self.time));
    }
}

/// Waits until the backup has locked one of the members, and locks it once more, so that it stays as the backup read
/// it. `None` if the backup's lock was gone by then.
async fn lock_on_top<'a>(members: &[&'a Mongod], backup: &mut Running) -> Option<&'a Mongod> {
    let mut clients = Vec::new();
    for member in members {
        clients.push(member.client().await.unwrap());
    }
    while !backup.ended() {
        for (member, client) in members.iter().zip(&clients) {
            if !snapshot::is_locked(client).await.unwrap() {
                continue;
            }
            let locked = snapshot::fsync_lock(client).await.unwrap();
            if locked.locks == 2 {
                return Some(member);
            }
            snapshot::fsync_unlock(client).await.unwrap();
            return None;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    None
}

/// `diff -r`, by the program of that name.
#[track_caller]
fn diff_r(left: &Path, right: &Path) {
    let output = Command::new("diff")
        .arg("-r")
        .args([left, right])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "diff -r {} {}:\n{}{}",
        left.display(),
        right.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Restores a snapshot and mounts it: both are the same, byte for byte and in every inode.
#[track_caller]
fn restore_and_mount(pbmfs: &PbmFs, name: &str, place: &Path) -> (std::path::PathBuf, Tree) {
    let target = place.join(format!("restored-{name}"));
    pbmfs.ok(&["restore", name, "--target", text(&target)]);
    let mounted = Mounted::new(pbmfs, name, &place.join(format!("mounted-{name}")));
    let dbpath = mounted.dbpath("rs0");
    diff_r(&dbpath, &target);
    let restored = Tree::read(&target).unwrap();
    restored.must_equal(&Tree::read(&dbpath).unwrap());
    mounted.unmount();
    (target, restored)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_backups_of_a_busy_set() {
    let place = tempdir().unwrap();
    let plain = MongodOptions::default();
    let set = ReplSet::start(place.path(), ReplSetOptions::three("rs0"))
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    let spec = DataSpec::megabytes(20);
    data::load(&client, &spec).await.unwrap();
    set.wait_replicated().await.unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    let options = WriterOptions {
        writers: 4,
        ..WriterOptions::default()
    };
    let writers = Writers::start(&client, options.clone()).await.unwrap();
    let secondaries = set.secondaries().await.unwrap();
    assert_eq!(secondaries.len(), 2);

    let mut all = Vec::new();
    let (mut compared, mut tries) = (0, 0);
    while compared < 3 {
        tries += 1;
        assert!(tries <= 8, "the lock on top came too late {tries} times");
        writers.wait_for_more(100).await.unwrap();
        data::update_orders(&client, &spec, 50, tries).await.unwrap();
        let mut backup = pbmfs.start(&["-o", "json", "backup", "--uri", &set.uri(), "--record-hashes"]);
        let held = lock_on_top(&secondaries, &mut backup).await;
        let ran = tokio::task::spawn_blocking(|| backup.wait()).await.unwrap().ok();
        let name = name_of(&ran.json());
        let described = pbmfs.json(&["describe-backup", &name]);
        let node = described["replsets"][0]["node"].clone();
        assert_eq!(
            node["role"], "secondary",
            "a secondary is taken unless told otherwise: {node}"
        );
        assert_eq!(described["replsets"][0]["name"], "rs0");
        assert_eq!(described["cluster"]["id"], node["replica_set_id"]);
        eprintln!("{name}: {:?}, {}", ran.took, described["stats"]);

        let (target, restored) = restore_and_mount(&pbmfs, &name, place.path());
        if let Some(member) = held {
            assert_eq!(node["node"], member.host());
            // The lock has been on since before the backup read the first byte: these are the files that it read.
            Tree::of_locked_dbpath(member.dbpath())
                .unwrap()
                .must_equal(&restored);
            let direct = member.client().await.unwrap();
            assert_eq!(
                snapshot::fsync_unlock(&direct).await.unwrap(),
                0,
                "ours was the last"
            );
            compared += 1;
        }
        all.push(Restored::open(&target, &node, &plain, &options).await);
        writers.wait_for_more(50).await.unwrap();
    }
    assert!(pbmfs.processes().is_empty(), "no guard is left");
    for member in set.members() {
        assert!(
            !snapshot::is_locked(&member.client().await.unwrap())
                .await
                .unwrap()
        );
    }

    let log = writers.stop(Duration::from_secs(30)).await.unwrap();
    let exact = log.timestamps_from_oplog(&client).await.unwrap();
    for snapshot in &all {
        snapshot.check(&exact);
        assert!(log.split(snapshot.time).in_by_then.is_subset(&snapshot.present));
    }
    assert_eq!(pbmfs.names().len(), all.len());
    assert!(pbmfs.leases().is_empty());
    pbmfs.check();
}

/// A copy that somebody else made under a lock, as a directory: the snapshot is that copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_copy_is_that_copy() {
    let place = tempdir().unwrap();
    let set = ReplSet::start(place.path(), ReplSetOptions::single("rs0"))
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    data::load(&client, &DataSpec::megabytes(10)).await.unwrap();
    let before = compare::digest(&client).await.unwrap();
    let direct = set.members()[0].client().await.unwrap();
    snapshot::fsync_lock(&direct).await.unwrap();
    let copy = place.path().join("copy");
    snapshot::copy_dbpath(set.members()[0].dbpath(), &copy, Copied::Locked).unwrap();
    snapshot::fsync_unlock(&direct).await.unwrap();

    let pbmfs = PbmFs::init(place.path().join("repo"));
    let doc = pbmfs.json(&["backup", "--dbpath", text(&copy), "--replset", "rs0"]);
    let (target, restored) = restore_and_mount(&pbmfs, &name_of(&doc), place.path());
    Tree::of_locked_dbpath(&copy).unwrap().must_equal(&restored);
    assert!(restored.paths().any(|path| path == "WiredTiger.backup"));
    // The same files are the same blocks, whichever way they came.
    let again = pbmfs.json(&["backup", "--dbpath", text(&target), "--replset", "rs0"]);
    assert_eq!(again["stats"]["bytes_new"], 0, "{again}");

    let mongod = restore_steps::open_recovered(&target, &MongodOptions::default())
        .await
        .unwrap();
    let reader = mongod.client().await.unwrap();
    before
        .check_equal(&compare::digest(&reader).await.unwrap())
        .unwrap();
}

/// A set of one member can only be locked at its primary, whose files say that the oplog may have holes near its end
/// ([`snapshot::Locked::operation_time`]). It has none under the lock, so step 1 of a restore, which takes that remark
/// away, comes before step 2; then the cut is as exact as a secondary's, and the member is of use.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_locked_primary_needs_the_first_step_of_a_restore() {
    let place = tempdir().unwrap();
    let plain = MongodOptions::default();
    let set = ReplSet::start(place.path(), ReplSetOptions::single("rs0"))
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    let options = WriterOptions {
        writers: 8,
        ..WriterOptions::default()
    };
    let writers = Writers::start(&client, options.clone()).await.unwrap();
    writers.wait_for_more(300).await.unwrap();
    let backup = pbmfs.start(&["-o", "json", "backup", "--uri", &set.uri()]);
    let doc = tokio::task::spawn_blocking(|| backup.wait())
        .await
        .unwrap()
        .ok()
        .json();
    writers.wait_for_more(300).await.unwrap();
    let log = writers.stop(Duration::from_secs(30)).await.unwrap();
    let exact = log.timestamps_from_oplog(&client).await.unwrap();
    let node = &doc["replsets"][0]["node"];
    assert_eq!(node["role"], "primary");
    let time = operation_time(node);

    let target = place.path().join("restored");
    pbmfs.ok(&["restore", "latest", "--target", text(&target)]);
    let new = RestoredSet::new("new", 1).unwrap();
    restore_steps::prepare(&target, &new, None, &plain).await.unwrap();
    let mut recovered = restore_steps::open_recovered(&target, &plain).await.unwrap();
    let present = writer::present(&recovered.client().await.unwrap(), &options)
        .await
        .unwrap();
    exact.check_cut(&present, time).unwrap();
    assert!(
        exact.times().values().any(|at| *at > time),
        "none after the lock, though there were some"
    );
    recovered.stop().await.unwrap();

    let member = restore_steps::open_member(&target, &new, 0, &plain)
        .await
        .unwrap();
    let restored = ReplSet::adopt("new", vec![member]);
    restored.wait_ready().await.unwrap();
    let client = restored.client().await.unwrap();
    client
        .database("rig")
        .collection("things")
        .insert_one(doc! {"a": 1})
        .await
        .unwrap();
}
