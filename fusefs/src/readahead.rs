//! Sequential read-ahead of one open file: a pure state machine, told of every read, that says what to fetch.
//!
//! The kernel reads ahead too, but its window is small (1 MiB at most here) and its requests come out of order: several event
//! loops take them off the queue at once, so a sequential reader is seen up to 256 KiB backwards and 512 KiB
//! forwards of where it should be (measured by mountpoint-s3), more when the window was raised. So "sequential"
//! has to tolerate jumps. On the other hand WiredTiger reads 4 to 32 KiB at random, often within one small file,
//! and must not be taken for a stream: every byte fetched for nothing costs a storage request. Hence the tolerance
//! depends on the size of the read. Only large reads, which random readers do not issue, may jump far.

use std::ops::Range;

/// Sizes, with the reason for each default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadAheadConfig {
    /// First window. One request of the kernel at its raised window; already worth a ranged request.
    pub first: u64,
    /// Largest window. Bounded by a share of the cache: what is fetched ahead must still be there when it is read.
    pub cap: u64,
    /// How much must have been read in sequence before anything is fetched ahead.
    pub evidence: u64,
}

impl ReadAheadConfig {
    /// Sizes that fit a cache of `budget` bytes: a window is at most an eighth of it, so that a few streams at
    /// once do not push out each other's blocks, and at most 32 MiB (eight requests of 4 MiB under way).
    #[must_use]
    pub fn for_budget(budget: u64) -> Self {
        let cap = (budget / 8).clamp(1 << 20, 32 << 20);
        Self {
            first: 1 << 20,
            cap,
            evidence: 128 << 10,
        }
    }
}

/// Reads of at least this size come from the kernel's read-ahead or from a program that copies.
const LARGE: u64 = 64 << 10;

/// How far a large read may be from where the stream stands. Event loops and the kernel's window of 1 MiB reorder
/// by a few requests; 4 MiB covers that.
const LARGE_JUMP: u64 = 4 << 20;

/// How far forward a large read may jump once the stream is established (a reader that skips); the same 16 MiB
/// that mountpoint-s3 settled on.
const ESTABLISHED_JUMP: u64 = 16 << 20;

/// The state of one open file.
#[derive(Debug)]
pub struct ReadAhead {
    config: ReadAheadConfig,
    /// The end of the furthest read of the stream.
    front: u64,
    /// Bytes by which the front has moved since the stream began.
    evidence: u64,
    /// Everything before this was read or is being fetched.
    fetched: u64,
    window: u64,
}

impl ReadAhead {
    /// Nothing read yet. A first read at offset 0 counts as the start of a stream.
    #[must_use]
    pub fn new(config: ReadAheadConfig) -> Self {
        Self {
            config,
            front: 0,
            evidence: 0,
            fetched: 0,
            window: config.first,
        }
    }

    /// Notes a read of `len` bytes at `offset` of a file of `size` bytes. The answer is what to fetch ahead now,
    /// beginning at or after the end of what is known to be fetched.
    pub fn on_read(&mut self, offset: u64, len: u64, size: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(len).min(size);
        if offset >= end {
            return None;
        }
        if !self.continues(offset, end - offset) {
            *self = Self::new(self.config);
            self.front = end;
            self.fetched = end;
            return None;
        }
        if end > self.front {
            self.evidence += end - self.front.max(offset);
            self.front = end;
        }
        if self.evidence < self.config.evidence {
            return None;
        }
        self.fetched = self.fetched.max(self.front);
        // Half of the window used up: fetch until the window is full again. The first time, all of it is missing.
        if self.fetched - self.front > self.window / 2 || self.fetched >= size {
            return None;
        }
        let from = self.fetched;
        let to = self.front.saturating_add(self.window).min(size);
        if to <= from {
            return None;
        }
        self.fetched = to;
        self.window = (self.window * 2).min(self.config.cap);
        Some(from..to)
    }

    /// Where the stream stands: plans for what lies well before are not needed any more.
    #[must_use]
    pub fn front(&self) -> u64 {
        self.front
    }

    fn continues(&self, offset: u64, len: u64) -> bool {
        let established = self.evidence >= self.config.evidence;
        let (back, forward) = match (len >= LARGE, established) {
            (true, true) => (LARGE_JUMP, ESTABLISHED_JUMP),
            // Before there is a stream, believe in one only near by: a random reader of large pages exists too.
            (true, false) => (4 * len, 4 * len),
            // A small read continues a stream only where the stream ends, give or take the read itself.
            (false, _) => (len, len),
        };
        offset <= self.front.saturating_add(forward)
            && offset.saturating_add(back).saturating_add(len) >= self.front
    }
}

#[cfg(test)]
#[path = "readahead_tests.rs"]
mod tests;
