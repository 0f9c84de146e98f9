//! RocksDB as the index uses it: column families, their options, and what its errors mean. `docs/architecture.md`
//! (*Local index*) has the measurements behind the numbers.

use std::path::Path;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamily,
    ColumnFamilyDescriptor, CompactOptions, DB, DBCompressionType, DBPinnableSlice, Direction, FlushOptions,
    IngestExternalFileOptions, IteratorMode, LogLevel, Options, ReadOptions, WriteBatch, WriteBufferManager,
    WriteOptions,
};

use crate::local_index::Fault;
use crate::local_index::filter::{Dead, DropDead};

/// Identity and version.
const META: &str = "default";
/// Half a block id → pack number, slot, seal.
const BLOCKS: &str = "blocks";
/// Pack number → record.
const PACKS: &str = "packs";
/// Pack number → trailer.
const TRAILERS: &str = "trailers";
/// Small values of whoever sits above: keys and values mean nothing here.
const HEADS: &str = "heads";

/// Size at which a table is complete.
pub(super) const TABLE_LEN: u64 = 64 << 20;

/// An open database.
pub(super) struct Database {
    db: DB,
    blocks: Options,
    unlogged: WriteOptions,
    point: ReadOptions,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Database").field(&self.db.path()).finish()
    }
}

fn blocks(cache: &Cache, memory: u64, dead: &Dead) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    // In parts: a filter of a whole table has 2 MiB, and where filters do not fit the cache each look-up would read one.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(32 << 10);
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size((memory / 8) as usize);
    options.set_target_file_size_base(TABLE_LEN);
    options.set_compaction_filter_factory(DropDead(dead.clone()));
    options
}

/// A family that is small or read in order.
fn plain(cache: &Cache, memory: u64) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size((memory / 16) as usize);
    options
}

impl Database {
    /// Opens the database in a directory, or makes one there.
    pub fn open(directory: &Path, memory: u64, dead: &Dead) -> Result<Self, Fault> {
        // The cache holds data, filters and table indexes, and is charged for what is not flushed yet: one budget.
        let cache = Cache::new_hyper_clock_cache(memory as usize, 0);
        let writes = WriteBufferManager::new_write_buffer_manager_with_cache(
            (memory / 4) as usize,
            false,
            cache.clone(),
        );
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_write_buffer_manager(&writes);
        // There is no log: what is not flushed is learnt again. All families are flushed together, so a record is
        // never durable before its entries, nor the other way round.
        options.set_atomic_flush(true);
        options.set_max_background_jobs(2);
        options.set_max_open_files(256);
        options.set_log_level(LogLevel::Warn);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options.set_skip_stats_update_on_db_open(true);
        let of_blocks = blocks(&cache, memory, dead);
        let family = |name: &str, options| ColumnFamilyDescriptor::new(name, options);
        let families = [
            family(META, plain(&cache, memory)),
            family(BLOCKS, of_blocks.clone()),
            family(PACKS, plain(&cache, memory)),
            family(TRAILERS, plain(&cache, memory)),
            family(HEADS, plain(&cache, memory)),
        ];
        let db = DB::open_cf_descriptors(&options, directory, families)?;
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        Ok(Self {
            db,
            blocks: of_blocks,
            unlogged,
            point: ReadOptions::default(),
        })
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("every column family was opened")
    }

    /// The value of a key that tells what the database is.
    pub fn meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.db.get_cf(self.family(META), key)?)
    }

    /// Sets it, durably.
    pub fn set_meta(&self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        self.db
            .put_cf_opt(self.family(META), key, value, &self.unlogged)?;
        self.flush()
    }

    /// The entry of a block.
    pub fn block(&self, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>, Fault> {
        Ok(self.db.get_pinned_cf_opt(self.family(BLOCKS), key, &self.point)?)
    }

    /// A kept trailer.
    pub fn trailer(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.db.get_cf(self.family(TRAILERS), key)?)
    }

    /// A head.
    pub fn head(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.db.get_cf(self.family(HEADS), key)?)
    }

    /// Every record, in the order of numbers.
    pub fn records(&self, mut each: impl FnMut(&[u8], &[u8]) -> Result<(), Fault>) -> Result<(), Fault> {
        let start = IteratorMode::From(&[], Direction::Forward);
        for item in self.db.iterator_cf(self.family(PACKS), start) {
            let (key, value) = item?;
            each(&key, &value)?;
        }
        Ok(())
    }

    /// A batch of changes.
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            of: self,
            batch: WriteBatch::default(),
        }
    }

    /// Makes everything durable that was written.
    pub fn flush(&self) -> Result<(), Fault> {
        let families: Vec<_> = [META, BLOCKS, PACKS, TRAILERS, HEADS]
            .iter()
            .map(|name| self.family(name))
            .collect();
        Ok(self.db.flush_cfs_opt(&families, &FlushOptions::default())?)
    }

    /// Options for tables that are made outside of the database.
    pub fn table_options(&self) -> &Options {
        &self.blocks
    }

    /// Takes tables of entries in, all or none. They must not overlap each other.
    pub fn ingest(&self, tables: Vec<std::path::PathBuf>) -> Result<(), Fault> {
        let mut how = IngestExternalFileOptions::default();
        how.set_move_files(true);
        Ok(self
            .db
            .ingest_external_file_cf_opts(self.family(BLOCKS), &how, tables)?)
    }

    /// Writes all entries anew, without those of dead packs.
    pub fn drop_dead_entries(&self) {
        let mut how = CompactOptions::default();
        how.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        self.db
            .compact_range_cf_opt(self.family(BLOCKS), None::<&[u8]>, None::<&[u8]>, &how);
    }

    /// Gives back the room of trailers that were forgotten.
    pub fn drop_forgotten_trailers(&self) {
        self.db
            .compact_range_cf(self.family(TRAILERS), None::<&[u8]>, None::<&[u8]>);
    }
}

/// Changes that happen together.
pub(super) struct Batch<'a> {
    of: &'a Database,
    batch: WriteBatch,
}

impl Batch<'_> {
    /// Sets the entry of a block.
    pub fn block(&mut self, key: &[u8], entry: &[u8]) {
        self.batch.put_cf(self.of.family(BLOCKS), key, entry);
    }

    /// Sets the record of a pack.
    pub fn record(&mut self, number: &[u8], record: &[u8]) {
        self.batch.put_cf(self.of.family(PACKS), number, record);
    }

    /// Keeps a trailer.
    pub fn trailer(&mut self, number: &[u8], trailer: &[u8]) {
        self.batch.put_cf(self.of.family(TRAILERS), number, trailer);
    }

    /// Sets a head.
    pub fn head(&mut self, key: &[u8], value: &[u8]) {
        self.batch.put_cf(self.of.family(HEADS), key, value);
    }

    /// Forgets a pack; its entries must be gone.
    pub fn forget(&mut self, number: &[u8]) {
        self.batch.delete_cf(self.of.family(PACKS), number);
        self.batch.delete_cf(self.of.family(TRAILERS), number);
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.batch.size_in_bytes()
    }

    /// Carries it out. Durable after the next flush.
    pub fn write(self) -> Result<(), Fault> {
        Ok(self.of.db.write_opt(self.batch, &self.of.unlogged)?)
    }
}
