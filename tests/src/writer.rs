//! Writers that run while a backup is made, and the account of what they wrote and when.
//!
//! **Which time a write has.** Each reply carries an `operationTime`: the newest entry that the node had applied when it
//! answered. A write's own entry is at or before it, and other writers' entries may lie between the two. So
//! `operationTime <= T` proves that the write is part of the state at T, while `operationTime > T` proves nothing
//! ([`WriteLog::split`]). The exact time stands in the oplog alone, and [`WriteLog::timestamps_from_oplog`] reads it
//! there. The oplog also tells of writes whose acknowledgement never came.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use mongodb::{
    Client,
    bson::{Bson, Document, Timestamp, doc},
};
use tokio::task::JoinHandle;

use crate::{
    error::{Doing, Result, RigError},
    prng::Prng,
};

/// Errors in a row after which a writer gives up; with a pause of [`RETRY`] that outlasts an election.
const PATIENCE: usize = 600;
const RETRY: Duration = Duration::from_millis(50);

/// How writers write.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// How many there are at once, each with a connection of its own.
    pub writers: u32,
    /// Wait for a majority of the set; otherwise `w: 1`.
    pub majority: bool,
    /// How long each rests between two writes.
    pub pause: Duration,
    /// How many random bytes go into a document.
    pub payload: usize,
    /// Where to.
    pub database: String,
    /// Where to.
    pub collection: String,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            writers: 2,
            majority: false,
            pause: Duration::from_millis(1),
            payload: 200,
            database: "rig_writes".into(),
            collection: "log".into(),
        }
    }
}

/// One write: the `_id` of the document that it inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId {
    /// Who wrote it.
    pub writer: u32,
    /// Its number among that writer's, from 0 without gaps.
    pub seq: u64,
}

impl WriteId {
    fn to_bson(self) -> Document {
        doc! {"writer": i64::from(self.writer), "seq": self.seq as i64}
    }

    fn from_bson(id: &Document) -> Option<Self> {
        let writer = u32::try_from(id.get_i64("writer").ok()?).ok()?;
        Some(Self {
            writer,
            seq: u64::try_from(id.get_i64("seq").ok()?).ok()?,
        })
    }
}

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.writer, self.seq)
    }
}

#[derive(Debug, Default)]
struct Account {
    acknowledged: BTreeMap<WriteId, Timestamp>,
    doubtful: BTreeSet<WriteId>,
    failure: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    account: Mutex<Account>,
}

impl Shared {
    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writers at work. They stop when this is dropped.
#[derive(Debug)]
pub struct Writers {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    options: WriterOptions,
    since: Timestamp,
}

impl Writers {
    /// Starts them. `client` has to reach the primary of a set whoever that is, so not through a direct connection when
    /// elections are expected. The collection is made if it is not there; it must hold no writes of earlier writers.
    pub async fn start(client: &Client, options: WriterOptions) -> Result<Self> {
        let database = client.database(&options.database);
        match database
            .run_command(doc! {"create": &options.collection})
            .await
            .doing("creating the writers' collection")
        {
            // It is there already.
            Err(error) if error.code() == Some(48) => {}
            other => drop(other?),
        }
        let reply = client
            .database("admin")
            .run_command(doc! {"hello": 1})
            .await
            .doing("asking for the time")?;
        let since = reply
            .get_timestamp("operationTime")
            .map_err(|_| RigError::Check("writers need a replica set: there is no operationTime".into()))?;
        let shared = Arc::new(Shared::default());
        let tasks = (0..options.writers)
            .map(|writer| {
                tokio::spawn(write(
                    client.clone(),
                    options.clone(),
                    writer,
                    Arc::clone(&shared),
                ))
            })
            .collect();
        Ok(Self {
            shared,
            tasks,
            options,
            since,
        })
    }

    /// How many writes were acknowledged up to now.
    pub fn acknowledged(&self) -> usize {
        self.shared.account().acknowledged.len()
    }

