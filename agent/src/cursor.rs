//! A live member as a source, through `$backupCursor`: Percona Server for MongoDB and MongoDB Enterprise.
//!
//! An open cursor pins a checkpoint: its blocks stay where they are while writes go on, and so do the names of its files.
//! Files may grow behind their listed length, and what was free at the checkpoint may be written over; neither is part of
//! the backup. The journal that `$backupCursorExtend` names carries the files on to the restore time.
//!
//! With `incrementalBackup` the server also remembers which ranges were written since a backup that it knows by name. It
//! remembers two names, forgets them when it crashes at the wrong moment, and another program may overwrite them: so the
//! names of earlier snapshots are tried from the newest on, and if the server knows none of them a new history begins
//! and everything is read. The facts are in `docs/wiredtiger-facts.md`.

mod documents;
mod files;
mod open;
mod opened;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use mongodb::bson::{Bson, Timestamp as Ts};
use mongodb::options::ClientOptions;
use pbmfs_repo::objects::ChainHead;

use crate::directory::blocking;
use crate::error::SourceError;
use crate::node::member::{self, Choice, Member};
use crate::node::node_info;
use crate::node::server::{CommandFailure, Server};
use crate::source::{ChainInfo, ChainStep, NodeInfo, Pinned, Since, Source, SourceKind, Timestamp, Wanted};
use documents::Listed;
use open::{Opened, Opener};
use opened::{Closing, Kept, extend};

/// How often the cursor is asked whether it is still there. A server closes one that is not asked for minutes, so this is
/// for noticing a lost one soon.
const BEAT_EVERY: Duration = Duration::from_secs(2);

/// Which member, and how.
#[derive(Clone)]
pub struct CursorOptions {
    /// Connection string. Holds secrets: never shown, also not by Debug.
    pub uri: String,
    /// host:port of the member to take; None chooses a secondary on this machine, first of all the one that the chain
    /// of increments is with.
    pub node: Option<String>,
    /// Where the member's dbPath is seen from here, if not where the server says (a server in a container).
    pub dbpath: Option<PathBuf>,
    /// Granularity in MiB in which the server is to name changes, from its next base on; None keeps that of the chain,
    /// or takes [`DEFAULT_BLOCK_SIZE`]. If it differs from the chain's, a new history begins.
    pub block_size: Option<u32>,
    /// How long to wait for another backup cursor to be closed.
    pub patience: Duration,
    /// How long the server may take until its journal holds the restore time.
    pub extend_patience: Duration,
}

/// Granularity in MiB: changes are read in these units, so the smallest that servers take. PBM leaves it at the
/// server's 16, of which a random update dirties sixteen times as much.
pub const DEFAULT_BLOCK_SIZE: u32 = 1;

impl CursorOptions {
    /// With defaults for all but the connection string.
    pub fn new(uri: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            node: None,
            dbpath: None,
            block_size: None,
            patience: Duration::from_secs(120),
            extend_patience: Duration::from_secs(120),
        }
    }
}

impl fmt::Debug for CursorOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            uri: _,
            node,
            dbpath,
            block_size,
            patience,
            extend_patience,
        } = self;
        f.debug_struct("CursorOptions")
            .field("node", node)
            .field("dbpath", dbpath)
            .field("block_size", block_size)
            .field("patience", patience)
            .field("extend_patience", extend_patience)
            .finish_non_exhaustive()
    }
}

/// The `$backupCursor` source. Dropped while open, it closes the cursor in the background.
pub struct CursorSource {
    options: CursorOptions,
    wanted: Wanted,
    chosen: Option<(ClientOptions, Choice)>,
    cursor: Option<Kept>,
    closing: Closing,
}

