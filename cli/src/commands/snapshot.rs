//! What several verbs tell of a snapshot.

use jiff::Timestamp;
use pbmfs_agent::source::{ChainInfo, ChainStep};
use pbmfs_repo::objects::SnapshotDoc;

/// PBM's word for a snapshot that is there: only what is complete is.
pub const DONE: &str = "done";

/// The moment to which a snapshot restores: the greatest operation time of its replica sets, or the begin of the
/// backup where the source told none.
pub fn restore_to(doc: &SnapshotDoc) -> Timestamp {
    let times = doc
        .replsets
        .iter()
        .filter_map(|r| r.node.pointer("/operation_time/t")?.as_i64());
    times
        .max()
        .and_then(|t| Timestamp::from_second(t).ok())
        .unwrap_or(doc.started)
}

/// A moment as snapshot names write it.
pub fn utc(moment: Timestamp) -> String {
    moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// How the chain went, by replica sets that have one.
pub fn chains(doc: &SnapshotDoc) -> impl Iterator<Item = ChainInfo> {
    doc.replsets.iter().filter_map(ChainInfo::of)
}

/// What the snapshot as a whole is in its chain: an increment only if all of it is one.
pub fn step(doc: &SnapshotDoc) -> Option<ChainStep> {
    let rank = |step: &ChainStep| match step {
        ChainStep::Increment => 0,
        ChainStep::Base => 1,
        ChainStep::FullRead => 2,
    };
    chains(doc).map(|chain| chain.step).max_by_key(rank)
}

/// The snapshot since which this one has the changes.
pub fn source(doc: &SnapshotDoc) -> Option<String> {
    chains(doc).find_map(|chain| chain.source_snapshot)
}

/// The type as PBM's `list` prints it: an incremental backup without a source is a base, whoever wanted it so.
pub fn label(doc: &SnapshotDoc) -> String {
    let kind = &doc.backup_type;
    match source(doc) {
        None if kind == "incremental" => format!("{kind}, base"),
        _ => kind.clone(),
    }
}

/// A field of the node of the first replica set that has it.
pub fn node_field<'a>(doc: &'a SnapshotDoc, key: &str) -> Option<&'a str> {
    doc.replsets.iter().find_map(|r| r.node.get(key)?.as_str())
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
pub mod tests;
