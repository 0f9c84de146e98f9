use serde_json::Value;

use super::*;
use crate::commands::snapshot::tests::{full_read, increment, snapshot};

#[test]
fn an_increment_tells_what_it_read_of_what() {
    let expected = "\
snapshot 2022-11-25T14:13:43Z
  66 files, 1.31MB read of 1.05MB that changed since 2022-11-25T14:00:00Z, 101.55MB referenced, in 7.5s
  20 of 25 blocks are new, 1.20MB; 139.82MB stored";
    assert_eq!(summary(&increment()).join("\n"), expected);
}

#[test]
fn a_full_read_tells_why() {
    let expected = "\
snapshot 2022-11-25T14:13:43Z
  66 files, 1.31MB read in 7.5s (174.76KB/s)
  20 of 25 blocks are new, 1.20MB; 139.82MB stored
  everything was read: the chain was with db2:27017, this is db1:27017";
    assert_eq!(summary(&full_read()).join("\n"), expected);
    assert_eq!(summary(&snapshot("physical", Value::Null)).len(), 3);
}
