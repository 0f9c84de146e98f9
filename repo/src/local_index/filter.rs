//! Entries of packs that are gone leave the index when it is compacted.

use std::ffi::CStr;
use std::sync::{Arc, PoisonError, RwLock};

use rocksdb::CompactionDecision as Decision;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};

use crate::local_index::entry::Entry;

/// Which numbers belong to packs that are gone.
#[derive(Debug, Clone, Default)]
pub(super) struct Dead(Arc<RwLock<Arc<Vec<bool>>>>);

impl Dead {
    /// Compactions that begin from now on drop the entries of these numbers.
    pub fn set(&self, numbers: &[u32]) {
        let mut dead = Vec::new();
        for &number in numbers {
            let at = number as usize;
            if dead.len() <= at {
                dead.resize(at + 1, false);
            }
            dead[at] = true;
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(dead);
    }

    fn now(&self) -> Arc<Vec<bool>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

const NAME: &CStr = c"pbm-fs entries of packs that are gone";

/// Makes a filter for each compaction.
pub(super) struct DropDead(pub Dead);

impl CompactionFilterFactory for DropDead {
    type Filter = DropDeadNow;

    fn create(&mut self, _: CompactionFilterContext) -> DropDeadNow {
        DropDeadNow(self.0.now())
    }

    fn name(&self) -> &CStr {
        NAME
    }
}

/// The filter of one compaction.
pub(super) struct DropDeadNow(Arc<Vec<bool>>);

impl CompactionFilter for DropDeadNow {
    fn filter(&mut self, _: u32, _: &[u8], value: &[u8]) -> Decision {
        let number = Entry::number_of(value);
        match number.and_then(|n| self.0.get(n as usize)) {
            Some(true) => Decision::Remove,
            _ => Decision::Keep,
        }
    }

    fn name(&self) -> &CStr {
        NAME
    }
}
