//! An open backup cursor: the connection and session that it belongs to, and the task that keeps it alive.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mongodb::ClientSession;
use mongodb::bson::{Bson, Document, doc};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::error::SourceError;
use crate::node::server::{CommandFailure, REFUSED, Server};

/// Longest time for an answer of the cursor: opening it makes the server flush, and may wait for a checkpoint.
const ANSWER: Duration = Duration::from_secs(120);

/// Longest time for a sign of life, after which it is asked for once more.
const BEAT_ANSWER: Duration = Duration::from_secs(20);

/// How long a cursor may give no sign of life. Half of what a server waits before it closes one that nobody asks
/// (`cursorTimeoutMillis`), so what is asked for last is asked for in time.
const SILENCE: Duration = Duration::from_secs(300);

/// A connection that breaks so often in a row, each time at once, has no server behind it.
const BROKEN: u32 = 4;

/// Another getMore of the cursor is being answered: it is there.
const CURSOR_IN_USE: i32 = 12051;

/// Namespace of cursors that belong to no collection.
const COLLECTIONLESS: &str = "$cmd.aggregate";

/// Cursors that are being closed because whoever had them was dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Closing(Arc<Mutex<Vec<JoinHandle<()>>>>);

impl Closing {
    fn add(&self, closing: impl Future<Output = ()> + Send + 'static) {
        // Without a runtime nothing can be sent; the server closes a cursor that nobody asks.
        if let Ok(runtime) = Handle::try_current() {
            self.tasks().push(runtime.spawn(closing));
        }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all of them are closed, or given up.
    pub async fn wait(&self) {
        let tasks = std::mem::take(&mut *self.tasks());
        for task in tasks {
            let _ = task.await;
        }
    }
}

/// A cursor as the server gave it. Dropped, it is closed in the background.
pub(crate) struct RawCursor {
    server: Server,
    session: ClientSession,
    id: i64,
    closing: Closing,
}

impl Drop for RawCursor {
    fn drop(&mut self) {
        if self.id != 0 {
            let (server, id) = (self.server.clone(), self.id);
            self.closing.add(async move {
                if let Err(failure) = kill(&server, id).await {
                    tracing::debug!(%failure, "while closing a cursor that was given up");
                }
            });
        }
    }
}

async fn kill(server: &Server, id: i64) -> Result<(), CommandFailure> {
    // The driver allows no session here, and the server asks for none.
    let command = doc! {"killCursors": COLLECTIONLESS, "cursors": [id]};
    let killed = server.run_patiently("admin", command);
    answer(BEAT_ANSWER, killed).await.map(drop)
}

impl RawCursor {
    /// Runs a pipeline without collection on a session of its own, and gives back the cursor and its first documents.
    pub async fn open(
        server: &Server,
        stage: Document,
        closing: &Closing,
    ) -> Result<(Self, Vec<Document>), CommandFailure> {
        let mut session = server.session().await?;
        let command = doc! {"aggregate": 1, "pipeline": [stage], "cursor": {}};
        let reply = answer(ANSWER, server.run_in(&mut session, "admin", command)).await?;
        let (id, documents) = batch(&reply, "firstBatch")?;
        let cursor = Self {
            server: server.clone(),
            session,
            id,
            closing: closing.clone(),
        };
        Ok((cursor, documents))
    }

    /// The next documents; none if the server has no more now.
    pub async fn more(&mut self, limit: Duration) -> Result<Vec<Document>, CommandFailure> {
        let command = doc! {"getMore": self.id, "collection": COLLECTIONLESS};
        let reply = answer(limit, self.server.run_in(&mut self.session, "admin", command)).await?;
        let (id, documents) = batch(&reply, "nextBatch")?;
        self.id = id;
        Ok(documents)
    }

    /// Hands out everything that a cursor has to say, beginning with what it said when it was opened; of one that stays
    /// open, everything for now. A large server has millions of documents: no more than a batch is in memory.
    pub async fn drain(
        &mut self,
        mut documents: Vec<Document>,
        mut take: impl FnMut(&Document) -> Result<(), String>,
    ) -> Result<Result<(), String>, CommandFailure> {
        loop {
            if let Err(strange) = documents.iter().try_for_each(&mut take) {
                return Ok(Err(strange));
            }
            if !self.is_open() {
                return Ok(Ok(()));
            }
            documents = self.more(ANSWER).await?;
            if documents.is_empty() {
                return Ok(Ok(()));
            }
        }
    }

    /// Whether the server still has it.
    pub fn is_open(&self) -> bool {
        self.id != 0
    }

