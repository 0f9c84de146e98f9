//! The file list of a replica set: every directory and file of a snapshot, sorted by path (`docs/format.md` §7).
//!
//! Paths are compared component by component, so that what lies in a directory stands right behind it. The list is
//! cut into chunks where the hash of a path says so: a file that comes or goes changes one chunk, and the others are
//! shared with the parent snapshot.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::error::{FormatError, RepoError, Result};
use crate::id::{BlockId, PackId};
use crate::map::{INLINE_MAX, MapRoot, Node};
use crate::pack::{PackSink, PackStore, Place, RootPlace};
use crate::wire::{Reader, Writer};

/// Longest path that is stored.
pub const MAX_PATH: usize = 4096;
/// A chunk is closed at this size in any case.
const CHUNK_BYTES: usize = 64 << 10;
/// A chunk is not closed before it has this many entries.
const CHUNK_MIN: usize = 16;
/// One path in so many closes a chunk.
const CHUNK_ONE_IN: u64 = 256;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
}

/// What is kept of a file or directory besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMeta {
    /// Path relative to the root of the backup, `/`-separated.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, as `chmod` takes them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Length in bytes; 0 for a directory.
    pub size: u64,
}

impl FileMeta {
    /// Whether a file list can hold it: permission bits alone, less than a second of nanoseconds, no directory with
    /// bytes.
    pub(crate) fn is_sound(&self) -> bool {
        self.mode <= 0o7777
            && self.mtime.1 < 1_000_000_000
            && (self.kind == FileKind::Regular || self.size == 0)
    }
}

/// An entry of a file list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// What is kept besides the bytes.
    pub meta: FileMeta,
    /// Where its map begins.
    pub root: MapRoot,
}

/// The order of a file list: by components, so `a` < `a/b` < `a.b`.
pub fn path_order(a: &str, b: &str) -> Ordering {
    a.split('/').cmp(b.split('/'))
}

/// Whether a path can stand in a file list: relative, no empty, `.` or `..` component, no NUL, not too long.
pub fn is_sound_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= MAX_PATH
        && !path.contains('\0')
        && path.split('/').all(|c| !c.is_empty() && c != "." && c != "..")
}

