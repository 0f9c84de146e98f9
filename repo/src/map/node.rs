//! Nodes of a map and their encoding.

use crate::error::FormatError;
use crate::id::{BlockId, PackId, PackNo};
use crate::map::extent::{Extent, ExtentKind};
use crate::pack::{OWN_PACK, Place};
use crate::wire::{Reader, Writer};

/// Longest encoding of a node that a reader accepts.
pub const MAX_NODE: usize = 64 << 10;

/// Longest encoding of a leaf that stands in the file list instead of in a node of its own.
pub const INLINE_MAX: usize = 96;

/// Highest level: with at least two children a node, 63 levels address more than 64 bits of bytes.
const MAX_LEVEL: u8 = 63;

const KIND_MASK: u8 = 0b11;
const SAME_PACK: u8 = 1 << 2;
const NEXT_SLOT: u8 = 1 << 3;
const PAGES: u8 = 1 << 4;
const HAS_SKIP: u8 = 1 << 5;
const ONE_SLOT: u8 = 1 << 6;

/// Unit of lengths that are stored as a number of pages; WiredTiger allocates so.
const PAGE: u64 = 4096;

/// Where the map of a file begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapRoot {
    /// A file of no bytes.
    Empty,
    /// The encoding of the only leaf, at most [`INLINE_MAX`] bytes.
    Inline(Vec<u8>),
    /// The root node.
    Node {
        /// Where it is.
        place: Place,
        /// Its level; 0 is a leaf.
        level: u8,
    },
}

/// A child of an inner node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// Bytes of file that it covers.
    pub span: u64,
    /// Where it is.
    pub place: Place,
}

/// A node, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Extents, one behind the other.
    Leaf(Vec<Extent>),
    /// Children, one behind the other.
    Inner {
        /// 1 above leaves.
        level: u8,
        /// The children, whose level is one less.
        children: Vec<Child>,
    },
}

impl Node {
    /// 0 for a leaf.
    pub fn level(&self) -> u8 {
        match self {
            Self::Leaf(_) => 0,
            Self::Inner { level, .. } => *level,
        }
    }

    /// Bytes of file that the node covers; `None` if that is more than 64 bits hold.
    pub fn span(&self) -> Option<u64> {
        match self {
            Self::Leaf(extents) => extents.iter().try_fold(0u64, |sum, e| sum.checked_add(e.len)),
            Self::Inner { children, .. } => children.iter().try_fold(0u64, |sum, c| sum.checked_add(c.span)),
        }
    }

    /// Reads a node. `pack` is the pack by whose id the node was named, for pointers into the same pack.
    pub fn decode(bytes: &[u8], pack: &PackId) -> Result<Self, FormatError> {
        if bytes.len() > MAX_NODE {
            return Err(FormatError::BadField("node length"));
        }
        let node = match bytes.first() {
            Some(0) => Self::Leaf(decode_leaf(bytes)?),
            _ => decode_inner(bytes, pack)?,
        };
        node.span().ok_or(FormatError::BadField("span"))?;
        Ok(node)
    }
}

/// Encodes a leaf extent by extent, so that its length is known while it grows.
#[derive(Debug, Default)]
pub(crate) struct LeafEncoder {
    body: Writer,
    count: u64,
    pack: u32,
    next_slot: u32,
}

impl LeafEncoder {
    /// Bytes of the node so far; the count's varint is taken as two.
    pub fn len(&self) -> usize {
        self.body.len() + 3
    }

    pub fn push(&mut self, extent: &Extent) {
        let paged = extent.len.is_multiple_of(PAGE);
        let len = if paged { extent.len / PAGE } else { extent.len };
        let pages = if paged { PAGES } else { 0 };
        self.count += 1;
        match extent.kind {
            ExtentKind::Hole | ExtentKind::Elided => {
                self.body
                    .u8(if extent.kind == ExtentKind::Hole { 1 } else { 2 } | pages);
                self.body.varint(len);
            }
            ExtentKind::Data {
                pack,
                first,
                count,
                skip,
            } => {
                let same = pack.0 == self.pack;
                let next = same && first == self.next_slot;
                let flag = |on: bool, bit: u8| if on { bit } else { 0 };
                let tag = pages
                    | flag(same, SAME_PACK)
                    | flag(next, NEXT_SLOT)
                    | flag(skip != 0, HAS_SKIP)
                    | flag(count == 1, ONE_SLOT);
                self.body.u8(tag);
                self.body.varint(len);
                if !same {
                    self.body.zigzag(i64::from(pack.0) - i64::from(self.pack));
                }
                if !next {
                    self.body.varint(first.into());
                }
                if count != 1 {
                    self.body.varint(count.into());
                }
                if skip != 0 {
                    self.body.varint(skip);
                }
                self.pack = pack.0;
                self.next_slot = first.wrapping_add(count);
            }
        }
    }

