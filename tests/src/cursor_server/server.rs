//! The backup cursor itself: who may have it, what it gives, when it ends.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicI64},
    time::{Duration, Instant},
};

use mongodb::bson::{Bson, Document, Uuid, doc};
use tokio::{sync::watch, task::AbortHandle};

use super::{
    CursorServerOptions,
    documents::{self, BackupOptions, Command, Kind},
    failure::{CURSOR_IN_USE, Failure, INTERNAL, TIME_LIMIT},
    faults::{Fault, Faults, When},
    feed::Feed,
    history::{History, NamedRange},
    journal::Logs,
    pin::{Pin, PinError},
    scribble::{Scribbled, Scribbler},
    upstream::Upstream,
};

/// As many documents as a server puts into a first batch by default.
pub(super) const FIRST_BATCH: usize = 101;

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
pub(super) struct OpenCursor {
    pub(super) id: i64,
    pub(super) backup_id: Uuid,
    pub(super) session: Option<Bson>,
    pub(super) feed: Feed,
    pub(super) used: Instant,
    pub(super) extended: Logs,
    pub(super) pin: Pin,
    pub(super) scribbler: Option<Scribbler>,
    pub(super) sentinel: AbortHandle,
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
    timeout: Mutex<Duration>,
    /// Where pins are made.
    pub(super) place: PathBuf,
    /// Held while a cursor is opened.
    pub(super) history: tokio::sync::Mutex<History>,
    pub(super) open: Mutex<Option<OpenCursor>>,
    /// What is left of the batches of extends.
    pub(super) extends: Mutex<HashMap<i64, VecDeque<Document>>>,
    pub(super) next_id: AtomicI64,
    seen: Mutex<Vec<Seen>>,
    pub(super) named: Mutex<BTreeMap<String, Vec<NamedRange>>>,
    /// Which cursor is busy with a getMore that does not come to its end, and until when.
    stalled: Mutex<Option<(i64, Instant)>>,
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    pub(super) fn new(upstream: Upstream, place: PathBuf, options: CursorServerOptions) -> Self {
        Self {
            upstream,
            faults: Faults::default(),
            timeout: options.timeout.into(),
            options,
            place,
            history: tokio::sync::Mutex::default(),
            open: Mutex::default(),
            extends: Mutex::default(),
            // Far from those of the real server, which are random.
            next_id: AtomicI64::new(7_000_000_001),
            seen: Mutex::default(),
            named: Mutex::default(),
            stalled: Mutex::default(),
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

    pub(super) fn scribbled(&self) -> Scribbled {
        let open = lock(&self.open);
        let scribbler = open.as_ref().and_then(|open| open.scribbler.as_ref());
        scribbler.map(Scribbler::written).unwrap_or_default()
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

    /// Closes the cursor, whoever has it. Its files are gone before anybody can see that it is closed.
    pub(super) fn close(&self) {
        *lock(&self.open) = None;
    }

    /// Closes the cursor that was opened with this id, if it is open.
    pub(super) fn close_id(&self, id: i64) -> bool {
        lock(&self.open).take_if(|open| open.id == id).is_some()
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

    pub(super) fn set_timeout(&self, timeout: Duration) {
        *lock(&self.timeout) = timeout;
    }

    /// Closes a cursor that nobody has asked for anything for too long.
    pub(super) fn expire(&self) {
        let id = lock(&self.open)
            .as_ref()
            .filter(|open| open.used.elapsed() > *lock(&self.timeout))
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
        let (mut refused, mut hang_up) = (None, false);
        let busy = match command.kind {
            Kind::GetMore(id) => {
                lock(&self.stalled).is_some_and(|(of, until)| of == id && Instant::now() < until)
            }
            _ => false,
        };
        match when.and_then(|when| if busy { None } else { self.faults.hit(when) }) {
            None if busy => refused = Some(Failure::usual(CURSOR_IN_USE)),
            None => {}
            Some(Fault::Fail(code)) => refused = Some(Failure::usual(code)),
            Some(Fault::Refuse(code, text)) => refused = Some(Failure::new(code, text)),
            Some(Fault::HangUp) => hang_up = true,
            Some(Fault::Stall(time)) => {
                if let Kind::GetMore(id) = command.kind {
                    *lock(&self.stalled) = Some((id, Instant::now() + time));
                }
                tokio::time::sleep(time).await;
            }
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
            PinError::Broken(error) => Failure::new(INTERNAL, format!("the cursor server: {error}")),
        });
        let code = result.as_ref().err().map(|failure| failure.code);
        lock(&self.seen).push(Seen { command: seen, code });
        if hang_up {
            return Answer::Silence;
        }
        Answer::Reply(result.unwrap_or_else(|failure| failure.to_reply()))
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
        let documents = cursor.feed.next(size);
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
}

pub(super) fn take(rest: &mut VecDeque<Document>, count: usize) -> Vec<Document> {
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
