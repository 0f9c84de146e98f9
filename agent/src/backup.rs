//! A backup: from a source to a committed snapshot.
//!
//! The order matters. What costs time and needs no pin comes first (lease, list of packs, index of known blocks);
//! then the source is opened, read and released; only a pin that held the whole time is followed by the commit.
//! Whatever fails, the source is released, the lease removed, and no snapshot exists.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pbmfs_dbpath::is_journal;
use pbmfs_repo::files::FileMeta;
use pbmfs_repo::ingest::{Cancel, Changes, Cutter, IngestOptions, Input, Job, Progress, ReadAt, ingest};
use pbmfs_repo::local_index::{Index, IndexOptions};
use pbmfs_repo::objects::{ClusterRef, ReplsetDoc, SnapshotDoc, SnapshotStats, f64ish};
use pbmfs_repo::{ReplsetReader, RepoError, Repository, Session, SnapshotReader};

use crate::cutter::cutter_of;
use crate::error::SourceError;
use crate::heads;
use crate::quiet_read::QuietFile;
use crate::source::{
    BackupType, ChainInfo, ChainStep, FileKind, Pinned, Since, Source, SourceFile, SourceKind, Wanted,
};

/// How often the pin is looked at while files are read.
const CHECK_EVERY: Duration = Duration::from_millis(200);

/// Name of the replica set where the source has none.
pub const STANDALONE: &str = "standalone";

/// What a backup is called and how much it may use.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// What kind of backup.
    pub backup_type: BackupType,
    /// Name of the replica set in the snapshot; by default the source's, or [`STANDALONE`].
    pub replset: Option<String>,
    /// Name of the cluster in the snapshot; by default the replica set's.
    pub cluster: Option<String>,
    /// Bytes for all buffers.
    pub memory: u64,
    /// The index of known blocks.
    pub index: IndexOptions,
    /// Threads that hash and compress; by default one a core.
    pub threads: Option<usize>,
    /// Program and version, for the snapshot.
    pub tool: String,
    /// Where the repository lies, if it is a local directory: it must not be part of its own backup.
    pub repository: Option<PathBuf>,
}

/// A step of a backup, for whoever watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The index of known blocks catches up with the repository.
    LoadingIndex,
    /// The source is being pinned; for a live server it waits for the lock.
    Pinning,
    /// Files are read.
    Reading {
        /// How many files; directories are not among them.
        files: u64,
        /// How many bytes, as far as that is known before.
        bytes: u64,
        /// `host:port` or the directory.
        from: String,
    },
    /// The pin is released and the snapshot committed.
    Committing,
}

/// Watches a backup.
pub trait BackupProgress: Progress {
    /// A step begins.
    fn phase(&self, phase: Phase);
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The source could not be pinned, or the pin was lost.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The repository, or a file that could not be read.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The repository would be backed up into itself.
    #[error("the repository {repository} lies inside {root}, which is to be backed up: move it elsewhere")]
    RepositoryInside {
        /// The repository.
        repository: PathBuf,
        /// The source's directory.
        root: PathBuf,
    },
    /// The local index would become a part of the repository, or of the backup.
    #[error(
        "the local index cannot lie in {index}, which is inside {inside}: give it another directory with --index"
    )]
    IndexInside {
        /// The directory of local indexes.
        index: PathBuf,
        /// The repository, or what is backed up.
        inside: PathBuf,
    },
    /// A replica set's name cannot be a directory in a mount.
    #[error(
        "{0:?} cannot be the name of a replica set: a name has no slash or control character and is neither empty nor \".\" or \"..\""
    )]
    BadReplsetName(String),
    /// A cluster's name could not be read in a list.
    #[error("{0:?} cannot be the name of a cluster: a name is not empty and has no control character")]
    BadClusterName(String),
}

/// Takes a backup of everything that `source` pins.
///
/// # Errors
/// No snapshot was committed, except for `RepoError::CommitUnknown`, which says that nobody can tell.
pub async fn backup(
    repo: &Repository,
    source: &mut dyn Source,
    options: &BackupOptions,
    progress: Arc<dyn BackupProgress>,
    cancel: &Cancel,
) -> Result<SnapshotDoc, BackupError> {
    if let Some(name) = &options.replset {
        check_replset_name(name)?;
    }
    if let Some(name) = &options.cluster
        && (name.is_empty() || name.contains(char::is_control))
    {
        return Err(BackupError::BadClusterName(name.clone()));
    }
    let started = jiff::Timestamp::now();
    let session = Session::begin(repo, "backup", started).await?;
    let taken = Backup {
        repo,
        session: &session,
        options,
        progress,
        cancel,
        started,
    }
    .take(source)
    .await;
    match taken {
        Ok((doc, known)) => {
            session.commit(&doc).await?;
            heads::remember(&known, &doc);
            Ok(doc)
        }
        Err(e) => {
            if let Err(release) = source.release().await {
                tracing::debug!("after the failure: {release}");
            }
            session.abandon().await;
            Err(e)
        }
    }
}

