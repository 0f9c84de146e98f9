//! The rig itself, against a real mongod.

use std::{process::Command, time::Duration};

use mongodb::bson::{Document, doc};
use pbmfs_tests::{Mongod, MongodOptions, ReplSet, ReplSetOptions, process::Process};
use tempfile::tempdir;

#[tokio::test]
async fn a_server_keeps_its_data_over_stop_and_kill() {
    let place = tempdir().unwrap();
    let mut mongod = Mongod::start(place.path().join("db"), MongodOptions::standalone())
        .await
        .unwrap();
    let port = mongod.port();
    for round in 0..2 {
        let client = mongod.client().await.unwrap();
        let things = client.database("rig").collection::<Document>("things");
        assert_eq!(things.count_documents(doc! {}).await.unwrap(), round);
        client
            .database("rig")
            .run_command(doc! {"insert": "things", "documents": [{"round": round as i64}], "writeConcern": {"j": true}})
            .await
            .unwrap();
        if round == 0 {
            mongod.stop().await.unwrap()
        } else {
            mongod.kill().unwrap()
        }
        assert!(!mongod.is_running());
        mongod.restart().await.unwrap();
        assert_eq!(mongod.port(), port);
    }
    let client = mongod.client().await.unwrap();
    let count = client
        .database("rig")
        .collection::<Document>("things")
        .count_documents(doc! {})
        .await
        .unwrap();
    assert_eq!(count, 2);
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let place = tempdir().unwrap();
    let options = MongodOptions::standalone().args(["--storageEngine", "punchcards"]);
    let error = Mongod::start(place.path().join("db"), options)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("punchcards"), "{error}");
}

#[tokio::test]
async fn three_members_come_up_and_elect_another_primary() {
    let place = tempdir().unwrap();
    let mut set = ReplSet::start(place.path(), ReplSetOptions::three("rs0"))
        .await
        .unwrap();
    assert_eq!(set.primary_index().await.unwrap(), 0);
    assert_eq!(set.secondaries().await.unwrap().len(), 2);
    let client = set.client().await.unwrap();
    client
        .database("rig")
        .collection("things")
        .insert_one(doc! {"a": 1})
        .await
        .unwrap();
    set.wait_replicated().await.unwrap();
    set.member_mut(0).stop().await.unwrap();
    assert_ne!(set.primary_index().await.unwrap(), 0);
    client
        .database("rig")
        .collection("things")
        .insert_one(doc! {"a": 2})
        .await
        .unwrap();
    set.member_mut(0).restart().await.unwrap();
    set.wait_ready().await.unwrap();
}

/// The parent is killed with -9, so none of its destructors run.
#[test]
fn no_server_outlives_a_killed_test_process() {
    let place = tempdir().unwrap();
    if let Ok(dbpath) = std::env::var("RIG_TEST_CHILD") {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mongod = runtime
            .block_on(Mongod::start(&dbpath, MongodOptions::standalone()))
            .unwrap();
        std::fs::write(format!("{dbpath}.pid"), mongod.pid().unwrap().to_string()).unwrap();
        // Without its runtime, so that a server which hangs on a runtime's thread dies too early and is noticed.
        drop(runtime);
        std::thread::sleep(Duration::from_secs(60));
    }
    let dbpath = place.path().join("db");
    let pid_file = place.path().join("db.pid");
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "no_server_outlives_a_killed_test_process",
            "--nocapture",
        ])
        .env("RIG_TEST_CHILD", &dbpath)
        .spawn()
        .unwrap();
    let pid = wait_until(|| {
        std::fs::read_to_string(&pid_file)
            .ok()
            .filter(|text| !text.is_empty())
    });
    std::thread::sleep(Duration::from_millis(300));
    let alive =
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(alive(), "the server lives as long as the process that started it");
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until(|| (!alive()).then_some(()));
}

#[test]
fn a_program_that_is_missing_is_named() {
    let place = tempdir().unwrap();
    let output = std::fs::File::create(place.path().join("out")).unwrap();
    let mut process = Process::spawn("/nowhere/mongod".as_ref(), &[], output).unwrap();
    let status = wait_until(|| process.ended().unwrap());
    assert!(!status.success());
    assert!(
        std::fs::read_to_string(place.path().join("out"))
            .unwrap()
            .contains("/nowhere/mongod")
    );
}

fn wait_until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "waited a minute in vain"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
