//! A live MongoDB Community member as a source: lock with `fsyncLock`, read, unlock.
//!
//! Under the lock the server writes nothing but `diagnostic.data` (and its log, if that lies in the dbPath), and
//! the file `WiredTiger.backup` names a complete checkpoint with every write up to the lock's `operationTime`. That
//! file is also our witness: it appears with the first lock and disappears with the last unlock. Made anew by our
//! lock, it proves that the directory we read belongs to the server we locked; the same file still being there at
//! the end proves that nobody unlocked in between.
//!
//! Who unlocks, whatever dies: see [`guard`].

pub mod guard;
mod handle;
mod hashes;
mod protocol;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use mongodb::options::ClientOptions;
use pbmfs_dbpath::JournalPolicy;

pub use handle::GuardCommand;

use crate::directory::blocking;
use crate::error::SourceError;
use crate::node::member::{self, Choice, Member};
use crate::node::node_info;
use crate::node::server::{CommandFailure, Server};
use crate::source::{MemberRole, NodeInfo, Pinned, Source, SourceKind};
use crate::walk::{self, Fingerprint};
use handle::GuardHandle;

/// What to lock, and how.
#[derive(Clone)]
pub struct LockOptions {
    /// Connection string. Holds secrets: never shown, also not by Debug.
    pub uri: String,
    /// host:port of the member to lock; None chooses a secondary on this machine.
    pub node: Option<String>,
    /// Where the member's dbPath is seen from here, if not where the server says (a server in a container).
    pub dbpath: Option<PathBuf>,
    /// Record `dbHash` and counts under the lock. Reads every document, with writes blocked all the while.
    pub record_hashes: bool,
    /// How long the server may take to grant the lock. It waits for running operations, and new writes wait with
    /// it; the wait itself cannot be called off, so this only decides when the backup fails: the guard stays behind
    /// and unlocks as soon as the server grants the lock.
    pub patience: Duration,
    /// How to start the guard process.
    pub guard: GuardCommand,
}

impl LockOptions {
    /// With defaults for all but the connection string.
    pub fn new(uri: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            node: None,
            dbpath: None,
            record_hashes: false,
            patience: Duration::from_secs(120),
            guard: GuardCommand::default(),
        }
    }
}

impl fmt::Debug for LockOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            uri: _,
            node,
            dbpath,
            record_hashes,
            patience,
            guard,
        } = self;
        f.debug_struct("LockOptions")
            .field("node", node)
            .field("dbpath", dbpath)
            .field("record_hashes", record_hashes)
            .field("patience", patience)
            .field("guard", guard)
            .finish_non_exhaustive()
    }
}

/// The `fsyncLock` source. Dropped while open, it unlocks through the guard within seconds.
#[derive(Debug)]
pub struct FsyncLockSource {
    options: LockOptions,
    pin: Option<Pin>,
}

/// A lock that is on.
#[derive(Debug)]
struct Pin {
    guard: GuardHandle,
    node: String,
    witness: Witness,
}

/// `WiredTiger.backup`, as our lock made it.
#[derive(Debug)]
struct Witness {
    path: PathBuf,
    made: Fingerprint,
}

impl FsyncLockSource {
    /// Nothing is asked before `open`.
    pub fn new(options: LockOptions) -> Self {
        Self { options, pin: None }
    }

    /// Process id of the guard while open.
    pub fn guard_pid(&self) -> Option<u32> {
        self.pin.as_ref().and_then(|pin| pin.guard.pid())
    }

