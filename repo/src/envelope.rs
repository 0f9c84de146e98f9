//! The envelope: what every object of a repository begins with (drawn in `docs/format.md` §2).
//!
//! It names the object's kind and its own key, so that an object under a wrong name is noticed, and carries a
//! checksum over header, key and payload. Of a pack, which is read in ranges, only the trailer is under the
//! checksum: the blocks are proven by their ids, which stand in the trailer.

use bytes::Bytes;

use crate::error::FormatError;
use crate::key::{MAX_KEY_LEN, ObjectKey};
use crate::wire::{Reader, Writer};

/// Format version of every object. It stays 0 until gc, encryption and S3 work.
pub const VERSION: u16 = 0;

/// First eight bytes of every object. As in PNG, a byte above 127 and both line ends betray a transfer that took
/// the object for text.
pub const MAGIC: [u8; 8] = *b"\x89PBMF\r\n\x1a";

/// Length of the fixed part of the header; the key follows.
pub const HEADER_LEN: usize = 96;

/// Bytes of the header that the checksum covers: all before the checksum itself.
const SUMMED_LEN: usize = 64;

const _: () = assert!(8 + 2 + 1 + 1 + 2 + 2 + 16 + 24 + 8 == SUMMED_LEN);
const _: () = assert!(SUMMED_LEN + 32 == HEADER_LEN);

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    /// `repo.json`.
    Repository = 1,
    /// A pack of data blocks.
    DataPack = 2,
    /// A pack of map nodes, file lists and pack tables.
    MapPack = 3,
    /// A committed snapshot.
    Snapshot = 4,
    /// What stands at the commit key of a snapshot that was deleted, or given up.
    Tombstone = 5,
    /// Where the living slots of a removed pack are now.
    Relocation = 6,
    /// A writer's lease.
    Lease = 7,
    /// A lease's counter.
    Beat = 8,
    /// A list of doomed packs.
    Condemned = 9,
    /// A hint that a snapshot is deleted.
    DeletedHint = 10,
}

impl ObjectKind {
    /// Every kind, for tests and tables.
    pub const ALL: [Self; 10] = [
        Self::Repository,
        Self::DataPack,
        Self::MapPack,
        Self::Snapshot,
        Self::Tombstone,
        Self::Relocation,
        Self::Lease,
        Self::Beat,
        Self::Condemned,
        Self::DeletedHint,
    ];

    /// The kind's name in errors and listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Repository => "repository configuration",
            Self::DataPack => "data pack",
            Self::MapPack => "map pack",
            Self::Snapshot => "snapshot",
            Self::Tombstone => "tombstone",
            Self::Relocation => "relocation",
            Self::Lease => "lease",
            Self::Beat => "beat",
            Self::Condemned => "condemned list",
            Self::DeletedHint => "hint of a deleted snapshot",
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u8 == byte)
    }

    /// Whether the checksum covers the trailer alone.
    pub fn is_pack(self) -> bool {
        matches!(self, Self::DataPack | Self::MapPack)
    }
}

/// A header as it was read; the payload is checked separately.
#[derive(Debug, Clone)]
pub struct Header {
    /// What the object is.
    pub kind: ObjectKind,
    /// Key under which it was written.
    pub key: String,
    /// Bytes of payload that follow the key.
    pub payload_len: u64,
    checksum: [u8; 32],
    summed: [u8; SUMMED_LEN],
}

impl Header {
    /// Length of header and key.
    pub fn len(&self) -> usize {
        HEADER_LEN + self.key.len()
    }