fn encode_entry(w: &mut Writer, previous: &str, entry: &FileEntry) {
    let meta = &entry.meta;
    let shared = meta
        .path
        .bytes()
        .zip(previous.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    w.varint(shared as u64);
    w.string(&meta.path.as_bytes()[shared..]);
    w.u8(match meta.kind {
        FileKind::Regular => 0,
        FileKind::Directory => 1,
    });
    w.varint(meta.mode.into());
    w.varint(meta.uid.into());
    w.varint(meta.gid.into());
    w.zigzag(meta.mtime.0);
    w.varint(meta.mtime.1.into());
    w.varint(meta.size);
    match &entry.root {
        MapRoot::Empty => w.u8(0),
        MapRoot::Inline(bytes) => {
            w.u8(1);
            w.string(bytes);
        }
        MapRoot::Node { place, level } => {
            w.u8(2);
            w.u8(*level);
            place.encode(w);
        }
    }
}

fn decode_entry(r: &mut Reader<'_>, previous: &str, own: &PackId) -> Result<FileEntry, FormatError> {
    let bad = FormatError::BadField;
    let shared = usize::try_from(r.varint()?).map_err(|_| bad("path"))?;
    let mut path = previous.as_bytes().get(..shared).ok_or(bad("path"))?.to_vec();
    path.extend_from_slice(r.string()?);
    let path = String::from_utf8(path).map_err(|_| bad("path"))?;
    if !is_sound_path(&path) {
        return Err(bad("path"));
    }
    let kind = match r.u8()? {
        0 => FileKind::Regular,
        1 => FileKind::Directory,
        _ => return Err(bad("file kind")),
    };
    let (mode, uid, gid) = (r.varint32()?, r.varint32()?, r.varint32()?);
    let mtime = (r.zigzag()?, r.varint32()?);
    let size = r.varint()?;
    let root = match r.u8()? {
        0 => MapRoot::Empty,
        1 => {
            let bytes = r.string()?;
            if bytes.len() > INLINE_MAX {
                return Err(bad("inline map"));
            }
            let node = Node::decode(bytes, own)?;
            if node.level() != 0 || node.span() != Some(size) {
                return Err(bad("inline map"));
            }
            MapRoot::Inline(bytes.to_vec())
        }
        2 => {
            let level = r.u8()?;
            MapRoot::Node {
                place: Place::decode(r, own)?,
                level,
            }
        }
        _ => return Err(bad("map root")),
    };
    if (root == MapRoot::Empty) != (size == 0) {
        return Err(bad("file size"));
    }
    let meta = FileMeta {
        path,
        kind,
        mode,
        uid,
        gid,
        mtime,
        size,
    };
    if !meta.is_sound() {
        return Err(bad("mode, mtime or size"));
    }
    Ok(FileEntry { meta, root })
}

fn decode_chunk(bytes: &[u8], count: usize, own: &PackId) -> Result<Vec<FileEntry>, FormatError> {
    let mut r = Reader::new(bytes);
    let mut entries: Vec<FileEntry> = Vec::with_capacity(count.min(bytes.len() / 8));
    for _ in 0..count {
        let previous = entries.last().map_or("", |e| e.meta.path.as_str());
        let entry = decode_entry(&mut r, previous, own)?;
        if !entries.is_empty() && path_order(previous, &entry.meta.path) != Ordering::Less {
            return Err(FormatError::BadField("order of paths"));
        }
        entries.push(entry);
    }
    r.end()?;
    Ok(entries)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ChunkRef {
    first_path: String,
    count: u32,
    place: Place,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Root {
    chunks: Vec<ChunkRef>,
}

impl Root {
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.varint(self.chunks.len() as u64);
        for chunk in &self.chunks {
            w.string(chunk.first_path.as_bytes());
            w.varint(chunk.count.into());
            chunk.place.encode(&mut w);
        }
        w.into_vec()
    }

    fn decode(bytes: &[u8], own: &PackId) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let n = r.count(Place::LEN + 2)?;
        let mut chunks: Vec<ChunkRef> = Vec::with_capacity(n);
        for _ in 0..n {
            let first = std::str::from_utf8(r.string()?).map_err(|_| FormatError::BadField("path"))?;
            let count = r.varint32()?;
            if count == 0 || count as usize > CHUNK_BYTES {
                return Err(FormatError::BadField("file count"));
            }
            let sorted = chunks
                .last()
                .is_none_or(|c| path_order(&c.first_path, first) == Ordering::Less);
            if !sorted || !is_sound_path(first) {
                return Err(FormatError::BadField("order of paths"));
            }
            chunks.push(ChunkRef {
                first_path: first.into(),
                count,
                place: Place::decode(&mut r, own)?,
            });
        }
        r.end()?;
        Ok(Self { chunks })
    }
}

/// Checks arbitrary bytes as a list's root and as a chunk; for tests of the decoders.
#[doc(hidden)]
pub fn decode_any(bytes: &[u8]) -> (bool, bool) {
    let own = PackId([0; 32]);
    (
        Root::decode(bytes, &own).is_ok(),
        decode_chunk(bytes, bytes.len() / 16, &own).is_ok(),
    )
}

#[derive(Debug, Clone)]
struct ByChunk;

impl Weighter<usize, Arc<Vec<FileEntry>>> for ByChunk {
    fn weight(&self, _: &usize, chunk: &Arc<Vec<FileEntry>>) -> u64 {
        64 + chunk.len() as u64 * 320
    }
}

/// Reads a file list; chunks are fetched when an entry of theirs is first asked for, and kept within a budget.
#[derive(Debug)]
pub struct FileList {
    packs: Arc<PackStore>,
    place: Option<Place>,
    chunks: Vec<ChunkRef>,
    /// Number of the first entry of each chunk, and of the end.
    firsts: Vec<u64>,
    cache: Cache<usize, Arc<Vec<FileEntry>>, ByChunk>,
}

impl FileList {
    /// Opens the list whose root is at `place`; `None` is an empty list. Keeps up to `budget` bytes of entries.
    ///
    /// # Errors
    /// As [`PackStore::read_place`].
    pub async fn open(packs: Arc<PackStore>, place: Option<Place>, budget: u64) -> Result<Self> {
        let root = match &place {
            None => Root::default(),
            Some(place) => {
                let bytes = packs.read_place(place).await?;
                Root::decode(&bytes, &place.pack).map_err(|reason| bad_at(place, reason))?
            }
        };
        let mut firsts = vec![0u64];
        for chunk in &root.chunks {
            firsts.push(firsts.last().copied().unwrap_or(0) + u64::from(chunk.count));
        }
        let cache = Cache::with_weighter(64, budget, ByChunk);
        Ok(Self {
            packs,
            place,
            chunks: root.chunks,
            firsts,
            cache,
        })
    }

    /// Number of entries.
    pub fn len(&self) -> u64 {
        self.firsts.last().copied().unwrap_or(0)
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of chunks.
    pub(crate) fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// The entries of a chunk.
    pub(crate) async fn chunk(&self, i: usize) -> Result<Arc<Vec<FileEntry>>> {
        if let Some(found) = self.cache.get(&i) {
            return Ok(found);
        }
        let chunk = &self.chunks[i];
        let bytes = self.packs.read_place(&chunk.place).await?;
        let entries = decode_chunk(&bytes, chunk.count as usize, &chunk.place.pack)
            .and_then(|entries| match entries.first() {
                Some(first) if first.meta.path == chunk.first_path => Ok(entries),
                _ => Err(FormatError::BadField("first path")),
            })
            .map_err(|reason| bad_at(&chunk.place, reason))?;
        let entries = Arc::new(entries);
        self.cache.insert(i, entries.clone());
        Ok(entries)
    }

    /// The entry with a number, counted from 0 in the order of paths.
    ///
    /// # Errors
    /// As [`PackStore::read_place`].
    pub async fn get(&self, number: u64) -> Result<Option<FileEntry>> {
        if number >= self.len() {
            return Ok(None);
        }
        let i = self.firsts.partition_point(|f| *f <= number) - 1;
        let chunk = self.chunk(i).await?;
        Ok(chunk.get((number - self.firsts[i]) as usize).cloned())
    }

    /// Number of the first entry whose path is not before `path`.
    ///
    /// # Errors
    /// As [`PackStore::read_place`].
    pub async fn position(&self, path: &str) -> Result<u64> {
        self.position_by(|p| path_order(p, path) == Ordering::Less).await
    }

    /// Number of the first entry behind `path` and everything below it.
    ///
    /// # Errors
    /// As [`PackStore::read_place`].
    pub async fn position_behind(&self, path: &str) -> Result<u64> {
        self.position_by(|p| path_order(p, path) == Ordering::Less || is_at_or_below(p, path))
            .await
    }

    async fn position_by(&self, before: impl Fn(&str) -> bool) -> Result<u64> {
        let next = self.chunks.partition_point(|c| before(&c.first_path));
        let Some(i) = next.checked_sub(1) else {
            return Ok(0);
        };
        let chunk = self.chunk(i).await?;
        Ok(self.firsts[i] + chunk.partition_point(|e| before(&e.meta.path)) as u64)
    }

    /// The entry with a path, and its number.
    ///
    /// # Errors
    /// As [`PackStore::read_place`].
    pub async fn find(&self, path: &str) -> Result<Option<(u64, FileEntry)>> {
        let number = self.position(path).await?;
        Ok(self
            .get(number)
            .await?
            .filter(|e| e.meta.path == path)
            .map(|e| (number, e)))
    }

    /// The next entry right in the directory `dir` ("" is the root) whose number is at least `from`, and its number.
    /// Start with `from` = 0; go on with [`FileList::position_behind`] of a directory, or the number + 1 of a file.
    ///
    /// # Errors
    /// As [`PackStore::read_place`].
    pub async fn next_child(&self, dir: &str, from: u64) -> Result<Option<(u64, FileEntry)>> {
        let first = if dir.is_empty() {
            0
        } else {
            self.position(dir).await? + 1
        };
        let mut number = from.max(first);
        loop {
            let Some(entry) = self.get(number).await? else {
                return Ok(None);
            };
            let Some(rest) = below(&entry.meta.path, dir) else {
                return Ok(None);
            };
            match rest.split_once('/') {
                None => return Ok(Some((number, entry))),
                Some((sub, _)) => {
                    let sub = &entry.meta.path[..entry.meta.path.len() - rest.len() + sub.len()];
                    number = self.position_behind(sub).await?;
                }
            }
        }
    }

    /// Places of the list's own blocks.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.place.iter().chain(self.chunks.iter().map(|c| &c.place))
    }
}

fn is_at_or_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What of `path` stands behind the directory `dir`.
fn below<'a>(path: &'a str, dir: &str) -> Option<&'a str> {
    if dir.is_empty() {
        Some(path)
    } else {
        path.strip_prefix(dir)?.strip_prefix('/')
    }
}

