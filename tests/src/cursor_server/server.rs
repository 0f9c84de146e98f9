//! The backup cursor itself: opening, serving, extending and closing it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use mongodb::bson::{Bson, Document, Uuid, doc};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::watch, task::AbortHandle};

use super::{
    CursorServerOptions,
    documents::{self, BackupOptions, Command, ExtendOptions, Kind},
    failure::{
        CHECKPOINT_CONFLICT, CURSOR_OPEN, Failure, NO_REPLICATION, OPLOG_ROLLED_OVER, OTHER_BACKUP,
        TIME_LIMIT,
    },
    faults::{Fault, Faults, When},
    history::{History, Image, NamedRange},
    journal::Logs,
    pin::{Pin, PinError},
    scribble::Scribbler,
    upstream::{Upstream, optime},
};
use crate::error::RigError;

/// As many documents as a server puts into a first batch by default.
const FIRST_BATCH: usize = 101;
/// How often the real server is asked whether it has come as far as an extend wants.
const POLL: Duration = Duration::from_millis(20);

/// A cursor command that was seen, in the order of their answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Which.
    pub command: SeenCommand,
    /// The error code that it was answered with.
    pub code: Option<i32>,
}

/// A command that the cursor server answered itself.
#[derive(Clone, Debug, PartialEq)]
pub enum SeenCommand {
    /// `$backupCursor`.
    Open(BackupOptions),
    /// `$backupCursorExtend`.
    Extend,
    /// On a backup cursor.
    GetMore,
    /// Of a backup cursor.
    Kill,
}

#[derive(Debug)]
struct OpenCursor {
    id: i64,
    backup_id: Uuid,
    session: Option<Bson>,
    rest: VecDeque<Document>,
    used: Instant,
    extended: Logs,
    pin: Pin,
    scribbler: Option<Scribbler>,
    sentinel: AbortHandle,
}

impl Drop for OpenCursor {
    fn drop(&mut self) {
        self.sentinel.abort();
        // It holds files of the pin open, so it goes first.
        self.scribbler = None;
    }
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) upstream: Upstream,
    pub(super) options: CursorServerOptions,
    pub(super) faults: Faults,
    /// Where pins are made.
    pub(super) place: PathBuf,
    /// Held while a cursor is opened.
    history: tokio::sync::Mutex<History>,
    open: Mutex<Option<OpenCursor>>,
    /// What is left of the batches of extends.
    extends: Mutex<HashMap<i64, VecDeque<Document>>>,
    next_id: AtomicI64,
    seen: Mutex<Vec<Seen>>,
    named: Mutex<BTreeMap<String, Vec<NamedRange>>>,
    /// Counts up when all connections are to be closed.
    pub(super) kick: watch::Sender<u64>,
}

/// What becomes of a command.
pub(super) enum Answer {
    Reply(Document),
    /// The real server is to answer.
    Pass,
    /// Nobody answers: the connection is closed.
    Silence,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    pub(super) fn new(upstream: Upstream, place: PathBuf, options: CursorServerOptions) -> Self {
        Self {
            upstream,
            options,
            faults: Faults::default(),
            place,
            history: tokio::sync::Mutex::default(),
            open: Mutex::default(),
            extends: Mutex::default(),
            // Far from those of the real server, which are random.
            next_id: AtomicI64::new(7_000_000_001),
            seen: Mutex::default(),
            named: Mutex::default(),
            kick: watch::Sender::new(0),
        }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        lock(&self.seen).clone()
    }

    pub(super) fn named(&self) -> BTreeMap<String, Vec<NamedRange>> {
        lock(&self.named).clone()
    }

    pub(super) fn is_open(&self) -> bool {
        lock(&self.open).is_some()
    }

    pub(super) fn scribbled(&self) -> u64 {
        lock(&self.open)
            .as_ref()
            .and_then(|open| open.scribbler.as_ref())
            .map_or(0, Scribbler::written)
    }

    /// Waits for an open that is under way.
    pub(super) async fn forget_history(&self) {
        self.history.lock().await.forget();
    }

    /// Waits for an open that is under way, so that no lock stays, and closes what it opened.
    pub(super) async fn shut_down(&self) {
        let history = self.history.lock().await;
        self.close();
        drop(history);
    }

    /// Closes the cursor, whoever has it.
    pub(super) fn close(&self) {
        // Dropped outside of the lock: it removes files.
        let open = lock(&self.open).take();
        drop(open);
    }

    /// Closes the cursor that was opened with this id, if it is open.
    pub(super) fn close_id(&self, id: i64) -> bool {
        let mut open = lock(&self.open);
        let ours = open.as_ref().is_some_and(|cursor| cursor.id == id);
        let closed = if ours { open.take() } else { None };
        drop(open);
        closed.is_some()
    }

