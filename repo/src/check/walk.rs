//! Walking the maps of all snapshots, each shared node once.

use std::collections::HashSet;

use futures::future::BoxFuture;

use super::objects::{Facts, as_finding};
use super::{CheckReport, Finding, is_damage};
use crate::error::{FormatError, RepoError, Result};
use crate::id::{BlockId, PackId, Slot};
use crate::ingest::Cancel;
use crate::map::{Extent, ExtentKind, MapRoot, Node};
use crate::pack::{PackLoc, Place};
use crate::reader::{BlockSpan, ReplsetReader, SnapshotReader, spans_of};
use crate::repository::Repository;

/// What the walk came by.
#[derive(Default)]
pub(super) struct Walked {
    /// Packs that snapshots refer to, relocations followed.
    pub referenced: HashSet<PackId>,
    /// Nodes: some 60 bytes for each, which is a byte for each extent.
    seen: HashSet<(PackId, u32, u8, u64)>,
}

pub(super) async fn walk(
    repo: &Repository,
    facts: &Facts,
    cancel: &Cancel,
    report: &mut CheckReport,
) -> Result<Walked> {
    let mut walked = Walked::default();
    for doc in &facts.snapshots {
        cancel.check()?;
        let reader = match SnapshotReader::open(repo, doc.clone()).await {
            Ok(reader) => reader,
            Err(RepoError::Deleted(_)) => continue,
            Err(e) => {
                report.add(as_finding(e)?);
                continue;
            }
        };
        for replset in reader.replsets() {
            walked.replset(replset, facts, cancel, report).await?;
        }
    }
    Ok(walked)
}

impl Walked {
    async fn replset(
        &mut self,
        replset: &ReplsetReader,
        facts: &Facts,
        cancel: &Cancel,
        report: &mut CheckReport,
    ) -> Result<()> {
        for place in replset.files().places().chain(replset.table().places()) {
            self.refer(replset, facts, place).await?;
        }
        for number in 0..replset.files().len() {
            cancel.check()?;
            let entry = match replset.explain(replset.files().get(number).await).await {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(RepoError::Deleted(_)) => return Ok(()),
                Err(e) => {
                    report.add(as_finding(e)?);
                    // The rest of the chunk would say the same.
                    return Ok(());
                }
            };
            report.files += 1;
            let walked = match &entry.root {
                MapRoot::Empty => Ok(()),
                MapRoot::Inline(_) => match replset
                    .extents(&entry.root, entry.meta.size, 0..entry.meta.size)
                    .await
                {
                    Ok(placed) => {
                        self.leaf(replset, facts, placed.iter().map(|p| p.extent), report)
                            .await
                    }
                    Err(e) => Err(e),
                },
                MapRoot::Node { place, level } => {
                    self.node(replset, facts, *place, *level, entry.meta.size, report)
                        .await
                }
            };
            match walked {
                Ok(()) => {}
                Err(RepoError::Deleted(_)) => return Ok(()),
                Err(e) => report.add(as_finding(e)?),
            }
        }
        Ok(())
    }

