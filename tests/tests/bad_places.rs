//! Places that will not do, for a repository, a target or a mount point, and what another user may not do: one clear
//! sentence, the right exit code, and nothing is changed.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

use pbmfs_tests::{
    Mounted, PbmFs, Tree,
    cli::text,
    fixture::{Fixture, says},
    mounted::{Tmpfs, is_mount_point},
};

const NOBODY: u32 = 65_534;

#[test]
fn a_place_without_a_repository_is_left_alone() {
    let f = Fixture::make();
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
    says(&PbmFs::on("s3://bucket/x").refuses(8, &["list"]), &["s3"]);
    says(
        &PbmFs::on("file://relative").refuses(2, &["list"]),
        &["file:///path"],
    );
    before.must_equal(&Tree::read(f.place.path()).unwrap());
}

#[test]
fn what_another_user_may_not_do() {
    let f = Fixture::make();
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

/// The bound of memory holds also where packs are large.
#[test]
fn large_packs_ask_for_memory() {
    let f = Fixture::make();
    let large = PbmFs::on(f.path("large"));
    large.ok(&["init", "--pack-size", "64MiB"]);
    let before = large.objects();
    let args = ["backup", "--dbpath", text(&f.source), "--memory"];
    let sentence = large.refuses(2, &[&args[..], &["200MiB"]].concat());
    says(&sentence, &["64MiB", "220MiB", "--memory"]);
    before.must_equal(&large.objects());
    large.ok(&[&args[..], &["220MiB"]].concat());
}

#[test]
fn a_repository_is_not_part_of_its_own_backup() {
    let f = Fixture::make();
    let around = f.path("around");
    fs::create_dir(&around).unwrap();
    fs::write(around.join("data"), "data").unwrap();
    std::os::unix::fs::symlink(f.path("repo"), around.join("link")).unwrap();
    let before = f.pbmfs.objects();
    // A part of it is as bad.
    let part = f.path("part");
    fs::create_dir(&part).unwrap();
    std::os::unix::fs::symlink(f.path("repo").join("packs"), part.join("link")).unwrap();
    for root in [f.place.path(), &around, &part] {
        let sentence = f.pbmfs.refuses(2, &["backup", "--dbpath", text(root)]);
        says(&sentence, &[text(root), text(&f.path("repo"))]);
    }
    before.must_equal(&f.pbmfs.objects());
}

#[test]
fn a_target_that_is_in_the_way_stays_as_it_is() {
    let f = Fixture::make();
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
    let f = Fixture::make();
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
