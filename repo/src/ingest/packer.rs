//! The end of a pipeline: blocks in file order go into packs, runs of slots into maps, and at last the file list and
//! the pack table are written.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::error::{RepoError, Result};
use crate::files::{FileEntry, FileKind, FileMeta, write_list};
use crate::id::{BlockId, PackId, PackNo, Randomness};
use crate::index::{IdHasher, KnownBlocks};
use crate::ingest::stages::{Done, Item};
use crate::ingest::{IngestOptions, Ingested, Job, Progress};
use crate::map::{Edit, Extent, ExtentKind, MapRoot, MapWriter, PendingRoot, PlacedExtent};
use crate::objects::SnapshotStats;
use crate::pack::{Owner, PackBuilder, PackKind, PackSink, SealedPack, put_pack};
use crate::reader::ReplsetReader;
use crate::session::Session;
use crate::storage::Storage;
use crate::table::{TableBuilder, TableEntry};

/// Blocks of packs that are not put yet, and so not in the index.
type OwnBlocks = HashMap<BlockId, (PackNo, u32), BuildHasherDefault<IdHasher>>;

/// Fills packs and writes maps.
pub(crate) struct Packer {
    storage: Arc<dyn Storage>,
    randomness: Arc<dyn Randomness>,
    owner: Owner,
    options: IngestOptions,
    allowed: Arc<HashMap<PackId, u64>>,
    /// Data packs of the parent's table to which nobody may refer any more.
    forbidden: Arc<HashSet<PackNo>>,
    known: Arc<dyn KnownBlocks>,
    progress: Arc<dyn Progress>,
    parent: Option<Arc<ReplsetReader>>,
    /// Whether the parent's maps may be changed; otherwise every map is written anew, because a pack that holds
    /// nodes of theirs may not be referred to.
    inherit_maps: bool,
    /// The parent's table, if its maps and so its numbers are not taken over.
    renumbered: Option<Vec<TableEntry>>,
    table: TableBuilder,
    maps: MapWriter,
    own: OwnBlocks,
    current: Option<(PackNo, PackBuilder)>,
    spare: Vec<Vec<u8>>,
    uploads: JoinSet<Result<(PackNo, SealedPack)>>,
    file: Option<OpenFile>,
    entries: Vec<(FileMeta, PendingRoot)>,
    stats: SnapshotStats,
}

/// The file whose blocks arrive.
struct OpenFile {
    meta: FileMeta,
    old_root: MapRoot,
    old_len: u64,
    offset: u64,
    /// End of the last edit that took over the parent's extents, which need not be whole blocks.
    kept: u64,
    edits: Vec<Edit>,
}

impl OpenFile {
    /// The next `extent.len` bytes are these: a whole block or a hole.
    fn changed(&mut self, extent: Extent) {
        let goes_on = |edit: &Edit| edit.end() == self.offset && edit.end() != self.kept;
        if !self.edits.last().is_some_and(goes_on) {
            self.edits.push(Edit::at(self.offset));
        }
        if let Some(edit) = self.edits.last_mut() {
            edit.push_block(extent);
        }
        self.offset += extent.len;
    }
}

impl Packer {
    /// Everything that needs the storage before the first byte is read.
    pub async fn prepare(session: &Session, job: &Job) -> Result<Self> {
        let repo = session.repo();
        let allowed = session.allowed().clone();
        let mut inherit_maps = true;
        let mut renumbered = None;
        let mut forbidden = HashSet::new();
        let table = match &job.parent {
            None => TableBuilder::default(),
            Some(parent) => {
                let table = parent.table();
                let entries = parent.explain(table.all().await).await?;
                // GC.md rule 4 for inherited data: what is in such a pack is read, whether it changed or not.
                let gone = |e: &&TableEntry| e.kind == PackKind::Data && !allowed.contains_key(&e.loc.id);
                forbidden.extend(
                    (0..)
                        .map(PackNo)
                        .zip(&entries)
                        .filter(|(_, e)| gone(e))
                        .map(|(no, _)| no),
                );
                // And for inherited nodes.
                inherit_maps = entries
                    .iter()
                    .all(|e| e.kind != PackKind::Map || allowed.contains_key(&e.loc.id));
                if inherit_maps {
                    parent.explain(TableBuilder::inherit(table).await).await?
                } else {
                    // A new table, without the packs that are gone: the next snapshot can inherit from this one.
                    renumbered = Some(entries);
                    TableBuilder::default()
                }
            }
        };
        let owner = Owner::Lease(session.lease());
        let sink = PackSink::new(
            repo.storage().clone(),
            repo.randomness().clone(),
            owner,
            job.options.level,
        )
        .map_err(|e| RepoError::Poisoned(format!("zstd: {e}")))?;
        Ok(Self {
            storage: repo.storage().clone(),
            randomness: repo.randomness().clone(),
            owner,
            options: job.options,
            allowed,
            forbidden: Arc::new(forbidden),
            known: job.known.clone(),
            progress: job.progress.clone(),
            parent: job.parent.clone(),
            inherit_maps,
            renumbered,
            table,
            maps: MapWriter::new(sink, job.options.map),
            own: OwnBlocks::default(),
            current: None,
            spare: Vec::new(),
            uploads: JoinSet::new(),
            file: None,
            entries: Vec::with_capacity(job.files.len()),
            stats: SnapshotStats::default(),
        })
    }

