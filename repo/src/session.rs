//! A writer's session: lease, beats, what it may refer to, and the commit (GC.md rules 1 to 7).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::error::{RepoError, Result};
use crate::id::{LeaseId, PackId, SnapshotName, draw16};
use crate::key::{ObjectKey, prefix};
use crate::objects::{BeatDoc, Committed, CondemnedList, JsonObject, LeaseDoc, SnapshotDoc, TombstoneDoc};
use crate::repository::Repository;
use crate::storage::{PutOutcome, Storage, StorageError, list_all};

/// How often a lease's counter is raised. A gc that sees no raise for a while may take the writer for dead and fence
/// it, so it should see many.
const BEAT_EVERY: Duration = Duration::from_secs(10);

/// How long the end of a session waits for a beat that is on its way.
const BEAT_PATIENCE: Duration = Duration::from_secs(30);

/// How often create-if-absent is repeated while its outcome is unknown.
const COMMIT_ATTEMPTS: u32 = 5;

/// How many seconds further a name is looked for when the present second's is taken.
const NAME_ATTEMPTS: u32 = 120;

/// A writer at work. Dropping it without [`Session::commit`] or [`Session::abandon`] leaves the lease behind and ends its
/// beats, as a crash would: gc deals with that.
pub struct Session {
    repo: Repository,
    name: SnapshotName,
    lease: LeaseId,
    /// Packs that were listed and not condemned, with their lengths.
    allowed: Arc<HashMap<PackId, u64>>,
    beats: Beats,
}

/// The task that raises the counter. Dropped, it ends after the beat that it is at.
struct Beats {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Beats {
    fn start(storage: Arc<dyn Storage>, lease: LeaseId) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(beat(storage, lease, stopped));
        Self { stop, task }
    }

    /// Waits for a beat that is on its way: it would come back after it was deleted, and the storage is asked in a
    /// thread that nobody can stop.
    async fn end(self) {
        drop(self.stop);
        if tokio::time::timeout(BEAT_PATIENCE, self.task).await.is_err() {
            tracing::debug!("a beat takes very long; it may stay until gc removes it");
        }
    }
}

/// How a commit ended, when it did not fail.
enum Decided {
    Committed,
    Lost(String),
    /// The commit key holds a tombstone of our own.
    GivenUp,
}

impl Session {
    /// Begins a session that may commit one snapshot, named by the present second or one of the next. In the order
    /// of rule 3: the lease is put, then the condemned lists are read, then the packs are listed.
    ///
    /// # Errors
    /// The storage's; no lease is left behind.
    pub async fn begin(repo: &Repository, purpose: &str, now: jiff::Timestamp) -> Result<Self> {
        let (lease, name) = take_lease(repo, purpose, now).await?;
        match read_allowed(repo).await {
            Ok(allowed) => {
                let beats = Beats::start(repo.storage().clone(), lease);
                Ok(Self {
                    repo: repo.clone(),
                    name,
                    lease,
                    allowed: Arc::new(allowed),
                    beats,
                })
            }
            Err(e) => {
                remove_lease(&**repo.storage(), &lease).await;
                Err(e)
            }
        }
    }

    /// The name that the snapshot will have.
    pub fn name(&self) -> &SnapshotName {
        &self.name
    }

    /// The lease, owner of every pack of this session.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// The repository.
    pub fn repo(&self) -> &Repository {
        &self.repo
    }

    /// Packs that this writer may refer to, with their lengths, besides its own (rule 4).
    pub fn allowed(&self) -> &Arc<HashMap<PackId, u64>> {
        &self.allowed
    }

