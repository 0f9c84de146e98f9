//! What every storage must do, asked of each of them; and what a local directory does when the disk is full or may
//! not be written.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use common::*;
use pbmfs_repo::RepoError;
use pbmfs_repo::key::ObjectKey;
use pbmfs_repo::storage::{LocalStorage, MemoryStorage, PutOutcome, Storage, StorageError, list_all};

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

async fn keys(storage: &dyn Storage, prefix: &str) -> Vec<String> {
    let listed = list_all(storage, prefix).await.unwrap();
    listed.into_iter().map(|l| l.key.to_string()).collect()
}

/// What every storage must do.
async fn conforms(storage: &dyn Storage) {
    assert!(keys(storage, "").await.is_empty());
    assert!(keys(storage, "packs/").await.is_empty());
    let a = key("leases/a");
    assert!(storage.get(&a).await.unwrap_err().is_not_found());
    assert!(storage.get_range(&a, 0, 1).await.unwrap_err().is_not_found());
    assert!(storage.head(&a).await.unwrap_err().is_not_found());
    storage.delete(&a).await.unwrap();

    // The first put stays.
    let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"second"));
    assert_eq!(
        storage.put_if_absent(&a, one.clone()).await.unwrap(),
        PutOutcome::Created
    );
    assert_eq!(
        storage.put_if_absent(&a, two.clone()).await.unwrap(),
        PutOutcome::Exists
    );
    let twice = storage.put_once(&a, two.clone()).await.unwrap_err();
    assert!(matches!(&twice, StorageError::AlreadyThere(k) if *k == a) && !twice.outcome_unknown());
    assert_eq!(storage.get(&a).await.unwrap(), one);
    storage.put(&a, two.clone()).await.unwrap();
    assert_eq!(storage.get(&a).await.unwrap(), two);
    assert_eq!(storage.head(&a).await.unwrap(), 6);
    storage.put(&a, Bytes::new()).await.unwrap();
    assert_eq!(storage.get(&a).await.unwrap(), Bytes::new());
    assert_eq!(
        storage.put_if_absent(&a, one.clone()).await.unwrap(),
        PutOutcome::Exists
    );

    // Ranges.
    let r = key("packs/ab/r");
    let bytes: Bytes = Dice(1).bytes(10_000).into();
    storage.put_once(&r, bytes.clone()).await.unwrap();
    for (from, len) in [
        (0, 10_000),
        (0, 0),
        (10_000, 0),
        (9_999, 1),
        (4095, 2),
        (17, 9000),
    ] {
        let range = storage.get_range(&r, from, len).await.unwrap();
        assert_eq!(range, bytes.slice(from as usize..(from + len) as usize));
    }
    for (from, len) in [
        (0, 10_001),
        (10_000, 1),
        (10_001, 0),
        (u64::MAX, 1),
        (1, u64::MAX),
        (0, u64::MAX),
    ] {
        let e = storage.get_range(&r, from, len).await.unwrap_err();
        assert!(matches!(e, StorageError::OutOfRange { .. }), "{from}+{len}: {e}");
    }

    // Deleted twice, and put again.
    storage.delete(&r).await.unwrap();
    storage.delete(&r).await.unwrap();
    assert!(storage.get(&r).await.unwrap_err().is_not_found());
    assert_eq!(
        storage.put_if_absent(&r, one.clone()).await.unwrap(),
        PutOutcome::Created
    );
    storage.delete(&r).await.unwrap();
    storage.delete(&a).await.unwrap();

    // The order of whole keys, in which '/' stands between '.' and '0'.
    let sorted = [
        "packs/00/x",
        "packs/ab-c",
        "packs/ab.x/y",
        "packs/ab/1",
        "packs/ab/1.x",
        "packs/ab/10",
        "packs/ab/2/3/4",
        "packs/ab0",
        "packs/ac/1",
        "packsx/1",
        "snapshots/n/snapshot.json",
    ];
    for name in sorted.iter().rev() {
        storage
            .put_once(&key(name), Bytes::copy_from_slice(name.as_bytes()))
            .await
            .unwrap();
    }
    assert_eq!(keys(storage, "").await, sorted);
    for prefix in [
        "packs/",
        "packs",
        "packs/ab",
        "packs/ab/",
        "packs/ab/1",
        "packs/ab/2/",
        "packs/ac/1",
        "s",
        "q",
        "packs/ab/1/",
    ] {
        let expected: Vec<_> = sorted.into_iter().filter(|k| k.starts_with(prefix)).collect();
        assert_eq!(keys(storage, prefix).await, expected, "{prefix}");
        // From the middle of a listing on.
        for from in sorted.iter().filter(|k| k.starts_with(prefix)) {
            let page = storage.list(prefix, Some((*from).to_string())).await.unwrap();
            let expected: Vec<_> = sorted
                .iter()
                .filter(|k| k.starts_with(prefix) && k > &from)
                .collect();
            let found: Vec<_> = page.objects.iter().map(|o| o.key.as_str()).collect();
            assert!(
                expected.iter().zip(&found).all(|(a, b)| **a == *b),
                "{prefix} from {from}: {found:?}"
            );
            assert!(found.len() == expected.len() || page.next.is_some());
        }
    }
    for listed in list_all(storage, "").await.unwrap() {
        assert_eq!(listed.size, listed.key.as_str().len() as u64);
        storage.delete(&listed.key).await.unwrap();
    }
    assert!(keys(storage, "").await.is_empty());
}

