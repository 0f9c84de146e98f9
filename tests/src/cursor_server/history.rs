//! What the server remembers of earlier backups, and the ranges that an increment is told of.
//!
//! WiredTiger keeps two identifiers, each in a slot. A cursor without a source takes the first slot whatever is in it; a
//! cursor with a source keeps that one's slot and takes the other. The granularity is that of the first incremental
//! cursor since history began, and a cursor that is refused for its source has set it all the same.

use std::{collections::BTreeMap, fs::File, io, ops::Range, os::unix::fs::FileExt, path::Path, sync::Arc};

use super::{
    failure::{BAD_VALUE, Failure, UNKNOWN_ERROR},
    free_space::{Checkpoint, SECTOR, free_extents},
};

/// One file of a pin: a hash of each sector, and what is free in it at the checkpoint.
#[derive(Clone, Debug)]
pub(super) struct FileImage {
    pub(super) size: u64,
    sectors: Vec<u64>,
    pub(super) free: Vec<Range<u64>>,
    /// A file without a checkpoint holds nothing yet, and WiredTiger has no block of it to name.
    empty: bool,
}

impl FileImage {
    pub(super) fn of(path: &Path, checkpoint: Option<&Checkpoint>) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut sectors = Vec::with_capacity(size.div_ceil(SECTOR) as usize);
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < size {
            let want = (size - at).min(buffer.len() as u64) as usize;
            file.read_exact_at(&mut buffer[..want], at)?;
            sectors.extend(buffer[..want].chunks(SECTOR as usize).map(hash));
            at += want as u64;
        }
        let free = match checkpoint {
            Some(checkpoint) => free_extents(path, checkpoint)?,
            None => Vec::new(),
        };
        Ok(Self {
            size,
            sectors,
            free,
            empty: checkpoint.is_none(),
        })
    }

    fn free_sectors(&self) -> Vec<bool> {
        let mut free = vec![false; self.sectors.len()];
        for extent in &self.free {
            let sectors = extent.start / SECTOR..extent.end / SECTOR;
            free[sectors.start as usize..sectors.end as usize].fill(true);
        }
        free
    }

    /// The sectors that an increment has to read: those that differ, and those that were free in the source and are not
    /// now. The latter may be the same bytes, of a block that was written before the source was pinned and belonged to no
    /// checkpoint then; whoever copied the source owes nothing to what was free.
    fn changed_since(&self, source: &Self) -> Vec<u64> {
        let (was_free, is_free) = (source.free_sectors(), self.free_sectors());
        (0..self.sectors.len())
            .filter(|at| {
                self.sectors.get(*at) != source.sectors.get(*at)
                    || was_free.get(*at) == Some(&true) && !is_free[*at]
            })
            .map(|at| at as u64)
            .collect()
    }
}

fn hash(sector: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(sector).as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// The files of a pin that are compared, by their paths under the dbPath.
pub(super) type Image = BTreeMap<String, FileImage>;

/// What a document tells of one file, or of one range of it; of a whole file the length too, where the document tells
/// none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRange {
    /// Under the dbPath.
    pub file: String,
    /// The file's size when it was pinned.
    pub file_size: u64,
    /// Where the range begins.
    pub offset: u64,
    /// Its length, which may reach past the file; 0 for a file that did not change.
    pub length: u64,
    /// Whether it is all of the file, however long that is when it is told.
    pub whole: bool,
}

impl NamedRange {
    /// How much of it there is to read.
    pub fn bytes(&self) -> u64 {
        self.length.min(self.file_size.saturating_sub(self.offset))
    }
}

#[derive(Clone, Debug)]
struct Slot {
    id: String,
    image: Arc<Image>,
}

#[derive(Debug, Default)]
pub(super) struct History {
    granularity: Option<u64>,
    slots: [Option<Slot>; 2],
}

/// Where a backup will be remembered, and what it is compared with.
#[derive(Debug)]
pub(super) struct Claim {
    slot: usize,
    id: String,
    source: Option<Arc<Image>>,
    granularity: u64,
}

impl History {
    /// `disableIncrementalBackup`.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Checks the names of an incremental backup in WiredTiger's order.
    pub(super) fn claim(
        &mut self,
        this: &str,
        source: Option<&str>,
        block_size: u64,
    ) -> Result<Claim, Failure> {
        let granularity = *self.granularity.get_or_insert(block_size);
        let find = |id: &str| {
            self.slots
                .iter()
                .position(|slot| slot.as_ref().is_some_and(|slot| slot.id == id))
        };
        let source = match source {
            Some(id) => Some(find(id).ok_or_else(|| Failure::usual(UNKNOWN_ERROR))?),
            None => None,
        };
        if find(this).is_some() {
            return Err(Failure::usual(BAD_VALUE));
        }
        Ok(Claim {
            slot: usize::from(source == Some(0)),
            id: this.to_owned(),
            source: source.and_then(|at| Some(Arc::clone(&self.slots[at].as_ref()?.image))),
            granularity,
        })
    }

    /// Remembers a backup from now on, whatever becomes of it.
    pub(super) fn remember(&mut self, claim: &Claim, image: Image) {
        self.slots[claim.slot] = Some(Slot {
            id: claim.id.clone(),
            image: Arc::new(image),
        });
    }
}

impl Claim {
    /// Whether it is an increment.
    pub(super) fn has_source(&self) -> bool {
        self.source.is_some()
    }

