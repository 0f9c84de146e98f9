//! Reading of maps.

use std::ops::Range;
use std::sync::Arc;

use futures::future::BoxFuture;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::error::{FormatError, RepoError, Result};
use crate::id::PackId;
use crate::map::extent::{PlacedExtent, push_range, slice};
use crate::map::node::{MapRoot, Node};
use crate::pack::{PackStore, Place};

#[derive(Debug, Clone)]
struct ByNode;

impl Weighter<(PackId, u32), Arc<Node>> for ByNode {
    fn weight(&self, _: &(PackId, u32), node: &Arc<Node>) -> u64 {
        96 + match &**node {
            Node::Leaf(extents) => extents.len() as u64 * 40,
            Node::Inner { children, .. } => children.len() as u64 * 80,
        }
    }
}

/// Reads maps; keeps nodes in memory within a budget.
#[derive(Debug)]
pub struct MapReader {
    packs: Arc<PackStore>,
    nodes: Cache<(PackId, u32), Arc<Node>, ByNode>,
}

impl MapReader {
    /// Reads nodes from `packs` and keeps up to `budget` bytes of them.
    pub fn new(packs: Arc<PackStore>, budget: u64) -> Self {
        Self {
            packs,
            nodes: Cache::with_weighter((budget / 2000).max(64) as usize, budget, ByNode),
        }
    }

    /// The node at a place, which must have this level and cover this many bytes.
    ///
    /// # Errors
    /// `DamagedBlock` if the bytes are wrong; `Missing`.
    pub async fn node(&self, place: &Place, level: u8, span: u64) -> Result<Arc<Node>> {
        let key = (place.pack, place.offset);
        let bad = |reason| RepoError::DamagedBlock {
            pack: place.pack,
            slot: format!("at byte {}", place.offset),
            reason,
        };
        let node = match self.nodes.get(&key) {
            Some(found) => found,
            None => {
                let bytes = self.packs.read_place(place).await?;
                let node = Arc::new(Node::decode(&bytes, &place.pack).map_err(bad)?);
                self.nodes.insert(key, node.clone());
                node
            }
        };
        // A node in memory, too, was perhaps read for another parent.
        if node.level() != level {
            return Err(bad(FormatError::BadField("level")));
        }
        if node.span() != Some(span) {
            return Err(bad(FormatError::BadField("span")));
        }
        Ok(node)
    }

    /// The extents of `range`, cut to it, in order and without gaps. `size` is the file's length; what lies behind it
    /// is left out. Costs one request a level for what is not in memory.
    ///
    /// # Errors
    /// As [`MapReader::node`].
    pub async fn extents(&self, root: &MapRoot, size: u64, range: Range<u64>) -> Result<Vec<PlacedExtent>> {
        let range = range.start..range.end.min(size);
        let mut out = Vec::new();
        if range.is_empty() {
            return Ok(out);
        }
        match root {
            MapRoot::Empty => return Err(bad_root("span")),
            MapRoot::Inline(bytes) => {
                let node = Node::decode(bytes, &PackId([0; 32])).map_err(bad_inline)?;
                match node {
                    Node::Leaf(extents) if node_span(&extents) == size => {
                        out = slice(&extents, 0, range.start, range.end);
                    }
                    _ => return Err(bad_root("span")),
                }
            }
            MapRoot::Node { place, level } => {
                self.collect(*place, *level, 0, size, range, &mut out).await?;
            }
        }
        Ok(out)
    }

    fn collect<'a>(
        &'a self,
        place: Place,
        level: u8,
        start: u64,
        span: u64,
        range: Range<u64>,
        out: &'a mut Vec<PlacedExtent>,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let node = self.node(&place, level, span).await?;
            match &*node {
                Node::Leaf(extents) => out.extend(slice(extents, start, range.start, range.end)),
                Node::Inner { level, children } => {
                    let mut at = start;
                    for child in children {
                        let end = at + child.span;
                        if at >= range.end {
                            break;
                        }
                        if end > range.start {
                            self.collect(child.place, level - 1, at, child.span, range.clone(), out)
                                .await?;
                        }
                        at = end;
                    }
                }
            }
            Ok(())
        })
    }

    /// All extents of a file, joined where leaves cut them.
    ///
    /// # Errors
    /// As [`MapReader::node`].
    pub async fn all(&self, root: &MapRoot, size: u64) -> Result<Vec<crate::map::Extent>> {
        let mut out = Vec::new();
        for placed in self.extents(root, size, 0..size).await? {
            push_range(&mut out, &[placed.extent], placed.offset, 0, size);
        }
        Ok(out)
    }
}

fn node_span(extents: &[crate::map::Extent]) -> u64 {
    extents.iter().fold(0u64, |sum, e| sum.saturating_add(e.len))
}

fn bad_root(field: &'static str) -> RepoError {
    bad_inline(FormatError::BadField(field))
}

/// An inline root stands in a file list, whose place the caller knows better.
fn bad_inline(reason: FormatError) -> RepoError {
    RepoError::DamagedEntry { reason }
}
