//! The backup-cursor server, by way of the official driver.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use mongodb::{
    Client, ClientSession,
    bson::{Document, Timestamp, Uuid, doc},
};
use pbmfs_tests::{
    CursorServer, CursorServerOptions, DataSpec, MongodOptions, ReplSet, ReplSetOptions, WriterOptions,
    Writers,
    binary::MongodBinary,
    compare, data,
    mongod::client,
    restore_steps::{self, Replay, RestoredSet},
    writer,
};
use tempfile::{TempDir, tempdir};

/// A backup cursor as a client of the stage uses it: in one session, by plain commands.
struct Cursor {
    client: Client,
    session: ClientSession,
    id: i64,
    metadata: Document,
    files: Vec<Document>,
}

type Outcome<T> = Result<T, mongodb::error::Error>;

impl Cursor {
    async fn open(uri: &str, options: Document) -> Outcome<Self> {
        let client = client(uri).await.unwrap();
        let mut session = client.start_session().await?;
        let command =
            doc! {"aggregate": 1, "pipeline": [{"$backupCursor": options}], "cursor": {"batchSize": 5}};
        let reply = client
            .database("admin")
            .run_command(command)
            .session(&mut session)
            .await?;
        let cursor = reply.get_document("cursor").unwrap();
        let mut files: Vec<_> = documents(cursor, "firstBatch");
        let mut cursor = Self {
            metadata: files.remove(0).get_document("metadata").unwrap().clone(),
            id: cursor.get_i64("id").unwrap(),
            client,
            session,
            files: Vec::new(),
        };
        while !files.is_empty() {
            cursor.files.append(&mut files);
            files = cursor.get_more().await?;
        }
        Ok(cursor)
    }

    async fn get_more(&mut self) -> Outcome<Vec<Document>> {
        let command = doc! {"getMore": self.id, "collection": "$cmd.aggregate", "batchSize": 20};
        let admin = self.client.database("admin");
        let reply = admin.run_command(command).session(&mut self.session).await?;
        let cursor = reply.get_document("cursor").unwrap();
        assert_eq!(
            cursor.get_i64("id").unwrap(),
            self.id,
            "an open backup cursor does not end"
        );
        Ok(documents(cursor, "nextBatch"))
    }

    /// The paths of journal files.
    async fn extend(&mut self, timestamp: Timestamp, limit: Duration) -> Outcome<Vec<PathBuf>> {
        let stage = doc! {"backupId": self.backup_id(), "timestamp": timestamp};
        let command = doc! {
            "aggregate": 1, "pipeline": [{"$backupCursorExtend": stage}], "cursor": {},
            "maxTimeMS": i64::try_from(limit.as_millis()).unwrap(),
        };
        let reply = self
            .client
            .database("admin")
            .run_command(command)
            .session(&mut self.session)
            .await?;
        let cursor = reply.get_document("cursor").unwrap();
        assert_eq!(cursor.get_i64("id").unwrap(), 0, "the cursor of an extend ends");
        let name = |file: &Document| file.get_str("filename").unwrap().into();
        Ok(documents(cursor, "firstBatch").iter().map(name).collect())
    }

    async fn kill(self) {
        let command = doc! {"killCursors": "$cmd.aggregate", "cursors": [self.id]};
        let reply = self.client.database("admin").run_command(command).await.unwrap();
        assert_eq!(reply.get_array("cursorsKilled").unwrap().len(), 1);
    }

    fn backup_id(&self) -> Uuid {
        let mongodb::bson::Bson::Binary(id) = self.metadata.get("backupId").unwrap() else {
            panic!("no id in {}", self.metadata);
        };
        id.to_uuid().unwrap()
    }

    fn dbpath(&self) -> PathBuf {
        self.metadata.get_str("dbpath").unwrap().into()
    }