    /// Commits (rule 5). Success means that the snapshot is durable.
    ///
    /// # Errors
    /// `CommitLost` if somebody else's object stands at the commit key; `CommitUnknown` if the storage fails so long
    /// that nobody can tell, and then the lease stays; any other error means that nothing was committed and nothing
    /// ever will be.
    pub async fn commit(self, doc: &SnapshotDoc) -> Result<()> {
        debug_assert!(doc.lease == self.lease && doc.name == self.name);
        let key = ObjectKey::snapshot(&self.name);
        let storage = self.repo.storage().clone();
        let object = doc.to_object(&key);
        let mut last = None;
        // Whether an attempt may have landed, now or later, although it failed.
        let mut open = false;
        let mut decided = None;
        for attempt in 0..COMMIT_ATTEMPTS {
            match storage.put_if_absent(&key, object.clone()).await {
                Ok(PutOutcome::Created) => decided = Some(Decided::Committed),
                Ok(PutOutcome::Exists) => decided = self.look(&*storage).await,
                Err(e) => {
                    tracing::warn!("commit of {}: {e}", self.name);
                    let hopeless = !e.outcome_unknown();
                    open |= !hopeless;
                    last = Some(e);
                    if hopeless {
                        break;
                    }
                }
            }
            if decided.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20 << attempt)).await;
        }
        if decided.is_none() {
            decided = self.give_up(&*storage).await;
        }
        self.beats.end().await;
        match decided {
            Some(Decided::Committed) => {
                remove_lease(&*storage, &self.lease).await;
                Ok(())
            }
            Some(Decided::Lost(by)) => {
                remove_lease(&*storage, &self.lease).await;
                Err(RepoError::CommitLost { key, by })
            }
            Some(Decided::GivenUp) => {
                remove_lease(&*storage, &self.lease).await;
                Err(last.unwrap_or_else(|| unreadable_commit(&key)).into())
            }
            None => {
                // A full or read-only storage takes no tombstone either. If it said of every attempt that nothing was
                // done, and nothing is there, its own error tells more; the lease stays nevertheless.
                let absent = storage.head(&key).await.is_err_and(|e| e.is_not_found());
                Err(match last {
                    Some(e) if absent && !open => e.into(),
                    Some(source) => RepoError::CommitUnknown {
                        name: self.name,
                        source,
                    },
                    None => RepoError::CommitUnknown {
                        name: self.name,
                        source: unreadable_commit(&key),
                    },
                })
            }
        }
    }

    /// Whose object stands at the commit key; `None` if that cannot be read now.
    async fn look(&self, storage: &dyn Storage) -> Option<Decided> {
        let object = match storage.get(&ObjectKey::snapshot(&self.name)).await {
            Ok(object) => object,
            Err(e) => {
                tracing::warn!("commit of {}: {e}", self.name);
                return None;
            }
        };
        Some(match Committed::decode(&self.name, &object) {
            Ok(Committed::Snapshot(doc)) if doc.lease == self.lease => Decided::Committed,
            Ok(Committed::Snapshot(_)) => Decided::Lost("another backup".into()),
            Ok(Committed::Tombstone(t)) if t.lease == Some(self.lease) => Decided::GivenUp,
            Ok(Committed::Tombstone(t)) => Decided::Lost(format!("a tombstone ({})", t.why)),
            // It may be our own snapshot, damaged on its way here: read again, and never take it for lost.
            Err(e) => {
                tracing::warn!("commit of {}: {e}", self.name);
                return None;
            }
        })
    }

    /// Ends the attempts for certain: a tombstone of our own at the commit key, or what stands there already.
    async fn give_up(&self, storage: &dyn Storage) -> Option<Decided> {
        let key = ObjectKey::snapshot(&self.name);
        let tombstone = TombstoneDoc {
            why: "abandoned".into(),
            lease: Some(self.lease),
            at: jiff::Timestamp::now(),
        };
        let tombstone = tombstone.to_object(&key);
        for attempt in 0..COMMIT_ATTEMPTS {
            match storage.put_if_absent(&key, tombstone.clone()).await {
                Ok(PutOutcome::Created) => return Some(Decided::GivenUp),
                Ok(PutOutcome::Exists) => {
                    if let Some(decided) = self.look(storage).await {
                        return Some(decided);
                    }
                }
                Err(e) => tracing::warn!("giving up {}: {e}", self.name),
            }
            tokio::time::sleep(Duration::from_millis(20 << attempt)).await;
        }
        None
    }

    /// Ends a session that never tried to commit. Packs that it put are garbage, which gc removes.
    pub async fn abandon(self) {
        self.beats.end().await;
        remove_lease(&**self.repo.storage(), &self.lease).await;
    }
}

fn unreadable_commit(key: &ObjectKey) -> StorageError {
    StorageError::Failed {
        op: "commit",
        key: key.to_string(),
        reason: "what stands there cannot be read".into(),
    }
}

