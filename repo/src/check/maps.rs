//! The snapshots of a repository: file lists, pack tables and maps, down to the slots that they name.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::damage;
use super::finding::{CheckReport, Finding};
use super::packs::PackFacts;
use crate::error::{FormatError, RepoError, Result};
use crate::files::{FileEntry, path_order};
use crate::id::{PackId, PackNo, Slot};
use crate::ingest::Cancel;
use crate::key::ObjectKey;
use crate::map::{ExtentKind, MapRoot, Node, PlacedExtent};
use crate::objects::SnapshotDoc;
use crate::pack::{PackKind, PackLoc, Place, Trailer};
use crate::reader::{ReplsetReader, slots_of};
use crate::repository::Repository;
use crate::walk::{Lineages, Residence};

/// A node that is sound with all below it. Level and span are part of it: a pointer may lie about them. So is the
/// lineage of the pack table, which gives the numbers in leaves their meaning.
type Seen = (u32, PackId, u32, u8, u64);

/// Walks snapshots.
pub(super) struct Walker<'a> {
    repo: &'a Repository,
    packs: &'a HashMap<PackId, PackFacts>,
    report: &'a mut CheckReport,
    cancel: &'a Cancel,
    seen: HashSet<Seen>,
    lineages: Lineages,
    residence: Residence<'a>,
    used: HashSet<PackId>,
    /// Nothing was unreadable, so that what is not in `used` is not used.
    whole: bool,
}

/// The replica set that is walked.
struct Set<'r> {
    snapshot: &'r SnapshotDoc,
    reader: &'r ReplsetReader,
    lineage: u32,
    /// Map packs in its table.
    map_packs: HashSet<PackId>,
}

/// The file that is walked, and the packs that were reported for it.
struct At<'r> {
    set: &'r Set<'r>,
    path: &'r str,
    told: HashSet<Option<PackNo>>,
}

impl<'a> Walker<'a> {
    pub fn new(
        repo: &'a Repository,
        packs: &'a HashMap<PackId, PackFacts>,
        report: &'a mut CheckReport,
        cancel: &'a Cancel,
    ) -> Self {
        // Of a damaged one nothing but that it is there is ever asked.
        let mut residence = Residence::new(repo, packs.keys().map(|id| (*id, 0)));
        for facts in packs.values() {
            if let PackFacts::Sound(loc, _) = facts {
                residence.located(*loc);
            }
        }
        Self {
            repo,
            packs,
            report,
            cancel,
            seen: HashSet::new(),
            lineages: Lineages::default(),
            residence,
            used: HashSet::new(),
            whole: true,
        }
    }

    /// The packs that snapshots need, and whether these are all.
    pub fn finish(self) -> (HashSet<PackId>, bool) {
        (self.used, self.whole)
    }

