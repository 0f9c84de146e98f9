//! The golden repository, written once and committed: every version must read it byte for byte. If the format was
//! changed on purpose, write it anew: `cargo run -p pbmfs-repo --example make_golden`.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use common::forge::trailer_of;
use common::golden::*;
use pbmfs_repo::envelope::{self, ObjectKind};
use pbmfs_repo::id::PackId;
use pbmfs_repo::key::{ObjectKey, prefix};
use pbmfs_repo::map::{ExtentKind, MapRoot};
use pbmfs_repo::objects::{
    BeatDoc, Committed, CondemnedList, JsonObject, LeaseDoc, RepoConfig, SnapshotDoc, TombstoneDoc,
};
use pbmfs_repo::pack::{Owner, PackKind, encode_footer, pack_id};
use pbmfs_repo::relocation::Relocation;
use pbmfs_repo::storage::{LocalStorage, Storage, list_all};
use pbmfs_repo::{Listing, RepoError, Repository, SnapshotReader};

fn storage() -> Arc<LocalStorage> {
    Arc::new(LocalStorage::new(directory().join("repository")))
}

async fn open() -> Repository {
    Repository::open(storage(), 1 << 20).await.unwrap()
}

async fn objects() -> BTreeMap<String, Bytes> {
    let mut out = BTreeMap::new();
    for listed in list_all(&*storage(), "").await.unwrap() {
        out.insert(listed.key.to_string(), storage().get(&listed.key).await.unwrap());
    }
    out
}

