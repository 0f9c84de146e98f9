//! Writes the golden repository anew: `cargo run -p pbmfs-repo --example make_golden`. Its test then reads what this
//! version wrote, so look at the difference of `repo/tests/golden/manifest.txt` before you commit it.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use common::gc_tool::{mark, packs, relocate_with};
use common::golden::*;
use common::*;
use pbmfs_repo::key::ObjectKey;
use pbmfs_repo::objects::{
    ClusterRef, CondemnedList, JsonObject, ReplsetDoc, SnapshotDoc, SnapshotStats, TombstoneDoc, f64ish,
};
use pbmfs_repo::pack::{Owner, PackKind};
use pbmfs_repo::storage::{MemoryStorage, Storage};
use pbmfs_repo::{Repository, Session, SnapshotReader};

async fn put(memory: &MemoryStorage, key: ObjectKey, object: impl JsonObject) {
    memory.put(&key, object.to_object(&key)).await.unwrap();
}

async fn back_up(repo: &Repository, i: usize, parent: Option<&SnapshotDoc>) -> SnapshotDoc {
    let session = Session::begin(repo, "golden", moment(i)).await.unwrap();
    assert_eq!(*session.name(), name(i));
    let mut replsets = Vec::new();
    let mut stats = SnapshotStats::default();
    for (number, replset) in REPLSETS.iter().enumerate() {
        let parent = match parent {
            Some(doc) => {
                Some(SnapshotReader::open(repo, doc.clone()).await.unwrap().replsets()[number].clone())
            }
            None => None,
        };
        let files = files(i, number);
        let done = ingest_files(&session, &files, files.metas(), parent, None)
            .await
            .unwrap();
        stats = done.stats;
        replsets.push(ReplsetDoc {
            name: (*replset).into(),
            file_list: done.file_list,
            pack_table: done.pack_table,
            chain_head: (number == 0).then(|| chain_head(i)),
            node: node_record(i),
        });
    }
    stats.seconds = f64ish::Seconds(1500);
    let doc = SnapshotDoc {
        name: name(i),
        lease: session.lease(),
        cluster: ClusterRef {
            name: "golden".into(),
            id: Some("65a000000000000000000009".into()),
        },
        backup_type: ["physical", "incremental", "incremental"][i].into(),
        tool: "pbm-fs 0.1.0".into(),
        started: moment(i),
        finished: moment(i),
        stats,
        replsets,
    };
    session.commit(&doc).await.unwrap();
    doc
}

/// The pack of a kind that a snapshot's writer put, with the most blocks.
fn pack_of(memory: &MemoryStorage, doc: &SnapshotDoc, kind: PackKind) -> pbmfs_repo::id::PackId {
    let own = packs(memory)
        .into_iter()
        .filter(|(_, t)| t.kind == kind && t.owner == Owner::Lease(doc.lease));
    own.max_by_key(|(_, t)| t.len()).unwrap().0
}

#[tokio::main]
async fn main() {
    let memory = Arc::new(MemoryStorage::default());
    put(&memory, ObjectKey::repository(), config()).await;
    let randomness = Arc::new(Seeded(Mutex::new(Dice(42))));
    let repo = Repository::open_with(memory.clone(), 1 << 20, randomness.clone())
        .await
        .unwrap();
    let mut docs: Vec<SnapshotDoc> = Vec::new();
    for i in 0..3 {
        let doc = back_up(&repo, i, docs.last()).await;
        docs.push(doc);
    }
    let deleted = ObjectKey::snapshot(&docs[2].name);
    let tombstone = TombstoneDoc {
        why: "deleted".into(),
        lease: None,
        at: moment(2),
    };
    put(&memory, deleted, tombstone).await;
    put(&memory, ObjectKey::lease(&STALE_LEASE), stale_lease()).await;
    put(&memory, ObjectKey::beat(&STALE_LEASE), beat()).await;
    // A gc that died in its work: of three condemned packs two are relocated.
    let gone = [
        pack_of(&memory, &docs[0], PackKind::Data),
        pack_of(&memory, &docs[0], PackKind::Map),
    ];
    let mut condemned = vec![gone[0], gone[1], pack_of(&memory, &docs[2], PackKind::Data)];
    condemned.sort();
    let list = CondemnedList { packs: condemned }.to_object(&CONDEMNED);
    memory.put(&ObjectKey::condemned(&CONDEMNED), list).await.unwrap();
    let live = mark(&memory).await;
    for id in &gone {
        relocate_with(&memory, &*randomness, CONDEMNED, id, &live).await;
    }
    write(&memory.snapshot());
}

fn write(objects: &BTreeMap<String, bytes::Bytes>) {
    let root = directory().join("repository");
    let _ = std::fs::remove_dir_all(&root);
    let mut manifest = String::new();
    for (key, object) in objects {
        let path = root.join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, object).unwrap();
        writeln!(
            manifest,
            "{} {:>6} {key}",
            blake3::hash(object).to_hex(),
            object.len()
        )
        .unwrap();
    }
    std::fs::write(directory().join("manifest.txt"), manifest).unwrap();
}
