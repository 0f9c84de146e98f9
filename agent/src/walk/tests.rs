use std::fs::{create_dir, create_dir_all, write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use pbmfs_dbpath::LeftOutReason;
use tempfile::tempdir;

use super::*;

fn paths(listing: &Listing) -> Vec<&str> {
    listing.files.iter().map(|file| file.path.as_str()).collect()
}

#[test]
fn a_tree_is_listed_with_sizes_modes_and_empty_directories() {
    let dir = tempdir().unwrap();
    let root = dir.path();
    create_dir_all(root.join("db/collection")).unwrap();
    create_dir(root.join("empty")).unwrap();
    write(root.join("db/collection/1.wt"), b"1234").unwrap();
    write(root.join("db.wt"), b"").unwrap();
    fs::set_permissions(root.join("db.wt"), fs::Permissions::from_mode(0o640)).unwrap();

    let listing = list(root, JournalPolicy::Keep).unwrap();
    assert_eq!(
        paths(&listing),
        ["db", "db/collection", "db/collection/1.wt", "db.wt", "empty"]
    );
    assert_eq!(listing.files[2].size, 4);
    assert_eq!(listing.files[1].size, 0, "a directory has no bytes of its own");
    assert_eq!(
        (listing.files[3].kind, listing.files[3].mode),
        (FileKind::Regular, 0o640)
    );
    assert_eq!(listing.files[4].kind, FileKind::Directory);
    assert!(listing.files[3].mtime.secs > 0);
    assert_eq!(listing.fingerprints.len(), listing.files.len());
}

#[test]
fn rules_apply_and_say_what_they_left_out() {
    let dir = tempdir().unwrap();
    let root = dir.path();
    for sub in ["journal", "diagnostic.data", "_tmp"] {
        create_dir(root.join(sub)).unwrap();
        write(root.join(sub).join("f"), b"x").unwrap();
    }
    write(root.join("mongod.lock"), b"1\n").unwrap();

    let under_lock = list(root, JournalPolicy::LeaveOut).unwrap();
    assert_eq!(paths(&under_lock), ["_tmp", "journal"]);
    let left_out: Vec<_> = under_lock
        .left_out
        .iter()
        .map(|l| (l.path.as_str(), l.reason))
        .collect();
    assert_eq!(
        left_out,
        [
            ("_tmp/f", LeftOutWhy::Rule(LeftOutReason::Temporary)),
            ("diagnostic.data", LeftOutWhy::Rule(LeftOutReason::Diagnostics)),
            ("journal/f", LeftOutWhy::Rule(LeftOutReason::Journal)),
            ("mongod.lock", LeftOutWhy::Rule(LeftOutReason::ProcessLock)),
        ]
    );
    assert_eq!(
        paths(&list(root, JournalPolicy::Keep).unwrap()),
        ["_tmp", "journal", "journal/f"]
    );
}

#[test]
fn links_are_followed_and_loops_noticed() {
    let dir = tempdir().unwrap();
    let (root, elsewhere) = (dir.path().join("root"), dir.path().join("elsewhere"));
    create_dir(&root).unwrap();
    create_dir(&elsewhere).unwrap();
    write(elsewhere.join("1.wt"), b"123").unwrap();
    symlink(&elsewhere, root.join("db")).unwrap();
    symlink(elsewhere.join("1.wt"), root.join("2.wt")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();

    let listing = list(&root, JournalPolicy::Keep).unwrap();
    assert_eq!(paths(&listing), ["2.wt", "db", "db/1.wt"]);
    assert_eq!(
        (listing.files[0].kind, listing.files[0].size),
        (FileKind::Regular, 3)
    );
    assert_eq!(
        listing.left_out[0].reason,
        LeftOutWhy::Special(SpecialFile::DanglingLink)
    );

    symlink(&root, elsewhere.join("back")).unwrap();
    let error = list(&root, JournalPolicy::Keep).unwrap_err();
    assert!(
        matches!(&error, SourceError::Loop { path } if path.ends_with("db/back")),
        "{error}"
    );
}

#[test]
fn a_link_to_itself_is_a_loop() {
    let dir = tempdir().unwrap();
    symlink("me", dir.path().join("me")).unwrap();
    assert!(matches!(
        list(dir.path(), JournalPolicy::Keep),
        Err(SourceError::Loop { .. })
    ));
}

#[test]
fn sockets_and_pipes_are_told_and_left_out() {
    let dir = tempdir().unwrap();
    let _socket = UnixListener::bind(dir.path().join("mongodb-27017.sock")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let listing = list(dir.path(), JournalPolicy::Keep).unwrap();
    assert!(listing.files.is_empty());
    let reasons: Vec<_> = listing.left_out.iter().map(|l| l.reason).collect();
    assert_eq!(
        reasons,
        [
            LeftOutWhy::Special(SpecialFile::Socket),
            LeftOutWhy::Special(SpecialFile::Fifo)
        ]
    );
}

#[test]
fn a_name_that_is_not_utf8_is_an_error() {
    let dir = tempdir().unwrap();
    write(dir.path().join(OsStr::from_bytes(b"bad\xff")), b"").unwrap();
    let error = list(dir.path(), JournalPolicy::Keep).unwrap_err();
    assert!(matches!(error, SourceError::NotUtf8 { .. }));
    assert!(error.to_string().contains(r"bad\xFF"), "{error}");
}
