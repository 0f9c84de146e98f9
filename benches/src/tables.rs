//! Files that look like WiredTiger's tables, in any number and with changes at chosen places: for what depends on how
//! much data there is beside what changed.

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pbmfs_tests::prng::Prng;

use crate::Result;
use crate::copies::{Changed, GRANULE};

/// Bytes of a table.
const TABLE: u64 = 8 << 20;

/// Bytes of a block: about what the pages of a collection are on disk.
const BLOCK: u64 = 28 << 10;

/// A directory of tables.
pub struct Tables {
    dir: PathBuf,
    tables: u64,
    /// Changes so far.
    rounds: u64,
}

impl Tables {
    /// An empty one.
    ///
    /// # Errors
    /// The disk's.
    pub fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self {
            dir: dir.into(),
            tables: 0,
            rounds: 0,
        })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds tables until there are so many.
    ///
    /// # Errors
    /// The disk's.
    pub fn grow(&mut self, tables: u64) -> Result<Vec<Changed>> {
        let first = self.tables;
        self.tables = tables;
        for number in first..tables {
            let mut file = File::create(self.dir.join(name(number)))?;
            for at in 0..TABLE / BLOCK {
                file.write_all(&block(&mut Prng::for_part(number, at)))?;
            }
            file.set_len(TABLE)?;
        }
        let fresh = move |number| number >= first;
        let all = |number| match fresh(number) {
            true => std::iter::once(0..TABLE).collect(),
            false => Vec::new(),
        };
        Ok((0..tables).map(|n| changed(n, fresh(n), all(n))).collect())
    }

    /// Writes a block in each of the first `granules` granules anew.
    ///
    /// # Errors
    /// The disk's.
    pub fn change(&mut self, granules: u64) -> Result<Vec<Changed>> {
        self.rounds += 1;
        let mut changes: Vec<Changed> = (0..self.tables)
            .map(|number| changed(number, false, Vec::new()))
            .collect();
        for granule in 0..granules {
            let at = granule * GRANULE;
            let (table, offset) = (at / TABLE, at % TABLE);
            // One of the blocks that lie in this granule alone.
            let first = offset.div_ceil(BLOCK);
            let count = (offset + GRANULE) / BLOCK - first;
            let mut prng = Prng::for_part(!self.rounds, granule);
            let start = (first + prng.below(count)) * BLOCK;
            let file = File::options().write(true).open(self.dir.join(name(table)))?;
            file.write_all_at(&block(&mut prng), start)?;
            changes[table as usize].sectors.push(start..start + BLOCK);
        }
        Ok(changes)
    }
}

/// How many tables make so many bytes.
pub fn tables_of(bytes: u64) -> u64 {
    bytes / TABLE
}

fn name(number: u64) -> String {
    format!("collection-{number:04}.wt")
}

fn changed(number: u64, new: bool, sectors: Vec<Range<u64>>) -> Changed {
    Changed {
        path: name(number),
        len: TABLE,
        new,
        sectors,
    }
}

/// A block with a header as WiredTiger writes it, about two thirds of which are noise.
fn block(prng: &mut Prng) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    for part in block[40..].chunks_mut(48) {
        let noise = prng.bytes(32);
        let len = noise.len().min(part.len());
        part[..len].copy_from_slice(&noise[..len]);
    }
    // Page type 7 (a leaf of a row store), the block's length, and a checksum of all of it.
    block[24] = 7;
    block[28..32].copy_from_slice(&(BLOCK as u32).to_le_bytes());
    block[36] = 1;
    let sum = crc_fast::crc32_iscsi(&block);
    block[32..36].copy_from_slice(&sum.to_le_bytes());
    block
}
