//! Bytes of map nodes that scattered changes write, on synthetic maps in memory.
//!
//! A map of `n` extents of one block each, none of which can be joined with its neighbour: packs and slots are drawn
//! at random, as a file has them after many scattered increments. That is the worst case: the map of a first backup
//! is a few long runs.

use std::sync::Arc;

use pbmfs_repo::id::{LeaseId, PackNo, SystemRandomness};
use pbmfs_repo::map::{Edit, Extent, MapParams, MapReader, MapRoot, MapWriter, Node};
use pbmfs_repo::pack::{BLOCK_HEADER_LEN, Owner, PackSink, PackStore, Place};
use pbmfs_repo::storage::{MemoryStorage, Storage};

use crate::Result;
use crate::report::{Reach, Row};

/// Stored bytes of the data of one change: what the contract on maps is a share of.
pub const STORED_PER_CHANGE: f64 = 27.0 * 1024.0;

/// Blocks in a pack.
const SLOTS: u64 = 500;

/// A map in memory that is changed again and again.
pub struct SyntheticMap {
    storage: Arc<dyn Storage>,
    reader: MapReader,
    params: MapParams,
    extents: u64,
    len: u64,
    root: MapRoot,
    packs: u32,
    rounds: u64,
    built: u64,
}

/// What changes cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Changes.
    pub changes: u64,
    /// Bytes of all map packs that were put for them.
    pub bytes: u64,
}

impl Cost {
    /// Bytes of map a change.
    pub fn per_change(&self) -> f64 {
        self.bytes as f64 / self.changes as f64
    }
}

/// What the leaves of a map look like.
#[derive(Debug, Clone, Copy)]
pub struct Leaves {
    /// How many.
    pub count: u64,
    /// Stored bytes in all, headers of blocks aside.
    pub bytes: u64,
    /// Nodes of all other levels.
    pub inner_count: u64,
    /// Their bytes.
    pub inner_bytes: u64,
}

/// A row: what a scattered change costs in a map of so many extents, as a share of the data stored for it.
///
/// # Errors
/// The repository's.
pub async fn scattered_change(extents: u64) -> Result<Row> {
    let params = MapParams::default();
    let mut map = SyntheticMap::build(extents, params).await?;
    let cost = map.change(1000).await?;
    let name = format!(
        "map of {} M extents, {} levels: a scattered change, nodes {}/{}",
        extents as f64 / 1e6,
        map.levels(),
        params.leaf,
        params.inner
    );
    Ok(Row::new(name, cost.per_change(), "bytes")
        .against("stored data", STORED_PER_CHANGE)
        .reach(Reach::AtMost(0.08)))
}

/// A number that looks random and is the same in each run (SplitMix64).
pub(crate) fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Length of an extent: 16 to 48 KiB in steps of 4 KiB.
fn length(number: u64) -> u64 {
    (4 + mix(number) % 9) << 12
}

impl SyntheticMap {
    /// Builds one of `extents` extents.
    ///
    /// # Errors
    /// The repository's.
    pub async fn build(extents: u64, params: MapParams) -> Result<Self> {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
        let packs = Arc::new(PackStore::new(storage.clone(), 64 << 20));
        let pack_count = extents.div_ceil(SLOTS) as u32;
        let mut writer = MapWriter::new(sink(&storage)?, params);
        let extent = |n: u64| {
            let drawn = mix(n ^ 0x5bd1_e995_0000_0000);
            let (pack, slot) = (drawn % u64::from(pack_count), (drawn >> 32) % SLOTS);
            Extent::data(length(n), PackNo(pack as u32), slot as u32, 1)
        };
        let pending = writer.build((0..extents).map(extent)).await?;
        writer.sink().flush().await?;
        Ok(Self {
            reader: MapReader::new(packs, 64 << 20),
            storage,
            params,
            extents,
            len: (0..extents).map(length).sum(),
            root: writer.resolve(&pending)?,
            packs: pack_count,
            rounds: 0,
            built: writer.sink_ref().stored_bytes(),
        })
    }

    /// Bytes of the packs of the map as it was built.
    pub fn built_bytes(&self) -> u64 {
        self.built
    }

    /// Bytes of the file.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// Levels: so many requests lead from the root to an extent.
    pub fn levels(&self) -> u32 {
        match &self.root {
            MapRoot::Node { level, .. } => u32::from(*level) + 1,
            MapRoot::Empty | MapRoot::Inline(_) => 0,
        }
    }

    /// Replaces `changes` blocks at random places, as one backup does.
    ///
    /// # Errors
    /// The repository's.
    pub async fn change(&mut self, changes: u64) -> Result<Cost> {
        self.rounds += 1;
        let draw = |n| mix(n ^ self.rounds << 40) % self.extents;
        let mut chosen: Vec<u64> = (0..changes).map(draw).collect();
        chosen.sort_unstable();
        chosen.dedup();
        let mut edits = Vec::with_capacity(chosen.len());
        let (mut offset, mut at) = (0, 0);
        for (number, slot) in chosen.iter().zip(0u64..) {
            offset += (at..*number).map(length).sum::<u64>();
            at = *number;
            let pack = PackNo(self.packs + (slot / SLOTS) as u32);
            let mut edit = Edit::at(offset);
            edit.push_block(Extent::data(length(at), pack, (slot % SLOTS) as u32, 1));
            edits.push(edit);
        }
        self.packs += (chosen.len() as u64).div_ceil(SLOTS) as u32;
        let mut writer = MapWriter::new(sink(&self.storage)?, self.params);
        let pending = writer
            .apply(&self.reader, &self.root, self.len, self.len, &edits)
            .await?;
        writer.sink().flush().await?;
        self.root = writer.resolve(&pending)?;
        Ok(Cost {
            changes: chosen.len() as u64,
            bytes: writer.sink_ref().stored_bytes(),
        })
    }

    /// Walks the whole map.
    ///
    /// # Errors
    /// The repository's.
    pub async fn leaves(&self) -> Result<Leaves> {
        let mut found = Leaves {
            count: 0,
            bytes: 0,
            inner_count: 0,
            inner_bytes: 0,
        };
        let MapRoot::Node { place, level } = &self.root else {
            return Ok(found);
        };
        let mut stack: Vec<(Place, u8, u64)> = vec![(*place, *level, self.len)];
        while let Some((place, level, span)) = stack.pop() {
            let bytes = u64::from(place.len) - BLOCK_HEADER_LEN as u64;
            if level == 0 {
                found.count += 1;
                found.bytes += bytes;
                continue;
            }
            found.inner_count += 1;
            found.inner_bytes += bytes;
            if let Node::Inner { children, .. } = &*self.reader.node(&place, level, span).await? {
                stack.extend(children.iter().map(|c| (c.place, level - 1, c.span)));
            }
        }
        Ok(found)
    }
}

fn sink(storage: &Arc<dyn Storage>) -> Result<PackSink> {
    let owner = Owner::Lease(LeaseId([1; 16]));
    Ok(PackSink::new(
        storage.clone(),
        Arc::new(SystemRandomness),
        owner,
        1,
    )?)
}
