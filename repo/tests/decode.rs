//! Arbitrary bytes, and valid ones of which a few are spoilt, never make a decoder panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::forge::{MapBlock, map_blocks, put_block, renamed, spoil, trailer_of};
use common::*;
use pbmfs_repo::envelope::{self, Header, ObjectKind};
use pbmfs_repo::id::{BlockId, LeaseId, ListId, Nonce, PackId, RepositoryId, Slot, SnapshotName};
use pbmfs_repo::key::{ObjectKey, prefix};
use pbmfs_repo::map::{MapReader, MapRoot, Node};
use pbmfs_repo::objects::{
    BeatDoc, Committed, CondemnedList, JsonObject, LeaseDoc, RepoConfig, SnapshotDoc, TombstoneDoc,
};
use pbmfs_repo::pack::{
    BlockInfo, Codec, Owner, PackKind, PackLoc, PackStore, Trailer, decode_footer, open_named_block, pack_id,
};
use pbmfs_repo::relocation::{Relocation, Target};
use pbmfs_repo::storage::{MemoryStorage, Storage};
use pbmfs_repo::{RepoError, Repository, Session, SnapshotReader, files, table};
use proptest::prelude::*;

/// Runs every decoder over `bytes`; returns how many took them for valid.
fn decode_all(bytes: &[u8]) -> usize {
    let object = Bytes::copy_from_slice(bytes);
    let name: SnapshotName = "2026-11-21T10:48:00Z".parse().unwrap();
    let id = PackId([3; 32]);
    let list = ListId([4; 16]);
    let mut valid = 0;
    let mut note = |ok: bool| valid += usize::from(ok);
    note(Header::decode(bytes).is_ok());
    note(envelope::decode_any(&ObjectKey::repository(), &object).is_ok());
    note(Trailer::decode(bytes).is_ok_and(|t| t.encode() == bytes));
    note(decode_footer(bytes).is_ok());
    note(BlockInfo::decode_header(bytes).is_ok_and(|i| bytes.starts_with(&i.encode_header())));
    if let Ok(info) = BlockInfo::decode_header(bytes) {
        note(open_named_block(&info.id, &object).is_ok());
    }
    note(Node::decode(bytes, &id).is_ok());
    let (root, chunk) = files::decode_any(bytes);
    note(root);
    note(chunk);
    let (root, chunk) = table::decode_any(bytes);
    note(root);
    note(chunk);
    note(Committed::decode(&name, &object).is_ok());
    // Behind an envelope nothing is spoilt by chance, but anybody can write one.
    let key = ObjectKey::condemned(&list);
    let sealed = envelope::encode(ObjectKind::Condemned, &key, bytes);
    note(CondemnedList::from_object(&key, &sealed).is_ok());
    let trailer_len = bytes
        .get(..4)
        .map_or(0, |b| u32::from_le_bytes(b.try_into().unwrap()) as usize);
    let trailer = bytes.get(4..4usize.saturating_add(trailer_len)).unwrap_or(bytes);
    let id = pack_id(trailer);
    let sealed = envelope::encode(ObjectKind::Relocation, &ObjectKey::relocation(&id), bytes);
    note(Relocation::decode(&id, &sealed).is_ok());
    note(RepoConfig::from_payload(bytes).is_ok());
    note(SnapshotDoc::from_payload(bytes).is_ok());
    note(LeaseDoc::from_payload(bytes).is_ok());
    note(BeatDoc::from_payload(bytes).is_ok());
    note(TombstoneDoc::from_payload(bytes).is_ok());
    if let Ok(text) = std::str::from_utf8(bytes) {
        note(text.parse::<SnapshotName>().is_ok_and(|n| n.to_string() == text));
        note(text.parse::<PackId>().is_ok_and(|n| n.to_string() == text));
        note(text.parse::<RepositoryId>().is_ok());
        if let Some(key) = ObjectKey::parse(text) {
            assert_eq!(key.as_str(), text);
            note(key.snapshot_name().is_some());
            note(key.last::<PackId>().is_some());
        }
    }
    valid
}

