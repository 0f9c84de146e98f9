//! A server with `$backupCursor`, for tests: a proxy in front of a Community mongod.
//!
//! No binary with the stage can be had for tests, so this one answers `$backupCursor`, `$backupCursorExtend` and the
//! getMore and killCursors of their cursors, and passes everything else through, byte for byte, each client on an upstream
//! connection of its own, so that logins, sessions and exhaust streams work as they do without it. It follows the sources
//! of Percona Server for MongoDB, of MongoDB and of WiredTiger; where they are silent or differ it says so below.
//!
//! **What it promises**
//!
//! - *The pin.* Opening a cursor locks the real server, copies its files, links its journal, and unlocks. What
//!   `metadata.dbpath` names is the copy: it stays what it was at that moment, with the `WiredTiger.backup` that the
//!   lock's own backup cursor made. The journal's files are linked from then on as they appear, and an extend that finds
//!   one missing in the middle fails. Closing the cursor removes the pin.
//! - *The cursor.* One at a time (50886). It is tailable: when all documents were given, getMore gives empty batches, and
//!   the id never becomes 0 (`TailableModeEnum::kTailable` in both servers). It belongs to the server and not to the
//!   connection: it outlives the connection that opened it, but dies when its session is ended, when nobody asks for
//!   [`CursorServerOptions::timeout`], and when the real server goes away. A client that hangs up while the cursor is being
//!   opened leaves none behind. A getMore has to come in the session that opened it (50736–50738), from whichever
//!   connection, and not while another one is under way (12051).
//! - *The documents* are made in batches of [`CursorServerOptions::batch`] as they are asked for, each with the size that
//!   its file has then: the scribbled bytes behind the ends show in it, so that a file may have two sizes.
//! - *Privileges.* Both stages want `fsync` on the cluster, as both servers do; `hostManager` has it, `backup` has not.
//! - *Increments.* Two names are remembered, in slots that are taken as WiredTiger takes them; the granularity is that of
//!   the first incremental cursor since history began, refused or not. A range is a whole granule, the last one of a file
//!   reaches past its end. WiredTiger's own files (`WiredTigerHS.wt` too) and the journal are always named whole. A range is
//!   named if a sector in it differs from the source's pin, or was free there at its checkpoint and is not now.
//!   `{disableIncrementalBackup: true}` gives a cursor that names no file, as Percona's does.
//! - *The extend.* It waits until the member has applied the time and a majority has it (or `maxTimeMS` is over: 50), then
//!   has WiredTiger begin a new journal file, by a short lock, and names the finished ones that were not named before.
//! - *As bad as a live server.* A thread scribbles on extents that are free at the pinned checkpoint and appends garbage
//!   behind the ends of tables, as far as a seed says ([`CursorServerOptions::scribble`]).
//! - *Faults*, see [`faults`].
//!
//! **What it cannot imitate**
//!
//! - The lock: writes wait for as long as the copy takes, which on a real server they do not.
//! - `metadata.dbpath` is not the dbPath that `getCmdLineOpts` tells.
//! - WiredTiger names every block that was allocated since the source, also one that was freed again or holds the same
//!   bytes; here only what differs and what may matter is named. It names a file that was renamed whole; nothing is renamed
//!   here.
//! - History outlives every restart of the real server, a kill too ([`CursorServer::forget_history`] ends it). WiredTiger
//!   keeps what it had written down with a checkpoint.
//! - A cursor in a session times out here as one without a session does; a real server ends it with the session, 30
//!   minutes after it was last used.
//! - With Percona, `killCursors` waits for an extend that is under way. Here the extend fails.
//! - A getMore without a `batchSize` gives no more than one batch; real servers give what fits into 16 MB.
//! - A getMore whose client went away has no effect here unless [`Fault::HangUp`] says so. A real server does not see that
//!   while it works, and keeps the cursor; one that it interrupts for it (279) loses the cursor.
//!
//! **Log removal.** `--wiredTigerEngineConfigString=log=(archive=false)` switches it off on 4.4, 5.0 and 6.0 alike
//! (`remove=false` is known to 6.0 alone). It is not needed for what tests do: a file would have to be filled, followed by a
//! checkpoint and removed between two looks, 10 ms apart.

mod connection;
mod documents;
mod extend;
pub mod failure;
pub mod faults;
mod feed;
mod free_space;
mod history;
mod journal;
mod open;
mod pin;
mod scribble;
mod server;
mod tls;
mod upstream;
mod wire;

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{runtime::Builder, sync::oneshot};

pub use documents::{BackupOptions, Style};
pub use faults::{Fault, Faults, Oddities, When};
pub use feed::GROWTH;
pub use history::NamedRange;
pub use scribble::Scribbled;
pub use server::{Seen, SeenCommand};
pub use tls::Tls;

use crate::{
    error::{Doing, Result, RigError},
    mongod::Mongod,
    port::PortLease,
};
use server::Server;
use upstream::Upstream;

/// How a cursor server behaves.
#[derive(Clone, Debug)]
pub struct CursorServerOptions {
    /// How it words its documents.
    pub style: Style,
    /// How long a cursor lives without a getMore; a mongod's `cursorTimeoutMillis` is ten minutes.
    pub timeout: Duration,
    /// So many documents are made at a time.
    pub batch: usize,
    /// Whether tables grow by [`GROWTH`] from one batch to the next.
    pub grow: bool,
    /// The seed of the scribbling; `None` leaves the pin alone.
    pub scribble: Option<u64>,
    /// With TLS on both sides, which the real server has to be started with.
    pub tls: Option<Tls>,
    /// Where pins are made; on the file system of the dbPath, because of the hard links. Beside it unless this is set.
    pub place: Option<PathBuf>,
}

