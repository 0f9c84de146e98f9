//! Reading of snapshots: from a name to the bytes of a file.
//!
//! The path to a byte is snapshot → file list → map nodes → trailer → block; no index of the repository is needed.
//! A reader takes no lease (GC.md rule 8): when something is gone it looks at the snapshot again, and a tombstone
//! there means that the snapshot was deleted in the meantime.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{ErrorKind, FormatError, RepoError, Result};
use crate::files::{FileEntry, FileList};
use crate::id::{PackNo, Slot, SnapshotName};
use crate::map::{Extent, ExtentKind, MapReader, MapRoot, PlacedExtent};
use crate::objects::{Committed, ReplsetDoc, SnapshotDoc};
use crate::pack::{PackLoc, PackStore, Trailer};
use crate::repository::Repository;
use crate::table::PackTable;

/// An open snapshot.
#[derive(Debug)]
pub struct SnapshotReader {
    doc: Arc<SnapshotDoc>,
    replsets: Vec<Arc<ReplsetReader>>,
}

/// One replica set of an open snapshot. All methods may be called from many tasks at once.
#[derive(Debug)]
pub struct ReplsetReader {
    repo: Repository,
    snapshot: SnapshotName,
    doc: ReplsetDoc,
    packs: Arc<PackStore>,
    files: FileList,
    table: PackTable,
    maps: MapReader,
}

/// A block, or the part of one, that a file consists of at some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSpan {
    /// Number of the pack in the pack table.
    pub pack: PackNo,
    /// The block's slot.
    pub slot: u32,
    /// Where in the file the wanted part begins.
    pub offset: u64,
    /// First wanted byte of the plain block.
    pub from: u32,
    /// Behind the last wanted byte of the plain block.
    pub to: u32,
    /// Length of the whole plain block.
    pub plain_len: u32,
}

impl SnapshotReader {
    /// Opens a snapshot. Two requests for each replica set.
    ///
    /// # Errors
    /// `Damaged`, `DamagedBlock`, `Missing`; the storage's.
    pub async fn open(repo: &Repository, doc: SnapshotDoc) -> Result<Self> {
        let mut replsets = Vec::new();
        for replset in &doc.replsets {
            replsets.push(Arc::new(
                ReplsetReader::open(repo, &doc.name, replset.clone()).await?,
            ));
        }
        Ok(Self {
            doc: Arc::new(doc),
            replsets,
        })
    }

    /// What `snapshot.json` says.
    pub fn doc(&self) -> &Arc<SnapshotDoc> {
        &self.doc
    }

    /// Its replica sets, as `snapshot.json` orders them.
    pub fn replsets(&self) -> &[Arc<ReplsetReader>] {
        &self.replsets
    }
}

impl ReplsetReader {
    pub(crate) async fn open(repo: &Repository, snapshot: &SnapshotName, doc: ReplsetDoc) -> Result<Self> {
        let packs = repo.packs().clone();
        let opened = async {
            let files = FileList::open(packs.clone(), doc.file_list, repo.cache()).await?;
            let table = PackTable::open(packs.clone(), doc.pack_table).await?;
            Ok((files, table))
        };
        let (files, table) = explain(repo, snapshot, opened.await).await?;
        let maps = MapReader::new(packs.clone(), repo.cache());
        Ok(Self {
            repo: repo.clone(),
            snapshot: snapshot.clone(),
            doc,
            packs,
            files,
            table,
            maps,
        })
    }

    /// What `snapshot.json` says of it.
    pub fn doc(&self) -> &ReplsetDoc {
        &self.doc
    }

    /// The name of the snapshot.
    pub fn snapshot(&self) -> &SnapshotName {
        &self.snapshot
    }

    /// Its packs. Wrap errors with [`ReplsetReader::explain`].
    pub fn packs(&self) -> &Arc<PackStore> {
        &self.packs
    }

    /// Its file list. Wrap its errors with [`ReplsetReader::explain`].
    pub fn files(&self) -> &FileList {
        &self.files
    }

    /// Its pack table. Wrap its errors with [`ReplsetReader::explain`].
    pub fn table(&self) -> &PackTable {
        &self.table
    }

    /// Its maps. Wrap its errors with [`ReplsetReader::explain`].
    pub fn maps(&self) -> &MapReader {
        &self.maps
    }

    /// Turns what is missing or damaged into `Deleted` if the snapshot was deleted meanwhile.
    ///
    /// # Errors
    /// The error of `result`, perhaps explained.
    pub async fn explain<T>(&self, result: Result<T>) -> Result<T> {
        explain(&self.repo, &self.snapshot, result).await
    }

    /// The extents of `range` of a file, cut to it, without gaps.
    ///
    /// # Errors
    /// As [`MapReader::extents`]; `Deleted`.
    pub async fn extents(&self, root: &MapRoot, size: u64, range: Range<u64>) -> Result<Vec<PlacedExtent>> {
        self.explain(self.maps.extents(root, size, range).await).await
    }

    /// The pack with a number of the pack table.
    ///
    /// # Errors
    /// As [`PackTable::get`]; `Deleted`.
    pub async fn pack(&self, number: PackNo) -> Result<PackLoc> {
        self.explain(self.table.get(number).await.map(|e| e.loc)).await
    }

    /// The trailer of a pack.
    ///
    /// # Errors
    /// As [`PackStore::trailer`]; `Deleted`.
    pub async fn trailer(&self, number: PackNo) -> Result<Arc<Trailer>> {
        let loc = self.pack(number).await?;
        self.explain(self.packs.trailer(&loc).await).await
    }

