//! fuser's calls, translated: the only file that sees fuser's types, and the only place that picks errno.
//!
//! Nothing here blocks. Each operation is a future that is polled once on the thread that got the request: when all
//! it needs is in memory, that is enough, and the reply leaves without a change of threads. Otherwise the half-done
//! future moves to the runtime together with its reply, and the thread takes the next request.
//!
//! A panic in an operation is caught, counted and answered with EIO.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use futures::FutureExt;

use crate::error::FsError;
use crate::fs::Fs;
use crate::tree::{Attr, Blocks, Ino, Lifetime, NodeKind, Tree};

/// For what never changes. `u64::MAX` seconds would overflow the kernel's arithmetic; a century does not.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// For the levels above the snapshots.
const BRIEF: Duration = Duration::from_secs(1);

/// Read-ahead requests that the kernel may have under way (16 by default): mountpoint-s3 found 64 to help.
const MAX_BACKGROUND: u16 = 64;

/// The capabilities that this file system honours; fuser 0.18 would accept others that nobody implements.
const CAPABILITIES: [InitFlags; 6] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_ASYNC_DIO,
    // Pages stay valid whatever the attributes say: the contents never change.
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    // A file opened with O_DIRECT can still be mapped.
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// The errno of every error: nowhere else is one chosen for an operation that failed.
fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::NotADirectory => Errno::ENOTDIR,
        FsError::IsADirectory => Errno::EISDIR,
        FsError::ReadOnly => Errno::EROFS,
        FsError::BadHandle(_) => Errno::EBADF,
        FsError::Stale => Errno::ESTALE,
        FsError::Damaged(damage) => {
            tracing::error!(
                file = damage.file,
                offset = damage.offset,
                block = damage.block,
                pack = damage.pack,
                "damaged: {}",
                damage.reason
            );
            Errno::EIO
        }
        FsError::Unavailable(_) | FsError::Internal(_) => {
            tracing::error!("{error}");
            Errno::EIO
        }
    }
}

/// An [`Fs`] as fuser wants it.
pub(crate) struct Adapter<T> {
    fs: Arc<Fs<T>>,
}

impl<T: Tree + Blocks> Adapter<T> {
    pub(crate) fn new(fs: Arc<Fs<T>>) -> Self {
        Self { fs }
    }

    /// Runs an operation and gives its result to `answer`: at once if it is ready when first polled, else from a
    /// task of the runtime.
    fn run<O, R>(
        &self,
        operation: &'static str,
        future: impl Future<Output = Result<O, FsError>> + Send + 'static,
        reply: R,
        answer: impl FnOnce(R, Result<O, FsError>) + Send + 'static,
    ) where
        O: Send + 'static,
        R: Send + 'static,
    {
        let guard = Guard {
            fs: self.fs.clone(),
            operation,
        };
        let _inside = self.fs.runtime().enter();
        let mut future = AssertUnwindSafe(future).catch_unwind().boxed();
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => guard.answer(result, reply, answer),
            Poll::Pending => {
                self.fs
                    .runtime()
                    .spawn(async move { guard.answer(future.await, reply, answer) });
            }
        }
    }
}

/// Turns a panic into EIO.
struct Guard<T> {
    fs: Arc<Fs<T>>,
    operation: &'static str,
}

impl<T: Tree + Blocks> Guard<T> {
    fn answer<O, R>(
        &self,
        result: std::thread::Result<Result<O, FsError>>,
        reply: R,
        answer: impl FnOnce(R, Result<O, FsError>),
    ) {
        let result = result.unwrap_or_else(|_| Err(self.panicked()));
        // A reply that is dropped unanswered, as by a panic here, makes fuser send EIO.
        if catch_unwind(AssertUnwindSafe(|| answer(reply, result))).is_err() {
            self.panicked();
        }
    }

    fn panicked(&self) -> FsError {
        self.fs.note_panic();
        FsError::Internal(format!("{} panicked", self.operation).into())
    }
}

fn ttl(attr: &Attr) -> Duration {
    match attr.lifetime {
        Lifetime::Immutable => FOREVER,
        Lifetime::Changing => BRIEF,
    }
}

fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::Directory => FileType::Directory,
        NodeKind::File => FileType::RegularFile,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.allocated.div_ceil(512),
        atime: attr.mtime,
        mtime: attr.mtime,
        ctime: attr.mtime,
        crtime: attr.mtime,
        kind: file_type(attr.kind),
        perm: attr.mode & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn read_only() -> Errno {
    errno(&FsError::ReadOnly)
}

