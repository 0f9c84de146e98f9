//! The three server starts that make a member of a replica set out of restored files, by hand: what pbm-fs's own restore
//! is compared with. Each start takes half a second.
//!
//! 1. [`prepare`]: forget the old set, take in archived oplog entries, say up to where they are to be applied;
//! 2. [`open_recovered`]: apply them, and stand still for a look at the data;
//! 3. [`open_member`]: be a member of the new set.
//!
//! Step 2 alone shows what mongod makes of the files by itself. For a copy made under the lock of a primary that is not
//! all that it holds: see [`crate::snapshot::Locked::operation_time`].

use std::{fs, path::Path, sync::Arc};

use futures::TryStreamExt;
use mongodb::{
    Client, Database,
    bson::{Bson, Document, RawArrayBuf, RawDocumentBuf, Timestamp, doc, oid::ObjectId},
};

use crate::{
    error::{Doing, Result, RigError},
    mongod::{Mongod, MongodOptions},
    port::PortLease,
};

/// How many bytes of oplog entries go into one insert.
const BATCH_BYTES: usize = 8 << 20;

/// The set that restored files shall become.
#[derive(Clone, Debug)]
pub struct RestoredSet {
    /// Its name; any name will do.
    pub name: String,
    /// Its members' addresses. They are leased here, because step 1 writes them down and step 3 listens there.
    pub members: Vec<Arc<PortLease>>,
    /// `settings.replicaSetId`.
    pub id: ObjectId,
}

impl RestoredSet {
    /// A set of this many members.
    pub fn new(name: &str, members: usize) -> Result<Self> {
        let members = (0..members)
            .map(|_| Ok(Arc::new(PortLease::take()?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            name: name.into(),
            members,
            id: ObjectId::new(),
        })
    }

    fn config(&self) -> Document {
        let members: Vec<_> = self
            .members
            .iter()
            .zip(0_i32..)
            .map(|(lease, id)| Bson::from(doc! {"_id": id, "host": lease.host()}))
            .collect();
        doc! {
            "_id": &self.name, "version": 1, "term": 1_i64, "members": members, "protocolVersion": 1_i64,
            "writeConcernMajorityJournalDefault": true, "settings": {"replicaSetId": self.id},
        }
    }
}

/// Archived oplog entries, and how far to apply them.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Entries in order, from the newest one in the files or an earlier one: that is what proves that there is no hole
    /// between the two. Those that the files have are passed over.
    pub oplog: Vec<RawDocumentBuf>,
    /// The last entry to apply; this one still is.
    pub until: Timestamp,
}

/// The oplog entries from `from` to `to`, both included, of the member behind `client`.
pub async fn read_oplog(client: &Client, from: Timestamp, to: Timestamp) -> Result<Vec<RawDocumentBuf>> {
    let oplog = client.database("local").collection::<RawDocumentBuf>("oplog.rs");
    let cursor = oplog
        .find(doc! {"ts": {"$gte": from, "$lte": to}})
        .await
        .doing("reading the oplog")?;
    let entries: Vec<_> = cursor.try_collect().await.doing("reading the oplog")?;
    match entries.first().map(entry_time) {
        Some(Ok(first)) if first == from => Ok(entries),
        other => Err(RigError::Check(format!(
            "the oplog has no entry at {from}; the first after is {other:?}"
        ))),
    }
}

fn entry_time(entry: &RawDocumentBuf) -> Result<Timestamp> {
    entry
        .get_timestamp("ts")
        .map_err(|error| RigError::Check(format!("an oplog entry without a time: {error}")))
}

/// Step 1, on files that no server has open; none has when this returns. `options` say how the files are to be opened:
/// `directory_per_db`, the binary.
///
/// Refused here, because mongod would pass over it in silence: an `until` older than the checkpoint in the files, and
/// entries that do not join on to those in the files.
pub async fn prepare(
    dbpath: &Path,
    set: &RestoredSet,
    replay: Option<&Replay>,
    options: &MongodOptions,
) -> Result<()> {
    let mut mongod = Mongod::start(dbpath, quiet(options)).await?;
    let client = mongod.client().await?;
    let local = client.database("local");
    if let Some(replay) = replay {
        let checkpoint = checkpoint_time(&mongod.log_path())?;
        if checkpoint.is_some_and(|checkpoint| replay.until < checkpoint) {
            return Err(RigError::Check(format!(
                "the files cannot go back to {}: their checkpoint is of {checkpoint:?}",
                replay.until
            )));
        }
        append_oplog(&local, &replay.oplog).await?;
    }
    for name in [
        "system.replset",
        "replset.minvalid",
        "replset.election",
        "replset.oplogTruncateAfterPoint",
        "replset.initialSyncId",
    ] {
        command(&local, doc! {"delete": name, "deletes": [{"q": {}, "limit": 0}]}).await?;
    }
    command(
        &local,
        doc! {"insert": "system.replset", "documents": [set.config()]},
    )
    .await?;
    // Exactly one: mongod aborts when it finds a second (fassert 40466).
    let minvalid = doc! {"_id": ObjectId::new(), "t": -1_i64, "ts": Timestamp { time: 0, increment: 1 }};
    command(
        &local,
        doc! {"insert": "replset.minvalid", "documents": [minvalid]},
    )
    .await?;
    if let Some(replay) = replay {
        let point = doc! {"_id": "oplogTruncateAfterPoint", "oplogTruncateAfterPoint": replay.until};
        command(
            &local,
            doc! {"insert": "replset.oplogTruncateAfterPoint", "documents": [point]},
        )
        .await?;
    }
    mongod.stop().await
}