    /// The blocks of which an extent consists, in order; none for a hole. Needs the pack's trailer.
    ///
    /// # Errors
    /// As [`ReplsetReader::trailer`]; `DamagedEntry` if the extent does not fit its run.
    pub async fn spans(&self, placed: &PlacedExtent) -> Result<Vec<BlockSpan>> {
        match placed.extent.kind {
            ExtentKind::Hole | ExtentKind::Elided => Ok(Vec::new()),
            ExtentKind::Data { pack, .. } => {
                let trailer = self.trailer(pack).await?;
                spans_of(placed.offset, &placed.extent, &trailer)
            }
        }
    }

    /// The plain bytes of neighbouring slots, verified. One request.
    ///
    /// # Errors
    /// As [`PackStore::read_slots`]; `Deleted`.
    pub async fn fetch(&self, number: PackNo, slots: Range<u32>) -> Result<Vec<Bytes>> {
        let loc = self.pack(number).await?;
        self.explain(self.packs.read_slots(&loc, slots).await).await
    }

    /// Reads up to `len` bytes of a file from `offset` on; fewer only at its end. For tools and tests: a mount or a
    /// restore keeps blocks and reads runs.
    ///
    /// # Errors
    /// As [`ReplsetReader::extents`] and [`ReplsetReader::fetch`].
    pub async fn read(&self, entry: &FileEntry, offset: u64, len: u64) -> Result<Vec<u8>> {
        let size = entry.meta.size;
        let range = offset.min(size)..offset.saturating_add(len).min(size);
        let mut out = vec![0u8; (range.end - range.start) as usize];
        for placed in self.extents(&entry.root, size, range.clone()).await? {
            for run in runs(&self.spans(&placed).await?) {
                let blocks = self
                    .fetch(run[0].pack, run[0].slot..run[run.len() - 1].slot + 1)
                    .await?;
                for (span, block) in run.iter().zip(&blocks) {
                    let at = (span.offset - range.start) as usize;
                    let part = &block[span.from as usize..span.to as usize];
                    out[at..at + part.len()].copy_from_slice(part);
                }
            }
        }
        Ok(out)
    }
}

/// The blocks that an extent at `offset` consists of, told by its pack's trailer.
///
/// # Errors
/// `DamagedEntry` if the run is not in the pack or is shorter than the extent says.
pub fn spans_of(offset: u64, extent: &Extent, trailer: &Trailer) -> Result<Vec<BlockSpan>> {
    let ExtentKind::Data {
        pack,
        first,
        count,
        skip,
    } = extent.kind
    else {
        return Ok(Vec::new());
    };
    let bad = |field| RepoError::DamagedEntry {
        reason: FormatError::BadField(field),
    };
    let run = trailer
        .slots()
        .get(first as usize..first as usize + count as usize)
        .ok_or(bad("slot count"))?;
    let (mut before, mut left) = (skip, extent.len);
    let mut at = offset;
    let mut out = Vec::new();
    for (slot, info) in (first..).zip(run) {
        let plain_len = u64::from(info.plain_len);
        if before >= plain_len {
            before -= plain_len;
            continue;
        }
        let take = left.min(plain_len - before);
        let (from, to) = (before as u32, (before + take) as u32);
        out.push(BlockSpan {
            pack,
            slot,
            offset: at,
            from,
            to,
            plain_len: info.plain_len,
        });
        at += take;
        left -= take;
        before = 0;
        if left == 0 {
            return Ok(out);
        }
    }
    Err(bad("extent length"))
}

/// The slots whose bytes an extent has: of its run only those that it reaches into.
///
/// # Errors
/// As [`spans_of`].
pub fn slots_of(extent: &Extent, trailer: &Trailer) -> Result<Range<u32>> {
    let ExtentKind::Data {
        first, count, skip, ..
    } = extent.kind
    else {
        return Ok(0..0);
    };
    let bad = |field| RepoError::DamagedEntry {
        reason: FormatError::BadField(field),
    };
    let run = trailer
        .slots()
        .get(first as usize..first as usize + count as usize)
        .ok_or(bad("slot count"))?;
    let end = skip.checked_add(extent.len).ok_or(bad("extent length"))?;
    let (mut at, mut from) = (0u64, first);
    for (slot, info) in (first..).zip(run) {
        at += u64::from(info.plain_len);
        if at <= skip {
            from = slot + 1;
        }
        if at >= end {
            return Ok(from..slot + 1);
        }
    }
    Err(bad("extent length"))
}

/// Cuts spans into groups of neighbouring slots, each of which one request fetches.
pub fn runs(spans: &[BlockSpan]) -> impl Iterator<Item = &[BlockSpan]> {
    spans.chunk_by(|a, b| a.pack == b.pack && a.slot + 1 == b.slot)
}

/// The byte offset of a slot's neighbourhood in its pack, for reads that take several runs at once.
pub fn packed_range(trailer: &Trailer, slots: Range<u32>) -> Option<Range<u32>> {
    Some(trailer.offset(Slot(slots.start))?..trailer.offset(Slot(slots.end))?)
}

async fn explain<T>(repo: &Repository, name: &SnapshotName, result: Result<T>) -> Result<T> {
    match result {
        // Not only what is missing: a relocation of a pack that other snapshots still use tells of their slots alone.
        Err(e) if e.kind() == ErrorKind::Damaged => match repo.committed(name).await {
            Ok(Some(Committed::Tombstone(_))) => Err(RepoError::Deleted(name.clone())),
            _ => Err(e),
        },
        other => other,
    }
}
