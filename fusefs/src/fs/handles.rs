//! Open files: each with its read-ahead state and the spans that fetching ahead has found out already.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::readahead::{ReadAhead, ReadAheadConfig};
use crate::tree::{Ino, Span};

/// Plans that a handle keeps: a window is fetched in at most a few steps, so older ones lie behind the reader.
const MAX_PLANS: usize = 8;

/// A plan is kept this far behind the front, since the kernel's requests arrive out of order.
const KEEP_BEHIND: u64 = 4 << 20;

/// The table of open files.
#[derive(Default)]
pub(super) struct Handles {
    files: RwLock<HashMap<u64, Arc<OpenFile>>>,
    last: AtomicU64,
}

impl Handles {
    pub(super) fn insert(&self, file: OpenFile) -> u64 {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.files
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(handle, Arc::new(file));
        handle
    }

    pub(super) fn get(&self, handle: u64) -> Option<Arc<OpenFile>> {
        self.files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&handle)
            .cloned()
    }

    pub(super) fn remove(&self, handle: u64) -> Option<Arc<OpenFile>> {
        self.files
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&handle)
    }
}

/// One open file.
pub(super) struct OpenFile {
    pub(super) ino: Ino,
    pub(super) size: u64,
    closed: AtomicBool,
    state: Mutex<State>,
}

struct State {
    read_ahead: Option<ReadAhead>,
    plans: VecDeque<(Range<u64>, Vec<Span>)>,
}

impl OpenFile {
    pub(super) fn new(ino: Ino, size: u64, read_ahead: Option<ReadAheadConfig>) -> Self {
        let state = State {
            read_ahead: read_ahead.map(ReadAhead::new),
            plans: VecDeque::new(),
        };
        Self {
            ino,
            size,
            closed: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Tells the read-ahead of a read within the file, and returns what to fetch ahead.
    pub(super) fn note_read(&self, offset: u64, len: u64) -> Option<Range<u64>> {
        let mut state = self.state();
        let state = &mut *state;
        let read_ahead = state.read_ahead.as_mut()?;
        let ahead = read_ahead.on_read(offset, len, self.size);
        if ahead.is_some() {
            let behind = read_ahead.front().saturating_sub(KEEP_BEHIND);
            state.plans.retain(|(range, _)| range.end > behind);
        }
        ahead
    }

    /// Keeps the spans of a range for the reader that is coming.
    pub(super) fn remember(&self, range: Range<u64>, spans: Vec<Span>) {
        let mut state = self.state();
        if state.plans.len() == MAX_PLANS {
            state.plans.pop_front();
        }
        state.plans.push_back((range, spans));
    }

    /// The known spans from the start of `range` on, and up to where they reach.
    pub(super) fn planned(&self, range: Range<u64>) -> (Vec<Span>, u64) {
        let state = self.state();
        let (mut found, mut at) = (Vec::new(), range.start);
        while at < range.end {
            let Some((plan, spans)) = state.plans.iter().find(|(plan, _)| plan.contains(&at)) else {
                break;
            };
            let first = spans.partition_point(|span| span.end() <= at);
            let to = plan.end.min(range.end);
            found.extend(spans[first..].iter().take_while(|span| span.offset < to));
            at = to;
        }
        (found, at)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
