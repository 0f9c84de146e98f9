//! A chain of backups of a live database, each judged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use pbmfs_agent::restore::{NoRestoreProgress, RestoreOptions, restore};
use pbmfs_repo::{
    ReplsetReader, Repository, Session, SnapshotReader,
    index::MemoryIndex,
    ingest::{Cancel, IngestOptions, Ingested, Job, NoProgress, ingest},
    objects::{ClusterRef, Parameters, ReplsetDoc, SnapshotDoc, SnapshotStats},
    storage::LocalStorage,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    compare::{Compared, compare},
    driver::Driver,
    input::{Files, Named},
};
use crate::{
    error::{Doing, Result, RigError},
    prng::Prng,
};

/// How WiredTiger says that it does not know an id.
const NO_HISTORY: &str = "No such file or directory";

/// The logged table, which is rolled forward by a start.
const OPLOG: &str = "oplog";

/// What happens to the database between two backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing but what the writers do.
    Nothing,
    /// A thousandth of the largest table is updated.
    Update,
    /// Tables are made: one with rows, one that stays empty, one that has no checkpoint yet.
    Create,
    /// A table grows by half.
    Grow,
    /// A table is dropped.
    Drop,
    /// A table is dropped, and another one made under its name.
    DropAndCreate,
    /// Most rows of a table are removed, and it is compacted.
    Shrink,
    /// The database is closed and opened again.
    Restart,
    /// A backup is begun, and given up.
    GiveUp,
    /// The process is killed.
    Crash,
    /// The process is killed while a backup cursor is open.
    CrashUnderCursor,
    /// The history is forgotten.
    ForceStop,
}

impl Event {
    /// All of them.
    pub const ALL: [Event; 12] = [
        Event::Nothing,
        Event::Update,
        Event::Create,
        Event::Grow,
        Event::Drop,
        Event::DropAndCreate,
        Event::Shrink,
        Event::Restart,
        Event::GiveUp,
        Event::Crash,
        Event::CrashUnderCursor,
        Event::ForceStop,
    ];
}

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

/// What a backup was, and what the judges found.
#[derive(Clone, Debug)]
pub struct Judged {
    /// How it went.
    pub how: How,
    /// Of the pipeline.
    pub stats: SnapshotStats,
    /// Bytes that had to be read.
    pub asked: u64,
    /// Ranges that begin behind the end of their file.
    pub phantoms: usize,
    /// What the copy says.
    pub compared: Compared,
    /// Rows in all tables.
    pub rows: u64,
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

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Contents {
    rows: u64,
    sum: String,
}

#[derive(Debug, Deserialize)]
struct Inspected {
    tables: BTreeMap<String, Contents>,
    oplog: u64,
}

impl Inspected {
    fn wrong(&self, recorded: &BTreeMap<String, Contents>, oplog: (u64, u64)) -> Vec<String> {
        let mut wrong = Vec::new();
        for name in recorded.keys().chain(self.tables.keys()).collect::<BTreeSet<_>>() {
            let (was, is) = (recorded.get(name), self.tables.get(name));
            if was != is {
                wrong.push(format!(
                    "table {name} held {was:?} at its checkpoint and holds {is:?}"
                ));
            }
        }
        if !(oplog.0..=oplog.1).contains(&self.oplog) {
            let found = self.oplog;
            wrong.push(format!(
                "the log goes to entry {found} instead of to one of {oplog:?}"
            ));
        }
        wrong
    }
}

struct Taken {
    id: String,
    doc: SnapshotDoc,
}

/// What is pinned, and what is known of it.
struct Pinned {
    id: String,
    how: How,
    parent: Option<SnapshotDoc>,
    files: BTreeMap<String, ListedFile>,
}

/// A live database, a repository, and the snapshots so far.
pub struct Chain {
    place: PathBuf,
    python: PathBuf,
    driver: Arc<Mutex<Driver>>,
    /// As it was asked for, or `none` where WiredTiger was built without it.
    pub compressor: String,
    repo: Repository,
    prng: Prng,
    /// Size of a row of each table.
    tables: BTreeMap<String, u64>,
    taken: Vec<Taken>,
    ids: u32,
}

impl Chain {
    /// Makes a database in `place`, with tables of `scale` times the usual size (31 MB in all), and starts the writers.
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
        };
        chain.open(seed)?;
        chain.create(OPLOG, 0, 300)?;
        let rows = |rows: u64| (rows as f64 * scale) as u64;
        chain.create("big", rows(10_000), 2500)?;
        chain.create("mid", rows(6000), 700)?;
        chain.create("wide", rows(40), 60_000)?;
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