    /// Walks a snapshot. One that was deleted meanwhile is passed over.
    pub async fn snapshot(&mut self, doc: &SnapshotDoc) -> Result<()> {
        for replset in &doc.replsets {
            let before = self.report.findings.len();
            let opened = ReplsetReader::open(self.repo, &doc.name, replset.clone()).await;
            let walked = match opened {
                Ok(reader) => self.replset(doc, &reader).await,
                Err(e) => self.broken(doc, &replset.name, e),
            };
            if self.report.findings.len() > before {
                self.whole = false;
                let deleted = !matches!(
                    self.repo.committed(&doc.name).await,
                    Ok(Some(crate::objects::Committed::Snapshot(_)))
                );
                if deleted {
                    self.report.findings.truncate(before);
                    return Ok(());
                }
            }
            match walked {
                Err(RepoError::Deleted(_)) => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }

    fn broken(&mut self, doc: &SnapshotDoc, replset: &str, e: RepoError) -> Result<()> {
        let reason = damage(e)?;
        self.report.findings.push(Finding::DamagedSnapshot {
            snapshot: doc.name.clone(),
            replset: replset.into(),
            reason,
        });
        Ok(())
    }

    async fn replset(&mut self, doc: &SnapshotDoc, reader: &ReplsetReader) -> Result<()> {
        let name = &reader.doc().name;
        let own: Vec<Place> = reader
            .files()
            .places()
            .chain(reader.table().places())
            .copied()
            .collect();
        for place in &own {
            if let Err(e) = self.place(place).await {
                self.broken(doc, name, e)?;
            }
        }
        let mut map_packs = HashSet::new();
        let lineage = match reader.table().all().await {
            Ok(entries) => {
                map_packs.extend(
                    entries
                        .iter()
                        .filter(|e| e.kind == PackKind::Map)
                        .map(|e| e.loc.id),
                );
                for entry in &entries {
                    if let Some(PackFacts::Sound(loc, kind)) = self.packs.get(&entry.loc.id)
                        && (*loc, *kind) != (entry.loc, entry.kind)
                    {
                        let key = ObjectKey::pack(&entry.loc.id);
                        let reason = FormatError::BadField("entry of the pack table");
                        self.broken(doc, name, RepoError::Damaged { key, reason })?;
                    }
                }
                self.lineages.of(entries.iter().map(|e| e.loc.id).collect())
            }
            Err(e) => {
                self.broken(doc, name, e)?;
                // Of its own: what is sound by another table need not be so by this one.
                self.lineages.alone()
            }
        };
        let set = Set {
            snapshot: doc,
            reader,
            lineage,
            map_packs,
        };
        let mut last: Option<String> = None;
        for i in 0..reader.files().chunk_count() {
            self.cancel.check()?;
            let entries = match reader.files().chunk(i).await {
                Ok(entries) => entries,
                Err(e) => {
                    self.broken(doc, name, e)?;
                    continue;
                }
            };
            for entry in entries.iter() {
                let path = &entry.meta.path;
                if last.as_ref().is_some_and(|last| path_order(last, path).is_ge()) {
                    let reason = FormatError::BadField("order of paths");
                    self.broken(doc, name, RepoError::DamagedEntry { reason })?;
                }
                last = Some(path.clone());
                self.report.files += 1;
                self.file(&set, entry).await?;
            }
        }
        Ok(())
    }

    async fn file(&mut self, set: &Set<'_>, entry: &FileEntry) -> Result<()> {
        let size = entry.meta.size;
        let mut at = At {
            set,
            path: &entry.meta.path,
            told: HashSet::new(),
        };
        match &entry.root {
            MapRoot::Empty => {}
            MapRoot::Inline(_) => match set.reader.maps().extents(&entry.root, size, 0..size).await {
                Ok(extents) => {
                    for placed in extents {
                        self.extent(&mut at, &placed).await?;
                    }
                }
                Err(e) => self.tell(&mut at, None, 0, e)?,
            },
            MapRoot::Node { place, level } => {
                self.node(&mut at, *place, *level, 0, size).await?;
            }
        }
        Ok(())
    }

    /// Whether a node and all below it are sound.
    fn node<'b>(
        &'b mut self,
        at: &'b mut At<'_>,
        place: Place,
        level: u8,
        start: u64,
        span: u64,
    ) -> BoxFuture<'b, Result<bool>> {
        Box::pin(async move {
            self.cancel.check()?;
            let key = (at.set.lineage, place.pack, place.offset, level, span);
            if self.seen.contains(&key) {
                return Ok(true);
            }
            self.report.nodes += 1;
            let mut sound = true;
            if let Err(e) = self.place(&place).await {
                sound = false;
                self.tell_of_node(at, start, e)?;
            } else if !at.set.map_packs.contains(&place.pack) {
                sound = false;
                let key = ObjectKey::pack(&place.pack);
                let reason = FormatError::BadField("map pack that the pack table does not list");
                self.tell_of_node(at, start, RepoError::Damaged { key, reason })?;
            }
            let node = match at.set.reader.maps().node(&place, level, span).await {
                Ok(node) => node,
                Err(e) => {
                    if sound {
                        self.tell_of_node(at, start, e)?;
                    } else {
                        damage(e)?;
                    }
                    return Ok(false);
                }
            };
            let mut offset = start;
            match &*node {
                Node::Leaf(extents) => {
                    for extent in extents {
                        let placed = PlacedExtent {
                            offset,
                            extent: *extent,
                        };
                        sound &= self.extent(at, &placed).await?;
                        offset += extent.len;
                    }
                }
                Node::Inner { children, .. } => {
                    for child in children {
                        sound &= self.node(at, child.place, level - 1, offset, child.span).await?;
                        offset += child.span;
                    }
                }
            }
            if sound {
                self.seen.insert(key);
            }
            Ok(sound)
        })
    }

