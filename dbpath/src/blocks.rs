//! WiredTiger's disk blocks: where they begin and end in a `.wt` file.
//!
//! WiredTiger writes a page to a run of free sectors and never overwrites it in place, so between two backups a disk
//! block is either the same, byte for byte, or gone. Cutting a file along them is therefore the finest cut that pays:
//! measured, it stores what the changed sectors alone would take (`CHUNKING.md` §1).
//!
//! Nothing here trusts the file's own lists of what is live: blocks are found by their headers and checksums, stale ones
//! too. What does not parse is cut at fixed places.

use std::ops::Range;

use crc_fast::CrcAlgorithm;

/// Blocks begin at multiples of this: MongoDB leaves WiredTiger's allocation size at its default.
pub const SECTOR: usize = 4096;

/// Page header (28 bytes) and block header (12 bytes), little-endian; `src/include/btmem.h` and `block.h` of WiredTiger.
const HEADER: usize = 40;
const PAGE_TYPE: usize = 24;
const PAGE_UNUSED: usize = 26;
const DISK_SIZE: usize = 28;
const CHECKSUM: Range<usize> = 32..36;
const BLOCK_FLAGS: usize = 36;
const BLOCK_UNUSED: Range<usize> = 37..40;

/// Flag of a block header: the checksum covers the whole block, and not only its first [`PREFIX`] bytes.
const WHOLE_CHECKSUM: u8 = 1;
/// The first bytes of a block, which are never compressed.
const PREFIX: usize = 64;

/// Page types that are written to files: block manager, fixed and variable column store, overflow, row store.
const PAGE_TYPES: std::ops::RangeInclusive<u8> = 1..=7;

/// What does not parse is cut at multiples of this in the file.
const GRID: u64 = 64 << 10;

/// Largest piece of a cut.
const MAX_PIECE: usize = 1 << 20;

/// Larger blocks are cut without a look at their checksum, because they and unparsable bytes in front of them need not
/// fit into what is shown at once.
const MAX_CHECKED: usize = MAX_PIECE - GRID as usize;

/// Largest block that is believed. WiredTiger allows 512 MB; MongoDB's documents end at 16 MiB, and so, but for a little,
/// do the pages that hold one.
const MAX_BELIEVED: usize = 32 << 20;

/// What stands at the beginning of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No block.
    Nothing,
    /// A block of this length, whose checksum is right.
    Block(usize),
    /// The header of a block of this length, of which not all is there.
    Cut(usize),
    /// The header of a block of this length, which is too long to be looked at whole.
    Large(usize),
}

/// What the header of a block says.
#[derive(Clone, Copy)]
struct Claim {
    size: usize,
    /// Whether the checksum covers the whole block, and not only its first [`PREFIX`] bytes.
    whole: bool,
    checksum: u32,
}

impl Claim {
    /// The claim of some bytes that may well be the beginning of a block.
    fn of(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        let size = u32_at(header, DISK_SIZE) as usize;
        let flags = header[BLOCK_FLAGS];
        let plausible = size >= SECTOR
            && size.is_multiple_of(SECTOR)
            && size <= MAX_BELIEVED
            && PAGE_TYPES.contains(&header[PAGE_TYPE])
            && header[PAGE_UNUSED] == 0
            && flags & !WHOLE_CHECKSUM == 0
            && header[BLOCK_UNUSED] == [0; 3];
        plausible.then(|| Self {
            size,
            whole: flags == WHOLE_CHECKSUM,
            checksum: u32_at(header, CHECKSUM.start),
        })
    }
}

