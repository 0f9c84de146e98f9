//! What the parent snapshot has at a place of a file.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::files::FileEntry;
use crate::id::{BlockId, PackId, PackNo};
use crate::map::ExtentKind;
use crate::reader::ReplsetReader;

/// A block of the parent snapshot that may be referred to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ParentBlock {
    pub offset: u64,
    pub len: u32,
    pub id: BlockId,
    pub pack: PackNo,
    pub slot: u32,
}

/// What the parent has in a segment.
#[derive(Debug, Default)]
pub(crate) struct ParentSegment {
    /// Whole blocks, sorted by offset.
    pub blocks: Vec<ParentBlock>,
    /// Ranges that are holes there.
    pub holes: Vec<std::ops::Range<u64>>,
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
}

/// Looks up what the parent has.
pub(crate) struct Parent {
    pub reader: Arc<ReplsetReader>,
    pub allowed: Arc<HashMap<PackId, u64>>,
}

impl Parent {
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
                    if !self.allowed.contains_key(&loc.id) {
                        continue;
                    }
                    let trailer = self.reader.trailer(pack).await?;
                    for span in self.reader.spans(&placed).await? {
                        let whole = span.from == 0 && span.to == span.plain_len;
                        if let Some(info) = trailer.slots().get(span.slot as usize).filter(|_| whole) {
                            out.blocks.push(ParentBlock {
                                offset: span.offset,
                                len: span.plain_len,
                                id: info.id,
                                pack,
                                slot: span.slot,
                            });
                        }
                    }
                }
            }
        }
        Ok(out)
    }
}
