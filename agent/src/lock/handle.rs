//! The parent's end of the guard: starts it, hears it, and unlocks in its place should it die.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use mongodb::bson::oid::ObjectId;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::guard::GUARD_ARGUMENT;
use super::protocol::{Order, Report, UNLOCKED, WENT_AWAY};
use crate::error::SourceError;
use crate::node::server::{CommandFailure, Server, Settled};
use crate::source::Timestamp;

/// How long the guard may take to log in. Nothing is locked yet.
const START: Duration = Duration::from_secs(30);
/// How long an unlock may take, with everything that can go wrong on the way.
const UNLOCK: Duration = Duration::from_secs(30);

/// How to start the guard process.
#[derive(Clone, Debug)]
pub struct GuardCommand {
    /// An executable whose `main` calls [`super::guard::run`] when it is given `args`.
    pub program: PathBuf,
    /// Never secrets: everybody can read them.
    pub args: Vec<OsString>,
}

impl Default for GuardCommand {
    /// This program itself, also after its file was replaced by an upgrade.
    fn default() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            args: vec![GUARD_ARGUMENT.into()],
        }
    }
}

/// What is known of the guard. Only ever added to.
#[derive(Clone, Debug, Default)]
struct Status {
    ready: bool,
    process_id: Option<ObjectId>,
    asked_to_lock: bool,
    locked: Option<(i64, Option<Timestamp>)>,
    failed: Option<CommandFailure>,
    lost: Option<String>,
    /// Some(true): the server acknowledged the guard's unlock; Some(false): there was nothing to unlock.
    unlocked: Option<bool>,
    /// The process ended and all is settled.
    ended: bool,
}

/// A running guard. Dropping it closes the pipe, and so unlocks.
#[derive(Debug)]
pub(crate) struct GuardHandle {
    node: String,
    pid: Option<u32>,
    stdin: Option<ChildStdin>,
    status: watch::Sender<Status>,
}

impl GuardHandle {
    /// Starts a guard and waits until it has logged in. `reserve` is a connection of our own, already logged in,
    /// that unlocks if the guard dies.
    pub(crate) async fn start(
        command: &GuardCommand,
        uri: &str,
        reserve: Server,
    ) -> Result<Self, SourceError> {
        let broken = |reason: String| SourceError::Guard { reason };
        let mut child = Command::new(&command.program)
            .args(&command.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It outlives us by some seconds: it may not keep somebody's pipe open, nor write to a terminal that
            // has moved on.
            .stderr(Stdio::null())
            .kill_on_drop(false)
            .spawn()
            .map_err(|error| {
                broken(format!(
                    "{} cannot be started: {error}",
                    command.program.display()
                ))
            })?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(broken("no pipes".into()));
        };

        let nonce = format!("pbm-fs lock {}", ObjectId::new());
        let node = reserve.node().to_owned();
        let status = watch::Sender::new(Status::default());
        let mut guard = Self {
            node: node.clone(),
            pid: child.id(),
            stdin: Some(stdin),
            status: status.clone(),
        };
        tokio::spawn(
            Listener {
                child,
                status,
                reserve,
                nonce: nonce.clone(),
            }
            .listen(stdout),
        );

        guard
            .say(&Order::Connect {
                uri: uri.to_owned(),
                node,
                nonce,
            })
            .await;
        match timeout(START, guard.until(|status| status.ready)).await {
            Ok(result) => result.map(|_| guard),
            Err(_) => Err(broken(format!("it did not log in within {} s", START.as_secs()))),
        }
    }

    /// Locks, and returns the server's `lockCount` and `operationTime`. When the time is over, or the future is
    /// dropped, the guard still waits for the server's answer and then unlocks.
    pub(crate) async fn lock(&mut self, patience: Duration) -> Result<(i64, Option<Timestamp>), SourceError> {
        self.status.send_modify(|status| status.asked_to_lock = true);
        self.say(&Order::Lock).await;
        let locked = timeout(patience, self.until(|status| status.locked.is_some())).await;
        match locked {
            Ok(result) => result.map(|status| status.locked.unwrap_or((1, None))),
            Err(_) => {
                self.stdin = None;
                Err(SourceError::LockTimeout {
                    node: self.node.clone(),
                    seconds: patience.as_secs(),
                })
            }
        }
    }

    /// Whether all is well, as far as was heard.
    pub(crate) fn check(&self) -> Result<(), SourceError> {
        self.trouble(&self.status.borrow()).map_or(Ok(()), Err)
    }

