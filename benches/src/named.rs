//! pbm-fs on copies of a dbPath: backups whose changes are named by comparing two of them, as a server names them to a
//! backup cursor.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use pbmfs_agent::DirectorySource;
use pbmfs_agent::backup::{BackupOptions, BackupProgress, Phase, backup};
use pbmfs_agent::error::SourceError;
use pbmfs_agent::source::{BackupType, Pinned, Since, Source};
use pbmfs_repo::id::SnapshotName;
use pbmfs_repo::ingest::{Cancel, Progress};
use pbmfs_repo::local_index::IndexOptions;
use pbmfs_repo::objects::{ChainHead, Parameters, SnapshotDoc, SnapshotStats};
use pbmfs_repo::storage::LocalStorage;
use pbmfs_repo::{Repository, SnapshotReader};

use crate::Result;
use crate::copies::{Changed, GRANULE, named};
use crate::stored::{Added, Watch};
use crate::system::files_of;

/// A copy of a dbPath, and what changed in it since a snapshot.
struct NamedSource {
    copy: DirectorySource,
    since: Option<Since>,
    number: u32,
}

impl NamedSource {
    /// The `number`th copy of a chain.
    fn new(copy: &Path, since: Option<(SnapshotName, &[Changed])>, number: u32) -> Self {
        Self {
            copy: DirectorySource::new(copy),
            since: since.map(|(snapshot, changes)| Since {
                snapshot,
                ranges: named(changes, GRANULE),
            }),
            number,
        }
    }
}

#[async_trait]
impl Source for NamedSource {
    async fn open(&mut self) -> Result<Pinned, SourceError> {
        let mut pinned = self.copy.open().await?;
        pinned.since = self.since.clone();
        // What a server would have been told, so that the snapshot's document is as long as it would be.
        pinned.head = Some(ChainHead {
            node: "127.0.0.1:27017".into(),
            replset_id: "65a1b2c3d4e5f60718293a4b".into(),
            this_backup_name: format!("pbmfs_20240101T000000Z_{:012}", self.number),
            block_size: (GRANULE >> 20) as u32,
            checkpoint_ts: (1_704_067_200, self.number),
        });
        Ok(pinned)
    }

    fn check(&self) -> Result<(), SourceError> {
        self.copy.check()
    }

    async fn release(&mut self) -> Result<(), SourceError> {
        self.copy.release().await
    }
}

struct Silent;

impl Progress for Silent {
    fn bytes(&self, _: u64) {}
    fn stored(&self, _: u64) {}
    fn file(&self, _: &str) {}
}

impl BackupProgress for Silent {
    fn phase(&self, _: Phase) {}
}

/// A chain of snapshots of copies, in a repository of its own.
pub struct Chain {
    repo: Repository,
    watch: Watch,
    path: PathBuf,
    last: Option<SnapshotDoc>,
    taken: u32,
}

impl Chain {
    /// An empty one in a new repository at `path`.
    ///
    /// # Errors
    /// The repository's.
    pub async fn new(path: &Path) -> Result<Self> {
        let storage = Arc::new(LocalStorage::new(path));
        let repo = Repository::init(storage, Parameters::default()).await?;
        let mut watch = Watch::new(path);
        watch.added()?;
        Ok(Self {
            repo,
            watch,
            path: path.into(),
            last: None,
            taken: 0,
        })
    }

    /// A snapshot of `copy`: of all of it if it is the first, else of `changes`. Tells what it did, and what is new in
    /// the repository.
    ///
    /// # Errors
    /// The backup's.
    pub async fn take(&mut self, copy: &Path, changes: &[Changed]) -> Result<(SnapshotStats, Added)> {
        let last = self.last.take().map(|doc| doc.name);
        let options = BackupOptions {
            backup_type: match last {
                Some(_) => BackupType::Increment,
                None => BackupType::Base,
            },
            replset: Some("rs0".into()),
            cluster: None,
            memory: 512 << 20,
            index: IndexOptions::below(self.path.with_extension("index")),
            threads: None,
            tool: "bench-increments".into(),
            repository: Some(self.path.clone()),
        };
        let mut source = NamedSource::new(copy, last.map(|snapshot| (snapshot, changes)), self.taken);
        let cancel = Cancel::default();
        let doc = backup(&self.repo, &mut source, &options, Arc::new(Silent), &cancel).await?;
        let stats = doc.stats;
        self.last = Some(doc);
        self.taken += 1;
        Ok((stats, self.watch.added()?))
    }

    /// Reads the last snapshot and compares it with the copy that it is of, byte by byte.
    ///
    /// # Errors
    /// The repository's; it is not the same.
    pub async fn verify(&self, copy: &Path) -> Result<()> {
        const STEP: u64 = 8 << 20;
        let Some(doc) = self.last.clone() else {
            return Err("there is no snapshot to verify".into());
        };
        let reader = SnapshotReader::open(&self.repo, doc).await?;
        let replset = &reader.replsets()[0];
        for path in files_of(copy)? {
            let name = path.strip_prefix(copy)?.display().to_string();
            let found = replset.files().find(&name).await?;
            let (_, entry) = found.ok_or_else(|| format!("the snapshot lacks {name}"))?;
            let file = File::open(&path)?;
            let len = file.metadata()?.len();
            let mut same = len == entry.meta.size;
            let mut want = Vec::new();
            for offset in (0..len).step_by(STEP as usize) {
                want.resize((len - offset).min(STEP) as usize, 0);
                file.read_exact_at(&mut want, offset)?;
                same = same && replset.read(&entry, offset, STEP).await? == want;
            }
            if !same {
                return Err(format!("{name} is not the same in the snapshot").into());
            }
        }
        Ok(())
    }
}
