//! A snapshot of the repository as a tree: `/<replica set>/dbpath/<files…>`. The only file that sees the repository.
//!
//! Inode numbers are computed, so there is no table of them to grow: 1 is the root, each replica set takes two for
//! its two directories, then come the entries of the file lists, one after the other, by their number in the list.
//! Chunks of file lists, map nodes and trailers are fetched when first needed and kept in the repository's caches.

mod convert;

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use pbmfs_repo::error::{ErrorKind, RepoError};
use pbmfs_repo::files::{FileEntry, FileKind};
use pbmfs_repo::id::{PackNo, Slot};
use pbmfs_repo::map::{ExtentKind, PlacedExtent};
use pbmfs_repo::objects::SnapshotDoc;
use pbmfs_repo::{ReplsetReader, Repository, SnapshotReader};

use crate::error::{BlockError, FsError};
use crate::tree::{Attr, BlockKey, Blocks, Entry, Ino, Lifetime, NodeKind, Source, Span, Tree, Usage};
use convert::{attr_of, block_error, directory_name};

/// The directory of a replica set that holds its files.
const DBPATH: &str = "dbpath";

/// Trailers that are fetched at once for a range that many packs hold.
const TRAILERS_AT_ONCE: usize = 16;

/// A snapshot that can be mounted.
pub struct SnapshotTree {
    sets: Vec<Set>,
    /// The time of the directories that are ours.
    time: SystemTime,
    usage: Usage,
}

struct Set {
    name: OsString,
    reader: Arc<ReplsetReader>,
    /// Inode of the first entry of its file list.
    first: u64,
}

/// What an inode number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Set(usize),
    DbPath(usize),
    /// An entry of a set's file list.
    Entry(usize, u64),
}

impl SnapshotTree {
    /// Opens a snapshot. Two requests for each replica set; nothing else is read before it is asked for.
    ///
    /// # Errors
    /// The repository's: `Damaged…`, `Missing`, `Deleted`; the storage's.
    pub async fn open(repo: &Repository, doc: SnapshotDoc) -> Result<Self, RepoError> {
        Ok(Self::new(&SnapshotReader::open(repo, doc).await?))
    }

    /// The tree of an open snapshot.
    pub fn new(snapshot: &SnapshotReader) -> Self {
        let doc = snapshot.doc();
        let mut first = Ino::ROOT.0 + 1 + 2 * snapshot.replsets().len() as u64;
        let sets: Vec<Set> = snapshot
            .replsets()
            .iter()
            .map(|reader| {
                let set = Set {
                    name: directory_name(&reader.doc().name),
                    reader: reader.clone(),
                    first,
                };
                first += reader.files().len();
                set
            })
            .collect();
        let usage = Usage {
            bytes: doc.stats.bytes_total,
            nodes: first - Ino::ROOT.0,
        };
        Self {
            sets,
            time: doc.finished.into(),
            usage,
        }
    }

    fn place(&self, ino: Ino) -> Result<Place, FsError> {
        let n = ino.0.checked_sub(Ino::ROOT.0).ok_or(FsError::NotFound)?;
        if n == 0 {
            return Ok(Place::Root);
        }
        let directories = 2 * self.sets.len() as u64;
        if n <= directories {
            let set = ((n - 1) / 2) as usize;
            return Ok(if n % 2 == 1 {
                Place::Set(set)
            } else {
                Place::DbPath(set)
            });
        }
        let set = self.sets.partition_point(|set| set.first <= ino.0) - 1;
        let number = ino.0 - self.sets[set].first;
        if number < self.sets[set].reader.files().len() {
            Ok(Place::Entry(set, number))
        } else {
            Err(FsError::NotFound)
        }
    }

    fn ino(&self, place: Place) -> Ino {
        Ino(match place {
            Place::Root => Ino::ROOT.0,
            Place::Set(set) => Ino::ROOT.0 + 1 + 2 * set as u64,
            Place::DbPath(set) => Ino::ROOT.0 + 2 + 2 * set as u64,
            Place::Entry(set, number) => self.sets[set].first + number,
        })
    }

    async fn entry(&self, set: usize, number: u64) -> Result<FileEntry, FsError> {
        let reader = &self.sets[set].reader;
        let found = reader.explain(reader.files().get(number).await).await;
        found
            .map_err(|e| self.list_error(set, e))?
            .ok_or(FsError::NotFound)
    }

    /// The path within the file list of a directory, "" for `dbpath` itself.
    async fn list_path(&self, place: Place) -> Result<(usize, String), FsError> {
        match place {
            Place::DbPath(set) => Ok((set, String::new())),
            Place::Entry(set, number) => {
                let meta = self.entry(set, number).await?.meta;
                if meta.kind == FileKind::Directory {
                    Ok((set, meta.path))
                } else {
                    Err(FsError::NotADirectory)
                }
            }
            Place::Root | Place::Set(_) => Err(FsError::NotADirectory),
        }
    }

