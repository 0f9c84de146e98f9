//! What a backup cursor tells: one document of metadata, then files and the ranges of them that changed.
//!
//! Servers differ. 4.4 gives `filename` and `fileSize` alone; later ones `offset` and `length` too, which Percona leaves out
//! where both are 0: in an increment that is an unchanged file, in a base, on some servers, every file. Early ones pass over
//! the options of increments without a word, and tell so only by metadata that do not repeat them. Numbers come in
//! whatever type. Ranges are whole granules and may reach, or lie, behind the file's end (`docs/wiredtiger-facts.md`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use mongodb::bson::{Bson, Document};
use pbmfs_dbpath::is_wiredtiger_table;
use pbmfs_repo::files::is_sound_path;

use crate::node::server::integer;
use crate::source::{SourceFile, Timestamp};

/// Where Percona Server keeps the keys of encryption at rest.
const KEYS: &str = "key.db/";

/// The first document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Metadata {
    /// Names the cursor to `$backupCursorExtend`.
    pub backup_id: Option<Bson>,
    /// Absolute, as the server sees it: file names begin with it.
    pub dbpath: PathBuf,
    /// The pinned checkpoint; a standalone server has none.
    pub checkpoint: Option<Timestamp>,
    /// Last entry of the oplog that the files hold.
    pub oplog_end: Option<Timestamp>,
    /// Whether the server took notice of `incrementalBackup`.
    pub incremental: bool,
}

/// Files and ranges, by path below the dbPath.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Listed {
    pub files: BTreeMap<String, ListedFile>,
}

/// One file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ListedFile {
    /// Its length at the checkpoint, where the server tells it.
    pub size: Option<u64>,
    /// Whether all of it has to be read.
    pub whole: bool,
    /// Ranges that changed, as they were named.
    pub ranges: Vec<Range<u64>>,
}

impl Metadata {
    /// Reads the document that a cursor begins with.
    pub fn read(document: &Document) -> Result<Self, String> {
        let metadata = document
            .get_document("metadata")
            .map_err(|_| "its first document is not the backup's metadata".to_owned())?;
        let dbpath = metadata
            .get_str("dbpath")
            .map_err(|_| "the metadata name no dbpath".to_owned())?;
        Ok(Self {
            backup_id: metadata.get("backupId").cloned(),
            dbpath: dbpath.into(),
            checkpoint: timestamp(metadata.get("checkpointTimestamp")),
            oplog_end: timestamp(metadata.get("oplogEnd")),
            incremental: metadata.get_bool("incrementalBackup").unwrap_or(false),
        })
    }
}

/// A timestamp, bare or as the `ts` of an optime; 0 is none.
fn timestamp(value: Option<&Bson>) -> Option<Timestamp> {
    let found = match value? {
        Bson::Timestamp(ts) => *ts,
        Bson::Document(optime) => optime.get_timestamp("ts").ok()?,
        _ => return None,
    };
    (found.time > 0).then_some(Timestamp {
        t: found.time,
        i: found.increment,
    })
}

impl Listed {
    /// Takes one document of a file. With `incremental`, ranges count; without, every file is whole.
    pub fn add(&mut self, document: &Document, dbpath: &Path, incremental: bool) -> Result<(), String> {
        let name = document
            .get_str("filename")
            .map_err(|_| "a document names no file".to_owned())?;
        let path = below(name, dbpath)?;
        let number = |key: &str| match integer(document, key) {
            Some(n) => u64::try_from(n)
                .map(Some)
                .map_err(|_| format!("{key} of {path} is {n}")),
            None => Ok(None),
        };
        let (size, offset, length) = (number("fileSize")?, number("offset")?, number("length")?);
        let table = is_wiredtiger_table(&path);
        let file = self.files.entry(path.clone()).or_default();
        // A server looks when it makes the document, and a file may grow meanwhile, never shrink: all that lives at the
        // checkpoint lies within each of the lengths.
        file.size = match (file.size, size) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        match (offset, length) {
            // Only tables have granules; what else is listed is small, or a log. The keys of encryption at rest are few,
            // and nothing could be read without them: they are not left to anybody's book-keeping.
            _ if !incremental || !table || path.starts_with(KEYS) => file.whole = true,
            (None | Some(0), None | Some(0)) => {}
            // Not in granules: WiredTiger's own tables always are.
            (Some(0), length) if length == size => file.whole = true,
            (Some(offset), Some(length)) => {
                let end = offset
                    .checked_add(length)
                    .ok_or_else(|| format!("a range of {path} has no end"))?;
                file.ranges.push(offset..end);
            }
            _ => file.whole = true,
        }
        Ok(())
    }

    /// Granularity of the ranges in bytes: the greatest that all of them fit; and of how many ranges it is told. Of few it
    /// may be a multiple of the true one. None if there is no range.
    pub fn granularity(&self) -> Option<(u64, usize)> {
        let ranges = self.files.values().flat_map(|file| &file.ranges);
        let count = ranges.clone().count();
        let numbers = ranges.flat_map(|range| [range.start, range.end - range.start]);
        let greatest = numbers.filter(|n| *n > 0).reduce(gcd)?;
        Some((greatest, count))
    }

    /// Bytes inside the ends of these files that were named. Of journal files the server tells no sizes.
    pub fn bytes_named(&self, files: &[SourceFile]) -> u64 {
        let of = |file: &SourceFile| match self.files.get(&file.path) {
            None => 0,
            Some(listed) if listed.whole => file.size,
            Some(listed) => {
                let inside = |r: &Range<u64>| r.end.min(file.size).saturating_sub(r.start);
                listed.ranges.iter().map(inside).sum()
            }
        };
        files.iter().map(of).sum()
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A name as the server tells it, below its dbPath.
fn below(name: &str, dbpath: &Path) -> Result<String, String> {
    let path = Path::new(name);
    let inside = match path.strip_prefix(dbpath) {
        Ok(inside) => inside,
        Err(_) if path.is_relative() => path,
        Err(_) => return Err(format!("{name} is not below {}", dbpath.display())),
    };
    let inside = inside.to_str().filter(|inside| is_sound_path(inside));
    inside
        .map(str::to_owned)
        .ok_or_else(|| format!("{name} is not the name of a file"))
}

#[cfg(test)]
mod tests;
