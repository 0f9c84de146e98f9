//! What a gc leaves behind, by hand and one step at a time (GC.md rules 10 to 14): for tests of writers and readers
//! before there is a gc.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use pbmfs_repo::id::{ListId, PackId, Randomness, Slot, SystemRandomness, draw16};
use pbmfs_repo::key::{ObjectKey, prefix};
use pbmfs_repo::map::{ExtentKind, MapRoot, Node};
use pbmfs_repo::objects::{CondemnedList, SnapshotDoc};
use pbmfs_repo::pack::{Owner, PackBuilder, PackKind, Place, Trailer, put_pack};
use pbmfs_repo::relocation::{Relocation, Target};
use pbmfs_repo::storage::{MemoryStorage, Storage};
use pbmfs_repo::{Repository, Session, SnapshotReader};

use super::forge::trailer_of;
use super::{Files, Named, Reads, assert_same, store};

/// Living slots of each pack.
pub type Live = BTreeMap<PackId, BTreeSet<u32>>;

pub fn packs(memory: &MemoryStorage) -> BTreeMap<PackId, Trailer> {
    memory
        .snapshot()
        .iter()
        .filter(|(key, _)| key.starts_with(prefix::PACKS))
        .map(|(key, object)| {
            let key = ObjectKey::parse(key).unwrap();
            (key.last().unwrap(), trailer_of(object))
        })
        .collect()
}

pub fn relocation(memory: &MemoryStorage, id: &PackId) -> Option<Relocation> {
    let object = memory
        .snapshot()
        .get(ObjectKey::relocation(id).as_str())
        .cloned()?;
    Some(Relocation::decode(id, &object).unwrap())
}

/// The slots that a snapshot names itself, by packs. Relocations are not followed.
pub async fn named(memory: &MemoryStorage, repo: &Repository, doc: &SnapshotDoc) -> Live {
    let trailers = packs(memory);
    let mut live = Live::new();
    let slot_of = |place: &Place| {
        let trailer = trailers.get(&place.pack).cloned();
        let trailer = trailer.unwrap_or_else(|| relocation(memory, &place.pack).unwrap().trailer);
        trailer.slot_at(place.offset).unwrap().0
    };
    let reader = SnapshotReader::open(repo, doc.clone()).await.unwrap();
    for rs in reader.replsets() {
        let mut places: Vec<Place> = rs.files().places().copied().collect();
        places.extend(rs.table().places());
        for i in 0..rs.files().len() {
            let entry = rs.files().get(i).await.unwrap().unwrap();
            let size = entry.meta.size;
            let mut todo = Vec::new();
            if let MapRoot::Node { place, level } = entry.root {
                todo.push((place, level, size));
            }
            while let Some((place, level, span)) = todo.pop() {
                places.push(place);
                if let Node::Inner { children, .. } = &*rs.maps().node(&place, level, span).await.unwrap() {
                    todo.extend(children.iter().map(|c| (c.place, level - 1, c.span)));
                }
            }
            for placed in rs.extents(&entry.root, size, 0..size).await.unwrap() {
                if let ExtentKind::Data { pack, .. } = placed.extent.kind {
                    let id = rs.pack(pack).await.unwrap().id;
                    let spans = rs.spans(&placed).await.unwrap();
                    live.entry(id).or_default().extend(spans.iter().map(|s| s.slot));
                }
            }
        }
        for place in places {
            live.entry(place.pack).or_default().insert(slot_of(&place));
        }
    }
    live
}

/// The living slots of all snapshots, through all relocations.
pub async fn mark(memory: &Arc<MemoryStorage>) -> Live {
    let repo = Repository::open(memory.clone(), 8 << 20).await.unwrap();
    let mut live = Live::new();
    let mut todo = Vec::new();
    for listing in repo.snapshots().await.unwrap() {
        let pbmfs_repo::Listing::Snapshot(doc) = listing else {
            panic!("{listing:?}");
        };
        for (pack, slots) in named(memory, &repo, &doc).await {
            todo.extend(slots.into_iter().map(|slot| (pack, slot)));
        }
    }
    while let Some((pack, slot)) = todo.pop() {
        if live.entry(pack).or_default().insert(slot)
            && let Some(relocation) = relocation(memory, &pack)
        {
            let (target, slot) = relocation
                .target(Slot(slot))
                .expect("a living slot was relocated");
            todo.push((target.id, slot.0));
        }
    }
    live
}