/// Step 2: a standalone server that has applied its oplog. It is read-only (a write fails with code 20); what it has
/// applied gets into the files when it is stopped with [`Mongod::stop`], and is lost when it is killed.
pub async fn open_recovered(dbpath: &Path, options: &MongodOptions) -> Result<Mongod> {
    let options = quiet(options)
        .parameter("recoverFromOplogAsStandalone", true)
        .parameter("takeUnstableCheckpointOnShutdown", true);
    Mongod::start(dbpath, options).await
}

/// Step 3: the member of this number. It becomes primary or secondary by itself when a majority of the set runs:
/// [`crate::ReplSet::adopt`] waits for that.
pub async fn open_member(
    dbpath: &Path,
    set: &RestoredSet,
    index: usize,
    options: &MongodOptions,
) -> Result<Mongod> {
    let Some(lease) = set.members.get(index) else {
        return Err(RigError::Check(format!("{} has no member {index}", set.name)));
    };
    let options = MongodOptions {
        replset: Some(set.name.clone()),
        port: Some(Arc::clone(lease)),
        ..options.clone()
    };
    Mongod::start(dbpath, options).await
}

/// A standalone server that does nothing by itself.
fn quiet(options: &MongodOptions) -> MongodOptions {
    MongodOptions {
        replset: None,
        port: None,
        ..options.clone()
    }
    .parameter("disableLogicalSessionCacheRefresh", true)
    .parameter("ttlMonitorEnabled", false)
}

/// The time of the checkpoint that the last start began with, which is in the log only.
fn checkpoint_time(log: &Path) -> Result<Option<Timestamp>> {
    let bytes = fs::read(log).doing(format_args!("reading {}", log.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let Some(line) = text.lines().rev().find(|line| line.contains(r#""id":23987,"#)) else {
        return Ok(None);
    };
    let unreadable = || RigError::Check(format!("not understood, in {}: {line}", log.display()));
    let line: serde_json::Value = serde_json::from_str(line).map_err(|_| unreadable())?;
    let stamp = &line["attr"]["recoveryTimestamp"]["$timestamp"];
    let part = |name: &str| stamp[name].as_u64().and_then(|value| u32::try_from(value).ok());
    match (part("t"), part("i")) {
        (Some(time), Some(increment)) => Ok(Some(Timestamp { time, increment })),
        _ => Err(unreadable()),
    }
}

async fn append_oplog(local: &Database, entries: &[RawDocumentBuf]) -> Result<()> {
    let newest = local
        .collection::<Document>("oplog.rs")
        .find_one(doc! {})
        .sort(doc! {"$natural": -1})
        .await
        .doing("reading the newest oplog entry")?
        .ok_or_else(|| RigError::Check("the files have an empty oplog".into()))?;
    let top = newest
        .get_timestamp("ts")
        .doing("reading the newest oplog entry")?;
    let (mut joined, mut last) = (false, top);
    let (mut batch, mut size) = (RawArrayBuf::new(), 0);
    for entry in entries {
        let time = entry_time(entry)?;
        joined |= time == top;
        if time <= top {
            continue;
        }
        if !joined || time <= last {
            return Err(RigError::Check(format!(
                "the archived oplog does not join on: the files end at {top}, the entry at {time} comes after {last}"
            )));
        }
        last = time;
        size += entry.as_bytes().len();
        batch.push(entry.clone());
        if size >= BATCH_BYTES {
            insert_raw(local, std::mem::take(&mut batch)).await?;
            size = 0;
        }
    }
    if size > 0 {
        insert_raw(local, batch).await
    } else {
        Ok(())
    }
}

/// As raw BSON and past the driver's insert, which would add an `_id`.
async fn insert_raw(local: &Database, documents: RawArrayBuf) -> Result<()> {
    let mut insert = RawDocumentBuf::new();
    insert.append("insert", "oplog.rs");
    insert.append("documents", documents);
    let reply = local
        .run_raw_command(insert)
        .await
        .doing("inserting oplog entries")?;
    check_written(&reply)
}

async fn command(local: &Database, command: Document) -> Result<()> {
    let what = command
        .iter()
        .next()
        .map(|(verb, name)| format!("{verb} in local.{name}"))
        .unwrap_or_default();
    let reply = local.run_command(command).await.doing(what)?;
    check_written(&reply)
}

fn check_written(reply: &Document) -> Result<()> {
    match reply.get("writeErrors") {
        None => Ok(()),
        Some(errors) => Err(RigError::Check(format!("a write failed: {errors}"))),
    }
}
