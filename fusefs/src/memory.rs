//! A tree in memory: what tests and benchmarks mount when they want no repository in the picture.
//!
//! Files are cut into blocks of one size; every file is a pack, every block a slot. Fetches are counted, can be made
//! slow, and single blocks can be declared damaged.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{BlockError, FsError};
use crate::tree::{Attr, BlockKey, Blocks, Entry, Ino, Lifetime, NodeKind, Source, Span, Tree, Usage};

enum Node {
    Dir {
        parent: usize,
        entries: BTreeMap<OsString, usize>,
    },
    File {
        parent: usize,
        data: Bytes,
    },
}

/// A tree in memory. Build it with [`MemoryTree::add`], then share it.
pub struct MemoryTree {
    nodes: Vec<Node>,
    block: u32,
    delay: Duration,
    damaged: Mutex<HashSet<BlockKey>>,
    fetches: AtomicU64,
    fetched_blocks: AtomicU64,
}

impl MemoryTree {
    /// An empty tree whose files are cut into blocks of `block` bytes.
    #[must_use]
    pub fn new(block: u32) -> Self {
        Self {
            nodes: vec![Node::Dir {
                parent: 0,
                entries: BTreeMap::new(),
            }],
            block: block.max(1),
            delay: Duration::ZERO,
            damaged: Mutex::default(),
            fetches: AtomicU64::new(0),
            fetched_blocks: AtomicU64::new(0),
        }
    }

    /// Lets every fetch take this long.
    #[must_use]
    pub fn slow(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Adds a file, and the directories above it.
    pub fn add(&mut self, path: &str, data: impl Into<Bytes>) -> Ino {
        let (mut dir, mut parts) = (0, path.split('/').filter(|p| !p.is_empty()).peekable());
        while let Some(part) = parts.next() {
            let next = self.nodes.len();
            let last = parts.peek().is_none();
            let Node::Dir { entries, .. } = &mut self.nodes[dir] else {
                break;
            };
            if let (Some(&at), false) = (entries.get(OsStr::new(part)), last) {
                dir = at;
                continue;
            }
            entries.insert(part.into(), next);
            if last {
                self.nodes.push(Node::File {
                    parent: dir,
                    data: data.into(),
                });
                return number(next);
            }
            self.nodes.push(Node::Dir {
                parent: dir,
                entries: BTreeMap::new(),
            });
            dir = next;
        }
        number(dir)
    }

    /// Makes every fetch of one block of a file fail as damaged.
    pub fn damage(&self, file: Ino, block: u32) {
        let key = BlockKey {
            pack: index(file) as u64,
            slot: block,
        };
        self.damaged
            .lock()
            .expect("invariant: nothing panics under this lock")
            .insert(key);
    }

    /// Calls of `fetch` so far, and blocks they asked for.
    pub fn fetched(&self) -> (u64, u64) {
        (
            self.fetches.load(Ordering::Relaxed),
            self.fetched_blocks.load(Ordering::Relaxed),
        )
    }

    fn node(&self, ino: Ino) -> Result<&Node, FsError> {
        self.nodes.get(index(ino)).ok_or(FsError::NotFound)
    }

    fn dir(&self, ino: Ino) -> Result<(usize, &BTreeMap<OsString, usize>), FsError> {
        match self.node(ino)? {
            Node::Dir { parent, entries } => Ok((*parent, entries)),
            Node::File { .. } => Err(FsError::NotADirectory),
        }
    }

    fn stat(&self, ino: Ino) -> Result<Attr, FsError> {
        let (kind, size, mode, nlink) = match self.node(ino)? {
            Node::Dir { entries, .. } => {
                let dirs = entries
                    .values()
                    .filter(|&&n| matches!(self.nodes[n], Node::Dir { .. }))
                    .count();
                (NodeKind::Directory, 0, 0o755, 2 + dirs as u32)
            }
            Node::File { data, .. } => (NodeKind::File, data.len() as u64, 0o644, 1),
        };
        Ok(Attr {
            ino,
            kind,
            size,
            allocated: size,
            mode,
            uid: 0,
            gid: 0,
            mtime: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + ino.0),
            nlink,
            lifetime: Lifetime::Immutable,
        })
    }

