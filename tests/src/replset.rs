//! Replica sets on one machine.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use mongodb::{
    Client,
    bson::{Bson, Document, Timestamp, doc},
};

use crate::{
    cursor_server::{CursorServer, CursorServerOptions},
    error::{Doing, Result, RigError},
    mongod::{Mongod, MongodOptions, client},
};

/// How long an election or an initial sync may take. Both take a second or two alone on a machine.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// What a replica set is made of.
#[derive(Clone, Debug)]
pub struct ReplSetOptions {
    /// Its name.
    pub name: String,
    /// How many members that hold data and vote.
    pub members: usize,
    /// How each is started; `replset` and `port` are filled in.
    pub mongod: MongodOptions,
    /// `settings.electionTimeoutMillis`: how soon a dead primary is replaced. Short ones lead to elections for no
    /// reason on a busy machine.
    pub election_timeout: Duration,
    /// With a backup-cursor server before each member. The members' addresses in the configuration are then those of the
    /// cursor servers, so that nobody who asks a member for the others, the members themselves included, gets round them.
    pub cursor_servers: Option<CursorServerOptions>,
}

impl ReplSetOptions {
    /// One member.
    pub fn single(name: &str) -> Self {
        Self::of(name, 1)
    }

    /// Three members.
    pub fn three(name: &str) -> Self {
        Self::of(name, 3)
    }

    /// Any number of members.
    pub fn of(name: &str, members: usize) -> Self {
        Self {
            name: name.into(),
            members,
            mongod: MongodOptions::default(),
            election_timeout: Duration::from_secs(5),
            cursor_servers: None,
        }
    }

    /// Puts a backup-cursor server before each member.
    #[must_use]
    pub fn with_cursor_servers(mut self, options: CursorServerOptions) -> Self {
        self.cursor_servers = Some(options);
        self
    }

    /// Starts each member with these options.
    #[must_use]
    pub fn mongod(mut self, options: MongodOptions) -> Self {
        self.mongod = options;
        self
    }
}

/// A replica set. All its members are killed when this is dropped; the files stay.
#[derive(Debug)]
pub struct ReplSet {
    name: String,
    // Dropped first: they may hold a member's lock.
    cursor_servers: Vec<CursorServer>,
    members: Vec<Mongod>,
}

impl ReplSet {
    /// Makes a set under `place` (member *i* in `<name>-<i>`), initiates it, and returns when one member is primary
    /// and the others are secondaries. Member 0 becomes the first primary.
    pub async fn start(place: impl AsRef<Path>, options: ReplSetOptions) -> Result<Self> {
        let ReplSetOptions {
            name,
            members,
            mongod,
            election_timeout,
            cursor_servers,
        } = options;
        let starts = (0..members).map(|index| {
            let options = MongodOptions {
                replset: Some(name.clone()),
                port: None,
                ..mongod.clone()
            };
            Mongod::start(place.as_ref().join(format!("{name}-{index}")), options)
        });
        let members = try_join_all(starts).await?;
        let cursor_servers = cursor_servers.iter().flat_map(|options| {
            let before = |member| CursorServer::start(member, options.clone());
            members.iter().map(before)
        });
        let set = Self {
            cursor_servers: cursor_servers.collect::<Result<_>>()?,
            members,
            name,
        };
        let Some(first) = set.members.first() else {
            return Err(RigError::Check("a replica set needs a member".into()));
        };
        let list: Vec<_> = set
            .hosts()
            .into_iter()
            .zip(0_i32..)
            .map(|(host, id)| Bson::from(doc! {"_id": id, "host": host}))
            .collect();
        let settings = doc! {
            "electionTimeoutMillis": i64::try_from(election_timeout.as_millis()).unwrap_or(i64::MAX),
            "heartbeatIntervalMillis": 500,
        };
        let config = doc! {"_id": &set.name, "members": list, "settings": settings};
        first.admin(doc! {"replSetInitiate": config}).await?;
        // Without being told, the members of a larger set wait a whole election timeout before the first one stands.
        // It is refused until a majority has answered a heartbeat.
        wait_for(|| async {
            match set.is_primary(0).await {
                true => Ok(None),
                false => {
                    let _ = first.admin(doc! {"replSetStepUp": 1}).await;
                    Ok(Some("member 0 is not primary".into()))
                }
            }
        })
        .await?;
        set.wait_ready().await?;
        Ok(set)
    }

    /// Servers that know of each other already: a set that was restored.
    pub fn adopt(name: &str, members: Vec<Mongod>) -> Self {
        Self {
            name: name.into(),
            cursor_servers: Vec::new(),
            members,
        }
    }

    /// The set's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All members, running or not.
    pub fn members(&self) -> &[Mongod] {
        &self.members
    }