    /// Waits until this many more writes were acknowledged.
    pub async fn wait_for_more(&self, count: usize) -> Result<()> {
        let (start, target) = (Instant::now(), self.acknowledged() + count);
        let limit = Duration::from_secs(60);
        while self.acknowledged() < target {
            if let Some(failure) = &self.shared.account().failure {
                return Err(RigError::Check(format!("a writer gave up: {failure}")));
            }
            if start.elapsed() > limit {
                let what = format!("{} of {target} writes were acknowledged", self.acknowledged());
                return Err(RigError::Timeout { what, after: limit });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Stops them and gives the account. A write that is under way may end; one that takes longer than `limit`, because
    /// the server is locked for instance, is given up and becomes doubtful.
    pub async fn stop(mut self, limit: Duration) -> Result<WriteLog> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let deadline = tokio::time::Instant::now() + limit;
        for task in &mut self.tasks {
            if tokio::time::timeout_at(deadline, &mut *task).await.is_err() {
                task.abort();
            }
        }
        let account = std::mem::take(&mut *self.shared.account());
        match account.failure {
            Some(failure) => Err(RigError::Check(format!("a writer gave up: {failure}"))),
            None => Ok(WriteLog {
                acknowledged: account.acknowledged,
                doubtful: account.doubtful,
                options: self.options.clone(),
                since: self.since,
            }),
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn write(client: Client, options: WriterOptions, writer: u32, shared: Arc<Shared>) {
    let database = client.database(&options.database);
    let concern = if options.majority {
        Bson::from("majority")
    } else {
        Bson::from(1)
    };
    let mut prng = Prng::for_part(0x5ca1_ab1e, u64::from(writer));
    let mut failures = 0;
    for seq in 0.. {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let id = WriteId { writer, seq };
        let payload = mongodb::bson::Binary {
            subtype: mongodb::bson::spec::BinarySubtype::Generic,
            bytes: prng.bytes(options.payload),
        };
        shared.account().doubtful.insert(id);
        let command = doc! {
            "insert": &options.collection,
            "documents": [{"_id": id.to_bson(), "payload": payload}],
            "writeConcern": {"w": concern.clone()},
        };
        match insert(&database, command).await {
            Ok(time) => {
                let mut account = shared.account();
                account.doubtful.remove(&id);
                account.acknowledged.insert(id, time);
                failures = 0;
            }
            // It may have been written all the same, so the number is not used again.
            Err(error) => {
                failures += 1;
                if failures == PATIENCE {
                    shared.account().failure = Some(error.to_string());
                    return;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
        tokio::time::sleep(options.pause).await;
    }
}

async fn insert(database: &mongodb::Database, command: Document) -> Result<Timestamp> {
    let reply = database.run_command(command).await.doing("inserting")?;
    // These come with ok: 1.
    if reply.contains_key("writeErrors") || reply.contains_key("writeConcernError") {
        return Err(RigError::Check(format!("an insert failed: {reply}")));
    }
    reply
        .get_timestamp("operationTime")
        .doing("reading a reply's operationTime")
}

/// What writers did.
#[derive(Clone, Debug)]
pub struct WriteLog {
    acknowledged: BTreeMap<WriteId, Timestamp>,
    doubtful: BTreeSet<WriteId>,
    options: WriterOptions,
    since: Timestamp,
}

/// Writes, parted by what replies alone prove of their time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Acknowledged with an operationTime at or before T: part of the state at T.
    pub in_by_then: BTreeSet<WriteId>,
    /// Acknowledged with a later one: before or after T, the reply does not tell.
    pub open: BTreeSet<WriteId>,
}

impl WriteLog {
    /// The acknowledged writes with the operationTime of each reply.
    pub fn acknowledged(&self) -> &BTreeMap<WriteId, Timestamp> {
        &self.acknowledged
    }

    /// The writes that failed or were given up: they may have happened or not.
    pub fn doubtful(&self) -> &BTreeSet<WriteId> {
        &self.doubtful
    }

    /// Parts the acknowledged writes at T, as far as replies allow.
    pub fn split(&self, time: Timestamp) -> Split {
        let (early, late): (Vec<_>, Vec<_>) = self
            .acknowledged
            .iter()
            .partition(|(_, operation_time)| **operation_time <= time);
        let ids = |list: Vec<(&WriteId, &Timestamp)>| list.into_iter().map(|(id, _)| *id).collect();
        Split {
            in_by_then: ids(early),
            open: ids(late),
        }
    }

    /// The exact time of every write, from the oplog of the member (or the primary of the set) behind `client`. Fails
    /// when that oplog no longer reaches back to the first write, or an acknowledged write is not in it or later in it
    /// than its reply said. With `w: 1` and an election in between such a loss is the server's right.
    pub async fn timestamps_from_oplog(&self, client: &Client) -> Result<ExactLog> {
        let oplog = client.database("local").collection::<Document>("oplog.rs");
        let oldest = oplog
            .find_one(doc! {})
            .sort(doc! {"$natural": 1})
            .await
            .doing("reading the oplog's begin")?;
        let oldest = oldest.and_then(|entry| entry.get_timestamp("ts").ok());
        if oldest.is_none_or(|oldest| oldest > self.since) {
            return Err(RigError::Check(format!(
                "the oplog begins after the writers did: {oldest:?}"
            )));
        }
        let namespace = format!("{}.{}", self.options.database, self.options.collection);
        let mut entries = oplog
            .find(doc! {"ts": {"$gte": self.since}, "op": "i", "ns": namespace})
            .projection(doc! {"ts": 1, "o._id": 1})
            .await
            .doing("reading the oplog")?;
        let mut times = BTreeMap::new();
        while let Some(entry) = entries.try_next().await.doing("reading the oplog")? {
            let id = entry
                .get_document("o")
                .and_then(|o| o.get_document("_id"))
                .ok()
                .and_then(WriteId::from_bson);
            let id =
                id.ok_or_else(|| RigError::Check(format!("not one of the writers' entries: {entry}")))?;
            times.insert(id, entry.get_timestamp("ts").doing("reading an oplog entry")?);
        }
        for (id, operation_time) in &self.acknowledged {
            match times.get(id) {
                Some(time) if time <= operation_time => {}
                other => {
                    return Err(RigError::Check(format!(
                        "write {id} was acknowledged at {operation_time}, and in the oplog it is at {other:?}"
                    )));
                }
            }
        }
        Ok(ExactLog { times })
    }
}

/// Every write that happened with the time of its oplog entry, which no two share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExactLog {
    times: BTreeMap<WriteId, Timestamp>,
}

impl ExactLog {
    /// The times.
    pub fn times(&self) -> &BTreeMap<WriteId, Timestamp> {
        &self.times
    }

    /// The writes that the state at T consists of.
    pub fn up_to(&self, time: Timestamp) -> BTreeSet<WriteId> {
        self.times
            .iter()
            .filter(|(_, at)| **at <= time)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Whether a state holds every write up to T, and none after.
    pub fn check_cut(&self, present: &BTreeSet<WriteId>, time: Timestamp) -> Result<()> {
        let wanted = self.up_to(time);
        let name = |id: &WriteId| match self.times.get(id) {
            Some(at) => format!("{id} at {at}"),
            None => format!("{id}, which never happened"),
        };
        let missing: Vec<_> = wanted.difference(present).map(name).collect();
        let extra: Vec<_> = present.difference(&wanted).map(name).collect();
        if missing.is_empty() && extra.is_empty() {
            return Ok(());
        }
        Err(RigError::Check(format!(
            "not the state at {time}: of {} writes up to then {} are missing ({}), {} are too many ({})",
            wanted.len(),
            missing.len(),
            few(&missing),
            extra.len(),
            few(&extra),
        )))
    }
}

fn few(list: &[String]) -> String {
    let mut text = list.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
    if list.len() > 5 {
        text.push_str("; …");
    }
    text
}

/// The writes that a server holds. `options` say where they are.
pub async fn present(client: &Client, options: &WriterOptions) -> Result<BTreeSet<WriteId>> {
    let collection = client
        .database(&options.database)
        .collection::<Document>(&options.collection);
    let mut documents = collection
        .find(doc! {})
        .projection(doc! {"_id": 1})
        .await
        .doing("reading what was written")?;
    let mut found = BTreeSet::new();
    while let Some(document) = documents.try_next().await.doing("reading what was written")? {
        let id = document.get_document("_id").ok().and_then(WriteId::from_bson);
        found.insert(
            id.ok_or_else(|| RigError::Check(format!("not one of the writers' documents: {document}")))?,
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mongodb::bson::Timestamp;

    use super::{ExactLog, WriteId};

    #[test]
    fn a_cut_is_exact() {
        let id = |seq| WriteId { writer: 0, seq };
        let at = |time| Timestamp { time, increment: 1 };
        let log = ExactLog {
            times: [(id(0), at(10)), (id(1), at(20)), (id(2), at(30))].into(),
        };
        let state = |seqs: &[u64]| seqs.iter().map(|seq| id(*seq)).collect::<BTreeSet<_>>();
        assert!(
            log.check_cut(&state(&[0, 1]), at(20)).is_ok(),
            "T itself is part of the state"
        );
        assert!(log.check_cut(&state(&[0, 1]), at(29)).is_ok());
        assert!(log.check_cut(&state(&[0]), at(20)).is_err());
        assert!(log.check_cut(&state(&[0, 1, 2]), at(20)).is_err());
        assert!(log.check_cut(&state(&[0, 1, 7]), at(20)).is_err());
    }
}
