//! Which files need the blocks that were found damaged.

use std::collections::{HashMap, HashSet};

use futures::future::BoxFuture;

use super::finding::{BlockUse, Finding};
use super::packs::BadBlock;
use super::{CheckProgress, damage};
use crate::error::{RepoError, Result};
use crate::files::FileEntry;
use crate::id::{PackId, Slot};
use crate::ingest::Cancel;
use crate::map::{ExtentKind, MapRoot, Node, PlacedExtent};
use crate::objects::SnapshotDoc;
use crate::pack::Place;
use crate::reader::{ReplsetReader, spans_of};
use crate::repository::Repository;

/// Uses of a block that are named one by one.
const NAMED_USES: usize = 20;

/// Damaged slots by pack, and their number in the list of damaged blocks.
type Slots = HashMap<PackId, HashMap<u32, usize>>;

struct Tracer<'a> {
    repo: &'a Repository,
    cancel: &'a Cancel,
    slots: Slots,
    uses: Vec<(Vec<BlockUse>, u64)>,
    /// Nodes under which no damaged block is.
    clean: HashSet<(PackId, u32)>,
}

/// Names the files of every damaged block.
pub(super) async fn attribute(
    repo: &Repository,
    bad: Vec<BadBlock>,
    relocations: &[PackId],
    snapshots: &[SnapshotDoc],
    progress: &dyn CheckProgress,
    cancel: &Cancel,
) -> Result<Vec<Finding>> {
    let mut slots = Slots::new();
    for (i, block) in bad.iter().enumerate() {
        slots.entry(block.pack).or_default().insert(block.slot, i);
    }
    follow(repo, &mut slots, relocations).await?;
    let mut tracer = Tracer {
        repo,
        cancel,
        slots,
        uses: vec![(Vec::new(), 0); bad.len()],
        clean: HashSet::new(),
    };
    progress.snapshots(snapshots.len() as u64);
    for doc in snapshots {
        for replset in &doc.replsets {
            // What cannot be read has been reported by the walk.
            match ReplsetReader::open(repo, &doc.name, replset.clone()).await {
                Ok(reader) => tracer.replset(doc, &reader).await?,
                Err(RepoError::Deleted(_)) => {}
                Err(e) => drop(damage(e)?),
            }
        }
        progress.snapshot(&doc.name);
    }
    let uses = tracer.uses;
    let finding = |(block, (uses, more_uses)): (BadBlock, _)| Finding::DamagedBlock {
        pack: block.pack,
        slot: block.slot,
        block: block.block,
        reason: block.reason,
        uses,
        more_uses,
    };
    Ok(bad.into_iter().zip(uses).map(finding).collect())
}

/// Adds the old places of slots that were moved to damaged ones.
async fn follow(repo: &Repository, slots: &mut Slots, relocations: &[PackId]) -> Result<()> {
    loop {
        let mut grown = false;
        for old in relocations {
            let relocation = match repo.packs().relocation(old).await {
                Ok(relocation) => relocation,
                Err(e) => {
                    damage(e)?;
                    continue;
                }
            };
            for slot in 0..relocation.trailer.len() {
                let moved = relocation
                    .target(Slot(slot))
                    .and_then(|(to, there)| slots.get(&to.id)?.get(&there.0).copied());
                if let Some(i) = moved {
                    grown |= slots.entry(*old).or_default().insert(slot, i).is_none();
                }
            }
        }
        if !grown {
            return Ok(());
        }
    }
}

impl Tracer<'_> {
    async fn replset(&mut self, doc: &SnapshotDoc, reader: &ReplsetReader) -> Result<()> {
        for i in 0..reader.files().chunk_count() {
            let entries = match reader.files().chunk(i).await {
                Ok(entries) => entries,
                Err(e) => {
                    damage(e)?;
                    continue;
                }
            };
            for entry in entries.iter() {
                self.file(doc, reader, entry).await?;
            }
        }
        Ok(())
    }

    async fn file(&mut self, doc: &SnapshotDoc, reader: &ReplsetReader, entry: &FileEntry) -> Result<()> {
        let name = |offset| BlockUse {
            snapshot: doc.name.clone(),
            replset: reader.doc().name.clone(),
            path: entry.meta.path.clone(),
            offset,
        };
        let size = entry.meta.size;
        match &entry.root {
            MapRoot::Empty => {}
            MapRoot::Inline(_) => match reader.maps().extents(&entry.root, size, 0..size).await {
                Ok(extents) => {
                    for placed in extents {
                        self.extent(reader, &name, &placed).await?;
                    }
                }
                Err(e) => drop(damage(e)?),
            },
            MapRoot::Node { place, level } => {
                self.node(reader, &name, *place, *level, 0, size).await?;
            }
        }
        Ok(())
    }

    /// Whether no damaged block is under a node.
    fn node<'b>(
        &'b mut self,
        reader: &'b ReplsetReader,
        name: &'b (dyn Fn(u64) -> BlockUse + Sync),
        place: Place,
        level: u8,
        start: u64,
        span: u64,
    ) -> BoxFuture<'b, Result<bool>> {
        Box::pin(async move {
            self.cancel.check()?;
            let key = (place.pack, place.offset);
            if self.clean.contains(&key) {
                return Ok(true);
            }
            let node = match reader.maps().node(&place, level, span).await {
                Ok(node) => node,
                Err(e) => {
                    damage(e)?;
                    return Ok(false);
                }
            };
            let (mut clean, mut offset) = (true, start);
            match &*node {
                Node::Leaf(extents) => {
                    for extent in extents {
                        let placed = PlacedExtent {
                            offset,
                            extent: *extent,
                        };
                        clean &= self.extent(reader, name, &placed).await?;
                        offset += extent.len;
                    }
                }
                Node::Inner { children, .. } => {
                    for child in children {
                        clean &= self
                            .node(reader, name, child.place, level - 1, offset, child.span)
                            .await?;
                        offset += child.span;
                    }
                }
            }
            if clean {
                self.clean.insert(key);
            }
            Ok(clean)
        })
    }

    async fn extent(
        &mut self,
        reader: &ReplsetReader,
        name: &(dyn Fn(u64) -> BlockUse + Sync),
        placed: &PlacedExtent,
    ) -> Result<bool> {
        let ExtentKind::Data { pack, .. } = placed.extent.kind else {
            return Ok(true);
        };
        let found = async {
            let entry = reader.table().get(pack).await?;
            if !self.slots.contains_key(&entry.loc.id) {
                return Ok((entry.loc.id, Vec::new()));
            }
            let trailer = self.repo.packs().trailer(&entry.loc).await?;
            Ok((entry.loc.id, spans_of(placed.offset, &placed.extent, &trailer)?))
        };
        let (pack, spans) = match found.await {
            Ok(found) => found,
            Err(e) => {
                damage(e)?;
                return Ok(false);
            }
        };
        let mut clean = true;
        for span in spans {
            if let Some(i) = self.slots.get(&pack).and_then(|slots| slots.get(&span.slot)) {
                clean = false;
                let (named, more) = &mut self.uses[*i];
                if named.len() < NAMED_USES {
                    named.push(name(span.offset));
                } else {
                    *more += 1;
                }
            }
        }
        Ok(clean)
    }
}
