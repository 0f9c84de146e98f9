//! What is in the golden repository: names, times, ids, and the bytes of every file.

use std::path::PathBuf;
use std::sync::Mutex;

use pbmfs_repo::id::{LeaseId, ListId, Randomness, RepositoryId, SnapshotName};
use pbmfs_repo::objects::{BeatDoc, ChainHead, LeaseDoc, Parameters, RepoConfig};

use super::{Dice, Files};

/// The snapshots: two that live and one that was deleted.
pub const NAMES: [&str; 3] = [
    "2026-01-01T00:00:00Z",
    "2026-01-02T00:00:00Z",
    "2026-01-03T00:00:00Z",
];
/// The replica sets of each.
pub const REPLSETS: [&str; 2] = ["rs0", "rs1"];
pub const STALE_LEASE: LeaseId = LeaseId([0xee; 16]);
pub const CONDEMNED: ListId = ListId([0xcc; 16]);

pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

pub fn name(i: usize) -> SnapshotName {
    NAMES[i].parse().unwrap()
}

pub fn moment(i: usize) -> jiff::Timestamp {
    NAMES[i].parse().unwrap()
}

pub fn config() -> RepoConfig {
    RepoConfig {
        format_version: 0,
        required_features: Vec::new(),
        repository_id: RepositoryId([0x90; 16]),
        created: moment(0),
        parameters: Parameters {
            pack_size: 1 << 20,
            compression_level: 1,
        },
    }
}

pub fn stale_lease() -> LeaseDoc {
    LeaseDoc {
        commit_key: "snapshots/2026-01-04T00:00:00Z/snapshot.json".into(),
        host: "gone.example".into(),
        pid: 4711,
        purpose: "backup".into(),
        started: "2026-01-04T00:00:00Z".parse().unwrap(),
    }
}

pub fn beat() -> BeatDoc {
    BeatDoc { counter: 7 }
}

pub fn chain_head(i: usize) -> ChainHead {
    ChainHead {
        node: "node.example:27017".into(),
        replset_id: "65a000000000000000000001".into(),
        this_backup_name: format!("pbmfs-{i}"),
        block_size: 16,
        checkpoint_ts: (1_767_225_600 + i as u32, 3),
    }
}

pub fn node_record(i: usize) -> serde_json::Value {
    serde_json::json!({ "operationTime": [1_767_225_600 + i, 3], "featureCompatibilityVersion": "8.0" })
}

/// The files of a replica set in a snapshot.
pub fn files(snapshot: usize, replset: usize) -> Files {
    let mut dice = Dice(1000 + replset as u64);
    let mut files = Files::default();
    let put = |files: &mut Files, path: &str, bytes: Vec<u8>| {
        files.0.insert(path.into(), Some(bytes));
    };
    files.0.insert("empty-directory".into(), None);
    files.0.insert("db".into(), None);
    put(
        &mut files,
        "WiredTiger",
        b"WiredTiger\nWiredTiger 12.0.0\n".to_vec(),
    );
    put(&mut files, "empty", Vec::new());
    put(&mut files, "hole", vec![0; 300_000]);
    // One run of blocks, which later snapshots cut in the middle.
    let mut run = dice.bytes(24 * 1024 + 300);
    // Hardly a run: a map of several levels.
    let few = dice.bytes(24 * 1024);
    let mut scattered = Vec::new();
    for _ in 0..500 {
        let from = dice.below(24) as usize * 1024;
        scattered.extend_from_slice(&few[from..from + 1024]);
    }
    for i in 0..40 {
        let n = dice.below(120) as usize;
        put(&mut files, &format!("db/collection-{i}.wt"), dice.bytes(n));
    }
    if snapshot > 0 {
        let new = Dice(2000 + snapshot as u64).bytes(3 * 1024);
        run[7 * 1024..10 * 1024].copy_from_slice(&new);
        run.truncate(20 * 1024 + 5);
        scattered[50 * 1024..52 * 1024].fill(0);
        scattered.extend([0; 5000]);
        put(&mut files, "db/new.wt", vec![snapshot as u8; 70_000]);
        files.0.remove("db/collection-3.wt");
    }
    if snapshot == 2 {
        put(
            &mut files,
            "only-in-the-deleted.1k",
            Dice(3000 + replset as u64).bytes(4096),
        );
    }
    put(&mut files, "run.1k", run);
    put(&mut files, "scattered.1k", scattered);
    files.1 = 1_767_225_600 + snapshot as i64;
    files
}

/// The same ids each time.
pub struct Seeded(pub Mutex<Dice>);

impl Randomness for Seeded {
    fn fill(&self, out: &mut [u8]) {
        let bytes = self.0.lock().unwrap().bytes(out.len());
        out.copy_from_slice(&bytes);
    }
}
