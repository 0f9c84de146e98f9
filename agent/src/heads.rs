//! The ends of chains on which an increment may build.
//!
//! They stand in the snapshots, and the local index remembers in which: so a repository that many replica sets share
//! need not be searched. A lost index costs that search and nothing else.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;

use futures::TryStreamExt;
use pbmfs_repo::id::SnapshotName;
use pbmfs_repo::local_index::Index;
use pbmfs_repo::objects::{ChainHead, SnapshotDoc};
use pbmfs_repo::{ErrorKind, Listing, RepoError, Repository};
use serde::{Deserialize, Serialize};

use crate::source::Head;

/// Of each member: two sets may have members at the same address, seen from two machines. No server remembers more.
const HEADS_OF_A_NODE: usize = 2;

/// So many of the newest snapshots are searched, and more until one of the replica set is met.
const SEARCHED: usize = 64;

/// So many are enough if the newest that the index remembers is among them: what other machines took of the same member
/// is not far away.
const SEARCHED_WITH_INDEX: usize = 16;

/// Snapshots that the index remembers of a replica set: a node that was left long ago falls out.
const REMEMBERED: usize = 32;

/// A snapshot that holds the end of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    node: String,
    replset_id: String,
    snapshot: SnapshotName,
}

fn key(replset: &str) -> Vec<u8> {
    [b"chain heads of ", replset.as_bytes()].concat()
}

/// What the index remembers, newest first. It may be gone, or of another version.
fn remembered(index: &Index, replset: &str) -> Vec<Remembered> {
    index
        .head(&key(replset))
        .and_then(|value| serde_json::from_slice(&value).ok())
        .unwrap_or_default()
}

/// Has the index remember the ends of chains in a snapshot that was committed.
pub(crate) fn remember(index: &Index, doc: &SnapshotDoc) {
    for set in &doc.replsets {
        let Some(head) = &set.chain_head else { continue };
        let mut known = remembered(index, &set.name);
        known.retain(|known| known.snapshot != doc.name);
        known.push(Remembered {
            node: head.node.clone(),
            replset_id: head.replset_id.clone(),
            snapshot: doc.name.clone(),
        });
        known.sort_by(|a, b| b.snapshot.cmp(&a.snapshot));
        let mut of_node = HashMap::new();
        known.retain(|known| {
            let count: &mut usize = of_node
                .entry((known.node.clone(), known.replset_id.clone()))
                .or_default();
            *count += 1;
            *count <= HEADS_OF_A_NODE
        });
        known.truncate(REMEMBERED);
        if let Ok(value) = serde_json::to_vec(&known) {
            index.put_head(&key(&set.name), &value);
        }
    }
}

/// The ends of chains in the snapshots of a replica set, newest first, two of each node. Damaged snapshots are passed
/// over. Besides those of the listing, a request for each snapshot that is searched.
///
/// # Errors
/// The storage's.
pub(crate) async fn heads(repo: &Repository, index: &Index, replset: &str) -> Result<Vec<Head>, RepoError> {
    let known = remembered(index, replset);
    let newest = known.iter().map(|known| &known.snapshot).max();
    let mut found: BTreeMap<SnapshotName, ChainHead> = BTreeMap::new();
    let head_of = |doc: SnapshotDoc| {
        let set = doc.replsets.into_iter().find(|set| set.name == replset)?;
        Some((doc.name, set.chain_head?))
    };
    let mut passed = 0;
    let mut newest_first = pin!(repo.newest_first().await?);
    while let Some(listing) = newest_first.try_next().await? {
        let name = listing.name().clone();
        if let Listing::Snapshot(doc) = listing {
            found.extend(head_of(*doc));
        }
        passed += 1;
        let met = passed >= SEARCHED_WITH_INDEX && newest.is_some_and(|newest| name <= *newest);
        if met || passed >= SEARCHED && !found.is_empty() {
            break;
        }
    }
    for known in &known {
        if found.contains_key(&known.snapshot) {
            continue;
        }
        match repo.snapshot(&known.snapshot).await {
            Ok(doc) => found.extend(head_of(doc)),
            // Deleted or damaged.
            Err(e) if e.kind() != ErrorKind::Failed => {}
            Err(e) => return Err(e),
        }
    }
    let mut of_node: HashMap<(String, String), usize> = HashMap::new();
    let newest_first = found.into_iter().rev();
    Ok(newest_first
        .filter(|(_, head)| {
            let member = (head.node.clone(), head.replset_id.clone());
            let count = of_node.entry(member).or_default();
            *count += 1;
            *count <= HEADS_OF_A_NODE
        })
        .map(|(snapshot, head)| Head { snapshot, head })
        .collect())
}