fn check_replset_name(name: &str) -> Result<(), BackupError> {
    let bad = |c: char| c == '/' || c.is_control();
    if name.is_empty() || name.contains(bad) || name == "." || name == ".." {
        return Err(BackupError::BadReplsetName(name.into()));
    }
    Ok(())
}

struct Backup<'a> {
    repo: &'a Repository,
    session: &'a Session,
    options: &'a BackupOptions,
    progress: Arc<dyn BackupProgress>,
    cancel: &'a Cancel,
    started: jiff::Timestamp,
}

impl Backup<'_> {
    async fn take(&self, source: &mut dyn Source) -> Result<(SnapshotDoc, Arc<Index>), BackupError> {
        self.check_index_apart(self.options.repository.as_deref())?;
        self.check_index_apart(source.root())?;
        self.progress.phase(Phase::LoadingIndex);
        let known = Arc::new(tokio::select! {
            known = Index::open(self.session, &self.options.index) => known?,
            () = cancelled(self.cancel) => return Err(RepoError::Cancelled.into()),
        });
        self.progress.phase(Phase::Pinning);
        let wanted = tokio::select! {
            wanted = self.wanted(source, &known) => wanted?,
            () = cancelled(self.cancel) => return Err(RepoError::Cancelled.into()),
        };
        source.want(wanted);
        let mut pinned = tokio::select! {
            pinned = source.open() => pinned?,
            () = cancelled(self.cancel) => return Err(RepoError::Cancelled.into()),
        };
        self.check_apart(&pinned)?;
        self.check_index_apart(Some(&pinned.root))?;
        let name = match (&self.options.replset, &pinned.info.replset) {
            (Some(name), _) | (None, Some(name)) => name.clone(),
            (None, None) => STANDALONE.into(),
        };
        check_replset_name(&name)?;
        let cluster = ClusterRef {
            name: self.options.cluster.clone().unwrap_or_else(|| name.clone()),
            id: pinned
                .info
                .cluster_id
                .clone()
                .or_else(|| pinned.info.replica_set_id.clone()),
        };
        let parent = match self.source_snapshot(&mut pinned, &name).await? {
            Some(parent) => Some(parent),
            None => self.parent(&cluster, &name).await?,
        };
        let stats = self.read(source, &mut pinned, parent, known.clone()).await?;
        self.progress.phase(Phase::Committing);
        source.release().await?;
        Ok((self.document(cluster, name, &pinned, stats), known))
    }

    /// What is asked of the source; for an increment, with all the snapshots on which it may build.
    async fn wanted(&self, source: &mut dyn Source, known: &Index) -> Result<Wanted, BackupError> {
        let backup_type = self.options.backup_type;
        let mut heads = Vec::new();
        if backup_type == BackupType::Increment {
            let replset = match &self.options.replset {
                Some(name) => Some(name.clone()),
                None => source.replset().await?,
            };
            let replset = replset.as_deref().unwrap_or(STANDALONE);
            heads = heads::heads(self.repo, known, replset).await?;
        }
        // WiredTiger takes no colons; the lease makes it the name of this attempt alone.
        let plain = |c: &char| c.is_ascii_alphanumeric();
        let time: String = self.session.name().as_str().chars().filter(plain).collect();
        let lease: String = self
            .session
            .lease()
            .to_string()
            .chars()
            .filter(plain)
            .take(12)
            .collect();
        Ok(Wanted {
            backup_type,
            name: format!("pbmfs_{time}_{lease}"),
            heads,
        })
    }

    /// The snapshot since which the pinned changes are. If it cannot be read any more, the changes are worth nothing,
    /// and everything is read.
    async fn source_snapshot(
        &self,
        pinned: &mut Pinned,
        replset: &str,
    ) -> Result<Option<Arc<ReplsetReader>>, BackupError> {
        let Some(since) = &pinned.since else {
            return Ok(None);
        };
        let opened = async {
            let doc = self.repo.snapshot(&since.snapshot).await?;
            SnapshotReader::open(self.repo, doc).await
        };
        match opened.await {
            Ok(reader) => {
                let found = reader.replsets().iter().find(|r| r.doc().name == replset);
                if found.is_none() {
                    full_read(pinned, "the source snapshot holds another replica set".into());
                }
                Ok(found.cloned())
            }
            Err(e) if e.kind() == pbmfs_repo::ErrorKind::Failed => Err(e.into()),
            Err(e) => {
                tracing::warn!("everything is read, because the source snapshot cannot be: {e}");
                full_read(pinned, e.to_string());
                Ok(None)
            }
        }
    }

    /// A local index in a repository would be foreign to it, and one among the files would be backed up while it changes.
    fn check_index_apart(&self, from: Option<&Path>) -> Result<(), BackupError> {
        let (Some(index), Some(from)) = (&self.options.index.directory, from) else {
            return Ok(());
        };
        let from = from.canonicalize().unwrap_or_else(|_| from.to_owned());
        if resolved(index).starts_with(&from) {
            return Err(BackupError::IndexInside {
                index: index.clone(),
                inside: from,
            });
        }
        Ok(())
    }

    /// A repository below what is backed up would grow while it is read. Links are followed, so each directory is
    /// looked at.
    fn check_apart(&self, pinned: &Pinned) -> Result<(), BackupError> {
        let Some(repository) = &self.options.repository else {
            return Ok(());
        };
        let resolved = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let own = resolved(repository);
        let id = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let own_id = id(repository);
        // Also a link to a part of it, and the same directory mounted once more.
        let touches = |directory: &Path| {
            resolved(directory).starts_with(&own) || own_id.is_some() && id(directory) == own_id
        };
        let directories = pinned
            .files
            .iter()
            .filter(|file| file.kind == FileKind::Directory);
        if own.starts_with(resolved(&pinned.root))
            || directories
                .map(|dir| pinned.root.join(&dir.path))
                .any(|dir| touches(&dir))
        {
            return Err(BackupError::RepositoryInside {
                repository: repository.clone(),
                root: pinned.root.clone(),
            });
        }
        Ok(())
    }

    /// The newest snapshot of the same replica set. A wrong guess costs deduplication and nothing else.
    async fn parent(
        &self,
        cluster: &ClusterRef,
        replset: &str,
    ) -> Result<Option<Arc<ReplsetReader>>, BackupError> {
        let same = |doc: &SnapshotDoc| {
            let id_fits = doc.cluster.id.is_none() || cluster.id.is_none() || doc.cluster.id == cluster.id;
            doc.cluster.name == cluster.name && id_fits && doc.replsets.iter().any(|r| r.name == replset)
        };
        let Some(doc) = self.repo.newest(same).await? else {
            return Ok(None);
        };
        let name = doc.name.clone();
        match SnapshotReader::open(self.repo, doc).await {
            Ok(reader) => Ok(reader
                .replsets()
                .iter()
                .find(|r| r.doc().name == replset)
                .cloned()),
            Err(e) if e.kind() == pbmfs_repo::ErrorKind::Failed => Err(e.into()),
            Err(e) => {
                tracing::warn!("the previous snapshot {name} cannot be built on: {e}");
                Ok(None)
            }
        }
    }

    /// Stores the pinned files. If the parent's lists or maps turn out to be damaged, or were deleted meanwhile, the
    /// files are read once more without it: damage in one snapshot must not stand in the way of all later ones.
    async fn read(
        &self,
        source: &dyn Source,
        pinned: &mut Pinned,
        parent: Option<Arc<ReplsetReader>>,
        known: Arc<Index>,
    ) -> Result<Ingest, BackupError> {
        use pbmfs_repo::ErrorKind::{Damaged, NotFound};
        let name = parent.as_ref().map(|p| p.snapshot().clone());
        match (self.read_once(source, pinned, parent, known.clone()).await, name) {
            (Err(BackupError::Repo(e)), Some(name)) if matches!(e.kind(), Damaged | NotFound) => {
                tracing::warn!("the previous snapshot {name} cannot be built on, all is read again: {e}");
                full_read(pinned, e.to_string());
                self.read_once(source, pinned, None, known).await
            }
            (done, _) => done,
        }
    }

    async fn read_once(
        &self,
        source: &dyn Source,
        pinned: &Pinned,
        parent: Option<Arc<ReplsetReader>>,
        known: Arc<Index>,
    ) -> Result<Ingest, BackupError> {
        let files: Vec<FileMeta> = pinned.files.iter().map(file_meta).collect();
        self.progress.phase(Phase::Reading {
            files: files.iter().filter(|f| f.kind == FileKind::Regular).count() as u64,
            bytes: match (&pinned.since, &pinned.info.chain) {
                (
                    Some(_),
                    Some(ChainInfo {
                        bytes_named: Some(bytes),
                        ..
                    }),
                ) => *bytes,
                _ => files.iter().map(|f| f.size).sum(),
            },
            from: pinned
                .info
                .node
                .clone()
                .unwrap_or_else(|| pinned.root.display().to_string()),
        });
        let mut options = IngestOptions::for_repository(self.repo.config(), self.options.memory);
        options.threads = self.options.threads.unwrap_or(options.threads);
        let lost = Arc::new(Mutex::new(None::<String>));
        let job = Job {
            input: Arc::new(Directory {
                root: pinned.root.clone(),
                since: pinned.since.clone(),
                live: pinned.info.source == SourceKind::BackupCursor,
                lost: lost.clone(),
            }),
            files,
            parent,
            known,
            options,
            progress: self.progress.clone(),
            cancel: self.cancel.clone(),
        };
        let stored = ingest(self.session, job);
        tokio::pin!(stored);
        let mut ticks = tokio::time::interval(CHECK_EVERY);
        let mut pin_error = None;
        let stored = loop {
            tokio::select! {
                done = &mut stored => break done,
                _ = ticks.tick(), if pin_error.is_none() => {
                    if let Err(e) = source.check() {
                        *lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(e.to_string());
                        pin_error = Some(e);
                    }
                }
            }
        };
        if let Some(e) = pin_error {
            return Err(e.into());
        }
        source.check()?;
        let stored = stored?;
        Ok(Ingest {
            file_list: stored.file_list,
            pack_table: stored.pack_table,
            stats: stored.stats,
        })
    }

    fn document(&self, cluster: ClusterRef, replset: String, pinned: &Pinned, stored: Ingest) -> SnapshotDoc {
        let finished = jiff::Timestamp::now();
        let millis = finished.duration_since(self.started).as_millis().max(0) as u64;
        SnapshotDoc {
            name: self.session.name().clone(),
            lease: self.session.lease(),
            cluster,
            // As PBM names types: a base is one of its increments.
            backup_type: if pinned.head.is_some() {
                "incremental"
            } else {
                "physical"
            }
            .into(),
            tool: self.options.tool.clone(),
            started: self.started,
            finished,
            stats: SnapshotStats {
                seconds: f64ish::Seconds(millis),
                ..stored.stats
            },
            replsets: vec![ReplsetDoc {
                name: replset,
                file_list: stored.file_list,
                pack_table: stored.pack_table,
                chain_head: pinned.head.clone(),
                node: serde_json::to_value(&pinned.info).unwrap_or_default(),
            }],
        }
    }
}

