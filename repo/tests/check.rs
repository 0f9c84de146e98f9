//! A check finds every damage, names what is damaged, and finds nothing where nothing is.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use common::forge::trailer_of;
use common::gc_tool::{collect, of_kind};
use common::*;
use pbmfs_repo::check::{CheckOptions, CheckReport, Finding, NoCheckProgress, Severity, check};
use pbmfs_repo::envelope::{self, ObjectKind};
use pbmfs_repo::id::{BlockId, LeaseId, PackId, Slot};
use pbmfs_repo::ingest::Cancel;
use pbmfs_repo::key::{ObjectKey, prefix};
use pbmfs_repo::objects::{JsonObject, SnapshotDoc, TombstoneDoc};
use pbmfs_repo::pack::{BLOCK_HEADER_LEN, Codec, Owner, PackBuilder, PackKind, put_pack};
use pbmfs_repo::storage::{
    Fault, FaultyStorage, LocalStorage, MemoryStorage, Page, PutOutcome, Storage, StorageError, list_all,
};
use pbmfs_repo::{ErrorKind, RepoError, Repository, SnapshotReader};

async fn checked(memory: &Arc<MemoryStorage>, read_data: bool) -> CheckReport {
    // Opened while `repo.json` is sound; a check reads it again.
    let repo = open(memory.clone()).await.unwrap();
    run(&repo, read_data).await
}

async fn open(storage: Arc<dyn Storage>) -> Result<Repository, RepoError> {
    Repository::open(storage, 1 << 20).await
}

async fn run(repo: &Repository, read_data: bool) -> CheckReport {
    let options = CheckOptions {
        read_data,
        memory: 16 << 20,
        threads: 2,
    };
    let report = check(repo, options, &NoCheckProgress, &Cancel::default())
        .await
        .unwrap();
    // Whatever is found can be told: in one line, and as JSON and back.
    for finding in &report.findings {
        let text = finding.to_string();
        assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
    }
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<CheckReport>(&json).unwrap(), report);
    report
}

fn errors(report: &CheckReport) -> Vec<String> {
    report
        .findings
        .iter()
        .filter(|f| f.severity() == Severity::Error)
        .map(ToString::to_string)
        .collect()
}

fn hint(name: &str) -> (ObjectKey, Bytes) {
    let key = ObjectKey::deleted(&name.parse().unwrap());
    let object = envelope::encode(ObjectKind::DeletedHint, &key, b"");
    (key, object)
}

/// The golden repository, which has every kind of object but hints, and two of those.
async fn golden() -> Arc<MemoryStorage> {
    let memory = Arc::new(MemoryStorage::default());
    let local = LocalStorage::new(common::golden::directory().join("repository"));
    for listed in list_all(&local, "").await.unwrap() {
        memory.tamper(&listed.key, Some(local.get(&listed.key).await.unwrap()));
    }
    for name in ["2001-01-01T00:00:00Z", "2001-01-02T00:00:00Z"] {
        let (key, object) = hint(name);
        memory.tamper(&key, Some(object));
    }
    memory
}

