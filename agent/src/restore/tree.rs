//! The files and directories that are being restored: making them, making them durable, and what they are given at
//! the end.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pbmfs_repo::files::{FileKind, FileMeta};
use rustix::fs::{OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::error::{RestoreError, Result};

/// Until its end a file is nobody's business but its owner's.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// The directory of files that are being restored.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    /// Open since before the first write, so that `syncfs` on it tells of every failed write since then.
    handle: File,
    /// Whether one `syncfs` makes everything durable and tells when it could not.
    whole: bool,
    owners: bool,
    told: AtomicBool,
}

/// What was found where a file belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prepared {
    /// The file of an earlier run.
    Kept,
    /// Nothing that counts: it was made anew.
    Made,
}

impl Tree {
    /// The tree below `root`, which is made if it is not there.
    pub fn open(root: &Path) -> Result<Self> {
        match DirBuilder::new().create(root) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(RestoreError::io("make", root)(e));
            }
            _ => {}
        }
        let handle = open_dir(root).map_err(RestoreError::io("open", root))?;
        let whole = syncfs_suffices(&handle);
        if !whole {
            tracing::info!(
                "files are synced one by one: this kernel or file system cannot sync them at once"
            );
        }
        Ok(Self {
            root: root.into(),
            handle,
            whole,
            owners: rustix::process::geteuid().is_root(),
            told: AtomicBool::new(false),
        })
    }

    /// Where the tree is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an entry lies.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Whether [`Tree::sync`] needs no list of files.
    pub fn syncs_whole(&self) -> bool {
        self.whole
    }

    /// The inode of the root.
    pub fn inode(&self) -> Result<u64> {
        let meta = self.handle.metadata();
        Ok(meta.map_err(RestoreError::io("look at", &self.root))?.ino())
    }

    /// Makes an entry, a file with its length and without its bytes. Its directory should be there already.
    pub fn make(&self, meta: &FileMeta) -> Result<Prepared> {
        let path = self.path(&meta.path);
        let made = match meta.kind {
            FileKind::Directory => make_dir(&path),
            FileKind::Regular => make_file(&path, meta.size),
        };
        match made {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // A list that does not name the directories of its files.
                let parent = path.parent().unwrap_or(&self.root);
                DirBuilder::new()
                    .recursive(true)
                    .create(parent)
                    .and_then(|()| match meta.kind {
                        FileKind::Directory => make_dir(&path),
                        FileKind::Regular => make_file(&path, meta.size),
                    })
            }
            other => other,
        }
        .map_err(RestoreError::io("make", &path))
    }

    /// Bytes that are allocated to a file so far.
    pub fn allocated(&self, path: &str) -> u64 {
        fs::symlink_metadata(self.path(path)).map_or(0, |m| m.blocks() * 512)
    }

    /// Opens a file that [`Tree::make`] made.
    pub fn open_file(&self, path: &str) -> Result<File> {
        let path = self.path(path);
        open_for_write(&path).map_err(RestoreError::io("open", &path))
    }

    /// Makes durable what was written: everything, or these files if [`Tree::syncs_whole`] is false.
    pub fn sync<'a>(&self, touched: impl IntoIterator<Item = &'a str>) -> Result<()> {
        if self.whole {
            return rustix::fs::syncfs(&self.handle)
                .map_err(|e| RestoreError::io("sync", &self.root)(e.into()));
        }
        for path in touched {
            let file = self.open_file(path)?;
            file.sync_data()
                .map_err(RestoreError::io("sync", &self.path(path)))?;
        }
        Ok(())
    }

    /// Makes the names in a directory durable, if [`Tree::sync`] does not; "" is the root.
    pub fn sync_dir(&self, path: &str) -> Result<()> {
        if self.whole {
            return Ok(());
        }
        let path = self.path(path);
        open_dir(&path)
            .and_then(|dir| dir.sync_all())
            .map_err(RestoreError::io("sync", &path))
    }

    /// Gives a file or directory its owner, mode and time. A directory must not be touched afterwards.
    pub fn finish(&self, meta: &FileMeta) -> Result<()> {
        let path = self.path(&meta.path);
        let fail = |op| RestoreError::io(op, &path);
        let file = match meta.kind {
            FileKind::Regular => open_for_write(&path),
            FileKind::Directory => open_dir(&path),
        }
        .map_err(fail("open"))?;
        self.own(&file, meta.uid, meta.gid)
            .map_err(fail("change the owner of"))?;
        file.set_permissions(Permissions::from_mode(meta.mode))
            .map_err(fail("change the mode of"))?;
        let time = Timespec {
            tv_sec: meta.mtime.0,
            tv_nsec: meta.mtime.1.into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::futimens(&file, &times).map_err(|e| fail("change the time of")(e.into()))?;
        if !self.whole {
            file.sync_all().map_err(fail("sync"))?;
        }
        Ok(())
    }

    /// Gives the root, of which no snapshot tells, the owner of what is in it; or owner and mode of the empty
    /// directory whose place it takes.
    pub fn finish_root(&self, waiting: Option<&Metadata>, first: Option<&FileMeta>) -> Result<()> {
        let fail = |op| RestoreError::io(op, &self.root);
        let owner = waiting.map(|m| (m.uid(), m.gid()));
        if let Some((uid, gid)) = owner.or(first.map(|m| (m.uid, m.gid))) {
            self.own(&self.handle, uid, gid)
                .map_err(fail("change the owner of"))?;
        }
        if let Some(waiting) = waiting {
            self.handle
                .set_permissions(Permissions::from_mode(waiting.mode() & 0o7777))
                .map_err(fail("change the mode of"))?;
        }
        if !self.whole {
            self.handle.sync_all().map_err(fail("sync"))?;
        }
        Ok(())
    }

    fn own(&self, file: &File, uid: u32, gid: u32) -> io::Result<()> {
        let tell = |why: &str| {
            if !self.told.swap(true, Relaxed) {
                tracing::info!("owners are not restored: {why}");
            }
        };
        if !self.owners {
            tell("only root can give files away");
            return Ok(());
        }
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        match rustix::fs::fchown(file, Some(uid), Some(gid)) {
            // Root of a container or of a network file system need not be root everywhere.
            Err(e @ (Errno::PERM | Errno::INVAL | Errno::NOTSUP)) => {
                tell(&e.to_string());
                Ok(())
            }
            other => Ok(other?),
        }
    }
}

