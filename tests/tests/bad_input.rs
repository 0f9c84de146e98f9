//! What is asked for wrongly: one clear sentence, the right exit code, and nothing is changed.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use pbmfs_repo::{
    envelope::{self, ObjectKind},
    key::ObjectKey,
    objects::{JsonObject, RepoConfig},
};
use pbmfs_tests::{
    Mounted, PbmFs, Tree,
    cli::text,
    mounted::{Tmpfs, is_mount_point},
    tree,
};
use rustix::fs::FlockOperation;
use tempfile::{TempDir, tempdir};

const NOBODY: u32 = 65_534;

/// A directory with a repository that holds two snapshots of a small directory.
struct Fixture {
    place: TempDir,
    source: PathBuf,
    pbmfs: PbmFs,
    /// Newest first.
    names: Vec<String>,
}

impl Fixture {
    fn new() -> Self {
        let place = tempdir().unwrap();
        // For those tests in which another user looks.
        fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
        let source = place.path().join("source");
        tree::make(&source, 2, 3).unwrap();
        let pbmfs = PbmFs::init(place.path().join("repo"));
        pbmfs.backup_of(&source);
        pbmfs.backup_of(&source);
        let names = pbmfs.names();
        assert_eq!(names.len(), 2);
        Self {
            place,
            source,
            pbmfs,
            names,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Refused, and the repository is as it was, without a lease.
    #[track_caller]
    fn refuses(&self, code: i32, args: &[&str], words: &[&str]) {
        let before = self.pbmfs.objects();
        let sentence = self.pbmfs.refuses(code, args);
        says(&sentence, words);
        before.must_equal(&self.pbmfs.objects());
        assert!(self.pbmfs.leases().is_empty());
    }
}

#[track_caller]
fn says(sentence: &str, words: &[&str]) {
    for word in words {
        assert!(sentence.contains(word), "not said: \"{word}\" in: {sentence}");
    }
}

#[test]
fn a_name_that_no_snapshot_has_is_answered_with_the_nearest() {
    let f = Fixture::new();
    let target = f.path("target");
    let point = f.path("point");
    fs::create_dir(&point).unwrap();
    let both = [f.names[0].as_str(), f.names[1].as_str()];
    for unknown in ["2001-02-03T04:05:06Z", "nonsense", "../../etc/passwd", "LATEST"] {
        let words = [unknown, both[0], both[1]];
        f.refuses(4, &["describe-backup", unknown], &words);
        f.refuses(4, &["restore", unknown, "--target", text(&target)], &words);
        f.refuses(4, &["mount", unknown, text(&point)], &words);
        f.refuses(4, &["mount", unknown], &words);
    }
    assert!(!target.exists() && !is_mount_point(&point));
    f.refuses(2, &["describe-backup", "20"], &["20", both[0], both[1]]);
    assert_eq!(f.pbmfs.json(&["describe-backup", both[1]])["name"], both[1]);

    let empty = PbmFs::init(f.path("empty"));
    for asked in ["latest", "2001-02-03T04:05:06Z"] {
        let sentence = empty.refuses(4, &["restore", asked, "--target", text(&target)]);
        says(&sentence, &["no snapshot"]);
    }
    assert_eq!(empty.ok(&["list"]).stdout, "");
    assert_eq!(empty.json(&["list"])["snapshots"].as_array().unwrap().len(), 0);
}

#[test]
fn a_place_without_a_repository_is_left_alone() {
    let f = Fixture::new();
    let foreign = f.path("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("letter.txt"), "Dear Sir").unwrap();
    let fake = f.path("fake");
    fs::create_dir(&fake).unwrap();
    fs::write(fake.join("repo.json"), "{\"version\": 1}").unwrap();
    let hollow = f.path("hollow");
    fs::create_dir(&hollow).unwrap();
    let file = f.path("file");
    fs::write(&file, "a file").unwrap();
    let point = f.path("point");
    fs::create_dir(&point).unwrap();

    let before = Tree::read(f.place.path()).unwrap();
    for repo in [&f.path("missing"), &foreign, &fake, &hollow, &file] {
        let pbmfs = PbmFs::on(repo);
        let target = f.path("target");
        let verbs: [&[&str]; 7] = [
            &["list"],
            &["describe-backup", "latest"],
            &["backup", "--dbpath", text(&f.source)],
            &["restore", "latest", "--target", text(&target)],
            &["mount", "latest", text(&point)],
            &["check"],
            &["check", "--read-data"],
        ];
        for args in verbs {
            let sentence = pbmfs.refuses(4, args);
            says(
                &sentence,
                &[text(repo), "is not a pbm-fs repository", "pbm-fs init"],
            );
        }
    }
    for (repo, words) in [
        (&foreign, "is not empty"),
        (&fake, "already holds"),
        (&f.path("repo"), "already holds"),
    ] {
        says(&PbmFs::on(repo).refuses(5, &["init"]), &[text(repo), words]);
    }
    says(&PbmFs::on("s3://bucket/x").refuses(4, &["list"]), &["s3"]);
    before.must_equal(&Tree::read(f.place.path()).unwrap());
}

#[test]
fn what_a_newer_program_wrote_is_refused() {
    let f = Fixture::new();
    let path = f.path("repo").join("repo.json");
    let original = fs::read(&path).unwrap();
    let key = ObjectKey::repository();
    let config = RepoConfig::from_object(&key, &Bytes::from(original.clone())).unwrap();
    let with = |change: fn(&mut RepoConfig)| {
        let mut config = config.clone();
        change(&mut config);
        config.to_object(&key)
    };
    let mut newer_envelope = original.clone();
    newer_envelope[8] = 9;
    let mut flagged = original.clone();
    flagged[11] = 0x40;
    let cases: [(Bytes, &[&str]); 4] = [
        (
            with(|c| c.format_version = 7),
            &["format version 7", "newer pbm-fs"],
        ),
        (
            with(|c| c.required_features.push("time-travel".into())),
            &["time-travel", "newer pbm-fs"],
        ),
        (newer_envelope.into(), &["format version 9", "newer pbm-fs"]),
        (flagged.into(), &["feature", "does not know"]),
    ];
    let target = f.path("target");
    for (object, words) in cases {
        fs::write(&path, &object).unwrap();
        f.refuses(8, &["list"], words);
        f.refuses(8, &["backup", "--dbpath", text(&f.source)], words);
        f.refuses(8, &["restore", "latest", "--target", text(&target)], words);
        f.refuses(8, &["check"], words);
    }
    fs::write(&path, &original).unwrap();
    assert!(!target.exists());

    // A newer snapshot in a repository of ours: the others stay usable.
    let path = f
        .path("repo")
        .join(format!("snapshots/{}/snapshot.json", f.names[1]));
    let mut snapshot = fs::read(&path).unwrap();
    snapshot[8] = 9;
    fs::write(&path, &snapshot).unwrap();
    f.refuses(8, &["describe-backup", &f.names[1]], &["format version 9"]);
    f.pbmfs.ok(&["restore", &f.names[0], "--target", text(&target)]);
    let rows = f.pbmfs.json(&["list"]);
    assert_eq!(rows["snapshots"][1]["status"], "error", "{rows}");
    assert_eq!(rows["snapshots"][0]["status"], "done", "{rows}");

    // Something else under the name of repo.json.
    let key = ObjectKey::repository();
    let other = envelope::encode(ObjectKind::Beat, &key, b"{\"counter\": 1}");
    fs::write(f.path("repo").join("repo.json"), other).unwrap();
    f.refuses(6, &["list"], &["repo.json", "beat"]);
}

#[test]
fn a_directory_that_cannot_be_backed_up() {
    let f = Fixture::new();
    let missing = f.path("missing");
    let dbpath = |path: &Path| vec!["backup".to_owned(), "--dbpath".into(), text(path).into()];
    let refuses = |code, path: &Path, words: &[&str]| {
        let args = dbpath(path);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        f.refuses(code, &args, words);
    };
    refuses(4, &missing, &[text(&missing), "does not exist"]);
    refuses(
        2,
        &f.source.join("WiredTiger"),
        &["WiredTiger", "is not a directory"],
    );
    refuses(2, &f.path("repo"), &["repo"]);
    refuses(2, f.place.path(), &["repo"]);

    // The lock that a running mongod holds; one that crashed leaves the file, and not the lock.
    let lock_path = f.source.join("mongod.lock");
    fs::write(&lock_path, "4711\n").unwrap();
    let lock = File::open(&lock_path).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    refuses(5, &f.source, &[text(&f.source), "running mongod", "--uri"]);
    drop(lock);
    f.pbmfs.backup_of(&f.source);

    // Links that lead in a circle.
    let looped = f.path("looped");
    fs::create_dir_all(looped.join("a")).unwrap();
    std::os::unix::fs::symlink("..", looped.join("a/up")).unwrap();
    refuses(8, &looped, &["a/up", "symbolic link"]);
}

#[test]
fn what_another_user_may_not_do() {
    let f = Fixture::new();
    let source = f.path("theirs");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("readable"), "1").unwrap();
    let secret = source.join("secret.wt");
    fs::write(&secret, "2").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    let own = f.path("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();

    // A file that may not be read, in a repository that may be written.
    let nobody = PbmFs::on(own.join("repo")).as_user(NOBODY);
    nobody.ok(&["init"]);
    let before = nobody.objects();
    let sentence = nobody.refuses(1, &["backup", "--dbpath", text(&source)]);
    says(&sentence, &["secret.wt", "ermission denied"]);
    fs::set_permissions(&secret, Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(&source, Permissions::from_mode(0o311)).unwrap();
    let sentence = nobody.refuses(1, &["backup", "--dbpath", text(&source)]);
    says(&sentence, &["theirs", "ermission denied"]);
    before.must_equal(&nobody.objects());
    assert!(nobody.leases().is_empty());

    // A repository that may be read and not written.
    fs::set_permissions(&source, Permissions::from_mode(0o755)).unwrap();
    let before = f.pbmfs.objects();
    let guest = f.pbmfs.clone().as_user(NOBODY);
    says(
        &guest.refuses(1, &["backup", "--dbpath", text(&source)]),
        &["permission"],
    );
    assert_eq!(guest.names(), f.names, "reading goes on");
    let target = own.join("target");
    guest.ok(&["restore", "latest", "--target", text(&target)]);
    before.must_equal(&f.pbmfs.objects());

    // Mounting is for root.
    let point = own.join("point");
    fs::create_dir(&point).unwrap();
    chown(&point, Some(NOBODY), Some(NOBODY)).unwrap();
    guest.refuses(8, &["mount", "latest", text(&point)]);
    assert!(!is_mount_point(&point));

    // And a repository that may not even be read.
    fs::set_permissions(f.path("repo"), Permissions::from_mode(0o700)).unwrap();
    says(&guest.refuses(1, &["list"]), &["permission"]);
}

#[test]
fn a_target_that_is_in_the_way_stays_as_it_is() {
    let f = Fixture::new();
    let file = f.path("file");
    fs::write(&file, "mine").unwrap();
    let full = f.path("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("data"), "mine").unwrap();
    let inside = f.path("repo").join("target");
    let nowhere = f.path("no/such/target");
    let cases: [(i32, &Path, &[&str]); 6] = [
        (5, &file, &["exists already"]),
        (5, &full, &["exists already"]),
        (5, &f.source, &["exists already"]),
        (4, &nowhere, &["does not exist"]),
        (2, &inside, &["inside the repository"]),
        (2, Path::new("/"), &["/"]),
    ];
    let before = Tree::read(f.place.path()).unwrap();
    for (code, target, words) in cases {
        f.refuses(code, &["restore", "latest", "--target", text(target)], words);
    }
    // The file system inside is another: nothing could be renamed to it.
    let mounted = f.path("mounted");
    let tmpfs = Tmpfs::new(&mounted, "size=1m");
    f.refuses(
        5,
        &["restore", "latest", "--target", text(&mounted)],
        &["mount point"],
    );
    drop(tmpfs);
    fs::remove_dir(&mounted).unwrap();
    let sentence = f.pbmfs.refuses(
        4,
        &[
            "restore",
            "latest",
            "--target",
            text(&f.path("t")),
            "--replset",
            "rs7",
        ],
    );
    says(&sentence, &["rs7", "standalone"]);
    before.must_equal(&Tree::read(f.place.path()).unwrap());

    // An empty directory is no obstacle.
    let empty = f.path("target");
    fs::create_dir(&empty).unwrap();
    f.pbmfs.ok(&["restore", "latest", "--target", text(&empty)]);
    Tree::read(&f.source)
        .unwrap()
        .must_equal(&Tree::read(&empty).unwrap());
}

#[test]
fn a_mount_point_that_will_not_do() {
    let f = Fixture::new();
    let file = f.path("file");
    fs::write(&file, "a file").unwrap();
    let full = f.path("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("data"), "mine").unwrap();
    let inside = f.path("repo").join("packs");
    let missing = f.path("missing");
    let above = f.place.path();
    let cases: [(i32, &Path, &[&str]); 5] = [
        (4, &missing, &["missing", "does not exist"]),
        (2, &file, &["is not a directory"]),
        (2, &full, &["is not empty"]),
        (2, &inside, &["repository"]),
        (2, above, &["repository"]),
    ];
    for (code, point, words) in cases {
        f.refuses(code, &["mount", "latest", text(point)], words);
        assert!(!is_mount_point(point));
    }

    let point = f.path("point");
    f.refuses(4, &["umount", text(&missing)], &["missing"]);
    let mounted = Mounted::new(&f.pbmfs, "latest", &point);
    f.refuses(5, &["mount", "latest", text(&point)], &["already a mount point"]);
    let held = File::open(mounted.dbpath("standalone").join("one-byte")).unwrap();
    f.refuses(5, &["umount", text(&point)], &["in use"]);
    assert!(is_mount_point(&point), "it goes on");
    drop(held);
    assert_eq!(f.pbmfs.json(&["umount", text(&point)])["how"], "clean");
    mounted.wait_for_end();
    f.refuses(4, &["umount", text(&point)], &["nothing is mounted"]);

    let tmpfs = Tmpfs::new(&point, "size=1m");
    f.refuses(2, &["umount", text(&point)], &["not a pbm-fs mount", "tmpfs"]);
    f.refuses(5, &["mount", "latest", text(&point)], &["already a mount point"]);
    assert!(is_mount_point(tmpfs.point()));
    drop(tmpfs);

    // Alone, on ./NAME, which is made and removed again; also when it fails.
    let here = f.path("here");
    fs::create_dir(&here).unwrap();
    fs::write(here.join(&f.names[0]), "in the way").unwrap();
    let inside = f.pbmfs.clone().in_directory(&here);
    inside.refuses(2, &["mount", "latest"]);
    fs::remove_file(here.join(&f.names[0])).unwrap();
    fs::create_dir(here.join("made")).unwrap();
    let within = f.pbmfs.clone().in_directory(f.path("repo"));
    says(&within.refuses(2, &["mount", "latest"]), &["repository"]);
    assert!(!f.path("repo").join(&f.names[0]).exists());
}

#[test]
fn command_lines_that_make_no_sense() {
    let f = Fixture::new();
    let source = text(&f.source);
    let bare = PbmFs::bare();
    for args in [
        &["list"] as &[&str],
        &["check"],
        &["init"],
        &["backup", "--dbpath", source],
        &["mount", "latest"],
    ] {
        says(&bare.refuses(2, args), &["--repo", "PBMFS_REPO"]);
    }
    f.refuses(
        2,
        &["--memory", "1MiB", "backup", "--dbpath", source],
        &["--memory", "64MiB"],
    );
    f.refuses(2, &["--memory", "8MiB", "list"], &["--memory", "64MiB"]);
    f.refuses(2, &["backup", "--dbpath", source, "--replset", "a/b"], &["a/b"]);
    f.refuses(
        2,
        &["backup", "--uri", "http://127.0.0.1/"],
        &["connection string"],
    );
    let before = f.pbmfs.objects();
    let wrong: [&[&str]; 10] = [
        &["backup"],
        &["backup", "--dbpath", source, "--uri", "mongodb://127.0.0.1"],
        &["backup", "--dbpath", source, "--record-hashes"],
        &["backup", "--dbpath", source, "--node", "127.0.0.1:1"],
        &["restore", "latest"],
        &["restore"],
        &["--memory", "much", "list"],
        &["--threads", "0", "list"],
        &["frobnicate"],
        &["init", "--pack-size", "1GiB"],
    ];
    for args in wrong {
        let message = f.pbmfs.refuses_usage(args);
        assert!(!message.is_empty());
    }
    assert_eq!(f.pbmfs.run(&["-o", "xml", "list"]).code, Some(2));
    before.must_equal(&f.pbmfs.objects());

    // Nobody listens on port 1.
    let uri = "mongodb://user:topsecret@127.0.0.1:1/?serverSelectionTimeoutMS=2000";
    let sentence = f.pbmfs.refuses(1, &["backup", "--uri", uri]);
    says(&sentence, &["no MongoDB server answers", "127.0.0.1:1"]);
    assert!(!sentence.contains("topsecret"), "a password: {sentence}");
    before.must_equal(&f.pbmfs.objects());
    assert!(f.pbmfs.leases().is_empty() && f.pbmfs.processes().is_empty());
}

#[test]
fn help_is_help_and_not_an_error() {
    let bare = PbmFs::bare();
    for args in [
        &["--help"] as &[&str],
        &["backup", "--help"],
        &["restore", "--help"],
        &["mount", "--help"],
        &["check", "--help"],
    ] {
        let ran = bare.ok(args);
        assert!(ran.stdout.contains("Examples:") && ran.stderr.is_empty(), "{ran}");
    }
    assert!(bare.ok(&["--version"]).stdout.starts_with("pbm-fs "));
}
