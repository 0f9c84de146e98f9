//! What a live server may do to the files of a backup while they are read: write to what is free at their checkpoint,
//! and behind their ends.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    free_space::SECTOR,
    pin::{Pin, PinnedFile},
};
use crate::prng::Prng;

/// A file grows by no more than this.
const GROWTH: u64 = 1 << 20;
/// Between two writes. Without a pause it would take a core from whoever is being tested.
const PAUSE: Duration = Duration::from_micros(500);

/// A thread that scribbles until it is dropped.
#[derive(Debug)]
pub(super) struct Scribbler {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// A table that may be written to.
struct Table {
    file: File,
    size: u64,
    free: Vec<Range<u64>>,
    grown: u64,
}

impl Scribbler {
    /// Begins at once. What is written where depends on the seed and on the files alone.
    pub(super) fn start(pin: &Pin, seed: u64) -> io::Result<Self> {
        let is_table = |file: &&PinnedFile| file.name.ends_with(".wt");
        let tables = pin.files.iter().filter(is_table);
        let mut tables: Vec<_> = tables
            .map(|file| Table::open(&pin.directory, file))
            .collect::<io::Result<_>>()?;
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let mut prng = Prng::new(seed);
        let run = move || {
            while !stopped.load(Ordering::Relaxed) && !tables.is_empty() {
                let at = prng.below(tables.len() as u64) as usize;
                // The pin may be removed, or a file of it, and a full disk is no reason to fail a test here.
                if let Ok(bytes) = tables[at].write(&mut prng) {
                    count.fetch_add(bytes, Ordering::Relaxed);
                }
                thread::sleep(PAUSE);
            }
        };
        let thread = thread::Builder::new().name("rig-scribbler".into()).spawn(run)?;
        Ok(Self {
            stop,
            written,
            thread: Some(thread),
        })
    }

    /// How many bytes it has written.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl Drop for Scribbler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Table {
    fn open(directory: &Path, file: &PinnedFile) -> io::Result<Self> {
        Ok(Self {
            file: OpenOptions::new().write(true).open(directory.join(&file.name))?,
            size: file.image.size,
            free: file.image.free.clone(),
            grown: 0,
        })
    }

    fn write(&mut self, prng: &mut Prng) -> io::Result<u64> {
        // Writes are whole sectors, as WiredTiger's are.
        let garbage = |prng: &mut Prng, sectors: u64| prng.bytes((sectors * SECTOR) as usize);
        if !self.free.is_empty() && prng.below(8) != 0 {
            let extent = &self.free[prng.below(self.free.len() as u64) as usize];
            let sectors = (extent.end - extent.start) / SECTOR;
            let from = prng.below(sectors);
            let count = (1 + prng.below(sectors - from)).min(8);
            let bytes = garbage(prng, count);
            self.file.write_all_at(&bytes, extent.start + from * SECTOR)?;
            Ok(bytes.len() as u64)
        } else if self.grown < GROWTH {
            let sectors = 1 + prng.below(4);
            let bytes = garbage(prng, sectors);
            self.file.write_all_at(&bytes, self.size + self.grown)?;
            self.grown += bytes.len() as u64;
            Ok(bytes.len() as u64)
        } else {
            Ok(0)
        }
    }
}
