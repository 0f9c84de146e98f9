use mongodb::bson::{Timestamp as Ts, doc};

use super::*;
use crate::source::{FileKind, FileTime};

/// The listed files, with the sizes that were told.
fn files(listed: &Listed) -> Vec<SourceFile> {
    let file = |(path, file): (&String, &ListedFile)| SourceFile {
        path: path.clone(),
        kind: FileKind::Regular,
        size: file.size.unwrap_or_default(),
        mode: 0o600,
        uid: 0,
        gid: 0,
        mtime: FileTime::default(),
    };
    listed.files.iter().map(file).collect()
}

fn listed(incremental: bool, documents: &[Document]) -> Result<Listed, String> {
    let mut out = Listed::default();
    for document in documents {
        out.add(document, Path::new("/data/db"), incremental)?;
    }
    Ok(out)
}

#[test]
fn metadata_of_several_servers() {
    let ts = |time| Bson::Timestamp(Ts { time, increment: 3 });
    let full = doc! {"metadata": {
        "backupId": "id", "dbpath": "/data/db", "checkpointTimestamp": ts(7),
        "oplogEnd": {"ts": ts(9), "t": 1_i64}, "oplogStart": {"ts": ts(1), "t": 1_i64},
    }};
    let read = Metadata::read(&full).unwrap();
    assert_eq!(read.checkpoint, Some(Timestamp { t: 7, i: 3 }));
    assert_eq!(read.oplog_end, Some(Timestamp { t: 9, i: 3 }));
    // A standalone server.
    let bare = doc! {"metadata": {"dbpath": "/data/db", "checkpointTimestamp": ts(0)}};
    let read = Metadata::read(&bare).unwrap();
    assert_eq!((read.checkpoint, read.backup_id), (None, None));
    assert!(!read.incremental);
    let echo = doc! {"metadata": {"dbpath": "/data/db", "incrementalBackup": true}};
    assert!(Metadata::read(&echo).unwrap().incremental);
    for bad in [doc! {"filename": "/data/db/a.wt"}, doc! {"metadata": {}}] {
        assert!(Metadata::read(&bad).is_err(), "{bad}");
    }
}

#[test]
fn ranges_count_in_an_increment_alone() {
    let documents = [
        doc! {"filename": "/data/db/a.wt", "fileSize": 5_000_000_i64, "offset": 0_i64, "length": 1_048_576_i64},
        doc! {"filename": "/data/db/a.wt", "fileSize": 5_000_000_i64, "offset": 4_194_304_i64, "length": 1_048_576_i64},
        doc! {"filename": "/data/db/same.wt", "fileSize": 8192, "offset": 0, "length": 0},
        doc! {"filename": "/data/db/db/WiredTiger.backup", "fileSize": 300.0, "offset": 0, "length": 0},
        doc! {"filename": "/data/db/old.wt", "fileSize": 4096},
        doc! {"filename": "/data/db/WiredTigerHS.wt", "fileSize": 12288, "offset": 0, "length": 12288},
    ];
    let increment = listed(true, &documents).unwrap();
    let a = &increment.files["a.wt"];
    assert_eq!(a.ranges, [0..1_048_576, 4_194_304..5_242_880]);
    assert!(!a.whole && a.size == Some(5_000_000));
    let same = &increment.files["same.wt"];
    assert!(!same.whole && same.ranges.is_empty());
    // What is no table has no granules.
    assert!(increment.files["db/WiredTiger.backup"].whole);
    let old = &increment.files["old.wt"];
    assert!(!old.whole && old.ranges.is_empty());
    assert!(increment.files["WiredTigerHS.wt"].whole);
    assert_eq!(increment.granularity().map(|g| g.0), Some(1_048_576));
    assert_eq!(
        increment.bytes_named(&files(&increment)),
        1_048_576 + (5_000_000 - 4_194_304) + 300 + 12288
    );
    let base = listed(false, &documents).unwrap();
    assert!(base.files.values().all(|file| file.whole));
    assert_eq!(base.granularity(), None);
}

#[test]
fn a_journal_file_counts_as_far_as_it_is_there() {
    let documents = [doc! {"filename": "/data/db/journal/WiredTigerLog.0000000002"}];
    let listed = listed(false, &documents).unwrap();
    let mut there = files(&listed);
    there[0].size = 77;
    assert_eq!(listed.bytes_named(&there), 77);
    there[0].path = "storage.bson".into();
    assert_eq!(listed.bytes_named(&there), 0);
}

#[test]
fn a_range_behind_the_end_counts_for_nothing() {
    let documents =
        [doc! {"filename": "/data/db/a.wt", "fileSize": 4096, "offset": 16 << 20, "length": 16 << 20}];
    let listed = listed(true, &documents).unwrap();
    assert_eq!(listed.bytes_named(&files(&listed)), 0);
    assert_eq!(listed.granularity().map(|g| g.0), Some(16 << 20));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let bad = [
        doc! {"fileSize": 1},
        doc! {"filename": "/etc/passwd", "fileSize": 1},
        doc! {"filename": "/data/db", "fileSize": 1},
        doc! {"filename": "/data/db/../x.wt", "fileSize": 1},
        doc! {"filename": "/data/db/a.wt", "fileSize": -1},
        doc! {"filename": "/data/db/a.wt", "offset": i64::MAX, "length": -5_i64},
    ];
    for document in bad {
        assert!(
            listed(true, std::slice::from_ref(&document)).is_err(),
            "{document}"
        );
    }
}

#[test]
fn a_file_that_grows_while_it_is_listed_counts_as_short_as_it_was() {
    let documents = [
        doc! {"filename": "/data/db/a.wt", "fileSize": 5000, "offset": 0, "length": 1 << 20},
        doc! {"filename": "/data/db/a.wt", "fileSize": 4096, "offset": 1 << 20, "length": 1 << 20},
        doc! {"filename": "a.wt", "fileSize": 9000, "offset": 2 << 20, "length": 1 << 20},
    ];
    let listed = listed(true, &documents).unwrap();
    assert_eq!(listed.files["a.wt"].size, Some(4096));
    assert_eq!(listed.files["a.wt"].ranges.len(), 3);
}

#[test]
fn the_keys_of_encryption_are_read_whatever_is_said_of_them() {
    let documents = [
        doc! {"filename": "/data/db/key.db/table.wt", "fileSize": 4096, "offset": 0, "length": 0},
        doc! {"filename": "/data/db/table.wt", "fileSize": 4096, "offset": 0, "length": 0},
    ];
    let listed = listed(true, &documents).unwrap();
    assert!(listed.files["key.db/table.wt"].whole);
    assert!(!listed.files["table.wt"].whole);
}
