//! Opening a backup cursor: which history to build on, what to try again, and what to give up.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use tokio::time::{Instant, sleep};

use super::documents::{Listed, Metadata};
use super::opened::{Closing, RawCursor};
use super::{CursorOptions, DEFAULT_BLOCK_SIZE};
use crate::error::SourceError;
use crate::node::server::{CommandFailure, Server};
use crate::source::{BackupType, ChainStep, Head, NodeInfo, Wanted};

/// Codes of Percona Server's `$backupCursor`, which MongoDB Enterprise shares (`PBM.md` §2).
const NO_SUCH_STAGE: i32 = 40324;
/// An existing backup cursor must be closed.
const CURSOR_EXISTS: i32 = 50886;
/// A checkpoint took place while the cursor was opened.
const CHECKPOINT_CONFLICT: i32 = 50915;
/// The server is locked by somebody's fsyncLock.
const FSYNC_LOCKED: i32 = 50887;
/// Percona Server copies its files elsewhere at the moment (`createBackup`).
const HOT_BACKUP: i32 = 29098;
/// The oplog rolled over while the cursor was opened.
const OPLOG_ROLLED_OVER: i32 = 50917;
/// Codes under which a server says that it can make nothing of a request: BadValue, UnknownError (which carries
/// WiredTiger's), FailedToParse, InvalidOptions, an unknown field.
const NOT_UNDERSTOOD: [i32; 5] = [2, 8, 9, 72, 40415];

/// Whether a refusal says that the server does not know the history that it was asked for, or the option. Nothing else
/// does: a member that steps down, or is interrupted, still knows.
fn is_unknown_history(code: i32, reason: &str) -> bool {
    const WORDS: [&str; 3] = ["No such file", "srcBackupName", "ncremental"];
    NOT_UNDERSTOOD.contains(&code) && WORDS.iter().any(|word| reason.contains(word))
}

/// How often an opening that collided is repeated; PBM's number.
const ATTEMPTS: u32 = 10;
/// The first pause between them; each is twice as long as the one before, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A server remembers two names (`docs/wiredtiger-facts.md`).
const REMEMBERED: usize = 2;

/// Opens the cursor that is wanted.
pub(super) struct Opener<'a> {
    pub server: &'a Server,
    pub info: &'a NodeInfo,
    pub wanted: &'a Wanted,
    pub options: &'a CursorOptions,
    pub closing: &'a Closing,
}

/// An open cursor and all that it told.
pub(super) struct Opened {
    pub cursor: RawCursor,
    pub metadata: Metadata,
    pub listed: Listed,
    /// Under which the server remembers this backup; None if it does not.
    pub name: Option<String>,
    /// None for a backup outside of any chain.
    pub step: Option<ChainStep>,
    /// Whose changes the ranges are.
    pub since: Option<Head>,
    /// Why this is no increment although one was wanted.
    pub reason: Option<String>,
}

/// Why a cursor did not open.
enum NotOpened {
    /// The server does not know the source, in its own words.
    NoHistory(String),
    Failed(SourceError),
}

