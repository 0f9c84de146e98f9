//! The pack table of a replica set: the numbered list of packs that its maps refer to (`docs/format.md` §6).
//!
//! It only grows along a lineage of snapshots that inherit maps, so a number in an inherited leaf keeps its meaning.
//! It also lists the map packs that hold nodes: so "may I still refer to what I inherit" (GC.md rule 4) is an
//! intersection of sets.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::error::{FormatError, RepoError, Result};
use crate::id::{PackId, PackNo};
use crate::pack::{PackKind, PackLoc, PackSink, PackStore, Place, RootPlace};
use crate::wire::{Reader, Writer};

/// Packs in a full chunk: 21 KB, of which an increment rewrites the last one.
const CHUNK: usize = 512;

const ENTRY_LEN: usize = PackLoc::LEN + 1;

/// A pack in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableEntry {
    /// The pack.
    pub loc: PackLoc,
    /// What it holds.
    pub kind: PackKind,
}

fn encode_chunk(entries: &[TableEntry]) -> Vec<u8> {
    let mut w = Writer::with_capacity(entries.len() * ENTRY_LEN);
    for entry in entries {
        entry.loc.encode(&mut w);
        w.u8(entry.kind as u8);
    }
    w.into_vec()
}

fn decode_chunk(bytes: &[u8], count: usize) -> Result<Vec<TableEntry>, FormatError> {
    let mut r = Reader::new(bytes);
    if bytes.len() != count * ENTRY_LEN {
        return Err(FormatError::BadField("pack table length"));
    }
    (0..count)
        .map(|_| {
            Ok(TableEntry {
                loc: PackLoc::decode(&mut r)?,
                kind: PackKind::from_byte(r.u8()?)?,
            })
        })
        .collect()
}

/// The list of a table's chunks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Root {
    chunks: Vec<(u32, Place)>,
}

impl Root {
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(self.chunks.len() * (Place::LEN + 3));
        w.varint(self.chunks.len() as u64);
        for (count, place) in &self.chunks {
            w.varint((*count).into());
            place.encode(&mut w);
        }
        w.into_vec()
    }

    fn decode(bytes: &[u8], own: &PackId) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let n = r.count(Place::LEN + 1)?;
        let mut sum = 0u32;
        let mut chunks = Vec::with_capacity(n);
        for _ in 0..n {
            let count = r.varint32()?;
            let max = crate::pack::MAX_BLOCK / ENTRY_LEN;
            sum = sum
                .checked_add(count)
                .ok_or(FormatError::BadField("pack count"))?;
            if count == 0 || count as usize > max {
                return Err(FormatError::BadField("pack count"));
            }
            chunks.push((count, Place::decode(&mut r, own)?));
        }
        r.end()?;
        Ok(Self { chunks })
    }
}

/// Checks arbitrary bytes as a table's root and as a chunk; for tests of the decoders.
#[doc(hidden)]
pub fn decode_any(bytes: &[u8]) -> (bool, bool) {
    (
        Root::decode(bytes, &PackId([0; 32])).is_ok(),
        decode_chunk(bytes, bytes.len() / ENTRY_LEN).is_ok(),
    )
}

/// Reads a table; chunks are fetched when a number of theirs is first asked for.
#[derive(Debug)]
pub struct PackTable {
    packs: Arc<PackStore>,
    place: Option<Place>,
    chunks: Vec<(u32, Place, OnceCell<Vec<TableEntry>>)>,
}

impl PackTable {
    /// Opens the table whose root is at `place`; `None` is an empty table.
    ///
    /// # Errors
    /// As [`PackStore::read_place`].
    pub async fn open(packs: Arc<PackStore>, place: Option<Place>) -> Result<Self> {
        let root = match &place {
            None => Root::default(),
            Some(place) => {
                let bytes = packs.read_place(place).await?;
                Root::decode(&bytes, &place.pack).map_err(bad_at(place))?
            }
        };
        let mut first = 0;
        let mut chunks = Vec::with_capacity(root.chunks.len());
        for (count, place) in root.chunks {
            chunks.push((first, place, OnceCell::new()));
            first += count;
        }
        // A sentinel would be another kind of element; the end is kept as a chunk-less first number.
        Ok(Self {
            packs,
            place,
            chunks: with_end(chunks, first),
        })
    }

    /// Number of packs.
    pub fn len(&self) -> u32 {
        self.chunks.last().map_or(0, |c| c.0)
    }

