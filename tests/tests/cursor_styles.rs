//! Chains with servers that word their documents in different ways: each snapshot is whole.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{collections::BTreeMap, path::Path};

use mongodb::Client;
use pbmfs_tests::{
    CursorServerOptions, DataSpec, MongodOptions, PbmFs, ReplSet,
    chain::{BASE, INCREMENT, Taken, live_set_with, take},
    cli::text,
    compare,
    cursor_server::{NamedRange, Style},
    data, restore_steps,
};
use tempfile::tempdir;

/// The newest snapshot holds what the server holds.
async fn assert_restored(pbmfs: &PbmFs, taken: &Taken, place: &Path, live: &Client) {
    let target = place.join(format!("restored-{}", taken.name));
    pbmfs.ok(&["restore", &taken.name, "--target", text(&target)]);
    let mut mongod = restore_steps::open_recovered(&target, &MongodOptions::default())
        .await
        .unwrap();
    let client = mongod.client().await.unwrap();
    assert!(compare::validate_all(&client).await.unwrap() >= 5);
    let restored = compare::digest(&client).await.unwrap();
    restored
        .check_equal(&compare::digest(live).await.unwrap())
        .unwrap();
    mongod.kill().unwrap();
    std::fs::remove_dir_all(target).unwrap();
}

/// A base and two increments, each of which restores to what is there when it was taken.
async fn chain(servers: CursorServerOptions, megabytes: u64, expected: [&str; 3], look: impl Fn(&ReplSet)) {
    let place = tempdir().unwrap();
    let spec = DataSpec::megabytes(megabytes);
    let (set, client) = live_set_with(place.path(), 1, &spec, servers).await;
    let (uri, pbmfs) = (set.uri(), PbmFs::init(place.path().join("repo")));
    for (round, step) in expected.into_iter().enumerate() {
        data::update_orders(&client, &spec, 50, round as u64 + 1)
            .await
            .unwrap();
        let taken = take(&pbmfs, &uri, if round == 0 { BASE } else { INCREMENT }).await;
        assert_eq!(taken.step(), step, "{}", taken.chain());
        assert!(!set.cursor_servers()[0].is_open(), "a cursor was left open");
        assert_restored(&pbmfs, &taken, place.path(), &client).await;
    }
    look(&set);
    pbmfs.check();
}

async fn chain_of(style: Style, expected: [&str; 3]) {
    let servers = CursorServerOptions {
        style,
        ..CursorServerOptions::default()
    };
    chain(servers, 8, expected, |_| {}).await;
}

const STEPS: [&str; 3] = ["base", "increment", "increment"];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn increments_of_percona() {
    chain_of(Style::Percona, STEPS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn increments_of_enterprise() {
    chain_of(Style::Enterprise, STEPS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn increments_of_a_server_that_says_everything() {
    chain_of(Style::Explicit, STEPS).await;
}

/// It remembers nothing, whatever it is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn full_reads_of_a_server_without_increments() {
    chain_of(Style::PerconaEarly, ["full_read"; 3]).await;
}

/// Sizes that differ from batch to batch, with nothing else going on in the files.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_file_that_grows_between_batches() {
    let servers = CursorServerOptions {
        batch: 2,
        grow: true,
        scribble: None,
        ..CursorServerOptions::default()
    };
    chain(servers, 20, STEPS, |set| {
        let named = set.cursor_servers()[0].ranges_named();
        let split = |ranges: &Vec<NamedRange>| {
            let mut of_file = BTreeMap::<&str, usize>::new();
            for range in ranges {
                *of_file.entry(&range.file).or_default() += 1;
            }
            // However batches begin, three ranges lie in two of them.
            of_file.into_values().any(|count| count >= 3)
        };
        let increments = named.values().filter(|ranges| split(ranges)).count();
        assert_eq!(increments, 2, "no file was told of in two batches: {named:?}");
    })
    .await;
}

/// The same beside a server that writes on, in every style.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn files_that_grow_while_they_are_scribbled_on() {
    for style in [Style::Percona, Style::Enterprise, Style::Explicit] {
        let servers = CursorServerOptions {
            style,
            batch: 2,
            grow: true,
            ..CursorServerOptions::default()
        };
        chain(servers, 8, STEPS, |_| {}).await;
    }
}