impl Opener<'_> {
    fn node(&self) -> &str {
        self.server.node()
    }

    pub async fn open(&self) -> Result<Opened, SourceError> {
        let failed = |not: NotOpened| match not {
            NotOpened::NoHistory(reason) => CommandFailure::Refused {
                command: "$backupCursor".into(),
                code: 0,
                reason,
            }
            .on(self.node()),
            NotOpened::Failed(error) => error,
        };
        match self.wanted.backup_type {
            BackupType::Physical => self.attempt(None, None, None).await.map_err(failed),
            BackupType::Base => {
                self.forget_history().await?;
                let base = self.attempt(Some(ChainStep::Base), None, None).await;
                base.map_err(failed)
            }
            BackupType::Increment => self.increment().await.map_err(failed),
        }
    }

    /// Tries the snapshots that this node may remember. If it remembers none, a new history begins: a refused
    /// increment has fixed the granularity of the next one, so the server is told to forget first.
    async fn increment(&self) -> Result<Opened, NotOpened> {
        let mut reason = None;
        for head in self.known_heads(&mut reason) {
            match self.attempt(Some(ChainStep::Increment), Some(head), None).await {
                Err(NotOpened::NoHistory(said)) => {
                    tracing::info!(
                        "{} does not know what changed since {}: {said}",
                        self.node(),
                        head.snapshot
                    );
                    reason.get_or_insert(format!("the server knows nothing of {}: {said}", head.snapshot));
                }
                decided => return decided,
            }
        }
        let reason = reason.unwrap_or_else(|| "there is no earlier snapshot in a chain".into());
        self.forget_history().await.map_err(NotOpened::Failed)?;
        self.attempt(Some(ChainStep::FullRead), None, Some(reason)).await
    }

    /// The heads that this node's history may hold, newest first.
    fn known_heads(&self, reason: &mut Option<String>) -> Vec<&Head> {
        let id = self.info.replica_set_id.as_deref().unwrap_or_default();
        let node = self.info.node.as_deref().unwrap_or(self.node());
        let of_set: Vec<&Head> = self
            .wanted
            .heads
            .iter()
            .filter(|h| h.head.replset_id == id)
            .collect();
        let own: Vec<&Head> = of_set.iter().copied().filter(|h| h.head.node == node).collect();
        if let (None, Some(other)) = (own.first(), of_set.first()) {
            *reason = Some(format!("the chain was with {}, this is {node}", other.head.node));
        } else if let (None, Some(other)) = (own.first(), self.wanted.heads.first()) {
            *reason = Some(format!(
                "{} is of another replica set of the same name",
                other.snapshot
            ));
        }
        if let (Some(asked), Some(newest)) = (self.options.block_size, own.first())
            && asked != newest.head.block_size
        {
            let has = newest.head.block_size;
            *reason = Some(format!(
                "changes are named in units of {has} MiB, and {asked} MiB were asked for"
            ));
            return Vec::new();
        }
        own.into_iter().take(REMEMBERED).collect()
    }

    /// Ends the server's history of changes, and with it the granularity that was fixed when it began.
    async fn forget_history(&self) -> Result<(), SourceError> {
        let stage = doc! {"$backupCursor": {"disableIncrementalBackup": true}};
        match self.patiently(|_| stage.clone()).await {
            Ok((cursor, _, _)) => match cursor.kill().await {
                Ok(()) => Ok(()),
                Err(failure) => Err(failure.on(self.node())),
            },
            // A server that does not know the option has no history to forget either.
            Err(NotOpened::NoHistory(reason)) => {
                tracing::warn!("{} did not forget its history of changes: {reason}", self.node());
                Ok(())
            }
            Err(NotOpened::Failed(error)) => Err(error),
        }
    }

    async fn attempt(
        &self,
        step: Option<ChainStep>,
        since: Option<&Head>,
        reason: Option<String>,
    ) -> Result<Opened, NotOpened> {
        let block_size = self.options.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
        let stage = |attempt: u32| {
            let mut options = Document::new();
            if step.is_some() {
                options.insert("incrementalBackup", true);
                options.insert("thisBackupName", self.name(since, attempt));
                match since {
                    Some(head) => options.insert("srcBackupName", &head.head.this_backup_name),
                    None => options.insert("blockSize", block_size as i32),
                };
            }
            doc! {"$backupCursor": options}
        };
        let (mut cursor, first, attempt) = self.patiently(stage).await?;
        match self.understand(&mut cursor, first, since.is_some()).await {
            // It passed over the options, and will remember nothing.
            Ok((metadata, listed)) if step.is_some() && !metadata.incremental => Ok(Opened {
                cursor,
                metadata,
                listed,
                name: None,
                step: Some(ChainStep::FullRead),
                since: None,
                reason: Some(format!("{} knows of no increments", self.node())),
            }),
            Ok((metadata, listed)) => Ok(Opened {
                cursor,
                metadata,
                listed,
                name: step.map(|_| self.name(since, attempt)),
                step,
                since: since.cloned(),
                reason,
            }),
            Err(error) => {
                if let Err(failure) = cursor.kill().await {
                    tracing::debug!(%failure, "while closing a cursor that could not be read");
                }
                Err(NotOpened::Failed(error))
            }
        }
    }

    /// A name for each attempt: the server has taken that of one which failed, too.
    fn name(&self, since: Option<&Head>, attempt: u32) -> String {
        let tried = self
            .wanted
            .heads
            .iter()
            .position(|h| Some(h) == since)
            .unwrap_or(0);
        format!("{}.{tried}.{attempt}", self.wanted.name)
    }

    /// Reads what the cursor tells.
    async fn understand(
        &self,
        cursor: &mut RawCursor,
        first: Vec<Document>,
        incremental: bool,
    ) -> Result<(Metadata, Listed), SourceError> {
        let strange = |what| SourceError::CursorDocument {
            node: self.node().into(),
            what,
        };
        let (mut metadata, mut listed) = (None::<Metadata>, Listed::default());
        let taken = cursor.drain(first, |document| {
            match &metadata {
                Some(known) => listed.add(document, &known.dbpath, incremental && known.incremental)?,
                None => metadata = Some(Metadata::read(document)?),
            }
            Ok(())
        });
        // It was open: whatever the connection's trouble is, there is no other cursor that would do.
        let lost = |failure| match failure {
            CommandFailure::Unreachable { reason } => SourceError::CursorLost {
                node: self.node().into(),
                reason,
            },
            other => other.on(self.node()),
        };
        taken.await.map_err(lost)?.map_err(strange)?;
        let metadata = metadata.ok_or_else(|| strange("it has no documents".into()))?;
        if listed.files.is_empty() {
            return Err(strange("it names no file".into()));
        }
        Ok((metadata, listed))
    }

    /// Opens a cursor, again and again while the server is only busy. `stage` makes the request of an attempt.
    async fn patiently(
        &self,
        stage: impl Fn(u32) -> Document,
    ) -> Result<(RawCursor, Vec<Document>, u32), NotOpened> {
        let started = Instant::now();
        let (mut attempt, mut collisions, mut pause) = (0, 0, PAUSE);
        loop {
            let failure = match RawCursor::open(self.server, stage(attempt), self.closing).await {
                Ok((cursor, first)) => return Ok((cursor, first, attempt)),
                Err(failure) => failure,
            };
            match &failure {
                CommandFailure::Refused {
                    code: CHECKPOINT_CONFLICT | OPLOG_ROLLED_OVER,
                    reason,
                    ..
                } => {
                    collisions += 1;
                    if collisions == ATTEMPTS {
                        return Err(NotOpened::Failed(SourceError::CursorConflict {
                            node: self.node().into(),
                            attempts: ATTEMPTS,
                            reason: reason.clone(),
                        }));
                    }
                }
                CommandFailure::Refused {
                    code: CURSOR_EXISTS | FSYNC_LOCKED | HOT_BACKUP,
                    reason,
                    ..
                } => {
                    if started.elapsed() >= self.options.patience {
                        return Err(NotOpened::Failed(SourceError::CursorBusy {
                            node: self.node().into(),
                            seconds: self.options.patience.as_secs(),
                            reason: reason.clone(),
                        }));
                    }
                    if attempt == 0 {
                        tracing::info!(
                            "{} cannot open a backup cursor yet, it is waited for: {reason}",
                            self.node()
                        );
                    }
                }
                CommandFailure::Refused {
                    code: NO_SUCH_STAGE, ..
                } => {
                    return Err(NotOpened::Failed(SourceError::NoBackupCursor {
                        node: self.node().into(),
                        version: self.info.mongod_version.clone().unwrap_or_else(|| "?".into()),
                    }));
                }
                CommandFailure::Refused { code, reason, .. } if is_unknown_history(*code, reason) => {
                    return Err(NotOpened::NoHistory(reason.clone()));
                }
                // Most of what else there is passes.
                CommandFailure::Refused { .. } if collisions + 1 < ATTEMPTS => collisions += 1,
                _ => {
                    let failure = stage_failure(failure, "$backupCursor");
                    return Err(NotOpened::Failed(failure.on(self.node())));
                }
            }
            tracing::debug!(%failure, "opening the backup cursor again");
            attempt += 1;
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Names the stage instead of the command that carried it.
pub(super) fn stage_failure(failure: CommandFailure, stage: &str) -> CommandFailure {
    match failure {
        CommandFailure::NotAllowed { .. } => CommandFailure::NotAllowed {
            command: stage.into(),
        },
        CommandFailure::Refused { code, reason, .. } => CommandFailure::Refused {
            command: stage.into(),
            code,
            reason,
        },
        other => other,
    }
}