    /// Closes it.
    pub async fn kill(mut self) -> Result<(), CommandFailure> {
        match std::mem::take(&mut self.id) {
            0 => Ok(()),
            id => kill(&self.server, id).await,
        }
    }
}

async fn answer<T>(
    limit: Duration,
    asked: impl Future<Output = Result<T, CommandFailure>>,
) -> Result<T, CommandFailure> {
    timeout(limit, asked).await.unwrap_or_else(|_| {
        Err(CommandFailure::Unreachable {
            reason: format!("no answer within {} s", limit.as_secs()),
        })
    })
}

fn batch(reply: &Document, key: &str) -> Result<(i64, Vec<Document>), CommandFailure> {
    let read = || {
        let cursor = reply.get_document("cursor").ok()?;
        let documents = cursor.get_array(key).ok()?.iter();
        let documents = documents
            .map(|d| d.as_document().cloned())
            .collect::<Option<Vec<_>>>()?;
        Some((cursor.get_i64("id").ok()?, documents))
    };
    read().ok_or_else(|| CommandFailure::Refused {
        command: "$backupCursor".into(),
        code: 0,
        reason: "the reply holds no cursor".into(),
    })
}

/// Hands out the journal files that exist when everything up to `timestamp` is in them, as the server names them.
pub(crate) async fn extend(
    server: &Server,
    backup_id: &Bson,
    timestamp: Bson,
    limit: Duration,
    take: impl FnMut(&Document) -> Result<(), String>,
) -> Result<Result<(), String>, CommandFailure> {
    let mut session = server.session().await?;
    let stage = doc! {"$backupCursorExtend": {"backupId": backup_id, "timestamp": timestamp}};
    let millis = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
    let command = doc! {"aggregate": 1, "pipeline": [stage], "cursor": {}, "maxTimeMS": millis};
    // The server's own limit comes first; ours is for one that does not keep it.
    let reply = answer(limit + ANSWER, server.run_in(&mut session, "admin", command)).await?;
    let (id, documents) = batch(&reply, "firstBatch")?;
    let mut cursor = RawCursor {
        server: server.clone(),
        session,
        id,
        closing: Closing::default(),
    };
    let taken = cursor.drain(documents, take).await?;
    if let Err(failure) = cursor.kill().await {
        tracing::debug!(%failure, "while closing the cursor of $backupCursorExtend");
    }
    Ok(taken)
}

/// A cursor that is kept alive. Dropped, it is closed in the background.
#[derive(Debug)]
pub(crate) struct Kept {
    node: String,
    lost: Arc<Mutex<Option<String>>>,
    running: Option<Running>,
    closing: Closing,
}

/// The task that keeps a cursor alive, and closes it when the sender goes.
#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), String>>,
}

impl Running {
    async fn end(self) -> Result<(), String> {
        drop(self.stop);
        self.task.await.unwrap_or_else(|e| Err(e.to_string()))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            self.closing.add(async move {
                let _ = running.end().await;
            });
        }
    }
}

impl Kept {
    /// Asks the cursor for more every so often: the server closes one that nobody asks, and tells so when it is gone.
    pub fn start(cursor: RawCursor, node: String, every: Duration) -> Self {
        let (stop, stopped) = oneshot::channel();
        let lost = Arc::new(Mutex::new(None));
        let closing = cursor.closing.clone();
        let task = tokio::spawn(keep(cursor, node.clone(), every, stopped, lost.clone()));
        Self {
            node,
            lost,
            running: Some(Running { stop, task }),
            closing,
        }
    }

    fn lost(&self, reason: String) -> SourceError {
        SourceError::CursorLost {
            node: self.node.clone(),
            reason,
        }
    }

    /// # Errors
    /// `CursorLost` if it is known to be gone.
    pub fn check(&self) -> Result<(), SourceError> {
        match &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(reason) => Err(self.lost(reason.clone())),
            None => Ok(()),
        }
    }

    /// Makes sure that it is there still, and so was all the time, and closes it.
    pub async fn close(mut self) -> Result<(), SourceError> {
        match self.running.take() {
            Some(running) => running.end().await.map_err(|reason| self.lost(reason)),
            None => Ok(()),
        }
    }
}

async fn keep(
    mut cursor: RawCursor,
    node: String,
    every: Duration,
    mut stopped: oneshot::Receiver<()>,
    lost: Arc<Mutex<Option<String>>>,
) -> Result<(), String> {
    let (mut stopping, mut answered, mut broken) = (false, Instant::now(), 0);
    loop {
        if stopping {
            sleep(every).await;
        } else {
            stopping = timeout(every, &mut stopped).await.is_ok();
        }
        let asked = Instant::now();
        let reason = match cursor.more(BEAT_ANSWER).await {
            Ok(_) if cursor.is_open() => None,
            Ok(_) => Some("the server closed it".to_owned()),
            Err(CommandFailure::Refused { code: 43, .. }) => {
                Some("the server does not know it any more".into())
            }
            Err(CommandFailure::Refused {
                code: CURSOR_IN_USE, ..
            }) => None,
            // Only the answer is lost, as far as anybody knows.
            Err(CommandFailure::Unreachable { reason }) if reason != REFUSED => {
                broken = if asked.elapsed() < BEAT_ANSWER {
                    broken + 1
                } else {
                    0
                };
                if broken < BROKEN && answered.elapsed() < SILENCE {
                    tracing::warn!(
                        "{node} did not answer for the backup cursor ({reason}): it is asked again"
                    );
                    continue;
                }
                Some(reason)
            }
            Err(failure) => Some(failure.to_string()),
        };
        (answered, broken) = (Instant::now(), 0);
        if let Some(reason) = reason {
            *lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
            // It may be there still, if only the answer was lost.
            let _ = cursor.kill().await;
            return Err(reason);
        }
        if stopping {
            break;
        }
    }
    // What was read is good whether or not this is heard; the server closes a cursor that nobody asks.
    if let Err(failure) = cursor.kill().await {
        tracing::warn!(%failure, "the backup cursor could not be closed: the server will close it in some minutes");
    }
    Ok(())
}