/// A repository with two snapshots, a lease, a condemned list, a tombstone and a relocation.
async fn sample_repo() -> (Arc<MemoryStorage>, SnapshotDoc) {
    let memory = Arc::new(MemoryStorage::default());
    let repo = new_repo(memory.clone()).await;
    let mut files = sample_files(3);
    let first = backup(&repo, &files, None).await.unwrap();
    files.mutate(8);
    let second = backup(&repo, &files, Some(&first)).await.unwrap();
    std::mem::forget(
        Session::begin(&repo, "left behind", jiff::Timestamp::UNIX_EPOCH)
            .await
            .unwrap(),
    );
    let packs: Vec<PackId> = memory
        .snapshot()
        .keys()
        .filter(|k| k.starts_with(prefix::PACKS))
        .map(|k| ObjectKey::parse(k).unwrap().last().unwrap())
        .collect();
    let list = ListId([5; 16]);
    let object = CondemnedList { packs: packs.clone() }.to_object(&list);
    memory.put(&ObjectKey::condemned(&list), object).await.unwrap();
    let relocation = sample_relocation(&memory, &packs[0]);
    let (key, object) = relocation.encode();
    memory.put(&key, object).await.unwrap();
    let key = ObjectKey::snapshot(&first.name);
    let tombstone = TombstoneDoc {
        why: "deleted".into(),
        lease: Some(first.lease),
        at: jiff::Timestamp::UNIX_EPOCH,
    };
    memory.put(&key, tombstone.to_object(&key)).await.unwrap();
    (memory, second)
}

fn sample_relocation(memory: &MemoryStorage, pack: &PackId) -> Relocation {
    let object = &memory.snapshot()[ObjectKey::pack(pack).as_str()];
    let trailer = trailer_of(object);
    let targets = (0..trailer.len()).map(|i| {
        (i % 3 != 0).then_some(Target {
            pack: i % 2,
            slot: Slot(i),
        })
    });
    let loc = PackLoc {
        id: PackId([8; 32]),
        trailer_offset: 500,
        trailer_len: 92,
    };
    Relocation {
        targets: targets.collect(),
        packs: vec![loc, loc],
        trailer,
    }
}

