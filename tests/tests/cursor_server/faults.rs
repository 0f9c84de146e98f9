//! Each fault that can be injected.

use std::time::Duration;

use mongodb::bson::{Timestamp, doc};
use pbmfs_tests::cursor_server::{Fault, Oddities, When, failure};

use crate::client::{Live, base, broke, code, increment, majority_time};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn commands_are_refused_as_often_as_was_asked_for() {
    let live = Live::quiet().await;
    let faults = live.server().faults();
    faults.inject(When::Open, Fault::Fail(failure::CHECKPOINT_CONFLICT), 1);
    faults.inject(When::Open, Fault::Fail(failure::OPLOG_ROLLED_OVER), 1);
    faults.inject(When::Open, Fault::Fail(failure::CURSOR_OPEN), 2);
    faults.inject(When::Open, Fault::Unsupported, 1);
    // A name is used up by a cursor that was open for a moment, and by no other.
    let mut codes = Vec::new();
    for name in ["a", "b", "c", "c", "c", "a", "c"] {
        codes.push(code(live.touch(base(name)).await).unwrap_or(0));
    }
    // Both bases took the first of two slots.
    assert_eq!(codes, [50_915, 50_917, 50_886, 50_886, 40_324, 0, 0]);
    faults.inject(When::Open, Fault::Fail(failure::CHECKPOINT_CONFLICT), 1);
    assert_eq!(code(live.touch(increment("c", "d")).await), Some(50_915));
    assert_eq!(
        code(live.touch(increment("c", "d")).await),
        Some(failure::BAD_VALUE)
    );
    live.touch(increment("c", "d.1")).await.unwrap();
    faults.inject(When::Open, Fault::Fail(failure::UNKNOWN_ERROR), 1);
    let error = live.open(increment("d.1", "e")).await.err().unwrap().to_string();
    assert!(error.contains("No such file or directory"), "{error}");

    faults.inject(When::Open, Fault::Delay(Duration::from_millis(200)), 1);
    let mut cursor = live.open(increment("d.1", "e")).await.unwrap();
    let now = majority_time(&live.client).await;
    faults.inject(When::Extend, Fault::Hang, 1);
    faults.inject(When::Extend, Fault::Fail(failure::INTERRUPTED), 1);
    let short = Duration::from_millis(200);
    assert_eq!(code(cursor.extend(now, short).await), Some(failure::TIME_LIMIT));
    assert_eq!(code(cursor.extend(now, LIMIT).await), Some(failure::INTERRUPTED));
    assert!(!cursor.extend(now, LIMIT).await.unwrap().is_empty());
    faults.inject_after(1, When::GetMore, Fault::LoseCursor, 1);
    assert!(cursor.get_more().await.unwrap().is_empty());
    assert_eq!(code(cursor.get_more().await), Some(failure::CURSOR_NOT_FOUND));
    assert!(!cursor.dbpath().exists());
}

#[tokio::test]
async fn a_cursor_goes_with_its_connections_and_with_its_server() {
    let mut live = Live::quiet().await;
    let mut cursor = live.open(doc! {}).await.unwrap();
    live.server()
        .faults()
        .inject(When::GetMore, Fault::DropConnections, 1);
    assert!(broke(&cursor.get_more().await));
    assert!(!live.server().is_open() && !cursor.dbpath().exists());

    // A client that hangs up while its cursor is being opened leaves none behind, and no lock.
    live.server()
        .faults()
        .inject(When::Open, Fault::Delay(Duration::from_millis(300)), 1);
    let opening = tokio::time::timeout(Duration::from_millis(100), live.open(doc! {}));
    assert!(opening.await.is_err());
    while live.server().seen().iter().all(|seen| seen.code.is_some()) || live.server().is_open() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    live.update(1).await;

    let mut cursor = live.open(base("a")).await.unwrap();
    live.server().faults().inject(When::Extend, Fault::KillServer, 1);
    let now = Timestamp {
        time: 1,
        increment: 1,
    };
    assert!(broke(&cursor.extend(now, LIMIT).await));
    assert!(!live.server().is_open());
    live.set.member_mut(0).kill().unwrap();
    live.set.member_mut(0).restart().await.unwrap();
    live.set.wait_ready().await.unwrap();
    live.touch(increment("a", "b")).await.unwrap();

    // A server that is killed by somebody else takes the cursor along too.
    let cursor = live.open(increment("b", "c")).await.unwrap();
    live.set.member_mut(0).kill().unwrap();
    while live.server().is_open() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!cursor.dbpath().exists());
}

#[tokio::test]
async fn documents_may_be_odd() {
    let live = Live::quiet().await;
    live.touch(base("a")).await.unwrap();
    live.update(1).await;
    live.server().faults().set_oddities(Oddities {
        phantom_ranges: 3,
        first_file_unchanged: true,
        vanished: Some("sizeStorer.wt".into()),
    });
    let cursor = live.open(increment("a", "b")).await.unwrap();
    let phantoms = cursor.files.iter().filter(|file| match file.get_i64("offset") {
        Ok(offset) => offset >= file.get_i64("fileSize").unwrap(),
        Err(_) => false,
    });
    assert_eq!(phantoms.count(), 3);
    assert!(!cursor.files[0].contains_key("length"), "{}", cursor.files[0]);
    assert!(cursor.names().contains(&"sizeStorer.wt".to_owned()));
    assert!(!cursor.dbpath().join("sizeStorer.wt").exists());
    cursor.kill().await;
    live.server().faults().clear();
    let cursor = live.open(increment("b", "c")).await.unwrap();
    assert!(cursor.dbpath().join("sizeStorer.wt").exists());
}
