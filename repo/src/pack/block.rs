//! One block as it lies in a pack: a header of 44 bytes, then the stored bytes (drawn in `docs/format.md` §4).
//!
//! The header repeats what the trailer says, so that a pack whose trailer is damaged can be salvaged by scanning.

use std::cell::RefCell;
use std::io;

use bytes::Bytes;
use zstd::zstd_safe::CParameter;

use crate::error::FormatError;
use crate::id::BlockId;
use crate::wire::Reader;

/// Longest plain block. Longer runs are cut, so that one block never costs much memory.
pub const MAX_BLOCK: usize = 1 << 20;

/// Length of a block's header in its pack.
pub const BLOCK_HEADER_LEN: usize = 44;

/// First four bytes of a block's header.
pub const BLOCK_MAGIC: [u8; 4] = *b"\xb1kPB";

const _: () = assert!(4 + 1 + 1 + 3 + 3 + BlockId::LEN == BLOCK_HEADER_LEN);
const _: () = assert!(MAX_BLOCK < 1 << 24);

/// How the stored bytes of a block were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// The plain bytes.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

impl Codec {
    /// The codec with this number.
    pub fn from_byte(byte: u8) -> Result<Self, FormatError> {
        match byte {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            _ => Err(FormatError::BadField("codec")),
        }
    }
}

/// What a header and a trailer say of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockInfo {
    /// BLAKE3 of the plain bytes.
    pub id: BlockId,
    /// Plain length, 1 to [`MAX_BLOCK`].
    pub plain_len: u32,
    /// Stored length without the header, 1 to `plain_len`.
    pub stored_len: u32,
    /// How the stored bytes were made.
    pub codec: Codec,
}

impl BlockInfo {
    /// Bytes that the block takes in its pack, header included.
    pub fn packed_len(&self) -> u64 {
        BLOCK_HEADER_LEN as u64 + u64::from(self.stored_len)
    }

    /// Checks the ranges of the lengths.
    pub fn validate(self) -> Result<Self, FormatError> {
        let plain = self.plain_len as usize;
        if plain == 0 || plain > MAX_BLOCK {
            return Err(FormatError::BadField("plain length"));
        }
        let raw = self.codec == Codec::Raw;
        if self.stored_len == 0
            || self.stored_len > self.plain_len
            || raw && self.stored_len != self.plain_len
        {
            return Err(FormatError::BadField("stored length"));
        }
        Ok(self)
    }

    /// The header of this block.
    pub fn encode_header(&self) -> [u8; BLOCK_HEADER_LEN] {
        let mut out = [0; BLOCK_HEADER_LEN];
        out[..4].copy_from_slice(&BLOCK_MAGIC);
        out[4] = self.codec as u8;
        out[6..9].copy_from_slice(&self.plain_len.to_le_bytes()[..3]);
        out[9..12].copy_from_slice(&self.stored_len.to_le_bytes()[..3]);
        out[12..].copy_from_slice(&self.id.0);
        out
    }

    /// Reads a header off the front of `bytes`.
    pub fn decode_header(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        if r.array()? != BLOCK_MAGIC {
            return Err(FormatError::BadMagic);
        }
        let codec = Codec::from_byte(r.u8()?)?;
        let flags = r.u8()?;
        if flags != 0 {
            return Err(FormatError::UnknownFlags(flags.into()));
        }
        let plain_len = r.u24()?;
        let stored_len = r.u24()?;
        Self {
            id: BlockId(r.array()?),
            plain_len,
            stored_len,
            codec,
        }
        .validate()
    }
}

/// Turns plain blocks into stored ones. One a thread: it holds zstd's working memory (about 1 MiB at level 1).
pub struct Encoder {
    zstd: zstd::bulk::Compressor<'static>,
    /// At level 1: whether zstd is to code the bytes that are in no match.
    coding: Option<bool>,
}

impl Encoder {
    /// An encoder at a zstd level (1 is the repository's default: level 3 gains under 1 % on WiredTiger files for
    /// 1.6 times the CPU, `CHUNKING.md` §3).
    ///
    /// At level 1 a byte of a small block costs about as much as one of a large block.
    pub fn new(level: i32) -> io::Result<Self> {
        let mut zstd = zstd::bulk::Compressor::new(level)?;
        let coding = (level == 1).then_some(true);
        if coding.is_some() {
            // About what zstd takes for inputs of 16 to 128 KiB. For smaller ones it would look for shorter matches:
            // twice the CPU on pages of indexes, for 5 % of them.
            zstd.set_parameter(CParameter::HashLog(12))?;
            zstd.set_parameter(CParameter::MinMatch(6))?;
        }
        Ok(Self { zstd, coding })
    }

    /// Has zstd leave bytes alone that are in no match, where coding them would gain nothing. By itself it would count
    /// them all first, because the ends of a page look better than its middle, with a header in front and zeros behind.
    fn adapt(&mut self, plain: &[u8]) -> io::Result<()> {
        let Some(coding) = self.coding else { return Ok(()) };
        let wanted = !is_noise(plain);
        if coding != wanted {
            // In the strategy of level 1 this is the switch for it; the search is the same at 0 and 1.
            let switch = CParameter::TargetLength(u32::from(!wanted));
            self.zstd.set_parameter(switch)?;
            self.coding = Some(wanted);
        }
        Ok(())
    }

