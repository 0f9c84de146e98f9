//! Chains that break: everything is read, little is stored, the reason is recorded, and the next increment goes on.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::path::Path;

use pbmfs_repo::{
    key::ObjectKey,
    objects::{JsonObject, TombstoneDoc},
    storage::{LocalStorage, Storage},
};
use pbmfs_tests::{
    DataSpec, MongodOptions, PbmFs,
    chain::{BASE, INCREMENT, Taken, live_set, take},
    cli::text,
    compare, data, restore_steps,
};
use tempfile::tempdir;

/// Overwrites a snapshot with a tombstone, as its deletion will.
async fn delete(pbmfs: &PbmFs, name: &str) {
    let key = ObjectKey::snapshot(&name.parse().unwrap());
    let tombstone = TombstoneDoc {
        why: "deleted".into(),
        lease: None,
        at: jiff::Timestamp::now(),
    };
    let storage = LocalStorage::new(pbmfs.repo());
    storage.put(&key, tombstone.to_object(&key)).await.unwrap();
}

/// Restores a snapshot, opens it as it is, and tells what it holds.
async fn restored(pbmfs: &PbmFs, name: &str, place: &Path) -> compare::Digest {
    let target = place.join(format!("restored-{name}"));
    pbmfs.ok(&["restore", name, "--target", text(&target)]);
    let mut mongod = restore_steps::open_recovered(&target, &MongodOptions::default())
        .await
        .unwrap();
    let client = mongod.client().await.unwrap();
    assert!(compare::validate_all(&client).await.unwrap() >= 5);
    let digest = compare::digest(&client).await.unwrap();
    mongod.kill().unwrap();
    std::fs::remove_dir_all(target).unwrap();
    digest
}

#[track_caller]
fn assert_full_read(taken: &Taken, reason: &str) {
    assert_eq!(taken.step(), "full_read", "{}", taken.chain());
    let told = taken.chain()["reason"].as_str().unwrap();
    assert!(told.contains(reason), "{told}");
    assert_eq!(taken.stat("bytes_referenced"), 0);
    assert_eq!(taken.chain()["source_snapshot"], serde_json::Value::Null);
}

