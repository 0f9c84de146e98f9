//! The map of a file: a copy-on-write B-tree of extents, keyed by file offset (drawn in `docs/format.md` §5).
//!
//! A leaf lists extents one behind the other without gaps, so an extent needs no offset of its own; an inner node
//! lists its children with the bytes of file that each covers. A change rewrites the leaves that it touches and the
//! path to the root; everything else is shared with the parent snapshot's tree.

mod build;
mod edit;
mod extent;
mod node;
mod read;
#[cfg(test)]
mod tests;

pub use build::{MapParams, MapWriter, PendingRoot};
pub use edit::Edit;
pub use extent::{Extent, ExtentKind, PlacedExtent, slice};
pub use node::{Child, INLINE_MAX, MAX_NODE, MapRoot, Node};
pub use read::MapReader;