    pub(super) fn close_session(&self, session: &Bson) {
        let id = lock(&self.open)
            .as_ref()
            .filter(|open| open.session.as_ref() == Some(session))
            .map(|open| open.id);
        if let Some(id) = id {
            self.close_id(id);
        }
    }

    pub(super) fn kick_all(&self) {
        self.kick.send_modify(|count| *count += 1);
    }

    /// Closes a cursor that nobody has asked for anything for too long.
    pub(super) fn expire(&self) {
        let id = lock(&self.open)
            .as_ref()
            .filter(|open| open.used.elapsed() > self.options.timeout)
            .map(|open| open.id);
        if let Some(id) = id {
            self.close_id(id);
        }
    }

    /// Whether it is for this server and not for the real one.
    pub(super) fn is_ours(&self, command: &Command) -> bool {
        let known = |id: &i64| {
            lock(&self.open).as_ref().is_some_and(|open| open.id == *id)
                || lock(&self.extends).contains_key(id)
        };
        match &command.kind {
            Kind::Open(_) | Kind::Extend(_) => true,
            Kind::GetMore(id) => known(id),
            Kind::Kill(ids) => ids.iter().any(known),
        }
    }

    /// Answers a command that [`Server::is_ours`]. An open must not be cancelled, for the lock's sake; the others may be.
    pub(super) async fn answer(self: &Arc<Self>, command: &Command) -> Answer {
        let limit = command.max_time_ms.map(Duration::from_millis);
        let when = match command.kind {
            Kind::Open(_) => Some(When::Open),
            Kind::Extend(_) => Some(When::Extend),
            Kind::GetMore(_) => Some(When::GetMore),
            Kind::Kill(_) => None,
        };
        let mut refused = None;
        match when.and_then(|when| self.faults.hit(when)) {
            None => {}
            Some(Fault::Fail(code)) => refused = Some(Failure::usual(code)),
            Some(Fault::Unsupported) => return Answer::Pass,
            Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
            Some(Fault::Hang) => match limit {
                None => std::future::pending().await,
                Some(limit) => {
                    tokio::time::sleep(limit).await;
                    refused = Some(Failure::usual(TIME_LIMIT));
                }
            },
            Some(Fault::LoseCursor) => self.close(),
            Some(Fault::DropConnections) => {
                self.close();
                self.kick_all();
                return Answer::Silence;
            }
            Some(Fault::KillServer) => {
                // It may be gone already, which is what was wanted.
                let _ = self.upstream.kill();
                self.close();
                self.kick_all();
                return Answer::Silence;
            }
        }
        let (seen, result) = match &command.kind {
            Kind::Open(spec) => {
                let options = BackupOptions::parse(spec.as_ref(), self.options.style);
                let seen = SeenCommand::Open(options.clone().unwrap_or_default());
                let result = match options {
                    Ok(options) => self.open(command, &options, refused).await,
                    Err(failure) => Err(PinError::Refused(failure)),
                };
                (seen, result)
            }
            Kind::Extend(spec) => {
                let result = match refused {
                    Some(failure) => Err(PinError::Refused(failure)),
                    None => self.extend(command, spec.as_ref(), limit).await,
                };
                (SeenCommand::Extend, result)
            }
            Kind::GetMore(id) => {
                let result = refused.map_or_else(|| self.get_more(command, *id), Err);
                (SeenCommand::GetMore, result.map_err(PinError::Refused))
            }
            Kind::Kill(ids) => (SeenCommand::Kill, Ok(self.kill(ids))),
        };
        let result = result.map_err(|error| match error {
            PinError::Refused(failure) => failure,
            // Not a server's answer; it shows what is wrong in the test that runs.
            PinError::Broken(error) => {
                Failure::new(super::failure::INTERNAL, format!("the cursor server: {error}"))
            }
        });
        let code = result.as_ref().err().map(|failure| failure.code);
        lock(&self.seen).push(Seen { command: seen, code });
        Answer::Reply(result.unwrap_or_else(|failure| failure.to_reply()))
    }

