//! The directory source against a real server's dbPath.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

mod common;

use common::single;
use pbmfs_agent::{DirectorySource, ErrorKind, Source};

#[tokio::test(flavor = "multi_thread")]
async fn a_dbpath_is_refused_while_its_server_runs_and_taken_afterwards() {
    let mut server = single().await;
    let mut source = DirectorySource::new(server.dbpath());
    let error = source.open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(
        error.to_string().contains("in use by a running mongod"),
        "{error}"
    );

    server.stop();
    let pinned = source.open().await.unwrap();
    assert!(
        pinned
            .files
            .iter()
            .any(|file| file.path.starts_with("journal/WiredTigerLog."))
    );
    source.check().unwrap();
    source.release().await.unwrap();

    // A crashed server's lock file is not empty and not held.
    server.start_again().await;
    server.kill();
    assert_ne!(
        std::fs::metadata(server.dbpath().join("mongod.lock"))
            .unwrap()
            .len(),
        0
    );
    source.open().await.unwrap();

    // A server that starts while the files are read spoils them.
    server.start_again().await;
    assert_eq!(source.check().unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(source.release().await.unwrap_err().kind(), ErrorKind::Busy);
}