struct Ingest {
    file_list: Option<pbmfs_repo::pack::Place>,
    pack_table: Option<pbmfs_repo::pack::Place>,
    stats: SnapshotStats,
}

async fn cancelled(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn file_meta(file: &SourceFile) -> FileMeta {
    FileMeta {
        path: file.path.clone(),
        kind: file.kind,
        mode: file.mode,
        uid: file.uid,
        gid: file.gid,
        mtime: (file.mtime.secs, file.mtime.nanos),
        size: file.size,
    }
}

/// The changes turn out to be worth nothing.
fn full_read(pinned: &mut Pinned, reason: String) {
    if pinned.since.take().is_none() {
        return;
    }
    if let Some(chain) = &mut pinned.info.chain {
        chain.step = ChainStep::FullRead;
        chain.source_snapshot = None;
        chain.reason = Some(reason);
    }
}

/// Where a path leads, of which perhaps not all is there yet.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut out = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            other => out.push(other),
        }
        if let Ok(real) = out.canonicalize() {
            out = real;
        }
    }
    out
}

/// The pinned files.
struct Directory {
    root: PathBuf,
    since: Option<Since>,
    /// Whether a server writes there meanwhile.
    live: bool,
    lost: Arc<Mutex<Option<String>>>,
}

impl Input for Directory {
    fn open(&self, file: &FileMeta) -> io::Result<Box<dyn ReadAt>> {
        let open = QuietFile::open(&self.root.join(&file.path))?;
        let log = self.live && is_journal(&file.path);
        Ok(Box::new(if log { open.padded() } else { open }))
    }

    fn changes(&self, file: &FileMeta) -> Changes {
        match self.since.as_ref().and_then(|since| since.ranges.get(&file.path)) {
            Some(ranges) => Changes::Ranges(ranges.clone()),
            None => Changes::Whole,
        }
    }

    fn cutter(&self, file: &FileMeta) -> Box<dyn Cutter> {
        cutter_of(&file.path)
    }

    fn check(&self) -> Result<(), String> {
        match &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }
}
