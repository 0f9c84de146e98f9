//! What a live server may do to the files of a backup while they are read: write to what is free at their checkpoint,
//! and behind their ends.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
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

/// So many writes are made before anybody is told of the files.
const BURST: usize = 500;

/// How much was scribbled into the files of the open cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scribbled {
    /// Bytes in free extents.
    pub free: u64,
    /// Bytes behind the ends of files.
    pub behind: u64,
}

/// A thread that scribbles until it is dropped.
#[derive(Debug)]
pub(super) struct Scribbler {
    stop: Arc<AtomicBool>,
    written: Arc<Mutex<Scribbled>>,
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
            // One that is to be missing.
            .filter(|opened| !matches!(opened, Err(error) if error.kind() == io::ErrorKind::NotFound))
            .collect::<io::Result<_>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(Mutex::new(Scribbled::default()));
        let (stopped, sum) = (Arc::clone(&stop), Arc::clone(&written));
        let mut prng = Prng::new(seed);
        let mut write = move || {
            if let Some(table) = pick(&mut tables, &mut prng) {
                let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                // A file may be taken away, and a full disk is no reason to fail a test here.
                let _ = table.write(&mut prng, &mut sum);
            }
        };
        (0..BURST).for_each(|_| write());
        let run = move || {
            while !stopped.load(Ordering::Relaxed) {
                write();
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

    pub(super) fn written(&self) -> Scribbled {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner)
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

fn pick<'a>(tables: &'a mut [Table], prng: &mut Prng) -> Option<&'a mut Table> {
    let at = prng.below(tables.len() as u64) as usize;
    tables.get_mut(at)
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

    fn write(&mut self, prng: &mut Prng, sum: &mut Scribbled) -> io::Result<()> {
        // Whole sectors, as WiredTiger writes them.
        let garbage = |prng: &mut Prng, sectors: u64| prng.bytes((sectors * SECTOR) as usize);
        let behind = prng.below(8) == 0;
        if behind && self.grown < GROWTH {
            let sectors = 1 + prng.below(4);
            let bytes = garbage(prng, sectors);
            self.file.write_all_at(&bytes, self.size + self.grown)?;
            self.grown += bytes.len() as u64;
            sum.behind += bytes.len() as u64;
        } else if !behind && !self.free.is_empty() {
            let extent = &self.free[prng.below(self.free.len() as u64) as usize];
            let sectors = (extent.end - extent.start) / SECTOR;
            let from = prng.below(sectors);
            let count = (1 + prng.below(sectors - from)).min(8);
            let bytes = garbage(prng, count);
            self.file.write_all_at(&bytes, extent.start + from * SECTOR)?;
            sum.free += bytes.len() as u64;
        }
        Ok(())
    }
}
