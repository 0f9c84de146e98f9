//! One object flipped, cut, gone, or swapped with another of its kind: a reader gives the right bytes or an error,
//! and a backup beside the damage commits what is right or nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use common::*;
use pbmfs_repo::error::ErrorKind;
use pbmfs_repo::id::SnapshotName;
use pbmfs_repo::key::ObjectKey;
use pbmfs_repo::objects::SnapshotDoc;
use pbmfs_repo::storage::MemoryStorage;
use pbmfs_repo::{RepoError, Repository, SnapshotReader};

fn few_files() -> Files {
    let mut dice = Dice(12);
    let mut files = Files::default();
    files.0.insert("a".into(), Some(dice.bytes(200_000)));
    files
        .0
        .insert("s.1k".into(), Some(scattered_bytes(&mut dice, 300)));
    files.0.insert("d".into(), None);
    for i in 0..20 {
        files.0.insert(format!("d/{i}"), Some(dice.bytes(i * 40)));
    }
    files
}

fn copy(objects: &BTreeMap<String, Bytes>) -> Arc<MemoryStorage> {
    let memory = Arc::new(MemoryStorage::default());
    for (key, object) in objects {
        memory.tamper(&ObjectKey::parse(key).unwrap(), Some(object.clone()));
    }
    memory
}

/// Every file, right or not at all. The first error, if any.
async fn read_all(memory: &Arc<MemoryStorage>, name: &SnapshotName, files: &Files) -> Result<(), RepoError> {
    let repo = Repository::open(memory.clone(), 1 << 20).await?;
    let reader = SnapshotReader::open(&repo, repo.snapshot(name).await?).await?;
    let rs = &reader.replsets()[0];
    let metas = files.metas();
    assert_eq!(rs.files().len(), metas.len() as u64);
    let mut first = Ok(());
    for (i, meta) in metas.iter().enumerate() {
        let read = async {
            let entry = rs.files().get(i as u64).await?.unwrap();
            assert_eq!(entry.meta, *meta);
            rs.read(&entry, 0, u64::MAX).await
        };
        match read.await {
            Ok(bytes) => assert!(
                bytes == files.0[&meta.path].clone().unwrap_or_default(),
                "{} differs",
                meta.path
            ),
            Err(e) => first = first.and(Err(e)),
        }
    }
    first
}

/// Checks a damaged copy; returns whether the damage was met by the reader, and by a backup with the parent.
async fn one(
    objects: &BTreeMap<String, Bytes>,
    key: &str,
    damaged: Option<Bytes>,
    parent: &SnapshotDoc,
) -> (bool, bool) {
    let (files, memory) = (few_files(), copy(objects));
    memory.tamper(&ObjectKey::parse(key).unwrap(), damaged);
    let read = read_all(&memory, &parent.name, &files).await;
    if let Err(e) = &read {
        let kinds = [ErrorKind::Damaged, ErrorKind::NotFound, ErrorKind::Unsupported];
        assert!(kinds.contains(&e.kind()), "{key}: {e:?}");
    }
    if key == "repo.json" {
        return (read.is_err(), false);
    }
    let repo = Repository::open(memory.clone(), 1 << 20).await.unwrap();
    let mut now = files.clone();
    if let Some(Some(bytes)) = now.0.get_mut("s.1k") {
        bytes[40_000..44_000].fill(3);
    }
    let failed = match backup(&repo, &now, Some(parent)).await {
        Ok(doc) => {
            // It may refer to a block that is damaged, but not to a wrong one.
            let _ = read_all(&memory, &doc.name, &now).await;
            false
        }
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Damaged, "{key}: {e:?}");
            true
        }
    };
    // Without the parent there is always a way on.
    let doc = backup(&repo, &now, None)
        .await
        .unwrap_or_else(|e| panic!("{key}: {e:?}"));
    let _ = read_all(&memory, &doc.name, &now).await;
    (read.is_err(), failed)
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_any_object_is_met_and_never_believed() {
    let memory = Arc::new(MemoryStorage::default());
    let repo = new_repo(memory.clone()).await;
    let older = backup(&repo, &few_files(), None).await.unwrap();
    let mut files = few_files();
    files.touch_all();
    backup(&repo, &files, Some(&older)).await.unwrap();
    let objects = memory.snapshot();
    let mut dice = Dice(5);
    let (mut tries, mut met, mut failed) = (0, 0, 0);
    for (key, object) in &objects {
        let mut damages: Vec<Option<Bytes>> = vec![None, Some(Bytes::new())];
        let flips = if full() { 400 } else { 25 };
        for _ in 0..flips {
            let mut altered = object.to_vec();
            let at = dice.below(altered.len() as u64) as usize;
            altered[at] ^= 1 << dice.below(8);
            damages.push(Some(altered.into()));
        }
        for len in [object.len() - 1, object.len() / 2, 100] {
            damages.push(Some(object.slice(..len.min(object.len()))));
        }
        let class = key.split('/').next().unwrap();
        let others = objects.iter().filter(|(k, _)| *k != key && k.starts_with(class));
        damages.extend(others.map(|(_, o)| Some(o.clone())));
        for damaged in damages {
            let (read, backup) = one(&objects, key, damaged, &older).await;
            tries += 1;
            met += u32::from(read);
            failed += u32::from(backup);
        }
    }
    assert!(tries > 150 && met * 3 > tries, "{met} of {tries} were met");
    assert!(failed * 2 < tries, "{failed} of {tries} backups gave up");
}
