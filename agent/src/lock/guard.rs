//! The guard: a process of its own that locks, watches and unlocks.
//!
//! `fsyncLock` outlives the connection that asked for it, so whoever locks must live to unlock. A backup may be
//! killed at any moment, kill -9 included; the guard is not. It shares nothing with its parent but a pipe, and the
//! kernel closes that pipe whatever way the parent dies. It lives in a session of its own and ignores the signals
//! that a terminal or a service manager sends to a whole group.
//!
//! It makes the lock itself, so that there is no moment in which a lock exists that no guard knows of. Should the
//! guard be killed, the parent sees its stdout end and unlocks (see `lock/handle.rs`). Only when both are killed
//! in the same instant does the lock stay, until `db.fsyncUnlock()`.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;

use mongodb::bson::oid::ObjectId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval};

use super::protocol::{Order, Report, UNLOCKED, WENT_AWAY};
use crate::node::server::{CommandFailure, Server, Settled, parse_uri};

/// The first argument that makes the program a guard; hidden from its help.
pub const GUARD_ARGUMENT: &str = "__lock-guard";

/// How often the server is asked whether our lock still is on.
const WATCH: Duration = Duration::from_secs(1);

/// The whole life of a guard process. Returns when nothing is locked any more, or when there is nothing left to try.
///
/// Must be the only thing that the process does, and come before any runtime is started: it leaves the session, takes
/// over the signals, and blocks on a runtime of its own. The error is that of a machine without threads or descriptors
/// left; nothing was locked then.
pub fn run(stdin: impl Read + Send + 'static, stdout: impl Write) -> std::io::Result<()> {
    // Fails only for a leader of a process group, which then has a group of its own already.
    let _ = rustix::process::setsid();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        ignore_signals()?;
        Guard {
            orders: listen(stdin),
            stdout,
        }
        .live()
        .await;
        Ok(())
    })
}

/// A handler that does nothing stays installed for the life of the process, also when its stream is dropped.
fn ignore_signals() -> std::io::Result<()> {
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ] {
        drop(signal(kind)?);
    }
    Ok(())
}

/// Reads orders on a thread of its own; the channel closes when stdin ends, or says something strange.
fn listen(stdin: impl Read + Send + 'static) -> UnboundedReceiver<Order> {
    let (sender, receiver) = unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdin).lines() {
            let Some(order) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else {
                break;
            };
            if sender.send(order).is_err() {
                break;
            }
        }
    });
    receiver
}

struct Guard<W> {
    orders: UnboundedReceiver<Order>,
    stdout: W,
}

/// The connections of a guard, all logged in before the lock.
struct Connections {
    /// Locks and unlocks.
    key: Server,
    /// Asks every second. Apart from the other, so that a question without an answer cannot cost the key.
    watch: Server,
    nonce: String,
    process_id: Option<ObjectId>,
}

impl<W: Write> Guard<W> {
    async fn live(mut self) {
        let Some(Order::Connect { uri, node, nonce }) = self.orders.recv().await else {
            return;
        };
        let connections = match connect(&uri, &node, nonce).await {
            Ok(connections) => connections,
            Err(failure) => return self.report(&Report::Failed { failure }),
        };
        drop(uri);
        self.report(&Report::Ready {
            process_id: connections.process_id.map(ObjectId::to_hex),
        });

        let Some(Order::Lock) = self.orders.recv().await else {
            return;
        };
        // Not interrupted when the parent dies: the server would lock all the same.
        match connections.key.lock(&connections.nonce).await {
            Ok((lock_count, operation_time)) => self.report(&Report::Locked {
                lock_count,
                operation_time,
            }),
            Err(failure) if failure.is_unknown_outcome() => {
                let reason = format!("the server went away while it was locking: {failure}");
                self.report(&Report::Lost { reason });
                let report = settled(connections.settle().await);
                return self.report(&report);
            }
            Err(failure) => return self.report(&Report::Failed { failure }),
        }
        if let Some(reason) = self.watch(&connections).await {
            self.report(&Report::Lost { reason });
        }
        let report = connections.unlock().await;
        self.report(&report);
    }

    /// Returns when it is time to unlock: because the parent said so or is gone (None), or because the lock was lost.
    async fn watch(&mut self, connections: &Connections) -> Option<String> {
        let mut clock = interval(WATCH);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = self.orders.recv() => return None,
                lost = async {
                    clock.tick().await;
                    connections.ask().await
                } => if lost.is_some() {
                    return lost;
                },
            }
        }
    }

    /// The parent may be dead: then nobody listens, and that is fine.
    fn report(&mut self, report: &Report) {
        if let Ok(mut line) = serde_json::to_vec(report) {
            line.push(b'\n');
            let _ = self.stdout.write_all(&line).and_then(|()| self.stdout.flush());
        }
    }
}

async fn connect(uri: &str, node: &str, nonce: String) -> Result<Connections, CommandFailure> {
    let options = parse_uri(uri).await?;
    let key = Server::connect(&options, node).await?;
    let watch = Server::connect(&options, node).await?;
    let process_id = watch.hello().await?.process_id();
    Ok(Connections {
        key,
        watch,
        nonce,
        process_id,
    })
}

impl Connections {
    /// One look at the lock; the reason if it is not ours any more.
    async fn ask(&self) -> Option<String> {
        match self.watch.is_locked().await {
            Ok(true) => None,
            Ok(false) => match self.watch.hello().await {
                Ok(hello) if hello.process_id() == self.process_id => Some(UNLOCKED.into()),
                _ => Some(WENT_AWAY.into()),
            },
            Err(CommandFailure::Unreachable { reason }) => Some(format!("the server went away: {reason}")),
            Err(failure) => Some(format!("the server refused to tell: {failure}")),
        }
    }

    /// Unlocks once; if the answer is lost, until it is known that nothing of ours is locked.
    async fn unlock(&self) -> Report {
        match self.key.unlock().await {
            Ok(Some(remaining)) => Report::Unlocked { remaining },
            Ok(None) => Report::NothingToUnlock,
            Err(_) => settled(self.settle().await),
        }
    }

    async fn settle(&self) -> Settled {
        self.key.settle(&self.nonce, self.process_id).await
    }
}

fn settled(settled: Settled) -> Report {
    match settled {
        Settled::Unlocked { remaining } => Report::Unlocked { remaining },
        Settled::NotLocked => Report::NothingToUnlock,
        Settled::Gone => Report::Gone,
    }
}

#[cfg(test)]
mod tests;