#[tokio::test]
async fn memory_conforms() {
    conforms(&MemoryStorage::default()).await;
    conforms(&MemoryStorage::with_page(1)).await;
    conforms(&MemoryStorage::with_page(3)).await;
}

#[tokio::test]
async fn a_local_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    // It need not exist before.
    let storage = LocalStorage::new(dir.path().join("not/yet/there"));
    conforms(&storage).await;
    assert!(
        fs::read_dir(dir.path().join("not/yet/there/tmp"))
            .unwrap()
            .next()
            .is_none()
    );
}

/// Objects that come and go while a listing runs are in it or not; all others are in it once.
async fn pages(storage: &dyn Storage, expected: &[String]) {
    let mut found = Vec::new();
    let (mut from, mut pages) = (None, 0);
    loop {
        let page = storage.list("packs/", from).await.unwrap();
        found.extend(page.objects.iter().map(|o| o.key.to_string()));
        pages += 1;
        storage
            .put(&key(&format!("packs/zz/{pages}")), Bytes::new())
            .await
            .unwrap();
        storage
            .put(&key(&format!("packs/00/{pages}-")), Bytes::new())
            .await
            .unwrap();
        match page.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    assert!(pages >= 3, "{pages} pages");
    found.retain(|k| !k.starts_with("packs/zz/") && !k.starts_with("packs/00/"));
    assert!(
        found == expected,
        "{} keys found, {} are there",
        found.len(),
        expected.len()
    );
}

#[tokio::test]
async fn long_listings_come_in_pages() {
    let mut expected: Vec<String> = (0..21_000u32)
        .map(|i| format!("packs/{:02x}/{:08x}", 1 + i % 200, i.wrapping_mul(2_654_435_761)))
        .collect();
    expected.sort();
    let memory = MemoryStorage::default();
    let dir = tempfile::tempdir().unwrap();
    for name in &expected {
        memory.tamper(&key(name), Some(Bytes::new()));
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"").unwrap();
    }
    pages(&memory, &expected).await;
    pages(&LocalStorage::new(dir.path()), &expected).await;
}

#[tokio::test]
async fn foreign_files_are_no_objects() {
    let dir = tempfile::tempdir().unwrap();
    let storage = LocalStorage::new(dir.path());
    storage
        .put(&key("packs/ab/real"), Bytes::from_static(b"x"))
        .await
        .unwrap();
    let at = |name: &str| dir.path().join(name);
    std::os::unix::fs::symlink("/nowhere", at("packs/dangling")).unwrap();
    std::os::unix::fs::symlink("/tmp", at("packs/to-a-directory")).unwrap();
    fs::create_dir(at("packs/empty")).unwrap();
    fs::write(at("packs/line\nbreak"), b"").unwrap();
    fs::write(at("tmp/being-written"), b"").unwrap();
    fs::write(at("packs").join(OsStr::from_bytes(b"\xff\xfe")), b"").unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(at("packs/fifo"))
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(keys(&storage, "packs/").await, ["packs/ab/real"]);
    assert_eq!(keys(&storage, "").await, ["packs/ab/real"]);
    // A directory in the place of an object.
    let empty = key("packs/empty");
    assert!(storage.get(&empty).await.unwrap_err().is_not_found());
    assert!(storage.get_range(&empty, 0, 1).await.unwrap_err().is_not_found());
    // Nothing can be put there, and whoever is about to is told.
    let head = storage.head(&empty).await.unwrap_err();
    assert!(
        head.to_string().contains("a directory stands in its place"),
        "{head}"
    );
}

