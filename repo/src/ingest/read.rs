//! The thread that reads files: which bytes, in what pieces, and what the parent has there.

use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::Sender;
use tokio::runtime::Handle;

use crate::error::{RepoError, Result};
use crate::files::{FileEntry, FileKind, FileMeta};
use crate::ingest::budget::Poison;
use crate::ingest::parent::{Parent, ParentSegment};
use crate::ingest::stages::{Message, Pool, Segment, is_sound_cut};
use crate::ingest::{Changes, Job, ReadAt};

/// Bytes that are read and cut at a time.
const SEGMENT: usize = 1 << 20;

/// Reads all files of a job, in order.
pub(super) struct ReadStage<'a> {
    pub job: &'a Job,
    pub parent: Option<Parent>,
    pub poison: Arc<Poison>,
    pub handle: &'a Handle,
    pub segments: Pool,
    pub to_workers: Sender<Segment>,
    pub to_packer: Sender<(u64, Message)>,
    pub seq: u64,
}

/// Everybody was stopped: by an error that somebody else has told.
struct Stopped;

/// Whether to go on.
type Step = Result<Result<(), Stopped>>;

macro_rules! go_on {
    ($step:expr) => {
        if let Err(stopped) = $step {
            return Ok(Err(stopped));
        }
    };
}

