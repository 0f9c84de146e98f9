use super::*;
use JournalPolicy::{Keep, LeaveOut};
use LeftOutReason::{Diagnostics, Journal, ProcessLock, Temporary};

fn left_out(path: &str, is_dir: bool, journal: JournalPolicy) -> Option<LeftOutReason> {
    match classify(path, is_dir, journal) {
        Selection::Kept => None,
        Selection::LeftOut(reason) => Some(reason),
    }
}

#[test]
fn everything_that_a_restore_needs_is_kept() {
    for path in [
        "WiredTiger",
        "WiredTiger.backup",
        "WiredTiger.lock",
        "WiredTiger.turtle",
        "WiredTiger.wt",
        "WiredTigerHS.wt",
        "_mdb_catalog.wt",
        "collection-0-1234567890.wt",
        "index-1--1234567890.wt",
        "sizeStorer.wt",
        "storage.bson",
        "mydb/collection/7--123.wt",
        "mydb/index/8--123.wt",
        "rollback/mydb.coll/removed.2026.bson",
        "mongod.log",
        "unknown file with spaces",
    ] {
        for policy in [Keep, LeaveOut] {
            assert_eq!(left_out(path, false, policy), None, "{path}");
        }
    }
}

#[test]
fn directories_are_kept_even_when_their_files_are_not() {
    for path in ["journal", "_tmp", "mydb", "mydb/collection", "empty"] {
        assert_eq!(left_out(path, true, LeaveOut), None, "{path}");
    }
}

#[test]
fn the_journal_follows_the_policy() {
    for path in [
        "journal/WiredTigerLog.0000000001",
        "journal/WiredTigerPreplog.0000000001",
    ] {
        assert_eq!(left_out(path, false, Keep), None, "{path}");
        assert_eq!(left_out(path, false, LeaveOut), Some(Journal), "{path}");
    }
    // Only the dbPath's own journal: a database may be called "journal" somewhere deeper.
    assert_eq!(left_out("mydb/journal/1.wt", false, LeaveOut), None);
}

#[test]
fn the_process_lock_and_diagnostics_are_left_out() {
    assert_eq!(left_out("mongod.lock", false, Keep), Some(ProcessLock));
    assert_eq!(left_out("diagnostic.data", true, Keep), Some(Diagnostics));
    assert_eq!(
        left_out("diagnostic.data/metrics.interim", false, Keep),
        Some(Diagnostics)
    );
    // directoryPerDB: databases with such names are data.
    assert_eq!(left_out("mydb/diagnostic.data", false, Keep), None);
    assert_eq!(left_out("mydb/mongod.lock", false, Keep), None);
    assert_eq!(left_out("mongod.lock", true, Keep), None);
}

#[test]
fn temporary_files_are_left_out() {
    for path in [
        "_tmp/extsort-index.17-42",
        "_tmp/deeper/file",
        "WiredTiger.turtle.set",
        "WiredTiger.basecfg.set",
        "WiredTiger.backup.tmp",
        "storage.bson.tmp",
        "WiredTigerTmplog.0000000007",
        "journal/WiredTigerTmplog.0000000007",
        ".pbmfs-write-test",
        "mydb/.pbmfs.tmp",
        ".pbmfs/inner",
    ] {
        assert_eq!(left_out(path, false, Keep), Some(Temporary), "{path}");
    }
    // A set of settings is not a temporary file.
    assert_eq!(left_out("mydb.set", false, Keep), None);
    assert_eq!(left_out("notes.tmp", false, Keep), None);
}

#[test]
fn a_directory_that_is_left_out_leaves_out_all_below() {
    for (dir, below) in [
        ("diagnostic.data", "diagnostic.data/a/b"),
        ("_tmp/x", "_tmp/x/y"),
        (".pbmfs", ".pbmfs/z"),
    ] {
        assert!(left_out(dir, true, Keep).is_some());
        assert_eq!(left_out(dir, true, Keep), left_out(below, false, Keep));
    }
}

#[test]
fn tables_are_told_by_name() {
    assert!(is_wiredtiger_table("collection-0-1.wt"));
    assert!(is_wiredtiger_table("db/collection/0-1.wt"));
    assert!(!is_wiredtiger_table("WiredTiger.turtle"));
    assert!(!is_wiredtiger_table("a.wt/b"));
    assert!(!is_wiredtiger_table(".wt"));
}

#[test]
fn names_in_json_are_stable() {
    assert_eq!(serde_json::to_string(&LeaveOut).unwrap(), "\"leave_out\"");
    assert_eq!(serde_json::to_string(&ProcessLock).unwrap(), "\"process_lock\"");
    assert_eq!(
        serde_json::from_str::<LeftOutReason>("\"temporary\"").unwrap(),
        Temporary
    );
}

#[test]
fn the_journal_is_known_by_its_names() {
    for yes in ["journal/WiredTigerLog.0000000001", "WiredTigerLog.0000000012"] {
        assert!(is_journal(yes), "{yes}");
    }
    for no in [
        "journal/WiredTigerPreplog.0000000001",
        "WiredTigerLog.",
        "WiredTigerLog.wt",
        "WiredTigerHS.wt",
    ] {
        assert!(!is_journal(no), "{no}");
    }
}
