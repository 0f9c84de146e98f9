//! How each file of a dbPath is cut.

use pbmfs_dbpath::{TableCutter, is_wiredtiger_table};
use pbmfs_repo::ingest::{Cutter, FixedCutter};

/// Tables are cut along their own blocks, everything else at fixed places.
pub fn cutter_of(path: &str) -> Box<dyn Cutter> {
    if is_wiredtiger_table(path) {
        Box::new(AlongBlocks(TableCutter::default()))
    } else {
        Box::new(FixedCutter)
    }
}

struct AlongBlocks(TableCutter);

impl Cutter for AlongBlocks {
    fn cut(&mut self, offset: u64, window: &[u8], last: bool) -> Vec<u32> {
        self.0.cut(offset, window, last)
    }
}