#[tokio::test]
async fn a_sweep_takes_old_files_of_dead_writers() {
    let dir = tempfile::tempdir().unwrap();
    let storage = LocalStorage::new(dir.path());
    storage.put(&key("a"), Bytes::new()).await.unwrap();
    let old = SystemTime::now() - Duration::from_secs(3600);
    let file = |name: &str, at: SystemTime| {
        let file = fs::File::create(dir.path().join("tmp").join(name)).unwrap();
        file.set_modified(at).unwrap();
        file
    };
    drop(file("1-dead", old));
    drop(file("2-young", SystemTime::now()));
    let alive = file("3-alive", old);
    alive.lock().unwrap();
    assert_eq!(storage.sweep(), 1);
    let mut left: Vec<_> = fs::read_dir(dir.path().join("tmp"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["2-young", "3-alive"]);
    drop(alive);
    assert_eq!(storage.sweep(), 1);
}

/// A mount that is gone when dropped. Needs root, as the tests of the mount do.
struct Mounted(PathBuf);

impl Mounted {
    fn run(args: &[&str], dir: &Path) {
        let status = Command::new("mount").args(args).arg(dir).status().unwrap();
        assert!(status.success(), "mount {args:?} {}", dir.display());
    }

    fn tmpfs(dir: &Path, size: &str) -> Self {
        Self::run(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], dir);
        Self(dir.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_damages_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mount = Mounted::tmpfs(dir.path(), "4m");
    let storage = Arc::new(LocalStorage::new(&mount.0));
    let repo = new_repo(storage.clone()).await;
    let mut small = Files::default();
    small.0.insert("a".into(), Some(Dice(1).bytes(600_000)));
    let first = backup(&repo, &small, None).await.unwrap();
    let mut large = small.clone();
    large.0.insert("b".into(), Some(Dice(2).bytes(6 << 20)));
    let e = backup(&repo, &large, Some(&first)).await.unwrap_err();
    assert!(
        matches!(e, RepoError::Storage(StorageError::NoSpace { .. })),
        "{e}"
    );
    assert!(e.to_string().contains("no space left"), "{e}");
    // Puts that were called off end in threads that nobody waits for; each takes its temporary file away.
    for _ in 0..200 {
        if fs::read_dir(mount.0.join("tmp")).unwrap().next().is_none() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(fs::read_dir(mount.0.join("tmp")).unwrap().next().is_none());
    assert_eq!(keys(&*storage, "leases/").await, [""; 0]);
    assert_same(&repo, &first, &small).await;
    // What landed is garbage; room is made, and the next backup works.
    for listed in list_all(&*storage, "packs/").await.unwrap() {
        if listed.size > 900_000 {
            storage.delete(&listed.key).await.unwrap();
        }
    }
    small.touch_all();
    let second = backup(&repo, &small, Some(&first)).await.unwrap();
    assert_same(&repo, &second, &small).await;
    // Not even an empty object fits when there is no page left.
    let _ = fs::write(mount.0.join("fill"), vec![1; 8 << 20]);
    for put in [
        storage.put(&key("leases/x"), vec![1; 9000].into()).await,
        storage.put_once(&key("leases/y"), vec![1; 9000].into()).await,
    ] {
        assert!(matches!(put.unwrap_err(), StorageError::NoSpace { .. }));
    }
    assert_eq!(keys(&*storage, "leases/").await, [""; 0]);
    drop(mount);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_may_not_be_written_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let repo = new_repo(Arc::new(LocalStorage::new(dir.path()))).await;
    let mut files = Files::default();
    files.0.insert("a".into(), Some(Dice(1).bytes(100_000)));
    let doc = backup(&repo, &files, None).await.unwrap();
    let mount = Mounted(dir.path().to_owned());
    Mounted::run(&["--bind", dir.path().to_str().unwrap()], dir.path());
    Mounted::run(&["-o", "remount,ro,bind"], dir.path());
    let e = backup(&repo, &files, Some(&doc)).await.unwrap_err();
    assert!(
        matches!(e, RepoError::Storage(StorageError::Permission { .. })),
        "{e}"
    );
    let storage = repo.storage();
    for e in [
        storage.put(&key("beats/x"), Bytes::new()).await.unwrap_err(),
        storage.delete(&ObjectKey::snapshot(&doc.name)).await.unwrap_err(),
    ] {
        assert!(matches!(e, StorageError::Permission { .. }), "{e}");
    }
    assert_same(&repo, &doc, &files).await;
    drop(mount);
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", place.path().join("dangling")).unwrap();
    for root in [place.path().join("dangling/repo"), "/proc/pbm-fs/repo".into()] {
        let storage = LocalStorage::new(&root);
        let put = storage.put_if_absent(&key("repo.json"), Bytes::new()).await;
        assert!(matches!(put, Err(StorageError::Failed { .. })), "{put:?}");
    }
}