    fn block_of(&self, key: BlockKey) -> Result<Bytes, BlockError> {
        let damaged = self
            .damaged
            .lock()
            .expect("invariant: nothing panics under this lock")
            .contains(&key);
        let lost = |reason: &str| BlockError::Damaged {
            block: key.slot.to_string().into(),
            pack: key.pack.to_string().into(),
            reason: reason.into(),
        };
        if damaged {
            return Err(lost("declared damaged"));
        }
        let Some(Node::File { data, .. }) = self.nodes.get(key.pack as usize) else {
            return Err(lost("no such pack"));
        };
        let from = key.slot as usize * self.block as usize;
        let to = (from + self.block as usize).min(data.len());
        if from >= to {
            return Err(lost("no such slot"));
        }
        // A copy, as decompression would make one.
        Ok(Bytes::copy_from_slice(&data[from..to]))
    }
}

fn number(index: usize) -> Ino {
    Ino(index as u64 + Ino::ROOT.0)
}

fn index(ino: Ino) -> usize {
    usize::try_from(ino.0.wrapping_sub(Ino::ROOT.0)).unwrap_or(usize::MAX)
}

#[async_trait]
impl Tree for MemoryTree {
    async fn attr(&self, ino: Ino) -> Result<Attr, FsError> {
        self.stat(ino)
    }

    async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr, FsError> {
        let (_, entries) = self.dir(parent)?;
        self.stat(number(*entries.get(name).ok_or(FsError::NotFound)?))
    }

    async fn list(&self, dir: Ino, cookie: u64, most: usize) -> Result<Vec<Entry>, FsError> {
        let (_, entries) = self.dir(dir)?;
        let skip = usize::try_from(cookie).unwrap_or(usize::MAX);
        let entry = |(at, (name, &node)): (usize, (&OsString, &usize))| {
            Ok(Entry {
                cookie: at as u64 + 1,
                name: name.clone(),
                attr: self.stat(number(node))?,
            })
        };
        entries
            .iter()
            .enumerate()
            .skip(skip)
            .take(most)
            .map(entry)
            .collect()
    }

    async fn parent(&self, dir: Ino) -> Result<Ino, FsError> {
        Ok(number(self.dir(dir)?.0))
    }

    async fn path(&self, ino: Ino) -> String {
        let mut parts = Vec::new();
        let mut at = index(ino);
        while let (true, Some(node)) = (at != 0, self.nodes.get(at)) {
            let (Node::Dir { parent, .. } | Node::File { parent, .. }) = node;
            if let Node::Dir { entries, .. } = &self.nodes[*parent]
                && let Some((name, _)) = entries.iter().find(|(_, n)| **n == at)
            {
                parts.push(String::from_utf8_lossy(name.as_bytes()).into_owned());
            }
            at = *parent;
        }
        parts.reverse();
        parts.join("/")
    }

    async fn usage(&self) -> Result<Usage, FsError> {
        let size = |n: &Node| {
            if let Node::File { data, .. } = n {
                data.len() as u64
            } else {
                0
            }
        };
        Ok(Usage {
            bytes: self.nodes.iter().map(size).sum(),
            nodes: self.nodes.len() as u64,
        })
    }
}

#[async_trait]
impl Blocks for MemoryTree {
    async fn spans(&self, ino: Ino, range: Range<u64>) -> Result<Vec<Span>, FsError> {
        let Node::File { data, .. } = self.node(ino)? else {
            return Err(FsError::IsADirectory);
        };
        let (block, size) = (u64::from(self.block), data.len() as u64);
        let first = range.start / block;
        let last = range.end.min(size).div_ceil(block);
        let span = |n: u64| Span {
            offset: n * block,
            len: block.min(size - n * block),
            source: Source::Block {
                key: BlockKey {
                    pack: index(ino) as u64,
                    slot: n as u32,
                },
                skip: 0,
            },
        };
        Ok((first..last).map(span).collect())
    }

    async fn fetch(&self, run: Vec<BlockKey>) -> Vec<Result<Bytes, BlockError>> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        self.fetched_blocks.fetch_add(run.len() as u64, Ordering::Relaxed);
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        run.into_iter().map(|key| self.block_of(key)).collect()
    }
}
