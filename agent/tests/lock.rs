//! The fsyncLock source against real servers, with everything killed that can be killed.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{
    Mongod, connect, initiate, insert, is_locked, is_running, options, signal, single, source, top_of_oplog,
    with_auth, with_login, within,
};
use mongodb::bson::{Document, doc};
use pbmfs_agent::lock::guard::GUARD_ARGUMENT;
use pbmfs_agent::source::{MemberRole, SourceKind};
use pbmfs_agent::{ErrorKind, FileKind, FsyncLockSource, GuardCommand, LockOptions, Source, SourceError};
use rustix::process::{Pid, Signal, getsid};

/// Within this long after a death, a write must succeed.
const UNLOCKED: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn lock_list_unlock() {
    let server = Mongod::start(&["--replSet", "rs0", "--directoryperdb"]).await;
    initiate(&[&server], &[]).await;
    let client = server.client().await;
    for n in 0..100 {
        insert(&client, n).await.unwrap();
    }

    let mut source = FsyncLockSource::new(LockOptions {
        record_hashes: true,
        ..options(&server.uri())
    });
    let pinned = source.open().await.unwrap();
    assert!(is_locked(&server).await);
    source.check().unwrap();

    assert_eq!(pinned.root, server.dbpath());
    let find = |path: &str| pinned.files.iter().find(|file| file.path == path);
    assert!(find("WiredTiger.backup").is_some_and(|file| file.size > 0));
    assert_eq!(find("journal").unwrap().kind, FileKind::Directory);
    assert_eq!(find("test").unwrap().kind, FileKind::Directory);
    assert!(
        pinned
            .files
            .iter()
            .any(|file| file.path.starts_with("test/") && file.path.ends_with(".wt"))
    );
    for left_out in ["mongod.lock", "diagnostic.data"] {
        assert!(find(left_out).is_none());
    }
    // The diagnostics begin some time after the start, so they may not be there to be left out.
    assert!(pinned.left_out.iter().any(|out| out.path == "mongod.lock"));
    assert!(!pinned.files.iter().any(|file| file.path.starts_with("journal/")));
    for file in &pinned.files {
        let meta = std::fs::metadata(pinned.root.join(&file.path)).unwrap();
        assert!(
            file.kind == FileKind::Directory || meta.len() == file.size,
            "{}",
            file.path
        );
    }

    let info = &pinned.info;
    assert_eq!(info.source, SourceKind::FsyncLock);
    assert_eq!(info.role, Some(MemberRole::Primary));
    assert_eq!(info.replset.as_deref(), Some("rs0"));
    assert_eq!(info.node, Some(server.node()));
    assert!(info.mongod_version.as_ref().unwrap().contains('.'));
    assert!(info.fcv.is_some());
    assert!(info.storage.as_ref().unwrap().directory_per_db);
    assert_eq!(info.replica_set_id.as_ref().unwrap().len(), 24);
    assert_eq!(info.replset_config.as_ref().unwrap()["_id"], "rs0");
    assert_eq!(info.operation_time, Some(top_of_oplog(&server).await));
    let hashes = info.hashes.as_ref().unwrap();
    let test = hashes.iter().find(|hashes| hashes.db == "test").unwrap();
    assert_eq!(test.counts["c"], 100);
    assert_eq!(test.collections["c"].len(), 32);
    assert!(hashes.iter().all(|hashes| hashes.db != "local"));

    let guard = source.guard_pid().unwrap();
    source.release().await.unwrap();
    assert!(!is_locked(&server).await);
    insert(&client, 100).await.unwrap();
    within(UNLOCKED, "the guard ends", async || !is_running(guard)).await;
    assert!(matches!(source.check(), Err(SourceError::NotOpen)));

    // And once more with the same source.
    source.open().await.unwrap();
    source.release().await.unwrap();
}

/// A backup in a process of its own, that holds the lock and can be killed.
struct Holder {
    child: Child,
    guard: u32,
}

