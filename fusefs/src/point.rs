//! The mount point: is this directory fit to be mounted on?

use std::path::{Path, PathBuf};

use crate::error::MountError;
use crate::mounts;

/// What to do when the mount point does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenMissing {
    /// Say so.
    Refuse,
    /// Make the directory, and take it away again after unmounting. `mount NAME` alone does this with `./NAME`.
    Create,
}

/// A directory that may be mounted on. Dropping it removes the directory if it was made for this mount.
#[derive(Debug)]
pub struct MountPoint {
    path: PathBuf,
    created: bool,
}

impl MountPoint {
    /// Checks `path` and clears a dead mount of ours from it.
    ///
    /// `apart` are directories that the server reads while it serves (the repository, a cache): the mount point may
    /// neither be one of them nor lie within nor contain one, because a read of the mount that needs a read of the
    /// mount waits for itself for ever.
    pub fn prepare(path: &Path, when_missing: WhenMissing, apart: &[PathBuf]) -> Result<Self, MountError> {
        mounts::clear_stale(path)?;
        let resolved = mounts::resolve(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => MountError::Missing(path.to_owned()),
            _ => MountError::io("cannot look at", path, e),
        })?;
        for directory in apart {
            check_apart(&resolved, directory)?;
        }
        if let Some(mount) = mounts::at(&resolved)?.filter(|m| m.fstype != "autofs") {
            return Err(MountError::AlreadyMounted {
                point: resolved,
                source_name: mount.source,
                fstype: mount.fstype,
            });
        }
        let created = match std::fs::metadata(&resolved) {
            Ok(meta) if !meta.is_dir() => return Err(MountError::NotADirectory(resolved)),
            Ok(_) => {
                check_empty(&resolved)?;
                false
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if when_missing == WhenMissing::Refuse {
                    return Err(MountError::Missing(path.to_owned()));
                }
                std::fs::create_dir(&resolved).map_err(|e| MountError::io("cannot create", &resolved, e))?;
                true
            }
            Err(e) => return Err(MountError::io("cannot look at", resolved, e)),
        };
        Ok(Self {
            path: resolved,
            created,
        })
    }

    /// The directory, absolute and without links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was made for this mount.
    #[must_use]
    pub fn created(&self) -> bool {
        self.created
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if self.created
            && let Err(e) = std::fs::remove_dir(&self.path)
        {
            tracing::debug!(point = %self.path.display(), "the mount point stays: {e}");
        }
    }
}

fn check_empty(path: &Path) -> Result<(), MountError> {
    let mut entries = std::fs::read_dir(path).map_err(|e| MountError::io("cannot list", path, e))?;
    if entries.next().is_some() {
        Err(MountError::NotEmpty(path.to_owned()))
    } else {
        Ok(())
    }
}

fn check_apart(point: &Path, directory: &Path) -> Result<(), MountError> {
    // A directory that does not exist yet cannot be read through a mount either; but its name may be about to be.
    let directory = directory.canonicalize().or_else(|_| mounts::resolve(directory));
    match directory {
        Ok(directory) if point.starts_with(&directory) || directory.starts_with(point) => {
            Err(MountError::Overlaps {
                point: point.to_owned(),
                directory,
            })
        }
        _ => Ok(()),
    }
}
