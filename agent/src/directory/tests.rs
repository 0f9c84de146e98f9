use std::fs::{OpenOptions, create_dir, create_dir_all, remove_file, rename, write};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use tempfile::{TempDir, tempdir};

use super::*;
use crate::error::ErrorKind;

fn dbpath() -> TempDir {
    let dir = tempdir().unwrap();
    create_dir(dir.path().join("journal")).unwrap();
    write(dir.path().join("journal/WiredTigerLog.0000000001"), b"log").unwrap();
    write(dir.path().join("collection-0.wt"), b"data").unwrap();
    // As a crashed mongod leaves it: not empty, and held by nobody.
    write(dir.path().join("mongod.lock"), b"4711\n").unwrap();
    dir
}

#[tokio::test]
async fn a_crashed_servers_directory_is_taken_with_its_journal() {
    let dir = dbpath();
    let mut source = DirectorySource::new(dir.path());
    let pinned = source.open().await.unwrap();
    let paths: Vec<_> = pinned.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(
        paths,
        ["collection-0.wt", "journal", "journal/WiredTigerLog.0000000001"]
    );
    assert_eq!(pinned.root, dir.path());
    assert_eq!(pinned.info.source, SourceKind::Directory);
    source.check().unwrap();
    source.release().await.unwrap();
    assert!(matches!(source.release().await, Err(SourceError::NotOpen)));
    assert!(matches!(source.check(), Err(SourceError::NotOpen)));
}

#[tokio::test]
async fn a_held_lock_is_refused_at_every_step() {
    let dir = dbpath();
    let mut source = DirectorySource::new(dir.path());
    source.open().await.unwrap();

    let held = OpenOptions::new()
        .write(true)
        .open(dir.path().join("mongod.lock"))
        .unwrap();
    flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(source.check().unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(source.release().await.unwrap_err().kind(), ErrorKind::Busy);
    let error = DirectorySource::new(dir.path()).open().await.unwrap_err();
    assert!(
        error.to_string().contains("in use by a running mongod"),
        "{error}"
    );

    drop(held);
    DirectorySource::new(dir.path()).open().await.unwrap();
}

#[tokio::test]
async fn our_own_attempt_leaves_the_lock_free() {
    let dir = dbpath();
    let mut source = DirectorySource::new(dir.path());
    source.open().await.unwrap();
    let mongod = OpenOptions::new()
        .write(true)
        .open(dir.path().join("mongod.lock"))
        .unwrap();
    flock(&mongod, FlockOperation::NonBlockingLockExclusive).unwrap();
}

/// Runs `change` between open and release and returns the path that release names.
async fn changed(change: impl FnOnce(&Path)) -> Option<PathBuf> {
    let dir = dbpath();
    create_dir_all(dir.path().join("db/index")).unwrap();
    let mut source = DirectorySource::new(dir.path());
    source.open().await.unwrap();
    // Coarse file systems give two changes within a tick the same time.
    tokio::time::sleep(Duration::from_millis(20)).await;
    change(dir.path());
    match source.release().await {
        Ok(()) => None,
        Err(SourceError::Changed { path }) => Some(path.strip_prefix(dir.path()).unwrap().to_owned()),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn changes_are_noticed_and_name_the_file() {
    let file = Some(PathBuf::from("collection-0.wt"));
    assert_eq!(changed(|_| ()).await, None);
    assert_eq!(
        changed(|dir| write(dir.join("collection-0.wt"), b"DATA").unwrap()).await,
        file
    );
    assert_eq!(
        changed(|dir| write(dir.join("collection-0.wt"), b"longer").unwrap()).await,
        file
    );
    assert_eq!(
        changed(|dir| remove_file(dir.join("collection-0.wt")).unwrap()).await,
        file
    );
    // Replaced by an equal one.
    assert_eq!(
        changed(|dir| {
            write(dir.join("new"), b"data").unwrap();
            rename(dir.join("new"), dir.join("collection-0.wt")).unwrap();
        })
        .await,
        file
    );
    // Written to with the mtime put back: the ctime tells.
    assert_eq!(
        changed(|dir| {
            let file = OpenOptions::new()
                .write(true)
                .open(dir.join("collection-0.wt"))
                .unwrap();
            let before = file.metadata().unwrap().modified().unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            file.set_modified(before).unwrap();
        })
        .await,
        file
    );
    assert_eq!(
        changed(|dir| write(dir.join("db/index/1.wt"), b"").unwrap()).await,
        Some("db/index".into())
    );
}

#[tokio::test]
async fn bad_directories_are_named_in_one_sentence() {
    let dir = tempdir().unwrap();
    let open = async |path: &Path| DirectorySource::new(path).open().await.unwrap_err();

    let missing = open(&dir.path().join("nowhere")).await;
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(
        missing.to_string().contains("nowhere does not exist"),
        "{missing}"
    );

    write(dir.path().join("file"), b"").unwrap();
    assert_eq!(open(&dir.path().join("file")).await.kind(), ErrorKind::Usage);
    assert_eq!(
        open(&dir.path().join("file/below")).await.kind(),
        ErrorKind::Usage
    );

    let closed = dir.path().join("closed");
    create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything.
    if fs::read_dir(&closed).is_err() {
        let error = open(&closed).await;
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("closed cannot be read"), "{error}");
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
}