    /// Packs that may be referred to.
    pub fn allowed(&self) -> &Arc<HashMap<PackId, u64>> {
        &self.allowed
    }

    /// Packs of the parent that hold data and may not be referred to.
    pub fn forbidden(&self) -> &Arc<HashSet<PackNo>> {
        &self.forbidden
    }

    /// Whether the parent's maps may be changed where files differ.
    pub fn inherits_maps(&self) -> bool {
        self.inherit_maps
    }

    /// Packs that are put at the same time: together with the one that is filled, at most half the memory.
    fn max_uploads(&self) -> usize {
        (self.options.memory / 2 / self.options.pack_size).clamp(2, 5) as usize - 1
    }

    /// What packs leave of the memory for segments; at least four of them.
    pub fn segment_budget(&self) -> u64 {
        let packs = (self.max_uploads() as u64 + 1) * self.options.pack_size;
        self.options
            .memory
            .saturating_sub(packs + packs / 8)
            .max(16 << 20)
    }

    pub fn begin_file(&mut self, meta: FileMeta, parent: Option<FileEntry>) {
        let (old_root, old_len) = match parent {
            Some(entry) if self.inherit_maps => (entry.root, entry.meta.size),
            _ => (MapRoot::Empty, 0),
        };
        self.stats.files += u64::from(meta.kind == FileKind::Regular);
        self.stats.bytes_total += meta.size;
        self.file = Some(OpenFile {
            meta,
            old_root,
            old_len,
            offset: 0,
            kept: 0,
            edits: Vec::new(),
        });
    }

    /// The next `len` bytes are as the parent has them. `extents` are the parent's, if its maps cannot be inherited.
    pub fn keep(&mut self, len: u64, extents: &[PlacedExtent]) -> Result<()> {
        let file = self
            .file
            .as_mut()
            .ok_or_else(|| RepoError::Poisoned("an unread range without file".into()))?;
        self.stats.bytes_referenced += len;
        if self.inherit_maps {
            file.offset += len;
            return Ok(());
        }
        let mut edit = Edit::at(file.offset);
        for placed in extents {
            let mut extent = placed.extent;
            if let ExtentKind::Data { pack, .. } = &mut extent.kind {
                let entry = self.renumbered.as_ref().and_then(|e| e.get(pack.0 as usize));
                let entry = entry.ok_or_else(|| RepoError::Poisoned("an extent without pack".into()))?;
                *pack = self.table.number(*entry);
            }
            edit.push(extent);
        }
        file.offset += len;
        if edit.end() != file.offset {
            return Err(RepoError::Poisoned("an unread range with a gap".into()));
        }
        file.kept = file.offset;
        file.edits.push(edit);
        Ok(())
    }

    pub async fn segment(&mut self, done: &Done) -> Result<()> {
        let mut file = self
            .file
            .take()
            .ok_or_else(|| RepoError::Poisoned("a segment without file".into()))?;
        let inherits = file.old_root != MapRoot::Empty;
        let start = file.offset;
        for item in &done.items {
            self.stats.blocks_read += 1;
            match item {
                Item::Hole { len, same: true } if inherits => file.offset += u64::from(*len),
                Item::Same { len, .. } if inherits => file.offset += u64::from(*len),
                Item::Hole { len, .. } => file.changed(Extent::hole((*len).into())),
                Item::Same { len, pack, slot } => {
                    let entry = self.renumbered.as_ref().and_then(|e| e.get(pack.0 as usize));
                    let pack = entry.map_or(*pack, |entry| self.table.number(*entry));
                    file.changed(Extent::data((*len).into(), pack, *slot, 1));
                }
                Item::Known { len, found } => {
                    let pack = self.table.number(TableEntry {
                        loc: found.pack,
                        kind: PackKind::Data,
                    });
                    file.changed(Extent::data((*len).into(), pack, found.slot, 1));
                }
                Item::New { info, packed } => {
                    let (pack, slot) = match self.own.get(&info.id) {
                        Some(own) => *own,
                        // Put by this pipeline since the worker looked.
                        None => match self.known.lookup(&info.id) {
                            Some(f) => {
                                let entry = TableEntry {
                                    loc: f.pack,
                                    kind: PackKind::Data,
                                };
                                (self.table.number(entry), f.slot)
                            }
                            None => {
                                self.stats.blocks_new += 1;
                                self.stats.bytes_new += u64::from(info.plain_len);
                                self.store(*info, &done.packed[packed.clone()]).await?
                            }
                        },
                    };
                    file.changed(Extent::data(info.plain_len.into(), pack, slot, 1));
                }
            }
        }
        let bytes = file.offset - start;
        self.stats.bytes_read += bytes;
        self.progress.bytes(bytes);
        self.file = Some(file);
        Ok(())
    }