/// Puts a list of doomed packs.
pub async fn condemn(memory: &MemoryStorage, packs: impl IntoIterator<Item = PackId>) -> ListId {
    let id = ListId(draw16(&SystemRandomness));
    let packs: BTreeSet<PackId> = packs.into_iter().collect();
    let list = CondemnedList {
        packs: packs.into_iter().collect(),
    };
    memory
        .put(&ObjectKey::condemned(&id), list.to_object(&id))
        .await
        .unwrap();
    id
}

/// Moves the living slots of a pack into new packs, puts the relocation, and deletes the pack.
pub async fn relocate(memory: &MemoryStorage, list: ListId, id: &PackId, live: &Live) {
    relocate_with(memory, &SystemRandomness, list, id, live).await;
}

/// [`relocate`] with nonces from elsewhere.
pub async fn relocate_with(
    memory: &MemoryStorage,
    randomness: &dyn Randomness,
    list: ListId,
    id: &PackId,
    live: &Live,
) {
    let key = ObjectKey::pack(id);
    let object = memory.get(&key).await.unwrap();
    let trailer = trailer_of(&object);
    if let Some(live) = live.get(id).filter(|l| !l.is_empty()) {
        let mut builders: Vec<_> = (0..2)
            .map(|_| PackBuilder::new(trailer.kind, Owner::Condemned(list), Vec::new()))
            .collect();
        let mut targets = vec![None; trailer.slots().len()];
        for (i, &slot) in live.iter().enumerate() {
            let info = trailer.slots()[slot as usize];
            let at = trailer.offset(Slot(slot)).unwrap() as usize;
            let packed = &object[at..at + info.packed_len() as usize];
            // Three here and three there, so that a run is scattered over two packs.
            let pack = i / 3 % 2;
            let (target, _) = builders[pack].push(info, packed);
            targets[slot as usize] = Some(Target {
                pack: pack as u32,
                slot: target,
            });
        }
        let mut packs = Vec::new();
        for builder in builders.into_iter().filter(|b| !b.is_empty()) {
            packs.push(put_pack(memory, randomness, builder).await.unwrap().loc);
        }
        let relocation = Relocation {
            trailer,
            packs,
            targets,
        };
        let (key, object) = relocation.encode();
        memory.put_if_absent(&key, object).await.unwrap();
    }
    memory.delete(&key).await.unwrap();
}

/// Condemns and relocates packs whole: lists them, moves what lives, deletes, and removes the list.
pub async fn collect(memory: &Arc<MemoryStorage>, doomed: &HashSet<PackId>) {
    let list = condemn(memory, doomed.iter().copied()).await;
    let live = mark(memory).await;
    for id in doomed {
        relocate(memory, list, id, &live).await;
    }
    memory.delete(&ObjectKey::condemned(&list)).await.unwrap();
}

/// The packs of a kind that are there now.
pub fn of_kind(memory: &MemoryStorage, kind: Option<PackKind>) -> HashSet<PackId> {
    let all = packs(memory).into_iter();
    all.filter(|(_, t)| kind.is_none_or(|k| t.kind == k))
        .map(|(id, _)| id)
        .collect()
}

/// A backup, and a proof that it names no pack that its session may not.
pub async fn backup_checked(
    memory: &Arc<MemoryStorage>,
    files: &Files,
    parent: Option<&SnapshotDoc>,
    changes: Option<Named>,
) -> SnapshotDoc {
    let repo = Repository::open(memory.clone(), 1 << 20).await.unwrap();
    let session = Session::begin(&repo, "backup", jiff::Timestamp::now())
        .await
        .unwrap();
    let allowed = session.allowed().clone();
    let lease = session.lease();
    let doc = store(
        &repo,
        &session,
        files,
        files.metas(),
        parent,
        changes.map(|named| (named, Reads::default())),
    )
    .await
    .unwrap();
    session.commit(&doc).await.unwrap();
    let trailers = packs(memory);
    for id in named(memory, &repo, &doc).await.keys() {
        let own = trailers.get(id).is_some_and(|t| t.owner == Owner::Lease(lease));
        assert!(own || allowed.contains_key(id), "{id} is neither allowed nor own");
    }
    assert_same(&repo, &doc, files).await;
    doc
}
