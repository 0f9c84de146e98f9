use super::*;

#[test]
fn a_name_cannot_smuggle_in_options() {
    assert_eq!(source_name("2026-11-21T10:00:00Z"), "pbm-fs:2026-11-21T10:00:00Z");
    assert_eq!(source_name("a,ro\\,suid\0 b\n"), "pbm-fs:a_ro__suid__b_");
}

#[test]
fn there_are_at_least_two_event_loops() {
    assert!((2..=16).contains(&default_threads()));
}
