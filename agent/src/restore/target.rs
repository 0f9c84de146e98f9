//! The places of a restore, and who may work on them.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pbmfs_repo::Repository;
use pbmfs_repo::storage::local_path;
use rustix::fs::OFlags;

use super::done::Done;
use super::error::{RestoreError, Result};
use super::journal::{self, Contents, Header, Journal, Loaded};

/// What is appended to the target's name for the files that are being restored.
pub const PARTIAL_SUFFIX: &str = ".pbmfs-partial";
/// What is appended to the target's name for the journal.
pub const JOURNAL_SUFFIX: &str = ".pbmfs-journal";

/// The places of a restore.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// What the directory is called in the end.
    pub dir: PathBuf,
    /// Where that name stands.
    pub parent: PathBuf,
    /// What it is called until then.
    pub partial: PathBuf,
    /// What tells how far it is.
    pub journal: PathBuf,
}

/// How a restore begins. The journal is locked as long as its file is open.
#[derive(Debug)]
pub(super) enum Start {
    /// From nothing: no partial directory is there.
    Fresh(File),
    /// A restore of the same was interrupted.
    Resumed(Journal, Done),
    /// It was interrupted when nothing but the removal of the journal was left to do.
    Finished(File),
}

/// What is at the target.
enum Occupant {
    Nothing,
    EmptyDirectory,
    /// With the inode.
    Something(u64),
}

