//! One client's connection and the one to the real server that belongs to it.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
};

use mongodb::bson::{Bson, Document, RawDocument, doc};
use tokio::{
    io::{
        AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf,
    },
    sync::oneshot,
};

use super::{
    documents::{Command, Kind},
    failure::{Failure, NO_LOCK_BESIDE_CURSOR, UNAUTHORIZED},
    server::{Answer, Server},
    wire::Message,
};

/// A connection, with TLS or without.
pub(super) type Stream = Box<dyn ReadWrite>;

pub(super) trait ReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ReadWrite for T {}

type Reader = BufReader<ReadHalf<Stream>>;

struct Link {
    server: Arc<Server>,
    to_client: tokio::sync::Mutex<WriteHalf<Stream>>,
    to_upstream: tokio::sync::Mutex<WriteHalf<Stream>>,
    /// Requests of our own on the client's upstream connection, by their ids.
    asked: Mutex<HashMap<i32, oneshot::Sender<Document>>>,
    next_request: AtomicI32,
}

/// Serves a client until either side goes.
pub(super) async fn serve(server: Arc<Server>, client: Stream, upstream: Stream) {
    let mut kick = server.kick.subscribe();
    let (from_client, to_client) = tokio::io::split(client);
    let (from_upstream, to_upstream) = tokio::io::split(upstream);
    let link = Link {
        server,
        to_client: to_client.into(),
        to_upstream: to_upstream.into(),
        asked: Mutex::default(),
        // Clients count up from 0 or so.
        next_request: AtomicI32::new(i32::MIN),
    };
    // How it ended does not matter: both sides see the end of their connection.
    tokio::select! {
        _ = link.requests(BufReader::new(from_client)) => {}
        _ = link.replies(BufReader::new(from_upstream)) => {}
        _ = kick.changed() => {}
    }
}

impl Link {
    async fn requests(&self, mut from: Reader) -> io::Result<()> {
        while let Some(message) = Message::read(&mut from).await? {
            match self.decide(&message) {
                Decision::Forward => self.send_up(&message).await?,
                Decision::Rewrite(document) => self.send_up(&message.with_document(&document)).await?,
                Decision::Refuse(failure) => self.reply(&message, &failure.to_reply()).await?,
                Decision::Answer(command) => {
                    let answer = match self.may(&command).await? {
                        Err(failure) => Some(Answer::Reply(failure.to_reply())),
                        Ok(()) => self.answer(command, &mut from).await,
                    };
                    match answer {
                        Some(Answer::Reply(document)) => self.reply(&message, &document).await?,
                        Some(Answer::Pass) => self.send_up(&message).await?,
                        Some(Answer::Silence) | None => return Ok(()),
                    }
                }
            }
        }
        Ok(())
    }