impl fmt::Debug for CursorSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What was chosen holds the password.
        f.debug_struct("CursorSource")
            .field("options", &self.options)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl CursorSource {
    /// Nothing is asked before `open`.
    pub fn new(options: CursorOptions) -> Self {
        Self {
            options,
            wanted: Wanted::default(),
            chosen: None,
            cursor: None,
            closing: Closing::default(),
        }
    }

    async fn chosen(&mut self) -> Result<&(ClientOptions, Choice), SourceError> {
        match &mut self.chosen {
            Some(chosen) => Ok(chosen),
            none => {
                let chosen = member::choose(&self.options.uri, self.options.node.as_deref()).await?;
                Ok(none.insert(chosen))
            }
        }
    }

    /// Pins the first of `nodes` that is here, first of all one that knows what changed.
    async fn pin_best(
        &self,
        parsed: &ClientOptions,
        replset: String,
        mut nodes: Vec<String>,
    ) -> Result<(Kept, Pinned), SourceError> {
        let heads = &self.wanted.heads;
        let rank = |node: &String| {
            heads
                .iter()
                .position(|h| h.head.node == *node)
                .unwrap_or(heads.len())
        };
        nodes.sort_by_key(rank);
        let mut tried = Vec::new();
        for node in nodes {
            match self.pin(parsed, &node).await {
                Err(SourceError::NotThisServer { reason, dbpath, .. }) => {
                    tried.push(format!("{node}: {}: {reason}", dbpath.display()));
                }
                Err(SourceError::Unreachable { reason, .. }) => tried.push(format!("{node}: {reason}")),
                decided => return decided,
            }
        }
        Err(SourceError::NoLocalMember {
            replset,
            tried: tried.join("; "),
        })
    }

    async fn pin(&self, parsed: &ClientOptions, node: &str) -> Result<(Kept, Pinned), SourceError> {
        let on_node = |failure: CommandFailure| failure.on(node);
        let member = member::inspect(parsed, node, self.options.dbpath.as_deref()).await?;
        let info = node_info::collect(&member, SourceKind::BackupCursor)
            .await
            .map_err(on_node)?;
        // The cursor's own connection: it is asked for signs of life while the other one waits for the journal.
        let server = Server::connect(parsed, node).await.map_err(on_node)?;
        let opener = Opener {
            server: &server,
            info: &info,
            wanted: &self.wanted,
            options: &self.options,
            closing: &self.closing,
        };
        let opened = opener.open().await?;
        self.pin_opened(&member, info, opened).await
    }

    /// From here on the cursor is open; if this fails it is closed.
    async fn pin_opened(
        &self,
        member: &Member,
        info: NodeInfo,
        opened: Opened,
    ) -> Result<(Kept, Pinned), SourceError> {
        let node = member.server.node();
        let Opened {
            cursor,
            metadata,
            listed,
            name,
            step,
            since,
            reason,
        } = opened;
        let kept = Kept::start(cursor, node.to_owned(), BEAT_EVERY);
        let pinned = async {
            let mut info = info;
            let seen = metadata.dbpath.clone();
            let root = self.options.dbpath.clone().unwrap_or_else(|| seen.clone());
            let restore_time = restore_time(member, [metadata.checkpoint, metadata.oplog_end]).await?;
            let mut listed = listed;
            if let (Some(time), Some(id)) = (restore_time, &metadata.backup_id) {
                self.extend(member, id, time, &metadata.dbpath, &mut listed)
                    .await?;
            }
            let granted = granted(&listed, since.as_ref().map(|h| h.head.block_size));
            let ranges = changed_ranges(&listed);
            let described = blocking(move || {
                let files = files::describe(&root, &listed)?;
                Ok((root, listed.bytes_named(&files), files))
            });
            let (root, named, files) = described.await?;
            kept.check()?;
            let block_size = match step {
                Some(ChainStep::Increment) => granted,
                _ => Some(self.options.block_size.unwrap_or(DEFAULT_BLOCK_SIZE)),
            };
            let head = name.map(|name| ChainHead {
                node: info.node.clone().unwrap_or_else(|| node.to_owned()),
                replset_id: info.replica_set_id.clone().unwrap_or_default(),
                this_backup_name: name,
                block_size: block_size.unwrap_or(DEFAULT_BLOCK_SIZE),
                checkpoint_ts: metadata.checkpoint.map_or((0, 0), |ts| (ts.t, ts.i)),
            });
            info.operation_time = restore_time;
            info.chain = step.map(|step| ChainInfo {
                step,
                source_snapshot: since.as_ref().map(|head| head.snapshot.to_string()),
                reason,
                block_size,
                bytes_named: Some(named),
            });
            Ok(Pinned {
                root,
                files,
                left_out: Vec::new(),
                info,
                since: since.map(|head| Since {
                    snapshot: head.snapshot,
                    ranges,
                }),
                head,
            })
        };
        match pinned.await {
            Ok(pinned) => Ok((kept, pinned)),
            Err(error) => {
                // A lost cursor explains whatever else went wrong.
                let lost = kept.check().err();
                if let Err(trouble) = kept.close().await {
                    tracing::debug!(node, %trouble, "while closing the cursor after a failure");
                }
                Err(lost.unwrap_or(match error {
                    // No reason to look for another member: this one answered until its cursor was open.
                    SourceError::Unreachable { node, reason } => SourceError::CursorLost { node, reason },
                    other => other,
                }))
            }
        }
    }

    /// Adds the journal files that hold everything up to `time`.
    async fn extend(
        &self,
        member: &Member,
        backup_id: &Bson,
        time: Timestamp,
        dbpath: &std::path::Path,
        listed: &mut Listed,
    ) -> Result<(), SourceError> {
        let node = member.server.node();
        let limit = self.options.extend_patience;
        let time = Bson::Timestamp(Ts {
            time: time.t,
            increment: time.i,
        });
        let taken = extend(&member.server, backup_id, time, limit, |document| {
            listed.add(document, dbpath, false)
        });
        match taken.await {
            Ok(taken) => taken.map_err(|what| SourceError::CursorDocument {
                node: node.into(),
                what,
            }),
            // MaxTimeMSExpired.
            Err(CommandFailure::Refused { code: 50, .. }) => Err(SourceError::ExtendTimeout {
                node: node.into(),
                seconds: limit.as_secs(),
            }),
            Err(failure) => Err(open::stage_failure(failure, "$backupCursorExtend").on(node)),
        }
    }
}

