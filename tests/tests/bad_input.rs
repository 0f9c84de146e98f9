//! What is asked for wrongly: one clear sentence, the right exit code, and nothing is changed.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{
    fs::{self, File},
    path::Path,
};

use bytes::Bytes;
use pbmfs_repo::{
    envelope::{self, ObjectKind},
    key::ObjectKey,
    objects::{JsonObject, RepoConfig},
};
use pbmfs_tests::{
    PbmFs, Tree,
    cli::text,
    fixture::{Fixture, says},
    mounted::is_mount_point,
};
use rustix::fs::FlockOperation;

#[test]
fn a_name_that_no_snapshot_has_is_answered_with_the_nearest() {
    let f = Fixture::make();
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
fn what_a_newer_program_wrote_is_refused() {
    let f = Fixture::make();
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
    let f = Fixture::make();
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
fn command_lines_that_make_no_sense() {
    let f = Fixture::make();
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
    f.refuses(2, &["backup", "--dbpath", source, "--cluster", ""], &["cluster"]);
    f.refuses(2, &["backup", "--dbpath", source, "--replset", "a\nb"], &["\\n"]);
    let message = f.pbmfs.run(&["-o", "json", "restore", "latest"]).json_error(2);
    says(&message, &["--target"]);
    let before = f.pbmfs.objects();
    f.refuses(2, &["backup"], &["--uri", "--dbpath"]);
    let wrong: [&[&str]; 9] = [
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

/// Nobody listens there, and nobody is asked.
const NOWHERE: &str = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=2000";

#[test]
fn options_of_a_backup_that_cannot_be_meant() {
    let f = Fixture::make();
    let before = f.pbmfs.objects();
    let uri = ["backup", "--uri", NOWHERE];
    let longest = "2147483";
    for args in [
        &["--lock-timeout", "0"] as &[&str],
        &["--lock-timeout", "2147484"],
        &["--lock-timeout", "18446744073709551615"],
        &["--node", "x y"],
        &["--node", ""],
        &["--block-size", "0"],
    ] {
        let message = f.pbmfs.refuses_usage(&[&uri, args].concat());
        says(&message, &[args[0]]);
    }
    let increment = ["-t", "incremental"];
    for (args, words) in [
        (
            &["--method", "cursor", "--record-hashes"] as &[&str],
            &["--record-hashes"] as &[&str],
        ),
        (
            &["--method", "lock", "--block-size", "4"],
            &["--block-size", "$backupCursor"],
        ),
    ] {
        f.refuses(2, &[&uri as &[&str], &increment, args].concat(), words);
        f.refuses(2, &[&uri as &[&str], args].concat(), words);
    }
    before.must_equal(&f.pbmfs.objects());

    // What is at the edge is asked for, and nobody answers.
    for timeout in ["1", longest] {
        let args = [&uri as &[&str], &["--lock-timeout", timeout]].concat();
        f.refuses(1, &args, &["no MongoDB server answers"]);
    }
}

#[test]
fn an_index_in_the_repository_or_in_the_source() {
    let f = Fixture::make();
    // With the directories, as far as they have nothing to do with time.
    let paths = || -> Vec<String> {
        let tree = Tree::read(f.place.path()).unwrap();
        tree.paths().map(str::to_owned).collect()
    };
    let (before, files) = (paths(), Tree::read(f.place.path()).unwrap().files());
    let (repo, source) = (f.path("repo"), f.source.clone());
    for index in [
        repo.clone(),
        repo.join("index"),
        repo.join("snapshots/a/b"),
        source.clone(),
        source.join("index"),
        source.join("journal/a/b"),
    ] {
        let args = ["backup", "--dbpath", text(&source), "--index", text(&index)];
        f.refuses(2, &args, &["index"]);
        assert_eq!(paths(), before, "{}", index.display());
    }
    // By another name.
    for (name, to) in [("way-to-repo", &repo), ("way-to-source", &source)] {
        let link = f.path(name);
        std::os::unix::fs::symlink(to, &link).unwrap();
        for index in [link.clone(), link.join("index")] {
            let args = ["backup", "--dbpath", text(&source), "--index", text(&index)];
            f.refuses(2, &args, &["index"]);
        }
        fs::remove_file(&link).unwrap();
    }
    // Over a directory that would be made on the way.
    let up = f.path("elsewhere/../repo/index");
    f.refuses(
        2,
        &["backup", "--dbpath", text(&source), "--index", text(&up)],
        &["index"],
    );
    files.must_equal(&Tree::read(f.place.path()).unwrap().files());
    assert_eq!(paths(), before);
    // A name that begins alike is another place.
    let beside = f.path("repository-index");
    f.pbmfs
        .ok(&["backup", "--dbpath", text(&source), "--index", text(&beside)]);
    assert!(beside.exists());
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
        &["list", "--help"],
        &["describe-backup", "--help"],
        &["stats", "--help"],
    ] {
        let ran = bare.ok(args);
        assert!(ran.stdout.contains("Examples:") && ran.stderr.is_empty(), "{ran}");
    }
    assert!(bare.ok(&["--version"]).stdout.starts_with("pbm-fs "));
}
