//! The rig itself, against a real mongod.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{process::Command, time::Duration};

use mongodb::bson::{Document, Timestamp, doc};
use pbmfs_tests::{
    DataSpec, Mongod, MongodOptions, ReplSet, ReplSetOptions, Result, WriterOptions, Writers,
    compare::{self, Scope},
    data,
    process::Process,
    restore_steps::{self, Replay, RestoredSet},
    snapshot::{self, Copied},
    writer,
};
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

#[tokio::test]
async fn the_same_seed_gives_the_same_data() {
    let place = tempdir().unwrap();
    let spec = DataSpec::megabytes(3);
    let mut digests = Vec::new();
    for (name, options) in [
        ("one", MongodOptions::standalone()),
        ("two", MongodOptions::standalone().directory_per_db()),
    ] {
        let mongod = Mongod::start(place.path().join(name), options).await.unwrap();
        let client = mongod.client().await.unwrap();
        let loaded = data::load(&client, &spec).await.unwrap();
        let digest = compare::digest(&client).await.unwrap();
        // The view is a document of its own, and admin.system.version holds one.
        assert_eq!(digest.documents(), loaded.documents + 2, "{digest}");
        digests.push(digest);
    }
    digests[0].check_equal(&digests[1]).unwrap();
}

#[tokio::test]
async fn a_copy_made_under_the_lock_is_the_server() {
    let place = tempdir().unwrap();
    let options = MongodOptions::default().directory_per_db();
    let set = ReplSet::start(
        place.path(),
        ReplSetOptions::single("rs0").mongod(options.clone()),
    )
    .await
    .unwrap();
    let client = set.client().await.unwrap();
    let spec = DataSpec::megabytes(20);
    data::load(&client, &spec).await.unwrap();
    assert!(data::update_orders(&client, &spec, 100, 1).await.unwrap() > 50);
    let before = compare::digest(&client).await.unwrap();

    let direct = set.members()[0].client().await.unwrap();
    let locked = snapshot::fsync_lock(&direct).await.unwrap();
    assert_eq!(locked.locks, 1);
    assert!(locked.operation_time.is_some());
    let copy = place.path().join("copy");
    snapshot::copy_dbpath(set.members()[0].dbpath(), &copy, Copied::Locked).unwrap();
    assert!(copy.join("WiredTiger.backup").exists());
    assert_eq!(snapshot::fsync_unlock(&direct).await.unwrap(), 0);

    let restored = restore_steps::open_recovered(&copy, &options).await.unwrap();
    let reader = restored.client().await.unwrap();
    before
        .check_equal(&compare::digest(&reader).await.unwrap())
        .unwrap();
    assert!(compare::validate_all(&reader).await.unwrap() > 5);
    compare::digest_of(&reader, Scope::WithConfig).await.unwrap();
    let write = reader
        .database("rig_shop")
        .collection("orders")
        .insert_one(doc! {"a": 1})
        .await;
    let refusal = write.unwrap_err().to_string();
    assert!(
        refusal.contains("read-only mode"),
        "read-only in this step: {refusal}"
    );

    data::update_orders(&client, &spec, 100, 2).await.unwrap();
    let differences = before.diff(&compare::digest(&client).await.unwrap());
    assert_eq!(differences.len(), 1, "{differences:?}");
    assert!(differences[0].starts_with("rig_shop.orders: "), "{differences:?}");
}

/// A copy made under the lock, with writers at work on the set before, during and after.
async fn lock_while_writing(on_secondary: bool) -> Result<()> {
    let place = tempdir().expect("a temporary directory");
    let plain = MongodOptions::default();
    let set = ReplSet::start(place.path(), ReplSetOptions::three("rs0")).await?;
    let client = set.client().await?;
    let options = WriterOptions {
        writers: 4,
        ..WriterOptions::default()
    };
    let writers = Writers::start(&client, options.clone()).await?;
    writers.wait_for_more(200).await?;

    let member = if on_secondary {
        set.secondaries().await?[0]
    } else {
        set.primary().await?
    };
    let direct = member.client().await?;
    let locked = snapshot::fsync_lock(&direct).await?;
    let copy = place.path().join("copy");
    snapshot::copy_dbpath(member.dbpath(), &copy, Copied::Locked)?;
    snapshot::fsync_unlock(&direct).await?;
    writers.wait_for_more(200).await?;
    let log = writers.stop(Duration::from_secs(10)).await?;
    let exact = log.timestamps_from_oplog(&client).await?;
    assert!(exact.times().len() >= 400);
    assert!(log.doubtful().is_empty());

    // Not without step 1: see `snapshot::Locked`.
    let new = RestoredSet::new("new", 1)?;
    restore_steps::prepare(&copy, &new, None, &plain).await?;
    let restored = restore_steps::open_recovered(&copy, &plain).await?;
    let present = writer::present(&restored.client().await?, &options).await?;
    let time = locked
        .operation_time
        .expect("a member of a set answers with its time");
    exact.check_cut(&present, time)?;
    assert!(log.split(time).in_by_then.is_subset(&present));
    Ok(())
}