    /// Unlocks. Ok only if the server acknowledged it and nothing was lost before.
    pub(crate) async fn unlock(mut self) -> Result<(), SourceError> {
        self.say(&Order::Unlock).await;
        let mut status = self.status.subscribe();
        let ended = timeout(
            UNLOCK,
            status.wait_for(|status| status.ended || status.unlocked.is_some()),
        )
        .await;
        let lost = |reason: String| SourceError::Lost {
            node: self.node.clone(),
            reason,
        };
        let Ok(Ok(status)) = ended else {
            return Err(lost(format!(
                "the unlock was not acknowledged within {} s",
                UNLOCK.as_secs()
            )));
        };
        match (&status.lost, status.unlocked) {
            (Some(reason), _) => Err(lost(reason.clone())),
            (None, Some(true)) => Ok(()),
            (None, _) => Err(lost(UNLOCKED.into())),
        }
    }

    /// The guard's process id.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    async fn until(&self, done: impl Fn(&Status) -> bool) -> Result<Status, SourceError> {
        let mut status = self.status.subscribe();
        let seen = status
            .wait_for(|status| done(status) || self.trouble(status).is_some())
            .await;
        let Ok(seen) = seen else {
            return Err(SourceError::Guard {
                reason: "nobody listens to it".into(),
            });
        };
        self.trouble(&seen).map_or_else(|| Ok(seen.clone()), Err)
    }

    fn trouble(&self, status: &Status) -> Option<SourceError> {
        let node = || self.node.clone();
        if let Some(failure) = &status.failed {
            Some(failure.clone().on(&self.node))
        } else if let Some(reason) = &status.lost {
            Some(SourceError::Lost {
                node: node(),
                reason: reason.clone(),
            })
        } else if status.ended && !status.asked_to_lock {
            Some(SourceError::Guard {
                reason: "it ended before it had logged in".into(),
            })
        } else if status.ended || status.unlocked.is_some() {
            Some(SourceError::Lost {
                node: node(),
                reason: "it was unlocked".into(),
            })
        } else {
            None
        }
    }

    /// A guard that is gone is noticed by the listener.
    async fn say(&mut self, order: &Order) {
        let Some(stdin) = &mut self.stdin else { return };
        let Ok(mut line) = serde_json::to_vec(order) else {
            return;
        };
        line.push(b'\n');
        if let Err(error) = stdin.write_all(&line).await {
            tracing::debug!(node = self.node, %error, "the guard does not listen");
        }
    }
}

/// Hears the guard to its end, in a task that outlives the handle.
struct Listener {
    child: Child,
    status: watch::Sender<Status>,
    reserve: Server,
    nonce: String,
}

impl Listener {
    async fn listen(mut self, stdout: ChildStdout) {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            match serde_json::from_str(&line) {
                Ok(report) => self.note(report),
                Err(error) => {
                    tracing::warn!(%error, "the guard said something strange");
                    break;
                }
            }
        }
        self.take_over().await;
        self.status.send_modify(|status| status.ended = true);
        let _ = self.child.wait().await;
    }

    fn note(&self, report: Report) {
        self.status.send_modify(|status| match report {
            Report::Ready { process_id } => {
                status.ready = true;
                status.process_id = process_id.and_then(|hex| ObjectId::parse_str(hex).ok());
            }
            Report::Locked {
                lock_count,
                operation_time,
            } => status.locked = Some((lock_count, operation_time)),
            Report::Lost { reason } => status.lost = Some(reason),
            Report::Unlocked { .. } => status.unlocked = Some(true),
            Report::NothingToUnlock => status.unlocked = Some(false),
            Report::Gone => {
                status.lost.get_or_insert_with(|| WENT_AWAY.into());
                status.unlocked = Some(false);
            }
            Report::Failed { failure } => status.failed = Some(failure),
        });
    }

    /// The guard ended without a word about its lock: it was killed, and the lock is ours to end. The backup is
    /// lost at once, because from now on nothing protects the server from our own death.
    async fn take_over(&self) {
        let status = self.status.borrow().clone();
        if !status.asked_to_lock || status.unlocked.is_some() || status.failed.is_some() {
            return;
        }
        self.status.send_modify(|status| {
            status
                .lost
                .get_or_insert_with(|| "the process that guards the lock was killed".into());
        });
        let node = self.reserve.node();
        tracing::warn!(
            node,
            "the process that guards the lock was killed: unlocking in its place"
        );
        match self.reserve.settle(&self.nonce, status.process_id).await {
            Settled::Unlocked { .. } => tracing::info!(node, "unlocked"),
            Settled::NotLocked => tracing::info!(node, "it was not locked any more"),
            Settled::Gone => tracing::warn!(node, "the server is gone, and its lock with it"),
        }
    }
}