    async fn replies(&self, mut from: Reader) -> io::Result<()> {
        while let Some(message) = Message::read(&mut from).await? {
            let asker = self.asked().remove(&message.response_to());
            match asker {
                Some(asker) => {
                    let document = message.document().and_then(|raw| Document::try_from(raw).ok());
                    let _ = asker.send(document.unwrap_or_default());
                }
                None => self.to_client.lock().await.write_all(message.bytes()).await?,
            }
        }
        Ok(())
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, HashMap<i32, oneshot::Sender<Document>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send_up(&self, message: &Message) -> io::Result<()> {
        self.to_upstream.lock().await.write_all(message.bytes()).await
    }

    async fn reply(&self, to: &Message, document: &Document) -> io::Result<()> {
        if !to.wants_reply() {
            return Ok(());
        }
        let id = self.next_request.fetch_add(1, Ordering::Relaxed);
        let reply = Message::new(id, to.request_id(), document);
        self.to_client.lock().await.write_all(reply.bytes()).await
    }

    fn decide(&self, message: &Message) -> Decision {
        let Some(body) = message.document() else {
            return Decision::Forward;
        };
        let Some(Ok((name, _))) = body.iter().next() else {
            return Decision::Forward;
        };
        match name {
            // Nothing compressed can be looked into.
            "hello" | "isMaster" | "ismaster" => {
                let mut hello = Document::try_from(body).unwrap_or_default();
                match hello.remove("compression") {
                    Some(_) => Decision::Rewrite(hello),
                    None => Decision::Forward,
                }
            }
            // A real server refuses the lock, and the pin is not bothered by one.
            "fsync" if self.server.is_open() && body.get_bool("lock") == Ok(true) => {
                Decision::Refuse(Failure::usual(NO_LOCK_BESIDE_CURSOR))
            }
            // A real server closes them when it next looks after its sessions.
            "endSessions" => {
                self.end_sessions(body);
                Decision::Forward
            }
            _ => match Command::of(body) {
                Some(command) if self.server.is_ours(&command) => Decision::Answer(command),
                _ => Decision::Forward,
            },
        }
    }

    fn end_sessions(&self, body: &RawDocument) {
        let Ok(body) = Document::try_from(body) else {
            return;
        };
        let Ok(sessions) = body.get_array("endSessions") else {
            return;
        };
        for id in sessions
            .iter()
            .filter_map(Bson::as_document)
            .filter_map(|session| session.get("id"))
        {
            self.server.close_session(id);
        }
    }

    /// Answers in a task of its own, because an open goes on to its end when the client goes; what it opened is then
    /// closed, as a real server closes it. `None` when the client has gone.
    async fn answer(&self, command: Command, from: &mut Reader) -> Option<Answer> {
        let (mut send, receive) = oneshot::channel();
        let server = Arc::clone(&self.server);
        tokio::spawn(async move {
            let is_open = matches!(command.kind, Kind::Open(_));
            let answer = match is_open {
                true => server.answer(&command).await,
                false => tokio::select! {
                    answer = server.answer(&command) => answer,
                    () = send.closed() => return,
                },
            };
            if let Err(Answer::Reply(document)) = send.send(answer)
                && is_open
                && let Some(id) = cursor_id(&document)
            {
                server.close_id(id);
            }
        });
        tokio::select! {
            answer = receive => answer.ok(),
            () = end_of(from) => None,
        }
    }

    /// Whether who is logged in may use the stages.
    async fn may(&self, command: &Command) -> io::Result<Result<(), Failure>> {
        if !self.server.upstream.auth || !matches!(command.kind, Kind::Open(_) | Kind::Extend(_)) {
            return Ok(Ok(()));
        }
        let ask = doc! {"connectionStatus": 1, "showPrivileges": true, "$db": "admin"};
        let info = self
            .ask(&ask)
            .await?
            .get_document("authInfo")
            .cloned()
            .unwrap_or_default();
        let list = |name: &str| info.get_array(name).cloned().unwrap_or_default();
        let refused = |text: &str| Ok(Err(Failure::new(UNAUTHORIZED, text)));
        if list("authenticatedUsers").is_empty() {
            return refused("command aggregate requires authentication");
        }
        if !list("authenticatedUserPrivileges")
            .iter()
            .filter_map(Bson::as_document)
            .any(allows_fsync)
        {
            return refused(
                "not authorized on admin to execute command { aggregate: 1, pipeline: [ { $backupCursor } ] }",
            );
        }
        Ok(Ok(()))
    }

    /// Runs a command as the client that is logged in here.
    async fn ask(&self, command: &Document) -> io::Result<Document> {
        let id = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = oneshot::channel();
        self.asked().insert(id, send);
        self.send_up(&Message::new(id, 0, command)).await?;
        receive.await.map_err(|_| io::ErrorKind::UnexpectedEof.into())
    }
}

enum Decision {
    Forward,
    Rewrite(Document),
    Refuse(Failure),
    Answer(Command),
}

fn cursor_id(reply: &Document) -> Option<i64> {
    reply.get_document("cursor").ok()?.get_i64("id").ok()
}

/// The stage asks for `fsync` on the cluster, which `hostManager` grants.
fn allows_fsync(privilege: &Document) -> bool {
    let Ok(resource) = privilege.get_document("resource") else {
        return false;
    };
    let covers = ["cluster", "anyResource"]
        .iter()
        .any(|name| resource.get_bool(name) == Ok(true));
    let actions = privilege.get_array("actions").cloned().unwrap_or_default();
    covers
        && actions
            .iter()
            .any(|action| matches!(action.as_str(), Some("fsync" | "anyAction")))
}

/// Returns when the other side has gone, and not when it says something.
async fn end_of(from: &mut (impl AsyncBufRead + Unpin)) {
    match from.fill_buf().await {
        Ok(bytes) if !bytes.is_empty() => std::future::pending().await,
        _ => {}
    }
}