    /// Copies what the cursor names, and only that, as a client that knows the files of the source does.
    fn copy_to(&self, target: &Path, journal: &[PathBuf]) {
        let dbpath = self.dbpath();
        fs::create_dir_all(target.join("journal")).unwrap();
        let mut named = BTreeMap::new();
        for file in &self.files {
            let path = PathBuf::from(file.get_str("filename").unwrap());
            let name = path.strip_prefix(&dbpath).unwrap().to_owned();
            let size = file.get_i64("fileSize").unwrap().unsigned_abs();
            let (offset, length) = match (file.get_i64("offset"), file.get_i64("length")) {
                (Ok(offset), Ok(length)) => (offset.unsigned_abs(), length.unsigned_abs()),
                // Unchanged in an increment, whole elsewhere.
                _ if self.metadata.contains_key("srcBackupName") => (0, 0),
                _ => (0, size),
            };
            let target = target.join(&name);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            let output = fs::File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&target)
                .unwrap();
            output.set_len(size).unwrap();
            if offset < size {
                let mut bytes = vec![0; length.min(size - offset) as usize];
                fs::File::open(&path)
                    .unwrap()
                    .read_exact_at(&mut bytes, offset)
                    .unwrap();
                output.write_all_at(&bytes, offset).unwrap();
            }
            named.insert(name, ());
        }
        for path in journal.iter().cloned().chain([dbpath.join("storage.bson")]) {
            fs::copy(&path, target.join(path.strip_prefix(&dbpath).unwrap())).unwrap();
        }
        for entry in fs::read_dir(target).unwrap() {
            let name = PathBuf::from(entry.unwrap().file_name());
            if name.extension().is_some_and(|extension| extension == "wt") && !named.contains_key(&name) {
                fs::remove_file(target.join(name)).unwrap();
            }
        }
    }
}

fn documents(cursor: &Document, batch: &str) -> Vec<Document> {
    let batch = cursor.get_array(batch).unwrap();
    batch
        .iter()
        .map(|document| document.as_document().unwrap().clone())
        .collect()
}

fn base(name: &str) -> Document {
    doc! {"incrementalBackup": true, "thisBackupName": name, "blockSize": 1}
}

fn increment(source: &str, name: &str) -> Document {
    doc! {"incrementalBackup": true, "thisBackupName": name, "srcBackupName": source}
}

async fn majority_time(client: &Client) -> Timestamp {
    let hello = client
        .database("admin")
        .run_command(doc! {"hello": 1})
        .await
        .unwrap();
    let write = hello
        .get_document("lastWrite")
        .unwrap()
        .get_document("majorityOpTime")
        .unwrap();
    write.get_timestamp("ts").unwrap()
}

async fn set_of(place: &TempDir, options: MongodOptions) -> ReplSet {
    ReplSet::start(place.path(), ReplSetOptions::single("rs0").mongod(options))
        .await
        .unwrap()
}

