//! One mongod, spoken to over one connection.
//!
//! The lock makes demands that a driver's usual pool does not meet: under authentication a new login can hang
//! behind blocked writes, so a connection that must unlock is opened and logged in before the lock and kept; a lock
//! is counted, so the driver may not send it twice. Hence: one direct connection for each [`Server`], no retries,
//! and a monitor that seldom asks (when it fails, the driver throws the pooled connections away).

use std::fmt;
use std::io;
use std::time::Duration;

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::{Error, ErrorKind};
use mongodb::options::{
    ClientOptions, ReadPreference, SelectionCriteria, ServerAddress, ServerMonitoringMode,
};
use mongodb::{Client, ClientSession, Database};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use crate::error::SourceError;
use crate::source::Timestamp;

/// For commands that only tell something. A healthy server answers in milliseconds, also under the lock.
const ANSWER: Duration = Duration::from_secs(10);
/// mongod runs on this machine, so "connection refused" for this long means that the process is gone and its lock
/// with it. Shorter than the 5 s within which the lock must be off, longer than a full accept queue lasts.
const REFUSED_MEANS_GONE: Duration = Duration::from_secs(3);
/// How long an unanswering server (stopped in a debugger, say) is waited for before its lock is given up.
const PATIENCE: Duration = Duration::from_secs(3600);

/// fsyncLock and an open backup cursor exclude each other.
const CURSOR_FORBIDS: i32 = 50884;

/// The reason of an [`CommandFailure::Unreachable`] server that does not run: nobody listens.
pub(crate) const REFUSED: &str = "connection refused";

/// Why a command failed, in a form that crosses the pipe between guard and parent. Never holds the connection
/// string.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum CommandFailure {
    Uri {
        reason: String,
    },
    WrongPassword,
    NotAllowed {
        command: String,
    },
    Unreachable {
        reason: String,
    },
    Refused {
        command: String,
        code: i32,
        reason: String,
    },
}

impl CommandFailure {
    /// Whether the server may have carried out the command although no answer came.
    pub(crate) fn is_unknown_outcome(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    pub(crate) fn on(self, node: &str) -> SourceError {
        let node = node.to_owned();
        match self {
            Self::Uri { reason } => SourceError::Uri { reason },
            Self::WrongPassword => SourceError::WrongPassword { node },
            Self::NotAllowed { command } => SourceError::NotAllowed { node, command },
            Self::Unreachable { reason } => SourceError::Unreachable { node, reason },
            Self::Refused {
                code: CURSOR_FORBIDS, ..
            } => SourceError::CursorOpen { node },
            Self::Refused { command, reason, .. } => SourceError::Command {
                node,
                command,
                reason,
            },
        }
    }

    fn of(command: &str, error: &Error) -> Self {
        match error.kind.as_ref() {
            ErrorKind::Authentication { .. } => Self::WrongPassword,
            ErrorKind::Command(refusal) => match refusal.code {
                18 => Self::WrongPassword,
                13 => Self::NotAllowed {
                    command: command.into(),
                },
                code => Self::Refused {
                    command: command.into(),
                    code,
                    reason: refusal.message.clone(),
                },
            },
            ErrorKind::InvalidArgument { .. } | ErrorKind::InvalidTlsConfig { .. } => Self::Uri {
                reason: complaint(error),
            },
            _ => Self::Unreachable {
                reason: reason(error),
            },
        }
    }
}

impl fmt::Display for CommandFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri { reason } | Self::Unreachable { reason } => f.write_str(reason),
            Self::WrongPassword => f.write_str("wrong user name or password"),
            Self::NotAllowed { command } => write!(f, "the user may not run {command}"),
            Self::Refused {
                command,
                code,
                reason,
            } => write!(f, "{command} failed with code {code}: {reason}"),
        }
    }
}

/// The driver wraps the one telling word in a dump of its topology.
fn reason(error: &Error) -> String {
    let text = error.kind.to_string();
    for plain in [
        "Connection refused",
        "Connection reset",
        "No route to host",
        "unexpected end of file",
        "Broken pipe",
    ] {
        if text.contains(plain) {
            return plain.to_lowercase();
        }
    }
    if text.contains("failed to lookup address information") {
        return "its name is not known".to_owned();
    }
    let last = text.rsplit("Error: ").next().unwrap_or(&text);
    let last = last.split(", labels: ").next().unwrap_or(last);
    let last = last.strip_prefix("Kind: ").unwrap_or(last);
    last.trim_end_matches([' ', ']', '}', ',']).to_owned()
}

/// What is wrong with an argument, without the driver's preface.
fn complaint(error: &Error) -> String {
    match error.kind.as_ref() {
        ErrorKind::InvalidArgument { message, .. } | ErrorKind::InvalidTlsConfig { message, .. } => {
            message.clone()
        }
        other => other.to_string(),
    }
}

