//! Which member the fsyncLock source takes, and which it refuses.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use common::{
    Mongod, connect, initiate, insert, is_locked, options, single, source, top_of_oplog, with_auth,
    with_login,
};
use pbmfs_agent::source::MemberRole;
use pbmfs_agent::{ErrorKind, FsyncLockSource, GuardCommand, LockOptions, Source, SourceError};

#[tokio::test(flavor = "multi_thread")]
async fn logins_are_told_apart() {
    let server = with_auth().await;
    let wrong = source(&with_login(&server, "root", "wrong"))
        .open()
        .await
        .unwrap_err();
    assert!(matches!(wrong, SourceError::WrongPassword { .. }), "{wrong:?}");
    assert_eq!(wrong.kind(), ErrorKind::Auth);

    let none = source(&server.uri()).open().await.unwrap_err();
    assert!(matches!(none, SourceError::NotAllowed { .. }), "{none:?}");
    let nobody = source(&with_login(&server, "nobody", "sesame"))
        .open()
        .await
        .unwrap_err();
    assert!(matches!(nobody, SourceError::NotAllowed { .. }), "{nobody:?}");

    let uri = with_login(&server, "operator", "sesame");
    let mut operator = FsyncLockSource::new(LockOptions {
        record_hashes: true,
        ..options(&uri)
    });
    let hashes = operator.open().await.unwrap().info.hashes.unwrap();
    for db in hashes {
        for name in db
            .collections
            .keys()
            .filter(|name| !db.counts.contains_key(*name))
        {
            eprintln!("not counted: {}.{name}", db.db);
        }
    }
    operator.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secondary_is_chosen_and_hashed_under_its_lock() {
    let servers = [
        Mongod::start(&["--replSet", "rs0"]).await,
        Mongod::start(&["--replSet", "rs0"]).await,
        Mongod::start(&["--replSet", "rs0"]).await,
    ];
    initiate(&[&servers[0], &servers[1], &servers[2]], &[]).await;
    let client = connect(&format!("mongodb://{}/?replicaSet=rs0", servers[0].node())).await;
    for n in 0..50 {
        insert(&client, n).await.unwrap();
    }
    // Writers go on: the primary is not locked.
    let writing = tokio::spawn({
        let client = client.clone();
        async move {
            for n in 50..100_000 {
                insert(&client, n).await.unwrap();
            }
        }
    });
    let seed = format!("mongodb://{}/", servers[0].node());
    let mut source = FsyncLockSource::new(LockOptions {
        record_hashes: true,
        ..options(&seed)
    });
    let pinned = source.open().await.unwrap();
    assert_eq!(pinned.info.role, Some(MemberRole::Secondary));
    let locked = servers
        .iter()
        .find(|server| Some(server.node()) == pinned.info.node)
        .unwrap();
    assert_eq!(pinned.root, locked.dbpath());
    assert!(is_locked(locked).await && !is_locked(&servers[0]).await);
    assert_eq!(pinned.info.operation_time, Some(top_of_oplog(locked).await));
    let hashes = pinned.info.hashes.unwrap();
    assert!(hashes.iter().find(|hashes| hashes.db == "test").unwrap().counts["c"] >= 50);

    // Replication goes on, and not a byte of what is pinned changes.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for file in pinned.files {
        let meta = std::fs::metadata(pinned.root.join(&file.path)).unwrap();
        let modified = (meta.mtime(), meta.mtime_nsec() as u32);
        assert_eq!(modified, (file.mtime.secs, file.mtime.nanos), "{}", file.path);
        assert!(meta.is_dir() || meta.len() == file.size, "{}", file.path);
    }
    source.check().unwrap();
    source.release().await.unwrap();
    assert!(!writing.is_finished());
    writing.abort();

    // --node decides over everything else.
    let node = Some(servers[0].node());
    let mut source = FsyncLockSource::new(LockOptions {
        node,
        ..options(&seed)
    });
    assert_eq!(source.open().await.unwrap().info.role, Some(MemberRole::Primary));
    source.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn arbiters_and_empty_sets_are_refused() {
    let empty = Mongod::start(&["--replSet", "rs0"]).await;
    let error = source(&empty.uri()).open().await.unwrap_err();
    assert!(matches!(error, SourceError::NotInitiated { .. }), "{error:?}");

    let arbiter = Mongod::start(&["--replSet", "rs0"]).await;
    initiate(&[&empty, &arbiter], &[1]).await;
    let error = source(&arbiter.uri()).open().await.unwrap_err();
    assert!(matches!(error, SourceError::Arbiter { .. }), "{error:?}");
    // As a seed it leads to the others; the only one with data is the primary.
    let mut through = source(&format!("mongodb://{}/", arbiter.node()));
    assert_eq!(through.open().await.unwrap().info.role, Some(MemberRole::Primary));
    through.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_has_no_time_and_no_set() {
    let server = Mongod::start(&[]).await;
    let mut source = source(&format!("mongodb://{}/", server.node()));
    let info = source.open().await.unwrap().info;
    assert_eq!(
        (info.role, info.replset, info.operation_time),
        (Some(MemberRole::Standalone), None, None)
    );
    source.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_servers_directory_is_noticed_and_unlocked() {
    let server = single().await;
    let other = single().await;
    // By the process id in mongod.lock, before anything is locked…
    let mut elsewhere = options(&server.uri());
    elsewhere.dbpath = Some(other.dbpath());
    let error = FsyncLockSource::new(elsewhere).open().await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("process {} has it", other.pid())),
        "{error}"
    );

    // …and where that lies (process 1 of two containers), by the file that the lock did not make there.
    let fake = tempfile::tempdir().unwrap();
    std::fs::write(fake.path().join("mongod.lock"), server.pid().to_string()).unwrap();
    std::fs::write(fake.path().join("WiredTiger.backup"), "of an older backup").unwrap();
    let mut elsewhere = options(&server.uri());
    elsewhere.dbpath = Some(fake.path().into());
    let error = FsyncLockSource::new(elsewhere).open().await.unwrap_err();
    assert!(
        error.to_string().contains("WiredTiger.backup did not appear"),
        "{error}"
    );
    assert!(!is_locked(&server).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reached_or_started_is_told() {
    let error = source("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300")
        .open()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("connection refused"), "{error}");
    let error = source("http://nonsense").open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");

    let server = single().await;
    let mut broken = options(&server.uri());
    broken.guard = GuardCommand {
        program: "/nonexistent/pbm-fs".into(),
        args: vec![],
    };
    let error = FsyncLockSource::new(broken).open().await.unwrap_err();
    assert!(matches!(error, SourceError::Guard { .. }), "{error:?}");
    let mut silent = options(&server.uri());
    silent.guard = GuardCommand {
        program: "/bin/true".into(),
        args: vec![],
    };
    let error = FsyncLockSource::new(silent).open().await.unwrap_err();
    assert!(matches!(error, SourceError::Guard { .. }), "{error:?}");
    assert!(!is_locked(&server).await);
}
