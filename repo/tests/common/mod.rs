//! Files in memory, and their backup into a repository.
#![allow(dead_code, clippy::unwrap_used)]

pub mod forge;
pub mod gc_tool;
pub mod golden;
pub mod packs;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use pbmfs_repo::files::{FileKind, FileMeta, path_order};
use pbmfs_repo::index::{KnownBlocks, MemoryIndex};
use pbmfs_repo::ingest::{
    Cancel, Changes, Cutter, FixedCutter, IngestOptions, Ingested, Input, Job, NoProgress, ReadAt, ingest,
};
use pbmfs_repo::local_index::{Index, IndexOptions, LEAST_MEMORY};
use pbmfs_repo::map::MapParams;
use pbmfs_repo::objects::{ClusterRef, Parameters, ReplsetDoc, SnapshotDoc};
use pbmfs_repo::storage::Storage;
use pbmfs_repo::{ReplsetReader, RepoError, Repository, Session, SnapshotReader};

/// Whether long campaigns run whole: `PBMFS_CAMPAIGN=full`.
pub fn full() -> bool {
    std::env::var("PBMFS_CAMPAIGN").is_ok_and(|v| v == "full")
}

/// splitmix64: good enough for data, and the same everywhere.
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

/// A tree of files; a directory has no bytes.
#[derive(Debug, Clone, Default)]
pub struct Files(pub BTreeMap<String, Option<Vec<u8>>>, pub i64);

impl Files {
    pub fn total(&self) -> u64 {
        self.0.values().flatten().map(|b| b.len() as u64).sum()
    }

    pub fn touch_all(&mut self) {
        self.1 += 1;
    }

    pub fn metas(&self) -> Vec<FileMeta> {
        let mut out: Vec<_> = self
            .0
            .iter()
            .map(|(path, bytes)| FileMeta {
                path: path.clone(),
                kind: if bytes.is_some() {
                    FileKind::Regular
                } else {
                    FileKind::Directory
                },
                mode: 0o640,
                uid: 3,
                gid: 4,
                mtime: (self.1, 5),
                size: bytes.as_ref().map_or(0, |b| b.len() as u64),
            })
            .collect();
        out.sort_by(|a, b| path_order(&a.path, &b.path));
        out
    }

    /// Overwrites, cuts, grows, adds and removes files.
    pub fn mutate(&mut self, seed: u64) {
        let mut dice = Dice(seed);
        let names: Vec<String> = self
            .0
            .iter()
            .filter(|(_, b)| b.is_some())
            .map(|(p, _)| p.clone())
            .collect();
        for _ in 0..6 {
            let name = &names[dice.below(names.len() as u64) as usize];
            let Some(Some(bytes)) = self.0.get_mut(name) else {
                continue;
            };
            let at = dice.below(bytes.len() as u64 + 1) as usize;
            let n = dice.below(300_000) as usize;
            match dice.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.extend(dice.bytes(n)),
                2 => bytes.extend(vec![0; n]),
                3 => {
                    let end = (at + n).min(bytes.len());
                    bytes[at..end].fill(0);
                }
                _ => {
                    let end = (at + n).min(bytes.len());
                    let new = dice.bytes(end - at);
                    bytes[at..end].copy_from_slice(&new);
                }
            }
        }
        let n = dice.below(200_000) as usize;
        self.0.insert(format!("new-{seed}.wt"), Some(dice.bytes(n)));
        if dice.below(3) == 0 {
            let name = &names[dice.below(names.len() as u64) as usize];
            self.0.remove(name);
        }
    }
}

pub fn sample_files(seed: u64) -> Files {
    let mut dice = Dice(seed);
    let mut files = Files::default();
    files.0.insert("empty".into(), Some(Vec::new()));
    files.0.insert("journal".into(), None);
    files.0.insert("db".into(), None);
    files.0.insert("db/a.wt".into(), Some(dice.bytes(3_000_001)));
    files.0.insert("db.x".into(), Some(dice.bytes(1)));
    files
        .0
        .insert("collection-1.wt".into(), Some(dice.bytes(5 << 20)));
    files.0.insert("zeros".into(), Some(vec![0; 700_000]));
    files
        .0
        .insert("text".into(), Some(b"the quick brown fox ".repeat(100_000)));
    let mut mixed = dice.bytes(200_000);
    mixed.extend(vec![0; 900_000]);
    mixed.extend(dice.bytes(65_536 * 3));
    files.0.insert("mixed.wt".into(), Some(mixed));
    files
        .0
        .insert("scattered.1k".into(), Some(scattered_bytes(&mut dice, 500)));
    for i in 0..300 {
        let n = dice.below(9000) as usize;
        files.0.insert(format!("small/{i:04}.wt"), Some(dice.bytes(n)));
    }
    files.0.insert("small".into(), None);
    files
}

