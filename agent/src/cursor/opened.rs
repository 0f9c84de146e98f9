//! An open backup cursor: the connection and session that it belongs to, and the task that keeps it alive.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mongodb::ClientSession;
use mongodb::bson::{Bson, Document, doc};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::SourceError;
use crate::node::server::{CommandFailure, Server};

/// Longest time for an answer of the cursor: opening it makes the server flush, and may wait for a checkpoint.
const ANSWER: Duration = Duration::from_secs(120);

/// Longest time for a sign of life.
const BEAT_ANSWER: Duration = Duration::from_secs(20);

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

    /// Everything that a cursor has to say; for those that stay open, everything for now.
    pub async fn drain(&mut self, mut documents: Vec<Document>) -> Result<Vec<Document>, CommandFailure> {
        while self.is_open() {
            let more = self.more(ANSWER).await?;
            if more.is_empty() {
                break;
            }
            documents.extend(more);
        }
        Ok(documents)
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

/// Journal files that exist when everything up to `timestamp` is in them, as the server names them.
pub(crate) async fn extend(
    server: &Server,
    backup_id: &Bson,
    timestamp: Bson,
    limit: Duration,
) -> Result<Vec<Document>, CommandFailure> {
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
    let documents = cursor.drain(documents).await?;
    if let Err(failure) = cursor.kill().await {
        tracing::debug!(%failure, "while closing the cursor of $backupCursorExtend");
    }
    Ok(documents)
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
        let task = tokio::spawn(keep(cursor, every, stopped, lost.clone()));
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
    every: Duration,
    mut stopped: oneshot::Receiver<()>,
    lost: Arc<Mutex<Option<String>>>,
) -> Result<(), String> {
    loop {
        let last = timeout(every, &mut stopped).await.is_ok();
        let reason = match cursor.more(BEAT_ANSWER).await {
            Ok(_) if cursor.is_open() => None,
            Ok(_) => Some("the server closed it".to_owned()),
            Err(CommandFailure::Refused { code: 43, .. }) => {
                Some("the server does not know it any more".into())
            }
            Err(failure) => Some(failure.to_string()),
        };
        if let Some(reason) = reason {
            *lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
            // It may be there still, if only the answer was lost.
            let _ = cursor.kill().await;
            return Err(reason);
        }
        if last {
            break;
        }
    }
    // What was read is good whether or not this is heard; the server closes a cursor that nobody asks.
    if let Err(failure) = cursor.kill().await {
        tracing::warn!(%failure, "the backup cursor could not be closed: the server will close it in some minutes");
    }
    Ok(())
}
