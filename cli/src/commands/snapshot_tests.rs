#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

/// A snapshot of one replica set whose node recorded this.
pub fn snapshot(kind: &str, node: Value) -> SnapshotDoc {
    let doc = json!({
        "name": "2022-11-25T14:13:43Z",
        "lease": "0123456789abcdef0123456789abcdef",
        "cluster": {"name": "rs0"},
        "type": kind,
        "tool": "pbm-fs 0.1.0",
        "started": "2022-11-25T14:13:43.5Z",
        "finished": "2022-11-25T14:13:51Z",
        "stats": {
            "files": 66, "bytes_total": 102_860_000, "bytes_read": 1_310_720, "bytes_referenced": 101_549_280,
            "blocks_read": 25, "blocks_new": 20, "bytes_new": 1_200_000, "bytes_stored_data": 139_000_000,
            "bytes_stored_map": 820_000, "seconds": 7.5,
        },
        "replsets": [{
            "name": "rs0",
            "chain_head": {
                "node": "db1:27017", "replset_id": "63", "this_backup_name": "pbmfs_2.0.0", "block_size": 1,
                "checkpoint_ts": [1_669_385_624, 3],
            },
            "node": node,
        }],
    });
    serde_json::from_value(doc).unwrap()
}

/// A node that took this step.
pub fn node(chain: Value) -> Value {
    json!({
        "source": "backup_cursor", "node": "db1:27017", "mongod_version": "6.0.27-21", "fcv": "6.0",
        "operation_time": {"t": 1_669_385_625, "i": 4}, "chain": chain,
    })
}

pub fn increment() -> SnapshotDoc {
    let chain = json!({
        "step": "increment", "source_snapshot": "2022-11-25T14:00:00Z", "reason": null, "block_size": 1,
        "bytes_named": 1_048_576,
    });
    snapshot("incremental", node(chain))
}

pub fn full_read() -> SnapshotDoc {
    let chain = json!({
        "step": "full_read", "source_snapshot": null, "reason": "the chain was with db2:27017, this is db1:27017",
        "block_size": 1, "bytes_named": 102_860_000,
    });
    snapshot("incremental", node(chain))
}

#[test]
fn the_type_is_printed_as_pbm_prints_it() {
    assert_eq!(label(&increment()), "incremental");
    assert_eq!(source(&increment()).unwrap(), "2022-11-25T14:00:00Z");
    assert_eq!(step(&increment()), Some(ChainStep::Increment));
    let base =
        json!({"step": "base", "source_snapshot": null, "reason": null, "block_size": 1, "bytes_named": 5});
    let base = snapshot("incremental", node(base));
    assert_eq!(
        (label(&base).as_str(), step(&base)),
        ("incremental, base", Some(ChainStep::Base))
    );
    assert_eq!(label(&full_read()), "incremental, base");
    // Under a lock, or of a directory, which records nothing.
    let locked = json!({"step": "full_read", "source_snapshot": null, "reason": "x", "block_size": null, "bytes_named": null});
    let locked = snapshot("physical", node(locked));
    assert_eq!(
        (label(&locked).as_str(), step(&locked)),
        ("physical", Some(ChainStep::FullRead))
    );
    let silent = snapshot("physical", Value::Null);
    assert_eq!(
        (label(&silent).as_str(), step(&silent), source(&silent)),
        ("physical", None, None)
    );
}

#[test]
fn of_several_replica_sets_the_worst_step_counts() {
    let mut doc = increment();
    doc.replsets.extend(full_read().replsets);
    assert_eq!(step(&doc), Some(ChainStep::FullRead));
    assert_eq!(source(&doc).unwrap(), "2022-11-25T14:00:00Z");
}

#[test]
fn the_restore_time_is_that_of_the_last_replica_set() {
    assert_eq!(utc(restore_to(&increment())), "2022-11-25T14:13:45Z");
    assert_eq!(
        utc(restore_to(&snapshot("physical", Value::Null))),
        "2022-11-25T14:13:43Z"
    );
    assert_eq!(node_field(&increment(), "fcv"), Some("6.0"));
    assert_eq!(node_field(&increment(), "shard"), None);
}
