//! The threads of a restore: one plans reads, several read, verify and write, and one makes durable what they wrote
//! and records it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pbmfs_repo::id::{PackNo, Slot};
use pbmfs_repo::{ErrorKind, RepoError};

use super::RestoreProgress;
use super::done::{Point, merge};
use super::error::{DamagedFile, RestoreError, Result};
use super::journal::{Journal, Ranges};
use super::plan::{Maps, Windows};
use super::reads::{Piece, Read, plan_reads};
use super::tree::{Tree, write_all_at};

/// Files that a thread keeps open: a window's blocks lie in the order of packs, which is nearly that of files.
const OPEN_FILES: usize = 16;

/// Blocks that are written with one call.
const SLICES: usize = 256;

/// How a restore works.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub workers: usize,
    /// Plain bytes of a read.
    pub read_bytes: u64,
    pub checkpoint_bytes: u64,
    pub checkpoint_every: Duration,
    /// Ranges that are recorded at once at most.
    pub checkpoint_ranges: usize,
}

/// What all threads share.
pub(super) struct Work<'a> {
    pub maps: Maps<'a>,
    pub tree: &'a Tree,
    pub progress: &'a dyn RestoreProgress,
    pub rules: Rules,
    pub state: Mutex<State>,
    pub changed: Condvar,
}

/// What is written and not yet recorded.
#[derive(Debug, Default)]
pub(super) struct State {
    ranges: BTreeMap<u64, Vec<Range<u64>>>,
    count: usize,
    /// Paths of the files of `ranges`, if they have to be synced one by one.
    touched: BTreeMap<u64, String>,
    bytes: u64,
    written: u64,
    /// Everything before this is in `ranges`, or recorded.
    through: Option<Point>,
    /// Reads on their way.
    in_flight: usize,
    closing: bool,
}