/// Looks for a block that begins with the first of `bytes`. Costs a CRC32C of the block if there seems to be one, and
/// next to nothing otherwise.
pub fn block_at(bytes: &[u8]) -> Found {
    let Some(Claim {
        size,
        whole,
        checksum,
    }) = Claim::of(bytes)
    else {
        return Found::Nothing;
    };
    let covered = if whole { size } else { PREFIX };
    if covered > MAX_CHECKED {
        return Found::Large(size);
    }
    let Some(covered) = bytes.get(..covered) else {
        return Found::Cut(size);
    };
    // The checksum's own field counts as zeros.
    let (prefix, rest) = covered.split_at(PREFIX);
    let mut first = [0; PREFIX];
    first.copy_from_slice(prefix);
    first[CHECKSUM].fill(0);
    let mut sum = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    sum.update(&first);
    sum.update(rest);
    if sum.finalize() != u64::from(checksum) {
        Found::Nothing
    } else if size > MAX_CHECKED {
        Found::Large(size)
    } else if bytes.len() < size {
        Found::Cut(size)
    } else {
        Found::Block(size)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

/// Cuts a `.wt` file from its first byte to its last: a piece for each disk block, and what does not parse at multiples
/// of 64 KiB and where the next block begins. A block above 960 KiB is split.
///
/// Where it cuts depends on the file alone and not on how much of it is shown at a time.
#[derive(Clone, Debug, Default)]
pub struct TableCutter {
    /// Bytes that are left of a large block.
    large: usize,
    /// Bytes in blocks so far.
    parsed: u64,
}

impl TableCutter {
    /// Lengths of the next pieces, each of 1 byte to 1 MiB. They begin with the first byte of `window`, at `offset` in
    /// the file. Unless it is the file's last window, up to 1 MiB is left over, which is to be shown again at the front
    /// of the next one; a window of 1 MiB or more yields at least one piece.
    pub fn cut(&mut self, offset: u64, window: &[u8], last: bool) -> Vec<u32> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < window.len() {
            let (begin, found) = if self.large > 0 {
                match block_at(&window[at..]) {
                    Found::Cut(_) if !last => break,
                    Found::Cut(_) | Found::Nothing => (at, Found::Large(self.large)),
                    // Newer than the large block, which was freed, or never was one.
                    found => (at, found),
                }
            } else {
                let (begin, found) = self.next_block(offset, window, at, last);
                at = self.cut_junk(offset, at..begin, found.is_some() || last, &mut pieces);
                match found {
                    Some(found) if at == begin => (begin, found),
                    _ => break,
                }
            };
            let piece = match found {
                Found::Block(len) => {
                    self.large = 0;
                    len
                }
                Found::Large(len) => match piece_of_large(&window[begin..], len, last) {
                    Some(piece) => {
                        self.large = len - piece;
                        piece
                    }
                    None => break,
                },
                Found::Cut(_) | Found::Nothing => break,
            };
            self.parsed += piece as u64;
            pieces.push(piece as u32);
            at = begin + piece;
        }
        pieces
    }

    /// Bytes that were found to be in blocks.
    pub fn parsed(&self) -> u64 {
        self.parsed
    }

    /// Where in the window the next block begins, and what is there; or the window's end, or where a block may begin of
    /// which too little is to be seen.
    fn next_block(&self, offset: u64, window: &[u8], from: usize, last: bool) -> (usize, Option<Found>) {
        let into_sector = (offset + from as u64) % SECTOR as u64;
        let first = from + (SECTOR - into_sector as usize) % SECTOR;
        for at in (first..window.len()).step_by(SECTOR) {
            if window.len() - at < HEADER && !last {
                return (at, None);
            }
            match block_at(&window[at..]) {
                Found::Nothing => {}
                Found::Cut(_) if last => {}
                Found::Cut(_) => return (at, None),
                found => return (at, Some(found)),
            }
        }
        (window.len(), None)
    }

    /// Cuts bytes that are in no block, up to the last multiple of the grid or, if it is known that a block or nothing
    /// follows, to their end. Gives back where it stopped.
    fn cut_junk(&self, offset: u64, junk: Range<usize>, to_end: bool, pieces: &mut Vec<u32>) -> usize {
        let mut at = junk.start;
        while at < junk.end {
            let left = GRID - (offset + at as u64) % GRID;
            let end = (at + left as usize).min(junk.end);
            let on_grid = (offset + end as u64).is_multiple_of(GRID);
            if !on_grid && !to_end {
                break;
            }
            pieces.push((end - at) as u32);
            at = end;
        }
        at
    }
}

/// The first piece of a large block of `len` bytes: up to 1 MiB, or to where another block may begin. For a block is
/// written whole: what looks like a block inside of it came later, and what is left of the large one is as good as
/// junk. `None` if too little is to be seen.
fn piece_of_large(window: &[u8], len: usize, last: bool) -> Option<usize> {
    let most = len.min(MAX_PIECE);
    if window.len() < most && !last {
        return None;
    }
    let most = most.min(window.len());
    let another = |at: &usize| Claim::of(&window[*at..]).is_some();
    Some((SECTOR..most).step_by(SECTOR).find(another).unwrap_or(most))
}

#[cfg(test)]
mod tests;
