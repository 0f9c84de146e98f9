#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::commands::snapshot::tests::{full_read, increment};

#[test]
fn a_line_has_pbms_shape() {
    let line = text(&Listing::Snapshot(Box::new(increment())));
    let expected = "2022-11-25T14:13:43Z 139.82MB <incremental> [restore_to_time: 2022-11-25T14:13:45Z]";
    assert_eq!(line, expected);
    let line = text(&Listing::Snapshot(Box::new(full_read())));
    assert_eq!(line, expected.replace("<incremental>", "<incremental, base>"));
    let name = "2022-11-25T14:13:43Z".parse().unwrap();
    let line = text(&Listing::Unreadable(name, "it is damaged".into()));
    assert_eq!(line, "2022-11-25T14:13:43Z unreadable: it is damaged");
}

#[test]
fn a_row_has_pbms_keys_and_ours() {
    let json_of = |item| serde_json::to_value(row(item)).unwrap();
    let mut expected = json!({
        "name": "2022-11-25T14:13:43Z", "status": "done", "printStatus": "success", "restoreTo": 1_669_385_625,
        "pbmVersion": "pbm-fs 0.1.0", "type": "incremental", "src": "2022-11-25T14:00:00Z", "chain": "increment",
        "cluster": "rs0", "replsets": ["rs0"], "size": 102_860_000, "sizeRead": 1_310_720,
        "sizeReferenced": 101_549_280, "sizeStored": 139_820_000,
    });
    assert_eq!(json_of(Listing::Snapshot(Box::new(increment()))), expected);
    (expected["src"], expected["chain"]) = ("".into(), "full_read".into());
    assert_eq!(json_of(Listing::Snapshot(Box::new(full_read()))), expected);
    let name = "2022-11-25T14:13:43Z".parse().unwrap();
    let row = json_of(Listing::Unreadable(name, "why".into()));
    let expected = json!({
        "name": "2022-11-25T14:13:43Z", "status": "error", "printStatus": "failed", "error": "why",
    });
    assert_eq!(row, expected);
}
