//! What the index stores: keys and values, byte by byte. All integers of values are little-endian.

use crate::error::FormatError;
use crate::id::{BlockId, RepositoryId};
use crate::pack::{MAX_SLOTS, PackKind, PackLoc};
use crate::wire::{Reader, Writer};

/// Version of everything that is stored. An index of another version is built anew.
pub(super) const VERSION: u16 = 1;

/// Length of the key of a block: the first half of its id.
pub(super) const KEY_LEN: usize = 16;
/// Length of an entry: pack number, slot, seal.
pub(super) const ENTRY_LEN: usize = 14;

const _: () = assert!(MAX_SLOTS <= 1 << 16);
const _: () = assert!(4 + 2 + 8 == ENTRY_LEN);

/// The key of a block.
pub(super) fn key(id: &BlockId) -> [u8; KEY_LEN] {
    let mut out = [0; KEY_LEN];
    out.copy_from_slice(&id.0[..KEY_LEN]);
    out
}

/// Ties an entry to everything that a snapshot will say because of it: the repository, the pack with its id and the
/// place of its trailer, the slot, and the half of the block's id that is not in the key. Whoever looks up computes the
/// seal from what he is about to use, so an entry that was altered, belongs to another block, or meets another
/// pack under its number is no hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackSeal(u64);

impl PackSeal {
    /// The part of it that is the same for all blocks of a pack.
    pub fn of(repository: &RepositoryId, pack: &PackLoc) -> Self {
        let mut w = Writer::with_capacity(RepositoryId::LEN + PackLoc::LEN);
        w.bytes(&repository.0);
        pack.encode(&mut w);
        Self(word(blake3::hash(&w.into_vec()).as_bytes(), 0))
    }

    fn seal(self, id: &BlockId, slot: u16) -> u64 {
        // The ids are hashes already, so a mixing of 64 bits is enough to make each pair of pack and slot a number of
        // its own.
        mix(self.0 ^ mix(u64::from(slot))) ^ word(&id.0, 16) ^ word(&id.0, 24).rotate_left(32)
    }

    /// The entry of a block.
    pub fn entry(self, id: &BlockId, number: u32, slot: u16) -> Entry {
        Entry {
            number,
            slot,
            seal: self.seal(id, slot),
        }
    }

    /// Whether an entry was made for this block of this pack.
    pub fn fits(self, id: &BlockId, entry: &Entry) -> bool {
        self.seal(id, entry.slot) == entry.seal
    }
}

fn word(bytes: &[u8; 32], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

/// The finalizer of splitmix64: a bijection in which every bit of the result depends on every bit.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// Number of the pack in this index.
    pub number: u32,
    /// The slot there.
    pub slot: u16,
    /// See [`PackSeal`].
    pub seal: u64,
}

impl Entry {
    pub fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut out = [0; ENTRY_LEN];
        out[..4].copy_from_slice(&self.number.to_le_bytes());
        out[4..6].copy_from_slice(&self.slot.to_le_bytes());
        out[6..].copy_from_slice(&self.seal.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let entry = Self {
            number: r.u32()?,
            slot: r.u16()?,
            seal: r.u64()?,
        };
        r.end()?;
        Ok(entry)
    }

    /// The number alone: what a compaction looks at.
    pub fn number_of(bytes: &[u8]) -> Option<u32> {
        Reader::new(bytes).u32().ok()
    }
}

/// A pack's number as a key: in order.
pub(super) fn number_key(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

/// What is known of a pack. A number belongs to one pack from the moment on at which its record is durable, and no entry
/// with the number is durable before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// The pack.
    pub pack: PackLoc,
    /// Map packs are recorded so that their trailers are not fetched again; they have no entries.
    pub kind: PackKind,
    /// Whether all its blocks are in the index.
    pub complete: bool,
    /// Whether its trailer is kept.
    pub kept: bool,
}

impl Record {
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(1 + PackLoc::LEN);
        w.u8(self.kind as u8 | u8::from(self.complete) << 1 | u8::from(self.kept) << 2);
        self.pack.encode(&mut w);
        w.into_vec()
    }

    pub fn decode(number: &[u8], bytes: &[u8]) -> Result<(u32, Self), FormatError> {
        let number = u32::from_be_bytes(
            number
                .try_into()
                .map_err(|_| FormatError::BadField("pack number"))?,
        );
        let mut r = Reader::new(bytes);
        let flags = r.u8()?;
        if flags > 7 {
            return Err(FormatError::UnknownFlags(flags.into()));
        }
        let record = Self {
            kind: PackKind::from_byte(flags & 1)?,
            complete: flags & 2 != 0,
            kept: flags & 4 != 0,
            pack: PackLoc::decode(&mut r)?,
        };
        r.end()?;
        Ok((number, record))
    }
}

/// Key of the identity.
pub(super) const IDENTITY_KEY: &[u8] = b"pbm-fs index";

/// Which repository the index is of, and in which version it is written.
pub(super) fn identity(repository: &RepositoryId) -> Vec<u8> {
    let mut w = Writer::with_capacity(2 + RepositoryId::LEN);
    w.u16(VERSION);
    w.bytes(&repository.0);
    w.into_vec()
}

/// Why an identity is not the expected one; `None` if it is.
pub(super) fn foreign(repository: &RepositoryId, found: Option<&[u8]>) -> Option<String> {
    if found == Some(&identity(repository)) {
        return None;
    }
    let mut r = Reader::new(found.unwrap_or_default());
    Some(match (r.u16(), r.array().map(RepositoryId)) {
        (Ok(VERSION), Ok(other)) => format!("it belongs to the repository {other}"),
        (Ok(version), _) => format!("it has version {version}, and this pbm-fs writes version {VERSION}"),
        _ => "it has no identity".into(),
    })
}
