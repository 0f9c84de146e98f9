//! A running server as a source: a backup cursor where the server has one, `fsyncLock` otherwise.

use async_trait::async_trait;

use crate::cursor::{CursorOptions, CursorSource};
use crate::error::SourceError;
use crate::lock::{FsyncLockSource, LockOptions};
use crate::source::{BackupType, ChainInfo, ChainStep, Pinned, Source, Wanted};

/// How a running server's files are pinned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// The first that the server can do of the two others.
    #[default]
    Auto,
    /// `$backupCursor`: writes go on, and increments read only what changed.
    Cursor,
    /// `fsyncLock`: writes wait until the files are read.
    Lock,
}

/// A running server.
#[derive(Debug)]
pub struct LiveSource {
    method: Method,
    cursor: CursorSource,
    lock: FsyncLockSource,
    wanted: BackupType,
    /// Which of the two is open, or was opened last.
    locked: bool,
}

impl LiveSource {
    /// Nothing is asked before `open`. Hashes that are to be recorded under the lock are taken under the lock alone: of
    /// a server on which writes go on there are none.
    pub fn new(method: Method, cursor: CursorOptions, lock: LockOptions) -> Self {
        let method = if lock.record_hashes { Method::Lock } else { method };
        Self {
            method,
            cursor: CursorSource::new(cursor),
            lock: FsyncLockSource::new(lock),
            wanted: BackupType::default(),
            locked: method == Method::Lock,
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        if self.locked {
            &mut self.lock
        } else {
            &mut self.cursor
        }
    }

    async fn open_locked(&mut self, why: String) -> Result<Pinned, SourceError> {
        self.locked = true;
        let mut pinned = self.lock.open().await?;
        if self.wanted != BackupType::Physical {
            pinned.info.chain = Some(ChainInfo {
                step: ChainStep::FullRead,
                source_snapshot: None,
                reason: Some(why),
                block_size: None,
                bytes_named: None,
            });
        }
        Ok(pinned)
    }
}

#[async_trait]
impl Source for LiveSource {
    async fn replset(&mut self) -> Result<Option<String>, SourceError> {
        self.source().replset().await
    }

    fn want(&mut self, wanted: Wanted) {
        self.wanted = wanted.backup_type;
        self.cursor.want(wanted);
    }

    async fn open(&mut self) -> Result<Pinned, SourceError> {
        if self.method == Method::Lock {
            return self
                .open_locked("files were read under fsyncLock, as asked".into())
                .await;
        }
        match self.cursor.open().await {
            Err(SourceError::NoBackupCursor { node, version }) if self.method == Method::Auto => {
                tracing::warn!(
                    "{node} runs mongod {version} without $backupCursor: its files are read under fsyncLock instead, \
                     and its writes wait meanwhile"
                );
                self.open_locked(format!("mongod {version} has no $backupCursor"))
                    .await
            }
            opened => opened,
        }
    }

    fn check(&self) -> Result<(), SourceError> {
        if self.locked {
            self.lock.check()
        } else {
            self.cursor.check()
        }
    }

    async fn release(&mut self) -> Result<(), SourceError> {
        self.source().release().await
    }
}
