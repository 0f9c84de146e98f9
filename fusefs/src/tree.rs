//! What a snapshot has to offer to be mounted: [`Tree`] for names and attributes, [`Blocks`] for bytes.
//!
//! Both are about things that never change, so inode numbers are stable for the life of the mount and no operation
//! needs a lock. No fuser type appears here, and nothing of the repository's either.
//!
//! Everything is asynchronous, because file lists, map nodes, trailers and blocks lie in storage and are fetched when
//! they are first needed. But a future that can be answered from memory **must be ready at its first poll**: that is
//! how most requests are answered without leaving the thread that got them.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::cache::Adjacent;
use crate::error::{BlockError, FsError};

/// A node's number. The root is [`Ino::ROOT`]; the rest is up to the tree, but 0 is not a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The mount's top directory; FUSE fixes it.
    pub const ROOT: Ino = Ino(1);
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
}

/// For how long what was said of a node stays true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// For ever: it lies inside a snapshot.
    Immutable,
    /// About a second: a level above the snapshots, whose listing changes as backups come and go.
    Changing,
}

/// What `stat` says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// File or directory.
    pub kind: NodeKind,
    /// Length in bytes.
    pub size: u64,
    /// Bytes that are stored for it, holes left out; `du` shows this.
    pub allocated: u64,
    /// The permission bits as they were on the source; the mount is read-only whatever they say.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the contents; also given as ctime and atime.
    pub mtime: SystemTime,
    /// Links. 1 for a directory says that its subdirectories were not counted.
    pub nlink: u32,
    /// How long the kernel may remember this.
    pub lifetime: Lifetime,
}

/// One line of a listing.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where the listing goes on after this entry; opaque to callers, never 0.
    pub cookie: u64,
    /// The name, without slashes.
    pub name: OsString,
    /// Its attributes, since every listing is a readdirplus.
    pub attr: Attr,
}

/// What `df` shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of files and directories.
    pub nodes: u64,
}

/// Names and attributes.
#[async_trait]
pub trait Tree: Send + Sync + 'static {
    /// Attributes of a node.
    async fn attr(&self, ino: Ino) -> Result<Attr, FsError>;

    /// The node called `name` in `parent`.
    async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr, FsError>;

    /// Up to `most` entries of `dir` after `cookie` (0: from the start) in a fixed order, `.` and `..` left out; none
    /// at the end.
    async fn list(&self, dir: Ino, cookie: u64, most: usize) -> Result<Vec<Entry>, FsError>;

    /// The directory that holds `dir`; the root holds itself.
    async fn parent(&self, dir: Ino) -> Result<Ino, FsError>;

    /// A node's path inside the mount, for log lines.
    async fn path(&self, ino: Ino) -> String;

    /// Totals for `df`.
    async fn usage(&self) -> Result<Usage, FsError>;
}

/// A stored block: the slot of a pack. The numbers mean something to the [`Blocks`] that gave them only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey {
    /// Which pack.
    pub pack: u64,
    /// Which block of it.
    pub slot: u32,
}

impl Adjacent for BlockKey {
    fn follows(&self, before: &Self) -> bool {
        self.pack == before.pack && Some(self.slot) == before.slot.checked_add(1)
    }
}

/// Where a piece of a file comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes of the file that this span covers.
    pub len: u64,
    /// What they are.
    pub source: Source,
}

impl Span {
    /// The offset just after the span.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// The content of a [`Span`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Zeros.
    Hole,
    /// The block's plain bytes from `skip` on.
    Block {
        /// The block.
        key: BlockKey,
        /// Bytes of it that come before the span: an extent may have been cut in the middle of a block.
        skip: u32,
    },
}

/// Bytes.
#[async_trait]
pub trait Blocks: Send + Sync + 'static {
    /// The spans that cover `range` of the file, in order and without gaps. The first may start before the range and
    /// the last may end after it; nothing more is looked up than the range needs.
    async fn spans(&self, ino: Ino, range: Range<u64>) -> Result<Vec<Span>, FsError>;

    /// The plain, verified bytes of neighbouring slots of one pack, one result a key: a damaged block does not take
    /// its neighbours with it. Each owns its memory, since a cache weighs it by its length.
    async fn fetch(&self, run: Vec<BlockKey>) -> Vec<Result<Bytes, BlockError>>;
}