/// The moment to which the snapshot will restore: the last write that a majority had once the cursor was open, or what
/// the files hold if that is later. None for a server without oplog.
async fn restore_time(
    member: &Member,
    held: [Option<Timestamp>; 2],
) -> Result<Option<Timestamp>, SourceError> {
    let on_node = |failure: CommandFailure| failure.on(member.server.node());
    let hello = member.server.hello().await.map_err(on_node)?;
    let majority = hello
        .0
        .get_document("lastWrite")
        .and_then(|last| last.get_document("majorityOpTime"))
        .and_then(|optime| optime.get_timestamp("ts"))
        .ok()
        .map(|ts| Timestamp {
            t: ts.time,
            i: ts.increment,
        });
    // Without an oplog there is nothing to carry on.
    Ok(majority.map(|majority| held.into_iter().flatten().fold(majority, Timestamp::max)))
}

/// Granularity in MiB that the ranges show; that of the chain if too little changed to tell.
fn granted(listed: &Listed, chain: Option<u32>) -> Option<u32> {
    // Runs of granules, or a single one far from the beginning, show a multiple. That so many ranges do so by chance is as
    // likely as one in millions.
    const ENOUGH: usize = 12;
    let seen = listed.granularity().map(|(bytes, of)| (bytes >> 20, of));
    match (seen, chain) {
        (Some((seen, of)), Some(chain))
            if of < ENOUGH && seen >= u64::from(chain) && seen.is_multiple_of(u64::from(chain.max(1))) =>
        {
            Some(chain)
        }
        (Some((seen, _)), _) => u32::try_from(seen).ok().filter(|mib| *mib > 0),
        (None, chain) => chain,
    }
}

fn changed_ranges(listed: &Listed) -> HashMap<String, Vec<std::ops::Range<u64>>> {
    let partly = listed.files.iter().filter(|(_, file)| !file.whole);
    partly
        .map(|(path, file)| (path.clone(), file.ranges.clone()))
        .collect()
}

#[async_trait]
impl Source for CursorSource {
    async fn replset(&mut self) -> Result<Option<String>, SourceError> {
        let (parsed, choice) = self.chosen().await?;
        match choice {
            Choice::BestOf { replset, .. } => Ok(Some(replset.clone())),
            Choice::Only(node) => {
                let hello = Server::anonymous_hello(parsed, node)
                    .await
                    .map_err(|failure| failure.on(node))?;
                Ok(hello.text("setName").map(str::to_owned))
            }
        }
    }

    fn want(&mut self, wanted: Wanted) {
        self.wanted = wanted;
    }

    async fn open(&mut self) -> Result<Pinned, SourceError> {
        self.chosen().await?;
        let (parsed, choice) = self.chosen.take().ok_or(SourceError::NotOpen)?;
        let (cursor, pinned) = match choice {
            Choice::Only(node) => self.pin(&parsed, &node).await?,
            Choice::BestOf { replset, nodes } => self.pin_best(&parsed, replset, nodes).await?,
        };
        self.cursor = Some(cursor);
        Ok(pinned)
    }

    fn check(&self) -> Result<(), SourceError> {
        self.cursor.as_ref().ok_or(SourceError::NotOpen)?.check()
    }

    async fn release(&mut self) -> Result<(), SourceError> {
        let closed = match self.cursor.take() {
            Some(cursor) => cursor.close().await,
            None => Err(SourceError::NotOpen),
        };
        // Of an opening that was broken off.
        self.closing.wait().await;
        closed
    }
}
