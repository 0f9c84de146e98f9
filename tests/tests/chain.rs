//! A chain of increments of a live member through `$backupCursor`: every snapshot is complete in itself and holds exactly
//! the writes up to its restore time, whatever happened to the chain.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{path::Path, time::Duration};

use mongodb::{Client, bson::Timestamp};
use pbmfs_tests::{
    DataSpec, MongodOptions, PbmFs, WriterOptions, Writers,
    chain::{BASE, INCREMENT, Taken, every_kind_of_write, live_set, take},
    cli::text,
    compare,
    restore_steps::{self, Replay, RestoredSet},
    writer::{self, ExactLog},
};
use tempfile::tempdir;

/// Restores a snapshot, brings it to its restore time, and compares it with the writers' own records and with `base`,
/// brought to the same time by the live member's oplog.
async fn check_snapshot(pbmfs: &PbmFs, taken: &Taken, place: &Path, account: &Account<'_>) {
    let target = place.join(format!("restored-{}", taken.name));
    pbmfs.ok(&["restore", &taken.name, "--target", text(&target)]);
    let time = taken.restore_time();
    let digest = account.open(&target, time, true).await;
    let other = place.join(format!("replayed-{}", taken.name));
    pbmfs.ok(&["restore", account.base, "--target", text(&other)]);
    let expected = account.open(&other, time, false).await;
    digest.check_equal(&expected).unwrap();
    for used in [target, other] {
        std::fs::remove_dir_all(used).unwrap();
    }
}

/// What is known of the writes.
struct Account<'a> {
    exact: &'a ExactLog,
    writers: &'a WriterOptions,
    live: &'a Client,
    base: &'a str,
    base_time: Timestamp,
}

impl Account<'_> {
    async fn open(&self, dbpath: &Path, time: Timestamp, look: bool) -> compare::Digest {
        let options = MongodOptions::default();
        let set = RestoredSet::new("rs0", 1).unwrap();
        let replay = Replay {
            oplog: restore_steps::read_oplog(self.live, self.base_time, time)
                .await
                .unwrap(),
            until: time,
        };
        restore_steps::prepare(dbpath, &set, Some(&replay), &options)
            .await
            .unwrap();
        let mut mongod = restore_steps::open_recovered(dbpath, &options).await.unwrap();
        let client = mongod.client().await.unwrap();
        if look {
            let present = writer::present(&client, self.writers).await.unwrap();
            self.exact.check_cut(&present, time).unwrap();
            assert!(!present.is_empty());
            assert!(compare::validate_all(&client).await.unwrap() >= 6);
        }
        let digest = compare::digest(&client).await.unwrap();
        mongod.kill().unwrap();
        digest
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_base_and_four_increments_under_writes_of_every_kind() {
    let place = tempdir().unwrap();
    let spec = DataSpec::megabytes(20);
    let (mut set, client) = live_set(place.path(), 1, &spec).await;
    let uri = set.uri();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    let options = WriterOptions::default();
    let writers = Writers::start(&client, options.clone()).await.unwrap();

    let mut taken: Vec<Taken> = Vec::new();
    for round in 0..5 {
        writers.wait_for_more(50).await.unwrap();
        every_kind_of_write(&client, &spec, 2 * round).await;
        let args = if round == 0 { BASE } else { INCREMENT };
        // While the backup runs, everything goes on.
        let (backup, ()) = tokio::join!(
            take(&pbmfs, &uri, args),
            every_kind_of_write(&client, &spec, 2 * round + 1)
        );
        assert!(!set.cursor_servers()[0].is_open(), "a cursor was left open");
        taken.push(backup);
        if round == 2 {
            let member = set.member_mut(0);
            member.stop().await.unwrap();
            member.restart().await.unwrap();
            set.wait_ready().await.unwrap();
        }
    }
    writers.wait_for_more(50).await.unwrap();
    let log = writers.stop(Duration::from_secs(30)).await.unwrap();
    let exact = log.timestamps_from_oplog(&client).await.unwrap();

    let steps: Vec<_> = taken.iter().map(Taken::step).collect();
    assert_eq!(
        steps,
        ["base", "increment", "increment", "increment", "increment"]
    );
    for pair in taken.windows(2) {
        let [before, after] = pair else { unreachable!() };
        assert_eq!(after.chain()["source_snapshot"], before.name.as_str());
        assert_eq!(after.chain()["block_size"], 1);
        assert!(after.stat("bytes_referenced") > 0);
        let named = after.chain()["bytes_named"].as_u64().unwrap();
        let read = after.stat("bytes_read");
        assert!(
            read as f64 <= 1.1 * named as f64,
            "{read} bytes were read, {named} were named"
        );
        assert!(after.restore_time() > before.restore_time());
    }
    let account = Account {
        exact: &exact,
        writers: &options,
        live: &client,
        base: &taken[0].name,
        base_time: taken[0].restore_time(),
    };
    for one in &taken {
        check_snapshot(&pbmfs, one, place.path(), &account).await;
    }
    pbmfs.check();
}