fn bad_at(place: &Place, reason: FormatError) -> RepoError {
    RepoError::DamagedBlock {
        pack: place.pack,
        slot: format!("at byte {}", place.offset),
        reason,
    }
}

/// Writes a list, sharing chunks with a parent's list where they are equal and `allowed` permits their packs.
pub(crate) async fn write_list(
    sink: &mut PackSink,
    entries: &[FileEntry],
    parent: Option<&FileList>,
    allowed: impl Fn(&PackId) -> bool,
) -> Result<RootPlace> {
    let known: HashMap<BlockId, Place> = parent
        .iter()
        .flat_map(|p| &p.chunks)
        .filter(|c| allowed(&c.place.pack))
        .map(|c| (c.place.id, c.place))
        .collect();
    let mut chunks = Vec::new();
    for range in cut(entries) {
        let mut w = Writer::default();
        let part = &entries[range];
        let mut previous = "";
        for entry in part {
            encode_entry(&mut w, previous, entry);
            previous = &entry.meta.path;
        }
        let bytes = w.into_vec();
        let place = match known.get(&BlockId::of(&bytes)) {
            Some(place) => Err(*place),
            None => Ok(sink.add(&bytes).await?),
        };
        chunks.push((part[0].meta.path.clone(), part.len() as u32, place));
    }
    if chunks.is_empty() {
        return Ok(RootPlace::Empty);
    }
    if let Some(old) = parent
        && let Some(place) = old.place.filter(|p| allowed(&p.pack))
        && chunks.len() == old.chunks.len()
        && chunks
            .iter()
            .zip(&old.chunks)
            .all(|(new, old)| new.2 == Err(old.place))
    {
        return Ok(RootPlace::Kept(place));
    }
    let len = chunks.iter().map(|c| c.0.len() + Place::LEN + 10).sum::<usize>();
    let pack = sink.reserve(len).await?;
    let mut root = Root::default();
    for (first_path, count, place) in chunks {
        let place = match place {
            Ok(own) => sink.named_from(pack, own)?,
            Err(kept) => kept,
        };
        root.chunks.push(ChunkRef {
            first_path,
            count,
            place,
        });
    }
    Ok(RootPlace::Own(sink.push(&root.encode())?))
}

/// Ranges of entries that become chunks.
fn cut(entries: &[FileEntry]) -> Vec<std::ops::Range<usize>> {
    let mut out = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (i, entry) in entries.iter().enumerate() {
        bytes += entry.meta.path.len() + 128;
        let hash = blake3::hash(entry.meta.path.as_bytes());
        let hash = u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default());
        let closes = i + 1 - from >= CHUNK_MIN && hash.is_multiple_of(CHUNK_ONE_IN);
        if closes || bytes >= CHUNK_BYTES || i + 1 == entries.len() {
            out.push(from..i + 1);
            (from, bytes) = (i + 1, 0);
        }
    }
    out
}
