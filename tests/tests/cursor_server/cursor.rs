//! What the cursor names, how long it lives, and what it refuses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use mongodb::bson::{Timestamp, doc};
use pbmfs_tests::{MongodOptions, cursor_server::failure, mongod};

use crate::client::{Cursor, Live, base, code, increment};

const SECTOR: usize = 4096;
const MB: u64 = 1 << 20;

/// The tables of a pin in sectors.
fn tables(cursor: &Cursor) -> BTreeMap<String, Vec<Vec<u8>>> {
    let names: BTreeSet<_> = cursor
        .names()
        .into_iter()
        .filter(|name| name.ends_with(".wt"))
        .collect();
    let read = |name: String| {
        let bytes = fs::read(cursor.dbpath().join(&name)).unwrap();
        (name, bytes.chunks(SECTOR).map(<[u8]>::to_vec).collect())
    };
    names.into_iter().map(read).collect()
}

#[tokio::test]
async fn the_ranges_cover_every_sector_that_changed() {
    // The table of a dropped collection stays for this long.
    let mongod = MongodOptions::default().parameter("minSnapshotHistoryWindowInSeconds", 0);
    let live = Live::quiet_with(mongod).await;
    let rig = live.client.database("rig");
    rig.create_collection("dropped").await.unwrap();
    let cursor = live.open(base("a")).await.unwrap();
    assert!(
        cursor.metadata.get_timestamp("checkpointTimestamp").is_ok(),
        "{}",
        cursor.metadata
    );
    assert!(
        cursor.metadata.get_document("oplogEnd").is_ok()
            && cursor.metadata.get_document("oplogStart").is_ok()
    );
    let names = cursor.names();
    for name in [
        "WiredTiger",
        "WiredTiger.backup",
        "WiredTigerHS.wt",
        "_mdb_catalog.wt",
        "sizeStorer.wt",
    ] {
        assert!(names.contains(&name.to_owned()), "{name} is not in {names:?}");
    }
    assert!(!names.contains(&"WiredTiger.wt".to_owned()));
    for file in &cursor.files {
        assert_eq!(file.get_i64("length"), file.get_i64("fileSize"), "{file}");
    }
    let before = tables(&cursor);
    cursor.kill().await;

    live.update(1).await;
    rig.collection("made")
        .insert_one(doc! {"a": vec![7; 100_000]})
        .await
        .unwrap();
    let stats = rig.run_command(doc! {"collStats": "dropped"}).await.unwrap();
    let uri = stats.get_document("wiredTiger").unwrap().get_str("uri").unwrap();
    let file = live.set.members()[0]
        .dbpath()
        .join(format!("{}.wt", uri.rsplit(':').next().unwrap()));
    assert!(file.exists());
    rig.collection::<()>("dropped").drop().await.unwrap();
    // The server takes the file away when a checkpoint has seen the drop.
    while file.exists() {
        rig.collection("made").insert_one(doc! {"a": 1}).await.unwrap();
        live.client
            .database("admin")
            .run_command(doc! {"fsync": 1})
            .await
            .unwrap();
    }
    let cursor = live.open(increment("a", "b")).await.unwrap();
    let after = tables(&cursor);
    let named = &live.server().ranges_named()["b"];
    assert_eq!(named.len(), cursor.files.len());
    let tables = named.iter().filter(|range| !range.file.starts_with("journal/"));
    let sizes: BTreeMap<_, _> = tables.map(|range| (&range.file, range.file_size)).collect();
    let (bytes, whole) = (live.server().bytes_named("b"), sizes.values().sum());
    assert!(0 < bytes && bytes < whole, "{bytes} of {whole} bytes");
    let mut changed = 0;
    for (name, sectors) in &after {
        let ranges: Vec<_> = named.iter().filter(|range| range.file == *name).collect();
        let covered = |at: u64| {
            ranges
                .iter()
                .any(|range| (range.offset..range.offset + range.length).contains(&at))
        };
        for (index, sector) in sectors.iter().enumerate() {
            if before.get(name).and_then(|before| before.get(index)) != Some(sector) {
                changed += 1;
                assert!(covered((index * SECTOR) as u64), "sector {index} of {name}");
            }
        }
        if name.starts_with("WiredTiger") || sectors.len() == 1 && !before.contains_key(name) {
            continue;
        }
        // Granules, or nothing at all.
        for range in &ranges {
            assert!(
                range.length == MB && range.offset.is_multiple_of(MB) || range.length == 0,
                "{range:?}"
            );
            assert!(range.length == MB || ranges.len() == 1);
        }
    }
    assert!(changed > 10, "{changed} sectors changed");
    assert!(
        named.iter().any(|range| range.length == 0),
        "something did not change"
    );
    assert!(
        before.keys().any(|name| !after.contains_key(name)),
        "a table was dropped"
    );
    assert!(
        after.keys().any(|name| !before.contains_key(name)),
        "a table was made"
    );
    cursor.kill().await;
}

