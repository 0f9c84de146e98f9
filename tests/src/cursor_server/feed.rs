//! The documents of a backup cursor, which are made in batches while they are asked for.
//!
//! Both servers look a file's size up when they make its document (Percona's `WiredTigerKVEngine` in each
//! `getNextBatch`), so a file whose ranges lie in two batches may have two sizes, the second one larger. A size is looked
//! up once a batch.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
};

use mongodb::bson::Document;

use super::{
    documents::{self, Style},
    history::NamedRange,
};

/// As many documents as Percona makes at a time.
pub(super) const BATCH: usize = 100;

/// By how much files grow from one batch to the next.
pub const GROWTH: u64 = 4096;

/// What is left to be told.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) directory: PathBuf,
    pub(super) style: Style,
    /// Whether the length of a whole file is told.
    pub(super) told: bool,
    /// So many are made at a time, and no answer holds those of two batches.
    pub(super) batch: usize,
    /// Whether tables grow between two batches.
    pub(super) grow: bool,
    pub(super) named: VecDeque<NamedRange>,
    pub(super) made: VecDeque<Document>,
    pub(super) batches: u64,
}

impl Feed {
    /// At most so many documents. They are gone then, whoever gets them.
    pub(super) fn next(&mut self, count: usize) -> Vec<Document> {
        // The metadata do not count.
        if self.made.is_empty() || self.batches == 0 {
            self.make();
        }
        self.made.drain(..count.min(self.made.len())).collect()
    }

    fn make(&mut self) {
        let mut sizes = HashMap::new();
        for range in self.named.drain(..self.batch.min(self.named.len())) {
            let size = sizes.entry(range.file.clone()).or_insert_with(|| {
                let path = self.directory.join(&range.file);
                if self.grow && range.file.ends_with(".wt") {
                    // A file that is to be missing stays missing.
                    let _ = grow(&path, range.file_size + self.batches * GROWTH);
                }
                // Of one that vanishes it tells what it was when it was there.
                fs::metadata(&path).map_or(range.file_size, |found| found.len())
            });
            let length = match range.whole {
                true if self.told => *size,
                true => 0,
                false => range.length,
            };
            let told = NamedRange {
                file_size: *size,
                length,
                ..range
            };
            self.made
                .push_back(documents::file(&self.directory, &told, self.style));
        }
        self.batches += 1;
    }
}

/// Fills a file up to this length with what is no part of any checkpoint.
fn grow(path: &std::path::Path, to: u64) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let size = file.metadata()?.len();
    let garbage = vec![0xEE; to.saturating_sub(size) as usize];
    file.write_all_at(&garbage, size)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use mongodb::bson::doc;

    use super::{Feed, GROWTH, NamedRange, Style};

    #[test]
    fn a_size_is_that_of_its_batch() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("a.wt"), [1; 8192]).unwrap();
        let range = |offset| NamedRange {
            file: "a.wt".into(),
            file_size: 8192,
            offset,
            length: 4096,
            whole: false,
        };
        let mut feed = Feed {
            directory: place.path().into(),
            style: Style::Explicit,
            told: true,
            batch: 2,
            grow: true,
            named: (0..5).map(|n| range(n * 4096)).collect(),
            made: [doc! {"metadata": {}}].into(),
            batches: 0,
        };
        let mut shown = Vec::new();
        for count in [2, 9, 9, 9, 9] {
            let sizes = feed.next(count);
            let sizes = sizes.iter().map(|file| file.get_i64("fileSize").unwrap_or(0));
            shown.push(sizes.collect::<Vec<_>>());
        }
        let (second, third) = (8192 + GROWTH as i64, 8192 + 2 * GROWTH as i64);
        assert_eq!(
            shown,
            [vec![0, 8192], vec![8192], vec![second; 2], vec![third], vec![]]
        );
        let bytes = fs::read(place.path().join("a.wt")).unwrap();
        assert_eq!(
            (bytes.len() as u64, bytes[8191], bytes[8192]),
            (8192 + 2 * GROWTH, 1, 0xEE)
        );
    }
}
