//! Looking at objects one by one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::StreamExt;

use super::{CheckOptions, CheckProgress, CheckReport, Finding, is_damage};
use crate::envelope::{self, Header, ObjectKind};
use crate::error::{FormatError, RepoError, Result};
use crate::id::{PackId, Slot};
use crate::ingest::Cancel;
use crate::key::{ObjectKey, prefix};
use crate::objects::{BeatDoc, Committed, CondemnedList, JsonObject, LeaseDoc, SnapshotDoc};
use crate::pack::{BlockInfo, PackKind, PackLoc, Trailer, open_block};
use crate::relocation::Relocation;
use crate::repository::Repository;
use crate::storage::{Listed, Storage, StorageError, list_all};

/// What is known after all objects were looked at.
#[derive(Default)]
pub(super) struct Facts {
    /// Snapshots that are there, oldest first.
    pub snapshots: Vec<SnapshotDoc>,
    /// Packs that were listed; `None` for one whose envelope or trailer is wrong.
    pub packs: HashMap<PackId, Option<PackLoc>>,
    /// Blocks that are wrong, by pack and slot.
    pub bad_blocks: HashMap<PackId, BTreeMap<u32, String>>,
}

/// Bytes of a pack that are read at a time.
const READ: u64 = 4 << 20;

pub(super) async fn look(
    repo: &Repository,
    options: CheckOptions,
    progress: &dyn CheckProgress,
    cancel: &Cancel,
    report: &mut CheckReport,
) -> Result<Facts> {
    progress.step("looking at snapshots and leases", 0);
    let mut facts = Facts::default();
    let listed = list_all(&**repo.storage(), "").await?;
    let (packs, small): (Vec<_>, Vec<_>) = listed
        .into_iter()
        .partition(|l| l.key.as_str().starts_with(prefix::PACKS));
    for object in small {
        cancel.check()?;
        match look_at_small(repo, &object.key, &mut facts, report).await {
            Ok(()) => {}
            Err(RepoError::Damaged { key, reason }) => {
                report.add(Finding::DamagedObject {
                    key: key.to_string(),
                    reason: reason.to_string(),
                });
            }
            // Gone since it was listed.
            Err(RepoError::Storage(StorageError::NotFound(_))) => {}
            Err(e) => return Err(e),
        }
    }
    facts.snapshots.sort_by(|a, b| a.name.cmp(&b.name));
    let bytes = packs.iter().map(|p| p.size).sum();
    progress.step(
        if options.read_data {
            "reading packs"
        } else {
            "looking at packs"
        },
        bytes,
    );
    let mut looks = futures::stream::iter(packs)
        .map(|listed| async move {
            cancel.check()?;
            let look = look_at_pack(repo, &listed, options.read_data, cancel).await;
            Ok::<_, RepoError>((listed, look?))
        })
        .buffer_unordered(options.parallel.max(1));
    while let Some(look) = looks.next().await {
        let (listed, look) = look?;
        progress.bytes(listed.size);
        take(listed, look, &mut facts, report);
    }
    Ok(facts)
}

async fn look_at_small(
    repo: &Repository,
    key: &ObjectKey,
    facts: &mut Facts,
    report: &mut CheckReport,
) -> Result<()> {
    let text = key.as_str();
    if *key == ObjectKey::repository() {
        // It was read and understood when the repository was opened.
        return Ok(());
    }
    let foreign = || Finding::Foreign { key: key.to_string() };
    let known = [
        prefix::SNAPSHOTS,
        prefix::DELETED,
        prefix::LEASES,
        prefix::BEATS,
        prefix::CONDEMNED,
        prefix::RELOCATIONS,
    ];
    if !known.iter().any(|p| text.starts_with(p)) {
        report.add(foreign());
        return Ok(());
    }
    let object = repo.storage().get(key).await?;
    if let Some(name) = key.snapshot_name() {
        match Committed::decode(&name, &object)? {
            Committed::Snapshot(doc) => {
                report.snapshots += 1;
                facts.snapshots.push(*doc);
            }
            Committed::Tombstone(_) => report.tombstones += 1,
        }
    } else if text.starts_with(prefix::LEASES) {
        let lease = LeaseDoc::from_object(key, &object)?;
        let holder = format!(
            "process {} on {} ({}, since {})",
            lease.pid, lease.host, lease.purpose, lease.started
        );
        report.add(Finding::Lease {
            key: key.to_string(),
            holder,
        });
    } else if text.starts_with(prefix::BEATS) {
        BeatDoc::from_object(key, &object)?;
    } else if text.starts_with(prefix::CONDEMNED) {
        CondemnedList::from_object(key, &object)?;
    } else if text.starts_with(prefix::DELETED) {
        envelope::decode(ObjectKind::DeletedHint, key, &object).map_err(RepoError::damaged(key))?;
    } else if let Some(id) = key
        .last::<PackId>()
        .filter(|_| text.starts_with(prefix::RELOCATIONS))
    {
        Relocation::decode(&id, &object).map_err(RepoError::damaged(key))?;
    } else {
        report.add(foreign());
    }
    Ok(())
}

/// What was seen of a pack.
enum Look {
    /// It went away meanwhile.
    Gone,
    /// Its key is none of a pack.
    Foreign,
    Damaged(FormatError),
    Sound {
        loc: PackLoc,
        trailer: Arc<Trailer>,
        bad: BTreeMap<u32, String>,
        read: u64,
    },
}

