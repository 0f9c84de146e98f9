//! Snapshots of real repositories, mounted. Needs root and /dev/fuse.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;
#[path = "../../repo/tests/common/mod.rs"]
mod repository;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use common::{Mounted, cat, run, sh, sh_fails};
use pbmfs_fusefs::tree::{Entry, Ino, NodeKind};
use pbmfs_fusefs::{Ended, Fs, FsConfig, FsError, MountConfig, SnapshotTree};
use pbmfs_repo::Repository;
use pbmfs_repo::key::ObjectKey;
use pbmfs_repo::objects::{JsonObject, SnapshotDoc, TombstoneDoc};
use pbmfs_repo::storage::{CountingStorage, LocalStorage, MemoryStorage, Storage};
use repository::{Dice, Files, backup, new_repo, sample_files};

/// Opens the repository anew, so that nothing comes from a cache of the writer.
async fn open(storage: Arc<dyn Storage>, doc: &SnapshotDoc) -> SnapshotTree {
    let repo = Repository::open(storage, 16 << 20).await.unwrap();
    let doc = repo.snapshot(&doc.name).await.unwrap();
    SnapshotTree::open(&repo, doc).await.unwrap()
}

/// Every path below `dir` with its inode and kind.
async fn walk(fs: &Fs<SnapshotTree>, dir: Ino, prefix: String, out: &mut BTreeMap<String, (Ino, NodeKind)>) {
    let mut children: Vec<Entry> = Vec::new();
    // A few at a time, as the kernel asks.
    let (mut cookie, mut more) = (0, true);
    while more {
        let (mut taken, mut after) = (0, cookie);
        let take = |entry: &Entry| {
            if taken == 7 {
                return false;
            }
            taken += 1;
            after = entry.cookie;
            if entry.name != "." && entry.name != ".." {
                children.push(entry.clone());
            }
            true
        };
        fs.list(dir, cookie, take).await.unwrap();
        (cookie, more) = (after, taken > 0);
    }
    for child in children {
        let name = child.name.to_str().unwrap();
        let path = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}/{name}")
        };
        assert_eq!(fs.lookup(dir, &child.name).await.unwrap(), child.attr, "{path}");
        assert_eq!(fs.attr(child.attr.ino).await.unwrap(), child.attr, "{path}");
        assert!(
            out.insert(path.clone(), (child.attr.ino, child.attr.kind))
                .is_none(),
            "{path} twice"
        );
        if child.attr.kind == NodeKind::Directory {
            Box::pin(walk(fs, child.attr.ino, path, out)).await;
        }
    }
}

async fn read(fs: &Arc<Fs<SnapshotTree>>, ino: Ino, offset: u64, len: u64) -> Vec<u8> {
    let handle = fs.open(ino).await.unwrap();
    let got = fs.read(handle, offset, len).await.unwrap().to_vec();
    fs.release(handle);
    got
}