    /// Never: a header has a fixed part.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Reads a header off the front of `bytes`, which may end anywhere behind the key.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        // Before the length: a short text is not a truncated object.
        if bytes.iter().zip(&MAGIC).any(|(byte, magic)| byte != magic) {
            return Err(FormatError::BadMagic);
        }
        let mut r = Reader::new(bytes);
        let summed: [u8; SUMMED_LEN] = r.array()?;
        let checksum = r.array()?;
        let mut f = Reader::new(&summed);
        f.bytes(MAGIC.len())?;
        let version = f.u16()?;
        if version != VERSION {
            return Err(FormatError::UnknownVersion(version));
        }
        let kind_byte = f.u8()?;
        let flags = f.u8()?;
        let key_len = usize::from(f.u16()?);
        let reserved = f.u16()?;
        if flags != 0 || reserved != 0 {
            return Err(FormatError::UnknownFlags(
                u64::from(flags) | u64::from(reserved) << 8,
            ));
        }
        // Key id and nonce are those of an encrypted payload; a plain one has none.
        if f.bytes(40)?.iter().any(|b| *b != 0) {
            return Err(FormatError::BadField("key id"));
        }
        let payload_len = f.u64()?;
        let kind = ObjectKind::from_byte(kind_byte).ok_or(FormatError::BadField("kind"))?;
        if key_len > MAX_KEY_LEN {
            return Err(FormatError::BadField("key length"));
        }
        let key = std::str::from_utf8(r.bytes(key_len)?)
            .map_err(|_| FormatError::BadField("key"))?
            .to_owned();
        Ok(Self {
            kind,
            key,
            payload_len,
            checksum,
            summed,
        })
    }

    /// Checks the key and that `sealed` (the payload, or a pack's trailer) is what was written.
    pub fn verify(&self, key: &ObjectKey, sealed: &[u8]) -> Result<(), FormatError> {
        if checksum(&self.summed, &self.key, sealed) != self.checksum {
            return Err(FormatError::BadChecksum);
        }
        if self.key != key.as_str() {
            return Err(FormatError::WrongKey(self.key.clone()));
        }
        Ok(())
    }
}

fn checksum(summed: &[u8], key: &str, sealed: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(summed).update(key.as_bytes()).update(sealed);
    *hasher.finalize().as_bytes()
}

/// The header and key that stand before a payload of `payload_len` bytes, of which `sealed` is under the checksum.
pub fn encode_header(kind: ObjectKind, key: &ObjectKey, payload_len: u64, sealed: &[u8]) -> Vec<u8> {
    let mut w = Writer::with_capacity(HEADER_LEN + key.as_str().len());
    w.bytes(&MAGIC);
    w.u16(VERSION);
    w.u8(kind as u8);
    w.u8(0);
    w.u16(key.as_str().len() as u16);
    w.u16(0);
    w.bytes(&[0; 16]);
    w.bytes(&[0; 24]);
    w.u64(payload_len);
    let mut out = w.into_vec();
    let sum = checksum(&out, key.as_str(), sealed);
    out.extend_from_slice(&sum);
    out.extend_from_slice(key.as_str().as_bytes());
    out
}

/// A whole object other than a pack.
pub fn encode(kind: ObjectKind, key: &ObjectKey, payload: &[u8]) -> Bytes {
    debug_assert!(!kind.is_pack());
    let mut out = encode_header(kind, key, payload.len() as u64, payload);
    out.extend_from_slice(payload);
    out.into()
}

/// Opens a whole object other than a pack, whichever kind it is.
pub fn decode_any(key: &ObjectKey, object: &Bytes) -> Result<(ObjectKind, Bytes), FormatError> {
    let header = Header::decode(object)?;
    let payload = object.slice(header.len()..);
    match (payload.len() as u64).cmp(&header.payload_len) {
        std::cmp::Ordering::Less => return Err(FormatError::TooShort),
        std::cmp::Ordering::Greater => return Err(FormatError::TrailingBytes),
        std::cmp::Ordering::Equal => {}
    }
    if header.kind.is_pack() {
        return Err(FormatError::WrongKind {
            expected: "small object",
            found: header.kind.name().into(),
        });
    }
    header.verify(key, &payload)?;
    Ok((header.kind, payload))
}

/// Opens a whole object other than a pack, which must be of `kind`.
pub fn decode(kind: ObjectKind, key: &ObjectKey, object: &Bytes) -> Result<Bytes, FormatError> {
    let (found, payload) = decode_any(key, object)?;
    if found != kind {
        return Err(FormatError::WrongKind {
            expected: kind.name(),
            found: found.name().into(),
        });
    }
    Ok(payload)
}