impl Holder {
    fn start(uri: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pbmfs-lock-probe"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{uri}").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let guard = line.trim().parse().expect("the guard's process id");
        Self { child, guard }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Starts writers that block on the lock: the worst that a new login can meet.
fn block_writers(uri: &str) -> Vec<tokio::task::JoinHandle<()>> {
    let writer = async |uri: String, n| {
        let client = connect(&uri).await;
        insert(&client, n).await.unwrap();
    };
    (0..20).map(|n| tokio::spawn(writer(uri.to_owned(), n))).collect()
}

async fn all_write_within(limit: Duration, writers: Vec<tokio::task::JoinHandle<()>>) {
    let all = futures::future::try_join_all(writers);
    tokio::time::timeout(limit, all)
        .await
        .expect("writes succeed in time")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_parent_leaves_no_lock() {
    let server = single().await;
    let mut holder = Holder::start(&server.uri());
    assert!(is_locked(&server).await);
    let guard = Pid::from_raw(holder.guard as i32).unwrap();
    assert_eq!(getsid(Some(guard)).unwrap(), guard, "a session of its own");
    // Not a signal, to the guard or to all of the parent's group, may take the guard before it has unlocked.
    for ignored in [Signal::INT, Signal::TERM, Signal::HUP] {
        signal(holder.guard, ignored);
    }
    let writers = block_writers(&server.uri());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(is_running(holder.guard) && is_locked(&server).await);

    holder.kill();
    all_write_within(UNLOCKED, writers).await;
    within(UNLOCKED, "the guard ends", async || !is_running(holder.guard)).await;
    assert!(!is_locked(&server).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_parent_leaves_no_lock_under_authentication() {
    let server = with_auth().await;
    let uri = with_login(&server, "root", "sesame");
    let mut holder = Holder::start(&uri);
    for place in ["cmdline", "environ"] {
        for process in [holder.child.id(), holder.guard] {
            let text = std::fs::read(format!("/proc/{process}/{place}")).unwrap();
            assert!(
                !String::from_utf8_lossy(&text).contains("sesame"),
                "a password in {place}"
            );
        }
    }
    let writers = block_writers(&uri);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    holder.kill();
    all_write_within(UNLOCKED, writers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_killed_while_it_locks_leaves_no_lock() {
    let server = single().await;
    for round in 0..10 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pbmfs-lock-probe"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{}", server.uri()).unwrap();
        tokio::time::sleep(Duration::from_millis(40 + 30 * round)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let write = async { insert(&server.client().await, 0).await };
        tokio::time::timeout(UNLOCKED, write)
            .await
            .expect("the write succeeds in time")
            .unwrap();
    }
    within(UNLOCKED, "the last lock ends", async || !is_locked(&server).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_guard_is_noticed_and_the_parent_unlocks() {
    let server = with_auth().await;
    let uri = with_login(&server, "root", "sesame");
    let mut source = source(&uri);
    source.open().await.unwrap();
    let writers = block_writers(&uri);
    tokio::time::sleep(Duration::from_millis(500)).await;
    signal(source.guard_pid().unwrap(), Signal::KILL);
    all_write_within(UNLOCKED, writers).await;
    assert_eq!(source.check().unwrap_err().kind(), ErrorKind::Lost);
    let error = source.release().await.unwrap_err();
    assert!(error.to_string().contains("was killed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_source_unlocks() {
    let server = single().await;
    let mut source = source(&server.uri());
    source.open().await.unwrap();
    drop(source);
    within(UNLOCKED, "unlocked", async || !is_locked(&server).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_is_noticed_and_starts_again() {
    let mut server = single().await;
    insert(&server.client().await, 1).await.unwrap();
    let mut source = source(&server.uri());
    source.open().await.unwrap();
    let guard = source.guard_pid().unwrap();
    server.kill();
    within(Duration::from_secs(5), "check notices", async || {
        source.check().is_err_and(|error| error.kind() == ErrorKind::Lost)
    })
    .await;
    server.start_again().await;
    let error = source.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(!error.to_string().contains("somebody"), "{error}");
    within(Duration::from_secs(15), "the guard ends", async || {
        !is_running(guard)
    })
    .await;
    assert!(!is_locked(&server).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_right_before_the_release_fails_it() {
    let mut server = single().await;
    let mut source = source(&server.uri());
    source.open().await.unwrap();
    server.kill();
    assert_eq!(source.release().await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_unlock_is_noticed() {
    let server = single().await;
    let mut source = source(&server.uri());
    source.open().await.unwrap();
    server.admin(doc! {"fsyncUnlock": 1}).await.unwrap();
    assert_eq!(source.check().unwrap_err().kind(), ErrorKind::Lost);
    // Even if the lock is put on again, so that our own unlock would succeed.
    server.admin(doc! {"fsync": 1, "lock": true}).await.unwrap();
    assert_eq!(source.release().await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_lock_on_top_of_ours_is_left_alone() {
    let server = single().await;
    let mut source = source(&server.uri());
    source.open().await.unwrap();
    server.admin(doc! {"fsync": 1, "lock": true}).await.unwrap();
    source.release().await.unwrap();
    assert!(is_locked(&server).await);
    server.admin(doc! {"fsyncUnlock": 1}).await.unwrap();
    assert!(!is_locked(&server).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_server_is_busy() {
    let server = single().await;
    server.admin(doc! {"fsync": 1, "lock": true}).await.unwrap();
    let error = source(&server.uri()).open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    let reply = server.admin(doc! {"fsyncUnlock": 1}).await.unwrap();
    assert_eq!(remaining(&reply), 0, "our attempt left no lock behind");
}

fn remaining(reply: &Document) -> i64 {
    reply
        .get_i64("lockCount")
        .or_else(|_| reply.get_i32("lockCount").map(i64::from))
        .unwrap()
}

/// Keeps the server from granting the lock until it is dropped or aborted: a transaction holds what the lock needs.
async fn hold_up(server: &Mongod) -> mongodb::ClientSession {
    let client = server.client().await;
    let collection = client.database("test").collection::<Document>("c");
    collection.insert_one(doc! {"n": 0}).await.unwrap();
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    collection
        .insert_one(doc! {"n": 1})
        .session(&mut session)
        .await
        .unwrap();
    session
}

async fn lock_is_awaited(server: &Mongod) -> bool {
    let reply = server
        .admin(doc! {"currentOp": 1, "command.comment": {"$regex": "^pbm-fs lock "}})
        .await
        .unwrap();
    !reply.get_array("inprog").unwrap().is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_not_granted_in_time_is_undone_when_it_is() {
    let server = single().await;
    let mut session = hold_up(&server).await;
    let mut source = FsyncLockSource::new(LockOptions {
        patience: Duration::from_secs(1),
        ..options(&server.uri())
    });
    let error = source.open().await.unwrap_err();
    assert!(matches!(error, SourceError::LockTimeout { .. }), "{error:?}");
    assert!(lock_is_awaited(&server).await);
    session.abort_transaction().await.unwrap();
    within(UNLOCKED, "nothing is locked", async || {
        !lock_is_awaited(&server).await && !is_locked(&server).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_killed_while_it_waits_for_the_lock_leaves_none() {
    let server = single().await;
    let mut session = hold_up(&server).await;
    let mut parent = Command::new(env!("CARGO_BIN_EXE_pbmfs-lock-probe"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    writeln!(parent.stdin.take().unwrap(), "{}", server.uri()).unwrap();
    within(Duration::from_secs(10), "the lock is awaited", async || {
        lock_is_awaited(&server).await
    })
    .await;
    parent.kill().unwrap();
    parent.wait().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    session.abort_transaction().await.unwrap();
    within(UNLOCKED, "nothing is locked", async || {
        !lock_is_awaited(&server).await && !is_locked(&server).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_killed_while_it_waits_for_the_lock_leaves_none() {
    let server = single().await;
    let mut session = hold_up(&server).await;
    let place = tempfile::tempdir().unwrap();
    let pid_file = place.path().join("pid");
    let probe = env!("CARGO_BIN_EXE_pbmfs-lock-probe");
    let script = format!("echo $$ > {}; exec {probe} {GUARD_ARGUMENT}", pid_file.display());
    let guard = GuardCommand {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
    };
    let mut source = FsyncLockSource::new(LockOptions {
        guard,
        ..options(&server.uri())
    });

    let opening = tokio::spawn(async move { source.open().await });
    within(Duration::from_secs(10), "the lock is awaited", async || {
        lock_is_awaited(&server).await
    })
    .await;
    let guard = std::fs::read_to_string(pid_file).unwrap();
    signal(guard.trim().parse().unwrap(), Signal::KILL);
    tokio::time::sleep(Duration::from_millis(500)).await;
    session.abort_transaction().await.unwrap();
    let error = opening.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert!(!lock_is_awaited(&server).await && !is_locked(&server).await);
}
