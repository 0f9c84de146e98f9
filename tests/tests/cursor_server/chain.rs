//! Backups by the cursor's documents alone are what they have to be.

use std::{fs, path::Path, time::Duration};

use mongodb::bson::doc;
use pbmfs_tests::{
    CursorServerOptions, MongodOptions, ReplSet, ReplSetOptions, WriterOptions, Writers,
    binary::MongodBinary,
    compare, mongod,
    restore_steps::{self, Replay, RestoredSet},
    snapshot, writer,
};
use tempfile::tempdir;

use crate::client::{Cursor, Live, base, increment, majority_time};

const LIMIT: Duration = Duration::from_secs(60);

/// A base and increments of a member that is written to, scribbled over while they are read. Those that are asked for are
/// brought to the time that they were extended to.
async fn chain(version: &str, mongod: MongodOptions, rounds: u64, restored: impl Fn(u64) -> bool) {
    let mongod = MongodOptions {
        binary: Some(MongodBinary::of_version(version).unwrap()),
        ..mongod
    };
    let live = Live::start(mongod.clone(), CursorServerOptions::default()).await;
    let writing = WriterOptions::default();
    let writers = Writers::start(&live.client, writing.clone()).await.unwrap();
    let copy = live.place.path().join("copy");
    let mut restores = Vec::new();
    for round in 0..rounds {
        let name = format!("b{round}");
        let options = match round {
            0 => base(&name),
            _ => increment(&format!("b{}", round - 1), &name),
        };
        live.update(round).await;
        writers.wait_for_more(20).await.unwrap();
        let mut cursor = live.open(options).await.unwrap();
        // The lock made the server begin a new journal file, so that all that are named are written no more.
        let newest = |directory: &Path| {
            let names = fs::read_dir(directory.join("journal"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name());
            names
                .filter_map(|name| name.into_string().ok())
                .filter(|name| name.contains("Log"))
                .max()
                .unwrap()
        };
        let named = cursor
            .names()
            .into_iter()
            .filter_map(|name| Some(name.strip_prefix("journal/")?.to_owned()));
        let named = named.max().unwrap();
        assert!(named < newest(live.set.members()[0].dbpath()));
        writers.wait_for_more(20).await.unwrap();
        let time = majority_time(&live.client).await;
        let journal = cursor.extend(time, LIMIT).await.unwrap();
        assert!(!journal.is_empty(), "what was written since is in other files");
        writers.wait_for_more(20).await.unwrap();
        cursor.copy_to(&copy, &journal);
        let scribbled = live.server().scribbled();
        assert!(scribbled.behind > 0, "{scribbled:?}");
        assert!(scribbled.free > 0 || round == 0, "{scribbled:?}");
        let pinned = cursor.dbpath();
        cursor.kill().await;
        assert!(!pinned.exists() && !live.server().is_open());
        if restored(round) {
            let target = live.place.path().join(format!("restored-{round}"));
            copy_tree(&copy, &target);
            restores.push((target, time));
        }
    }
    let log = writers.stop(Duration::from_secs(5)).await.unwrap();
    let exact = log.timestamps_from_oplog(&live.client).await.unwrap();
    for (target, time) in restores {
        let replay = Replay {
            oplog: Vec::new(),
            until: time,
        };
        let set = RestoredSet::new("restored", 1).unwrap();
        restore_steps::prepare(&target, &set, Some(&replay), &mongod)
            .await
            .unwrap();
        let server = restore_steps::open_recovered(&target, &mongod).await.unwrap();
        let client = server.client().await.unwrap();
        exact
            .check_cut(&writer::present(&client, &writing).await.unwrap(), time)
            .unwrap();
        compare::validate_all(&client).await.unwrap();
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn increments_on_4_4_hold_every_write_up_to_their_extend() {
    chain("4.4", MongodOptions::default(), 2, |round| round == 1).await;
}

#[tokio::test]
async fn increments_on_5_0_hold_every_write_up_to_their_extend() {
    chain("5.0", MongodOptions::default().directory_per_db(), 2, |round| {
        round == 1
    })
    .await;
}

#[tokio::test]
async fn a_base_and_increments_hold_every_write_up_to_their_extend() {
    chain("6.0", MongodOptions::default(), 3, |round| round != 1).await;
}

/// Clients and members know the members by the addresses of the cursor servers alone.
#[tokio::test]
async fn a_set_lives_behind_its_cursor_servers() {
    let place = tempdir().unwrap();
    let options = ReplSetOptions::three("rs0").with_cursor_servers(CursorServerOptions::default());
    let mut set = ReplSet::start(place.path(), options).await.unwrap();
    let client = set.client().await.unwrap();
    let things = client.database("rig").collection("things");
    things.insert_one(doc! {"a": 1}).await.unwrap();
    set.wait_replicated().await.unwrap();
    let hosts = set.hosts();
    for (index, server) in set.cursor_servers().iter().enumerate() {
        let direct = mongod::client(&server.uri()).await.unwrap();
        let hello = direct
            .database("admin")
            .run_command(doc! {"hello": 1})
            .await
            .unwrap();
        assert_eq!(hello.get_str("me").unwrap(), hosts[index]);
        let known = hello
            .get_array("hosts")
            .unwrap()
            .iter()
            .map(|host| host.as_str().unwrap());
        assert_eq!(known.collect::<Vec<_>>(), hosts);
    }
    // A secondary's cursor, while the primary is written to.
    let mut cursor = Cursor::open(&set.cursor_servers()[1].uri(), doc! {})
        .await
        .unwrap();
    things.insert_one(doc! {"a": 2}).await.unwrap();
    let time = majority_time(&client).await;
    assert!(!cursor.extend(time, LIMIT).await.unwrap().is_empty());
    cursor.kill().await;
    // The others elect a primary through each other's cursor servers.
    set.member_mut(0).stop().await.unwrap();
    assert_ne!(set.primary_index().await.unwrap(), 0);
    things.insert_one(doc! {"a": 3}).await.unwrap();
    set.member_mut(0).restart().await.unwrap();
    set.wait_ready().await.unwrap();
}

#[tokio::test]
async fn the_journal_has_no_hole_though_the_server_removes_its_files() {
    let live = Live::quiet().await;
    let mut cursor = live.open(doc! {}).await.unwrap();
    let journal = live.set.members()[0].dbpath().join("journal");
    let direct = live.set.members()[0].client().await.unwrap();
    let admin = direct.database("admin");
    for round in 0..12 {
        // Each lock begins a new file, and a checkpoint lets the old ones go.
        snapshot::fsync_lock(&direct).await.unwrap();
        snapshot::fsync_unlock(&direct).await.unwrap();
        live.update(round).await;
        admin.run_command(doc! {"fsync": 1}).await.unwrap();
    }
    let files = cursor
        .extend(majority_time(&live.client).await, LIMIT)
        .await
        .unwrap();
    let left = files
        .iter()
        .filter(|file| journal.join(file.file_name().unwrap()).exists())
        .count();
    assert!(
        files.len() >= 12 && left < files.len(),
        "{left} of {} are left",
        files.len()
    );
}