impl Work<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Restores all windows. What was written is recorded even if this fails. Gives back how many bytes were written.
    pub fn run(&self, mut windows: Windows<'_>, journal: Journal) -> Result<(u64, Journal)> {
        let journal = thread::scope(|scope| {
            let keeper = scope.spawn(|| self.keep(journal));
            let (reads, from) = crossbeam_channel::bounded::<Read>(self.rules.workers);
            let workers: Vec<_> = (0..self.rules.workers)
                .map(|_| {
                    let from = from.clone();
                    scope.spawn(move || self.work(&from))
                })
                .collect();
            drop(from);
            if let Err(e) = self.plan(&mut windows, &reads) {
                self.maps.stop.fail(e);
            }
            drop(reads);
            for worker in workers {
                self.join(worker);
            }
            self.state().closing = true;
            self.changed.notify_all();
            self.join(keeper)
        });
        self.maps.stop.verdict()?;
        let written = self.state().written;
        journal
            .map(|journal| (written, journal))
            .ok_or_else(|| RestoreError::Poisoned("the journal's thread is gone".into()))
    }

    fn join<T>(&self, thread: ScopedJoinHandle<'_, T>) -> Option<T> {
        let result = thread.join();
        if result.is_err() {
            let e = RestoreError::Poisoned("a thread of the restore panicked".into());
            self.maps.stop.fail(e);
        }
        result.ok()
    }

    /// Plans all windows and hands out their reads.
    fn plan(&self, windows: &mut Windows<'_>, reads: &crossbeam_channel::Sender<Read>) -> Result<()> {
        while let Some(window) = windows.next()? {
            for runs in window.runs.chunk_by(|a, b| a.pack == b.pack) {
                let (pack, first) = (runs[0].pack, &runs[0]);
                let trailer = self.maps.handle.block_on(self.maps.reader.trailer(pack));
                let trailer = match trailer {
                    Ok(trailer) => trailer,
                    Err(e) => {
                        let path = &window.files[first.file as usize].path;
                        return Err(self.damaged(pack, first.first, path, first.offset, e));
                    }
                };
                plan_reads(runs, &trailer, &window.files, self.rules.read_bytes, |read| {
                    self.maps.stop.check()?;
                    self.state().in_flight += 1;
                    reads
                        .send(read)
                        .map_err(|_| RestoreError::Poisoned("no thread of the restore is left".into()))
                })?;
            }
            let mut state = self.state();
            while state.in_flight > 0 {
                self.maps.stop.check()?;
                state = self.wait(state, Duration::from_millis(50));
            }
            // A read that failed has landed, too.
            self.maps.stop.check()?;
            state.through = Some(window.end);
        }
        Ok(())
    }

    fn wait<'g>(&self, state: MutexGuard<'g, State>, time: Duration) -> MutexGuard<'g, State> {
        let waited = self.changed.wait_timeout(state, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn work(&self, from: &crossbeam_channel::Receiver<Read>) {
        let mut files = OpenFiles::default();
        for read in from {
            let landed = Landed(self);
            // When everybody stops, what is planned is thrown away, so that the planner never waits.
            if !self.maps.stop.is_stopped()
                && let Err(e) = self.restore(&read, &mut files)
            {
                self.maps.stop.fail(e);
            }
            drop(landed);
        }
    }

    fn restore(&self, read: &Read, files: &mut OpenFiles) -> Result<()> {
        let blocks = self
            .maps
            .handle
            .block_on(self.maps.reader.fetch(read.pack, read.slots.clone()));
        let blocks = match blocks {
            Ok(blocks) => blocks,
            Err(e) => return Err(self.find_damage(read, e)),
        };
        let mut slices = Vec::with_capacity(read.pieces.len().min(SLICES));
        let mut begin = 0;
        for (i, piece) in read.pieces.iter().enumerate() {
            slices.push(IoSlice::new(part(&blocks, read, piece)?));
            let next = read.pieces.get(i + 1);
            let goes_on = next.is_some_and(|next| {
                next.file == piece.file && next.offset == end_of(piece) && slices.len() < SLICES
            });
            if !goes_on {
                let first = &read.pieces[begin];
                let path = &read.files[first.file as usize].path;
                let file = files.get(self.tree, path)?;
                write_all_at(file, &mut slices, first.offset)
                    .map_err(RestoreError::io("write", &self.tree.path(path)))?;
                self.written(read, first, end_of(piece));
                slices.clear();
                begin = i + 1;
            }
        }
        Ok(())
    }

    /// A range was written.
    fn written(&self, read: &Read, first: &Piece, end: u64) {
        let file = &read.files[first.file as usize];
        let len = end - first.offset;
        let mut state = self.state();
        let ranges = state.ranges.entry(file.number).or_default();
        match ranges.last_mut() {
            Some(last) if last.end == first.offset => last.end = end,
            _ => {
                ranges.push(first.offset..end);
                state.count += 1;
            }
        }
        if !self.tree.syncs_whole() {
            let path = || file.path.clone();
            state.touched.entry(file.number).or_insert_with(path);
        }
        state.bytes += len;
        state.written += len;
        if self.is_due(&state) {
            self.changed.notify_all();
        }
        drop(state);
        self.progress.bytes(len);
    }

    fn is_due(&self, state: &State) -> bool {
        state.bytes >= self.rules.checkpoint_bytes || state.count >= self.rules.checkpoint_ranges
    }

    /// Makes what was written durable and records it, from time to time and at the end. After a failure nothing is
    /// recorded any more: what a failed sync lost, the next one no longer tells of.
    fn keep(&self, mut journal: Journal) -> Journal {
        let mut last = Instant::now();
        loop {
            let mut state = self.state();
            while !state.closing
                && !self.is_due(&state)
                && (last.elapsed() < self.rules.checkpoint_every || state.bytes == 0)
            {
                let left = self.rules.checkpoint_every.saturating_sub(last.elapsed());
                state = self.wait(state, left.max(Duration::from_millis(20)));
            }
            let closing = state.closing;
            let taken = State {
                ranges: std::mem::take(&mut state.ranges),
                touched: std::mem::take(&mut state.touched),
                through: state.through.take(),
                ..State::default()
            };
            (state.bytes, state.count) = (0, 0);
            drop(state);
            if let Err(e) = self.checkpoint(&mut journal, taken) {
                self.maps.stop.fail(e);
                return journal;
            }
            last = Instant::now();
            if closing {
                return journal;
            }
        }
    }

    fn checkpoint(&self, journal: &mut Journal, taken: State) -> Result<()> {
        if taken.ranges.is_empty() && taken.through.is_none() {
            return Ok(());
        }
        let started = Instant::now();
        self.tree.sync(taken.touched.values().map(String::as_str))?;
        let from = taken.through.unwrap_or_default();
        let mut ranges = Ranges::new();
        // What lies before a window's end needs no record of its own.
        for (file, mut list) in taken.ranges {
            merge(&mut list);
            let open = list.into_iter().filter(|range| (file, range.end) > from);
            ranges.extend(open.map(|range| (file, range)));
        }
        journal
            .checkpoint(&ranges, taken.through)
            .map_err(RestoreError::io("write the journal of", self.tree.root()))?;
        tracing::debug!("checkpoint of {} ranges in {:?}", ranges.len(), started.elapsed());
        Ok(())
    }

    /// Names the first block of a read that cannot be read, and what needs it.
    fn find_damage(&self, read: &Read, error: RepoError) -> RestoreError {
        if error.kind() != ErrorKind::Damaged {
            return error.into();
        }
        for slot in read.slots.clone() {
            if self.maps.stop.is_stopped() {
                break;
            }
            let fetched = self
                .maps
                .handle
                .block_on(self.maps.reader.fetch(read.pack, slot..slot + 1));
            if let Err(e) = fetched
                && let Some(piece) = read.pieces.iter().find(|p| p.slot == slot)
            {
                let path = &read.files[piece.file as usize].path;
                return self.damaged(read.pack, slot, path, piece.offset, e);
            }
        }
        error.into()
    }

    fn damaged(&self, pack: PackNo, slot: u32, path: &str, offset: u64, source: RepoError) -> RestoreError {
        if source.kind() != ErrorKind::Damaged {
            return source.into();
        }
        let (loc, trailer) = self.maps.handle.block_on(async {
            (
                self.maps.reader.pack(pack).await,
                self.maps.reader.trailer(pack).await,
            )
        });
        match loc {
            Ok(loc) => RestoreError::DamagedFile(Box::new(DamagedFile {
                path: path.into(),
                offset,
                pack: loc.id,
                slot,
                block: trailer.ok().and_then(|t| t.slot(Slot(slot)).map(|info| info.id)),
                source,
            })),
            Err(_) => RestoreError::of_file(path)(source),
        }
    }
}

