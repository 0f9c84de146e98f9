//! What is to be restored: a survey of all of it, then windows of runs in the order in which they lie in packs.

use std::ops::Range;
use std::sync::Arc;

use pbmfs_repo::ReplsetReader;
use pbmfs_repo::files::{FileEntry, FileKind};
use pbmfs_repo::id::PackNo;
use pbmfs_repo::map::{Extent, ExtentKind};
use tokio::runtime::Handle;

use super::done::{Done, Point};
use super::error::{RestoreError, Result};
use super::stop::Stop;
use super::tree::Tree;

/// Bytes of a file whose extents are in memory at a time. With blocks of 4 KiB these are 65,536 extents, 6 MB.
const SLICE: u64 = 256 << 20;

/// Reads the lists and maps of a replica set from a thread that may block.
#[derive(Clone)]
pub(super) struct Maps<'a> {
    pub reader: &'a ReplsetReader,
    pub handle: &'a Handle,
    pub stop: &'a Stop,
}

impl Maps<'_> {
    /// Entries of the file list.
    pub fn len(&self) -> u64 {
        self.reader.files().len()
    }

    /// An entry of the file list.
    pub fn entry(&self, number: u64) -> Result<FileEntry> {
        self.stop.check()?;
        let found = self
            .handle
            .block_on(async { self.reader.explain(self.reader.files().get(number).await).await })?;
        found.ok_or_else(|| RestoreError::Poisoned(format!("the file list has no entry {number}")))
    }

    /// All entries in order.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = Result<(u64, FileEntry)>> {
        (0..self.len()).map(|n| Ok((n, self.entry(n)?)))
    }

    /// The extents of data in a slice of a file: their places, and the parts of them that are not done.
    fn data(&self, entry: &FileEntry, slice: Range<u64>, mut each: impl FnMut(u64, &Extent)) -> Result<()> {
        self.stop.check()?;
        let extents = self.reader.extents(&entry.root, entry.meta.size, slice);
        let extents = self
            .handle
            .block_on(extents)
            .map_err(RestoreError::of_file(&entry.meta.path))?;
        for placed in extents {
            if matches!(placed.extent.kind, ExtentKind::Data { .. }) {
                each(placed.offset, &placed.extent);
            }
        }
        Ok(())
    }
}

fn slices(size: u64, from: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = from;
    std::iter::from_fn(move || {
        let start = at;
        at = size.min(start.saturating_add(SLICE));
        (start < size).then_some(start..at)
    })
}

/// What a restore will do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestorePlan {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of all files, holes included.
    pub bytes_total: u64,
    /// Bytes that are not in holes.
    pub bytes_data: u64,
    /// Of those, bytes that an earlier run restored.
    pub bytes_done: u64,
}

/// Adds up what is to be done, and how many bytes the file system must have for it. `tree` holds the files of an
/// earlier run, if there are any; `unit` is what the file system allocates at a time.
pub(super) fn survey(
    maps: &Maps<'_>,
    done: &Done,
    tree: Option<&Tree>,
    unit: u64,
) -> Result<(RestorePlan, u128)> {
    let mut plan = RestorePlan::default();
    let mut needed = 0u128;
    for entry in maps.entries() {
        let (number, entry) = entry?;
        if entry.meta.kind == FileKind::Directory {
            plan.directories += 1;
            continue;
        }
        let (mut data, mut missing, mut room) = (0u64, 0u64, 0u64);
        for slice in slices(entry.meta.size, 0) {
            maps.data(&entry, slice, |offset, extent| {
                let end = offset + extent.len;
                let rounded = end.next_multiple_of(unit) - offset / unit * unit;
                let left: u64 = done.missing(number, offset..end).iter().map(length).sum();
                data += extent.len;
                missing += left;
                // Neighbours may share a unit, which is counted twice: `room` is capped below.
                room = room.saturating_add(if left > 0 { rounded } else { 0 });
            })?;
        }
        plan.files += 1;
        plan.bytes_total = plan.bytes_total.saturating_add(entry.meta.size);
        plan.bytes_data = plan.bytes_data.saturating_add(data);
        plan.bytes_done = plan.bytes_done.saturating_add(data - missing);
        let most = entry.meta.size.checked_next_multiple_of(unit).unwrap_or(u64::MAX);
        // What was written and not recorded is written again to the same place.
        let there = tree.map_or(0, |tree| tree.allocated(&entry.meta.path));
        let whole = data.saturating_add(unit).min(most);
        needed += u128::from(room.min(most).min(whole.saturating_sub(there)));
    }
    Ok((plan, needed))
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// A file of a window.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WindowFile {
    /// Its number in the list.
    pub number: u64,
    /// Its path.
    pub path: String,
}