#[tokio::test]
async fn history_is_two_names_and_one_granularity() {
    let mut live = Live::quiet().await;
    let block_size =
        |size: i32, name: &str| doc! {"incrementalBackup": true, "thisBackupName": name, "blockSize": size};
    live.touch(block_size(1, "a")).await.unwrap();
    assert_eq!(
        code(live.touch(block_size(1, "a")).await),
        Some(failure::BAD_VALUE)
    );
    let unknown = live.open(increment("z", "b")).await.err().unwrap().to_string();
    assert!(unknown.contains("2: No such file or directory"), "{unknown}");
    for (source, name) in [("a", "b"), ("b", "c")] {
        live.touch(increment(source, name)).await.unwrap();
    }
    assert_eq!(
        code(live.touch(increment("a", "d")).await),
        Some(failure::UNKNOWN_ERROR)
    );

    // It outlives a restart, and the cursor does not.
    let mut cursor = live.open(increment("c", "d")).await.unwrap();
    live.set.member_mut(0).stop().await.unwrap();
    assert!(cursor.get_more().await.is_err());
    live.set.member_mut(0).restart().await.unwrap();
    live.set.wait_ready().await.unwrap();
    assert_eq!(code(cursor.get_more().await), Some(failure::CURSOR_NOT_FOUND));
    assert!(!cursor.dbpath().exists());
    live.update(1).await;
    let mut options = increment("d", "e");
    options.insert("blockSize", 4);
    live.touch(options).await.unwrap();
    let lengths = |name: &str| {
        let named = live.server().ranges_named();
        let tables = named[name]
            .iter()
            .filter(|range| range.file.starts_with("collection"));
        tables
            .map(|range| range.length)
            .filter(|length| *length > 0)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(lengths("e"), [MB].into(), "another blockSize is passed over");

    // Once it is forgotten, there is a new granularity.
    let cursor = live.open(doc! {"disableIncrementalBackup": true}).await.unwrap();
    assert_eq!(cursor.files, []);
    cursor.kill().await;
    assert_eq!(
        code(live.touch(increment("e", "f")).await),
        Some(failure::UNKNOWN_ERROR)
    );
    live.server().forget_history();
    live.touch(block_size(4, "g")).await.unwrap();
    live.update(2).await;
    live.touch(increment("g", "h")).await.unwrap();
    assert_eq!(lengths("h"), [4 * MB].into());
    let refused: Vec<_> = live
        .server()
        .opened()
        .into_iter()
        .filter_map(|(_, code)| code)
        .collect();
    assert_eq!(refused, [2, 8, 8, 8]);
}

#[tokio::test]
async fn a_cursor_belongs_to_the_server_and_to_its_session() {
    let live = Live::quiet().await;
    let mut cursor = live.open(doc! {}).await.unwrap();
    assert_eq!(code(live.open(doc! {}).await), Some(failure::CURSOR_OPEN));
    let admin = live.client.database("admin");
    let lock = doc! {"fsync": 1, "lock": true};
    let other = mongod::client(&live.server().uri()).await.unwrap();
    assert_eq!(
        code(other.database("admin").run_command(lock).await),
        Some(failure::NO_LOCK_BESIDE_CURSOR)
    );
    // The driver sends an implicit session of its own with this.
    let stray = doc! {"getMore": cursor.id, "collection": "$cmd.aggregate"};
    assert_eq!(
        code(other.database("admin").run_command(stray).await),
        Some(50_738)
    );
    // It outlives its connection.
    live.server().drop_connections();
    let mut tries = 0;
    while cursor.get_more().await.is_err() && tries < 10 {
        tries += 1;
    }
    assert!(cursor.get_more().await.unwrap().is_empty() && live.server().is_open());
    // Nothing but its own id extends it.
    let now = Timestamp {
        time: 1,
        increment: 1,
    };
    let limit = Duration::from_secs(30);
    let stranger = doc! {"backupId": mongodb::bson::Uuid::new(), "timestamp": now};
    assert_eq!(
        code(cursor.extend_with(stranger, limit).await),
        Some(failure::OTHER_BACKUP)
    );
    assert_eq!(
        code(cursor.extend_with(doc! {"timestamp": now}, limit).await),
        Some(failure::INVALID_OPTIONS)
    );
    let far = Timestamp {
        time: u32::MAX,
        increment: 1,
    };
    assert_eq!(
        code(cursor.extend(far, Duration::from_millis(300)).await),
        Some(failure::TIME_LIMIT)
    );
    // Left alone, it ends.
    live.server().set_timeout(Duration::from_millis(100));
    while live.server().is_open() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(code(cursor.get_more().await), Some(failure::CURSOR_NOT_FOUND));
    assert_eq!(code(cursor.extend(now, limit).await), Some(failure::CURSOR_OPEN));
    // And its session's end is its own.
    live.server().set_timeout(Duration::from_secs(600));
    let cursor = live.open(doc! {}).await.unwrap();
    let client = cursor.client.clone();
    drop(cursor);
    client.shutdown().await;
    assert!(!live.server().is_open());
    admin.run_command(doc! {"ping": 1}).await.unwrap();
}
