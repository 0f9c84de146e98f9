//! From one snapshot to the next: what the next has more is added, then what it has not is taken away.

use std::collections::HashMap;

use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};

use super::usage::{Change, Footprint, Share, Usage};
use super::{StatsProgress, Use};
use crate::error::{FormatError, RepoError, Result};
use crate::files::{FileEntry, FileKind};
use crate::id::{PackId, Slot};
use crate::ingest::Cancel;
use crate::key::ObjectKey;
use crate::map::{Extent, ExtentKind, MapRoot, Node};
use crate::objects::SnapshotDoc;
use crate::pack::{PackKind, Place};
use crate::reader::{ReplsetReader, slots_of};
use crate::repository::Repository;
use crate::walk::{Lineages, Residence};

/// Requests that are on their way at the same time.
const AT_ONCE: usize = 16;

/// A node, and the lineage of the pack table that gives the numbers below it their meaning.
type NodeKey = (u32, PackId, u32);

/// Goes from snapshot to snapshot.
pub(super) struct Gauge<'a> {
    repo: &'a Repository,
    progress: &'a dyn StatsProgress,
    cancel: &'a Cancel,
    residence: Residence<'a>,
    lineages: Lineages,
    usage: Usage,
    /// How often the nodes of the snapshot at hand are named by its files and by other nodes.
    nodes: HashMap<NodeKey, u32>,
    at: Vec<Set>,
}

/// A replica set of the snapshot at hand.
struct Set {
    reader: ReplsetReader,
    lineage: u32,
}

impl<'a> Gauge<'a> {
    pub fn new(
        repo: &'a Repository,
        listed: &HashMap<PackId, u64>,
        progress: &'a dyn StatsProgress,
        cancel: &'a Cancel,
    ) -> Self {
        Self {
            repo,
            progress,
            cancel,
            residence: Residence::new(repo, listed.iter().map(|(id, size)| (*id, *size))),
            lineages: Lineages::default(),
            usage: Usage::default(),
            nodes: HashMap::new(),
            at: Vec::new(),
        }
    }

    /// Makes this the snapshot at hand. What only it uses is not told.
    pub async fn go_to(&mut self, doc: &SnapshotDoc) -> Result<Use> {
        let mut sets = Vec::new();
        let mut here = Use::default();
        for replset in &doc.replsets {
            let reader = ReplsetReader::open(self.repo, &doc.name, replset.clone()).await?;
            let packs = reader.explain(reader.table().all().await).await?;
            let lineage = self.lineages.of(packs.iter().map(|e| e.loc.id).collect());
            sets.push(Set { reader, lineage });
        }
        for set in &sets {
            let changed = self.set(set, Change::Add, &mut here).await;
            set.reader.explain(changed).await?;
        }
        for set in std::mem::replace(&mut self.at, sets) {
            let changed = self.set(&set, Change::Remove, &mut Use::default()).await;
            set.reader.explain(changed).await?;
        }
        here.uses = self.usage.now();
        Ok(here)
    }

    /// Notes what the snapshot at hand uses.
    pub fn note(&mut self, wanted: bool) {
        self.usage.note(wanted);
    }

    async fn set(&mut self, set: &Set, change: Change, here: &mut Use) -> Result<()> {
        let reader = &set.reader;
        for place in reader.files().places().chain(reader.table().places()) {
            self.place(place, change).await?;
        }
        for i in 0..reader.files().chunk_count() {
            let entries = reader.files().chunk(i).await?;
            for entry in entries.iter() {
                self.cancel.check()?;
                let files = u64::from(entry.meta.kind == FileKind::Regular);
                here.files += files;
                here.bytes_logical += entry.meta.size;
                self.file(set, entry, change).await?;
                self.progress.done(files);
            }
        }
        Ok(())
    }

    async fn file(&mut self, set: &Set, entry: &FileEntry, change: Change) -> Result<()> {
        let size = entry.meta.size;
        match &entry.root {
            MapRoot::Empty => {}
            MapRoot::Inline(_) => {
                for placed in set.reader.maps().extents(&entry.root, size, 0..size).await? {
                    self.extent(set, &placed.extent, change).await?;
                }
            }
            MapRoot::Node { place, level } => self.node(set, *place, *level, size, change).await?,
        }
        Ok(())
    }

