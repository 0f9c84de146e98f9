//! A client of the stages.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use mongodb::{
    Client, ClientSession,
    bson::{Bson, Document, Timestamp, Uuid, doc},
    error::ErrorKind,
};
use pbmfs_tests::{
    CursorServer, CursorServerOptions, DataSpec, MongodOptions, ReplSet, ReplSetOptions, data, mongod,
};
use tempfile::{TempDir, tempdir};

pub type Outcome<T> = Result<T, mongodb::error::Error>;

/// A backup cursor as a client uses it: in one session, by plain commands.
pub struct Cursor {
    pub client: Client,
    session: ClientSession,
    pub id: i64,
    pub metadata: Document,
    pub files: Vec<Document>,
}

/// The code of a server's refusal.
pub fn code<T>(result: Outcome<T>) -> Option<i32> {
    match *result.err()?.kind {
        ErrorKind::Command(error) => Some(error.code),
        kind => panic!("not a server's answer: {kind}"),
    }
}

/// Whether the connection broke without an answer.
pub fn broke<T>(result: &Outcome<T>) -> bool {
    let Err(error) = result else { return false };
    matches!(
        *error.kind,
        ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } | ErrorKind::ServerSelection { .. }
    )
}

impl Cursor {
    pub async fn open(uri: &str, options: Document) -> Outcome<Self> {
        let client = mongod::client(uri).await.unwrap();
        let mut session = client.start_session().await?;
        let command =
            doc! {"aggregate": 1, "pipeline": [{"$backupCursor": options}], "cursor": {"batchSize": 5}};
        let admin = client.database("admin");
        let reply = admin.run_command(command).session(&mut session).await?;
        let cursor = reply.get_document("cursor").unwrap();
        let mut files = documents(cursor, "firstBatch");
        assert!(files.len() <= 5, "batchSize is obeyed");
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

    pub async fn get_more(&mut self) -> Outcome<Vec<Document>> {
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
    pub async fn extend(&mut self, timestamp: Timestamp, limit: Duration) -> Outcome<Vec<PathBuf>> {
        let stage = doc! {"backupId": self.backup_id(), "timestamp": timestamp};
        self.extend_with(stage, limit).await
    }

    pub async fn extend_with(&mut self, stage: Document, limit: Duration) -> Outcome<Vec<PathBuf>> {
        let command = doc! {
            "aggregate": 1, "pipeline": [{"$backupCursorExtend": stage}], "cursor": {},
            "maxTimeMS": i64::try_from(limit.as_millis()).unwrap(),
        };
        let admin = self.client.database("admin");
        let reply = admin.run_command(command).session(&mut self.session).await?;
        let cursor = reply.get_document("cursor").unwrap();
        assert_eq!(cursor.get_i64("id").unwrap(), 0, "the cursor of an extend ends");
        let name = |file: &Document| file.get_str("filename").unwrap().into();
        Ok(documents(cursor, "firstBatch").iter().map(name).collect())
    }

    pub async fn kill(self) {
        let command = doc! {"killCursors": "$cmd.aggregate", "cursors": [self.id]};
        let reply = self.client.database("admin").run_command(command).await.unwrap();
        assert_eq!(reply.get_array("cursorsKilled").unwrap().len(), 1);
    }

    pub fn backup_id(&self) -> Uuid {
        let Some(Bson::Binary(id)) = self.metadata.get("backupId") else {
            panic!("no id in {}", self.metadata);
        };
        id.to_uuid().unwrap()
    }

    pub fn dbpath(&self) -> PathBuf {
        self.metadata.get_str("dbpath").unwrap().into()
    }

    /// The names under the dbPath, as often as they come.
    pub fn names(&self) -> Vec<String> {
        let dbpath = self.dbpath();
        let name = |file: &Document| {
            let path = Path::new(file.get_str("filename").unwrap());
            path.strip_prefix(&dbpath).unwrap().to_str().unwrap().to_owned()
        };
        self.files.iter().map(name).collect()
    }

    /// Brings a copy of the source to what the cursor names, reading that and nothing else.
    pub fn copy_to(&self, target: &Path, journal: &[PathBuf]) {
        let (dbpath, names) = (self.dbpath(), self.names());
        fs::create_dir_all(target.join("journal")).unwrap();
        for (name, file) in names.iter().zip(&self.files) {
            let size = file.get_i64("fileSize").unwrap().unsigned_abs();
            let (offset, length) = match (file.get_i64("offset"), file.get_i64("length")) {
                (Ok(offset), Ok(length)) => (offset.unsigned_abs(), length.unsigned_abs()),
                // Unchanged in an increment, whole elsewhere.
                _ if self.metadata.contains_key("srcBackupName") => (0, 0),
                _ => (0, size),
            };
            fs::create_dir_all(target.join(name).parent().unwrap()).unwrap();
            let to = fs::File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(target.join(name))
                .unwrap();
            to.set_len(size).unwrap();
            if offset < size {
                let mut bytes = vec![0; length.min(size - offset) as usize];
                fs::File::open(dbpath.join(name))
                    .unwrap()
                    .read_exact_at(&mut bytes, offset)
                    .unwrap();
                to.write_all_at(&bytes, offset).unwrap();
            }
        }
        for path in journal.iter().cloned().chain([dbpath.join("storage.bson")]) {
            fs::copy(&path, target.join(path.strip_prefix(&dbpath).unwrap())).unwrap();
        }
        remove_unnamed(target, "", &names);
    }
}

/// What is named no more was dropped.
fn remove_unnamed(root: &Path, directory: &str, names: &[String]) {
    for entry in fs::read_dir(root.join(directory)).unwrap().map(Result::unwrap) {
        let name = format!("{directory}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            remove_unnamed(root, &format!("{name}/"), names);
        } else if name.ends_with(".wt") && !names.contains(&name) {
            fs::remove_file(root.join(name)).unwrap();
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

pub fn base(name: &str) -> Document {
    doc! {"incrementalBackup": true, "thisBackupName": name, "blockSize": 1}
}

pub fn increment(source: &str, name: &str) -> Document {
    doc! {"incrementalBackup": true, "thisBackupName": name, "srcBackupName": source}
}

pub async fn majority_time(client: &Client) -> Timestamp {
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

/// A set of one member behind a cursor server, with a little data.
pub struct Live {
    pub set: ReplSet,
    pub client: Client,
    pub place: TempDir,
}

impl Live {
    pub const DATA: u64 = 3;

    pub async fn start(mongod: MongodOptions, options: CursorServerOptions) -> Self {
        let place = tempdir().unwrap();
        let set = ReplSetOptions::single("rs0")
            .mongod(mongod)
            .with_cursor_servers(options);
        let set = ReplSet::start(place.path(), set).await.unwrap();
        let client = set.client().await.unwrap();
        data::load(&client, &DataSpec::megabytes(Self::DATA))
            .await
            .unwrap();
        Self { set, client, place }
    }

    /// With a pin that stays as it is.
    pub async fn quiet() -> Self {
        Self::quiet_with(MongodOptions::default()).await
    }

    pub async fn quiet_with(mongod: MongodOptions) -> Self {
        let options = CursorServerOptions {
            scribble: None,
            ..CursorServerOptions::default()
        };
        Self::start(mongod, options).await
    }

    pub fn server(&self) -> &CursorServer {
        &self.set.cursor_servers()[0]
    }

    pub async fn open(&self, options: Document) -> Outcome<Cursor> {
        Cursor::open(&self.server().uri(), options).await
    }

    pub async fn update(&self, round: u64) {
        let spec = DataSpec::megabytes(Self::DATA);
        data::update_orders(&self.client, &spec, 100, round)
            .await
            .unwrap();
    }

    /// Opens and closes.
    pub async fn touch(&self, options: Document) -> Outcome<()> {
        self.open(options).await?.kill().await;
        Ok(())
    }
}
