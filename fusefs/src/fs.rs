//! The file system: names, attributes and bytes of a [`Tree`] with [`Blocks`], by plain calls with plain results.
//!
//! Reads go: clip to the file, ask the handle's read-ahead whether to fetch more, find the spans (from what the handle has planned
//! already, else from the tree), find or load their blocks through the cache, and hand out slices of them.

mod handles;
mod pieces;

use std::ffi::OsStr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::cache::{BlockCache, CacheStats};
use crate::error::{BlockError, FsError};
use crate::readahead::ReadAheadConfig;
use crate::tree::{Attr, BlockKey, Blocks, Entry, Ino, NodeKind, Source, Span, Tree, Usage};
use handles::{Handles, OpenFile};
pub use pieces::Pieces;

/// How much memory to use, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsConfig {
    /// Bytes for blocks.
    pub cache_bytes: u64,
    /// Sequential read-ahead; `None` switches it off.
    pub read_ahead: Option<ReadAheadConfig>,
}

impl FsConfig {
    /// The whole of `budget` for blocks, with the read-ahead that fits it.
    #[must_use]
    pub fn with_budget(budget: u64) -> Self {
        Self {
            cache_bytes: budget,
            read_ahead: Some(ReadAheadConfig::for_budget(budget)),
        }
    }
}

impl Default for FsConfig {
    /// 128 MiB: several full windows, and far below the 512 MiB that the whole process may take.
    fn default() -> Self {
        Self::with_budget(128 << 20)
    }
}

/// Unit of the limit on bytes fetched ahead: a semaphore counts permits in `u32`.
const PERMIT: u64 = 64 << 10;

/// Entries that are asked of the tree at once: about what fits into one reply of the kernel's usual size.
const LIST_PAGE: usize = 32;

/// What the file system was asked so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct FsStats {
    /// Reads that reached us: the kernel's page cache answered all others.
    pub reads: u64,
    /// Bytes that they asked for, within the files.
    pub read_bytes: u64,
    /// Bytes that read-ahead asked for.
    pub ahead_bytes: u64,
    /// Reads that ended in an error.
    pub failed_reads: u64,
    /// Lookups, attributes and listings.
    pub metadata: u64,
    /// Operations that panicked and were answered with EIO.
    pub panics: u64,
    /// The block cache's own figures.
    pub cache: CacheStats,
}

#[derive(Default)]
struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    ahead_bytes: AtomicU64,
    failed_reads: AtomicU64,
    metadata: AtomicU64,
    panics: AtomicU64,
}

/// The file system. Share it by [`Arc`]: the session serves it while others look at its [`Fs::stats`].
pub struct Fs<T> {
    tree: Arc<T>,
    cache: BlockCache<BlockKey, BlockError>,
    handles: Handles,
    config: FsConfig,
    /// Bytes that may be on their way ahead of their readers, all handles together.
    ahead: Arc<Semaphore>,
    /// Its permits when nothing is on its way.
    most_ahead: usize,
    runtime: Handle,
    counters: Counters,
}

impl<T: Tree + Blocks> Fs<T> {
    /// Serves `tree`; loads run on `runtime`.
    pub fn new(tree: Arc<T>, config: FsConfig, runtime: Handle) -> Arc<Self> {
        // A quarter of the budget: two full windows. Never so few that one window could not begin.
        let most_ahead = (config.cache_bytes / 4 / PERMIT).clamp(64, 1 << 20) as usize;
        Arc::new(Self {
            tree,
            cache: BlockCache::new(config.cache_bytes, runtime.clone()),
            handles: Handles::default(),
            config,
            ahead: Arc::new(Semaphore::new(most_ahead)),
            most_ahead,
            runtime,
            counters: Counters::default(),
        })
    }

    /// The runtime that loads run on.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Attributes of a node.
    pub async fn attr(&self, ino: Ino) -> Result<Attr, FsError> {
        bump(&self.counters.metadata, 1);
        self.tree.attr(ino).await
    }

    /// A directory's entry.
    pub async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr, FsError> {
        bump(&self.counters.metadata, 1);
        self.tree.lookup(parent, name).await
    }