    /// Whether an extent's bytes are there, so far as trailers tell.
    async fn extent(&mut self, at: &mut At<'_>, placed: &PlacedExtent) -> Result<bool> {
        let ExtentKind::Data { pack, .. } = placed.extent.kind else {
            return Ok(true);
        };
        match self.try_extent(at.set, placed, pack).await {
            Ok(()) => Ok(true),
            Err(e) => {
                self.tell(at, Some(pack), placed.offset, e)?;
                Ok(false)
            }
        }
    }

    async fn try_extent(&mut self, set: &Set<'_>, placed: &PlacedExtent, pack: PackNo) -> Result<()> {
        let entry = set.reader.table().get(pack).await?;
        let key = ObjectKey::pack(&entry.loc.id);
        if let Some(PackFacts::Damaged) = self.packs.get(&entry.loc.id) {
            self.used.insert(entry.loc.id);
        }
        let trailer = self.repo.packs().trailer(&entry.loc).await?;
        if trailer.kind != PackKind::Data {
            let reason = FormatError::WrongKind {
                expected: "data pack",
                found: "map pack".into(),
            };
            return Err(RepoError::Damaged { key, reason });
        }
        let slots = slots_of(&placed.extent, &trailer)?;
        self.slots(&entry.loc, &trailer, slots).await
    }

    /// Whether a block that is read by itself is one of its pack's.
    async fn place(&mut self, place: &Place) -> Result<()> {
        // It is reported by itself; whether the block can be read shows when it is.
        if let Some(PackFacts::Damaged) = self.packs.get(&place.pack) {
            self.used.insert(place.pack);
            return Ok(());
        }
        let (loc, trailer, slot) = self.residence.slot_of(place).await?;
        self.slots(&loc, &trailer, slot.0..slot.0 + 1).await
    }

    /// Whether slots are in a pack that is there, through relocations.
    async fn slots(&mut self, loc: &PackLoc, trailer: &Arc<Trailer>, slots: Range<u32>) -> Result<()> {
        if self.residence.is_there(&loc.id).await? {
            self.used.insert(loc.id);
            return Ok(());
        }
        for slot in slots {
            let (now, _, _) = self.residence.now(loc, trailer, Slot(slot)).await?;
            self.used.insert(now.id);
        }
        Ok(())
    }

    /// A file is told of once for each pack.
    fn tell(&mut self, at: &mut At<'_>, pack: Option<PackNo>, offset: u64, e: RepoError) -> Result<()> {
        let reason = damage(e)?;
        if at.told.insert(pack) {
            self.push(at, offset, reason);
        }
        Ok(())
    }

    fn tell_of_node(&mut self, at: &mut At<'_>, offset: u64, e: RepoError) -> Result<()> {
        let reason = damage(e)?;
        self.push(at, offset, reason);
        Ok(())
    }

    fn push(&mut self, at: &At<'_>, offset: u64, reason: String) {
        self.report.findings.push(Finding::DamagedFile {
            snapshot: at.set.snapshot.name.clone(),
            replset: at.set.reader.doc().name.clone(),
            path: at.path.into(),
            offset,
            reason,
        });
    }
}
