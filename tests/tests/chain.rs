//! A chain of increments of a live member through `$backupCursor`: every snapshot is complete in itself and holds exactly
//! the writes up to its restore time, whatever happened to the chain.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use mongodb::{
    Client,
    bson::{Binary, Document, Timestamp, doc, spec::BinarySubtype},
};
use pbmfs_tests::{
    DataSpec, MongodOptions, PbmFs, ReplSet, ReplSetOptions, WriterOptions, Writers,
    cli::{name_of, text},
    compare,
    cursor_server::CursorServerOptions,
    data,
    prng::Prng,
    restore_steps::{self, Replay, RestoredSet},
    writer::{self, ExactLog},
};
use serde_json::Value;
use tempfile::tempdir;

/// A set of one member behind a backup-cursor server, with data in it.
async fn live_set(place: &Path, spec: &DataSpec) -> (ReplSet, Client) {
    let mongod = MongodOptions {
        oplog_mb: 512,
        ..MongodOptions::default()
    };
    let options = ReplSetOptions::single("rs0")
        .mongod(mongod)
        .with_cursor_servers(CursorServerOptions::default());
    let set = ReplSet::start(place, options).await.unwrap();
    let client = set.client().await.unwrap();
    data::load(&client, spec).await.unwrap();
    (set, client)
}

/// One round of everything that may happen to a database.
async fn every_kind_of_write(client: &Client, spec: &DataSpec, round: u64) {
    data::update_orders(client, spec, 100, round).await.unwrap();
    let ddl = client.database("rig_ddl");
    let mut prng = Prng::for_part(spec.seed, 5_000 + round);
    let collection = |n: u64| ddl.collection::<Document>(&format!("made_in_{n}"));
    let documents = (0..400_i64).map(|n| doc! {"_id": n, "text": prng.text(500)});
    collection(round)
        .insert_many(documents.collect::<Vec<_>>())
        .await
        .unwrap();
    if round > 0 {
        let admin = client.database("admin");
        let (from, to) = (
            format!("rig_ddl.made_in_{}", round - 1),
            format!("rig_ddl.renamed_in_{round}"),
        );
        admin
            .run_command(doc! {"renameCollection": from, "to": to})
            .await
            .unwrap();
    }
    if round > 1 {
        let old = ddl.collection::<Document>(&format!("renamed_in_{}", round - 1));
        old.drop().await.unwrap();
    }
    let shop = client.database("rig_shop");
    let index = doc! {"createIndexes": "orders", "indexes": [{"key": {"note": 1}, "name": "note"}]};
    shop.run_command(index).await.unwrap();
    let deleted = doc! {"delete": "orders", "deletes": [
        {"q": {"_id": {"$mod": [97_i64, round as i64]}}, "limit": 0}
    ]};
    shop.run_command(deleted).await.unwrap();
    shop.run_command(doc! {"compact": "orders", "force": true})
        .await
        .unwrap();
    shop.run_command(doc! {"dropIndexes": "orders", "index": "note"})
        .await
        .unwrap();
    let large = prng.bytes(8 << 20);
    let large = Binary {
        subtype: BinarySubtype::Generic,
        bytes: large,
    };
    let files = ddl.collection::<Document>("large");
    files
        .insert_one(doc! {"_id": round as i64, "data": large})
        .await
        .unwrap();
}

/// A snapshot as `describe-backup` tells it.
struct Taken {
    name: String,
    doc: Value,
}

impl Taken {
    fn chain(&self) -> &Value {
        &self.doc["replsets"][0]["node"]["chain"]
    }

    fn step(&self) -> &str {
        self.chain()["step"].as_str().unwrap_or("none")
    }

    fn stat(&self, name: &str) -> u64 {
        self.doc["stats"][name].as_u64().unwrap()
    }

    fn restore_time(&self) -> Timestamp {
        let part = |name: &str| {
            let value = &self.doc["replsets"][0]["node"]["operation_time"][name];
            u32::try_from(value.as_u64().unwrap()).unwrap()
        };
        Timestamp {
            time: part("t"),
            increment: part("i"),
        }
    }
}

async fn take(pbmfs: &PbmFs, uri: &str, args: &[&str]) -> Taken {
    let mut all = vec!["-o", "json", "backup", "--uri", uri];
    all.extend(args);
    let backup = pbmfs.start(&all);
    let ran = tokio::task::spawn_blocking(|| backup.wait()).await.unwrap().ok();
    let name = name_of(&ran.json());
    let doc = pbmfs.json(&["describe-backup", &name]);
    Taken { name, doc }
}

const BASE: &[&str] = &["-t", "incremental", "--base"];
const INCREMENT: &[&str] = &["-t", "incremental"];

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
    async fn open(&self, dbpath: &PathBuf, time: Timestamp, look: bool) -> compare::Digest {
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
    let (mut set, client) = live_set(place.path(), &spec).await;
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
            read as f64 <= 1.1 * named as f64 + journal(&after.doc, &pbmfs) as f64,
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

/// Bytes of journal files and of what else is read whole beside what the cursor named.
fn journal(doc: &Value, pbmfs: &PbmFs) -> u64 {
    let described = pbmfs.json(&["describe-backup", &name_of(doc), "--files"]);
    let files = described["files"].as_array().unwrap();
    let of_log = |file: &&Value| !file["path"].as_str().unwrap().ends_with(".wt");
    files
        .iter()
        .filter(of_log)
        .map(|file| file["size"].as_u64().unwrap())
        .sum()
}