    /// Gives the entries of a directory after `cookie` (0: from the start), `.` and `..` first, to `take`, until it
    /// says by `false` that it did not take one.
    pub async fn list(
        &self,
        dir: Ino,
        mut cookie: u64,
        mut take: impl FnMut(&Entry) -> bool + Send,
    ) -> Result<(), FsError> {
        bump(&self.counters.metadata, 1);
        // Cookies 1 and 2 stand after `.` and `..`; the tree's own are shifted by two.
        const DOTS: u64 = 2;
        while cookie < DOTS {
            let (name, ino) = if cookie == 0 {
                (".", dir)
            } else {
                ("..", self.tree.parent(dir).await?)
            };
            let attr = self.tree.attr(ino).await?;
            if attr.kind != NodeKind::Directory {
                return Err(FsError::NotADirectory);
            }
            cookie += 1;
            if !take(&Entry {
                cookie,
                name: name.into(),
                attr,
            }) {
                return Ok(());
            }
        }
        loop {
            let page = self.tree.list(dir, cookie - DOTS, LIST_PAGE).await?;
            if page.is_empty() {
                return Ok(());
            }
            for entry in page {
                cookie = entry.cookie + DOTS;
                if !take(&Entry { cookie, ..entry }) {
                    return Ok(());
                }
            }
        }
    }

    /// Checks that `dir` can be listed.
    pub async fn open_dir(&self, dir: Ino) -> Result<Attr, FsError> {
        let attr = self.attr(dir).await?;
        if attr.kind == NodeKind::Directory {
            Ok(attr)
        } else {
            Err(FsError::NotADirectory)
        }
    }

    /// Opens a file for reading; the number is good until [`Fs::release`].
    pub async fn open(&self, ino: Ino) -> Result<u64, FsError> {
        let attr = self.attr(ino).await?;
        if attr.kind != NodeKind::File {
            return Err(FsError::IsADirectory);
        }
        Ok(self
            .handles
            .insert(OpenFile::new(ino, attr.size, self.config.read_ahead)))
    }

    /// Closes a handle. Reads under way go on.
    pub fn release(&self, handle: u64) {
        if let Some(file) = self.handles.remove(handle) {
            file.close();
        }
    }

    /// Up to `len` bytes at `offset`; fewer only at the end of the file.
    ///
    /// The future is ready at its first poll when every block is cached and its place in the file is known without
    /// asking storage.
    pub async fn read(self: &Arc<Self>, handle: u64, offset: u64, len: u64) -> Result<Pieces, FsError> {
        bump(&self.counters.reads, 1);
        let result = self.read_inner(handle, offset, len).await;
        if result.is_err() {
            bump(&self.counters.failed_reads, 1);
        }
        result
    }

    /// Totals for `df`.
    pub async fn usage(&self) -> Result<Usage, FsError> {
        self.tree.usage().await
    }

    /// What happened so far.
    pub fn stats(&self) -> FsStats {
        let of = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let c = &self.counters;
        FsStats {
            reads: of(&c.reads),
            read_bytes: of(&c.read_bytes),
            ahead_bytes: of(&c.ahead_bytes),
            failed_reads: of(&c.failed_reads),
            metadata: of(&c.metadata),
            panics: of(&c.panics),
            cache: self.cache.stats(),
        }
    }

    /// Notes an operation that panicked.
    pub(crate) fn note_panic(&self) {
        bump(&self.counters.panics, 1);
    }

    async fn read_inner(self: &Arc<Self>, handle: u64, offset: u64, len: u64) -> Result<Pieces, FsError> {
        let file = self.handles.get(handle).ok_or(FsError::BadHandle(handle))?;
        let end = offset.saturating_add(len).min(file.size);
        if offset >= end {
            return Ok(Pieces::default());
        }
        bump(&self.counters.read_bytes, end - offset);
        let ahead = file.note_read(offset, end - offset);
        let spans = self.spans(&file, offset..end).await?;
        let keys = block_keys(&spans);
        let request = self.cache.request(&keys, self.loader());
        if let Some(range) = ahead {
            // After the reader's own blocks, so that they are first in the storage's queue.
            self.fetch_ahead(file.clone(), range);
        }
        let blocks = request.all().await;
        match assemble(&spans, offset..end, blocks) {
            Ok(pieces) => Ok(pieces),
            Err((offset, e)) => Err(e.at(&self.tree.path(file.ino).await, offset)),
        }
    }

