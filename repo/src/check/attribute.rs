//! Which files of which snapshots damage hits.

use super::objects::Facts;
use super::walk::{Located, blocks_of, damaged_snapshot};
use super::{CheckReport, Finding, is_damage};
use crate::error::{RepoError, Result};
use crate::files::FileEntry;
use crate::ingest::Cancel;
use crate::map::{ExtentKind, MapRoot, Node, PlacedExtent, slice};
use crate::pack::PackLoc;
use crate::reader::{ReplsetReader, SnapshotReader};
use crate::repository::Repository;

pub(super) async fn attribute(
    repo: &Repository,
    facts: &Facts,
    cancel: &Cancel,
    report: &mut CheckReport,
) -> Result<()> {
    for doc in &facts.snapshots {
        let reader = match SnapshotReader::open(repo, doc.clone()).await {
            Ok(reader) => reader,
            Err(RepoError::Deleted(_)) => continue,
            Err(e) if is_damage(&e) => {
                let replset = doc.replsets.first().map(|r| r.name.clone()).unwrap_or_default();
                report.add(Finding::DamagedSnapshot {
                    snapshot: doc.name.clone(),
                    replset,
                    reason: e.to_string(),
                });
                continue;
            }
            Err(e) => return Err(e),
        };
        for replset in reader.replsets() {
            for number in 0..replset.files().len() {
                cancel.check()?;
                match replset.explain(replset.files().get(number).await).await {
                    Ok(Some(entry)) => file(replset, facts, &entry, report).await?,
                    Ok(None) | Err(RepoError::Deleted(_)) => break,
                    // One finding for the snapshot; other chunks of the list may be sound.
                    Err(e) if is_damage(&e) => report.add(damaged_snapshot(replset, &e)),
                    Err(e) => return Err(e),
                }
            }
        }
    }
    Ok(())
}

async fn file(
    replset: &ReplsetReader,
    facts: &Facts,
    entry: &FileEntry,
    report: &mut CheckReport,
) -> Result<()> {
    let size = entry.meta.size;
    let MapRoot::Node { place, level } = &entry.root else {
        let extents = if size == 0 {
            Vec::new()
        } else {
            match replset.extents(&entry.root, size, 0..size).await {
                Ok(extents) => extents,
                Err(RepoError::Deleted(_)) => return Ok(()),
                Err(e) if is_damage(&e) => {
                    report.add(hit(replset, entry, 0, size, None, None, e.to_string()));
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        };
        for placed in &extents {
            extent(replset, facts, entry, placed, report).await?;
        }
        return Ok(());
    };
    // Leaf by leaf: the extents of a large file are many.
    let mut open = vec![(*place, *level, 0u64, size)];
    while let Some((place, level, start, span)) = open.pop() {
        let node = replset.maps().node(&place, level, span).await;
        let node = match replset.explain(node).await {
            Ok(node) => node,
            Err(RepoError::Deleted(_)) => return Ok(()),
            Err(e) if is_damage(&e) => {
                report.add(hit(replset, entry, start, span, None, None, e.to_string()));
                continue;
            }
            Err(e) => return Err(e),
        };
        match &*node {
            Node::Leaf(leaf) => {
                for placed in slice(leaf, start, start, start + span) {
                    extent(replset, facts, entry, &placed, report).await?;
                }
            }
            Node::Inner { level, children } => {
                // The first child is taken first.
                let mut at = start + span;
                for child in children.iter().rev() {
                    at -= child.span;
                    open.push((child.place, level - 1, at, child.span));
                }
            }
        }
    }
    Ok(())
}

async fn extent(
    replset: &ReplsetReader,
    facts: &Facts,
    entry: &FileEntry,
    placed: &PlacedExtent,
    report: &mut CheckReport,
) -> Result<()> {
    let ExtentKind::Data { pack, first, .. } = placed.extent.kind else {
        return Ok(());
    };
    let (offset, len) = (placed.offset, placed.extent.len);
    let found = match replset.pack(pack).await {
        Err(e) => Err((None, e)),
        Ok(loc) => blocks_of(replset, facts, &loc, offset, &placed.extent)
            .await
            .map_err(|e| (Some(loc), e)),
    };
    match found {
        Ok(blocks) => blocks
            .iter()
            .for_each(|b| block(replset, facts, entry, b, report)),
        Err((loc, e)) if is_damage(&e) => {
            report.add(hit(
                replset,
                entry,
                offset,
                len,
                loc.map(|l| (l, first)),
                None,
                e.to_string(),
            ));
        }
        Err((_, RepoError::Deleted(_))) => {}
        Err((_, e)) => return Err(e),
    }
    Ok(())
}

fn block(replset: &ReplsetReader, facts: &Facts, entry: &FileEntry, b: &Located, report: &mut CheckReport) {
    let (pack, slot) = b.at;
    let reason = match facts.packs.get(&pack) {
        Some(None) => Some("the pack is damaged".to_owned()),
        _ => facts
            .bad_blocks
            .get(&pack)
            .and_then(|bad| bad.get(&slot))
            .cloned(),
    };
    if let Some(reason) = reason {
        let len = u64::from(b.span.to - b.span.from);
        let loc = PackLoc {
            id: pack,
            trailer_offset: 0,
            trailer_len: 0,
        };
        report.add(hit(
            replset,
            entry,
            b.span.offset,
            len,
            Some((loc, slot)),
            Some(b.id),
            reason,
        ));
    }
}

fn hit(
    replset: &ReplsetReader,
    entry: &FileEntry,
    offset: u64,
    len: u64,
    at: Option<(PackLoc, u32)>,
    block: Option<crate::id::BlockId>,
    reason: String,
) -> Finding {
    Finding::DamagedFile {
        snapshot: replset.snapshot().clone(),
        replset: replset.doc().name.clone(),
        path: entry.meta.path.clone(),
        offset,
        len,
        pack: at.map(|(loc, _)| loc.id),
        slot: at.map(|(_, slot)| slot),
        block,
        reason,
    }
}