    pub fn finish(self) -> Vec<u8> {
        let mut w = Writer::with_capacity(self.len());
        w.u8(0);
        w.varint(self.count);
        w.bytes(&self.body.into_vec());
        w.into_vec()
    }
}

/// Encodes a whole leaf.
pub(crate) fn encode_leaf(extents: &[Extent]) -> Vec<u8> {
    let mut encoder = LeafEncoder::default();
    extents.iter().for_each(|e| encoder.push(e));
    encoder.finish()
}

fn decode_leaf(bytes: &[u8]) -> Result<Vec<Extent>, FormatError> {
    let bad = FormatError::BadField;
    let mut r = Reader::new(bytes);
    r.u8()?;
    let count = r.count(2)?;
    let mut extents = Vec::with_capacity(count);
    let (mut last_pack, mut next_slot) = (0u32, 0u32);
    for _ in 0..count {
        let tag = r.u8()?;
        let raw_len = r.varint()?;
        let len = if tag & PAGES != 0 {
            raw_len.checked_mul(PAGE)
        } else {
            Some(raw_len)
        };
        let len = len.filter(|l| *l > 0).ok_or(bad("extent length"))?;
        let kind = match tag & KIND_MASK {
            0 if tag & 0x80 == 0 => {
                let pack = if tag & SAME_PACK != 0 {
                    last_pack
                } else {
                    let pack = i64::from(last_pack)
                        .checked_add(r.zigzag()?)
                        .ok_or(bad("pack number"))?;
                    u32::try_from(pack).map_err(|_| bad("pack number"))?
                };
                let first = if tag & NEXT_SLOT != 0 {
                    next_slot
                } else {
                    r.varint32()?
                };
                let count = if tag & ONE_SLOT != 0 { 1 } else { r.varint32()? };
                let skip = if tag & HAS_SKIP != 0 { r.varint()? } else { 0 };
                let end = first
                    .checked_add(count)
                    .filter(|_| count > 0)
                    .ok_or(bad("slot count"))?;
                skip.checked_add(len).ok_or(bad("skip"))?;
                (last_pack, next_slot) = (pack, end);
                ExtentKind::Data {
                    pack: PackNo(pack),
                    first,
                    count,
                    skip,
                }
            }
            1 if tag & !(KIND_MASK | PAGES) == 0 => ExtentKind::Hole,
            2 if tag & !(KIND_MASK | PAGES) == 0 => ExtentKind::Elided,
            _ => return Err(bad("extent kind")),
        };
        extents.push(Extent { len, kind });
    }
    r.end()?;
    if extents.is_empty() {
        return Err(bad("extent count"));
    }
    Ok(extents)
}

/// Bytes that a child takes, other packs' ids aside: varints of usual size and the block's id.
pub(crate) const CHILD_COST: usize = 41;

/// A child whose pack is [`OWN_PACK`] lies in the same pack as the node itself.
pub(crate) fn encode_inner(level: u8, children: &[Child]) -> Vec<u8> {
    let mut packs: Vec<PackId> = Vec::new();
    let mut body = Writer::with_capacity(children.len() * CHILD_COST);
    for child in children {
        let index = if child.place.pack == OWN_PACK {
            0
        } else if let Some(found) = packs.iter().position(|p| *p == child.place.pack) {
            found + 1
        } else {
            packs.push(child.place.pack);
            packs.len()
        };
        body.varint(child.span);
        body.varint(index as u64);
        body.varint(child.place.offset.into());
        body.varint(child.place.len.into());
        body.bytes(&child.place.id.0);
    }
    let mut w = Writer::with_capacity(8 + packs.len() * PackId::LEN + body.len());
    w.u8(level);
    w.varint(packs.len() as u64);
    packs.iter().for_each(|p| w.bytes(&p.0));
    w.varint(children.len() as u64);
    w.bytes(&body.into_vec());
    w.into_vec()
}

fn decode_inner(bytes: &[u8], own: &PackId) -> Result<Node, FormatError> {
    let bad = FormatError::BadField;
    let mut r = Reader::new(bytes);
    let level = r.u8()?;
    if level == 0 || level > MAX_LEVEL {
        return Err(bad("level"));
    }
    let pack_count = r.count(PackId::LEN)?;
    let packs = (0..pack_count)
        .map(|_| r.array().map(PackId))
        .collect::<Result<Vec<_>, _>>()?;
    let count = r.count(4 + BlockId::LEN)?;
    let mut children = Vec::with_capacity(count);
    for _ in 0..count {
        let span = r.varint()?;
        let pack = match r.varint32()? {
            0 => *own,
            n => *packs.get(n as usize - 1).ok_or(bad("pack index"))?,
        };
        let place = Place {
            pack,
            offset: r.varint32()?,
            len: r.varint32()?,
            id: BlockId(r.array()?),
        }
        .validate()?;
        if span == 0 {
            return Err(bad("span"));
        }
        children.push(Child { span, place });
    }
    r.end()?;
    if children.is_empty() {
        return Err(bad("child count"));
    }
    Ok(Node::Inner { level, children })
}