/// Names that `find` would show for these files, directories that only paths imply left out.
fn expected(files: &Files) -> BTreeMap<String, NodeKind> {
    let mut names: BTreeMap<String, NodeKind> = files
        .0
        .iter()
        .map(|(path, bytes)| {
            let kind = if bytes.is_some() {
                NodeKind::File
            } else {
                NodeKind::Directory
            };
            (format!("rs/dbpath/{path}"), kind)
        })
        .collect();
    names.insert("rs".into(), NodeKind::Directory);
    names.insert("rs/dbpath".into(), NodeKind::Directory);
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_snapshots_has_the_names_and_bytes_of_each_moment() {
    let storage = Arc::new(MemoryStorage::default());
    let repo = new_repo(storage.clone()).await;
    let mut files = sample_files(21);
    let mut parent = backup(&repo, &files, None).await.unwrap();
    for round in 0..6 {
        files.mutate(500 + round);
        let doc = backup(&repo, &files, Some(&parent)).await.unwrap();
        let tree = open(storage.clone(), &doc).await;
        let fs = Fs::new(
            Arc::new(tree),
            FsConfig::with_budget(16 << 20),
            tokio::runtime::Handle::current(),
        );
        let mut found = BTreeMap::new();
        walk(&fs, Ino::ROOT, String::new(), &mut found).await;
        let kinds: BTreeMap<String, NodeKind> =
            found.iter().map(|(p, (_, kind))| (p.clone(), *kind)).collect();
        assert_eq!(kinds, expected(&files));
        let mut dice = Dice(round);
        for (path, bytes) in &files.0 {
            let Some(bytes) = bytes else { continue };
            let (ino, _) = found[&format!("rs/dbpath/{path}")];
            assert!(read(&fs, ino, 0, u64::MAX).await == *bytes, "{path}");
            for _ in 0..5 {
                let at = dice.below(bytes.len() as u64 + 10);
                let len = dice.below(200_000);
                let from = (at as usize).min(bytes.len());
                let to = (from + len as usize).min(bytes.len());
                assert!(
                    read(&fs, ino, at, len).await == bytes[from..to],
                    "{path} {at}+{len}"
                );
            }
        }
        let dbpath = found["rs/dbpath"].0;
        for absent in ["nothing", "db/a.wt", ".", "..", "", "db.", "smal"] {
            let error = fs.lookup(dbpath, OsStr::new(absent)).await.unwrap_err();
            assert!(matches!(error, FsError::NotFound), "{absent}: {error}");
        }
        let last = found.values().map(|(ino, _)| ino.0).max().unwrap();
        assert!(matches!(fs.attr(Ino(last + 1)).await, Err(FsError::NotFound)));
        parent = doc;
    }
}

fn write_out(files: &Files, dir: &Path) {
    for (path, bytes) in &files.0 {
        let to = dir.join(path);
        match bytes {
            None => std::fs::create_dir_all(to).unwrap(),
            Some(bytes) => {
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::write(to, bytes).unwrap();
            }
        }
    }
}

/// A repository in a directory, with one snapshot.
struct Local {
    home: tempfile::TempDir,
    storage: Arc<LocalStorage>,
    doc: SnapshotDoc,
    runtime: tokio::runtime::Runtime,
}

impl Local {
    fn new(files: &Files) -> Self {
        let home = tempfile::tempdir().unwrap();
        let storage = Arc::new(LocalStorage::new(home.path().join("repo")));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let doc = runtime.block_on(async {
            backup(&new_repo(storage.clone()).await, files, None)
                .await
                .unwrap()
        });
        Self {
            home,
            storage,
            doc,
            runtime,
        }
    }

    fn mount(&self, budget: u64) -> Mounted<SnapshotTree> {
        let tree = self.runtime.block_on(open(self.storage.clone(), &self.doc));
        Mounted::with(tree, FsConfig::with_budget(budget), &MountConfig::default())
    }

    fn packs(&self) -> Vec<std::path::PathBuf> {
        let list = sh(&format!("find {}/repo/packs -type f", self.home.path().display()));
        list.lines().map(Into::into).collect()
    }
}

#[test]
fn a_mounted_snapshot_is_identical_to_its_files() {
    let files = sample_files(33);
    let local = Local::new(&files);
    let plain = local.home.path().join("plain");
    write_out(&files, &plain);
    let mount = local.mount(32 << 20);
    sh(&format!(
        "diff -r {} {}",
        plain.display(),
        mount.file("rs/dbpath")
    ));
    let small = mount.file("rs/dbpath/small");
    assert_eq!(sh(&format!("ls {small} | wc -l")).trim(), "300");
    assert_eq!(
        sh(&format!(
            "stat -c '%a %u %g %s' {}",
            mount.file("rs/dbpath/zeros")
        )),
        "640 3 4 700000\n"
    );
    let copy = local.home.path().join("copy");
    sh(&format!("cp -r {} {}", mount.file("rs/dbpath"), copy.display()));
    assert_eq!(mount.stop().unwrap(), Ended::Stopped);
    sh(&format!("diff -r {} {}", plain.display(), copy.display()));
}

#[test]
fn a_flipped_bit_is_an_io_error_that_names_the_place_and_nothing_else_is_lost() {
    let mut files = Files::default();
    let content = Dice(5).bytes(3 << 20);
    files.0.insert("f.wt".into(), Some(content.clone()));
    files.0.insert("g.wt".into(), Some(b"spared".to_vec()));
    let local = Local::new(&files);
    // Random bytes do not shrink, so the file's bytes stand in a pack as they are.
    let needle = &content[1_000_000..1_000_016];
    let (path, at) = local
        .packs()
        .into_iter()
        .find_map(|path| {
            let bytes = std::fs::read(&path).unwrap();
            bytes.windows(16).position(|w| w == needle).map(|at| (path, at))
        })
        .unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at] ^= 1;
    sh(&format!("chmod u+w {}", path.display()));
    std::fs::write(&path, bytes).unwrap();

    let tree = local.runtime.block_on(open(local.storage.clone(), &local.doc));
    let fs = Fs::new(
        Arc::new(tree),
        FsConfig::with_budget(16 << 20),
        local.runtime.handle().clone(),
    );
    let error = local.runtime.block_on(async {
        let mut at = Ino::ROOT;
        for name in ["rs", "dbpath", "f.wt"] {
            at = fs.lookup(at, OsStr::new(name)).await.unwrap().ino;
        }
        let handle = fs.open(at).await.unwrap();
        fs.read(handle, 900_000, 200_000).await.unwrap_err()
    });
    let FsError::Damaged(damage) = error else {
        panic!("{error}")
    };
    assert_eq!(damage.file, "rs/dbpath/f.wt");
    assert_eq!(damage.offset, 1_000_000 >> 16 << 16);
    assert!(
        path.ends_with(&damage.pack),
        "{} is not {}",
        damage.pack,
        path.display()
    );
    assert!(damage.block.contains("slot"), "{}", damage.block);

    let mount = local.mount(16 << 20);
    let output = run("cat", &[&mount.file("rs/dbpath/f.wt")]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("Input/output error"));
    assert!(content.starts_with(&output.stdout) && output.stdout.len() <= 1_000_000);
    assert_eq!(cat(&mount.file("rs/dbpath/g.wt")), b"spared");
    let after = (1_000_000 >> 16) + 1;
    let tail = format!(
        "dd if={} iflag=direct bs=64k skip={after} status=none",
        mount.file("rs/dbpath/f.wt")
    );
    assert!(run("sh", &["-c", &tail]).stdout == content[after << 16..]);
}

