//! Trees of files with everything that a snapshot keeps, their backup, and their comparison.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pbmfs_agent::DirectorySource;
use pbmfs_agent::backup::{BackupOptions, BackupProgress, Phase, backup};
use pbmfs_agent::restore::{
    JOURNAL_SUFFIX, NoRestoreProgress, PARTIAL_SUFFIX, RestoreError, RestoreOptions, RestoreSummary, restore,
};
use pbmfs_repo::Repository;
use pbmfs_repo::ingest::{Cancel, Progress};
use pbmfs_repo::objects::{Parameters, SnapshotDoc};
use pbmfs_repo::storage::LocalStorage;

/// splitmix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(n + 8);
        while out.len() < n {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(n);
        out
    }
}

/// A directory of files of every sort; returns it once nothing in it changes any more.
pub fn make_tree(root: &Path, seed: u64) {
    let mut dice = Dice(seed);
    fs::create_dir_all(root).unwrap();
    for dir in ["db", "db/index", "journal", "many", "locked"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    let put = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).unwrap();
    put("empty", b"");
    put("storage.bson", b"x");
    put("db/collection-1.wt", &dice.bytes(5_000_001));
    put("db/index/index-2.wt", &b"the quick brown fox ".repeat(90_000));
    put("db.alike", &dice.bytes(70_000));
    put("locked/secret", &dice.bytes(200_000));
    // Equal blocks at many places.
    let again = dice.bytes(300_000);
    put("same-1.wt", &again);
    put("same-2.wt", &again.repeat(3));
    for i in 0..400 {
        let n = dice.below(6000) as usize;
        put(&format!("many/{i:03}"), &dice.bytes(n));
    }
    let sparse = File::create(root.join("sparse.wt")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    sparse.write_all_at(&dice.bytes(200_000), 3 << 20).unwrap();
    sparse.write_all_at(&dice.bytes(100_000), 30 << 20).unwrap();
    let hole = File::create(root.join("hole.wt")).unwrap();
    hole.set_len(1 << 20).unwrap();
    decorate(root, &mut dice);
}

/// Overwrites, cuts and grows some files.
pub fn change_tree(root: &Path, seed: u64) {
    let mut dice = Dice(seed);
    for name in [
        "db/collection-1.wt",
        "same-2.wt",
        "sparse.wt",
        "many/007",
        "empty",
    ] {
        let file = File::options().write(true).open(root.join(name)).unwrap();
        let len = file.metadata().unwrap().len();
        let at = dice.below(len);
        let n = dice.below(200_000) as usize;
        file.write_all_at(&dice.bytes(n), at).unwrap();
        if dice.below(2) == 0 {
            file.set_len(len / 2 + 1).unwrap();
        }
    }
    fs::write(root.join(format!("new-{seed}")), dice.bytes(100_000)).unwrap();
    decorate(root, &mut dice);
}

/// Modes, owners and times of all sorts; directories last.
fn decorate(root: &Path, dice: &mut Dice) {
    let mut paths = walk(root);
    paths.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    for path in paths {
        let is_dir = path.is_dir();
        let modes = if is_dir {
            [0o700, 0o755, 0o2750]
        } else {
            [0o600, 0o644, 0o440]
        };
        let file = File::open(&path).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(
                &path,
                Some(dice.below(3000) as u32),
                Some(dice.below(3000) as u32),
            )
            .unwrap();
        }
        let mode = modes[dice.below(3) as usize];
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let age = Duration::new(dice.below(1 << 31), dice.below(1_000_000_000) as u32);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30) - age;
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }
    let locked = root.join("locked");
    if locked.exists() {
        fs::set_permissions(&locked, Permissions::from_mode(0o500)).unwrap();
    }
}

fn walk(root: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path.clone());
            }
            out.push(path);
        }
    }
    out
}

/// All that a snapshot keeps of a tree, the bytes as a hash.
pub fn picture(root: &Path) -> BTreeMap<String, String> {
    walk(root)
        .into_iter()
        .map(|path| {
            let meta = fs::symlink_metadata(&path).unwrap();
            let sum = meta
                .is_file()
                .then(|| pbmfs_repo::id::BlockId::of(&fs::read(&path).unwrap()));
            let len = if meta.is_file() { meta.len() } else { 0 };
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
            let time = (meta.mtime(), meta.mtime_nsec());
            (name, format!("{mode:o} {uid}:{gid} {time:?} {len} {sum:?}"))
        })
        .collect()
}

pub fn assert_same(a: &Path, b: &Path) {
    assert_pictured(&picture(a), b);
}

pub fn assert_pictured(a: &BTreeMap<String, String>, b: &Path) {
    let b = picture(b);
    for (name, what) in a {
        assert_eq!(Some(what), b.get(name), "{name}");
    }
    assert_eq!(a.len(), b.len());
}

struct Silent;

impl Progress for Silent {
    fn bytes(&self, _: u64) {}
    fn stored(&self, _: u64) {}
    fn file(&self, _: &str) {}
}

impl BackupProgress for Silent {
    fn phase(&self, _: Phase) {}
}

/// A repository of small packs in a directory.
pub async fn new_repo(path: &Path) -> Repository {
    let parameters = Parameters {
        pack_size: 1 << 20,
        compression_level: 1,
    };
    Repository::init(Arc::new(LocalStorage::new(path)), parameters)
        .await
        .unwrap()
}

pub async fn open_repo(path: &Path) -> Repository {
    Repository::open(Arc::new(LocalStorage::new(path)), 16 << 20)
        .await
        .unwrap()
}

pub async fn back_up(repo: &Repository, root: &Path) -> SnapshotDoc {
    let options = BackupOptions {
        backup_type: pbmfs_agent::BackupType::Physical,
        replset: Some("rs0".into()),
        cluster: None,
        memory: 64 << 20,
        index: pbmfs_repo::local_index::IndexOptions::in_memory(),
        threads: Some(2),
        repository: None,
        tool: "test".into(),
    };
    let mut source = DirectorySource::new(root);
    backup(repo, &mut source, &options, Arc::new(Silent), &Cancel::default())
        .await
        .unwrap()
}

/// Small steps, so that each of them is taken often.
pub fn options(target: &Path) -> RestoreOptions {
    RestoreOptions {
        memory: 32 << 20,
        threads: 3,
        checkpoint_bytes: 1 << 20,
        checkpoint_every: Duration::from_millis(30),
        ..RestoreOptions::new(target)
    }
}

pub async fn run(
    repo: &Repository,
    doc: &SnapshotDoc,
    options: RestoreOptions,
) -> Result<RestoreSummary, RestoreError> {
    restore(
        repo,
        doc.clone(),
        options,
        Arc::new(NoRestoreProgress),
        Cancel::default(),
    )
    .await
}

pub fn partial(target: &Path) -> PathBuf {
    PathBuf::from(format!("{}{PARTIAL_SUFFIX}", target.display()))
}

pub fn journal(target: &Path) -> PathBuf {
    PathBuf::from(format!("{}{JOURNAL_SUFFIX}", target.display()))
}

/// Nothing but perhaps the target itself is there.
pub fn assert_clean(target: &Path) {
    assert!(!partial(target).exists() && !journal(target).exists());
}