async fn three_snapshots(seed: u64) -> (Arc<MemoryStorage>, Vec<(SnapshotDoc, Files)>) {
    let memory = Arc::new(MemoryStorage::default());
    let repo = new_repo(memory.clone()).await;
    let mut files = sample_files(seed);
    let mut out: Vec<(SnapshotDoc, Files)> = Vec::new();
    for round in 0..3 {
        let parent = out.last().map(|(doc, _)| doc);
        let doc = backup(&repo, &files, parent).await.unwrap();
        out.push((doc, files.clone()));
        files.mutate(seed + round);
    }
    (memory, out)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_found_where_nothing_is() {
    let (memory, snapshots) = three_snapshots(3).await;
    for read_data in [false, true] {
        let report = checked(&memory, read_data).await;
        assert_eq!(report.findings, []);
        assert_eq!(report.snapshots, 3);
        let files: usize = snapshots.iter().map(|(_, files)| files.0.len()).sum();
        assert_eq!(report.files, files as u64);
        assert!(report.blocks > 200 && report.nodes > 10);
        let read = if read_data { report.pack_bytes } else { 0 };
        assert_eq!(report.bytes_read, read);
        assert_eq!(report.blocks_read, if read_data { report.blocks } else { 0 });
    }
    // Nor after a gc moved everything, twice.
    for _ in 0..2 {
        let all = of_kind(&memory, None);
        collect(&memory, &all).await;
        let report = checked(&memory, true).await;
        assert_eq!(report.findings, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_golden_repository_has_nothing_worse_than_notes() {
    let report = checked(&golden().await, true).await;
    assert!(report.is_sound(), "{:#?}", report.findings);
    assert_eq!(report.count(Severity::Warning), 0);
    assert!(report.findings.iter().any(|f| matches!(f, Finding::Lease { .. })));
}

/// Whether an error names the object: by its key, or by its pack id in a sentence about a file.
fn names(report: &CheckReport, key: &str) -> bool {
    let last = key.rsplit('/').next().unwrap();
    let name = if key.starts_with(prefix::SNAPSHOTS) {
        key
    } else {
        last
    };
    errors(report).iter().any(|text| text.contains(name))
}

/// Where bits are flipped: everywhere at the ends, and here and there between.
fn positions(len: usize, dice: &mut Dice) -> Vec<usize> {
    let mut out: Vec<usize> = [0, 8, 10, 11, 12, 14, 20, 40, 60, 70, 97, 100, 175]
        .into_iter()
        .chain([1, 5, 9, 14, 20, 60].map(|back| len.saturating_sub(back)))
        .filter(|at| *at < len)
        .collect();
    out.extend((0..if full() { 60 } else { 8 }).map(|_| dice.below(len as u64) as usize));
    out
}

/// Whether the byte at `at` lies in a zstd frame that still decompresses to the same bytes: a few bits of a frame, such as
/// the padding of its tables, mean nothing.
fn means_nothing(key: &ObjectKey, object: &Bytes, spoilt: &[u8], at: usize) -> bool {
    if !key.as_str().starts_with(prefix::PACKS) {
        return false;
    }
    let trailer = trailer_of(object);
    let frame = (0..trailer.len()).find_map(|slot| {
        let info = trailer.slot(Slot(slot))?;
        let begin = trailer.offset(Slot(slot))? as usize + BLOCK_HEADER_LEN;
        let frame = begin..begin + info.stored_len as usize;
        (info.codec == Codec::Zstd && frame.contains(&at)).then_some((frame, info.plain_len as usize))
    });
    frame.is_some_and(|(frame, len)| {
        let plain = |bytes: &[u8]| zstd::bulk::decompress(&bytes[frame.clone()], len);
        plain(spoilt).is_ok_and(|spoilt| spoilt == plain(object).unwrap())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flipped_bit_and_every_cut_is_found() {
    let memory = golden().await;
    let repo = open(memory.clone()).await.unwrap();
    let mut dice = Dice(5);
    for (key, object) in memory.snapshot() {
        let key = ObjectKey::parse(&key).unwrap();
        let mut spoilt = Vec::new();
        for at in positions(object.len(), &mut dice) {
            let mut bytes = object.to_vec();
            bytes[at] ^= 1 << dice.below(8);
            if !means_nothing(&key, &object, &bytes, at) {
                spoilt.push((format!("flipped at {at}"), bytes));
            }
        }
        for len in [0, 1, 50, object.len() / 2, object.len() - 1] {
            spoilt.push((format!("cut at {len}"), object[..len].to_vec()));
        }
        let mut longer = object.to_vec();
        longer.push(0);
        spoilt.push(("longer".into(), longer));
        for (what, bytes) in spoilt {
            memory.tamper(&key, Some(bytes.into()));
            let report = run(&repo, true).await;
            assert!(
                names(&report, key.as_str()),
                "{key} {what}: {:#?}",
                report.findings
            );
        }
        memory.tamper(&key, Some(object));
    }
    assert!(run(&repo, true).await.is_sound());
}

/// What a pack's blocks do not prove is found without reading them.
#[tokio::test(flavor = "multi_thread")]
async fn structure_is_checked_without_reading_data() {
    let memory = golden().await;
    let repo = open(memory.clone()).await.unwrap();
    let mut dice = Dice(6);
    for id in of_kind(&memory, Some(PackKind::Data)) {
        let key = ObjectKey::pack(&id);
        let object = memory.snapshot()[key.as_str()].clone();
        let trailer = trailer_of(&object);
        for at in positions(object.len(), &mut dice) {
            let mut bytes = object.to_vec();
            bytes[at] ^= 16;
            let nothing = means_nothing(&key, &object, &bytes, at);
            memory.tamper(&key, Some(bytes.into()));
            let in_blocks = (trailer.first_block as usize..trailer.end() as usize).contains(&at);
            let report = run(&repo, false).await;
            assert_eq!(names(&report, key.as_str()), !in_blocks, "{key} flipped at {at}");
            let found = names(&run(&repo, true).await, key.as_str());
            assert!(found || nothing, "{key} flipped at {at}");
        }
        memory.tamper(&key, Some(object));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_found() {
    let memory = golden().await;
    let repo = open(memory.clone()).await.unwrap();
    let unreferenced = |report: &CheckReport| {
        let packs = report.findings.iter().find_map(|f| match f {
            Finding::Unreferenced { packs, .. } => Some(*packs),
            _ => None,
        });
        packs.unwrap_or(0)
    };
    let before = unreferenced(&run(&repo, false).await);
    let mut needed = 0;
    for (key, object) in memory.snapshot() {
        // That a whole snapshot, or what only accompanies one, is gone leaves no trace.
        let untraceable = [
            prefix::SNAPSHOTS,
            prefix::DELETED,
            prefix::LEASES,
            prefix::BEATS,
            prefix::CONDEMNED,
        ];
        let key = ObjectKey::parse(&key).unwrap();
        memory.tamper(&key, None);
        let report = run(&repo, false).await;
        let superfluous = key.as_str().starts_with(prefix::PACKS) && unreferenced(&report) + 1 == before;
        if superfluous || untraceable.iter().any(|p| key.as_str().starts_with(p)) {
            assert!(report.is_sound(), "{key}: {:#?}", report.findings);
        } else {
            needed += 1;
            assert!(names(&report, key.as_str()), "{key}: {:#?}", report.findings);
        }
        memory.tamper(&key, Some(object));
    }
    assert!(needed > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_objects_are_found() {
    let memory = golden().await;
    let repo = open(memory.clone()).await.unwrap();
    let mut kinds: BTreeMap<String, Vec<(ObjectKey, Bytes)>> = BTreeMap::new();
    for (key, object) in memory.snapshot() {
        let kind = key.split('/').next().unwrap().to_owned();
        let key = ObjectKey::parse(&key).unwrap();
        kinds.entry(kind).or_default().push((key, object));
    }
    // Kinds of which the fixture has but one get a second, under another key.
    let lease = ObjectKey::lease(&LeaseId([7; 16]));
    let doc = common::golden::stale_lease();
    kinds
        .get_mut("leases")
        .unwrap()
        .push((lease.clone(), doc.to_object(&lease)));
    let mut swapped = 0;
    for objects in kinds.values() {
        for pair in objects.windows(2) {
            let [(a, a_bytes), (b, b_bytes)] = pair else {
                unreachable!()
            };
            memory.tamper(a, Some(b_bytes.clone()));
            memory.tamper(b, Some(a_bytes.clone()));
            let report = run(&repo, false).await;
            for key in [a, b] {
                assert!(names(&report, key.as_str()), "{key}: {:#?}", report.findings);
            }
            memory.tamper(a, Some(a_bytes.clone()));
            memory.tamper(b, Some(b_bytes.clone()));
            swapped += 1;
        }
    }
    assert!(swapped > 5);
}

/// Flips a bit in some blocks of a data pack; gives back what was spoilt.
fn spoil_blocks(memory: &MemoryStorage, id: &PackId, every: usize) -> Vec<(PackId, u32, BlockId)> {
    let key = ObjectKey::pack(id);
    let mut object = memory.snapshot()[key.as_str()].to_vec();
    let trailer = trailer_of(&object);
    let mut out = Vec::new();
    for slot in (0..trailer.len()).step_by(every) {
        // The first stored byte.
        object[trailer.offset(Slot(slot)).unwrap() as usize + BLOCK_HEADER_LEN] ^= 8;
        out.push((*id, slot, trailer.slot(Slot(slot)).unwrap().id));
    }
    memory.tamper(&key, Some(object.into()));
    out
}

/// Every place at which a block stands in the files of a snapshot, by its maps. What they say is compared with the bytes.
async fn places_of(
    memory: &Arc<MemoryStorage>,
    doc: &SnapshotDoc,
    files: &Files,
) -> HashMap<BlockId, HashSet<(String, u64)>> {
    let repo = open(memory.clone()).await.unwrap();
    let reader = SnapshotReader::open(&repo, doc.clone()).await.unwrap();
    let rs = &reader.replsets()[0];
    let mut out: HashMap<BlockId, HashSet<(String, u64)>> = HashMap::new();
    for i in 0..rs.files().len() {
        let entry = rs.files().get(i).await.unwrap().unwrap();
        let (path, size) = (entry.meta.path, entry.meta.size);
        if size == 0 {
            continue;
        }
        let bytes = files.0[&path].as_ref().unwrap();
        for placed in rs.extents(&entry.root, size, 0..size).await.unwrap() {
            for span in rs.spans(&placed).await.unwrap() {
                let id = rs.trailer(span.pack).await.unwrap().slots()[span.slot as usize].id;
                let there = &bytes[span.offset as usize..][..(span.to - span.from) as usize];
                if there.len() == span.plain_len as usize {
                    assert_eq!(BlockId::of(there), id, "{path} at {}", span.offset);
                }
                out.entry(id).or_default().insert((path.clone(), span.offset));
            }
        }
    }
    out
}

async fn assert_attributed(memory: &Arc<MemoryStorage>, snapshots: &[(SnapshotDoc, Files)]) {
    let mut places = Vec::new();
    for (doc, files) in snapshots {
        places.push((doc.name.clone(), places_of(memory, doc, files).await));
    }
    let mut spoilt = Vec::new();
    for id in of_kind(memory, Some(PackKind::Data)).iter().take(3) {
        spoilt.extend(spoil_blocks(memory, id, 5));
    }
    let report = checked(memory, true).await;
    let found: Vec<_> = report
        .findings
        .iter()
        .map(|f| match f {
            Finding::DamagedBlock {
                pack,
                slot,
                block,
                uses,
                more_uses,
                ..
            } => (*pack, *slot, *block, uses, *more_uses),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(found.len(), spoilt.len());
    for (pack, slot, block) in spoilt {
        let (.., uses, more) = found
            .iter()
            .find(|f| (f.0, f.1, f.2) == (pack, slot, block))
            .unwrap();
        let mut expected = HashSet::new();
        for (name, places) in &places {
            let places = places.get(&block).into_iter().flatten().cloned();
            expected.extend(places.map(|(path, at)| (name.clone(), path, at)));
        }
        let named: HashSet<_> = uses
            .iter()
            .map(|u| (u.snapshot.clone(), u.path.clone(), u.offset))
            .collect();
        assert!(named.is_subset(&expected), "{named:?} {expected:?}");
        assert_eq!(named.len() as u64 + more, expected.len() as u64);
    }
    let text = errors(&report).concat();
    assert!(
        text.contains("at offset") && text.contains("of rs in snapshot"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_is_traced_to_every_file_that_needs_it() {
    let (memory, snapshots) = three_snapshots(4).await;
    assert_attributed(&memory, &snapshots).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_is_traced_through_relocations() {
    let (memory, snapshots) = three_snapshots(5).await;
    for _ in 0..2 {
        let all = of_kind(&memory, None);
        collect(&memory, &all).await;
    }
    assert_attributed(&memory, &snapshots).await;
}

/// A node that snapshots share is visited once only while it is sound.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_map_names_the_files_of_every_snapshot() {
    let memory = Arc::new(MemoryStorage::default());
    let repo = new_repo(memory.clone()).await;
    let files = sample_files(9);
    let first = backup(&repo, &files, None).await.unwrap();
    let before = of_kind(&memory, Some(PackKind::Map));
    let second = backup(&repo, &files, Some(&first)).await.unwrap();
    for id in &before {
        let key = ObjectKey::pack(id);
        let object = memory.snapshot()[key.as_str()].clone();
        let trailer = trailer_of(&object);
        for slot in 0..trailer.len() {
            let mut bytes = object.to_vec();
            bytes[trailer.offset(Slot(slot)).unwrap() as usize + 20] ^= 1;
            memory.tamper(&key, Some(bytes.into()));
            let report = checked(&memory, false).await;
            assert!(names(&report, key.as_str()));
            // Whatever one of them misses the other one misses, too, unless it is a list of the first alone.
            let of = |doc: &SnapshotDoc| -> HashSet<(String, u64)> {
                let file = |f: &Finding| match f {
                    Finding::DamagedFile {
                        snapshot,
                        path,
                        offset,
                        ..
                    } if *snapshot == doc.name => Some((path.clone(), *offset)),
                    _ => None,
                };
                report.findings.iter().filter_map(file).collect()
            };
            assert_eq!(of(&first), of(&second));
        }
        memory.tamper(&key, Some(object));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_about_is_noted() {
    let (memory, snapshots) = three_snapshots(6).await;
    let repo = open(memory.clone()).await.unwrap();
    let session = pbmfs_repo::Session::begin(&repo, "a test", jiff::Timestamp::now())
        .await
        .unwrap();
    let mut pack = PackBuilder::new(PackKind::Data, Owner::Lease(session.lease()), Vec::new());
    let mut packed = Vec::new();
    let mut encoder = pbmfs_repo::pack::Encoder::new(1).unwrap();
    let info = encoder
        .append(BlockId::of(b"left"), b"left", &mut packed)
        .unwrap();
    pack.push(info, &packed);
    put_pack(&*repo.storage().clone(), &**repo.randomness(), pack)
        .await
        .unwrap();
    let foreign = ObjectKey::parse("packs/zz/notes.txt").unwrap();
    memory.tamper(&foreign, Some(Bytes::from_static(b"mine")));
    let (key, object) = hint(snapshots[1].0.name.as_str());
    memory.tamper(&key, Some(object));
    // A snapshot that is deleted is not walked, whatever it would need.
    let gone = ObjectKey::snapshot(&snapshots[2].0.name);
    let tombstone = TombstoneDoc {
        why: "deleted".into(),
        lease: None,
        at: jiff::Timestamp::UNIX_EPOCH,
    };
    memory.tamper(&gone, Some(tombstone.to_object(&gone)));
    let report = checked(&memory, true).await;
    assert!(report.is_sound(), "{:#?}", report.findings);
    let has = |wanted: fn(&Finding) -> bool| report.findings.iter().any(wanted);
    assert!(has(
        |f| matches!(f, Finding::Lease { purpose, .. } if purpose == "a test")
    ));
    assert!(has(
        |f| matches!(f, Finding::Unreferenced { packs, .. } if *packs > 0)
    ));
    assert!(has(
        |f| matches!(f, Finding::ForeignObject { key } if key == "packs/zz/notes.txt")
    ));
    assert!(
        matches!(&report.findings[0], Finding::HiddenSnapshot { snapshot } if *snapshot == snapshots[1].0.name)
    );
    session.abandon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_fails_ends_the_check() {
    let (memory, _) = three_snapshots(7).await;
    let repo = open(memory.clone()).await.unwrap();
    let counted = Arc::new(FaultyStorage::new(
        memory.clone(),
        Box::new(|_, _, _| Fault::None),
    ));
    run(&open(counted.clone()).await.unwrap(), true).await;
    let calls = counted.calls();
    assert!(calls > 30);
    for at in (1..calls).step_by(7) {
        let plan = move |n, _, _: &str| if n == at { Fault::Fail } else { Fault::None };
        let faulty = FaultyStorage::new(memory.clone(), Box::new(plan));
        let repo = open(Arc::new(faulty)).await.unwrap();
        let e = check(
            &repo,
            CheckOptions {
                read_data: true,
                ..CheckOptions::default()
            },
            &NoCheckProgress,
            &Cancel::default(),
        )
        .await
        .unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Failed, "call {at}: {e}");
    }
    let cancel = Cancel::default();
    cancel.cancel();
    let e = check(&repo, CheckOptions::default(), &NoCheckProgress, &cancel)
        .await
        .unwrap_err();
    assert!(matches!(e, RepoError::Cancelled));
}

/// Lists no packs but those that were there once.
#[derive(Debug)]
struct OldListing(Arc<MemoryStorage>, HashSet<ObjectKey>);

#[async_trait::async_trait]
impl Storage for OldListing {
    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StorageError> {
        self.0.get(key).await
    }
    async fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Bytes, StorageError> {
        self.0.get_range(key, offset, len).await
    }
    async fn put_if_absent(&self, key: &ObjectKey, object: Bytes) -> Result<PutOutcome, StorageError> {
        self.0.put_if_absent(key, object).await
    }
    async fn put_once(&self, key: &ObjectKey, object: Bytes) -> Result<(), StorageError> {
        self.0.put_once(key, object).await
    }
    async fn put(&self, key: &ObjectKey, object: Bytes) -> Result<(), StorageError> {
        self.0.put(key, object).await
    }
    async fn list(&self, prefix: &str, from: Option<String>) -> Result<Page, StorageError> {
        let mut page = self.0.list(prefix, from).await?;
        page.objects
            .retain(|o| !o.key.as_str().starts_with(prefix::PACKS) || self.1.contains(&o.key));
        Ok(page)
    }
    async fn delete(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.0.delete(key).await
    }
    async fn head(&self, key: &ObjectKey) -> Result<u64, StorageError> {
        self.0.head(key).await
    }
    fn address(&self) -> String {
        self.0.address()
    }
}

/// Packs are listed before snapshots: a backup, or a gc, may end between the two.
#[tokio::test(flavor = "multi_thread")]
async fn packs_that_were_put_since_the_listing_are_not_missing() {
    let memory = Arc::new(MemoryStorage::default());
    let repo = new_repo(memory.clone()).await;
    let mut files = sample_files(8);
    let first = backup(&repo, &files, None).await.unwrap();
    let keys = |memory: &MemoryStorage| -> HashSet<ObjectKey> {
        let keys = memory.snapshot().into_keys();
        keys.map(|key| ObjectKey::parse(&key).unwrap()).collect()
    };
    let before = keys(&memory);
    files.mutate(1);
    backup(&repo, &files, Some(&first)).await.unwrap();
    let late = OldListing(memory.clone(), before);
    let report = run(&open(Arc::new(late)).await.unwrap(), true).await;
    assert_eq!(report.findings, []);
    let before = keys(&memory);
    let all = of_kind(&memory, None);
    collect(&memory, &all).await;
    let late = OldListing(memory.clone(), before);
    let report = run(&open(Arc::new(late)).await.unwrap(), true).await;
    assert_eq!(report.findings, []);
}