    async fn open(
        self: &Arc<Self>,
        command: &Command,
        options: &BackupOptions,
        refused: Option<Failure>,
    ) -> Result<Document, PinError> {
        let mut history = self.history.lock().await;
        if self.is_open() {
            return Err(PinError::Refused(Failure::usual(CURSOR_OPEN)));
        }
        let claim = match (&options.this_name, options.disable) {
            (Some(this), false) => {
                let block_size = u64::from(options.block_size_mb().unsigned_abs()) << 20;
                let claim = history.claim(this, options.source_name.as_deref(), block_size);
                Some(claim.map_err(PinError::Refused)?)
            }
            _ => None,
        };
        if let Some(failure) = refused {
            // The cursor was open before the server saw why it must not be.
            if let Some(claim) =
                claim.filter(|_| [CHECKPOINT_CONFLICT, OPLOG_ROLLED_OVER].contains(&failure.code))
            {
                history.remember(&claim, Image::new());
            }
            return Err(PinError::Refused(failure));
        }
        if options.disable {
            history.forget();
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let pin = Pin::make(&self.upstream, self.place.join(id.to_string())).await?;
        let backup_id = Uuid::new();
        let style = self.options.style;
        let mut rest = VecDeque::from([documents::metadata(backup_id, &pin, options, style)]);
        // A cursor that only ends history names no files.
        if !options.disable {
            let ranges = self.ranges(&pin, options, claim.as_ref());
            rest.extend(ranges.iter().map(|range| documents::file(&pin, range, style)));
            let name = options.this_name.clone().unwrap_or_default();
            lock(&self.named).insert(name, ranges);
        }
        if let Some(claim) = &claim {
            history.remember(claim, pin.image());
        }
        if let Some(name) = self.faults.oddities().vanished {
            std::fs::remove_file(pin.directory.join(name)).map_err(|source| RigError::Io {
                doing: "making a file vanish".into(),
                source,
            })?;
        }
        let scribbler = match self.options.scribble {
            Some(seed) => Some(Scribbler::start(&pin, seed).map_err(|source| RigError::Io {
                doing: "starting to scribble".into(),
                source,
            })?),
            None => None,
        };
        let cursor = OpenCursor {
            id,
            backup_id,
            session: command.session.clone(),
            sentinel: self.sentinel(id).await?,
            rest,
            used: Instant::now(),
            extended: Logs::new(),
            pin,
            scribbler,
        };
        let mut open = lock(&self.open);
        let cursor = open.insert(cursor);
        let documents = take(&mut cursor.rest, command.batch_size.unwrap_or(FIRST_BATCH));
        Ok(documents::batch(&command.database, true, id, documents))
    }

    /// What the cursor names, but for its metadata.
    fn ranges(
        &self,
        pin: &Pin,
        options: &BackupOptions,
        claim: Option<&super::history::Claim>,
    ) -> Vec<NamedRange> {
        let style = self.options.style;
        // Incremental cursors give whole files with their length, where the server gives it at all.
        let whole = |file: String, file_size| NamedRange {
            file,
            file_size,
            offset: 0,
            length: match options.incremental
                && (options.source_name.is_some() || style != documents::Style::Explicit)
            {
                true => file_size,
                false => 0,
            },
        };
        let increment = claim.filter(|claim| claim.has_source());
        let mut ranges = Vec::new();
        for file in &pin.files {
            match increment.filter(|_| file.is_compared()) {
                Some(claim) => ranges.extend(claim.ranges(&file.name, &file.image)),
                None => ranges.push(whole(file.name.clone(), file.image.size)),
            }
        }
        let oddities = self.faults.oddities();
        if let Some(claim) = increment {
            ranges.extend(claim.phantoms(&ranges, oddities.phantom_ranges));
            let unchanged = ranges.iter().position(|range| range.length == 0);
            if let Some(at) = unchanged.filter(|_| oddities.first_file_unchanged) {
                let range = ranges.remove(at);
                ranges.insert(0, range);
            }
        }
        ranges.extend(pin.logs.iter().map(|name| {
            let file = format!("journal/{name}");
            let size = std::fs::metadata(pin.directory.join(&file)).map_or(0, |meta| meta.len());
            whole(file, size)
        }));
        ranges
    }

    /// Closes the cursor when the real server goes away.
    async fn sentinel(self: &Arc<Self>, id: i64) -> Result<AbortHandle, PinError> {
        let connect = TcpStream::connect(self.upstream.address).await;
        let mut stream = connect.map_err(|source| RigError::Io {
            doing: "connecting to the server".into(),
            source,
        })?;
        let server = Arc::downgrade(self);
        let watch = async move {
            // It is never asked anything, so all that can come is the end.
            let _ = stream.read_u8().await;
            if let Some(server) = server.upgrade() {
                server.close_id(id);
            }
        };
        Ok(tokio::spawn(watch).abort_handle())
    }

    fn get_more(&self, command: &Command, id: i64) -> Result<Document, Failure> {
        let size = command.batch_size.unwrap_or(usize::MAX);
        if let Some(rest) = lock(&self.extends).get_mut(&id) {
            let documents = take(rest, size);
            let next = if rest.is_empty() { 0 } else { id };
            return Ok(documents::batch(&command.database, false, next, documents));
        }
        let mut open = lock(&self.open);
        let cursor = open
            .as_mut()
            .filter(|open| open.id == id)
            .ok_or_else(|| Failure::cursor_not_found(id))?;
        check_session(id, cursor.session.as_ref(), command.session.as_ref())?;
        cursor.used = Instant::now();
        // It is tailable: it gives nothing when there is nothing more, and stays.
        let documents = take(&mut cursor.rest, size);
        Ok(documents::batch(&command.database, false, id, documents))
    }

    fn kill(&self, ids: &[i64]) -> Document {
        let (mut killed, mut unknown) = (Vec::new(), Vec::new());
        for id in ids {
            match self.close_id(*id) || lock(&self.extends).remove(id).is_some() {
                true => killed.push(*id),
                false => unknown.push(*id),
            }
        }
        let none: Vec<i64> = Vec::new();
        doc! {
            "cursorsKilled": killed, "cursorsNotFound": unknown, "cursorsAlive": none.clone(), "cursorsUnknown": none,
            "ok": 1.0,
        }
    }

    async fn extend(
        self: &Arc<Self>,
        command: &Command,
        spec: Option<&Bson>,
        limit: Option<Duration>,
    ) -> Result<Document, PinError> {
        let options = ExtendOptions::parse(spec).map_err(PinError::Refused)?;
        let journal = {
            let open = lock(&self.open);
            let no_cursor = "Cannot extend backup cursor because backup cursor is not open";
            let Some(cursor) = open.as_ref() else {
                return Err(PinError::Refused(Failure::new(CURSOR_OPEN, no_cursor)));
            };
            if cursor.backup_id != options.backup_id {
                return Err(PinError::Refused(Failure::usual(OTHER_BACKUP)));
            }
            cursor.pin.journal()
        };
        let reached = self.reach(options);
        match limit {
            None => reached.await?,
            Some(limit) => match tokio::time::timeout(limit, reached).await {
                Ok(result) => result?,
                Err(_) => return Err(PinError::Refused(Failure::usual(TIME_LIMIT))),
            },
        }
        // In a task of its own, because this one may be cancelled and the lock must not stay.
        let server = Arc::clone(self);
        let flush = tokio::spawn(async move { Pin::extend(&journal, &server.upstream).await });
        let logs = flush
            .await
            .map_err(|error| RigError::Check(format!("extending: {error}")))??;
        let mut open = lock(&self.open);
        let cursor = open.as_mut().filter(|open| open.backup_id == options.backup_id);
        let cursor = cursor.ok_or_else(|| PinError::Refused(Failure::usual(super::failure::INTERRUPTED)))?;
        let mut rest: VecDeque<_> = logs
            .difference(&cursor.pin.logs)
            .filter(|name| !cursor.extended.contains(*name))
            .map(|name| documents::journal(&cursor.pin.directory, name, self.options.style))
            .collect();
        cursor.extended.extend(logs);
        drop(open);
        let documents = take(&mut rest, command.batch_size.unwrap_or(FIRST_BATCH));
        let mut id = 0;
        if !rest.is_empty() {
            id = self.next_id.fetch_add(1, Ordering::Relaxed);
            lock(&self.extends).insert(id, rest);
        }
        Ok(documents::batch(&command.database, true, id, documents))
    }

    /// Waits until the server has applied everything up to this time, and a majority has too.
    async fn reach(&self, options: ExtendOptions) -> Result<(), PinError> {
        let admin = self.upstream.connect().await?;
        loop {
            let Some(status) = admin.status().await? else {
                return Err(PinError::Refused(Failure::usual(NO_REPLICATION)));
            };
            let reached = |name| optime(&status, name).is_some_and(|at| at.ts >= options.timestamp);
            if reached("appliedOpTime") && reached("lastCommittedOpTime") {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn take(rest: &mut VecDeque<Document>, count: usize) -> Vec<Document> {
    rest.drain(..count.min(rest.len())).collect()
}

/// A getMore comes in the session that the cursor was opened in.
fn check_session(id: i64, opened: Option<&Bson>, now: Option<&Bson>) -> Result<(), Failure> {
    let (code, what) = match (opened, now) {
        (None, Some(_)) => (50_736, "which was not created in a session, in a session"),
        (Some(_), None) => (50_737, "which was created in a session, without an lsid"),
        (Some(opened), Some(now)) if opened != now => (50_738, "which was created in another session"),
        _ => return Ok(()),
    };
    Err(Failure::new(
        code,
        format!("Cannot run getMore on cursor {id}, {what}"),
    ))
}