#[tokio::test]
async fn a_lock_on_the_primary_cuts_at_its_operation_time() {
    lock_while_writing(false).await.unwrap();
}

#[tokio::test]
async fn a_lock_on_a_secondary_cuts_at_its_operation_time() {
    lock_while_writing(true).await.unwrap();
}

#[tokio::test]
async fn writers_that_hang_on_a_lock_are_given_up_and_accounted_for() {
    let place = tempdir().unwrap();
    let set = ReplSet::start(place.path(), ReplSetOptions::single("rs0"))
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    let options = WriterOptions::default();
    let writers = Writers::start(&client, options.clone()).await.unwrap();
    writers.wait_for_more(20).await.unwrap();
    let direct = set.members()[0].client().await.unwrap();
    snapshot::fsync_lock(&direct).await.unwrap();
    let log = writers.stop(Duration::from_millis(200)).await.unwrap();
    assert_eq!(log.doubtful().len(), 2, "one a writer");
    let held = writer::present(&direct, &options).await.unwrap();
    assert_eq!(held, log.acknowledged().keys().copied().collect(), "reads go on");
    snapshot::fsync_unlock(&direct).await.unwrap();
    let exact = log.timestamps_from_oplog(&client).await.unwrap();
    assert!(exact.times().len() >= log.acknowledged().len());
}

#[tokio::test]
async fn the_three_steps_restore_to_a_point_in_time() {
    let place = tempdir().unwrap();
    let plain = MongodOptions::default();
    let set = ReplSet::start(place.path(), ReplSetOptions::single("old"))
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    let options = WriterOptions::default();
    let writers = Writers::start(&client, options.clone()).await.unwrap();
    writers.wait_for_more(50).await.unwrap();
    let direct = set.members()[0].client().await.unwrap();
    let locked = snapshot::fsync_lock(&direct)
        .await
        .unwrap()
        .operation_time
        .unwrap();
    let copy = place.path().join("copy");
    snapshot::copy_dbpath(set.members()[0].dbpath(), &copy, Copied::Locked).unwrap();
    snapshot::fsync_unlock(&direct).await.unwrap();
    writers.wait_for_more(200).await.unwrap();
    let exact = writers
        .stop(Duration::from_secs(10))
        .await
        .unwrap()
        .timestamps_from_oplog(&client)
        .await
        .unwrap();

    let end = *exact.times().values().max().unwrap();
    let after: Vec<_> = exact
        .times()
        .values()
        .copied()
        .filter(|time| *time > locked)
        .collect();
    let until = after[after.len() / 2];
    let oplog = restore_steps::read_oplog(&client, locked, end).await.unwrap();

    let new = RestoredSet::new("new", 1).unwrap();
    let holed = Replay {
        oplog: oplog[1..].to_vec(),
        until,
    };
    let error = restore_steps::prepare(&copy, &new, Some(&holed), &plain)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("does not join on"), "{error}");
    let early = Replay {
        oplog: oplog.clone(),
        until: Timestamp {
            time: locked.time - 1,
            increment: 1,
        },
    };
    let error = restore_steps::prepare(&copy, &new, Some(&early), &plain)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("cannot go back"), "{error}");

    restore_steps::prepare(&copy, &new, Some(&Replay { oplog, until }), &plain)
        .await
        .unwrap();
    let mut recovered = restore_steps::open_recovered(&copy, &plain).await.unwrap();
    let present = writer::present(&recovered.client().await.unwrap(), &options)
        .await
        .unwrap();
    exact.check_cut(&present, until).unwrap();
    recovered.stop().await.unwrap();

    let member = restore_steps::open_member(&copy, &new, 0, &plain).await.unwrap();
    let restored = ReplSet::adopt("new", vec![member]);
    restored.wait_ready().await.unwrap();
    let client = restored.client().await.unwrap();
    exact
        .check_cut(&writer::present(&client, &options).await.unwrap(), until)
        .unwrap();
    client
        .database("rig")
        .collection("things")
        .insert_one(doc! {"a": 1})
        .await
        .unwrap();
}

/// In processes of their own, because a test cannot change its own environment safely.
#[test]
fn the_program_under_test_is_found_or_asked_for() {
    if std::env::var_os("RIG_TEST_CHILD").is_some() {
        match pbmfs_tests::pbmfs_bin() {
            Ok(path) => eprintln!("found {}", path.display()),
            Err(error) => eprintln!("failed {error}"),
        }
        return;
    }
    let ask = |bin: &std::ffi::OsStr| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "the_program_under_test_is_found_or_asked_for",
                "--nocapture",
            ])
            .env("RIG_TEST_CHILD", "1")
            .env("PBMFS_BIN", bin)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let me = std::env::current_exe().unwrap();
    assert!(ask(me.as_os_str()).contains(&format!("found {}", me.display())));
    assert!(ask("/nowhere/pbm-fs".as_ref()).contains("failed"));
    let unset = ask("".as_ref());
    assert!(
        unset.contains("/pbm-fs\n") || unset.contains("run `cargo build`"),
        "{unset}"
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
