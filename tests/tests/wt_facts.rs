//! What `docs/wiredtiger-facts.md` says of WiredTiger's incremental backups is still true.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{collections::BTreeSet, fs, path::Path};

use pbmfs_tests::{process::supervised, wt_oracle};
use tempfile::tempdir;

#[test]
fn the_facts_still_hold() {
    let Some(python) = wt_oracle::python().unwrap() else {
        return;
    };
    let place = tempdir().unwrap();
    let script = wt_oracle::program("facts.py");
    let output = supervised(&python)
        .arg("-B")
        .arg(&script)
        .arg(place.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let results: Vec<serde_json::Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let wrong: Vec<_> = results
        .iter()
        .filter(|result| result.get("error").is_some())
        .collect();
    assert!(
        output.status.success() && wrong.is_empty(),
        "{wrong:#?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Each is in the document, and the document names no other.
    let doc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/wiredtiger-facts.md");
    let doc = fs::read_to_string(doc).unwrap();
    let told: BTreeSet<&str> = doc
        .lines()
        .filter_map(|line| line.trim_end_matches([' ', '|']).rsplit_once('|'))
        .flat_map(|(_, seen)| seen.split('`').skip(1).step_by(2))
        .collect();
    let found: BTreeSet<&str> = results
        .iter()
        .map(|result| result["fact"].as_str().unwrap())
        .collect();
    assert_eq!(told, found);
}