/// How a lock ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Settled {
    /// The server acknowledged our unlock; how many locks of others remain.
    Unlocked { remaining: i64 },
    /// The server runs and is not locked.
    NotLocked,
    /// The process that was locked does not run any more, or stopped answering for good.
    Gone,
}

/// A direct, logged-in connection to one mongod.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    client: Client,
    node: String,
}

/// What `hello` says about a server.
pub(crate) struct Hello(pub Document);

impl Hello {
    /// Changes with every start of the process.
    pub(crate) fn process_id(&self) -> Option<ObjectId> {
        self.0
            .get_document("topologyVersion")
            .ok()?
            .get_object_id("processId")
            .ok()
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0.get_str(key).ok()
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        self.0.get_bool(key).unwrap_or(false)
    }
}

/// Reads a connection string. For `mongodb+srv` this asks the name server.
pub(crate) async fn parse_uri(uri: &str) -> Result<ClientOptions, CommandFailure> {
    ClientOptions::parse(uri)
        .await
        .map_err(|error| CommandFailure::Uri {
            reason: complaint(&error),
        })
}

impl Server {
    /// Connects to `node` alone, logs in, and proves it with a ping, so that the connection is in the pool.
    pub(crate) async fn connect(options: &ClientOptions, node: &str) -> Result<Self, CommandFailure> {
        let server = Self::with_options(options.clone(), node)?;
        server.run("admin", doc! {"ping": 1}).await?;
        Ok(server)
    }

    /// `hello` without a login: mongos, arbiters and members in initial sync answer it too, which know no user.
    pub(crate) async fn anonymous_hello(
        options: &ClientOptions,
        node: &str,
    ) -> Result<Hello, CommandFailure> {
        let mut options = options.clone();
        options.credential = None;
        Self::with_options(options, node)?.hello().await
    }

    fn with_options(mut options: ClientOptions, node: &str) -> Result<Self, CommandFailure> {
        let uri = |error: Error| CommandFailure::Uri {
            reason: complaint(&error),
        };
        options.hosts = vec![ServerAddress::parse(node).map_err(uri)?];
        options.direct_connection = Some(true);
        options.repl_set_name = None;
        options.load_balanced = None;
        options.srv_max_hosts = None;
        options.app_name = Some("pbm-fs".into());
        options.min_pool_size = None;
        options.max_pool_size = Some(1);
        options.max_idle_time = None;
        options.retry_reads = Some(false);
        options.retry_writes = Some(false);
        options.heartbeat_freq = Some(Duration::from_secs(60));
        options.server_monitoring_mode = Some(ServerMonitoringMode::Poll);
        options
            .server_selection_timeout
            .get_or_insert(Duration::from_secs(5));
        let client = Client::with_options(options).map_err(uri)?;
        Ok(Self {
            client,
            node: node.to_owned(),
        })
    }