impl ReadStage<'_> {
    pub fn read_all(mut self) -> Result<()> {
        let job = self.job;
        for meta in &job.files {
            if self.read_entry(meta)?.is_err() {
                break;
            }
        }
        Ok(())
    }

    fn read_entry(&mut self, meta: &FileMeta) -> Step {
        let parent = self.parent_of(meta)?;
        go_on!(self.tell(Message::Begin(meta.clone(), parent.clone().map(Box::new))));
        if meta.kind == FileKind::Regular && meta.size > 0 {
            go_on!(self.read_file(meta, parent.as_ref())?);
        }
        Ok(self.tell(Message::End))
    }

    /// Hands something to the packer.
    fn tell(&mut self, message: Message) -> Result<(), Stopped> {
        self.seq += 1;
        self.to_packer.send((self.seq - 1, message)).map_err(|_| Stopped)
    }

    fn parent_of(&self, meta: &FileMeta) -> Result<Option<FileEntry>> {
        let Some(parent) = &self.parent else {
            return Ok(None);
        };
        let found = self.handle.block_on(async {
            parent
                .reader
                .explain(parent.reader.files().find(&meta.path).await)
                .await
        })?;
        Ok(found.map(|(_, entry)| entry).filter(|e| e.meta.kind == meta.kind))
    }

    fn read_file(&mut self, meta: &FileMeta, entry: Option<&FileEntry>) -> Step {
        let (Some(parent), Some(entry)) = (&self.parent, entry) else {
            let mut file = self.open(meta)?;
            return self.stream(&mut *file, meta, 0..meta.size);
        };
        let ranges = match self.job.input.changes(meta) {
            Changes::Whole => std::iter::once(0..meta.size).collect(),
            Changes::Ranges(named) => self.to_read(parent, meta, entry, named)?,
        };
        let mut file = None;
        let (shared, mut at) = (Arc::new(meta.clone()), 0);
        for range in ranges {
            go_on!(self.keep(entry, at..range.start)?);
            at = range.end;
            let file = match &mut file {
                Some(open) => open,
                // A file of which nothing is read is not even opened.
                none => none.insert(self.open(meta)?),
            };
            let known = range.start..range.end.min(entry.meta.size);
            go_on!(self.compare(&mut **file, &shared, entry, known.clone())?);
            go_on!(self.stream(&mut **file, meta, known.end.max(range.start)..range.end)?);
        }
        self.keep(entry, at..meta.size)
    }

    fn open(&self, meta: &FileMeta) -> Result<Box<dyn ReadAt>> {
        self.job.input.open(meta).map_err(|e| unreadable(meta, e))
    }

    /// The ranges to be read, sorted and apart, if these were named: with what the parent does not have or may not
    /// be asked for, and widened to the edges of the parent's blocks, so that a block that reaches into a range can be
    /// recognised as unchanged.
    fn to_read(
        &self,
        parent: &Parent,
        meta: &FileMeta,
        entry: &FileEntry,
        named: Vec<Range<u64>>,
    ) -> Result<Vec<Range<u64>>> {
        let mut ranges = named;
        if entry.meta.size < meta.size {
            ranges.push(entry.meta.size..meta.size);
        }
        ranges.extend(self.handle.block_on(parent.forbidden_ranges(entry))?);
        let ranges = merged(ranges, meta.size);
        let widened = self.handle.block_on(async {
            let mut widened = Vec::with_capacity(ranges.len());
            for range in ranges {
                let (start, _) = parent.block_around(entry, range.start).await?;
                let (_, end) = parent.block_around(entry, range.end).await?;
                widened.push(start..end);
            }
            Ok::<_, RepoError>(widened)
        })?;
        Ok(merged(widened, meta.size))
    }

    /// Takes a range over from the parent.
    fn keep(&mut self, entry: &FileEntry, range: Range<u64>) -> Step {
        let Some(parent) = self.parent.as_ref().filter(|_| !range.is_empty()) else {
            return Ok(Ok(()));
        };
        let len = range.end - range.start;
        let extents = if parent.inherit_maps {
            Vec::new()
        } else {
            let extents = parent.reader.extents(&entry.root, entry.meta.size, range);
            self.handle.block_on(extents)?
        };
        Ok(self.tell(Message::Keep(len, extents)))
    }

    /// Reads a range that the parent has too, cut where its blocks are cut.
    fn compare(
        &mut self,
        file: &mut dyn ReadAt,
        meta: &Arc<FileMeta>,
        entry: &FileEntry,
        range: Range<u64>,
    ) -> Step {
        let mut offset = range.start;
        while offset < range.end {
            let to = range.end.min(offset + SEGMENT as u64);
            let known = match &self.parent {
                Some(parent) => self.handle.block_on(parent.segment(entry, offset, to))?,
                None => ParentSegment::default(),
            };
            let cuts = known.cuts(offset, to, to == range.end);
            let covered: usize = cuts.iter().map(|c| *c as usize).sum();
            let Some(permit) = self.permit(covered)? else {
                return Ok(Err(Stopped));
            };
            let mut buf = self.segments.take();
            buf.resize(covered, 0);
            file.read_exact_at(offset, &mut buf)
                .map_err(|e| unreadable(meta, e))?;
            let segment = Segment {
                seq: self.seq,
                offset,
                buf,
                cuts,
                parent: Some((meta.clone(), known)),
                permit,
            };
            go_on!(self.pass_on(segment));
            offset += covered as u64;
        }
        Ok(Ok(()))
    }

    /// Reads a range of which the parent has nothing, cut by the file's own cutter.
    fn stream(&mut self, file: &mut dyn ReadAt, meta: &FileMeta, range: Range<u64>) -> Step {
        let mut cutter = self.job.input.cutter(meta);
        let mut rest: Vec<u8> = Vec::new();
        let mut offset = range.start;
        while offset < range.end {
            let read = offset + rest.len() as u64;
            let fresh = (range.end - read).min(SEGMENT as u64) as usize;
            let last = read + fresh as u64 == range.end;
            let Some(permit) = self.permit(rest.len() + fresh)? else {
                return Ok(Err(Stopped));
            };
            let mut buf = self.segments.take();
            let start = rest.len();
            buf.resize(start + fresh, 0);
            buf[..start].copy_from_slice(&rest);
            file.read_exact_at(read, &mut buf[start..])
                .map_err(|e| unreadable(meta, e))?;
            let cuts = cutter.cut(offset, &buf, last);
            if !is_sound_cut(&cuts, buf.len(), last) {
                let reason = format!("its cutter made impossible blocks at byte {offset}");
                return Err(RepoError::BadInput {
                    path: meta.path.clone(),
                    reason,
                });
            }
            let covered: usize = cuts.iter().map(|c| *c as usize).sum();
            rest.clear();
            rest.extend_from_slice(&buf[covered..]);
            let segment = Segment {
                seq: self.seq,
                offset,
                buf,
                cuts,
                parent: None,
                permit,
            };
            go_on!(self.pass_on(segment));
            offset += covered as u64;
        }
        Ok(Ok(()))
    }

    /// Memory for a segment of so many bytes, and a look at whether to go on at all.
    fn permit(&self, bytes: usize) -> Result<Option<crate::ingest::budget::Permit>> {
        self.job.cancel.check()?;
        self.job.input.check().map_err(RepoError::SourceLost)?;
        // Twice: the worker has the compressed blocks beside the plain ones.
        Ok(self.poison.acquire(2 * bytes as u64))
    }

    fn pass_on(&mut self, segment: Segment) -> Result<(), Stopped> {
        self.seq += 1;
        self.to_workers.send(segment).map_err(|_| Stopped)
    }
}

/// Sorted, without what lies behind `size`, and those that touch put together.
fn merged(mut ranges: Vec<Range<u64>>, size: u64) -> Vec<Range<u64>> {
    for range in &mut ranges {
        range.end = range.end.min(size);
    }
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut out: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

/// A file that ends before its listed size: the standard library's words for that speak of buffers.
fn unreadable(meta: &FileMeta, error: std::io::Error) -> RepoError {
    let source = match error.kind() {
        kind @ std::io::ErrorKind::UnexpectedEof => std::io::Error::new(
            kind,
            "it became shorter while it was read; stop whatever writes there and try again",
        ),
        _ => error,
    };
    RepoError::Input {
        path: meta.path.clone(),
        source,
    }
}