    fn tell(&self, what: &str, with: Value) -> Result<()> {
        lock(&self.driver).tell(what, with)
    }

    fn open(&mut self, seed: u64) -> Result<()> {
        let with = json!({"home": self.home(), "seed": seed, "compressor": self.compressor});
        self.compressor = lock(&self.driver).get("open", with)?;
        Ok(())
    }

    fn create(&mut self, name: &str, rows: u64, size: u64) -> Result<()> {
        self.tables.insert(name.into(), size);
        self.tell("create", json!({"name": name, "rows": rows, "size": size}))
    }

    /// A table that may be dropped or changed as a whole.
    fn some_table(&mut self) -> String {
        let names: Vec<_> = self
            .tables
            .keys()
            .filter(|name| !matches!(name.as_str(), OPLOG | "big"))
            .cloned()
            .collect();
        names[self.prng.below(names.len() as u64) as usize].clone()
    }

    /// Has something happen, while the writers go on.
    pub fn happens(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Nothing => Ok(()),
            Event::Update => self.tell("update", json!({"name": "big", "every": 1000})),
            Event::Create => {
                let number = self.ids;
                let (rows, size) = (1 + self.prng.below(1500), 50 + self.prng.below(2000));
                self.create(&format!("new{number}"), rows, size)?;
                self.create(&format!("empty{number}"), 0, 100)?;
                self.tell("checkpoint", json!({}))?;
                self.create(&format!("late{number}"), 300, 500)
            }
            Event::Grow => self.tell("grow", json!({"name": "mid", "rows": 3000})),
            Event::Drop => {
                let name = self.some_table();
                if self.tables.len() > 6 && name != "mid" {
                    self.tables.remove(&name);
                    self.tell("drop", json!({"name": name}))?;
                }
                Ok(())
            }
            Event::DropAndCreate => {
                let name = self.some_table();
                self.tell("drop", json!({"name": name}))?;
                let (rows, size) = (self.prng.below(3000), 20 + self.prng.below(800));
                self.create(&name, rows, size)
            }
            Event::Shrink => self.get("shrink", json!({"name": "mid", "keep": 9})).map(drop),
            Event::Restart => {
                self.get("reopen", json!({}))?;
                self.tell("start", json!({"writers": 2}))
            }
            Event::GiveUp => {
                self.pin()?;
                self.tell("end", json!({}))
            }
            Event::Crash => self.crash(),
            Event::CrashUnderCursor => {
                self.pin()?;
                self.tell("grow", json!({"name": "mid", "rows": 200}))?;
                self.tell("checkpoint", json!({}))?;
                self.crash()
            }
            Event::ForceStop => self.tell("force_stop", json!({})),
        }
    }

    fn get(&self, what: &str, with: Value) -> Result<Value> {
        lock(&self.driver).get(what, with)
    }

    fn crash(&mut self) -> Result<()> {
        {
            let mut driver = lock(&self.driver);
            driver.kill()?;
            *driver = Driver::start(&self.python, &self.place.join("driver.log"))?;
        }
        let seed = self.prng.below(1 << 40);
        self.open(seed)?;
        // What it holds now is what recovery found.
        let found: Vec<String> = lock(&self.driver).get("adopt", json!({"sizes": self.tables}))?;
        self.tables.retain(|name, _| found.contains(name));
        for name in found {
            self.tables.entry(name).or_insert(500);
        }
        self.tell("start", json!({"writers": 2}))
    }

    /// Opens a backup cursor on the newest id that WiredTiger knows.
    fn pin(&mut self) -> Result<Pinned> {
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
        let files = Arc::new(Files::new(named.clone()));
        // The copy is made and the checkpoint read while the pipeline reads the same files.
        let recorded = {
            let (driver, tables, copy) = (self.driver.clone(), tables.clone(), copy.clone());
            tokio::task::spawn_blocking(move || {
                let mut driver = lock(&driver);
                driver.tell("copy", json!({"names": tables, "to": copy}))?;
                driver.get::<BTreeMap<String, Contents>>("contents", json!({}))
            })
        };
        let asked = Asked::of(&named, &files, parent.as_deref()).await?;
        let stored = self.store(&session, parent, files.clone()).await;
        let recorded = recorded
            .await
            .map_err(|error| RigError::Check(error.to_string()))??;
        for name in &log.files {
            fs::copy(logs.join(name), copy.join(name)).doing(format_args!("copying {name}"))?;
        }
        self.tell("end", json!({}))?;
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
        let metas = files.metas()?;
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

    async fn judge(
        &self,
        doc: SnapshotDoc,
        copy: &Path,
        names: &BTreeSet<String>,
        recorded: &BTreeMap<String, Contents>,
        oplog: (u64, u64),
    ) -> Result<(Compared, u64)> {
        let target = self.place.join("restored");
        let options = RestoreOptions::new(&target);
        let restored = restore(
            &self.repo,
            doc,
            options,
            Arc::new(NoRestoreProgress),
            Cancel::default(),
        );
        restored
            .await
            .map_err(|error| RigError::Check(error.to_string()))?;
        let mut wrong = Vec::new();
        let compared = compare(&target, copy, names).unwrap_or_else(|found| {
            wrong.extend(found);
            Compared::default()
        });
        let found: Result<Inspected, String> = {
            let driver = self.driver.clone();
            let with = json!({"home": target});
            let found = tokio::task::spawn_blocking(move || lock(&driver).ask("inspect", with));
            found
                .await
                .map_err(|error| RigError::Check(error.to_string()))??
        };
        let rows = match found {
            Ok(found) => {
                wrong.extend(found.wrong(recorded, oplog));
                found.tables.values().map(|table| table.rows).sum()
            }
            Err(how) => {
                wrong.push(format!("WiredTiger does not open it: {how}"));
                0
            }
        };
        if !wrong.is_empty() {
            return Err(RigError::Check(wrong.join("\n")));
        }
        fs::remove_dir_all(&target).doing(format_args!("removing {}", target.display()))?;
        Ok((compared, rows))
    }

    /// Has all the repository checked.
    pub async fn check(&self) -> Result<()> {
        use pbmfs_repo::check::{CheckOptions, NoCheckProgress, check};
        let cancel = Cancel::default();
        let report = check(&self.repo, CheckOptions::default(), &NoCheckProgress, &cancel).await;
        let report = report.map_err(failed)?;
        match report.findings.is_empty() {
            true => Ok(()),
            false => Err(RigError::Check(format!("{:?}", report.findings))),
        }
    }
}

