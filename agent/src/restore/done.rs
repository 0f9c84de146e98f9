//! What of the files is restored: everything before a point, and ranges behind it.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// A place in the list of files: a file's number, and an offset in it.
pub(super) type Point = (u64, u64);

/// What is restored and durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Done {
    /// Everything before this is restored: all files with lower numbers, and this one up to the offset.
    through: Point,
    /// Ranges behind it, by file; sorted and apart.
    ranges: BTreeMap<u64, Vec<Range<u64>>>,
    /// Files that are to be restored whatever is said above.
    redo: HashSet<u64>,
}

impl Done {
    /// Everything before `point` is restored.
    pub fn set_through(&mut self, point: Point) {
        self.through = self.through.max(point);
        self.ranges = self.ranges.split_off(&self.through.0);
    }

    /// A range of a file is restored. Call [`Done::tidy`] behind the last.
    pub fn add(&mut self, file: u64, range: Range<u64>) {
        if file >= self.through.0 {
            self.ranges.entry(file).or_default().push(range);
        }
    }

    /// Puts the ranges in order.
    pub fn tidy(&mut self) {
        self.ranges.values_mut().for_each(merge);
    }

    /// The file of `size` bytes is not what was left there: all of it is to be restored.
    pub fn forget(&mut self, file: u64, size: u64) {
        let all = 0..size;
        if self.missing(file, all.clone()) != [all] {
            self.redo.insert(file);
        }
    }

    /// Where restoring goes on at the earliest.
    pub fn start(&self) -> Point {
        match self.redo.iter().min() {
            Some(first) if *first <= self.through.0 => (*first, 0),
            _ => self.through,
        }
    }

    /// The parts of `range` of a file that are still to be restored, in order.
    pub fn missing(&self, file: u64, range: Range<u64>) -> Vec<Range<u64>> {
        if self.redo.contains(&file) {
            return vec![range];
        }
        let mut at = match file.cmp(&self.through.0) {
            std::cmp::Ordering::Less => range.end,
            std::cmp::Ordering::Equal => range.start.max(self.through.1),
            std::cmp::Ordering::Greater => range.start,
        };
        let mut out = Vec::new();
        let done = self.ranges.get(&file).map_or(&[][..], Vec::as_slice);
        let first = done.partition_point(|d| d.end <= at);
        for done in &done[first..] {
            if done.start >= range.end {
                break;
            }
            if at < done.start {
                out.push(at..done.start);
            }
            at = at.max(done.end);
        }
        if at < range.end {
            out.push(at..range.end);
        }
        out
    }
}

/// Sorts ranges and joins those that touch.
pub(super) fn merge(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_unstable_by_key(|r| (r.start, r.end));
    ranges.dedup_by(|next, last| {
        let touch = next.start <= last.end;
        if touch {
            last.end = last.end.max(next.end);
        }
        touch
    });
}

#[cfg(test)]
mod tests;