async fn look_at_pack(repo: &Repository, listed: &Listed, read_data: bool, cancel: &Cancel) -> Result<Look> {
    let Some(id) = listed
        .key
        .last::<PackId>()
        .filter(|id| ObjectKey::pack(id) == listed.key)
    else {
        return Ok(Look::Foreign);
    };
    let looked = async {
        let (loc, trailer) = repo.packs().locate_fresh(&id, listed.size).await?;
        check_envelope(&**repo.storage(), listed, &loc, &trailer).await?;
        let (bad, read) = if read_data {
            read_blocks(repo, &loc, &trailer, cancel).await?
        } else {
            Default::default()
        };
        Ok(Look::Sound {
            loc,
            trailer,
            bad,
            read,
        })
    };
    match looked.await {
        Err(RepoError::Storage(StorageError::NotFound(_))) => Ok(Look::Gone),
        Err(RepoError::Damaged { reason, .. }) => Ok(Look::Damaged(reason)),
        Err(RepoError::Storage(StorageError::OutOfRange { .. })) => Ok(Look::Damaged(FormatError::TooShort)),
        other => other,
    }
}

async fn check_envelope(
    storage: &dyn Storage,
    listed: &Listed,
    loc: &PackLoc,
    trailer: &Trailer,
) -> Result<()> {
    let head = storage
        .get_range(&listed.key, 0, trailer.first_block.into())
        .await?;
    let sound = || {
        let header = Header::decode(&head)?;
        let kind = match trailer.kind {
            PackKind::Data => ObjectKind::DataPack,
            PackKind::Map => ObjectKind::MapPack,
        };
        if header.kind != kind {
            return Err(FormatError::WrongKind {
                expected: kind.name(),
                found: header.kind.name().into(),
            });
        }
        if header.len() as u64 != u64::from(trailer.first_block) || trailer.end() != loc.trailer_offset {
            return Err(FormatError::BadField("first block"));
        }
        if header.len() as u64 + header.payload_len != listed.size || loc.object_len() != listed.size {
            return Err(FormatError::BadField("payload length"));
        }
        header.verify(&listed.key, &trailer.encode())
    };
    sound().map_err(RepoError::damaged(&listed.key))
}

async fn read_blocks(
    repo: &Repository,
    loc: &PackLoc,
    trailer: &Trailer,
    cancel: &Cancel,
) -> Result<(BTreeMap<u32, String>, u64)> {
    let key = ObjectKey::pack(&loc.id);
    let mut bad = BTreeMap::new();
    let mut first = 0u32;
    while first < trailer.len() {
        cancel.check()?;
        let start = trailer.offset(Slot(first)).unwrap_or_default();
        let fits = |slot: u32| {
            trailer
                .offset(Slot(slot))
                .is_some_and(|end| u64::from(end - start) <= READ)
        };
        let mut next = first + 1;
        while next < trailer.len() && fits(next + 1) {
            next += 1;
        }
        let end = trailer.offset(Slot(next)).unwrap_or(trailer.end());
        let run = repo
            .storage()
            .get_range(&key, start.into(), (end - start).into())
            .await?;
        let slots: Vec<(u32, BlockInfo, bytes::Bytes)> = (first..next)
            .filter_map(|slot| {
                let at = (trailer.offset(Slot(slot))? - start) as usize;
                let info = *trailer.slot(Slot(slot))?;
                Some((slot, info, run.slice(at..at + info.packed_len() as usize)))
            })
            .collect();
        // Decompression and hashing, away from the threads that wait for the storage.
        let wrong = tokio::task::spawn_blocking(move || {
            let wrong = |(slot, info, packed): (u32, BlockInfo, bytes::Bytes)| {
                open_block(&info, &packed).err().map(|e| (slot, e.to_string()))
            };
            slots.into_iter().filter_map(wrong).collect::<Vec<_>>()
        });
        bad.extend(wrong.await.map_err(|e| RepoError::Poisoned(e.to_string()))?);
        first = next;
    }
    Ok((bad, trailer.len().into()))
}

fn take(listed: Listed, look: Look, facts: &mut Facts, report: &mut CheckReport) {
    let key = listed.key.to_string();
    match look {
        Look::Gone => {}
        Look::Foreign => report.add(Finding::Foreign { key }),
        Look::Damaged(reason) => {
            report.packs += 1;
            report.bytes_packs += listed.size;
            report.add(Finding::DamagedObject {
                key,
                reason: reason.to_string(),
            });
            if let Some(id) = listed.key.last() {
                facts.packs.insert(id, None);
            }
        }
        Look::Sound {
            loc,
            trailer,
            bad,
            read,
        } => {
            report.packs += 1;
            report.bytes_packs += listed.size;
            report.blocks += u64::from(trailer.len());
            report.blocks_read += read;
            for (slot, reason) in &bad {
                if let Some(info) = trailer.slot(Slot(*slot)) {
                    let (key, reason) = (key.clone(), reason.clone());
                    report.add(Finding::DamagedBlock {
                        key,
                        slot: *slot,
                        block: info.id,
                        reason,
                    });
                }
            }
            if !bad.is_empty() {
                facts.bad_blocks.insert(loc.id, bad);
            }
            facts.packs.insert(loc.id, Some(loc));
        }
    }
}

/// Whether an error of the walk is a finding.
pub(super) fn as_finding(e: RepoError) -> Result<Finding> {
    match e {
        RepoError::Damaged { key, reason } => Ok(Finding::DamagedObject {
            key: key.to_string(),
            reason: reason.to_string(),
        }),
        RepoError::Missing { key } => Ok(Finding::MissingObject { key: key.to_string() }),
        ref e @ RepoError::DamagedBlock { ref pack, .. } => Ok(Finding::DamagedObject {
            key: ObjectKey::pack(pack).to_string(),
            reason: e.to_string(),
        }),
        e if is_damage(&e) => Ok(Finding::DamagedObject {
            key: "a file list".into(),
            reason: e.to_string(),
        }),
        e => Err(e),
    }
}