    /// As it was asked for: host:port.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    fn database(&self, name: &str) -> Database {
        self.client.database(name)
    }

    /// Runs a command that is answered at once.
    pub(crate) async fn run(&self, db: &str, command: Document) -> Result<Document, CommandFailure> {
        match timeout(ANSWER, self.run_patiently(db, command)).await {
            Ok(result) => result,
            Err(_) => Err(CommandFailure::Unreachable {
                reason: format!("no answer within {} s", ANSWER.as_secs()),
            }),
        }
    }

    /// Runs a command that takes as long as it takes.
    pub(crate) async fn run_patiently(
        &self,
        db: &str,
        command: Document,
    ) -> Result<Document, CommandFailure> {
        let name = command.keys().next().cloned().unwrap_or_default();
        self.database(db)
            .run_command(command)
            .selection_criteria(SelectionCriteria::ReadPreference(
                ReadPreference::SecondaryPreferred { options: None },
            ))
            .await
            .map_err(|error| CommandFailure::of(&name, &error))
    }

    /// A session: a cursor may be used in the one that it was made in alone.
    pub(crate) async fn session(&self) -> Result<ClientSession, CommandFailure> {
        let started = self.client.start_session().await;
        started.map_err(|error| CommandFailure::of("startSession", &error))
    }

    /// Runs a command in a session, for as long as it takes.
    pub(crate) async fn run_in(
        &self,
        session: &mut ClientSession,
        db: &str,
        command: Document,
    ) -> Result<Document, CommandFailure> {
        let name = command.keys().next().cloned().unwrap_or_default();
        self.database(db)
            .run_command(command)
            .selection_criteria(SelectionCriteria::ReadPreference(
                ReadPreference::SecondaryPreferred { options: None },
            ))
            .session(session)
            .await
            .map_err(|error| CommandFailure::of(&name, &error))
    }

    pub(crate) async fn hello(&self) -> Result<Hello, CommandFailure> {
        self.run("admin", doc! {"hello": 1}).await.map(Hello)
    }

    /// Whether anybody's fsyncLock is on. Needs no privilege.
    pub(crate) async fn is_locked(&self) -> Result<bool, CommandFailure> {
        let reply = self.run("admin", doc! {"currentOp": 1, "$ownOps": true}).await?;
        Ok(reply.get_bool("fsyncLock").unwrap_or(false))
    }

    /// Locks, and returns the reply's `lockCount` and `operationTime`. Waits for running operations as long as it
    /// takes; no retry. `nonce` names the command in `currentOp`, for [`Self::settle`].
    pub(crate) async fn lock(&self, nonce: &str) -> Result<(i64, Option<Timestamp>), CommandFailure> {
        let reply = self
            .run_patiently("admin", doc! {"fsync": 1, "lock": true, "comment": nonce})
            .await?;
        let time = reply.get_timestamp("operationTime").ok().map(|ts| Timestamp {
            t: ts.time,
            i: ts.increment,
        });
        Ok((integer(&reply, "lockCount").unwrap_or(1), time))
    }

    /// Unlocks once, without a retry, and returns how many locks remain; None if the server says that it was not
    /// locked.
    pub(crate) async fn unlock(&self) -> Result<Option<i64>, CommandFailure> {
        match self.run("admin", doc! {"fsyncUnlock": 1}).await {
            Ok(reply) => Ok(Some(integer(&reply, "lockCount").unwrap_or(0))),
            // IllegalOperation: "fsyncUnlock called when not locked".
            Err(CommandFailure::Refused { code: 20, .. }) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Ends our lock when it is not known whether it is on: an answer was lost, or the guard was killed. Waits for
    /// a lock command of ours that still runs, unlocks if the server is locked, and returns only when the lock is
    /// surely off. A process other than `process_id` is not touched: the lock died with the one that held it.
    ///
    /// Locks are counted and nameless. If somebody else locked on top of us *and* the answer to our own unlock was
    /// lost, a second unlock here ends theirs: of two evils, a server that stays locked for ever is the greater.
    pub(crate) async fn settle(&self, nonce: &str, process_id: Option<ObjectId>) -> Settled {
        let started = Instant::now();
        let mut refused_since: Option<Instant> = None;
        while started.elapsed() < PATIENCE {
            // The driver takes seconds to see that nobody listens.
            if self.is_refused().await {
                if refused_since.get_or_insert_with(Instant::now).elapsed() > REFUSED_MEANS_GONE {
                    return Settled::Gone;
                }
            } else {
                refused_since = None;
                match self.settle_once(nonce, process_id).await {
                    Ok(Some(settled)) => return settled,
                    Ok(None) => {}
                    Err(failure) => {
                        tracing::debug!(node = self.node, ?failure, "unlocking failed, trying again")
                    }
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        Settled::Gone
    }

    /// Whether nobody listens at the node's address.
    async fn is_refused(&self) -> bool {
        let connected = async {
            match ServerAddress::parse(&self.node) {
                Ok(ServerAddress::Tcp { host, port }) => {
                    let host = host.trim_matches(['[', ']']);
                    let port = port.unwrap_or(27017);
                    TcpStream::connect((host, port)).await.map(drop)
                }
                Ok(ServerAddress::Unix { path }) => UnixStream::connect(path).await.map(drop),
                _ => Ok(()),
            }
        };
        let error = timeout(ANSWER, connected).await.ok().and_then(Result::err);
        error.is_some_and(|e| {
            matches!(
                e.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            )
        })
    }

    async fn settle_once(
        &self,
        nonce: &str,
        process_id: Option<ObjectId>,
    ) -> Result<Option<Settled>, CommandFailure> {
        let running = self.hello().await?.process_id();
        if process_id.is_some() && running != process_id {
            return Ok(Some(Settled::Gone));
        }
        let reply = self
            .run("admin", doc! {"currentOp": 1, "command.comment": nonce})
            .await?;
        if reply.get_array("inprog").is_ok_and(|ops| !ops.is_empty()) {
            return Ok(None);
        }
        if !reply.get_bool("fsyncLock").unwrap_or(false) {
            return Ok(Some(Settled::NotLocked));
        }
        let remaining = self.unlock().await?;
        Ok(Some(remaining.map_or(Settled::NotLocked, |remaining| {
            Settled::Unlocked { remaining }
        })))
    }
}

/// Servers answer numbers in whatever type they like.
pub(crate) fn integer(document: &Document, key: &str) -> Option<i64> {
    match document.get(key)? {
        Bson::Int32(n) => Some(i64::from(*n)),
        Bson::Int64(n) => Some(*n),
        Bson::Double(n) => Some(*n as i64),
        _ => None,
    }
}
