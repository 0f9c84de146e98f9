//! Changes to a map: copy on write.

use futures::future::BoxFuture;

use crate::error::Result;
use crate::id::PackId;
use crate::map::build::{MapWriter, NewChild, PendingRoot, Ptr};
use crate::map::extent::{Extent, PlacedExtent, push, push_range, total};
use crate::map::node::{Child, MapRoot, Node};
use crate::map::read::MapReader;
use crate::pack::Place;

/// New contents of a stretch of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    start: u64,
    end: u64,
    extents: Vec<PlacedExtent>,
}

impl Edit {
    /// Nothing yet, from byte `start` on.
    pub fn at(start: u64) -> Self {
        Self {
            start,
            end: start,
            extents: Vec::new(),
        }
    }

    /// These extents, one behind the other, from byte `start` on.
    pub fn new(start: u64, extents: impl IntoIterator<Item = Extent>) -> Self {
        let mut edit = Self::at(start);
        extents.into_iter().for_each(|e| edit.push(e));
        edit
    }

    /// Appends an extent.
    pub fn push(&mut self, extent: Extent) {
        self.extents.push(PlacedExtent {
            offset: self.end,
            extent,
        });
        self.end += extent.len;
    }

    /// Appends a whole block or a hole: as part of the run before it, if it is the run's next slot. All of this
    /// edit's runs must be whole blocks.
    pub fn push_block(&mut self, extent: Extent) {
        if let Some(last) = self.extents.last_mut()
            && let Some(longer) = last.extent.with_next_block(&extent)
        {
            last.extent = longer;
            self.end += extent.len;
            return;
        }
        self.push(extent);
    }

    /// First byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Behind the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// What is there now, without gaps.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents.iter().map(|p| p.extent)
    }

    /// Appends what lies in `from..to` to `out`.
    fn copy(&self, from: u64, to: u64, out: &mut Vec<Extent>) {
        let first = self.extents.partition_point(|p| p.offset + p.extent.len <= from);
        for placed in self.extents[first..].iter().take_while(|p| p.offset < to) {
            push_range(out, &[placed.extent], placed.offset, from, to);
        }
    }
}

/// What became of a node.
enum Rewritten {
    Unchanged,
    Leaf(Vec<Extent>),
    Inner(Vec<NewChild>),
}

/// A node and the stretch of the old file that it covers.
#[derive(Clone, Copy)]
struct Spot {
    place: Place,
    level: u8,
    start: u64,
    span: u64,
    /// Whether it is the rightmost of its level: what lies behind the old end is its business.
    last: bool,
}

/// A change to a whole file.
struct Change<'a> {
    reader: &'a MapReader,
    edits: &'a [Edit],
    old_len: u64,
    new_len: u64,
}

impl Change<'_> {
    fn touches(&self, start: u64, end: u64, last: bool) -> bool {
        if end > self.new_len || last && self.new_len > self.old_len {
            return true;
        }
        let first = self.edits.partition_point(|e| e.end() <= start);
        self.edits.get(first).is_some_and(|e| e.start < end)
    }

    /// The extents of `start..end` after the change; `old` begins at `start`.
    fn splice(&self, old: &[Extent], start: u64, end: u64) -> Vec<Extent> {
        let mut out = Vec::with_capacity(old.len() + 2);
        let end = end.min(self.new_len);
        let keep = |out: &mut Vec<Extent>, from: u64, to: u64| {
            let to = to.min(end);
            if from >= to {
                return;
            }
            push_range(out, old, start, from, to);
            // What no edit covers behind the old end is a hole.
            let known = (start + total(old)).max(from);
            if to > known {
                push(out, Extent::hole(to - known));
            }
        };
        let mut at = start;
        let first = self.edits.partition_point(|e| e.end() <= start);
        for edit in self.edits[first..].iter().take_while(|e| e.start < end) {
            keep(&mut out, at, edit.start.max(at));
            let from = edit.start.max(at);
            let to = edit.end().min(end);
            edit.copy(from, to, &mut out);
            at = to.max(at);
        }
        keep(&mut out, at, end);
        out
    }
}

impl MapWriter {
    /// The map `root` of a file of `old_len` bytes after `edits` (sorted, not overlapping, none beyond `new_len`),
    /// cut or grown to `new_len` bytes. Bytes behind the old end that no edit covers become a hole. Costs a read of
    /// each node on the way to a change, and rewrites those. If nothing differs the root stays as it is.
    ///
    /// # Errors
    /// The storage's; `DamagedBlock` if a node cannot be read.
    pub async fn apply(
        &mut self,
        reader: &MapReader,
        root: &MapRoot,
        old_len: u64,
        new_len: u64,
        edits: &[Edit],
    ) -> Result<PendingRoot> {
        let unchanged = || PendingRoot::ready(root.clone());
        if edits.is_empty() && old_len == new_len {
            return Ok(unchanged());
        }
        let change = Change {
            reader,
            edits,
            old_len,
            new_len,
        };
        let old = match root {
            MapRoot::Empty => Vec::new(),
            MapRoot::Inline(bytes) => match Node::decode(bytes, &PackId([0; 32])) {
                Ok(Node::Leaf(extents)) => extents,
                _ => reader.all(root, old_len).await?,
            },
            MapRoot::Node { place, level } => {
                let spot = Spot {
                    place: *place,
                    level: *level,
                    start: 0,
                    span: old_len,
                    last: true,
                };
                return match self.rewrite(&change, spot).await? {
                    Rewritten::Unchanged => Ok(unchanged()),
                    Rewritten::Leaf(extents) => self.root_of_extents(&extents).await,
                    Rewritten::Inner(children) => self.root_of_children(level - 1, children).await,
                };
            }
        };
        let new = change.splice(&old, 0, new_len);
        if new == old {
            Ok(unchanged())
        } else {
            self.root_of_extents(&new).await
        }
    }