/// Part of a file that consists of a run of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub pack: PackNo,
    pub first: u32,
    pub count: u32,
    /// Index in [`Window::files`].
    pub file: u32,
    pub skip: u64,
    pub offset: u64,
    pub len: u64,
}

impl Run {
    /// Its extent, as maps have it.
    pub fn extent(&self) -> Extent {
        Extent {
            len: self.len,
            kind: ExtentKind::Data {
                pack: self.pack,
                first: self.first,
                count: self.count,
                skip: self.skip,
            },
        }
    }
}

/// Some files, or a part of one, all of whose runs fit in memory.
#[derive(Debug)]
pub(super) struct Window {
    pub files: Arc<Vec<WindowFile>>,
    /// Sorted by pack and slot.
    pub runs: Vec<Run>,
    /// Where it ends: once it is restored, all before this is.
    pub end: Point,
}

/// Cuts a restore into windows.
pub(super) struct Windows<'a> {
    pub maps: Maps<'a>,
    pub done: &'a Done,
    pub at: Point,
    /// Bytes that a window may take; one slice may go beyond.
    pub memory: usize,
}

impl Windows<'_> {
    /// The next window; `None` behind the last.
    pub fn next(&mut self) -> Result<Option<Window>> {
        let (mut files, mut runs) = (Vec::<WindowFile>::new(), Vec::new());
        let mut memory = 0;
        let from = self.at;
        while self.at.0 < self.maps.len() && memory < self.memory {
            let (number, offset) = self.at;
            let entry = self.maps.entry(number)?;
            if entry.meta.kind == FileKind::Regular {
                let index = files.len() as u32;
                let before = runs.len();
                for slice in slices(entry.meta.size, offset) {
                    let end = slice.end;
                    self.maps.data(&entry, slice, |offset, extent| {
                        push_missing(&mut runs, self.done, number, index, offset, extent);
                    })?;
                    self.at = (number, end);
                    if memory + size_of_val(&runs[before..]) >= self.memory {
                        break;
                    }
                }
                memory += size_of_val(&runs[before..]);
                if runs.len() > before {
                    memory += size_of::<WindowFile>() + entry.meta.path.len();
                    files.push(WindowFile {
                        number,
                        path: entry.meta.path,
                    });
                }
                if self.at.1 < entry.meta.size && self.at.0 == number {
                    break;
                }
            }
            self.at = (number + 1, 0);
        }
        if from == self.at {
            return Ok(None);
        }
        runs.sort_unstable_by_key(|r: &Run| (r.pack, r.first, r.skip, r.file, r.offset));
        Ok(Some(Window {
            files: Arc::new(files),
            runs,
            end: self.at,
        }))
    }
}

fn push_missing(runs: &mut Vec<Run>, done: &Done, number: u64, file: u32, offset: u64, extent: &Extent) {
    for part in done.missing(number, offset..offset + extent.len) {
        let cut = extent.part(part.start - offset, part.end - offset);
        if let ExtentKind::Data {
            pack,
            first,
            count,
            skip,
        } = cut.kind
        {
            runs.push(Run {
                pack,
                first,
                count,
                file,
                skip,
                offset: part.start,
                len: cut.len,
            });
        }
    }
}