#[test]
fn a_snapshot_deleted_under_the_mount_is_stale() {
    let mut files = Files::default();
    files.0.insert("read.wt".into(), Some(Dice(1).bytes(100_000)));
    files.0.insert("unread.wt".into(), Some(Dice(2).bytes(100_000)));
    let local = Local::new(&files);
    let mount = local.mount(16 << 20);
    let read = cat(&mount.file("rs/dbpath/read.wt"));
    let key = ObjectKey::snapshot(&local.doc.name);
    let tombstone = TombstoneDoc {
        why: "deleted".into(),
        lease: None,
        at: jiff::Timestamp::now(),
    };
    local
        .runtime
        .block_on(local.storage.put(&key, tombstone.to_object(&key)))
        .unwrap();
    sh(&format!("rm -r {}/repo/packs", local.home.path().display()));
    let error = sh_fails(&format!("cat {}", mount.file("rs/dbpath/unread.wt")));
    assert!(error.contains("Stale file handle"), "{error}");
    // What the kernel has, it has.
    assert_eq!(cat(&mount.file("rs/dbpath/read.wt")), read);
    assert_eq!(mount.stop().unwrap(), Ended::Stopped);
}

#[test]
fn the_first_byte_costs_few_requests() {
    let mut files = sample_files(3);
    files.0.insert("large.wt".into(), Some(Dice(9).bytes(40 << 20)));
    let local = Local::new(&files);
    let counting = Arc::new(CountingStorage::new(local.storage.clone()));
    let tree = local.runtime.block_on(open(counting.clone(), &local.doc));
    let mount = Mounted::with(tree, FsConfig::with_budget(32 << 20), &MountConfig::default());
    sh(&format!("head -c 1 {}", mount.file("rs/dbpath/large.wt")));
    let requests = counting.counts().reads();
    eprintln!("{requests} storage requests from nothing to the first byte");
    assert!(requests <= 16, "{requests}");
}
