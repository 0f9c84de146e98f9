#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::commands::snapshot::tests::{full_read, increment, snapshot};

#[test]
fn an_increment_tells_its_source_and_its_chain() {
    let expected = "\
name: 2022-11-25T14:13:43Z
type: incremental
src: 2022-11-25T14:00:00Z
status: done
cluster: rs0
restore_to_time: 2022-11-25T14:13:45Z
started: 2022-11-25T14:13:43Z
finished: 2022-11-25T14:13:51Z
took: 7.5s
tool: pbm-fs 0.1.0
files: 66
size_uncompressed: 102.86MB
read: 1.31MB in 25 blocks
referenced: 101.55MB
new: 1.20MB in 20 blocks
stored: 139.82MB (139.00MB data, 820.00KB maps)
replsets:
- name: rs0
  source: backup_cursor
  node: db1:27017
  mongod_version: 6.0.27-21
  fcv: 6.0
  operation_time: 1669385625,4
  chain:
    step: increment
    source_snapshot: 2022-11-25T14:00:00Z
    block_size: 1MiB
    named: 1.05MB
  chain_head:
    node: db1:27017
    this_backup_name: pbmfs_2.0.0
    block_size: 1MiB
    checkpoint_ts: 1669385624,3";
    assert_eq!(text(&increment()).join("\n"), expected);
}

#[test]
fn a_full_read_tells_its_reason() {
    let text = text(&full_read());
    let at = text.iter().position(|line| line == "  chain:").unwrap();
    let expected = [
        "    step: full_read",
        "    reason: \"the chain was with db2:27017, this is db1:27017\"",
        "    block_size: 1MiB",
        "    named: 102.86MB",
        "  chain_head:",
    ];
    assert_eq!(text[at + 1..at + 6], expected);
    assert!(!text.iter().any(|line| line.starts_with("src:")));
}

#[test]
fn json_has_the_snapshot_and_pbms_keys() {
    let doc = increment();
    let found = serde_json::to_value(Described::new(&doc, None)).unwrap();
    let mut expected = serde_json::to_value(&doc).unwrap();
    let pbm = json!({
        "status": "done", "src": "2022-11-25T14:00:00Z", "restore_to_time": "2022-11-25T14:13:45Z",
        "last_write_ts": 1_669_385_625, "last_write_time": "2022-11-25T14:13:45Z",
        "last_transition_ts": 1_669_385_631, "last_transition_time": "2022-11-25T14:13:51Z",
        "mongodb_version": "6.0.27-21", "fcv": "6.0", "pbm_version": "pbm-fs 0.1.0",
        "size": 139_820_000, "size_h": "139.82MB",
        "size_uncompressed": 102_860_000, "size_uncompressed_h": "102.86MB",
    });
    let map = expected.as_object_mut().unwrap();
    map.extend(pbm.as_object().unwrap().clone());
    assert_eq!(found, expected);
    let silent = snapshot("physical", Value::Null);
    let found = serde_json::to_value(Described::new(&silent, Some(Vec::new()))).unwrap();
    assert!(found.get("mongodb_version").is_none() && found["src"] == "" && found["files"] == json!([]));
}
