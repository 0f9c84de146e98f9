#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn footprint(blocks: u64) -> Footprint {
    Footprint {
        blocks,
        bytes_unique: blocks * 1_000_000,
        bytes_stored_data: blocks * 500_000,
        blocks_map: 2,
        bytes_stored_map: 4000,
    }
}

fn row(name: &str, blocks: u64, only: u64) -> SnapshotUse {
    SnapshotUse {
        name: name.parse().unwrap(),
        backup_type: "incremental".into(),
        usage: Use {
            files: 5,
            bytes_logical: 1_500_000 * blocks,
            uses: footprint(blocks),
            only: footprint(only),
        },
    }
}

fn found() -> Stats {
    let snapshots = vec![
        row("2022-11-25T14:00:00Z", 10, 1),
        row("2022-11-25T15:00:00Z", 12, 3),
    ];
    Stats {
        total: Use {
            files: 10,
            bytes_logical: 33_000_000,
            uses: footprint(13),
            only: footprint(13),
        },
        snapshots,
        contents: Contents {
            snapshots: 2,
            packs: 3,
            bytes_packs: 7_000_000,
            bytes_unused: 0,
        },
        unreadable: Vec::new(),
    }
}

#[test]
fn the_table_lines_up() {
    let expected = "\
snapshot              logical   unique  stored  only here  dedup  compression
2022-11-25T15:00:00Z  18.00MB  12.00MB  6.00MB     1.50MB  1.50x        2.00x
2022-11-25T14:00:00Z  15.00MB  10.00MB  5.00MB   504.00KB  1.50x        2.00x
all                   33.00MB  13.00MB  6.50MB     6.50MB  2.54x        2.00x
13 blocks of files; 2 blocks of maps and lists, 4.00KB
the repository holds 2 snapshots in 3 packs, 7.00MB, of which no snapshot uses 0B";
    assert_eq!(text(&found()).join("\n"), expected);
    let mut some = found();
    some.contents.snapshots = 3;
    assert!(text(&some)[3].starts_with("these together "));
    some.snapshots.pop();
    assert_eq!(text(&some).len(), 4);
}

#[test]
fn json_has_every_figure() {
    let found = found();
    let document = serde_json::to_value(document(&found)).unwrap();
    let expected = json!({
        "name": "2022-11-25T15:00:00Z", "type": "incremental", "files": 5, "bytes_logical": 18_000_000,
        "blocks": 12, "bytes_unique": 12_000_000, "bytes_stored_data": 6_000_000,
        "blocks_map": 2, "bytes_stored_map": 4000, "bytes_stored": 6_004_000,
        "dedup_ratio": 1.5, "compression_ratio": 2.0,
        "only": {
            "blocks": 3, "bytes_unique": 3_000_000, "bytes_stored_data": 1_500_000, "blocks_map": 2,
            "bytes_stored_map": 4000, "bytes_stored": 1_504_000,
        },
    });
    assert_eq!(document["snapshots"][0], expected);
    assert_eq!(document["total"]["only"]["bytes_stored"], 6_504_000);
    let repository = json!({"snapshots": 2, "packs": 3, "bytes_packs": 7_000_000, "bytes_unused": 0});
    assert_eq!(document["repository"], repository);
    assert!(document.get("unreadable").is_none());
    // Nothing was stored, so there is nothing to divide by.
    let nothing = serde_json::to_value(Figures::of(&Use::default())).unwrap();
    assert!(nothing.get("dedup_ratio").is_none() && nothing["bytes_stored"] == 0);
}