    fn rewrite<'a>(&'a mut self, change: &'a Change<'a>, spot: Spot) -> BoxFuture<'a, Result<Rewritten>> {
        Box::pin(async move {
            let node = change.reader.node(&spot.place, spot.level, spot.span).await?;
            match &*node {
                Node::Leaf(old) => {
                    let end = if spot.last {
                        u64::MAX
                    } else {
                        spot.start + spot.span
                    };
                    let new = change.splice(old, spot.start, end);
                    Ok(if new == *old {
                        Rewritten::Unchanged
                    } else {
                        Rewritten::Leaf(new)
                    })
                }
                Node::Inner { level, children } => self.rewrite_inner(change, spot, *level, children).await,
            }
        })
    }

    async fn rewrite_inner(
        &mut self,
        change: &Change<'_>,
        spot: Spot,
        level: u8,
        children: &[Child],
    ) -> Result<Rewritten> {
        let mut out: Vec<NewChild> = Vec::with_capacity(children.len() + 1);
        let mut pending = Pending::new(level);
        let mut changed = false;
        let mut at = spot.start;
        for (i, child) in children.iter().enumerate() {
            let start = at;
            at += child.span;
            let last = spot.last && i + 1 == children.len();
            if start >= change.new_len {
                changed = true;
                continue;
            }
            let below = Spot {
                place: child.place,
                level: level - 1,
                start,
                span: child.span,
                last,
            };
            let rewritten = if change.touches(start, at, last) {
                self.rewrite(change, below).await?
            } else {
                Rewritten::Unchanged
            };
            match rewritten {
                Rewritten::Unchanged => {
                    // A small remainder is taken together with its right neighbour.
                    if pending.is_small() {
                        pending.append_node(&*change.reader.node(&child.place, level - 1, child.span).await?);
                        continue;
                    }
                    pending.write(self, level, &mut out).await?;
                    out.push(NewChild {
                        span: child.span,
                        ptr: Ptr::Stored(child.place),
                    });
                }
                Rewritten::Leaf(extents) => {
                    changed = true;
                    extents.into_iter().for_each(|e| pending.push_extent(e));
                }
                Rewritten::Inner(lower) => {
                    changed = true;
                    pending.children.extend(lower);
                }
            }
        }
        if !changed {
            return Ok(Rewritten::Unchanged);
        }
        // A small remainder at the end is taken together with its left neighbour.
        if pending.is_small()
            && let Some(NewChild {
                span,
                ptr: Ptr::Stored(place),
            }) = out.last().copied()
        {
            out.pop();
            let mut left = Pending::new(level);
            left.append_node(&*change.reader.node(&place, level - 1, span).await?);
            pending.extents.into_iter().for_each(|e| left.push_extent(e));
            left.children.extend(pending.children);
            pending = left;
        }
        pending.write(self, level, &mut out).await?;
        Ok(Rewritten::Inner(out))
    }
}

/// Contents of neighbouring changed children of a node, on their way into new ones: extents if the children are
/// leaves, else pointers.
struct Pending {
    of_leaves: bool,
    extents: Vec<Extent>,
    children: Vec<NewChild>,
}

/// Fewer extents or children than this are put together with a neighbour: an eighth of a usual node.
const SMALL: usize = 5;

impl Pending {
    fn new(parent_level: u8) -> Self {
        Self {
            of_leaves: parent_level == 1,
            extents: Vec::new(),
            children: Vec::new(),
        }
    }

    fn is_small(&self) -> bool {
        let n = if self.of_leaves {
            self.extents.len()
        } else {
            self.children.len()
        };
        n > 0 && n < SMALL
    }

    fn push_extent(&mut self, extent: Extent) {
        push(&mut self.extents, extent);
    }

    fn append_node(&mut self, node: &Node) {
        match node {
            Node::Leaf(extents) => extents.iter().for_each(|e| self.push_extent(*e)),
            Node::Inner { children, .. } => self.children.extend(children.iter().map(|c| NewChild {
                span: c.span,
                ptr: Ptr::Stored(c.place),
            })),
        }
    }

    /// Writes nodes one level below `parent_level` and empties itself.
    async fn write(
        &mut self,
        writer: &mut MapWriter,
        parent_level: u8,
        out: &mut Vec<NewChild>,
    ) -> Result<()> {
        if !self.extents.is_empty() {
            out.extend(writer.write_leaves(&std::mem::take(&mut self.extents)).await?);
        }
        if !self.children.is_empty() {
            out.extend(
                writer
                    .write_inners(parent_level - 1, &std::mem::take(&mut self.children))
                    .await?,
            );
        }
        Ok(())
    }
}