    /// A member to stop, kill or start again. Panics when there is none of that number.
    pub fn member_mut(&mut self, index: usize) -> &mut Mongod {
        &mut self.members[index]
    }

    /// The addresses in the set's configuration.
    pub fn hosts(&self) -> Vec<String> {
        match self.cursor_servers.is_empty() {
            true => self.members.iter().map(Mongod::host).collect(),
            false => self.cursor_servers.iter().map(CursorServer::address).collect(),
        }
    }

    /// The backup-cursor servers, one before each member, if the set was started with them.
    pub fn cursor_servers(&self) -> &[CursorServer] {
        &self.cursor_servers
    }

    /// Reaches the set through all members.
    pub fn uri(&self) -> String {
        format!("mongodb://{}/?replicaSet={}", self.hosts().join(","), self.name)
    }

    /// A client of the set: writes go to the primary, whoever that is.
    pub async fn client(&self) -> Result<Client> {
        client(&self.uri()).await
    }

    async fn is_primary(&self, index: usize) -> bool {
        let member = &self.members[index];
        if member.pid().is_none() {
            return false;
        }
        match member.hello().await {
            Ok(reply) => reply.get_bool("isWritablePrimary").unwrap_or(false),
            Err(_) => false,
        }
    }

    /// The primary's number among the members; waits for one.
    pub async fn primary_index(&self) -> Result<usize> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            for index in 0..self.members.len() {
                if self.is_primary(index).await {
                    return Ok(index);
                }
            }
            tokio::time::sleep(POLL).await;
        }
        Err(RigError::Timeout {
            what: format!("{} has no primary", self.name),
            after: PATIENCE,
        })
    }

    /// The primary; waits for one.
    pub async fn primary(&self) -> Result<&Mongod> {
        Ok(&self.members[self.primary_index().await?])
    }

    /// The members in state SECONDARY, in order.
    pub async fn secondaries(&self) -> Result<Vec<&Mongod>> {
        let mut found = Vec::new();
        for member in self.members.iter().filter(|member| member.pid().is_some()) {
            if member.hello().await?.get_bool("secondary").unwrap_or(false) {
                found.push(member);
            }
        }
        Ok(found)
    }

    /// Waits until one member is primary and all others that run are secondaries.
    pub async fn wait_ready(&self) -> Result<()> {
        wait_for(|| async {
            let running = self
                .members
                .iter()
                .filter(|member| member.pid().is_some())
                .count();
            let primary = self.primary_index().await?;
            let secondaries = self.secondaries().await?.len();
            Ok((1 + secondaries != running).then(|| {
                format!(
                    "{}: member {primary} is primary, {secondaries} of the others secondary",
                    self.name
                )
            }))
        })
        .await
    }

    /// Waits until every running member has applied what the primary has applied at the time of the call.
    pub async fn wait_replicated(&self) -> Result<Timestamp> {
        let target = last_applied(self.primary().await?).await?;
        wait_for(|| async {
            for member in self.members.iter().filter(|member| member.pid().is_some()) {
                let at = last_applied(member).await?;
                if at < target {
                    return Ok(Some(format!("{} has applied {at}, not {target}", member.host())));
                }
            }
            Ok(None)
        })
        .await?;
        Ok(target)
    }

    /// Stops all members cleanly, secondaries first.
    pub async fn stop(&mut self) -> Result<()> {
        let mut order: Vec<_> = (0..self.members.len()).collect();
        if self.members.len() > 1 && self.members.iter().all(|member| member.pid().is_some()) {
            let primary = self.primary_index().await?;
            order.retain(|index| *index != primary);
            order.push(primary);
        }
        for index in order {
            self.members[index].stop().await?;
        }
        Ok(())
    }

    /// Takes the set apart.
    pub fn into_members(self) -> Vec<Mongod> {
        self.members
    }
}

/// The newest oplog entry that this member has applied.
pub async fn last_applied(member: &Mongod) -> Result<Timestamp> {
    let status = member.admin(doc! {"replSetGetStatus": 1}).await?;
    let applied = status
        .get_document("optimes")
        .and_then(|optimes| optimes.get_document("appliedOpTime"))
        .and_then(|applied: &Document| applied.get_timestamp("ts"));
    applied.doing(format_args!("reading optimes.appliedOpTime of {}", member.host()))
}

/// Asks until the answer is `None`; the last `Some` says what was still amiss.
pub(crate) async fn wait_for<F, R>(mut ask: F) -> Result<()>
where
    F: FnMut() -> R,
    R: Future<Output = Result<Option<String>>>,
{
    let start = Instant::now();
    loop {
        let Some(what) = ask().await? else { return Ok(()) };
        if start.elapsed() >= PATIENCE {
            return Err(RigError::Timeout {
                what,
                after: PATIENCE,
            });
        }
        tokio::time::sleep(POLL).await;
    }
}
