//! Extents: what a byte range of a file consists of.

use crate::id::PackNo;

/// What an extent's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// The plain bytes of a run of neighbouring slots, from `skip` bytes on. The run may reach further than the
    /// extent: a cut in the middle keeps the slots and moves only the skip, so that cutting needs no trailer.
    Data {
        /// Number of the pack in the pack table.
        pack: PackNo,
        /// First slot of the run.
        first: u32,
        /// Slots in the run, at least 1.
        count: u32,
        /// Plain bytes of the run that lie before the extent.
        skip: u64,
    },
    /// Zeros that are not stored.
    Hole,
    /// Bytes that nobody needs (free space of a WiredTiger file); read as zeros.
    Elided,
}

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Its length in bytes, at least 1.
    pub len: u64,
    /// What its bytes are.
    pub kind: ExtentKind,
}

/// An extent and where in the file it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlacedExtent {
    /// First byte in the file.
    pub offset: u64,
    /// The extent.
    pub extent: Extent,
}

impl Extent {
    /// A hole of `len` bytes.
    pub fn hole(len: u64) -> Self {
        Self {
            len,
            kind: ExtentKind::Hole,
        }
    }

    /// The first `len` bytes of a whole run.
    pub fn data(len: u64, pack: PackNo, first: u32, count: u32) -> Self {
        Self {
            len,
            kind: ExtentKind::Data {
                pack,
                first,
                count,
                skip: 0,
            },
        }
    }

    /// The bytes from `from` to `to`, counted from the extent's begin; `from < to <= len`.
    pub fn part(&self, from: u64, to: u64) -> Self {
        debug_assert!(from < to && to <= self.len);
        let kind = match self.kind {
            ExtentKind::Data {
                pack,
                first,
                count,
                skip,
            } => ExtentKind::Data {
                pack,
                first,
                count,
                skip: skip + from,
            },
            other => other,
        };
        Self { len: to - from, kind }
    }

    /// This run of whole blocks and `next`, which is a whole block, as one run: if that is the next slot. Holes are
    /// put together, too.
    pub fn with_next_block(&self, next: &Self) -> Option<Self> {
        let kind = match (self.kind, next.kind) {
            (ExtentKind::Hole, ExtentKind::Hole) => ExtentKind::Hole,
            (
                ExtentKind::Data {
                    pack,
                    first,
                    count,
                    skip: 0,
                },
                ExtentKind::Data {
                    pack: p,
                    first: f,
                    count: c,
                    skip: 0,
                },
            ) if pack == p && first + count == f => ExtentKind::Data {
                pack,
                first,
                count: count + c,
                skip: 0,
            },
            _ => return None,
        };
        Some(Self {
            len: self.len + next.len,
            kind,
        })
    }

    /// Both as one, if `next` goes on where this one ends in the same run, or both hold nothing.
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let one = match (self.kind, next.kind) {
            (ExtentKind::Hole, ExtentKind::Hole) | (ExtentKind::Elided, ExtentKind::Elided) => true,
            (
                ExtentKind::Data {
                    pack,
                    first,
                    count,
                    skip,
                },
                ExtentKind::Data {
                    pack: p,
                    first: f,
                    count: c,
                    skip: s,
                },
            ) => (pack, first, count, skip + self.len) == (p, f, c, s),
            _ => false,
        };
        one.then(|| Self {
            len: self.len + next.len,
            kind: self.kind,
        })
    }
}

/// Appends an extent, joined with the last one where that is possible.
pub(crate) fn push(list: &mut Vec<Extent>, next: Extent) {
    if let Some(last) = list.last_mut()
        && let Some(joined) = last.joined(&next)
    {
        *last = joined;
        return;
    }
    list.push(next);
}

/// Appends the part of `list`, which begins at `start`, that lies in `from..to`.
pub(crate) fn push_range(out: &mut Vec<Extent>, list: &[Extent], start: u64, from: u64, to: u64) {
    for placed in slice(list, start, from, to) {
        push(out, placed.extent);
    }
}

/// The parts of `list`, whose first extent begins at `start`, that lie in `from..to`.
pub fn slice(list: &[Extent], start: u64, from: u64, to: u64) -> Vec<PlacedExtent> {
    let mut out = Vec::new();
    let mut at = start;
    for extent in list {
        let end = at + extent.len;
        if at >= to {
            break;
        }
        if end > from {
            let (lo, hi) = (from.max(at), to.min(end));
            if lo < hi {
                out.push(PlacedExtent {
                    offset: lo,
                    extent: extent.part(lo - at, hi - at),
                });
            }
        }
        at = end;
    }
    out
}

/// Bytes that a list of extents covers.
pub(crate) fn total(list: &[Extent]) -> u64 {
    list.iter().map(|e| e.len).sum()
}
