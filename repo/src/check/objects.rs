//! The small objects of a repository.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::damage;
use super::finding::{CheckReport, Finding};
use crate::envelope::{self, ObjectKind};
use crate::error::{RepoError, Result};
use crate::id::{LeaseId, ListId, PackId, SnapshotName};
use crate::ingest::Cancel;
use crate::key::ObjectKey;
use crate::objects::{BeatDoc, Committed, CondemnedList, JsonObject, LeaseDoc, RepoConfig, SnapshotDoc};
use crate::relocation::Relocation;
use crate::repository::Repository;
use crate::storage::Listed;

/// What an object should be, by its key.
enum Named {
    Repository,
    Pack(PackId),
    Snapshot(SnapshotName),
    Hint(SnapshotName),
    Relocation(PackId),
    Lease(LeaseId),
    Beat(LeaseId),
    Condemned,
    Nothing,
}

/// What was found.
#[derive(Default)]
pub(super) struct Objects {
    /// Packs that were listed, and their lengths.
    pub packs: HashMap<PackId, u64>,
    /// Relocations that are sound.
    pub relocations: Vec<PackId>,
    /// Snapshots that are sound and not deleted, oldest first.
    pub snapshots: Vec<SnapshotDoc>,
}

/// What the key stands for; only the one canonical spelling is a key.
fn classify(key: &ObjectKey) -> Named {
    fn id<T: std::str::FromStr>(key: &ObjectKey, make: impl Fn(&T) -> ObjectKey) -> Option<T> {
        key.last::<T>().filter(|id| make(id) == *key)
    }
    if *key == ObjectKey::repository() {
        return Named::Repository;
    }
    key.snapshot_name()
        .map(Named::Snapshot)
        .or_else(|| id(key, ObjectKey::pack).map(Named::Pack))
        .or_else(|| id(key, ObjectKey::deleted).map(Named::Hint))
        .or_else(|| id(key, ObjectKey::relocation).map(Named::Relocation))
        .or_else(|| id(key, ObjectKey::lease).map(Named::Lease))
        .or_else(|| id(key, ObjectKey::beat).map(Named::Beat))
        .or_else(|| id::<ListId>(key, ObjectKey::condemned).map(|_| Named::Condemned))
        .unwrap_or(Named::Nothing)
}

/// Reads every small object.
pub(super) async fn read(
    repo: &Repository,
    listed: &[Listed],
    report: &mut CheckReport,
    cancel: &Cancel,
) -> Result<Objects> {
    let mut out = Objects::default();
    let (mut hints, mut leases, mut beats) = (Vec::new(), HashSet::new(), Vec::new());
    let mut has_config = false;
    for object in listed {
        cancel.check()?;
        let key = &object.key;
        let named = classify(key);
        match &named {
            Named::Pack(id) => {
                out.packs.insert(*id, object.size);
                continue;
            }
            Named::Nothing => {
                report
                    .findings
                    .push(Finding::ForeignObject { key: key.to_string() });
                continue;
            }
            _ => {}
        }
        let bytes = match repo.storage().get(key).await {
            Ok(bytes) => bytes,
            // Gone since it was listed. If it should not be, whoever needs it will tell.
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e.into()),
        };
        let decoded = match named {
            Named::Repository => {
                has_config = true;
                RepoConfig::from_object(key, &bytes).and_then(|config| same_repository(repo, key, &config))
            }
            Named::Snapshot(name) => Committed::decode(&name, &bytes).map(|committed| match committed {
                Committed::Snapshot(doc) => out.snapshots.push(*doc),
                Committed::Tombstone(_) => {}
            }),
            Named::Hint(name) => hint(key, &bytes).map(|()| hints.push(name)),
            Named::Relocation(id) => Relocation::decode(&id, &bytes)
                .map(|_| out.relocations.push(id))
                .map_err(RepoError::damaged(key)),
            Named::Lease(lease) => LeaseDoc::from_object(key, &bytes).map(|doc| {
                leases.insert(lease);
                report.findings.push(Finding::Lease {
                    lease,
                    host: doc.host,
                    pid: doc.pid,
                    purpose: doc.purpose,
                    started: doc.started,
                });
            }),
            Named::Beat(lease) => {
                beats.push(lease);
                BeatDoc::from_object(key, &bytes).map(|_| ())
            }
            Named::Condemned => CondemnedList::from_object(key, &bytes).map(|_| ()),
            Named::Pack(_) | Named::Nothing => Ok(()),
        };
        if let Err(e) = decoded {
            object_finding(key, e, report)?;
        }
    }
    if !has_config {
        report.findings.push(Finding::DamagedObject {
            key: ObjectKey::repository().to_string(),
            reason: "it is missing".into(),
        });
    }
    // A lease that was removed while this ran may be among the damaged ones or gone; neither is worth a word.
    let listed_leases: HashSet<LeaseId> = listed
        .iter()
        .filter_map(|o| match classify(&o.key) {
            Named::Lease(lease) => Some(lease),
            _ => None,
        })
        .collect();
    beats.retain(|lease| !listed_leases.contains(lease));
    for lease in beats {
        report.findings.push(Finding::StrayBeat { lease });
    }
    for snapshot in hints {
        if out.snapshots.iter().any(|doc| doc.name == snapshot) {
            report.findings.push(Finding::HiddenSnapshot { snapshot });
        }
    }
    out.snapshots.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

fn same_repository(repo: &Repository, key: &ObjectKey, config: &RepoConfig) -> Result<()> {
    if config.repository_id == repo.config().repository_id {
        return Ok(());
    }
    let other = format!("repo.json of repository {}", config.repository_id);
    Err(RepoError::damaged(key)(crate::FormatError::WrongKey(other)))
}

fn hint(key: &ObjectKey, object: &Bytes) -> Result<()> {
    envelope::decode(ObjectKind::DeletedHint, key, object)
        .map(|_| ())
        .map_err(RepoError::damaged(key))
}

/// What is wrong with an object, without its key, which the finding names.
pub(super) fn object_finding(key: &ObjectKey, e: RepoError, report: &mut CheckReport) -> Result<()> {
    let reason = match e {
        RepoError::Damaged { reason, .. } => reason.to_string(),
        other => damage(other)?,
    };
    report.findings.push(Finding::DamagedObject {
        key: key.to_string(),
        reason,
    });
    Ok(())
}