/// Encodings of every kind: whole objects, their payloads, trailers, footers, block headers, blocks of maps.
async fn samples() -> Vec<Bytes> {
    let (memory, _) = sample_repo().await;
    let mut out = Vec::new();
    for (key, object) in memory.snapshot() {
        if key.starts_with(prefix::PACKS) {
            let trailer = trailer_of(&object);
            out.push(trailer.encode().into());
            out.push(object.slice(object.len() - 16..));
            out.push(Bytes::copy_from_slice(&trailer.slots()[0].encode_header()));
            let start = trailer.first_block as usize;
            out.push(object.slice(start..start + trailer.slots()[0].packed_len() as usize));
        } else {
            let (_, payload) = envelope::decode_any(&ObjectKey::parse(&key).unwrap(), &object).unwrap();
            out.push(payload);
            out.push(object);
        }
        out.push(key.into());
    }
    out.extend(map_blocks(&memory).into_iter().map(|b| b.plain));
    out.push("2026-11-21T10:48:00Z".into());
    out.retain(|b| b.len() < 100_000);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn spoilt_encodings_never_panic() {
    let samples = samples().await;
    assert!(samples.len() > 60, "{} samples", samples.len());
    let valid = samples.iter().filter(|s| decode_all(s) > 0).count();
    assert!(
        valid * 10 > samples.len() * 9,
        "{valid} of {} samples are valid",
        samples.len()
    );
    let rounds = if full() { 400_000 } else { 12_000 };
    let mut dice = Dice(11);
    for _ in 0..rounds {
        let sample = &samples[dice.below(samples.len() as u64) as usize];
        decode_all(&spoil(sample, &mut dice));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if full() { 50_000 } else { 1500 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        decode_all(&bytes);
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,60}", digits in "[0-9a-f:TZ+-]{0,70}") {
        decode_all(text.as_bytes());
        decode_all(digits.as_bytes());
    }

    #[test]
    fn what_is_encoded_is_decoded(
        slots in prop::collection::vec((any::<[u8; 32]>(), 1..=1u32 << 20, any::<u32>(), any::<bool>()), 1..60),
        (data, lease) in any::<(bool, bool)>(),
        (owner, nonce) in any::<([u8; 16], [u8; 16])>(),
        first_block in 0..1u32 << 20,
        targets in prop::collection::vec(prop::option::of((0..3u32, 0..8192u32)), 60),
        mut condemned in prop::collection::vec(any::<[u8; 32]>(), 0..40),
    ) {
        let slots: Vec<_> = slots
            .into_iter()
            .map(|(id, plain_len, stored, raw)| BlockInfo {
                id: BlockId(id),
                plain_len,
                stored_len: if raw { plain_len } else { 1 + stored % plain_len },
                codec: if raw { Codec::Raw } else { Codec::Zstd },
            })
            .collect();
        for info in &slots {
            prop_assert_eq!(BlockInfo::decode_header(&info.encode_header()).unwrap(), *info);
        }
        let owner = if lease { Owner::Lease(LeaseId(owner)) } else { Owner::Condemned(ListId(owner)) };
        let kind = if data { PackKind::Data } else { PackKind::Map };
        let trailer = Trailer::new(kind, owner, Nonce(nonce), first_block, slots).unwrap();
        prop_assert_eq!(Trailer::decode_of(&trailer.pack_id(), &trailer.encode()).unwrap(), trailer.clone());
        let n = trailer.slots().len();
        let relocation = Relocation {
            packs: (0..3).map(|i| PackLoc { id: PackId([i; 32]), trailer_offset: 1, trailer_len: 92 }).collect(),
            targets: targets[..n].iter().map(|t| t.map(|(pack, slot)| Target { pack, slot: Slot(slot) })).collect(),
            trailer,
        };
        let id = relocation.trailer.pack_id();
        prop_assert_eq!(Relocation::decode(&id, &relocation.encode().1).unwrap(), relocation);
        condemned.sort_unstable();
        condemned.dedup();
        let list = CondemnedList { packs: condemned.into_iter().map(PackId).collect() };
        let id = ListId([1; 16]);
        prop_assert_eq!(CondemnedList::from_object(&ObjectKey::condemned(&id), &list.to_object(&id)).unwrap(), list);
    }

    #[test]
    fn small_bytes_never_panic(bytes in prop::collection::vec(0..5u8, 0..200)) {
        decode_all(&bytes);
    }
}

/// Reads a little of every file of a snapshot whose blocks somebody forged. Errors are fine, panics are not.
async fn read_forged(repo: &Repository, doc: SnapshotDoc) -> Result<(), RepoError> {
    let reader = SnapshotReader::open(repo, doc).await?;
    let rs = &reader.replsets()[0];
    let _ = rs.table().all().await;
    for i in 0..rs.files().len().min(50) {
        let Ok(Some(entry)) = rs.files().get(i).await else {
            continue;
        };
        let _ = rs.files().find(&entry.meta.path).await;
        let _ = rs.files().next_child(&entry.meta.path, 0).await;
        for offset in [0, entry.meta.size / 2, entry.meta.size.saturating_sub(5000)] {
            let _ = rs.read(&entry, offset, 100_000).await;
        }
    }
    Ok(())
}

/// Blocks whose ids are right and whose contents are spoilt: what somebody who may write could leave.
#[tokio::test(flavor = "multi_thread")]
async fn forged_blocks_never_panic() {
    let (memory, doc) = sample_repo().await;
    let repo = Repository::open(memory.clone(), 1 << 20).await.unwrap();
    let blocks = map_blocks(&memory);
    let rs = &doc.replsets[0];
    let by_id = |id| blocks.iter().find(|b| b.place.id == id).unwrap();
    let root = by_id(rs.file_list.unwrap().id);
    let table = by_id(rs.pack_table.unwrap().id);
    let is_node = |b: &&MapBlock| Node::decode(&b.plain, &b.place.pack).is_ok();
    let map_nodes: Vec<_> = blocks.iter().filter(is_node).collect();
    let rounds = if full() { 20_000 } else { 400 };
    let mut dice = Dice(21);
    let mut nodes = 0;
    for round in 0..rounds {
        let any = &blocks[dice.below(blocks.len() as u64) as usize];
        let node = map_nodes[dice.below(map_nodes.len() as u64) as usize];
        let victim = [any, root, table, node, node][dice.below(5) as usize];
        let forged = spoil(&victim.plain, &mut dice);
        if forged.is_empty() || forged.len() > 1 << 20 {
            continue;
        }
        let place = put_block(&memory, &forged, round).await;
        let mut doc = doc.clone();
        let rs = &mut doc.replsets[0];
        // Whatever named the victim names the forged block instead, up to the snapshot.
        let mut replaced = vec![(victim.place, place)];
        for block in [root, table].into_iter().chain(&blocks) {
            let plain = renamed(&block.plain, &victim.place, &place);
            if plain != block.plain {
                replaced.push((block.place, put_block(&memory, &plain, round + (1 << 40)).await));
            }
        }
        for (old, new) in replaced.clone() {
            let plain = renamed(&root.plain, &old, &new);
            if plain != root.plain {
                replaced.push((root.place, put_block(&memory, &plain, round + (2 << 40)).await));
            }
        }
        for (old, new) in replaced {
            for named in [&mut rs.file_list, &mut rs.pack_table] {
                if named.is_some_and(|p| p.id == old.id) {
                    *named = Some(new);
                }
            }
        }
        let _ = read_forged(&repo, doc).await;
        let maps = MapReader::new(Arc::new(PackStore::new(memory.clone(), 1 << 20)), 1 << 20);
        for level in 0..4 {
            for size in [1 << 20, u64::MAX] {
                let root = MapRoot::Node { place, level };
                let _ = maps.extents(&root, size, size / 3..size).await;
            }
            // The same node from the cache, as another's child.
            let span = Node::decode(&forged, &place.pack)
                .ok()
                .and_then(|n| n.span())
                .unwrap_or(1);
            nodes += usize::from(maps.node(&place, level, span).await.is_ok());
            assert!(maps.node(&place, level + 1, span + 1).await.is_err());
        }
        memory.tamper(&ObjectKey::pack(&place.pack), None);
    }
    assert!(nodes as u64 > rounds / 50, "{nodes} valid nodes");
}

/// Relocations that point to slots, packs and cycles that cannot be.
#[tokio::test(flavor = "multi_thread")]
async fn forged_relocations_never_panic() {
    let (memory, doc) = sample_repo().await;
    let packs: Vec<PackId> = memory
        .snapshot()
        .keys()
        .filter(|k| k.starts_with(prefix::PACKS))
        .map(|k| ObjectKey::parse(k).unwrap().last().unwrap())
        .collect();
    let mut dice = Dice(31);
    for _ in 0..60 {
        let broken = Arc::new(MemoryStorage::default());
        for (key, object) in memory.snapshot() {
            broken.tamper(&ObjectKey::parse(&key).unwrap(), Some(object));
        }
        for id in &packs {
            let mut relocation = sample_relocation(&memory, id);
            for loc in &mut relocation.packs {
                loc.id = packs[dice.below(packs.len() as u64) as usize];
                loc.trailer_len = dice.below(1 << 33) as u32;
                loc.trailer_offset = dice.below(1 << 33) as u32;
            }
            for target in relocation.targets.iter_mut().flatten() {
                target.slot.0 = [0, 1, u32::MAX, u32::MAX - 1, 8192][dice.below(5) as usize];
            }
            let (key, object) = relocation.encode();
            broken.tamper(&key, Some(object));
            if dice.below(2) == 0 {
                broken.tamper(&ObjectKey::pack(id), None);
            }
        }
        let repo = Repository::open(broken, 1 << 20).await.unwrap();
        let _ = read_forged(&repo, doc.clone()).await;
    }
}