fn make_dir(path: &Path) -> io::Result<Prepared> {
    match DirBuilder::new().mode(DIR_MODE).create(path) {
        Ok(()) => Ok(Prepared::Made),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            if !fs::symlink_metadata(path)?.is_dir() {
                return Err(e);
            }
            // An earlier run may have come so far as to give it a mode that keeps its owner out.
            fs::set_permissions(path, Permissions::from_mode(DIR_MODE))?;
            Ok(Prepared::Kept)
        }
        Err(e) => Err(e),
    }
}

fn make_file(path: &Path, size: u64) -> io::Result<Prepared> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path);
    let (file, fresh) = match made {
        Ok(file) => (file, true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let meta = fs::symlink_metadata(path)?;
            if meta.is_file() && meta.len() == size {
                return Ok(Prepared::Kept);
            }
            (open_for_write(path)?, false)
        }
        Err(e) => return Err(e),
    };
    if !fresh {
        file.set_len(0)?;
    }
    if size > 0 {
        file.set_len(size)?;
    }
    Ok(Prepared::Made)
}

fn open_for_write(path: &Path) -> io::Result<File> {
    let open = || {
        OpenOptions::new()
            .write(true)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(path)
    };
    match open() {
        // An earlier run may have come so far as to give it its mode.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            fs::set_permissions(path, Permissions::from_mode(FILE_MODE))?;
            open()
        }
        other => other,
    }
}

fn open_dir(path: &Path) -> io::Result<File> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32)
            .open(path)
    };
    match open() {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            fs::set_permissions(path, Permissions::from_mode(DIR_MODE))?;
            open()
        }
        other => other,
    }
}

/// Writes all slices, one behind the other, at an offset.
pub(super) fn write_all_at(file: &File, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    while !slices.is_empty() {
        match rustix::io::pwritev(file, slices, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                offset += n as u64;
                IoSlice::advance_slices(&mut slices, n);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// From Linux 5.8 on `syncfs` reports writes that failed since its descriptor was opened. The file systems are those
/// that are known to make files, names and lengths durable by it; others, FUSE for one, may ignore it.
fn syncfs_suffices(dir: &File) -> bool {
    const EXT: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const BTRFS: i64 = 0x9123_683e;
    const F2FS: i64 = 0xf2f5_2010;
    const TMPFS: i64 = 0x0102_1994;
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    #[allow(clippy::unnecessary_cast, reason = "the type differs between targets")]
    let known = rustix::fs::fstatfs(dir)
        .is_ok_and(|fs| [EXT, XFS, BTRFS, F2FS, TMPFS].contains(&(fs.f_type as i64 & 0xffff_ffff)));
    version >= (5, 8) && known
}