/// A base and two increments of a member that is written to, each copied by its documents alone, each brought to the time
/// that it was extended to.
async fn chain(version: &str) {
    let place = tempdir().unwrap();
    let mongod = MongodOptions {
        binary: Some(MongodBinary::of_version(version).unwrap()),
        ..MongodOptions::default()
    };
    let set = set_of(&place, mongod.clone()).await;
    let server = CursorServer::start(&set.members()[0], CursorServerOptions::default()).unwrap();
    let live = set.client().await.unwrap();
    data::load(&live, &DataSpec::megabytes(8)).await.unwrap();
    let writing = WriterOptions::default();
    let writers = Writers::start(&live, writing.clone()).await.unwrap();

    let copy = place.path().join("copy");
    let mut source = None::<String>;
    let mut times = Vec::new();
    for round in 0..3 {
        let name = format!("b{round}");
        let options = source
            .as_ref()
            .map_or_else(|| base(&name), |source| increment(source, &name));
        writers.wait_for_more(50).await.unwrap();
        if round > 0 {
            data::update_orders(&live, &DataSpec::megabytes(8), 200, round)
                .await
                .unwrap();
        }
        let mut cursor = Cursor::open(&server.uri(), options).await.unwrap();
        writers.wait_for_more(50).await.unwrap();
        let time = majority_time(&live).await;
        let journal = cursor.extend(time, Duration::from_secs(20)).await.unwrap();
        assert!(
            !journal.is_empty(),
            "the extend's own writes are in a journal file"
        );
        writers.wait_for_more(50).await.unwrap();
        cursor.copy_to(&copy, &journal);
        assert!(server.scribbled() > 0);
        let pinned = cursor.dbpath();
        cursor.kill().await;
        assert!(!pinned.exists() && !server.is_open());

        let restored = place.path().join(format!("restored-{round}"));
        copy_tree(&copy, &restored);
        times.push((restored, time));
        source = Some(name);
    }
    let log = writers.stop(Duration::from_secs(5)).await.unwrap();
    let exact = log.timestamps_from_oplog(&live).await.unwrap();
    for (restored, time) in times {
        let replay = Replay {
            oplog: Vec::new(),
            until: time,
        };
        let set = RestoredSet::new("restored", 1).unwrap();
        restore_steps::prepare(&restored, &set, Some(&replay), &mongod)
            .await
            .unwrap();
        let server = restore_steps::open_recovered(&restored, &mongod).await.unwrap();
        let client = server.client().await.unwrap();
        exact
            .check_cut(&writer::present(&client, &writing).await.unwrap(), time)
            .unwrap();
        compare::validate_all(&client).await.unwrap();
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_chain_of_4_4_is_restored_to_the_times_of_its_extends() {
    chain("4.4").await;
}

#[tokio::test]
async fn a_chain_of_5_0_is_restored_to_the_times_of_its_extends() {
    chain("5.0").await;
}

#[tokio::test]
async fn a_chain_of_6_0_is_restored_to_the_times_of_its_extends() {
    chain("6.0").await;
}

/// Clients and members know the members by the addresses of the cursor servers alone.
#[tokio::test]
async fn a_set_lives_behind_its_cursor_servers() {
    let place = tempdir().unwrap();
    let options = ReplSetOptions::three("rs0").with_cursor_servers(CursorServerOptions::default());
    let mut set = ReplSet::start(place.path(), options).await.unwrap();
    let client = set.client().await.unwrap();
    data::load(&client, &DataSpec::megabytes(2)).await.unwrap();
    set.wait_replicated().await.unwrap();
    let hosts = set.hosts();
    for (index, server) in set.cursor_servers().iter().enumerate() {
        let direct = self::client(&server.uri()).await.unwrap();
        let hello = direct
            .database("admin")
            .run_command(doc! {"hello": 1})
            .await
            .unwrap();
        assert_eq!(hello.get_str("me").unwrap(), hosts[index]);
        let known: Vec<_> = hello
            .get_array("hosts")
            .unwrap()
            .iter()
            .map(|host| host.as_str().unwrap())
            .collect();
        assert_eq!(known, hosts);
        assert!(!hello.contains_key("compression"));
    }
    // A secondary's cursor, while the primary is written to.
    let mut cursor = Cursor::open(&set.cursor_servers()[1].uri(), doc! {})
        .await
        .unwrap();
    client
        .database("rig")
        .collection("things")
        .insert_one(doc! {"a": 1})
        .await
        .unwrap();
    let time = majority_time(&client).await;
    let journal = cursor.extend(time, Duration::from_secs(20)).await.unwrap();
    assert!(!journal.is_empty());
    cursor.kill().await;
    // The others elect a primary through each other's cursor servers.
    set.member_mut(0).stop().await.unwrap();
    assert_ne!(set.primary_index().await.unwrap(), 0);
    client
        .database("rig")
        .collection("things")
        .insert_one(doc! {"a": 2})
        .await
        .unwrap();
    set.member_mut(0).restart().await.unwrap();
    set.wait_ready().await.unwrap();
}