    /// Appends header and stored bytes of `plain` to `out`. Raw when compression does not shrink it.
    pub fn append(&mut self, id: BlockId, plain: &[u8], out: &mut Vec<u8>) -> io::Result<BlockInfo> {
        assert!(
            !plain.is_empty() && plain.len() <= MAX_BLOCK,
            "a cutter never makes an empty or a huge block"
        );
        self.adapt(plain)?;
        let start = out.len();
        let body = start + BLOCK_HEADER_LEN;
        out.resize(body, 0);
        // Into capacity that was never written, since zeroing it first is a pass over memory; and with room for the
        // worst case, since zstd then need not watch the end of its buffer.
        out.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        let mut cursor = io::Cursor::new(&mut *out);
        cursor.set_position(body as u64);
        let (codec, stored_len) = match self.zstd.compress_to_buffer(plain, &mut cursor) {
            Ok(n) if n > 0 && n < plain.len() => (Codec::Zstd, n),
            _ => {
                out.truncate(body);
                out.extend_from_slice(plain);
                (Codec::Raw, plain.len())
            }
        };
        out.truncate(body + stored_len);
        let info = BlockInfo {
            id,
            plain_len: plain.len() as u32,
            stored_len: stored_len as u32,
            codec,
        };
        out[start..body].copy_from_slice(&info.encode_header());
        Ok(info)
    }
}

/// Whether all byte values are about equally frequent, as in what is compressed or encrypted already: a code of their
/// frequencies would gain less than 2.5 %. Runs of zeros, which are matches, do not count. Looks at a sample, taken at
/// uneven distances, so that records of one length do not show the same field each time.
fn is_noise(plain: &[u8]) -> bool {
    const PIECES: usize = 64;
    const PIECE: usize = 8;
    let step = plain.len() / PIECES;
    if step < PIECE {
        return false;
    }
    let mut counts = [0u32; 256];
    let mut zeros = 0;
    let mut place = 0u32;
    for part in plain.chunks_exact(step).take(PIECES) {
        // Multiples of the golden ratio, as fractions of what there is to choose from.
        place = place.wrapping_add(0x9e37_79b9);
        let from = (u64::from(place) * (step - PIECE) as u64) >> 32;
        let piece = &part[from as usize..][..PIECE];
        if piece == [0; PIECE] {
            zeros += 1;
            continue;
        }
        for byte in piece {
            counts[usize::from(*byte)] += 1;
        }
    }
    let n = ((PIECES - zeros) * PIECE) as u32;
    // Of noise the sum of squares is on average the first two terms; each percent that a code gains adds n * n / 2310.
    let most = n + n * n.saturating_sub(1) / 256 + n * n / 924;
    zeros <= PIECES / 2 && counts.iter().map(|n| n * n).sum::<u32>() < most
}

/// Opens a block that lies in `packed` (header and stored bytes) and is the one that `expected` tells of: header,
/// lengths and id are all checked, so bytes that come back are the bytes that were stored.
pub fn open_block(expected: &BlockInfo, packed: &Bytes) -> Result<Bytes, FormatError> {
    let found = BlockInfo::decode_header(packed)?;
    if found != *expected {
        return Err(FormatError::WrongId(expected.id.to_string()));
    }
    let end = BLOCK_HEADER_LEN + found.stored_len as usize;
    if packed.len() < end {
        return Err(FormatError::TooShort);
    }
    let stored = packed.slice(BLOCK_HEADER_LEN..end);
    let plain = match found.codec {
        Codec::Raw => stored,
        Codec::Zstd => {
            let plain = decompress(&stored, found.plain_len as usize)
                .map_err(|_| FormatError::BadField("zstd frame"))?;
            if plain.len() != found.plain_len as usize {
                return Err(FormatError::BadField("plain length"));
            }
            plain.into()
        }
    };
    if BlockId::of(&plain) != found.id {
        return Err(FormatError::WrongId(found.id.to_string()));
    }
    Ok(plain)
}

/// The contents of a zstd frame, at most `most` bytes. Each thread keeps its decoder: making one costs about as much as
/// a block of 64 KiB.
fn decompress(frame: &[u8], most: usize) -> io::Result<Vec<u8>> {
    thread_local! {
        static DECODER: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    DECODER.with_borrow_mut(|decoder| {
        let decoder = match decoder {
            Some(decoder) => decoder,
            None => decoder.insert(zstd::bulk::Decompressor::new()?),
        };
        decoder.decompress(frame, most)
    })
}

/// Opens a block of which only the id is known (a map node, a file list, a pack table).
pub fn open_named_block(id: &BlockId, packed: &Bytes) -> Result<Bytes, FormatError> {
    let found = BlockInfo::decode_header(packed)?;
    if found.id != *id {
        return Err(FormatError::WrongId(id.to_string()));
    }
    open_block(&found, packed)
}

#[cfg(test)]
mod tests;
