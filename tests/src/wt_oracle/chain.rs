//! A chain of backups of a live database, each judged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pbmfs_repo::{
    ReplsetReader, Repository, Session, SnapshotReader,
    index::MemoryIndex,
    ingest::{Cancel, IngestOptions, Ingested, Job, NoProgress, ingest},
    objects::{ClusterRef, Parameters, ReplsetDoc, SnapshotDoc},
    storage::LocalStorage,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    driver::Driver,
    input::{Asked, Files, Named},
    judge::{Contents, Judged},
};
use crate::{
    error::{Doing, Result, RigError},
    prng::Prng,
};

/// How WiredTiger says that it does not know an id.
const NO_HISTORY: &str = "No such file or directory";

/// The logged table, which is rolled forward by a start.
pub(super) const OPLOG: &str = "oplog";

/// What a backup was built on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The first one.
    Base,
    /// Ranges since the last one.
    Increment,
    /// Ranges since the one before the last: the last one's id was lost in a crash.
    Older,
    /// No id was known any more: everything was read.
    Broken,
}

#[derive(Debug, Deserialize)]
struct Begun {
    files: BTreeMap<String, ListedFile>,
}

#[derive(Debug, Deserialize)]
struct ListedFile {
    ranges: Option<Vec<(u64, u64)>>,
}

#[derive(Debug, Deserialize)]
struct Logs {
    files: Vec<String>,
    /// Entries of the logged table that are in it for certain, and that were there in all.
    oplog: (u64, u64),
}

struct Taken {
    id: String,
    doc: SnapshotDoc,
}

/// What is pinned, and what is known of it.
pub(super) struct Pinned {
    id: String,
    how: How,
    parent: Option<SnapshotDoc>,
    files: BTreeMap<String, ListedFile>,
}

/// A live database, a repository, and the snapshots so far.
pub struct Chain {
    pub(super) place: PathBuf,
    pub(super) python: PathBuf,
    pub(super) driver: Arc<Mutex<Driver>>,
    /// As it was asked for, or `none` where WiredTiger was built without it.
    pub compressor: String,
    pub(super) repo: Repository,
    pub(super) prng: Prng,
    /// Size of a row of each table.
    pub(super) tables: BTreeMap<String, u64>,
    taken: Vec<Taken>,
    pub(super) ids: u32,
    /// Whether the process is killed after the next backup.
    pub(super) crash_next: bool,
}

impl Chain {
    /// Makes a database in `place`, its tables `scale` times as large as usual (50 MB on disk), and starts the writers.
    pub async fn start(python: &Path, place: &Path, seed: u64, compressor: &str, scale: f64) -> Result<Self> {
        let storage = LocalStorage::new(place.join("repo"));
        let parameters = Parameters {
            pack_size: 4 << 20,
            compression_level: 1,
        };
        let repo = Repository::init(Arc::new(storage), parameters)
            .await
            .map_err(failed)?;
        let mut chain = Self {
            place: place.to_owned(),
            python: python.to_owned(),
            driver: Arc::new(Mutex::new(Driver::start(python, &place.join("driver.log"))?)),
            compressor: compressor.into(),
            repo,
            prng: Prng::new(seed),
            tables: BTreeMap::new(),
            taken: Vec::new(),
            ids: 0,
            crash_next: false,
        };
        chain.open(seed)?;
        chain.create(OPLOG, 0, 300)?;
        let rows = |rows: u64| (rows as f64 * scale) as u64;
        chain.create("big", rows(20_000), 2500)?;
        chain.create("mid", rows(6000), 700)?;
        chain.create("wide", rows(150), 20_000)?;
        for number in 0..5 {
            chain.create(&format!("small{number}"), number * 30, 100 + number * 100)?;
        }
        chain.tell("checkpoint", json!({}))?;
        chain.tell("start", json!({"writers": 2}))?;
        Ok(chain)
    }

    fn home(&self) -> PathBuf {
        self.place.join("home")
    }

    pub(super) fn tell(&self, what: &str, with: Value) -> Result<()> {
        lock(&self.driver).tell(what, with)
    }

    pub(super) fn open(&mut self, seed: u64) -> Result<()> {
        let with = json!({"home": self.home(), "seed": seed, "compressor": self.compressor});
        self.compressor = lock(&self.driver).get("open", with)?;
        Ok(())
    }

    pub(super) fn create(&mut self, name: &str, rows: u64, size: u64) -> Result<()> {
        self.tables.insert(name.into(), size);
        self.tell("create", json!({"name": name, "rows": rows, "size": size}))
    }

    pub(super) fn get(&self, what: &str, with: Value) -> Result<Value> {
        lock(&self.driver).get(what, with)
    }