    /// Ranges behind the ends of files that are named already, a few in each.
    pub(super) fn phantoms(&self, named: &[NamedRange], count: usize) -> Vec<NamedRange> {
        let compared = named.iter().filter(|range| !range.file.starts_with("WiredTiger"));
        let phantom = |(at, range): (usize, &NamedRange)| NamedRange {
            offset: (range.file_size.div_ceil(self.granularity) + at as u64) * self.granularity,
            length: self.granularity,
            whole: false,
            ..range.clone()
        };
        compared.enumerate().map(phantom).take(count).collect()
    }

    /// What an increment is told of one file that is compared.
    pub(super) fn ranges(&self, file: &str, image: &FileImage) -> Vec<NamedRange> {
        let range = |offset, length| NamedRange {
            file: file.to_owned(),
            file_size: image.size,
            offset,
            length,
            whole: false,
        };
        let before = self.source.as_ref().and_then(|source| source.get(file));
        let mut granules: Vec<_> = match before {
            // Made since, and nothing in it yet: named as a file and not by its blocks.
            None if image.empty => {
                return vec![NamedRange {
                    whole: true,
                    ..range(0, image.size)
                }];
            }
            None => (0..image.size.div_ceil(self.granularity)).collect(),
            Some(before) => image
                .changed_since(before)
                .into_iter()
                .map(|sector| sector * SECTOR / self.granularity)
                .collect(),
        };
        granules.dedup();
        match granules.is_empty() {
            true => vec![range(0, 0)],
            // A whole granule each, the last one too.
            false => granules
                .into_iter()
                .map(|granule| range(granule * self.granularity, self.granularity))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{FileImage, History, Image, SECTOR};

    const MB: u64 = 1 << 20;

    fn image(bytes: &[u8]) -> FileImage {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("f");
        fs::write(&path, bytes).unwrap();
        let mut image = FileImage::of(&path, None).unwrap();
        image.empty = false;
        image
    }

    fn named(history: &mut History, source: &str, this: &str, now: FileImage) -> Vec<(u64, u64)> {
        let claim = history.claim(this, Some(source), MB).unwrap();
        let ranges = claim.ranges("f", &now);
        history.remember(&claim, Image::from([("f".to_owned(), now)]));
        ranges
            .into_iter()
            .map(|range| (range.offset, range.length))
            .collect()
    }

    fn with_base(bytes: &[u8]) -> History {
        let mut history = History::default();
        let claim = history.claim("a", None, MB).unwrap();
        history.remember(&claim, Image::from([("f".to_owned(), image(bytes))]));
        history
    }

    #[test]
    fn changed_sectors_are_named_by_whole_granules() {
        let mut bytes = vec![1; 2 * MB as usize + 8192];
        let mut history = with_base(&bytes);
        assert_eq!(named(&mut history, "a", "b", image(&bytes)), [(0, 0)]);
        bytes[5] = 2;
        bytes[2 * MB as usize + 4096] = 2;
        assert_eq!(
            named(&mut history, "b", "c", image(&bytes)),
            [(0, MB), (2 * MB, MB)]
        );
        bytes.truncate(MB as usize);
        assert_eq!(named(&mut history, "c", "d", image(&bytes)), [(0, 0)]);
        bytes.resize(MB as usize + 4096, 1);
        assert_eq!(named(&mut history, "d", "e", image(&bytes)), [(MB, MB)]);
    }

    #[test]
    fn a_sector_that_is_no_longer_free_is_named_though_it_did_not_change() {
        let bytes = vec![1; 4 * SECTOR as usize];
        let mut source = image(&bytes);
        source.free.push(SECTOR..2 * SECTOR);
        let now = image(&bytes);
        assert_eq!(now.changed_since(&source), [1]);
        assert!(source.changed_since(&source).is_empty());
        assert!(source.changed_since(&now).is_empty());
    }

    #[test]
    fn two_names_are_remembered_and_a_base_takes_the_first_slot() {
        let bytes = [0; 4096];
        let mut history = with_base(&bytes);
        for (source, this) in [("a", "b"), ("b", "c"), ("b", "d")] {
            named(&mut history, source, this, image(&bytes));
        }
        let code =
            |result: Result<_, super::Failure>| result.map(|_: super::Claim| ()).map_err(|error| error.code);
        assert_eq!(code(history.claim("e", Some("a"), MB)), Err(8));
        assert_eq!(code(history.claim("e", Some("c"), MB)), Err(8));
        assert_eq!(code(history.claim("d", Some("b"), MB)), Err(2));
        assert_eq!(code(history.claim("e", Some("d"), MB)), Ok(()));
        // d is in the first slot and makes room.
        let base = history.claim("f", None, MB).unwrap();
        history.remember(&base, Image::new());
        assert_eq!(code(history.claim("g", Some("d"), MB)), Err(8));
        assert_eq!(code(history.claim("g", Some("b"), MB)), Ok(()));
    }

    #[test]
    fn the_granularity_stays_until_history_is_forgotten() {
        let mut history = History::default();
        assert!(history.claim("b", Some("a"), 16 * MB).is_err());
        assert_eq!(history.claim("a", None, MB).unwrap().granularity, 16 * MB);
        history.forget();
        assert_eq!(history.claim("a", None, MB).unwrap().granularity, MB);
    }
}
