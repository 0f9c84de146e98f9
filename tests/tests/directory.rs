//! Directories: of stopped servers, of killed ones, and of none.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use mongodb::bson::doc;
use pbmfs_tests::{
    DataSpec, Mongod, MongodOptions, Mounted, PbmFs, Tree,
    cli::{name_of, text},
    compare, data, tree,
};
use tempfile::tempdir;

fn put(root: &Path, path: &str, bytes: &[u8], mode: u32) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_is_kept_and_what_is_left_out() {
    let place = tempdir().unwrap();
    let source = place.path().join("source");
    tree::make(&source, 5, 1).unwrap();
    put(&source, "mongod.lock", b"4711\n", 0o600);
    put(&source, "diagnostic.data/metrics.1", b"metrics", 0o600);
    put(&source, "journal/WiredTigerLog.0000000001", &[7; 5000], 0o600);
    put(&source, "journal/WiredTigerPreplog.0000000001", &[0; 5000], 0o600);
    put(&source, "_tmp/extsort.1", b"sorting", 0o600);
    put(&source, "WiredTiger.turtle.set", b"half", 0o600);
    put(&source, ".pbmfs-something", b"ours", 0o600);
    put(&source, "mongod.lock.bak", b"not ours to judge", 0o4711);
    put(&source, "umlaut-ä ö.wt", b"name", 0o777);
    put(&source, "nested/journal/1.wt", b"a database called nested", 0o600);
    fs::create_dir(source.join("empty-directory")).unwrap();
    fs::set_permissions(source.join("empty-directory"), Permissions::from_mode(0o1777)).unwrap();
    // Before 1970, and of a nanosecond.
    fs::File::open(source.join("one-byte"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH - std::time::Duration::new(86_400, 1))
        .unwrap();
    tree::touch(&source.join("empty"), 4_000_000_000, 1).unwrap();
    std::os::unix::fs::symlink("one-byte", source.join("link")).unwrap();

    let out = |path: &str| {
        path == "mongod.lock"
            || path.starts_with("diagnostic.data")
            || path == "_tmp/extsort.1"
            || path == "WiredTiger.turtle.set"
            || path == ".pbmfs-something"
    };
    let wanted = Tree::read(&source).unwrap().only(|path| !out(path));
    assert!(
        wanted
            .paths()
            .any(|path| path == "journal/WiredTigerLog.0000000001")
    );
    assert!(wanted.paths().any(|path| path == "_tmp"));

    let pbmfs = PbmFs::init(place.path().join("repo"));
    let name = pbmfs.backup_of(&source);
    let target = place.path().join("target");
    pbmfs.ok(&["restore", &name, "--target", text(&target)]);
    wanted.must_equal(&Tree::read(&target).unwrap());
    let mounted = Mounted::new(&pbmfs, &name, &place.path().join("point"));
    wanted.must_equal(&Tree::read(&mounted.dbpath("standalone")).unwrap());
    // It is read-only for root, too.
    let file = mounted.dbpath("standalone").join("one-byte");
    assert_eq!(
        fs::write(&file, "y").unwrap_err().raw_os_error(),
        Some(30),
        "EROFS"
    );
    assert_eq!(
        fs::remove_file(&file).unwrap_err().raw_os_error(),
        Some(30),
        "EROFS"
    );
    mounted.unmount();

    // The listing tells the same.
    let described = pbmfs.json(&["describe-backup", &name, "--files"]);
    let listed: Vec<_> = described["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    let mut sorted = listed.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, wanted.paths().collect::<Vec<_>>());
    // What was left out is not even read.
    assert_eq!(described["stats"]["bytes_total"], wanted.bytes());
}

/// The size on disk of holes stays small.
#[test]
fn holes_stay_holes() {
    let place = tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir(&source).unwrap();
    let file = fs::File::create(source.join("holes.wt")).unwrap();
    file.set_len(200 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, &[1; 10_000], 100_000_000).unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    let stats = pbmfs.json(&["backup", "--dbpath", text(&source)])["stats"].clone();
    assert!(stats["bytes_stored_data"].as_u64().unwrap() < 300_000, "{stats}");
    let target = place.path().join("target");
    pbmfs.ok(&["restore", "latest", "--target", text(&target)]);
    Tree::read(&source)
        .unwrap()
        .must_equal(&Tree::read(&target).unwrap());
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(target.join("holes.wt")).unwrap());
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks on disk");
}

#[test]
fn an_unchanged_directory_costs_nothing() {
    let place = tempdir().unwrap();
    let source = place.path().join("source");
    tree::make(&source, 60, 9).unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    pbmfs.backup_of(&source);
    let before = pbmfs.objects();
    for path in Tree::read(&source).unwrap().paths() {
        tree::touch(&source.join(path), 1_750_000_000, 5).unwrap();
    }
    for entry in ["empty", "small"] {
        tree::touch(&source.join(entry), 1_750_000_001, 5).unwrap();
    }
    // There is no local state yet; whatever may come to be some is not there in a home of its own.
    let home = place.path().join("home");
    fs::create_dir(&home).unwrap();
    let doc = pbmfs
        .clone()
        .at_home(&home)
        .json(&["backup", "--dbpath", text(&source)]);
    let total = Tree::read(&source).unwrap().bytes();
    let stored = pbmfs.objects().bytes() - before.bytes();
    let told = &doc["stats"];
    assert_eq!(told["blocks_new"], 0, "{told}");
    assert!(stored * 1000 < total, "{stored} bytes stored for {total}: {told}");
    assert!(
        before
            .diff(&pbmfs.objects())
            .iter()
            .all(|line| line.ends_with("only on the right"))
    );

    // And it is a whole snapshot, with the new times.
    let target = place.path().join("target");
    pbmfs.ok(&["restore", &name_of(&doc), "--target", text(&target)]);
    Tree::read(&source)
        .unwrap()
        .must_equal(&Tree::read(&target).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_with_a_directory_for_each_database() {
    let place = tempdir().unwrap();
    let options = MongodOptions::standalone().directory_per_db();
    let dbpath = place.path().join("db");
    let mut mongod = Mongod::start(&dbpath, options.clone()).await.unwrap();
    let client = mongod.client().await.unwrap();
    data::load(&client, &DataSpec::megabytes(8)).await.unwrap();
    let before = compare::digest(&client).await.unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));

    let objects = pbmfs.objects();
    let sentence = pbmfs.refuses(5, &["backup", "--dbpath", text(&dbpath)]);
    assert!(
        sentence.contains("running mongod") && sentence.contains("--uri"),
        "{sentence}"
    );
    objects.must_equal(&pbmfs.objects());
    assert!(pbmfs.leases().is_empty());

    mongod.stop().await.unwrap();
    let out = |path: &str| path == "mongod.lock" || path.starts_with("diagnostic.data");
    let wanted = Tree::read(&dbpath).unwrap().only(|path| !out(path));
    pbmfs.backup_of(&dbpath);
    let target = place.path().join("target");
    pbmfs.ok(&["restore", "latest", "--target", text(&target)]);
    wanted.must_equal(&Tree::read(&target).unwrap());
    assert!(target.join("rig_shop").is_dir() && target.join("journal").is_dir());

    let restored = Mongod::start(&target, options).await.unwrap();
    let reader = restored.client().await.unwrap();
    before
        .check_equal(&compare::digest(&reader).await.unwrap())
        .unwrap();
    assert!(compare::validate_all(&reader).await.unwrap() > 4);
    reader
        .database("rig")
        .collection("things")
        .insert_one(doc! {"a": 1})
        .await
        .unwrap();
}

/// The journal of a server that was killed holds writes that no table has: it is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_comes_back_with_its_journal() {
    let place = tempdir().unwrap();
    let dbpath = place.path().join("db");
    let mut mongod = Mongod::start(&dbpath, MongodOptions::standalone()).await.unwrap();
    let client = mongod.client().await.unwrap();
    let insert = doc! {
        "insert": "things", "documents": (0..500).map(|n| doc! {"_id": n}).collect::<Vec<_>>(),
        "writeConcern": {"j": true},
    };
    client.database("rig").run_command(insert).await.unwrap();
    mongod.kill().unwrap();
    assert!(
        fs::metadata(dbpath.join("mongod.lock")).unwrap().len() > 0,
        "it did not stop cleanly"
    );

    let pbmfs = PbmFs::init(place.path().join("repo"));
    pbmfs.backup_of(&dbpath);
    let target = place.path().join("target");
    pbmfs.ok(&["restore", "latest", "--target", text(&target)]);
    let restored = Mongod::start(&target, MongodOptions::standalone()).await.unwrap();
    let things = restored
        .client()
        .await
        .unwrap()
        .database("rig")
        .collection::<mongodb::bson::Document>("things");
    assert_eq!(things.count_documents(doc! {}).await.unwrap(), 500);
}