    /// Pins the first of `nodes` that is here.
    async fn pin_best(
        &self,
        parsed: &ClientOptions,
        replset: String,
        nodes: Vec<String>,
    ) -> Result<(Pin, Pinned), SourceError> {
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

    async fn pin(&self, parsed: &ClientOptions, node: &str) -> Result<(Pin, Pinned), SourceError> {
        let on_node = |failure: CommandFailure| failure.on(node);
        let member = member::inspect(parsed, node, self.options.dbpath.as_deref()).await?;
        if member.server.is_locked().await.map_err(on_node)? {
            return Err(SourceError::AlreadyLocked { node: node.into() });
        }
        let info = node_info::collect(&member, SourceKind::FsyncLock)
            .await
            .map_err(on_node)?;

        // Logged in before the lock, and used for nothing but to unlock if the guard dies.
        let reserve = Server::connect(parsed, node).await.map_err(on_node)?;
        let mut guard = GuardHandle::start(&self.options.guard, &self.options.uri, reserve).await?;
        // From here on a dropped future drops the guard's pipe, and with it the lock.
        match self.lock(&mut guard, &member, info).await {
            Ok((witness, pinned)) => Ok((
                Pin {
                    guard,
                    node: node.into(),
                    witness,
                },
                pinned,
            )),
            // The server cannot be kept from granting it some time; the guard waits for that, and unlocks.
            Err(error @ SourceError::LockTimeout { .. }) => Err(error),
            Err(error) => {
                if let Err(trouble) = guard.unlock().await {
                    tracing::debug!(node, %trouble, "while unlocking after a failure");
                }
                Err(match error {
                    // No reason to look for another member: this one answered until it was locked.
                    SourceError::Unreachable { node, reason } => SourceError::Lost {
                        node,
                        reason: format!("the server went away: {reason}"),
                    },
                    // Under the lock nothing changes.
                    SourceError::Changed { .. } => SourceError::Lost {
                        node: node.into(),
                        reason: protocol::UNLOCKED.into(),
                    },
                    other => other,
                })
            }
        }
    }

    /// Locks and looks at what is locked. If this fails the caller unlocks.
    async fn lock(
        &self,
        guard: &mut GuardHandle,
        member: &Member,
        mut info: NodeInfo,
    ) -> Result<(Witness, Pinned), SourceError> {
        let node = member.server.node();
        let backup_file = member.dbpath.join("WiredTiger.backup");
        let before = Fingerprint::at(&backup_file)?;

        let (lock_count, operation_time) = guard.lock(self.options.patience).await?;
        // None at all is what a server says that unlocks because it is shutting down: see the witness.
        if lock_count > 1 {
            return Err(SourceError::AlreadyLocked { node: node.into() });
        }
        let witness = match Witness::of_lock(backup_file, before, member) {
            Err(error @ SourceError::NotThisServer { .. }) => {
                return Err(lost_already(member).await.unwrap_or(error));
            }
            other => other?,
        };
        info.operation_time = operation_time;
        tracing::debug!(node, ?operation_time, "locked");

        let root = member.dbpath.clone();
        let listing = blocking(move || walk::list(&root, JournalPolicy::LeaveOut)).await?;
        if self.options.record_hashes {
            info.hashes = Some(
                hashes::record(&member.server)
                    .await
                    .map_err(|failure| failure.on(node))?,
            );
        }
        guard.check()?;
        witness.still_there(node)?;
        let (root, files) = (member.dbpath.clone(), listing.files);
        Ok((
            witness,
            Pinned {
                root,
                files,
                left_out: listing.left_out,
                info,
                since: None,
                head: None,
            },
        ))
    }
}

/// A server that unlocks as soon as it has locked, because it is shutting down for instance, leaves no witness either.
async fn lost_already(member: &Member) -> Option<SourceError> {
    let reason = match member.server.is_locked().await {
        Ok(true) => return None,
        Ok(false) => "it was unlocked at once".into(),
        Err(failure) => format!("the server went away: {failure}"),
    };
    Some(SourceError::Lost {
        node: member.server.node().into(),
        reason,
    })
}

impl Witness {
    /// The lock makes `WiredTiger.backup` anew. If it did not do so here, we locked a server and look at another's
    /// files.
    fn of_lock(path: PathBuf, before: Option<Fingerprint>, member: &Member) -> Result<Self, SourceError> {
        match Fingerprint::at(&path)? {
            Some(made) if Some(made) != before => Ok(Self { path, made }),
            _ => Err(SourceError::NotThisServer {
                node: member.server.node().into(),
                dbpath: member.dbpath.clone(),
                reason: "WiredTiger.backup did not appear in it with the lock".into(),
            }),
        }
    }

    fn still_there(&self, node: &str) -> Result<(), SourceError> {
        if Fingerprint::at(&self.path)? == Some(self.made) {
            Ok(())
        } else {
            Err(SourceError::Lost {
                node: node.into(),
                reason: protocol::UNLOCKED.into(),
            })
        }
    }
}

impl Pin {
    fn check(&self) -> Result<(), SourceError> {
        self.guard.check()?;
        self.witness.still_there(&self.node)
    }
}

#[async_trait]
impl Source for FsyncLockSource {
    async fn open(&mut self) -> Result<Pinned, SourceError> {
        let (parsed, choice) = member::choose(&self.options.uri, self.options.node.as_deref()).await?;
        let (pin, pinned) = match choice {
            Choice::Only(node) => self.pin(&parsed, &node).await?,
            Choice::BestOf { replset, nodes } => self.pin_best(&parsed, replset, nodes).await?,
        };
        if pinned.info.role == Some(MemberRole::Primary) {
            tracing::info!(
                node = pin.node,
                "locked the primary: its writes wait until the files are read"
            );
        }
        self.pin = Some(pin);
        Ok(pinned)
    }

    fn check(&self) -> Result<(), SourceError> {
        self.pin.as_ref().ok_or(SourceError::NotOpen)?.check()
    }

    async fn release(&mut self) -> Result<(), SourceError> {
        let pin = self.pin.take().ok_or(SourceError::NotOpen)?;
        let held = pin.check();
        let unlocked = pin.guard.unlock().await;
        held.and(unlocked)
    }
}