/// Puts a lease whose commit key nobody has used and no other lease names.
async fn take_lease(
    repo: &Repository,
    purpose: &str,
    now: jiff::Timestamp,
) -> Result<(LeaseId, SnapshotName)> {
    let storage = &**repo.storage();
    let mut moment = now;
    let mut step = 0;
    for _ in 0..NAME_ATTEMPTS {
        moment = moment
            .saturating_add(jiff::SignedDuration::from_secs(step))
            .unwrap_or(moment);
        step = 1;
        let name = SnapshotName::at(moment);
        let key = ObjectKey::snapshot(&name);
        match storage.head(&key).await {
            Ok(_) => continue,
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
        let lease = LeaseId(draw16(&**repo.randomness()));
        let doc = LeaseDoc {
            commit_key: key.to_string(),
            host: host_name(),
            pid: std::process::id(),
            purpose: purpose.into(),
            started: now,
        };
        let lease_key = ObjectKey::lease(&lease);
        match storage.put_if_absent(&lease_key, doc.to_object(&lease_key)).await {
            Ok(PutOutcome::Created) => {}
            // Another writer's: a lease is used once.
            Ok(PutOutcome::Exists) => continue,
            // Then nothing is there, and nothing can be removed either.
            Err(e @ (StorageError::Permission { .. } | StorageError::NoSpace { .. })) => return Err(e.into()),
            Err(e) => {
                // It may be there all the same, or land later: then gc removes it.
                remove_lease(storage, &lease).await;
                return Err(e.into());
            }
        }
        match rivals(storage, &lease, &key).await {
            Ok(0) => return Ok((lease, name)),
            Ok(rivals) => {
                remove_lease(storage, &lease).await;
                // Those who gave way to each other must not meet again and again.
                step += i64::from(draw16(&**repo.randomness())[0]) % (2 * rivals);
            }
            Err(e) => {
                remove_lease(storage, &lease).await;
                return Err(e);
            }
        }
    }
    Err(RepoError::SourceLost(
        "every snapshot name of the next two minutes is taken".into(),
    ))
}

/// How many others have the commit key: leases that name it, or what stands there. Of two that see each other both
/// give way.
async fn rivals(storage: &dyn Storage, own: &LeaseId, key: &ObjectKey) -> Result<i64> {
    let mut rivals = 0;
    for listed in list_all(storage, prefix::LEASES).await? {
        if listed.key == ObjectKey::lease(own) {
            continue;
        }
        match storage.get(&listed.key).await {
            Ok(object) => {
                if LeaseDoc::from_object(&listed.key, &object).is_ok_and(|l| l.commit_key == key.as_str()) {
                    rivals += 1;
                }
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
    }
    // Somebody may have committed and gone between our first look and our lease.
    match storage.head(key).await {
        Ok(_) => Ok(rivals + 1),
        Err(e) if e.is_not_found() => Ok(rivals),
        Err(e) => Err(e.into()),
    }
}

/// Packs that were listed after the condemned lists were read, and are on none of them.
async fn read_allowed(repo: &Repository) -> Result<HashMap<PackId, u64>> {
    let storage = &**repo.storage();
    let mut condemned = std::collections::HashSet::new();
    for listed in list_all(storage, prefix::CONDEMNED).await? {
        match storage.get(&listed.key).await {
            Ok(object) => condemned.extend(CondemnedList::from_object(&listed.key, &object)?.packs),
            // Gone since it was listed: all its packs are gone, too.
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
    }
    let packs = list_all(storage, prefix::PACKS).await?;
    Ok(packs
        .into_iter()
        .filter_map(|listed| {
            let id = listed.key.last::<PackId>()?;
            // A copy that somebody keeps in another directory is no pack.
            let usable = listed.key == ObjectKey::pack(&id) && !condemned.contains(&id);
            usable.then_some((id, listed.size))
        })
        .collect())
}

async fn remove_lease(storage: &dyn Storage, lease: &LeaseId) {
    for key in [ObjectKey::lease(lease), ObjectKey::beat(lease)] {
        if let Err(e) = storage.delete(&key).await {
            tracing::warn!("the lease {lease} stays until gc removes it: {e}");
        }
    }
}

/// Raises the counter until it is told to stop. A beat that fails costs nothing but politeness.
async fn beat(storage: Arc<dyn Storage>, lease: LeaseId, mut stopped: oneshot::Receiver<()>) {
    let key = ObjectKey::beat(&lease);
    for counter in 1.. {
        if let Err(e) = storage.put(&key, BeatDoc { counter }.to_object(&key)).await {
            tracing::debug!("beat of {lease}: {e}");
        }
        if tokio::time::timeout(BEAT_EVERY, &mut stopped).await.is_ok() {
            return;
        }
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