    /// The spans of a range: what the handle knows from fetching ahead, the rest from the tree.
    async fn spans(&self, file: &OpenFile, range: Range<u64>) -> Result<Vec<Span>, FsError> {
        let (mut spans, known) = file.planned(range.clone());
        if known < range.end {
            spans.extend(self.tree.spans(file.ino, known..range.end).await?);
        }
        // A block that lies across the border of two plans is given by both.
        let mut at = range.start;
        spans.retain(|span| {
            let next = span.offset <= at && span.end() > at && at < range.end;
            if next {
                at = span.end();
            }
            next
        });
        if at < range.end {
            let path = self.tree.path(file.ino).await;
            let why = format!("no block is known for offset {at} of {path}");
            return Err(FsError::Internal(why.into()));
        }
        Ok(spans)
    }

    /// Loads a range in the background through the same cache, and leaves its plan with the handle.
    fn fetch_ahead(self: &Arc<Self>, file: Arc<OpenFile>, range: Range<u64>) {
        bump(&self.counters.ahead_bytes, range.end - range.start);
        let fs = self.clone();
        self.runtime.spawn(async move {
            let permits = (range.end - range.start)
                .div_ceil(PERMIT)
                .min(fs.most_ahead as u64) as u32;
            let Ok(_permit) = fs.ahead.clone().acquire_many_owned(permits).await else {
                return;
            };
            if file.closed() {
                return;
            }
            // Errors are not reported here: whoever reads the range will meet them again, and can name the file.
            let Ok(spans) = fs.tree.spans(file.ino, range.clone()).await else {
                return;
            };
            let keys = block_keys(&spans);
            file.remember(range, spans);
            fs.cache.request(&keys, fs.loader()).all().await;
        });
    }

    fn loader(
        &self,
    ) -> impl Fn(Vec<BlockKey>) -> BoxFuture<'static, Vec<Result<Bytes, BlockError>>> + use<T> {
        let tree = self.tree.clone();
        move |run| {
            let tree = tree.clone();
            async move { tree.fetch(run).await }.boxed()
        }
    }
}

/// Slices of the blocks, or the first failure and the offset in the file at which it is.
fn assemble(
    spans: &[Span],
    range: Range<u64>,
    blocks: Vec<Result<Bytes, BlockError>>,
) -> Result<Pieces, (u64, BlockError)> {
    let mut pieces = Pieces::default();
    let mut blocks = blocks.into_iter();
    for span in spans {
        let from = span.offset.max(range.start);
        let len = span.end().min(range.end) - from;
        match span.source {
            Source::Hole => pieces.push_zeros(len),
            Source::Block { skip, .. } => {
                let block = blocks
                    .next()
                    .unwrap_or(Err(BlockError::Abandoned))
                    .map_err(|e| (span.offset, e))?;
                let first = u64::from(skip) + (from - span.offset);
                // The plan and the block come from one verified trailer, so this can only be our own mistake.
                if first + len > block.len() as u64 {
                    return Err((span.offset, BlockError::Short));
                }
                pieces.push(block.slice(first as usize..(first + len) as usize));
            }
        }
    }
    Ok(pieces)
}

/// The blocks of spans, with the plain length that is at least in them (runs are cut by it).
fn block_keys(spans: &[Span]) -> Vec<(BlockKey, u64)> {
    let block = |span: &Span| match span.source {
        Source::Hole => None,
        Source::Block { key, skip } => Some((key, u64::from(skip) + span.len)),
    };
    spans.iter().filter_map(block).collect()
}

fn bump(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

#[cfg(test)]
#[path = "fs_tests.rs"]
mod tests;