#[tokio::test]
async fn its_objects_are_those_of_the_manifest() {
    let manifest = std::fs::read_to_string(directory().join("manifest.txt")).unwrap();
    let lines: Vec<String> = objects()
        .await
        .iter()
        .map(|(key, o)| format!("{} {:>6} {key}", blake3::hash(o).to_hex(), o.len()))
        .collect();
    assert_eq!(manifest.lines().collect::<Vec<_>>(), lines);
    let total: usize = objects().await.values().map(Bytes::len).sum();
    assert!(total < 300_000, "{total} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_is_read_byte_for_byte() {
    let repo = open().await;
    assert_eq!(*repo.config(), config());
    let (mut skips, mut holes, mut inline, mut levels) = (0, 0, 0, BTreeSet::new());
    for i in 0..2 {
        let doc = repo.snapshot(&name(i)).await.unwrap();
        assert_eq!(doc.replsets[0].chain_head, Some(chain_head(i)));
        assert_eq!(doc.replsets[1].chain_head, None);
        assert_eq!(doc.replsets[0].node, node_record(i));
        assert_eq!((doc.started, doc.cluster.name.as_str()), (moment(i), "golden"));
        let reader = SnapshotReader::open(&repo, doc).await.unwrap();
        for (number, rs) in reader.replsets().iter().enumerate() {
            assert_eq!(rs.doc().name, REPLSETS[number]);
            let files = files(i, number);
            let metas = files.metas();
            assert_eq!(rs.files().len(), metas.len() as u64);
            for (at, meta) in metas.iter().enumerate() {
                let entry = rs.files().get(at as u64).await.unwrap().unwrap();
                assert_eq!(entry.meta, *meta);
                let bytes = files.0[&meta.path].clone().unwrap_or_default();
                assert!(
                    rs.read(&entry, 0, u64::MAX).await.unwrap() == bytes,
                    "{} differs",
                    meta.path
                );
                match entry.root {
                    MapRoot::Empty => {}
                    MapRoot::Inline(_) => inline += 1,
                    MapRoot::Node { level, .. } => drop(levels.insert(level)),
                }
                for placed in rs.extents(&entry.root, meta.size, 0..meta.size).await.unwrap() {
                    match placed.extent.kind {
                        ExtentKind::Data { skip, .. } => skips += usize::from(skip > 0),
                        ExtentKind::Hole => holes += 1,
                        ExtentKind::Elided => {}
                    }
                }
            }
        }
    }
    // It holds what it is there for.
    assert!(skips > 0 && holes > 4 && inline > 4, "{skips} {holes} {inline}");
    assert!(levels.iter().any(|l| *l >= 2), "{levels:?}");
}

#[tokio::test]
async fn names_are_found() {
    let repo = open().await;
    let listed = repo.snapshots().await.unwrap();
    let names: Vec<_> = listed
        .iter()
        .map(|l| match l {
            Listing::Snapshot(doc) => doc.name.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, [name(0), name(1)]);
    assert_eq!(repo.resolve("latest").await.unwrap().name, name(1));
    assert_eq!(repo.resolve("2026-01-01").await.unwrap().name, name(0));
    assert_eq!(repo.resolve(NAMES[1]).await.unwrap().name, name(1));
    assert!(
        matches!(repo.resolve("2026").await, Err(RepoError::AmbiguousName { matches, .. }) if matches == names)
    );
    assert!(matches!(repo.resolve(NAMES[2]).await, Err(RepoError::Deleted(n)) if n == name(2)));
    let unknown = repo.resolve("2026-01-05T00:00:00Z").await;
    assert!(
        matches!(unknown, Err(RepoError::NoSuchSnapshot { nearest, .. }) if nearest == [name(1), name(0)])
    );
}

#[tokio::test]
async fn every_object_is_encoded_as_it_was() {
    let mut kinds = BTreeMap::<&str, u32>::new();
    for (key, object) in objects().await {
        let key = ObjectKey::parse(&key).unwrap();
        if key.as_str().starts_with(prefix::PACKS) {
            let trailer = trailer_of(&object);
            let bytes = trailer.encode();
            let end = trailer.end() as usize;
            assert_eq!(
                object[end..],
                [&bytes[..], &encode_footer(bytes.len() as u32)].concat()
            );
            assert_eq!(key, ObjectKey::pack(&pack_id(&bytes)));
            let kind = match trailer.kind {
                PackKind::Data => ObjectKind::DataPack,
                PackKind::Map => ObjectKind::MapPack,
            };
            let payload = (object.len() - trailer.first_block as usize) as u64;
            let header = envelope::encode_header(kind, &key, payload, &bytes);
            assert_eq!(object[..header.len()], header);
            *kinds.entry(kind.name()).or_default() += 1;
            if matches!(trailer.owner, Owner::Condemned(CONDEMNED)) {
                *kinds.entry("written by a gc").or_default() += 1;
            }
            continue;
        }
        let (kind, _) = envelope::decode_any(&key, &object).unwrap();
        let again = match kind {
            ObjectKind::Repository => RepoConfig::from_object(&key, &object).unwrap().to_object(&key),
            ObjectKind::Snapshot => SnapshotDoc::from_object(&key, &object).unwrap().to_object(&key),
            ObjectKind::Tombstone => TombstoneDoc::from_object(&key, &object).unwrap().to_object(&key),
            ObjectKind::Lease => {
                assert_eq!(LeaseDoc::from_object(&key, &object).unwrap(), stale_lease());
                stale_lease().to_object(&key)
            }
            ObjectKind::Beat => {
                assert_eq!(BeatDoc::from_object(&key, &object).unwrap(), beat());
                beat().to_object(&key)
            }
            ObjectKind::Condemned => CondemnedList::from_object(&key, &object)
                .unwrap()
                .to_object(&CONDEMNED),
            ObjectKind::Relocation => {
                let id: PackId = key.last().unwrap();
                let relocation = Relocation::decode(&id, &object).unwrap();
                assert!(
                    storage()
                        .head(&ObjectKey::pack(&id))
                        .await
                        .unwrap_err()
                        .is_not_found()
                );
                relocation.encode().1
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(again, object, "{key}");
        *kinds.entry(kind.name()).or_default() += 1;
    }
    for (kind, least) in [
        ("relocation", 2),
        ("tombstone", 1),
        ("lease", 1),
        ("beat", 1),
        ("condemned list", 1),
        ("written by a gc", 4),
    ] {
        assert!(kinds.get(kind).is_some_and(|n| *n >= least), "{kind}: {kinds:?}");
    }
    let committed = open().await.committed(&name(2)).await.unwrap().unwrap();
    assert!(matches!(committed, Committed::Tombstone(t) if t.why == "deleted" && t.at == moment(2)));
}
