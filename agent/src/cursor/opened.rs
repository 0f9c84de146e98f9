//! An open backup cursor: the connection and session that it belongs to, and the task that keeps it alive.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mongodb::ClientSession;
use mongodb::bson::{Bson, Document, doc};
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

/// A cursor as the server gave it. Dropped without [`RawCursor::kill`] it stays on the server until its session ends.
pub(crate) struct RawCursor {
    server: Server,
    session: ClientSession,
    id: i64,
}

impl RawCursor {
    /// Runs a pipeline without collection on a session of its own, and gives back the cursor and its first documents.
    pub async fn open(server: &Server, stage: Document) -> Result<(Self, Vec<Document>), CommandFailure> {
        Self::open_within(server, stage, ANSWER).await
    }

    async fn open_within(
        server: &Server,
        stage: Document,
        limit: Duration,
    ) -> Result<(Self, Vec<Document>), CommandFailure> {
        let mut session = server.session().await?;
        let command = doc! {"aggregate": 1, "pipeline": [stage], "cursor": {}};
        let reply = answer(limit, server.run_in(&mut session, "admin", command)).await?;
        let (id, documents) = batch(&reply, "firstBatch")?;
        let cursor = Self {
            server: server.clone(),
            session,
            id,
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
    pub async fn kill(self) -> Result<(), CommandFailure> {
        if !self.is_open() {
            return Ok(());
        }
        // The driver allows no session here, and the server asks for none.
        let command = doc! {"killCursors": COLLECTIONLESS, "cursors": [self.id]};
        let killed = self.server.run_patiently("admin", command);
        answer(BEAT_ANSWER, killed).await.map(drop)
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
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), String>>,
}

impl Kept {
    /// Asks the cursor for more every so often: the server closes one that nobody asks, and tells so when it is gone.
    pub fn start(cursor: RawCursor, node: String, every: Duration) -> Self {
        let (stop, stopped) = oneshot::channel();
        let lost = Arc::new(Mutex::new(None));
        let task = tokio::spawn(keep(cursor, every, stopped, lost.clone()));
        Self {
            node,
            lost,
            stop,
            task,
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
    pub async fn close(self) -> Result<(), SourceError> {
        let Self { stop, task, node, .. } = self;
        drop(stop);
        let ended = task.await.unwrap_or_else(|e| Err(e.to_string()));
        ended.map_err(|reason| SourceError::CursorLost { node, reason })
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