impl Target {
    /// The places that belong to a target.
    pub fn new(target: &Path, repo: &Repository) -> Result<Self> {
        let bad = || RestoreError::BadTarget {
            target: target.into(),
        };
        let name = target.file_name().ok_or_else(bad)?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let missing = || RestoreError::NoParent {
            parent: parent.into(),
        };
        let parent = match fs::canonicalize(parent) {
            Ok(found) if found.is_dir() => found,
            Ok(_) => return Err(missing()),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(missing());
            }
            Err(e) => return Err(RestoreError::io("open", parent)(e)),
        };
        let with = |suffix: &str| {
            let mut name = name.to_owned();
            name.push(suffix);
            parent.join(name)
        };
        let this = Self {
            dir: parent.join(name),
            partial: with(PARTIAL_SUFFIX),
            journal: with(JOURNAL_SUFFIX),
            parent: parent.clone(),
        };
        let repository = local_path(&repo.storage().address())
            .ok()
            .and_then(|path| fs::canonicalize(path).ok());
        match repository {
            Some(repository) if this.dir.starts_with(&repository) => Err(RestoreError::InsideRepository {
                target: this.dir,
                repository,
            }),
            _ => Ok(this),
        }
    }

    /// Takes the lock and looks how far a restore of the same came. Nothing is changed when it is refused.
    pub fn begin(&self, header: &Header) -> Result<Start> {
        loop {
            if look(&self.journal)?.is_none() {
                self.refuse_occupied()?;
                if look(&self.partial)?.is_some() {
                    return Err(RestoreError::NoJournal {
                        partial: self.partial.clone(),
                    });
                }
            }
            if let Some(file) = self.lock()? {
                return self.judge(file, header);
            }
        }
    }

    /// The locked journal, made if need be; `None` if it was removed meanwhile by a restore that ended.
    fn lock(&self) -> Result<Option<File>> {
        let fail = |op| RestoreError::io(op, &self.journal);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&self.journal)
            .map_err(fail("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(RestoreError::Busy {
                    target: self.dir.clone(),
                });
            }
            Err(fs::TryLockError::Error(e)) => return Err(fail("lock")(e)),
        }
        let held = file.metadata().map_err(fail("open"))?.ino();
        let named = look(&self.journal)?.map(|m| m.ino());
        Ok((named == Some(held)).then_some(file))
    }

    fn judge(&self, file: File, header: &Header) -> Result<Start> {
        let partial = look(&self.partial)?;
        let loaded = journal::load(&self.journal).map_err(RestoreError::io("read", &self.journal))?;
        let other = |found: String| RestoreError::OtherRestore {
            journal: self.journal.clone(),
            partial: self.partial.clone(),
            found,
        };
        let contents = match loaded {
            Loaded::Foreign => {
                return Err(other(
                    "it was written by another program or version of pbm-fs".into(),
                ));
            }
            Loaded::Unborn => {
                let refused = if partial.is_some() {
                    Err(other("it tells nothing".into()))
                } else {
                    self.refuse_occupied()
                };
                return match refused {
                    Ok(()) => Ok(Start::Fresh(file)),
                    Err(e) => {
                        self.remove_journal(file)?;
                        Err(e)
                    }
                };
            }
            Loaded::Journal(contents) => *contents,
        };
        if contents.header != *header {
            return Err(other(describe(&contents.header, header)));
        }
        let occupant = self.occupant()?;
        if let (Occupant::Something(inode), Some(complete), None) = (&occupant, contents.complete, &partial)
            && *inode == complete
        {
            return Ok(Start::Finished(file));
        }
        self.refuse_occupied()?;
        match partial {
            // Somebody removed it, or the crash was before it was made.
            None => Ok(Start::Fresh(file)),
            Some(meta) if meta.is_dir() => {
                let Contents { done, len, .. } = contents;
                let journal = Journal::new(file, len).map_err(RestoreError::io("write", &self.journal))?;
                Ok(Start::Resumed(journal, done))
            }
            Some(_) => Err(RestoreError::NoJournal {
                partial: self.partial.clone(),
            }),
        }
    }

    fn occupant(&self) -> Result<Occupant> {
        let Some(meta) = look(&self.dir)? else {
            return Ok(Occupant::Nothing);
        };
        let empty = meta.is_dir()
            && fs::read_dir(&self.dir)
                .map_err(RestoreError::io("read", &self.dir))?
                .next()
                .is_none();
        Ok(if empty {
            Occupant::EmptyDirectory
        } else {
            Occupant::Something(meta.ino())
        })
    }

    /// Whether the target can take its name: nothing is there, or an empty directory that a rename replaces.
    fn refuse_occupied(&self) -> Result<()> {
        match self.occupant()? {
            Occupant::Nothing => Ok(()),
            Occupant::Something(_) => Err(RestoreError::TargetExists {
                target: self.dir.clone(),
            }),
            Occupant::EmptyDirectory => {
                let device = |path: &Path| Ok::<_, RestoreError>(look(path)?.map(|m| m.dev()));
                if device(&self.dir)? == device(&self.parent)? {
                    Ok(())
                } else {
                    Err(RestoreError::MountPoint {
                        target: self.dir.clone(),
                    })
                }
            }
        }
    }

    /// The empty directory that waits at the target, if there is one: its owner and mode are kept.
    pub fn waiting(&self) -> Result<Option<Metadata>> {
        look(&self.dir)
    }

    /// Gives the finished directory its name. Durable when this returns.
    pub fn rename(&self) -> Result<()> {
        // An empty directory is replaced; anything else that came meanwhile makes this fail.
        fs::rename(&self.partial, &self.dir).map_err(|e| match e.kind() {
            io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory => RestoreError::TargetExists {
                target: self.dir.clone(),
            },
            _ => RestoreError::io("rename the restored files to", &self.dir)(e),
        })?;
        self.sync_parent()
    }

    /// Removes the journal, which is locked by `lock` until it is gone.
    pub fn remove_journal<T>(&self, lock: T) -> Result<()> {
        fs::remove_file(&self.journal).map_err(RestoreError::io("remove", &self.journal))?;
        drop(lock);
        self.sync_parent()
    }

    /// Makes names that stand in the parent directory durable.
    pub fn sync_parent(&self) -> Result<()> {
        File::open(&self.parent)
            .and_then(|dir| dir.sync_all())
            .map_err(RestoreError::io("sync", &self.parent))
    }
}

/// What is at a path, links not followed.
fn look(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(RestoreError::io("look at", path)(e)),
    }
}

/// How another restore differs from this one.
fn describe(found: &Header, wanted: &Header) -> String {
    if found.repository != wanted.repository {
        return format!("it restores from another repository, {}", found.repository);
    }
    if found.snapshot != wanted.snapshot {
        return format!("it restores snapshot {}", found.snapshot);
    }
    if found.replset != wanted.replset {
        return format!("it restores replica set {}", found.replset);
    }
    format!("it restores an earlier snapshot of the name {}", found.snapshot)
}
