//! The journal of a restore: whose files lie in the partial directory, and which of their ranges are durable.
//!
//! ```text
//! "pbm-fs restore journal 1\n"
//! record*      length of payload, u32 │ payload │ first 8 bytes of the payload's BLAKE3
//! payload      0 │ JSON of the header                       the first record, and only that
//!              1 │ count │ (file - last file, zigzag; start; length)*      these ranges are durable
//!              2 │ file │ offset                            everything before this place is durable
//!              3 │ inode                                    all is durable; the directory has this inode
//! ```
//!
//! It is only ever appended to. Reading stops at the first record that is not whole, which is what a crash in the
//! middle of an append leaves; the rest is cut off before the next append.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pbmfs_repo::id::{BlockId, LeaseId, RepositoryId, SnapshotName};
use pbmfs_repo::wire::{Reader, Writer};
use serde::{Deserialize, Serialize};

use super::done::{Done, Point};

/// What the file begins with: name and version of the format.
pub(super) const MAGIC: &[u8] = b"pbm-fs restore journal 1\n";

/// Longest payload that is read: more ranges than any checkpoint has.
const MAX_RECORD: u32 = 256 << 20;

const SUM_LEN: usize = 8;

/// What is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// From which repository.
    pub repository: RepositoryId,
    /// Which snapshot.
    pub snapshot: SnapshotName,
    /// Under which lease it was made: a name may be used again after a deletion.
    pub lease: LeaseId,
    /// Which replica set of it.
    pub replset: String,
}

/// What a journal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contents {
    /// What is restored.
    pub header: Header,
    /// What is durable.
    pub done: Done,
    /// All is durable, and the directory has this inode.
    pub complete: Option<u64>,
    /// Bytes of the file that are sound.
    pub len: u64,
}

/// What a file that may be a journal is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loaded {
    /// No whole header: a restore was interrupted before it wrote anything else.
    Unborn,
    /// A journal.
    Journal(Box<Contents>),
    /// Not written by this version of this program.
    Foreign,
}

/// Appends to the journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    len: u64,
}

/// Ranges that became durable, sorted by file.
pub(super) type Ranges = Vec<(u64, Range<u64>)>;

impl Journal {
    /// Goes on in `file` behind `len` sound bytes.
    pub fn new(file: File, len: u64) -> io::Result<Self> {
        file.set_len(len)?;
        Ok(Self { file, len })
    }

    /// Begins a journal in an empty file. Durable when this returns, the file's name aside.
    pub fn begin(file: File, header: &Header) -> io::Result<Self> {
        let mut journal = Self::new(file, 0)?;
        let mut w = Writer::default();
        w.u8(0);
        w.bytes(&serde_json::to_vec(header)?);
        let mut bytes = MAGIC.to_vec();
        bytes.extend(record(&w.into_vec()));
        journal.append(&bytes)?;
        Ok(journal)
    }

    /// Records what the caller has made durable. Durable itself when this returns.
    pub fn checkpoint(&mut self, ranges: &Ranges, through: Option<Point>) -> io::Result<()> {
        let mut bytes = Vec::new();
        if !ranges.is_empty() {
            let mut w = Writer::with_capacity(16 + ranges.len() * 8);
            w.u8(1);
            w.varint(ranges.len() as u64);
            let mut last = 0u64;
            for (file, range) in ranges {
                w.zigzag(file.wrapping_sub(last) as i64);
                w.varint(range.start);
                w.varint(range.end - range.start);
                last = *file;
            }
            bytes.extend(record(&w.into_vec()));
        }
        if let Some((file, offset)) = through {
            let mut w = Writer::default();
            w.u8(2);
            w.varint(file);
            w.varint(offset);
            bytes.extend(record(&w.into_vec()));
        }
        if bytes.is_empty() {
            Ok(())
        } else {
            self.append(&bytes)
        }
    }

    /// Records that nothing is left to do but to give the directory its name.
    pub fn complete(&mut self, inode: u64) -> io::Result<()> {
        let mut w = Writer::default();
        w.u8(3);
        w.u64(inode);
        self.append(&record(&w.into_vec()))
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        self.file.sync_data()
    }
}

fn record(payload: &[u8]) -> Vec<u8> {
    let mut w = Writer::with_capacity(payload.len() + 4 + SUM_LEN);
    w.u32(payload.len() as u32);
    w.bytes(payload);
    w.bytes(&BlockId::of(payload).0[..SUM_LEN]);
    w.into_vec()
}

/// Reads a journal.
pub(super) fn load(path: &Path) -> io::Result<Loaded> {
    Ok(parse(&std::fs::read(path)?))
}

/// Reads the bytes of a journal.
pub(super) fn parse(bytes: &[u8]) -> Loaded {
    let Some(records) = bytes.strip_prefix(MAGIC) else {
        let unborn = MAGIC.starts_with(bytes);
        return if unborn { Loaded::Unborn } else { Loaded::Foreign };
    };
    let mut r = Reader::new(records);
    let header = match next_record(&mut r) {
        None => return Loaded::Unborn,
        Some([0, json @ ..]) => serde_json::from_slice(json).ok(),
        Some(_) => None,
    };
    let Some(header) = header else {
        return Loaded::Foreign;
    };
    let mut contents = Contents {
        header,
        done: Done::default(),
        complete: None,
        len: (bytes.len() - r.left()) as u64,
    };
    while let Some(payload) = next_record(&mut r) {
        if apply(&mut contents, payload).is_none() {
            break;
        }
        contents.len = (bytes.len() - r.left()) as u64;
    }
    contents.done.tidy();
    Loaded::Journal(Box::new(contents))
}

/// The next record's payload, if it is whole.
fn next_record<'a>(r: &mut Reader<'a>) -> Option<&'a [u8]> {
    let len = r.u32().ok().filter(|len| *len <= MAX_RECORD)?;
    let payload = r.bytes(len as usize).ok()?;
    let sum = r.bytes(SUM_LEN).ok()?;
    (*sum == BlockId::of(payload).0[..SUM_LEN]).then_some(payload)
}

fn apply(contents: &mut Contents, payload: &[u8]) -> Option<()> {
    let mut r = Reader::new(payload);
    match r.u8().ok()? {
        1 => {
            let mut file = 0u64;
            for _ in 0..r.count(3).ok()? {
                file = file.wrapping_add(r.zigzag().ok()? as u64);
                let (start, len) = (r.varint().ok()?, r.varint().ok()?);
                contents.done.add(file, start..start.checked_add(len)?);
            }
        }
        2 => contents.done.set_through((r.varint().ok()?, r.varint().ok()?)),
        3 => contents.complete = Some(r.u64().ok()?),
        _ => return None,
    }
    r.end().ok()
}

#[cfg(test)]
mod tests;
