//! Lists a directory tree: what belongs in the backup, what does not, and how each file looked.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use pbmfs_dbpath::{JournalPolicy, Selection, classify};

use crate::error::SourceError;
use crate::source::{FileKind, FileTime, LeftOut, LeftOutWhy, SourceFile, SpecialFile, path_order};

/// What tells that a file was written to or replaced, or that entries of a directory came or went.
///
/// The ctime cannot be set back by anybody, so an mtime that was restored afterwards does not hide a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: FileTime,
    ctime: FileTime,
}

impl Fingerprint {
    pub(crate) fn of(meta: &Metadata) -> Self {
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime: file_time(meta.mtime(), meta.mtime_nsec()),
            ctime: file_time(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// None if there is nothing at the path.
    pub(crate) fn at(path: &Path) -> Result<Option<Self>, SourceError> {
        match fs::metadata(path) {
            Ok(meta) => Ok(Some(Self::of(&meta))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SourceError::io(path, error)),
        }
    }
}

/// A tree as it was found.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// In [`path_order`].
    pub files: Vec<SourceFile>,
    /// One for each of `files`, in the same order.
    pub fingerprints: Vec<Fingerprint>,
    pub left_out: Vec<LeftOut>,
}

/// Lists what is below `root`. Blocking. Symbolic links are followed, because a dbPath may keep its journal or a
/// database on another disk.
pub(crate) fn list(root: &Path, journal: JournalPolicy) -> Result<Listing, SourceError> {
    let meta = fs::metadata(root).map_err(|error| SourceError::io(root, error))?;
    if !meta.is_dir() {
        return Err(SourceError::NotADirectory { path: root.into() });
    }
    let mut walk = Walk {
        root,
        journal,
        above: vec![(meta.dev(), meta.ino())],
        found: Vec::new(),
        left_out: Vec::new(),
    };
    walk.directory("")?;

    let Walk {
        mut found,
        mut left_out,
        ..
    } = walk;
    found.sort_by(|(a, _), (b, _)| path_order(&a.path, &b.path));
    left_out.sort_by(|a, b| path_order(&a.path, &b.path));
    let (files, fingerprints) = found.into_iter().unzip();
    Ok(Listing {
        files,
        fingerprints,
        left_out,
    })
}

struct Walk<'a> {
    root: &'a Path,
    journal: JournalPolicy,
    /// (device, inode) of each directory from the root down to where we are: meeting one again is a loop.
    above: Vec<(u64, u64)>,
    found: Vec<(SourceFile, Fingerprint)>,
    left_out: Vec<LeftOut>,
}

impl Walk<'_> {
    fn directory(&mut self, path: &str) -> Result<(), SourceError> {
        let full = self.full(path);
        let entries = fs::read_dir(&full).map_err(|error| SourceError::io(&full, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| SourceError::io(&full, error))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                return Err(SourceError::NotUtf8 {
                    path: full.join(entry.file_name()),
                });
            };
            let below = if path.is_empty() {
                name
            } else {
                format!("{path}/{name}")
            };
            self.entry(below)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: String) -> Result<(), SourceError> {
        let full = self.full(&path);
        let meta = match fs::metadata(&full) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.vanished_or_dangling(path),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(SourceError::Loop { path: full });
            }
            Err(error) => return self.unreadable(path, error),
        };
        if let Selection::LeftOut(reason) = classify(&path, meta.is_dir(), self.journal) {
            self.left_out.push(LeftOut {
                path,
                reason: LeftOutWhy::Rule(reason),
            });
            return Ok(());
        }
        if let Some(special) = special(&meta) {
            tracing::warn!(path = %full.display(), kind = ?special, "left out: it holds no data");
            self.left_out.push(LeftOut {
                path,
                reason: LeftOutWhy::Special(special),
            });
            return Ok(());
        }
        self.found
            .push((source_file(path.clone(), &meta), Fingerprint::of(&meta)));
        if meta.is_dir() {
            let id = (meta.dev(), meta.ino());
            if self.above.contains(&id) {
                return Err(SourceError::Loop { path: full });
            }
            self.above.push(id);
            self.directory(&path)?;
            self.above.pop();
        }
        Ok(())
    }

    /// An entry that was listed and has no metadata: a link to nothing, or a file that was just removed.
    fn vanished_or_dangling(&mut self, path: String) -> Result<(), SourceError> {
        let full = self.full(&path);
        if fs::symlink_metadata(&full).is_err() {
            // Only what is left out anyway may come and go under a pin.
            return match classify(&path, false, self.journal) {
                Selection::LeftOut(_) => Ok(()),
                Selection::Kept => Err(SourceError::Changed { path: full }),
            };
        }
        tracing::warn!(path = %full.display(), "left out: a symbolic link to nothing");
        self.left_out.push(LeftOut {
            path,
            reason: LeftOutWhy::Special(SpecialFile::DanglingLink),
        });
        Ok(())
    }

    fn unreadable(&mut self, path: String, error: io::Error) -> Result<(), SourceError> {
        match classify(&path, false, self.journal) {
            Selection::LeftOut(_) => Ok(()),
            Selection::Kept => Err(SourceError::io(self.full(&path), error)),
        }
    }

    fn full(&self, path: &str) -> PathBuf {
        if path.is_empty() {
            self.root.to_path_buf()
        } else {
            self.root.join(OsStr::new(path))
        }
    }
}

pub(crate) fn source_file(path: String, meta: &Metadata) -> SourceFile {
    let directory = meta.is_dir();
    SourceFile {
        path,
        kind: if directory {
            FileKind::Directory
        } else {
            FileKind::Regular
        },
        size: if directory { 0 } else { meta.size() },
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: file_time(meta.mtime(), meta.mtime_nsec()),
    }
}

fn special(meta: &Metadata) -> Option<SpecialFile> {
    let kind = meta.file_type();
    if kind.is_socket() {
        Some(SpecialFile::Socket)
    } else if kind.is_fifo() {
        Some(SpecialFile::Fifo)
    } else if kind.is_char_device() || kind.is_block_device() {
        Some(SpecialFile::Device)
    } else {
        None
    }
}

fn file_time(secs: i64, nanos: i64) -> FileTime {
    FileTime {
        secs,
        nanos: u32::try_from(nanos).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
