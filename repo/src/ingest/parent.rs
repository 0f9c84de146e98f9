//! What the parent snapshot has at a place of a file.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::files::FileEntry;
use crate::id::{BlockId, PackId, PackNo};
use crate::map::ExtentKind;
use crate::pack::MAX_BLOCK;
use crate::reader::ReplsetReader;

/// A block of the parent snapshot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ParentBlock {
    pub offset: u64,
    pub len: u32,
    pub id: BlockId,
    pub pack: PackNo,
    pub slot: u32,
    /// Whether it may be referred to where it is.
    pub allowed: bool,
}

/// What the parent has in a segment.
#[derive(Debug, Default)]
pub(crate) struct ParentSegment {
    /// Whole blocks, sorted by offset.
    pub blocks: Vec<ParentBlock>,
    /// Ranges that are holes there.
    pub holes: Vec<Range<u64>>,
    /// Where a block begins that reaches beyond the segment.
    pub open: Option<u64>,
}

impl ParentSegment {
    pub fn block_at(&self, offset: u64, len: u32) -> Option<&ParentBlock> {
        let found = self.blocks.binary_search_by_key(&offset, |b| b.offset).ok()?;
        Some(&self.blocks[found]).filter(|b| b.len == len)
    }

    pub fn is_hole(&self, offset: u64, len: u32) -> bool {
        let end = offset + u64::from(len);
        self.holes.iter().any(|h| h.start <= offset && end <= h.end)
    }

    /// Lengths of pieces of `from..to`, at whose edges the parent's blocks begin and end. Unless it is the `last`
    /// segment of a stretch, a block that reaches beyond it is left to the next one.
    pub fn cuts(&self, from: u64, to: u64, last: bool) -> Vec<u32> {
        let to = match self.open {
            Some(open) if !last && open > from => open,
            _ => to,
        };
        let mut cuts = Vec::with_capacity(self.blocks.len() + 1);
        let mut at = from;
        for block in &self.blocks {
            if block.offset > at {
                cuts.push((block.offset - at) as u32);
            }
            cuts.push(block.len);
            at = block.offset + u64::from(block.len);
        }
        if to > at {
            cuts.push((to - at) as u32);
        }
        cuts
    }
}

/// Looks up what the parent has.
pub(crate) struct Parent {
    pub reader: Arc<ReplsetReader>,
    pub allowed: Arc<HashMap<PackId, u64>>,
    /// Packs of its table that hold data and may not be referred to.
    pub forbidden: Arc<HashSet<PackNo>>,
    /// Whether its maps may be changed where files differ, and kept elsewhere.
    pub inherit_maps: bool,
}

impl Parent {
    /// Ranges of the parent's file that are in packs to which nobody may refer any more (GC.md rule 4). Walks the
    /// whole map if there is such a pack at all.
    pub async fn forbidden_ranges(&self, entry: &FileEntry) -> Result<Vec<Range<u64>>> {
        if self.forbidden.is_empty() {
            return Ok(Vec::new());
        }
        let size = entry.meta.size;
        let extents = self.reader.extents(&entry.root, size, 0..size).await?;
        let forbidden = |kind| match kind {
            ExtentKind::Data { pack, .. } => self.forbidden.contains(&pack),
            ExtentKind::Hole | ExtentKind::Elided => false,
        };
        Ok(extents
            .iter()
            .filter(|placed| forbidden(placed.extent.kind))
            .map(|placed| placed.offset..placed.offset + placed.extent.len)
            .collect())
    }

    /// Begin and end of the parent's block inside of which `at` lies; `at` itself if a block begins there, or none is
    /// there that could be compared.
    pub async fn block_around(&self, entry: &FileEntry, at: u64) -> Result<(u64, u64)> {
        match self.find_around(entry, at).await {
            Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => Ok((at, at)),
            other => other,
        }
    }

    async fn find_around(&self, entry: &FileEntry, at: u64) -> Result<(u64, u64)> {
        let size = entry.meta.size;
        if at == 0 || at >= size {
            return Ok((at, at));
        }
        let around = at.saturating_sub(MAX_BLOCK as u64)..at + MAX_BLOCK as u64;
        for placed in self.reader.extents(&entry.root, size, around).await? {
            if !(placed.offset < at && at < placed.offset + placed.extent.len) {
                continue;
            }
            for span in self.reader.spans(&placed).await? {
                let end = span.offset + u64::from(span.to - span.from);
                if span.offset < at && at < end && span.from == 0 && span.to == span.plain_len {
                    return Ok((span.offset, end));
                }
            }
        }
        Ok((at, at))
    }

    /// What the parent's file has in `start..end`. Damage there costs deduplication and nothing else: the bytes are
    /// stored again.
    pub async fn segment(&self, entry: &FileEntry, start: u64, end: u64) -> Result<ParentSegment> {
        match self.read_segment(entry, start, end).await {
            Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                tracing::warn!(
                    "{} of the parent snapshot is not used from byte {start} on: {e}",
                    entry.meta.path
                );
                Ok(ParentSegment::default())
            }
            other => other,
        }
    }

    async fn read_segment(&self, entry: &FileEntry, start: u64, end: u64) -> Result<ParentSegment> {
        let mut out = ParentSegment::default();
        for placed in self
            .reader
            .extents(&entry.root, entry.meta.size, start..end)
            .await?
        {
            match placed.extent.kind {
                ExtentKind::Hole => match out.holes.last_mut() {
                    Some(last) if last.end == placed.offset => last.end += placed.extent.len,
                    _ => out.holes.push(placed.offset..placed.offset + placed.extent.len),
                },
                ExtentKind::Elided => {}
                ExtentKind::Data { pack, .. } => {
                    let loc = self.reader.pack(pack).await?;
                    let allowed = self.allowed.contains_key(&loc.id);
                    let trailer = self.reader.trailer(pack).await?;
                    for span in self.reader.spans(&placed).await? {
                        let whole = span.from == 0 && span.to == span.plain_len;
                        if span.from == 0 && span.offset + u64::from(span.to) == end && !whole {
                            out.open = Some(span.offset);
                        }
                        if let Some(info) = trailer.slots().get(span.slot as usize).filter(|_| whole) {
                            out.blocks.push(ParentBlock {
                                offset: span.offset,
                                len: span.plain_len,
                                id: info.id,
                                pack,
                                slot: span.slot,
                                allowed,
                            });
                        }
                    }
                }
            }
        }
        Ok(out)
    }
}
