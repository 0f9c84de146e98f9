//! Where an index lies, who has it, and how it is thrown away.
//!
//! ```text
//! <directory>/<repository id>/lock      held (flock) by the process that uses the index
//!                             db/       RocksDB
//!                             load/     what a bulk load sorts; removed when the index is opened
//!                             damaged   there if damage was met in use: the next one builds it anew
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::id::RepositoryId;
use crate::local_index::IndexError;

/// The directory of one index, locked until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    _lock: File,
}

impl Place {
    /// Locks the first of up to `most` directories of a repository below `indexes` that nobody has: that with the
    /// repository's id as its name, the same with `-2`, and so on.
    pub fn lock_one(indexes: &Path, repository: &RepositoryId, most: u32) -> Result<Self, IndexError> {
        let name = |number| match number {
            1 => repository.to_string(),
            _ => format!("{repository}-{number}"),
        };
        let mut number = 1;
        loop {
            match Self::lock(indexes.join(name(number))) {
                Err(IndexError::Busy(_)) if number < most => number += 1,
                other => return other,
            }
        }
    }

    /// Locks a directory; makes it if there is none.
    pub fn lock(directory: PathBuf) -> Result<Self, IndexError> {
        let unusable = |e: io::Error| IndexError::Unusable {
            directory: directory.clone(),
            reason: e.to_string(),
        };
        // Ids of blocks tell whether somebody has a certain file.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(unusable)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("lock"))
            .map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(IndexError::Busy(directory)),
            Err(TryLockError::Error(e)) => return Err(unusable(e)),
        }
        let place = Self {
            directory: directory.clone(),
            _lock: lock,
        };
        remove(&place.load()).map_err(unusable)?;
        Ok(place)
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// RocksDB's directory.
    pub fn database(&self) -> PathBuf {
        self.directory.join("db")
    }

    /// For files of a bulk load. On the same file system, since tables are linked from here into the database.
    pub fn load(&self) -> PathBuf {
        self.directory.join("load")
    }

    /// What damage somebody met.
    pub fn marked(&self) -> Option<String> {
        fs::read_to_string(self.directory.join("damaged")).ok()
    }

    /// Has the index built anew by whoever opens it next.
    pub fn mark(&self, reason: &str) -> io::Result<()> {
        fs::write(self.directory.join("damaged"), reason)
    }

    /// Throws the index away. The mark goes last: a crash half-way is another reason to do it again.
    pub fn clear(&self) -> io::Result<()> {
        remove(&self.load())?;
        remove(&self.database())?;
        match fs::remove_file(self.directory.join("damaged")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