    /// Whether it lists no pack.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    async fn chunk(&self, i: usize) -> Result<&Vec<TableEntry>> {
        let (first, place, cell) = &self.chunks[i];
        let count = (self.chunks[i + 1].0 - first) as usize;
        cell.get_or_try_init(|| async {
            let bytes = self.packs.read_place(place).await?;
            decode_chunk(&bytes, count).map_err(bad_at(place))
        })
        .await
    }

    /// The pack with a number.
    ///
    /// # Errors
    /// `DamagedEntry` if there is no such number; as [`PackStore::read_place`].
    pub async fn get(&self, number: PackNo) -> Result<TableEntry> {
        let i = self.chunks.partition_point(|c| c.0 <= number.0);
        if number.0 >= self.len() {
            return Err(RepoError::DamagedEntry {
                reason: FormatError::BadField("pack number"),
            });
        }
        let chunk = self.chunk(i - 1).await?;
        let at = (number.0 - self.chunks[i - 1].0) as usize;
        chunk.get(at).copied().ok_or(RepoError::DamagedEntry {
            reason: FormatError::BadField("pack number"),
        })
    }

    /// Every pack in order of numbers.
    ///
    /// # Errors
    /// As [`PackStore::read_place`].
    pub async fn all(&self) -> Result<Vec<TableEntry>> {
        let mut out = Vec::with_capacity(self.len() as usize);
        for i in 0..self.chunks.len().saturating_sub(1) {
            out.extend_from_slice(self.chunk(i).await?);
        }
        Ok(out)
    }

    /// Places of the table's own blocks.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        let chunks = self.chunks.len().saturating_sub(1);
        self.place
            .iter()
            .chain(self.chunks[..chunks].iter().map(|c| &c.1))
    }

    fn stored_chunks(&self) -> Vec<(u32, Place)> {
        self.chunks
            .windows(2)
            .map(|pair| (pair[1].0 - pair[0].0, pair[0].1))
            .collect()
    }
}

type LazyChunk = (u32, Place, OnceCell<Vec<TableEntry>>);

/// Adds the end: an element of which only the first number counts.
fn with_end(mut chunks: Vec<LazyChunk>, end: u32) -> Vec<LazyChunk> {
    if let Some(last) = chunks.last() {
        let place = last.1;
        chunks.push((end, place, OnceCell::new()));
    }
    chunks
}

fn bad_at(place: &Place) -> impl FnOnce(FormatError) -> RepoError + use<> {
    let place = *place;
    move |reason| RepoError::DamagedBlock {
        pack: place.pack,
        slot: format!("at byte {}", place.offset),
        reason,
    }
}

/// A table while a snapshot is written: the parent's, and what is new.
#[derive(Debug, Default)]
pub struct TableBuilder {
    entries: Vec<Option<TableEntry>>,
    numbers: HashMap<PackId, PackNo>,
    inherited: Vec<(u32, Place)>,
    place: Option<Place>,
    inherited_len: usize,
}

impl TableBuilder {
    /// Goes on from a parent's table.
    ///
    /// # Errors
    /// As [`PackStore::read_place`].
    pub async fn inherit(table: &PackTable) -> Result<Self> {
        let entries = table.all().await?;
        let numbers = entries
            .iter()
            .zip(0..)
            .map(|(e, n)| (e.loc.id, PackNo(n)))
            .collect();
        Ok(Self {
            inherited_len: entries.len(),
            entries: entries.into_iter().map(Some).collect(),
            numbers,
            inherited: table.stored_chunks(),
            place: table.place,
        })
    }

    /// The number of a pack that is stored already; it is added if it is new to the table.
    pub fn number(&mut self, entry: TableEntry) -> PackNo {
        if let Some(found) = self.numbers.get(&entry.loc.id) {
            return *found;
        }
        let number = self.reserve();
        self.set(number, entry);
        number
    }

    /// A number for a pack that is not sealed yet.
    pub fn reserve(&mut self) -> PackNo {
        self.entries.push(None);
        PackNo(self.entries.len() as u32 - 1)
    }

    /// Tells which pack a reserved number became.
    pub fn set(&mut self, number: PackNo, entry: TableEntry) {
        self.numbers.insert(entry.loc.id, number);
        self.entries[number.0 as usize] = Some(entry);
    }

    /// Packs so far.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes what differs from the parent's table. Chunks in packs that `allowed` refuses are written anew. The
    /// place is valid once the sink was flushed.
    ///
    /// # Errors
    /// The storage's; `Poisoned` if a reserved number was never set.
    pub(crate) async fn write(
        self,
        sink: &mut PackSink,
        allowed: impl Fn(&PackId) -> bool,
    ) -> Result<RootPlace> {
        let entries: Option<Vec<TableEntry>> = self.entries.into_iter().collect();
        let entries = entries.ok_or_else(|| RepoError::Poisoned("a pack was never sealed".into()))?;
        let mut kept = Vec::new();
        let mut covered = 0usize;
        for (count, place) in &self.inherited {
            // A chunk that is not full is written again, with what is new behind it.
            let full = *count as usize >= CHUNK || entries.len() == self.inherited_len;
            if !full || !allowed(&place.pack) {
                break;
            }
            kept.push((*count, *place));
            covered += *count as usize;
        }
        if let Some(place) = self
            .place
            .filter(|p| covered == entries.len() && allowed(&p.pack))
        {
            return Ok(RootPlace::Kept(place));
        }
        if entries.is_empty() {
            return Ok(RootPlace::Empty);
        }
        let mut own = Vec::new();
        for chunk in entries[covered..].chunks(CHUNK) {
            own.push((chunk.len() as u32, sink.add(&encode_chunk(chunk)).await?));
        }
        let pack = sink
            .reserve((kept.len() + own.len()) * (Place::LEN + 3) + 10)
            .await?;
        let mut root = Root { chunks: kept };
        for (count, place) in own {
            root.chunks.push((count, sink.named_from(pack, place)?));
        }
        Ok(RootPlace::Own(sink.push(&root.encode())?))
    }
}