    async fn find(&self, set: usize, path: &str) -> Result<(u64, FileEntry), FsError> {
        let reader = &self.sets[set].reader;
        let found = reader.explain(reader.files().find(path).await).await;
        found
            .map_err(|e| self.list_error(set, e))?
            .ok_or(FsError::NotFound)
    }

    fn own_directory(&self, place: Place) -> Attr {
        let nlink = match place {
            Place::Root => 2 + self.sets.len() as u32,
            Place::Set(_) => 3,
            _ => 1,
        };
        Attr {
            ino: self.ino(place),
            kind: NodeKind::Directory,
            size: 0,
            allocated: 0,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: self.time,
            nlink,
            lifetime: Lifetime::Immutable,
        }
    }

    /// The directories that are not in a file list: their names and places.
    fn own_children(&self, place: Place) -> Vec<(&OsStr, Place)> {
        match place {
            Place::Root => self
                .sets
                .iter()
                .enumerate()
                .map(|(n, s)| (s.name.as_os_str(), Place::Set(n)))
                .collect(),
            Place::Set(set) => vec![(OsStr::new(DBPATH), Place::DbPath(set))],
            Place::DbPath(_) | Place::Entry(..) => Vec::new(),
        }
    }

    fn list_error(&self, set: usize, e: RepoError) -> FsError {
        block_error(e).at(&format!("the file list of {}", self.sets[set].name.display()), 0)
    }

    /// Where the trailers of a range's packs are not in memory, fetches several at once.
    async fn warm_trailers(&self, reader: &ReplsetReader, extents: &[PlacedExtent]) {
        let pack_of = |placed: &PlacedExtent| match placed.extent.kind {
            ExtentKind::Data { pack, .. } => Some(pack),
            ExtentKind::Hole | ExtentKind::Elided => None,
        };
        let mut packs: Vec<PackNo> = extents.iter().filter_map(pack_of).collect();
        packs.sort_unstable();
        packs.dedup();
        if packs.len() > 1 {
            // Failures show again, with their place, when the extents are looked at one by one.
            let fetches = stream::iter(packs).map(|pack| async move { drop(reader.trailer(pack).await) });
            fetches.buffer_unordered(TRAILERS_AT_ONCE).collect::<()>().await;
        }
    }

    /// One run, and if a block of it is damaged every block by itself, so that the others are not lost.
    async fn fetch_run(&self, set: usize, pack: PackNo, slots: Range<u32>) -> Vec<Result<Bytes, BlockError>> {
        let reader = &self.sets[set].reader;
        match reader.fetch(pack, slots.clone()).await {
            Ok(blocks) => blocks.into_iter().map(Ok).collect(),
            Err(e) if slots.len() > 1 && e.kind() == ErrorKind::Damaged => {
                let mut results = Vec::with_capacity(slots.len());
                for slot in slots {
                    let one = reader.fetch(pack, slot..slot + 1).await;
                    results.push(match one {
                        Ok(blocks) => blocks.into_iter().next().ok_or(BlockError::Short),
                        Err(e) => Err(self.damaged_block(reader, pack, slot, e).await),
                    });
                }
                results
            }
            Err(e) => {
                let e = self.damaged_block(reader, pack, slots.start, e).await;
                vec![Err(e); slots.len()]
            }
        }
    }

    /// Adds the block's id, which the trailer knows.
    async fn damaged_block(
        &self,
        reader: &ReplsetReader,
        pack: PackNo,
        slot: u32,
        e: RepoError,
    ) -> BlockError {
        let mut error = block_error(e);
        if let BlockError::Damaged { block, .. } = &mut error
            && let Ok(trailer) = reader.trailer(pack).await
            && let Some(info) = trailer.slot(Slot(slot))
        {
            *block = format!("{} (slot {slot})", info.id).into();
        }
        error
    }
}

#[async_trait]
impl Tree for SnapshotTree {
    async fn attr(&self, ino: Ino) -> Result<Attr, FsError> {
        match self.place(ino)? {
            Place::Entry(set, number) => Ok(attr_of(ino, &self.entry(set, number).await?.meta)),
            place => Ok(self.own_directory(place)),
        }
    }

    async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr, FsError> {
        let place = self.place(parent)?;
        if let Place::Root | Place::Set(_) = place {
            let children = self.own_children(place);
            let (_, child) = children
                .into_iter()
                .find(|(n, _)| *n == name)
                .ok_or(FsError::NotFound)?;
            return Ok(self.own_directory(child));
        }
        let (set, dir) = self.list_path(place).await?;
        // Stored paths are UTF-8, so another name is not there.
        let name = name
            .to_str()
            .filter(|n| !n.contains('/'))
            .ok_or(FsError::NotFound)?;
        let path = if dir.is_empty() {
            name.to_owned()
        } else {
            format!("{dir}/{name}")
        };
        let (number, entry) = self.find(set, &path).await?;
        Ok(attr_of(self.ino(Place::Entry(set, number)), &entry.meta))
    }

