//! Backups through a backup-cursor server: what tests of chains share.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::path::Path;

use mongodb::{
    Client,
    bson::{Binary, Document, Timestamp, doc, spec::BinarySubtype},
};
use serde_json::Value;

use crate::{
    DataSpec, MongodOptions, PbmFs, ReplSet, ReplSetOptions, cli::name_of,
    cursor_server::CursorServerOptions, data, prng::Prng,
};

/// A set whose members are behind backup-cursor servers, with data in it.
pub async fn live_set(place: &Path, members: usize, spec: &DataSpec) -> (ReplSet, Client) {
    live_set_with(place, members, spec, CursorServerOptions::default()).await
}

/// The same, with servers of this kind.
pub async fn live_set_with(
    place: &Path,
    members: usize,
    spec: &DataSpec,
    servers: CursorServerOptions,
) -> (ReplSet, Client) {
    let mongod = MongodOptions {
        oplog_mb: 512,
        ..MongodOptions::default()
    };
    let options = ReplSetOptions::of("rs0", members)
        .mongod(mongod)
        .with_cursor_servers(servers);
    let set = ReplSet::start(place, options).await.unwrap();
    let client = set.client().await.unwrap();
    data::load(&client, spec).await.unwrap();
    (set, client)
}

/// One round of everything that may happen to a database.
pub async fn every_kind_of_write(client: &Client, spec: &DataSpec, round: u64) {
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
pub struct Taken {
    /// Its name.
    pub name: String,
    /// All that is told.
    pub doc: Value,
}

impl Taken {
    /// How its chain went.
    pub fn chain(&self) -> &Value {
        &self.doc["replsets"][0]["node"]["chain"]
    }

    /// What it was in its chain; `none` outside of any.
    pub fn step(&self) -> &str {
        self.chain()["step"].as_str().unwrap_or("none")
    }

    /// A number of its statistics.
    pub fn stat(&self, name: &str) -> u64 {
        self.doc["stats"][name].as_u64().unwrap()
    }

    /// The moment to which it restores.
    pub fn restore_time(&self) -> Timestamp {
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

/// Takes a backup. Other tasks go on meanwhile.
pub async fn take(pbmfs: &PbmFs, uri: &str, args: &[&str]) -> Taken {
    let mut all = vec!["-o", "json", "backup", "--uri", uri];
    all.extend(args);
    let backup = pbmfs.start(&all);
    let ran = tokio::task::spawn_blocking(|| backup.wait()).await.unwrap().ok();
    let name = name_of(&ran.json());
    let doc = pbmfs.json(&["describe-backup", &name]);
    Taken { name, doc }
}

/// Arguments of a base.
pub const BASE: &[&str] = &["-t", "incremental", "--base"];
/// Arguments of an increment.
pub const INCREMENT: &[&str] = &["-t", "incremental"];
