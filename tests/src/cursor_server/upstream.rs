//! The proxy's own connection to the real server: for the lock, and for what the metadata document tells.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use mongodb::{
    Client,
    bson::{Document, Timestamp, doc},
    options::{ClientOptions, Credential},
};
use rustix::process::{Pid, Signal, kill_process};

use super::tls::Tls;
use crate::{
    error::{Doing, Result, RigError},
    mongod::Mongod,
    snapshot,
};

/// Where the real server is. It may be stopped and started again meanwhile.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    pub(super) dbpath: PathBuf,
    /// Whether it wants a login.
    pub(super) auth: bool,
    pub(super) tls: Option<Tls>,
    login: Mutex<Option<Credential>>,
}

/// A position in the oplog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpTime {
    pub(super) ts: Timestamp,
    term: i64,
}

impl OpTime {
    fn of(document: &Document) -> Option<Self> {
        Some(Self {
            ts: document.get_timestamp("ts").ok()?,
            // The entry that a set begins with has none.
            term: document.get_i64("t").unwrap_or(-1),
        })
    }

    pub(super) fn to_document(self) -> Document {
        doc! {"ts": self.ts, "t": self.term}
    }
}

impl Upstream {
    pub(super) fn of(mongod: &Mongod, tls: Option<Tls>) -> Self {
        let wants_login = |arg: &String| ["--auth", "--keyFile", "--clusterAuthMode"].contains(&arg.as_str());
        Self {
            address: ([127, 0, 0, 1], mongod.port()).into(),
            dbpath: mongod.dbpath().to_owned(),
            auth: mongod.options().extra_args.iter().any(wants_login),
            tls,
            login: Mutex::new(None),
        }
    }

    pub(super) fn log_in(&self, user: &str, password: &str) {
        let credential = Credential::builder()
            .username(user.to_owned())
            .password(password.to_owned())
            .source("admin".to_owned())
            .build();
        *self.login.lock().unwrap_or_else(PoisonError::into_inner) = Some(credential);
    }

    /// A connection of its own, logged in already: under the lock a new login can hang.
    pub(super) async fn connect(&self) -> Result<Admin> {
        let uri = format!("mongodb://{}/?directConnection=true", self.address);
        let mut options = ClientOptions::parse(&uri).await.doing("parsing an address")?;
        options.max_pool_size = Some(1);
        options.server_selection_timeout = Some(Duration::from_secs(20));
        options.tls = self.tls.as_ref().map(Tls::for_driver);
        options.credential = self.login.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let admin = Admin {
            client: Client::with_options(options).doing("making a client for the pin")?,
        };
        // Nobody may ask for this without a login, so it makes one.
        admin.run(doc! {"serverStatus": 1, "metrics": 0}).await?;
        Ok(admin)
    }

    /// `kill -9`.
    pub(super) fn kill(&self) -> Result<()> {
        let path = self.dbpath.join("mongod.lock");
        let text = fs::read_to_string(&path).doing(format_args!("reading {}", path.display()))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| RigError::Check(format!("{} names no process", path.display())))?;
        kill_process(pid, Signal::KILL)
            .map_err(std::io::Error::from)
            .doing("killing the server")
    }
}

/// A logged-in client of the real server.
#[derive(Debug)]
pub(super) struct Admin {
    client: Client,
}

impl Admin {
    pub(super) async fn run(&self, command: Document) -> Result<Document> {
        let name = command.keys().next().cloned().unwrap_or_default();
        self.client
            .database("admin")
            .run_command(command)
            .await
            .doing(format_args!("{name} for a backup cursor"))
    }

    /// Locks it and returns how many locks are held.
    pub(super) async fn lock(&self) -> Result<i64> {
        Ok(snapshot::fsync_lock(&self.client).await?.locks)
    }

    pub(super) async fn unlock(&self) -> Result<i64> {
        snapshot::fsync_unlock(&self.client).await
    }

    /// `replSetGetStatus`, of a member of a set.
    pub(super) async fn status(&self) -> Result<Option<Document>> {
        match self.run(doc! {"replSetGetStatus": 1}).await {
            Ok(status) => Ok(Some(status)),
            // Not started with --replSet, or not initiated.
            Err(error) if matches!(error.code(), Some(76 | 94)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The oldest entry of the oplog.
    pub(super) async fn oplog_start(&self) -> Result<Option<OpTime>> {
        let entry = self
            .client
            .database("local")
            .collection::<Document>("oplog.rs")
            .find_one(doc! {})
            .sort(doc! {"$natural": 1})
            .projection(doc! {"ts": 1, "t": 1})
            .await
            .doing("reading the oplog's begin")?;
        Ok(entry.as_ref().and_then(OpTime::of))
    }
}

/// A time in the answer of `replSetGetStatus`.
pub(super) fn optime(status: &Document, name: &str) -> Option<OpTime> {
    OpTime::of(status.get_document("optimes").ok()?.get_document(name).ok()?)
}