    /// Opens a backup cursor on the newest id that WiredTiger knows.
    pub(super) fn pin(&mut self) -> Result<Pinned> {
        let mut driver = lock(&self.driver);
        for (back, taken) in self.taken.iter().rev().take(2).enumerate() {
            self.ids += 1;
            let id = format!("id{}", self.ids);
            let with = json!({"this": id, "src": taken.id, "granularity": "1M"});
            match driver.ask::<Begun>("begin", with)? {
                Ok(begun) => {
                    return Ok(Pinned {
                        id,
                        how: if back == 0 { How::Increment } else { How::Older },
                        parent: Some(taken.doc.clone()),
                        files: begun.files,
                    });
                }
                Err(how) if how == NO_HISTORY => {}
                Err(how) => return Err(RigError::Check(format!("WiredTiger refused an increment: {how}"))),
            }
        }
        // Also because the attempts may have begun a history of their own.
        driver.tell("force_stop", json!({}))?;
        self.ids += 1;
        let id = format!("id{}", self.ids);
        let begun: Begun = driver.get("begin", json!({"this": id, "granularity": "1M"}))?;
        let parent = self.taken.last().map(|taken| taken.doc.clone());
        Ok(Pinned {
            id,
            how: if parent.is_some() { How::Broken } else { How::Base },
            parent,
            files: begun.files,
        })
    }

    /// Takes a backup while the writers go on, restores it and has it judged. `alter` may change what is named.
    ///
    /// # Errors
    /// What a judge found wrong, and everything that failed.
    pub async fn take(&mut self, alter: impl FnOnce(&mut BTreeMap<String, Named>)) -> Result<Judged> {
        let Pinned {
            id,
            how,
            parent,
            files,
        } = self.pin()?;
        let (copy, logs) = (self.place.join("copy"), self.place.join("logs"));
        for place in [&copy, &logs] {
            fs::create_dir(place).doing(format_args!("making {}", place.display()))?;
        }
        let log: Logs = lock(&self.driver).get("logs", json!({"to": logs}))?;
        let mut named: BTreeMap<String, Named> = BTreeMap::new();
        for (name, file) in files {
            let ranges = file
                .ranges
                .map(|ranges| ranges.iter().map(|(at, length)| *at..at + length).collect());
            let path = self.home().join(&name);
            named.insert(name, Named { path, ranges });
        }
        let tables: Vec<String> = named.keys().cloned().collect();
        for name in &log.files {
            let path = logs.join(name);
            named.insert(name.clone(), Named { path, ranges: None });
        }
        alter(&mut named);
        let names: BTreeSet<String> = named.keys().cloned().collect();

        let parent = match parent {
            Some(doc) => {
                let reader = SnapshotReader::open(&self.repo, doc).await.map_err(failed)?;
                Some(reader.replsets()[0].clone())
            }
            None => None,
        };
        let session = Session::begin(&self.repo, "backup", jiff::Timestamp::now())
            .await
            .map_err(failed)?;
        let files = Arc::new(Files::new(named)?);
        // The copy is made and the checkpoint read while the pipeline reads the same files.
        let recorded = {
            let (driver, tables, copy) = (self.driver.clone(), tables.clone(), copy.clone());
            tokio::task::spawn_blocking(move || {
                let mut driver = lock(&driver);
                driver.tell("copy", json!({"names": tables, "to": copy}))?;
                driver.get::<BTreeMap<String, Contents>>("contents", json!({}))
            })
        };
        let asked = Asked::of(&files, parent.as_deref()).await?;
        let stored = self.store(&session, parent, files.clone()).await;
        let recorded = recorded
            .await
            .map_err(|error| RigError::Check(error.to_string()))??;
        for name in &log.files {
            fs::copy(logs.join(name), copy.join(name)).doing(format_args!("copying {name}"))?;
        }
        self.tell("end", json!({}))?;
        if std::mem::take(&mut self.crash_next) {
            self.crash()?;
        }
        let stored = stored?;
        asked.check(&files)?;
        let doc = document(&session, &stored);
        session.commit(&doc).await.map_err(failed)?;
        self.taken.push(Taken { id, doc: doc.clone() });

        let (compared, rows) = self.judge(doc, &copy, &names, &recorded, log.oplog).await?;
        for place in [&copy, &logs] {
            fs::remove_dir_all(place).doing(format_args!("removing {}", place.display()))?;
        }
        Ok(Judged {
            how,
            stats: stored.stats,
            asked: asked.bytes,
            phantoms: asked.phantoms,
            compared,
            rows,
        })
    }

    async fn store(
        &self,
        session: &Session,
        parent: Option<Arc<ReplsetReader>>,
        files: Arc<Files>,
    ) -> Result<Ingested> {
        let metas = files.metas();
        let job = Job {
            input: files,
            files: metas,
            parent,
            known: Arc::new(MemoryIndex::load(session).await.map_err(failed)?),
            options: IngestOptions::for_repository(self.repo.config(), 96 << 20),
            progress: Arc::new(NoProgress),
            cancel: Cancel::default(),
        };
        ingest(session, job).await.map_err(failed)
    }
}

pub(super) fn lock(driver: &Mutex<Driver>) -> MutexGuard<'_, Driver> {
    driver.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn failed(error: pbmfs_repo::RepoError) -> RigError {
    RigError::Check(error.to_string())
}

fn document(session: &Session, stored: &Ingested) -> SnapshotDoc {
    SnapshotDoc {
        name: session.name().clone(),
        lease: session.lease(),
        cluster: ClusterRef {
            name: "wiredtiger".into(),
            id: None,
        },
        backup_type: "incremental".into(),
        tool: "wt_oracle".into(),
        started: jiff::Timestamp::now(),
        finished: jiff::Timestamp::now(),
        stats: stored.stats,
        replsets: vec![ReplsetDoc {
            name: "wiredtiger".into(),
            file_list: stored.file_list,
            pack_table: stored.pack_table,
            chain_head: None,
            node: Value::Null,
        }],
    }
}
