//! The local index as users of the program meet it: where it lies, who may use it, and that no trouble with it stands in
//! the way of a backup.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use pbmfs_tests::{
    PbmFs, Tree,
    cli::{Ran, text},
    mounted::Tmpfs,
    tree,
};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

/// A source, and a repository with one snapshot of it.
struct Fixture {
    place: TempDir,
    source: PathBuf,
    pbmfs: PbmFs,
}

impl Fixture {
    fn new(megabytes: u64) -> Self {
        let place = tempdir().unwrap();
        let source = place.path().join("source");
        tree::make(&source, megabytes, 7).unwrap();
        let pbmfs = PbmFs::init(place.path().join("repo"));
        pbmfs.backup_of(&source);
        Self { place, source, pbmfs }
    }

    /// A backup of the same files as another replica set: no parent, so what is known is known from the index.
    fn backup(&self, more: &[&str]) -> Ran {
        let args = [
            &[
                "-q",
                "-o",
                "json",
                "backup",
                "--replset",
                "other",
                "--dbpath",
                text(&self.source),
            ],
            more,
        ];
        self.pbmfs.ok(&args.concat())
    }

    fn repository_id(&self) -> String {
        let mut names = names(&self.pbmfs.indexes());
        assert_eq!(names.len(), 1, "{names:?}");
        names.remove(0)
    }

    fn is_whole(&self) {
        self.pbmfs.check();
        let target = self.place.path().join("target");
        self.pbmfs
            .ok(&["-q", "restore", "latest", "--target", text(&target)]);
        let (was, is) = (Tree::read(&self.source).unwrap(), Tree::read(&target).unwrap());
        was.must_equal(&is);
        fs::remove_dir_all(target).unwrap();
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[track_caller]
fn nothing_new(ran: &Ran) {
    let doc: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(doc["stats"]["blocks_new"], 0, "{ran}");
}

#[test]
fn it_lies_among_the_caches_and_may_be_lost() {
    let f = Fixture::new(20);
    let ran = f.backup(&[]);
    nothing_new(&ran);
    assert_eq!(ran.stderr, "");
    let id = f.repository_id();
    fs::remove_dir_all(f.pbmfs.indexes()).unwrap();
    let ran = f.backup(&[]);
    nothing_new(&ran);
    assert_eq!(ran.stderr, "", "a lost index is no trouble");

    // Bytes that are no table's.
    for name in names(&f.pbmfs.indexes().join(&id).join("db")) {
        if name.ends_with(".sst") {
            fs::write(f.pbmfs.indexes().join(&id).join("db").join(name), "nothing").unwrap();
        }
    }
    let ran = f.backup(&[]);
    nothing_new(&ran);
    assert_eq!(ran.stderr.lines().count(), 1, "{ran}");
    assert!(ran.stderr.contains("built anew"), "{ran}");
    let ran = f.backup(&[]);
    assert_eq!(ran.stderr, "");

    // A home without any hint.
    let home = f.place.path().join("home");
    let at_home = f.pbmfs.clone().at_home(&home);
    at_home.ok(&["backup", "--dbpath", text(&f.source)]);
    assert_eq!(names(&home.join(".cache/pbm-fs/index")), [id]);
    f.is_whole();
}

#[test]
fn two_at_once_need_two_indexes() {
    let f = Fixture::new(5);
    let id = f.repository_id();
    let indexes = f.place.path().join("indexes");
    nothing_new(&f.backup(&["--index", text(&indexes)]));

    // What was asked for is used by one process at a time.
    let lock = File::open(indexes.join(&id).join("lock")).unwrap();
    lock.lock().unwrap();
    let args = ["backup", "--dbpath", text(&f.source), "--index", text(&indexes)];
    let sentence = f.pbmfs.refuses(5, &args);
    assert!(
        sentence.contains("in use") && sentence.contains(&id),
        "{sentence}"
    );
    assert!(f.pbmfs.leases().is_empty());
    drop(lock);
    nothing_new(&f.backup(&["--index", text(&indexes)]));

    // In the usual place there is always one.
    let lock = File::open(f.pbmfs.indexes().join(&id).join("lock")).unwrap();
    lock.lock().unwrap();
    let ran = f.backup(&[]);
    nothing_new(&ran);
    assert_eq!(ran.stderr, "");
    let mut both = names(&f.pbmfs.indexes());
    both.sort();
    assert_eq!(both, [id.clone(), format!("{id}-2")]);
}

#[test]
fn no_place_for_it_is_no_reason_to_have_no_backup() {
    let f = Fixture::new(5);
    let one_warning = |ran: &Ran| {
        nothing_new(ran);
        assert_eq!(ran.stderr.lines().count(), 1, "{ran}");
        assert!(ran.stderr.contains("in memory"), "{ran}");
    };
    let file = f.place.path().join("file");
    fs::write(&file, "mine").unwrap();
    one_warning(&f.backup(&["--index", text(&file)]));
    assert_eq!(fs::read(&file).unwrap(), b"mine");

    let tmpfs = Tmpfs::new(&f.place.path().join("read-only"), "ro");
    one_warning(&f.backup(&["--index", text(tmpfs.point())]));
    f.is_whole();
}

/// Whenever the room for it ends, the backup goes on.
#[test]
fn no_room_for_it_is_no_reason_to_have_no_backup() {
    let f = Fixture::new(5);
    let large = f.place.path().join("large");
    tree::make(&large, 40, 8).unwrap();
    for room in ["16k", "64k", "200k", "400k", "800k", "1600k"] {
        let tmpfs = Tmpfs::new(&f.place.path().join("disk"), &format!("size={room}"));
        for source in [&f.source, &large] {
            let index = ["--index", text(tmpfs.point()), "--index-memory", "8MiB"];
            let args = [&["backup", "--dbpath", text(source)][..], &index].concat();
            f.pbmfs.ok(&args);
        }
    }
    f.pbmfs.check();
    let target = f.place.path().join("target");
    f.pbmfs
        .ok(&["-q", "restore", "latest", "--target", text(&target)]);
    Tree::read(&large)
        .unwrap()
        .must_equal(&Tree::read(&target).unwrap());
}

#[test]
fn sizes_that_will_not_do() {
    let f = Fixture::new(1);
    let args = ["backup", "--dbpath", text(&f.source), "--index-memory", "1MiB"];
    let sentence = f.pbmfs.refuses_usage(&args);
    assert!(sentence.contains("8 MiB at least"), "{sentence}");
}