#[track_caller]
fn assert_increment(taken: &Taken, of: &Taken) {
    assert_eq!(taken.step(), "increment", "{}", taken.chain());
    assert_eq!(taken.chain()["source_snapshot"], of.name.as_str());
    assert!(taken.stat("bytes_referenced") > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lost_history_and_deleted_sources_cost_a_read_and_little_more() {
    let place = tempdir().unwrap();
    let spec = DataSpec::megabytes(20);
    let (set, client) = live_set(place.path(), 1, &spec).await;
    let server = &set.cursor_servers()[0];
    let (uri, pbmfs) = (set.uri(), PbmFs::init(place.path().join("repo")));
    let change = |round| data::update_orders(&client, &spec, 200, round);

    // There is nothing yet to build on.
    let first = take(&pbmfs, &uri, INCREMENT).await;
    assert_full_read(&first, "no earlier snapshot");
    change(1).await.unwrap();
    let second = take(&pbmfs, &uri, INCREMENT).await;
    assert_increment(&second, &first);

    server.forget_history();
    change(2).await.unwrap();
    let third = take(&pbmfs, &uri, INCREMENT).await;
    assert_full_read(&third, &second.name);
    let floor = second.stat("bytes_stored_data");
    let stored = third.stat("bytes_stored_data");
    // Measured: 1.1 to 1.4 times as much. A full read also finds what the server scribbled on free extents.
    assert!(
        stored <= floor * 2,
        "{stored} bytes stored; the increment before, of as many changes, stored {floor}"
    );
    change(3).await.unwrap();
    let fourth = take(&pbmfs, &uri, INCREMENT).await;
    assert_increment(&fourth, &third);

    // A server remembers two names: with the newest snapshot gone, the one before is built on.
    delete(&pbmfs, &fourth.name).await;
    change(4).await.unwrap();
    let fifth = take(&pbmfs, &uri, INCREMENT).await;
    assert_increment(&fifth, &third);
    // With both gone, the names that are left are older than what it remembers.
    for gone in [&third, &fifth] {
        delete(&pbmfs, &gone.name).await;
    }
    let sixth = take(&pbmfs, &uri, INCREMENT).await;
    assert_full_read(&sixth, &second.name);

    // Another granularity needs another history.
    let coarse = take(&pbmfs, &uri, &["-t", "incremental", "--block-size", "4"]).await;
    assert_full_read(&coarse, "1 MiB");
    change(5).await.unwrap();
    let last = take(&pbmfs, &uri, INCREMENT).await;
    assert_increment(&last, &coarse);
    assert_eq!(last.chain()["block_size"], 4);

    // A plain backup is outside of the chain and leaves it alone.
    let plain = take(&pbmfs, &uri, &[]).await;
    assert_eq!(
        (plain.step(), plain.doc["type"].as_str()),
        ("none", Some("physical"))
    );
    let after = take(&pbmfs, &uri, INCREMENT).await;
    assert_increment(&after, &last);

    let live = compare::digest(&client).await.unwrap();
    for name in [&after.name, &plain.name] {
        restored(&pbmfs, name, place.path())
            .await
            .check_equal(&live)
            .unwrap();
    }
    // Those whose neighbours were deleted are whole.
    for name in [&first.name, &second.name, &sixth.name] {
        restored(&pbmfs, name, place.path()).await;
    }
    pbmfs.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_member_has_a_chain_of_its_own() {
    let place = tempdir().unwrap();
    let spec = DataSpec::megabytes(8);
    let (set, client) = live_set(place.path(), 2, &spec).await;
    set.wait_replicated().await.unwrap();
    let (uri, pbmfs) = (set.uri(), PbmFs::init(place.path().join("repo")));
    let nodes: Vec<String> = set
        .cursor_servers()
        .iter()
        .map(|server| server.address())
        .collect();
    let on = |args: &[&'static str], node: usize| {
        let mut args = args.to_vec();
        args.extend(["--node", &nodes[node]]);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = async |args: Vec<String>| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        take(&pbmfs, &uri, &args).await
    };
    let base = run(on(BASE, 0)).await;
    assert_eq!(base.step(), "base");
    data::update_orders(&client, &spec, 100, 1).await.unwrap();
    set.wait_replicated().await.unwrap();
    let other = run(on(INCREMENT, 1)).await;
    assert_full_read(&other, &nodes[0]);
    // Each goes on from its own last snapshot, whatever was taken of the other meanwhile.
    data::update_orders(&client, &spec, 100, 2).await.unwrap();
    set.wait_replicated().await.unwrap();
    let on_first = run(on(INCREMENT, 0)).await;
    assert_increment(&on_first, &base);
    let on_second = run(on(INCREMENT, 1)).await;
    assert_increment(&on_second, &other);
    // Unless told otherwise, the member of the newest chain is taken, primary or not.
    let chosen = take(&pbmfs, &uri, INCREMENT).await;
    assert_increment(&chosen, &on_second);
    set.wait_replicated().await.unwrap();
    let live = compare::digest(&client).await.unwrap();
    restored(&pbmfs, &chosen.name, place.path())
        .await
        .check_equal(&live)
        .unwrap();
}

/// The chain stands in the snapshots, and where blocks are stands in the packs.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lost_local_index_costs_no_reading() {
    let place = tempdir().unwrap();
    let spec = DataSpec::megabytes(20);
    let (set, client) = live_set(place.path(), 1, &spec).await;
    let (uri, pbmfs) = (set.uri(), PbmFs::init(place.path().join("repo")));
    let mut last = take(&pbmfs, &uri, BASE).await;
    let mut stored = Vec::new();
    for (round, lost) in [(1, false), (2, true), (3, false), (4, true)] {
        data::update_orders(&client, &spec, 5, round).await.unwrap();
        if lost {
            std::fs::remove_dir_all(pbmfs.indexes()).unwrap();
        }
        let next = take(&pbmfs, &uri, INCREMENT).await;
        assert_increment(&next, &last);
        let (read, named) = (
            next.stat("bytes_read"),
            next.chain()["bytes_named"].as_u64().unwrap(),
        );
        assert!(
            read * 10 <= named * 11,
            "{read} bytes were read, {named} were named"
        );
        assert!(next.stat("bytes_referenced") > 10 << 20, "{}", next.doc);
        stored.push(next.stat("bytes_stored_data"));
        last = next;
    }
    let (with, without) = (stored[0].max(stored[2]), stored[1].max(stored[3]));
    assert!(without * 10 <= with * 13, "{stored:?}");
    let live = compare::digest(&client).await.unwrap();
    restored(&pbmfs, &last.name, place.path())
        .await
        .check_equal(&live)
        .unwrap();
    pbmfs.check();
}