/// A read that was taken from the channel is over, however it ended.
struct Landed<'a>(&'a Work<'a>);

impl Drop for Landed<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.in_flight -= 1;
        if thread::panicking() {
            let e = RestoreError::Poisoned("a thread of the restore panicked".into());
            self.0.maps.stop.fail(e);
        }
        if state.in_flight == 0 {
            self.0.changed.notify_all();
        }
    }
}

fn end_of(piece: &Piece) -> u64 {
    piece.offset + u64::from(piece.to - piece.from)
}

/// The bytes of a piece.
fn part<'b>(blocks: &'b [Bytes], read: &Read, piece: &Piece) -> Result<&'b [u8]> {
    blocks
        .get((piece.slot - read.slots.start) as usize)
        .and_then(|block| block.get(piece.from as usize..piece.to as usize))
        .ok_or_else(|| RestoreError::Poisoned("a block is shorter than its pack's trailer says".into()))
}

/// The files that a thread wrote to last.
#[derive(Default)]
struct OpenFiles(Vec<(String, File)>);

impl OpenFiles {
    fn get(&mut self, tree: &Tree, path: &str) -> Result<&File> {
        match self.0.iter().rposition(|(p, _)| p == path) {
            Some(at) => {
                let found = self.0.remove(at);
                self.0.push(found);
            }
            None => {
                if self.0.len() == OPEN_FILES {
                    self.0.remove(0);
                }
                self.0.push((path.into(), tree.open_file(path)?));
            }
        }
        self.0
            .last()
            .map(|(_, file)| file)
            .ok_or_else(|| RestoreError::Poisoned("no file is open".into()))
    }
}
