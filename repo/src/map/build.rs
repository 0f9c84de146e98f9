//! Writing of maps: new trees and the packing of nodes. Changes to a tree are in `edit`.

use crate::error::{RepoError, Result};
use crate::map::extent::{Extent, push};
use crate::map::node::{
    CHILD_COST, Child, INLINE_MAX, LeafEncoder, MAX_NODE, MapRoot, encode_inner, encode_leaf,
};
use crate::pack::{OwnPlace, PackSink, Place};

/// Sizes of nodes. They are the writer's choice and no part of the format.
#[derive(Debug, Clone, Copy)]
pub struct MapParams {
    /// Bytes of a leaf that new leaves are filled to; a leaf is split when it has grown to one and a half of it.
    pub leaf: usize,
    /// The same for inner nodes.
    pub inner: usize,
}

impl Default for MapParams {
    /// A scattered change rewrites one leaf and its path, so small nodes keep increments small, and every level
    /// costs a reader a request. `benches/local.sh` prints the bytes a change for other sizes.
    fn default() -> Self {
        Self {
            leaf: 512,
            inner: 1024,
        }
    }
}

/// A pointer to a node: of an older snapshot, or of this writer's packs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ptr {
    Stored(Place),
    Own(OwnPlace),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct NewChild {
    pub span: u64,
    pub ptr: Ptr,
}

/// The root of a map whose packs may not be put yet.
#[derive(Debug, Clone)]
pub struct PendingRoot(Pending);

#[derive(Debug, Clone)]
enum Pending {
    Ready(MapRoot),
    Own(OwnPlace, u8),
}

/// Writes maps into the packs of a sink.
pub struct MapWriter {
    sink: PackSink,
    params: MapParams,
}

/// A tree that grows at its end.
#[derive(Default)]
struct Growing {
    extents: Vec<Extent>,
    leaf: LeafEncoder,
    /// `levels[i]` holds the children of the open node of level `i + 1`.
    levels: Vec<Vec<NewChild>>,
}

impl MapWriter {
    /// Writes into `sink`. Sizes below what a node of two children needs are raised to that, and sizes with which a
    /// node, with what a split leaves over and a pack's id for each child, could become one that no reader accepts are
    /// lowered.
    pub fn new(sink: PackSink, params: MapParams) -> Self {
        let params = MapParams {
            leaf: params.leaf.clamp(64, MAX_NODE / 4),
            inner: params.inner.clamp(128, MAX_NODE / 4),
        };
        Self { sink, params }
    }

    /// The sink, for blocks that are no nodes.
    pub fn sink(&mut self) -> &mut PackSink {
        &mut self.sink
    }

    /// The sink, to look at.
    pub fn sink_ref(&self) -> &PackSink {
        &self.sink
    }

    /// A new map of these extents, which cover the file from its first byte to its last.
    ///
    /// # Errors
    /// The storage's.
    pub async fn build(&mut self, extents: impl IntoIterator<Item = Extent>) -> Result<PendingRoot> {
        let mut tree = Growing::default();
        let mut joined = Vec::with_capacity(2);
        for extent in extents {
            push(&mut joined, extent);
            if joined.len() == 2 {
                self.grow(&mut tree, joined[0]).await?;
                joined.remove(0);
            }
        }
        if let Some(last) = joined.pop() {
            self.grow(&mut tree, last).await?;
        }
        self.finish_growing(tree).await
    }

    async fn grow(&mut self, tree: &mut Growing, extent: Extent) -> Result<()> {
        tree.leaf.push(&extent);
        tree.extents.push(extent);
        if tree.leaf.len() < self.params.leaf {
            return Ok(());
        }
        let extents = std::mem::take(&mut tree.extents);
        tree.leaf = LeafEncoder::default();
        let mut child = self.write_leaf(&extents).await?;
        for level in 0.. {
            if tree.levels.len() == level {
                tree.levels.push(Vec::new());
            }
            tree.levels[level].push(child);
            if tree.levels[level].len() * CHILD_COST < self.params.inner {
                break;
            }
            let children = std::mem::take(&mut tree.levels[level]);
            child = self.write_inner(level as u8 + 1, &children).await?;
        }
        Ok(())
    }

    async fn finish_growing(&mut self, tree: Growing) -> Result<PendingRoot> {
        if tree.levels.is_empty() {
            return self.root_of_extents(&tree.extents).await;
        }
        let mut carried = None;
        if !tree.extents.is_empty() {
            carried = Some(self.write_leaf(&tree.extents).await?);
        }
        let top = tree.levels.len() - 1;
        for (level, mut children) in tree.levels.into_iter().enumerate() {
            children.extend(carried.take());
            if level == top || !children.is_empty() {
                if level == top {
                    return self.root_of_children(level as u8, children).await;
                }
                carried = Some(self.write_inner(level as u8 + 1, &children).await?);
            }
        }
        Err(RepoError::Poisoned("a map without levels".into()))
    }

