//! The repository's words for things, in those of the file system.

use std::ffi::OsString;
use std::time::{Duration, SystemTime};

use pbmfs_repo::error::RepoError;
use pbmfs_repo::files::{FileKind, FileMeta};

use crate::error::BlockError;
use crate::tree::{Attr, Ino, Lifetime, NodeKind};

/// What `stat` says of an entry of a file list.
pub(super) fn attr_of(ino: Ino, meta: &FileMeta) -> Attr {
    let kind = match meta.kind {
        FileKind::Regular => NodeKind::File,
        FileKind::Directory => NodeKind::Directory,
    };
    Attr {
        ino,
        kind,
        size: meta.size,
        // Exact figures would cost a walk of the map for every `ls`.
        allocated: meta.size,
        mode: meta.mode as u16,
        uid: meta.uid,
        gid: meta.gid,
        mtime: time(meta.mtime),
        nlink: 1,
        lifetime: Lifetime::Immutable,
    }
}

/// Far beyond what file systems can store; keeps arithmetic on times from overflowing.
const LAST_SECOND: i64 = 1 << 40;

fn time((seconds, nanoseconds): (i64, u32)) -> SystemTime {
    let seconds = seconds.clamp(-LAST_SECOND, LAST_SECOND);
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 {
        SystemTime::UNIX_EPOCH - whole
    } else {
        SystemTime::UNIX_EPOCH + whole
    };
    base + Duration::from_nanos(nanoseconds.into())
}

/// The name of a replica set as a directory's name. MongoDB allows nearly everything in it.
pub(super) fn directory_name(name: &str) -> OsString {
    let plain: String = name
        .chars()
        .map(|c| if c == '/' || c.is_control() { '_' } else { c })
        .collect();
    match plain.as_str() {
        "" | "." | ".." => "_".into(),
        _ => plain.into(),
    }
}

/// Why a block cannot be had; a map node or a part of a file list is a block, too.
pub(super) fn block_error(e: RepoError) -> BlockError {
    match e {
        RepoError::Deleted(_) => BlockError::Stale,
        RepoError::DamagedBlock { pack, slot, reason } => BlockError::Damaged {
            block: slot.into(),
            pack: pack.to_string().into(),
            reason: reason.to_string().into(),
        },
        RepoError::Damaged { key, reason } => BlockError::Damaged {
            block: "?".into(),
            pack: key.to_string().into(),
            reason: reason.to_string().into(),
        },
        RepoError::Missing { key } => BlockError::Damaged {
            block: "?".into(),
            pack: key.to_string().into(),
            reason: "the object is missing".into(),
        },
        RepoError::DamagedEntry { reason } => BlockError::Damaged {
            block: "?".into(),
            pack: "?".into(),
            reason: format!("invalid entry of the file list: {reason}").into(),
        },
        other => BlockError::Unavailable(other.to_string().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_names_that_are_no_names_are_borne() {
        let before = SystemTime::UNIX_EPOCH - Duration::from_nanos(1_500_000_000);
        assert_eq!(time((-2, 500_000_000)), before);
        assert_eq!(time((3, 7)), SystemTime::UNIX_EPOCH + Duration::new(3, 7));
        assert!(time((i64::MIN, 0)) < before && time((i64::MAX, 999_999_999)) > SystemTime::now());
        assert_eq!(directory_name("rs0"), "rs0");
        assert_eq!(directory_name("a/b\n"), "a_b_");
        assert_eq!(directory_name(".."), "_");
    }
}