    fn node<'a>(
        &'a mut self,
        replset: &'a ReplsetReader,
        facts: &'a Facts,
        place: Place,
        level: u8,
        span: u64,
        report: &'a mut CheckReport,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if !self.seen.insert((place.pack, place.offset, level, span)) {
                return Ok(());
            }
            self.refer(replset, facts, &place).await?;
            let node = replset
                .explain(replset.maps().node(&place, level, span).await)
                .await?;
            match &*node {
                Node::Leaf(extents) => self.leaf(replset, facts, extents.iter().copied(), report).await,
                Node::Inner { level, children } => {
                    for child in children {
                        // One bad child must not hide its siblings.
                        let below = self.node(replset, facts, child.place, level - 1, child.span, report);
                        match below.await {
                            Err(e) if is_damage(&e) => report.add(as_finding(e)?),
                            other => other?,
                        }
                    }
                    Ok(())
                }
            }
        })
    }

    /// Notes where a block that is read by itself is now. What is wrong with it shows when it is read.
    async fn refer(&mut self, replset: &ReplsetReader, facts: &Facts, place: &Place) -> Result<()> {
        if facts.is_there(replset, &place.pack).await? {
            self.referenced.insert(place.pack);
            return Ok(());
        }
        let found = async {
            let relocation = replset.packs().relocation(&place.pack).await?;
            let loc = PackLoc {
                id: place.pack,
                trailer_offset: relocation.trailer.end(),
                trailer_len: 0,
            };
            match relocation.trailer.slot_at(place.offset) {
                Some(slot) => locate(replset, facts, &loc, slot.0, &place.id).await.map(Some),
                None => Ok(None),
            }
        };
        match found.await {
            Ok(at) => self.referenced.extend(at.map(|at| at.0)),
            Err(e) if is_damage(&e) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    async fn leaf(
        &mut self,
        replset: &ReplsetReader,
        facts: &Facts,
        extents: impl Iterator<Item = Extent> + Send,
        report: &mut CheckReport,
    ) -> Result<()> {
        for extent in extents {
            let ExtentKind::Data { pack, .. } = extent.kind else {
                continue;
            };
            let found = match replset.pack(pack).await {
                Ok(loc) => blocks_of(replset, facts, &loc, 0, &extent).await,
                Err(e) => Err(e),
            };
            match found {
                Ok(found) => self.referenced.extend(found.iter().map(|f| f.at.0)),
                Err(e) if is_damage(&e) => report.add(as_finding(e)?),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// A block of an extent, and where it really is.
pub(super) struct Located {
    pub span: BlockSpan,
    pub id: BlockId,
    /// The pack and slot where it is now, relocations followed.
    pub at: (PackId, u32),
}

/// The blocks of an extent at `offset`, with the packs in which they are now.
pub(super) async fn blocks_of(
    replset: &ReplsetReader,
    facts: &Facts,
    loc: &PackLoc,
    offset: u64,
    extent: &Extent,
) -> Result<Vec<Located>> {
    let trailer = replset.explain(replset.packs().trailer(loc).await).await?;
    let mut out = Vec::new();
    for span in spans_of(offset, extent, &trailer)? {
        let id = trailer.slots()[span.slot as usize].id;
        let at = locate(replset, facts, loc, span.slot, &id).await?;
        out.push(Located { span, id, at });
    }
    Ok(out)
}

/// Follows relocations from a slot to the pack that is there.
async fn locate(
    replset: &ReplsetReader,
    facts: &Facts,
    loc: &PackLoc,
    slot: u32,
    id: &BlockId,
) -> Result<(PackId, u32)> {
    let (mut at, mut slot) = (*loc, slot);
    for _ in 0..64 {
        if facts.is_there(replset, &at.id).await? {
            return Ok((at.id, slot));
        }
        let relocation = replset.explain(replset.packs().relocation(&at.id).await).await?;
        let key = crate::key::ObjectKey::relocation(&at.id);
        let bad = |field| RepoError::Damaged {
            key: key.clone(),
            reason: FormatError::BadField(field),
        };
        let (target, next) = relocation.target(Slot(slot)).ok_or_else(|| bad("target"))?;
        let trailer = replset.explain(replset.packs().trailer(target).await).await?;
        if trailer.slot(next).map(|info| info.id) != Some(*id) {
            return Err(bad("relocated block"));
        }
        (at, slot) = (*target, next.0);
    }
    Err(RepoError::DamagedEntry {
        reason: FormatError::BadField("target"),
    })
}

/// What a damaged snapshot is reported as.
pub(super) fn damaged_snapshot(replset: &ReplsetReader, e: &RepoError) -> Finding {
    Finding::DamagedSnapshot {
        snapshot: replset.snapshot().clone(),
        replset: replset.doc().name.clone(),
        reason: e.to_string(),
    }
}
