//! Turns the runs of a window into reads of neighbouring slots.

use std::ops::Range;
use std::sync::Arc;

use pbmfs_repo::id::{PackNo, Slot};
use pbmfs_repo::pack::Trailer;
use pbmfs_repo::reader::spans_of;

use super::error::{RestoreError, Result};
use super::plan::{Run, WindowFile};

/// Pieces that are planned at a time. Runs that share slots are usually among them, so that a block is read once; a
/// pack that a file repeats without end does not take memory without end.
const PIECES: usize = 1 << 16;

/// Where a part of a block goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub slot: u32,
    /// The wanted bytes of the plain block.
    pub from: u32,
    pub to: u32,
    /// Index in [`Window::files`](super::plan::Window::files).
    pub file: u32,
    pub offset: u64,
}

/// Neighbouring slots that one request fetches, and where their bytes go.
#[derive(Debug)]
pub(super) struct Read {
    pub pack: PackNo,
    pub slots: Range<u32>,
    pub files: Arc<Vec<WindowFile>>,
    /// Sorted by file and offset.
    pub pieces: Vec<Piece>,
}

/// Plans the reads of the runs of one pack. `each` gets them in the order of slots; a read has at most `limit` plain
/// bytes, or one block.
pub(super) fn plan_reads(
    runs: &[Run],
    trailer: &Trailer,
    files: &Arc<Vec<WindowFile>>,
    limit: u64,
    mut each: impl FnMut(Read) -> Result<()>,
) -> Result<()> {
    let mut pieces = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let spans = spans_of(run.offset, &run.extent(), trailer)
            .map_err(RestoreError::of_file(&files[run.file as usize].path))?;
        pieces.extend(spans.iter().map(|span| Piece {
            slot: span.slot,
            from: span.from,
            to: span.to,
            file: run.file,
            offset: span.offset,
        }));
        if pieces.len() >= PIECES || i + 1 == runs.len() {
            group(run.pack, &mut pieces, trailer, files, limit, &mut each)?;
        }
    }
    Ok(())
}

fn group(
    pack: PackNo,
    pieces: &mut Vec<Piece>,
    trailer: &Trailer,
    files: &Arc<Vec<WindowFile>>,
    limit: u64,
    each: &mut impl FnMut(Read) -> Result<()>,
) -> Result<()> {
    pieces.sort_unstable_by_key(|p| (p.slot, p.file, p.offset));
    let mut rest = &pieces[..];
    while let Some(first) = rest.first() {
        let (mut end, mut plain, mut taken) = (first.slot, 0, 0);
        for piece in rest {
            // The same slot once more costs nothing.
            if piece.slot >= end {
                let len = trailer
                    .slot(Slot(piece.slot))
                    .map_or(0, |info| u64::from(info.plain_len));
                if piece.slot > end || taken > 0 && plain + len > limit {
                    break;
                }
                plain += len;
                end += 1;
            }
            taken += 1;
        }
        let mut read = Read {
            pack,
            slots: first.slot..end,
            files: files.clone(),
            pieces: rest[..taken].to_vec(),
        };
        read.pieces.sort_unstable_by_key(|p| (p.file, p.offset));
        each(read)?;
        rest = &rest[taken..];
    }
    pieces.clear();
    Ok(())
}

#[cfg(test)]
mod tests;