    pub(crate) async fn root_of_extents(&mut self, extents: &[Extent]) -> Result<PendingRoot> {
        if extents.is_empty() {
            return Ok(PendingRoot(Pending::Ready(MapRoot::Empty)));
        }
        let bytes = encode_leaf(extents);
        if bytes.len() <= INLINE_MAX {
            return Ok(PendingRoot(Pending::Ready(MapRoot::Inline(bytes))));
        }
        let children = self.write_leaves(extents).await?;
        self.root_of_children(0, children).await
    }

    /// The root above nodes of `level`.
    pub(crate) async fn root_of_children(
        &mut self,
        mut level: u8,
        mut children: Vec<NewChild>,
    ) -> Result<PendingRoot> {
        while children.len() > 1 {
            level += 1;
            children = self.write_inners(level, &children).await?;
        }
        Ok(PendingRoot(match children.first().map(|c| c.ptr) {
            None => Pending::Ready(MapRoot::Empty),
            Some(Ptr::Stored(place)) => Pending::Ready(MapRoot::Node { place, level }),
            Some(Ptr::Own(own)) => Pending::Own(own, level),
        }))
    }

    async fn write_leaf(&mut self, extents: &[Extent]) -> Result<NewChild> {
        let bytes = encode_leaf(extents);
        let own = self.sink.add(&bytes).await?;
        Ok(NewChild {
            span: super::extent::total(extents),
            ptr: Ptr::Own(own),
        })
    }

    /// Leaves of about equal length; one if they fit.
    pub(crate) async fn write_leaves(&mut self, extents: &[Extent]) -> Result<Vec<NewChild>> {
        let mut encoder = LeafEncoder::default();
        let ends: Vec<usize> = extents
            .iter()
            .map(|e| {
                encoder.push(e);
                encoder.len()
            })
            .collect();
        let mut out = Vec::new();
        for range in split_evenly(&ends, self.params.leaf) {
            out.push(self.write_leaf(&extents[range]).await?);
        }
        Ok(out)
    }

    /// Inner nodes of about equal length; one if they fit.
    pub(crate) async fn write_inners(&mut self, level: u8, children: &[NewChild]) -> Result<Vec<NewChild>> {
        let mut packs = std::collections::HashSet::new();
        let mut len = 0;
        let ends: Vec<usize> = children
            .iter()
            .map(|child| {
                len += CHILD_COST;
                if let Ptr::Stored(place) = child.ptr
                    && packs.insert(place.pack)
                {
                    len += 32;
                }
                len
            })
            .collect();
        let mut out = Vec::new();
        for range in split_evenly(&ends, self.params.inner) {
            out.push(self.write_inner(level, &children[range]).await?);
        }
        Ok(out)
    }

    async fn write_inner(&mut self, level: u8, children: &[NewChild]) -> Result<NewChild> {
        let pack = self.sink.reserve(MAX_NODE).await?;
        let named = children
            .iter()
            .map(|child| {
                let place = match child.ptr {
                    Ptr::Stored(place) => place,
                    Ptr::Own(own) => self.sink.named_from(pack, own)?,
                };
                Ok(Child {
                    span: child.span,
                    place,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let own = self.sink.push(&encode_inner(level, &named))?;
        Ok(NewChild {
            span: children.iter().map(|c| c.span).sum(),
            ptr: Ptr::Own(own),
        })
    }

    /// The final root; the sink must have been flushed.
    ///
    /// # Errors
    /// `Poisoned` if it was not.
    pub fn resolve(&self, root: &PendingRoot) -> Result<MapRoot> {
        Ok(match &root.0 {
            Pending::Ready(root) => root.clone(),
            Pending::Own(own, level) => MapRoot::Node {
                place: self.sink.place(*own)?,
                level: *level,
            },
        })
    }
}

impl PendingRoot {
    /// A root that is stored already.
    pub fn ready(root: MapRoot) -> Self {
        Self(Pending::Ready(root))
    }
}

/// Cuts items, of which `ends` tells the summed length behind each, into groups: one if all fit one and a half
/// times `target`, else as many as give `target` each, evenly filled.
fn split_evenly(ends: &[usize], target: usize) -> Vec<std::ops::Range<usize>> {
    let Some(&total) = ends.last() else {
        return Vec::new();
    };
    let groups = if total <= target + target / 2 {
        1
    } else {
        total.div_ceil(target)
    };
    let mut out = Vec::with_capacity(groups);
    let mut from = 0;
    for group in 1..=groups {
        let limit = total * group / groups;
        let to = if group == groups {
            ends.len()
        } else {
            ends.partition_point(|end| *end <= limit)
        };
        if to > from {
            out.push(from..to);
            from = to;
        }
    }
    out
}
