//! Which paths of a dbPath belong in a backup.
//!
//! A backup keeps everything it does not know to be worthless: an unknown file in a dbPath costs a little space, a
//! missing one may cost the restore. The list of what is left out was read from mongod 6.0 and its WiredTiger:
//!
//! | path | why |
//! |---|---|
//! | `mongod.lock` | belongs to the running process; a copy makes mongod warn of an unclean shutdown (22271) |
//! | `diagnostic.data` | changes even under `fsyncLock`, and says nothing about the data |
//! | `_tmp/…` | sort files of index builds; mongod empties it at start, or restarts the build that misses them |
//! | `WiredTiger.turtle.set`, `WiredTiger.basecfg.set`, `WiredTiger.backup.tmp`, `storage.bson.tmp` | written aside before a rename |
//! | `WiredTigerTmplog.*` | a journal file that is being preallocated, before its rename |
//! | `.pbmfs…` | our own |
//! | files in `journal/` | under a lock only: see [`JournalPolicy`] |

use serde::{Deserialize, Serialize};

/// What happens to the files in `journal/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalPolicy {
    /// A stopped server's files: after a crash the journal holds writes that no table has yet.
    Keep,
    /// Files pinned by `fsyncLock`: `WiredTiger.backup` names a complete checkpoint, so there is nothing to replay, and the hundreds of megabytes of journal would only slow the restore's first start.
    /// The empty directory is kept.
    LeaveOut,
}

/// Why a path is not in the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOutReason {
    /// The lock file of the running process.
    ProcessLock,
    /// Full-time diagnostic data capture.
    Diagnostics,
    /// A file that its owner would have removed or renamed.
    Temporary,
    /// A journal file that the pinned checkpoint does not need.
    Journal,
}

/// What [`classify`] decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The path belongs in the backup.
    Kept,
    /// The path does not; if it is a directory, nothing below it does either.
    LeftOut(LeftOutReason),
}

/// Decides about one path, relative to the dbPath and separated by `/`.
///
/// A walk may stop at a directory that is left out: everything below is left out for the same reason.
pub fn classify(path: &str, is_dir: bool, journal: JournalPolicy) -> Selection {
    use LeftOutReason::{Diagnostics, Journal, ProcessLock, Temporary};

    let (top, below) = match path.split_once('/') {
        Some((top, below)) => (top, Some(below)),
        None => (path, None),
    };
    let name = path.rsplit('/').next().unwrap_or(path);

    if path.split('/').any(|part| part.starts_with(".pbmfs")) {
        return Selection::LeftOut(Temporary);
    }
    let reason = match (top, below) {
        ("diagnostic.data", _) => Some(Diagnostics),
        ("_tmp", Some(_)) => Some(Temporary),
        ("mongod.lock", None) if !is_dir => Some(ProcessLock),
        _ if is_dir => None,
        (
            "WiredTiger.turtle.set" | "WiredTiger.basecfg.set" | "WiredTiger.backup.tmp" | "storage.bson.tmp",
            None,
        ) => Some(Temporary),
        _ if name.starts_with("WiredTigerTmplog.") => Some(Temporary),
        ("journal", Some(_)) if journal == JournalPolicy::LeaveOut => Some(Journal),
        _ => None,
    };
    reason.map_or(Selection::Kept, Selection::LeftOut)
}

/// Whether a path is a file of WiredTiger's journal.
pub fn is_journal(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_prefix("WiredTigerLog.")
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a path is a WiredTiger table: a file of checksummed disk blocks, which is worth cutting along them.
///
/// Tells by the name alone; a file called `x.wt` may still hold anything, so whoever cuts it checks each block.
pub fn is_wiredtiger_table(path: &str) -> bool {
    path.rsplit('/')
        .next()
        .is_some_and(|name| name.len() > ".wt".len() && name.ends_with(".wt"))
}

#[cfg(test)]
mod tests;