    fn node<'b>(
        &'b mut self,
        set: &'b Set,
        place: Place,
        level: u8,
        span: u64,
        change: Change,
    ) -> BoxFuture<'b, Result<()>> {
        Box::pin(async move {
            let key = (set.lineage, place.pack, place.offset);
            let named = self.nodes.entry(key).or_default();
            match change {
                Change::Add => *named += 1,
                Change::Remove => *named -= 1,
            }
            // Only the first to name a node brings what is below it, and only the last takes that away.
            match (change, *named) {
                (Change::Add, 1) => {}
                (Change::Remove, 0) => drop(self.nodes.remove(&key)),
                _ => return Ok(()),
            }
            self.cancel.check()?;
            self.place(&place, change).await?;
            match &*set.reader.maps().node(&place, level, span).await? {
                Node::Leaf(extents) => {
                    for extent in extents {
                        self.extent(set, extent, change).await?;
                    }
                }
                Node::Inner { children, .. } => {
                    if change == Change::Add {
                        let known =
                            |place: &Place| self.nodes.contains_key(&(set.lineage, place.pack, place.offset));
                        let mut unknown = Vec::new();
                        for child in children {
                            if !known(&child.place) {
                                unknown.push((child.place, child.span));
                            }
                        }
                        fetch(set, level - 1, unknown).await?;
                    }
                    for child in children {
                        self.node(set, child.place, level - 1, child.span, change).await?;
                    }
                }
            }
            Ok(())
        })
    }

    /// A block that is read by itself.
    async fn place(&mut self, place: &Place, change: Change) -> Result<()> {
        let (loc, trailer, slot) = self.residence.slot_of(place).await?;
        let (loc, trailer, slot) = self.residence.now(&loc, &trailer, slot).await?;
        self.usage.change(&loc, &trailer, slot.0..slot.0 + 1, change);
        Ok(())
    }

    async fn extent(&mut self, set: &Set, extent: &Extent, change: Change) -> Result<()> {
        let ExtentKind::Data { pack, .. } = extent.kind else {
            return Ok(());
        };
        let loc = set.reader.table().get(pack).await?.loc;
        let trailer = self.repo.packs().trailer(&loc).await?;
        if trailer.kind != PackKind::Data {
            return Err(RepoError::Damaged {
                key: ObjectKey::pack(&loc.id),
                reason: FormatError::WrongKind {
                    expected: "data pack",
                    found: "map pack".into(),
                },
            });
        }
        let slots = slots_of(extent, &trailer)?;
        if self.residence.is_there(&loc.id).await? {
            self.usage.change(&loc, &trailer, slots, change);
            return Ok(());
        }
        for slot in slots {
            let (loc, trailer, slot) = self.residence.now(&loc, &trailer, Slot(slot)).await?;
            self.usage.change(&loc, &trailer, slot.0..slot.0 + 1, change);
        }
        Ok(())
    }

    /// Counts the slots of a share.
    pub async fn sum(&self, share: Share) -> Result<Footprint> {
        let picked = self
            .usage
            .packs()
            .map(|pack| (pack.loc, pack.pick(share)))
            .filter(|(_, slots)| !slots.is_empty());
        let mut looks = futures::stream::iter(picked)
            .map(|(loc, slots)| async move {
                self.cancel.check()?;
                Ok::<_, RepoError>((self.repo.packs().trailer(&loc).await?, slots))
            })
            .buffer_unordered(AT_ONCE);
        let mut out = Footprint::default();
        while let Some((trailer, slots)) = looks.try_next().await? {
            for slot in slots {
                out.count(trailer.kind, &trailer.slots()[slot as usize], Change::Add);
            }
        }
        Ok(out)
    }

    /// Bytes in packs that no snapshot uses.
    pub async fn unused(&self, listed: &HashMap<PackId, u64>) -> Result<u64> {
        let whole = listed.iter().filter(|(id, _)| !self.usage.has(id));
        let whole: u64 = whole.map(|(_, size)| size).sum();
        Ok(whole + self.sum(Share::Nobody).await?.bytes_stored())
    }
}

/// Brings nodes into the cache, several at a time.
async fn fetch(set: &Set, level: u8, nodes: Vec<(Place, u64)>) -> Result<()> {
    let maps = set.reader.maps();
    let read = |(place, span): (Place, u64)| async move { maps.node(&place, level, span).await.map(drop) };
    futures::stream::iter(nodes.into_iter().map(read))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await
}