    async fn list(&self, dir: Ino, cookie: u64, most: usize) -> Result<Vec<Entry>, FsError> {
        let place = self.place(dir)?;
        if let Place::Root | Place::Set(_) = place {
            let children = self.own_children(place).into_iter().enumerate();
            let skip = usize::try_from(cookie).unwrap_or(usize::MAX);
            let entry = |(at, (name, place)): (usize, (&OsStr, Place))| Entry {
                cookie: at as u64 + 1,
                name: name.to_owned(),
                attr: self.own_directory(place),
            };
            return Ok(children.skip(skip).take(most).map(entry).collect());
        }
        let (set, path) = self.list_path(place).await?;
        let reader = &self.sets[set].reader;
        let files = reader.files();
        // A cookie is the number in the file list at which the search for the next child begins.
        let (mut entries, mut from) = (Vec::new(), cookie);
        let listing = async {
            while entries.len() < most {
                let Some((number, child)) = files.next_child(&path, from).await? else {
                    break;
                };
                from = match child.meta.kind {
                    FileKind::Regular => number + 1,
                    FileKind::Directory => files.position_behind(&child.meta.path).await?,
                };
                let name = child.meta.path.rsplit('/').next().unwrap_or_default();
                let attr = attr_of(self.ino(Place::Entry(set, number)), &child.meta);
                entries.push(Entry {
                    cookie: from,
                    name: name.into(),
                    attr,
                });
            }
            Ok(())
        };
        let listed = listing.await;
        reader
            .explain(listed)
            .await
            .map_err(|e| self.list_error(set, e))?;
        Ok(entries)
    }

    async fn parent(&self, dir: Ino) -> Result<Ino, FsError> {
        let parent = match self.place(dir)? {
            Place::Root | Place::Set(_) => Place::Root,
            Place::DbPath(set) => Place::Set(set),
            Place::Entry(set, number) => match self.entry(set, number).await?.meta.path.rsplit_once('/') {
                None => Place::DbPath(set),
                Some((above, _)) => Place::Entry(set, self.find(set, above).await?.0),
            },
        };
        Ok(self.ino(parent))
    }

    async fn path(&self, ino: Ino) -> String {
        let name = |set: usize| self.sets[set].name.to_string_lossy();
        match self.place(ino) {
            Ok(Place::Root) => String::new(),
            Ok(Place::Set(set)) => name(set).into_owned(),
            Ok(Place::DbPath(set)) => format!("{}/{DBPATH}", name(set)),
            Ok(Place::Entry(set, number)) => match self.entry(set, number).await {
                Ok(entry) => format!("{}/{DBPATH}/{}", name(set), entry.meta.path),
                Err(_) => format!("{}/{DBPATH}/entry {number}", name(set)),
            },
            Err(_) => format!("inode {}", ino.0),
        }
    }

    async fn usage(&self) -> Result<Usage, FsError> {
        Ok(self.usage)
    }
}

#[async_trait]
impl Blocks for SnapshotTree {
    async fn spans(&self, ino: Ino, range: Range<u64>) -> Result<Vec<Span>, FsError> {
        let Place::Entry(set, number) = self.place(ino)? else {
            return Err(FsError::IsADirectory);
        };
        let entry = self.entry(set, number).await?;
        let reader = &self.sets[set].reader;
        let damaged = |offset| {
            let path = format!("{}/{DBPATH}/{}", self.sets[set].name.display(), entry.meta.path);
            move |e| block_error(e).at(&path, offset)
        };
        let extents = reader.extents(&entry.root, entry.meta.size, range.clone()).await;
        let extents = extents.map_err(damaged(range.start))?;
        self.warm_trailers(reader, &extents).await;
        let mut spans = Vec::with_capacity(extents.len());
        for placed in &extents {
            if !matches!(placed.extent.kind, ExtentKind::Data { .. }) {
                spans.push(Span {
                    offset: placed.offset,
                    len: placed.extent.len,
                    source: Source::Hole,
                });
                continue;
            }
            for block in reader.spans(placed).await.map_err(damaged(placed.offset))? {
                let key = BlockKey {
                    pack: (set as u64) << 32 | u64::from(block.pack.0),
                    slot: block.slot,
                };
                spans.push(Span {
                    offset: block.offset,
                    len: u64::from(block.to - block.from),
                    source: Source::Block {
                        key,
                        skip: block.from,
                    },
                });
            }
        }
        Ok(spans)
    }

    async fn fetch(&self, run: Vec<BlockKey>) -> Vec<Result<Bytes, BlockError>> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return Vec::new();
        };
        let (set, pack) = ((first.pack >> 32) as usize, PackNo(first.pack as u32));
        self.fetch_run(set, pack, first.slot..last.slot + 1).await
    }
}