impl<T: Tree + Blocks> Filesystem for Adapter<T> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "the kernel does not offer this");
            }
        }
        // The nearest value that works is used when the kernel has other limits.
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, parent, name) = (self.fs.clone(), Ino(parent.0), name.to_owned());
        let found = async move {
            match fs.lookup(parent, &name).await {
                Ok(attr) => Ok((ttl(&attr), file_attr(&attr))),
                // Inode 0: the kernel remembers for as long as the directory lives that the name is not there.
                Err(FsError::NotFound) => {
                    let dir = fs.attr(parent).await?;
                    Ok((
                        ttl(&dir),
                        FileAttr {
                            ino: INodeNo(0),
                            ..file_attr(&dir)
                        },
                    ))
                }
                Err(e) => Err(e),
            }
        };
        self.run("lookup", found, reply, |reply, found| match found {
            Ok((ttl, attr)) => reply.entry(&ttl, &attr, Generation(0)),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let fs = self.fs.clone();
        let attr = async move { fs.attr(Ino(ino.0)).await };
        self.run("getattr", attr, reply, |reply, attr| match attr {
            Ok(attr) => reply.attr(&ttl(&attr), &file_attr(&attr)),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        reply.error(Errno::EINVAL);
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let fs = self.fs.clone();
        let mut how = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        // Only for those who asked: on a direct handle nothing is cached, and mongod maps its files.
        if flags.0 & rustix::fs::OFlags::DIRECT.bits().cast_signed() != 0 {
            how |= FopenFlags::FOPEN_DIRECT_IO;
        }
        let opened = async move {
            match flags.acc_mode() {
                OpenAccMode::O_RDONLY => fs.open(Ino(ino.0)).await,
                _ => Err(FsError::ReadOnly),
            }
        };
        self.run("open", opened, reply, move |reply, opened| match opened {
            Ok(handle) => reply.opened(FileHandle(handle), how),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let fs = self.fs.clone();
        let read = async move { fs.read(handle.0, offset, u64::from(size)).await };
        self.run("read", read, reply, |reply, read| match read {
            Ok(pieces) => pieces.with_slice(|bytes| reply.data(bytes)),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.release(handle.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let fs = self.fs.clone();
        let opened = async move { fs.open_dir(Ino(ino.0)).await };
        self.run("opendir", opened, reply, |reply, opened| match opened {
            Ok(attr) => {
                let how = match attr.lifetime {
                    Lifetime::Immutable => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
                    Lifetime::Changing => FopenFlags::empty(),
                };
                reply.opened(FileHandle(0), how);
            }
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let fs = self.fs.clone();
        let listed = async move {
            let listed = fs
                .list(Ino(ino.0), offset, |entry| {
                    let kind = file_type(entry.attr.kind);
                    !reply.add(INodeNo(entry.attr.ino.0), entry.cookie, kind, &entry.name)
                })
                .await;
            Ok((reply, listed))
        };
        self.run("readdir", listed, (), |(), listed| match listed {
            Ok((reply, Ok(()))) => reply.ok(),
            Ok((reply, Err(e))) => reply.error(errno(&e)),
            // The reply went down with the panic, and was answered by that.
            Err(_) => {}
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let fs = self.fs.clone();
        let listed = async move {
            let listed = fs
                .list(Ino(ino.0), offset, |entry| {
                    let (attr, ttl) = (file_attr(&entry.attr), ttl(&entry.attr));
                    !reply.add(attr.ino, entry.cookie, &entry.name, &ttl, &attr, Generation(0))
                })
                .await;
            Ok((reply, listed))
        };
        self.run("readdirplus", listed, (), |(), listed| match listed {
            Ok((reply, Ok(()))) => reply.ok(),
            Ok((reply, Err(e))) => reply.error(errno(&e)),
            // The reply went down with the panic, and was answered by that.
            Err(_) => {}
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let fs = self.fs.clone();
        let usage = async move { fs.usage().await };
        self.run("statfs", usage, reply, |reply, usage| match usage {
            Ok(usage) => {
                const BLOCK: u32 = 4096;
                let blocks = usage.bytes.div_ceil(u64::from(BLOCK));
                reply.statfs(blocks, 0, 0, usage.nodes, 0, BLOCK, 255, BLOCK);
            }
            Err(e) => reply.error(errno(&e)),
        });
    }

    // What follows is answered with ENOSYS so that the kernel never asks again: permissions are checked by the
    // kernel (default_permissions), there are no extended attributes, and the generic ways do for the rest.

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOSYS);
    }

    // Everything that would write. The kernel refuses most of it before it gets here, because the mount is `ro`.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(read_only());
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(read_only());
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(read_only());
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(read_only());
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(read_only());
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(read_only());
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(read_only());
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(read_only());
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(read_only());
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(read_only());
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(read_only());
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(read_only());
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(read_only());
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(read_only());
    }
}