fn lock(driver: &Mutex<Driver>) -> std::sync::MutexGuard<'_, Driver> {
    driver.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: pbmfs_repo::RepoError) -> RigError {
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

/// What the pipeline has to read: what is named, within its file; what the parent does not have; each sector once.
struct Asked {
    files: BTreeMap<String, Vec<Range<u64>>>,
    bytes: u64,
    phantoms: usize,
}

impl Asked {
    async fn of(
        named: &BTreeMap<String, Named>,
        files: &Files,
        parent: Option<&ReplsetReader>,
    ) -> Result<Self> {
        let mut asked = Self {
            files: BTreeMap::new(),
            bytes: 0,
            phantoms: 0,
        };
        for meta in files.metas()? {
            let had = match parent {
                Some(parent) => parent.files().find(&meta.path).await.map_err(failed)?,
                None => None,
            };
            let mut ranges = match (named[&meta.path].ranges.clone(), had) {
                (Some(ranges), Some((_, had))) => {
                    asked.phantoms += ranges.iter().filter(|range| range.start >= meta.size).count();
                    [ranges, vec![had.meta.size..meta.size]].concat()
                }
                _ => vec![0..meta.size],
            };
            ranges.sort_by_key(|range| range.start);
            let mut at = 0;
            for range in &mut ranges {
                *range = range.start.max(at)..range.end.min(meta.size);
                at = at.max(range.end);
            }
            ranges.retain(|range| !range.is_empty());
            asked.bytes += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
            asked.files.insert(meta.path, ranges);
        }
        Ok(asked)
    }

    /// Nothing else was read, but to the edges of blocks.
    fn check(&self, files: &Files) -> Result<()> {
        const EDGE: u64 = 1 << 20;
        for (name, read) in files.reads() {
            let ranges = &self.files[&name];
            let near = |at: u64| {
                ranges
                    .iter()
                    .any(|range| range.start.saturating_sub(EDGE) <= at && at < range.end + EDGE)
            };
            if !near(read.start) || !near(read.end - 1) {
                return Err(RigError::Check(format!(
                    "{read:?} of {name} was read, and {ranges:?} changed"
                )));
            }
        }
        Ok(())
    }
}