impl Default for CursorServerOptions {
    fn default() -> Self {
        Self {
            style: Style::Percona,
            timeout: Duration::from_secs(600),
            batch: feed::BATCH,
            grow: false,
            scribble: Some(1),
            tls: None,
            place: None,
        }
    }
}

/// A running proxy. It has threads of its own, so a test may block. Dropped, it closes all connections, unlocks the server
/// if it was just opening a cursor, and removes its files.
#[derive(Debug)]
pub struct CursorServer {
    server: Arc<Server>,
    port: Arc<PortLease>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl CursorServer {
    /// Starts one in front of this server, which may be stopped and started again on its port meanwhile. If it wants a
    /// login, see [`CursorServer::log_in`].
    pub fn start(upstream: &Mongod, options: CursorServerOptions) -> Result<Self> {
        let port = Arc::new(PortLease::take()?);
        let ends = options.tls.as_ref().map(Tls::prepare).transpose()?;
        let listener = TcpListener::bind(port.host()).doing(format_args!("listening on {}", port.host()))?;
        listener.set_nonblocking(true).doing("preparing a socket")?;
        let place = options
            .place
            .clone()
            .unwrap_or_else(|| upstream.dbpath().with_added_extension("pins"));
        let upstream = Upstream::of(upstream, options.tls.clone());
        let server = Arc::new(Server::new(upstream, place, options));
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let run = {
            let server = Arc::clone(&server);
            move || {
                let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                let _ = ready.send(Ok(()));
                runtime.block_on(accept(server, listener, ends, stopped));
            }
        };
        let thread = thread::Builder::new().name("rig-cursor-server".into()).spawn(run);
        let thread = thread.doing("starting a thread")?;
        is_ready
            .recv()
            .map_err(|_| RigError::Check("the cursor server did not start".into()))?
            .doing("starting the cursor server")?;
        Ok(Self {
            server,
            port,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// How the proxy itself logs in, for the lock: a user that may do everything.
    pub fn log_in(&self, user: &str, password: &str) {
        self.server.upstream.log_in(user, password);
    }

    /// `127.0.0.1:<port>`, for the configuration of a set and for connection strings.
    pub fn address(&self) -> String {
        self.port.host()
    }

    /// Reaches this server and no other member of its set. Without TLS and without a login.
    pub fn uri(&self) -> String {
        format!("mongodb://{}/?directConnection=true", self.address())
    }

    /// What is to go wrong.
    pub fn faults(&self) -> &Faults {
        &self.server.faults
    }

    /// Forgets the names of earlier backups, as a server does whose history was switched off or lost.
    pub fn forget_history(&self) {
        // The mutex is one for async code; this is a test's thread, or one of its runtime's.
        futures::executor::block_on(self.server.forget_history());
    }

    /// The commands that were answered here and not by the real server.
    pub fn seen(&self) -> Vec<Seen> {
        self.server.seen()
    }

    /// The options of all `$backupCursor`, in order, with the code of those that were refused.
    pub fn opened(&self) -> Vec<(BackupOptions, Option<i32>)> {
        let options = |seen: Seen| match seen.command {
            SeenCommand::Open(options) => Some((options, seen.code)),
            _ => None,
        };
        self.seen().into_iter().filter_map(options).collect()
    }

    /// How often a client wanted history to be forgotten, by `disableIncrementalBackup`, refused or not.
    pub fn asked_to_forget(&self) -> usize {
        self.opened()
            .iter()
            .filter(|(options, _)| options.disable)
            .count()
    }

    /// What was named to each backup, by `thisBackupName`; what cursors without a name were told stands under "". The
    /// journal of extends is not among it.
    pub fn ranges_named(&self) -> BTreeMap<String, Vec<NamedRange>> {
        self.server.named()
    }

    /// How many bytes the ranges of a backup hold, the journal left out: its files are as long as they were allocated,
    /// 100 MB each.
    pub fn bytes_named(&self, name: &str) -> u64 {
        let named = self.server.named();
        let ranges = named.get(name).into_iter().flatten();
        ranges
            .filter(|range| !range.file.starts_with("journal/"))
            .map(NamedRange::bytes)
            .sum()
    }

    /// Whether a cursor is open.
    pub fn is_open(&self) -> bool {
        self.server.is_open()
    }

    /// What was scribbled into the files of the open cursor up to now.
    pub fn scribbled(&self) -> Scribbled {
        self.server.scribbled()
    }

    /// Changes [`CursorServerOptions::timeout`], for the open cursor too.
    pub fn set_timeout(&self, timeout: Duration) {
        self.server.set_timeout(timeout);
    }

    /// Closes the cursor, as `killCursors` of somebody else does.
    pub fn lose_cursor(&self) {
        self.server.close();
    }

    /// Closes all connections of all clients. The cursor stays.
    pub fn drop_connections(&self) {
        self.server.kick_all();
    }
}

impl Drop for CursorServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.server.place);
    }
}

async fn accept(
    server: Arc<Server>,
    listener: TcpListener,
    ends: Option<tls::TlsEnds>,
    mut stopped: oneshot::Receiver<()>,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            _ = ticks.tick() => server.expire(),
            Ok((stream, _)) = listener.accept() => {
                let (server, ends) = (Arc::clone(&server), ends.clone());
                tokio::spawn(async move {
                    // A server that is away takes no connections, and this one then closes them.
                    let upstream = tls::connect(ends.as_ref(), server.upstream.address).await;
                    if let (Ok(upstream), Ok(client)) = (upstream, tls::accept(ends.as_ref(), stream).await) {
                        connection::serve(server, client, upstream).await;
                    }
                });
            }
        }
    }
    server.kick_all();
    server.shut_down().await;
}