/// Where `new` differs from `old`, as a server names it: in granules, now and then one too many, sorted or not, and the
/// last one beyond the file's end.
pub fn named_changes(old: &Files, new: &Files, granule: usize, dice: &mut Dice) -> Named {
    let mut out = Named::new();
    for (path, bytes) in &new.0 {
        let (Some(bytes), Some(Some(before))) = (bytes, old.0.get(path)) else {
            continue;
        };
        let mut ranges = Vec::new();
        for (i, part) in bytes.chunks(granule).enumerate() {
            let from = i * granule;
            let was = &before[from.min(before.len())..(from + granule).min(before.len())];
            if part != was || dice.below(40) == 0 {
                ranges.push(from as u64..(from + granule) as u64);
            }
        }
        if dice.below(2) == 0 {
            ranges.reverse();
        }
        if dice.below(8) == 0 {
            // A phantom: all of it behind the end.
            let end = (bytes.len() + granule) as u64;
            ranges.push(end..end + granule as u64);
        }
        out.insert(path.clone(), ranges);
    }
    out
}

/// Blocks of 1 KiB, so that small files have maps of several levels.
struct SmallCutter;

impl Cutter for SmallCutter {
    fn cut(&mut self, _: u64, window: &[u8], last: bool) -> Vec<u32> {
        let mut out = vec![1024; window.len() / 1024];
        let rest = window.len() % 1024;
        if last && rest > 0 {
            out.push(rest as u32);
        }
        out
    }
}

/// Blocks of 1 KiB in an order that leaves hardly a run: some come twice, some are holes.
pub fn scattered_bytes(dice: &mut Dice, blocks: usize) -> Vec<u8> {
    let some = dice.bytes(64 * 1024);
    let mut out = Vec::with_capacity(blocks * 1024);
    for _ in 0..blocks {
        let from = dice.below(64) as usize * 1024;
        match dice.below(8) {
            0 => out.extend([0; 1024]),
            1 => out.extend(dice.bytes(1024)),
            _ => out.extend_from_slice(&some[from..from + 1024]),
        }
    }
    out
}

/// What changed in each file; a file that is not named did not change.
pub type Named = BTreeMap<String, Vec<Range<u64>>>;

/// What was read of which file.
pub type Reads = Arc<Mutex<Vec<(String, Range<u64>)>>>;

struct Memory {
    files: Files,
    changes: Option<Named>,
    reads: Reads,
}

struct OpenMemory {
    path: String,
    bytes: Vec<u8>,
    reads: Reads,
}

impl ReadAt for OpenMemory {
    fn read_exact_at(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let range = offset..offset + out.len() as u64;
        let found = self.bytes.get(range.start as usize..range.end as usize);
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        self.reads.lock().unwrap().push((self.path.clone(), range));
        Ok(())
    }
}

impl Input for Memory {
    fn open(&self, file: &FileMeta) -> io::Result<Box<dyn ReadAt>> {
        let bytes = self.files.0.get(&file.path).cloned().flatten();
        Ok(Box::new(OpenMemory {
            path: file.path.clone(),
            bytes: bytes.ok_or(io::ErrorKind::NotFound)?,
            reads: self.reads.clone(),
        }))
    }

    fn changes(&self, file: &FileMeta) -> Changes {
        match &self.changes {
            None => Changes::Whole,
            Some(named) => Changes::Ranges(named.get(&file.path).cloned().unwrap_or_default()),
        }
    }