    pub async fn end_file(&mut self) -> Result<()> {
        let file = self
            .file
            .take()
            .ok_or_else(|| RepoError::Poisoned("an end without file".into()))?;
        let new_len = if file.meta.kind == FileKind::Directory {
            0
        } else {
            file.meta.size
        };
        if file.offset != new_len {
            return Err(RepoError::Poisoned(format!(
                "{} was not packed to its end",
                file.meta.path
            )));
        }
        let root = match &self.parent {
            Some(parent) => {
                let applied = self
                    .maps
                    .apply(parent.maps(), &file.old_root, file.old_len, new_len, &file.edits)
                    .await;
                parent.explain(applied).await?
            }
            None => self.maps.build(file.edits.iter().flat_map(Edit::extents)).await?,
        };
        self.progress.file(&file.meta.path);
        self.entries.push((file.meta, root));
        Ok(())
    }

    /// Adds a new block to the pack that is being filled.
    async fn store(&mut self, info: crate::pack::BlockInfo, packed: &[u8]) -> Result<(PackNo, u32)> {
        let full = |b: &PackBuilder| {
            !b.has_room() || !b.is_empty() && (b.len() + packed.len()) as u64 > self.options.pack_size
        };
        if self.current.as_ref().is_some_and(|(_, b)| full(b)) {
            self.ship().await?;
        }
        let (number, builder) = match &mut self.current {
            Some(current) => current,
            None => {
                let buf = self
                    .spare
                    .pop()
                    .unwrap_or_else(|| Vec::with_capacity(self.options.pack_size as usize + (512 << 10)));
                let builder = PackBuilder::new(PackKind::Data, self.owner, buf);
                self.current.insert((self.table.reserve(), builder))
            }
        };
        let (slot, _) = builder.push(info, packed);
        self.own.insert(info.id, (*number, slot.0));
        Ok((*number, slot.0))
    }

    /// Sends the filled pack on its way; waits while too many are.
    async fn ship(&mut self) -> Result<()> {
        let Some((number, builder)) = self.current.take() else {
            return Ok(());
        };
        while self.uploads.len() >= self.max_uploads() {
            self.landed().await?;
        }
        let (storage, randomness) = (self.storage.clone(), self.randomness.clone());
        self.uploads
            .spawn(async move { Ok((number, put_pack(&*storage, &*randomness, builder).await?)) });
        Ok(())
    }

    /// Waits for one pack to be put.
    async fn landed(&mut self) -> Result<()> {
        let Some(joined) = self.uploads.join_next().await else {
            return Ok(());
        };
        let (number, sealed) = joined.map_err(|e| RepoError::Poisoned(e.to_string()))??;
        let SealedPack { loc, trailer, object } = sealed;
        let stored = object.len() as u64;
        self.stats.bytes_stored_data += stored;
        self.progress.stored(stored);
        self.table.set(
            number,
            TableEntry {
                loc,
                kind: PackKind::Data,
            },
        );
        self.known.learn(&loc, &trailer);
        for info in trailer.slots() {
            self.own.remove(&info.id);
        }
        self.spare.push(Vec::from(object));
        Ok(())
    }

    /// Stops all uploads; what landed is garbage.
    pub async fn abort(mut self) {
        self.uploads.shutdown().await;
    }

    /// Puts what is pending, then the maps' last nodes, the file list and the pack table.
    pub async fn finish(mut self) -> Result<Ingested> {
        self.ship().await?;
        while !self.uploads.is_empty() {
            self.landed().await?;
        }
        self.spare.clear();
        self.maps.sink().flush().await?;
        for loc in self.maps.sink_ref().packs().to_vec() {
            self.table.number(TableEntry {
                loc,
                kind: PackKind::Map,
            });
        }
        let entries = self
            .entries
            .into_iter()
            .map(|(meta, root)| {
                Ok(FileEntry {
                    root: self.maps.resolve(&root)?,
                    meta,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let allowed = |id: &PackId| self.allowed.contains_key(id);
        let old = self.parent.as_ref().map(|p| p.files());
        let sink = self.maps.sink();
        let list = write_list(sink, &entries, old, allowed).await?;
        let table = self.table.write(sink, allowed).await?;
        sink.flush().await?;
        let (file_list, pack_table) = (list.resolve(sink)?, table.resolve(sink)?);
        self.stats.bytes_stored_map = sink.stored_bytes();
        self.progress.stored(sink.stored_bytes());
        Ok(Ingested {
            file_list,
            pack_table,
            stats: self.stats,
        })
    }
}