    fn cutter(&self, file: &FileMeta) -> Box<dyn Cutter> {
        if file.path.ends_with(".1k") {
            Box::new(SmallCutter)
        } else {
            Box::new(FixedCutter)
        }
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

pub const OPTIONS: IngestOptions = IngestOptions {
    memory: 64 << 20,
    threads: 2,
    pack_size: 1 << 20,
    level: 1,
    map: MapParams {
        leaf: 128,
        inner: 256,
    },
};

pub async fn new_repo(storage: Arc<dyn Storage>) -> Repository {
    Repository::init(
        storage,
        Parameters {
            pack_size: 1 << 20,
            compression_level: 1,
        },
    )
    .await
    .unwrap()
}

pub async fn backup(
    repo: &Repository,
    files: &Files,
    parent: Option<&SnapshotDoc>,
) -> Result<SnapshotDoc, RepoError> {
    backup_metas(repo, files, files.metas(), parent).await
}

/// A backup whose list of files may differ from what is there.
pub async fn backup_metas(
    repo: &Repository,
    files: &Files,
    metas: Vec<FileMeta>,
    parent: Option<&SnapshotDoc>,
) -> Result<SnapshotDoc, RepoError> {
    let session = Session::begin(repo, "backup", jiff::Timestamp::now()).await?;
    match store(repo, &session, files, metas, parent, None).await {
        Ok(doc) => session.commit(&doc).await.map(|()| doc),
        Err(e) => {
            session.abandon().await;
            Err(e)
        }
    }
}

pub async fn store(
    repo: &Repository,
    session: &Session,
    files: &Files,
    metas: Vec<FileMeta>,
    parent: Option<&SnapshotDoc>,
    changes: Option<(Named, Reads)>,
) -> Result<SnapshotDoc, RepoError> {
    let parent = match parent {
        Some(doc) => Some(SnapshotReader::open(repo, doc.clone()).await?.replsets()[0].clone()),
        None => None,
    };
    let done = ingest_files(session, files, metas, parent, changes).await?;
    Ok(SnapshotDoc {
        name: session.name().clone(),
        lease: session.lease(),
        cluster: ClusterRef {
            name: "test".into(),
            id: None,
        },
        backup_type: "physical".into(),
        tool: "test".into(),
        started: jiff::Timestamp::UNIX_EPOCH,
        finished: jiff::Timestamp::UNIX_EPOCH,
        stats: done.stats,
        replsets: vec![ReplsetDoc {
            name: "rs".into(),
            file_list: done.file_list,
            pack_table: done.pack_table,
            chain_head: None,
            node: serde_json::Value::Null,
        }],
    })
}

/// Opens the repository anew, so that nothing comes from a cache, and compares every file.
pub async fn assert_same(repo: &Repository, doc: &SnapshotDoc, files: &Files) {
    let fresh = Repository::open(repo.storage().clone(), 8 << 20).await.unwrap();
    let doc = fresh.snapshot(&doc.name).await.unwrap();
    let reader = SnapshotReader::open(&fresh, doc).await.unwrap();
    let rs = &reader.replsets()[0];
    let metas = files.metas();
    assert_eq!(rs.files().len(), metas.len() as u64);
    for (i, meta) in metas.iter().enumerate() {
        let entry = rs.files().get(i as u64).await.unwrap().unwrap();
        assert_eq!(entry.meta, *meta);
        assert_eq!(rs.files().find(&meta.path).await.unwrap().unwrap().0, i as u64);
        if let Some(bytes) = &files.0[&meta.path] {
            let read = rs.read(&entry, 0, u64::MAX).await.unwrap();
            assert!(read == *bytes, "{} differs", meta.path);
        }
    }
}

/// In these tests, backups of one repository share a local index, as those of the program do.
const WITH_LOCAL_INDEX: [&str; 2] = ["gc_rules", "roundtrip"];

async fn known(session: &Session) -> Result<Arc<dyn KnownBlocks>, RepoError> {
    thread_local! {
        static INDEXES: tempfile::TempDir = tempfile::tempdir().unwrap();
    }
    if !WITH_LOCAL_INDEX.contains(&env!("CARGO_CRATE_NAME")) {
        return Ok(Arc::new(MemoryIndex::load(session).await?));
    }
    let options = INDEXES.with(|place| IndexOptions {
        memory: LEAST_MEMORY,
        share: true,
        ..IndexOptions::below(place.path())
    });
    Ok(Arc::new(Index::open(session, &options).await?))
}

/// Stores the files of one replica set.
pub async fn ingest_files(
    session: &Session,
    files: &Files,
    metas: Vec<FileMeta>,
    parent: Option<Arc<ReplsetReader>>,
    changes: Option<(Named, Reads)>,
) -> Result<Ingested, RepoError> {
    let (changes, reads) = changes.map_or_else(Default::default, |(named, reads)| (Some(named), reads));
    let job = Job {
        input: Arc::new(Memory {
            files: files.clone(),
            changes,
            reads,
        }),
        files: metas,
        parent,
        known: known(session).await?,
        options: OPTIONS,
        progress: Arc::new(NoProgress),
        cancel: Cancel::default(),
    };
    ingest(session, job).await
}
