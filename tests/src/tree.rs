//! Directories as values that can be compared: every byte, and what stands in the inodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Metadata},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use crate::{
    error::{Doing, Result, RigError},
    prng::Prng,
};

/// What is in a directory. The directory itself is no part of it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    directory: bool,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    /// 0 for a directory: what file systems say there is their own.
    size: u64,
    hash: blake3::Hash,
}

impl Entry {
    fn read(path: &Path, meta: &Metadata) -> Result<Self> {
        let directory = meta.is_dir();
        let doing = || format!("reading {}", path.display());
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        if !directory {
            size = hasher
                .update_reader(File::open(path).doing(doing())?)
                .doing(doing())?
                .count();
            if size != meta.len() {
                return Err(RigError::Check(format!(
                    "{} says it has {} bytes, and has {size}",
                    path.display(),
                    meta.len()
                )));
            }
        }
        Ok(Self {
            directory,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size,
            hash: hasher.finalize(),
        })
    }

    fn differences(&self, other: &Self) -> Vec<String> {
        let mut out = Vec::new();
        if self.directory != other.directory {
            out.push("one is a directory".into());
        }
        if self.size != other.size {
            out.push(format!("{} bytes | {}", self.size, other.size));
        } else if self.hash != other.hash {
            out.push(format!("{} bytes each, which differ", self.size));
        }
        if self.mode != other.mode {
            out.push(format!("mode {:o} | {:o}", self.mode, other.mode));
        }
        if self.owner != other.owner {
            out.push(format!("owner {:?} | {:?}", self.owner, other.owner));
        }
        if self.mtime != other.mtime {
            out.push(format!("mtime {:?} | {:?}", self.mtime, other.mtime));
        }
        out
    }
}

impl Tree {
    /// Reads everything in a directory, symbolic links followed.
    pub fn read(root: &Path) -> Result<Self> {
        let mut entries = BTreeMap::new();
        read_into(root, "", &mut entries)?;
        Ok(Self { entries })
    }

    /// Reads a dbPath as a backup under a lock sees it: without the process's lock file, the diagnostics and the
    /// journal's files.
    pub fn of_locked_dbpath(dbpath: &Path) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(dbpath).doing(format_args!("listing {}", dbpath.display()))? {
            let entry = entry.doing(format_args!("listing {}", dbpath.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "mongod.lock" || name == "diagnostic.data" {
                continue;
            }
            let meta = fs::metadata(entry.path()).doing(format_args!("looking at {name}"))?;
            if meta.is_dir() && name != "journal" {
                read_into(&entry.path(), &name, &mut entries)?;
            }
            entries.insert(name, Entry::read(&entry.path(), &meta)?);
        }
        Ok(Self { entries })
    }

    /// Only its files.
    #[must_use]
    pub fn files(mut self) -> Self {
        self.entries.retain(|_, entry| !entry.directory);
        self
    }

    /// Only what the question is answered yes for.
    #[must_use]
    pub fn only(mut self, keep: impl Fn(&str) -> bool) -> Self {
        self.entries.retain(|path, _| keep(path));
        self
    }

    /// All paths.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// How many bytes all files have.
    pub fn bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.size).sum()
    }

    /// Each difference as a line, `self` to the left.
    pub fn diff(&self, other: &Self) -> Vec<String> {
        let paths: BTreeSet<_> = self.entries.keys().chain(other.entries.keys()).collect();
        let mut lines = Vec::new();
        for path in paths {
            match (self.entries.get(path), other.entries.get(path)) {
                (Some(left), Some(right)) => {
                    for what in left.differences(right) {
                        lines.push(format!("{path}: {what}"));
                    }
                }
                (left, _) => {
                    let side = if left.is_some() { "left" } else { "right" };
                    lines.push(format!("{path}: only on the {side}"));
                }
            }
        }
        lines
    }

    /// Panics with every difference.
    #[track_caller]
    pub fn must_equal(&self, other: &Self) {
        let lines = self.diff(other);
        assert!(lines.is_empty(), "the trees differ:\n  {}", lines.join("\n  "));
    }
}

fn read_into(directory: &Path, prefix: &str, entries: &mut BTreeMap<String, Entry>) -> Result<()> {
    let doing = || format!("listing {}", directory.display());
    for entry in fs::read_dir(directory).doing(doing())? {
        let entry = entry.doing(doing())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        let meta = fs::metadata(entry.path()).doing(format_args!("looking at {path}"))?;
        if meta.is_dir() {
            read_into(&entry.path(), &path, entries)?;
        }
        entries.insert(path, Entry::read(&entry.path(), &meta)?);
    }
    Ok(())
}

/// Makes a directory that looks a little like a dbPath, without a mongod: about so many megabytes, half of them
/// compressible, in files of all sizes with modes and times of their own, an empty one, one with holes, and directories.
pub fn make(root: &Path, megabytes: u64, seed: u64) -> Result<()> {
    let mut prng = Prng::new(seed);
    let put = |path: &str, bytes: &[u8]| {
        let path = root.join(path);
        let doing = format!("making {}", path.display());
        let parent = path.parent().unwrap_or(root);
        fs::create_dir_all(parent).doing(&doing)?;
        fs::write(&path, bytes).doing(&doing)
    };
    put("WiredTiger", b"WiredTiger\nWiredTiger 11.0.0\n")?;
    put("empty", b"")?;
    put("one-byte", b"x")?;
    let files = 8;
    for number in 0..files {
        let size = usize::try_from(megabytes * 1_000_000 / files).unwrap_or(0);
        let odd = prng.below(5_000) as usize;
        let random = prng.bytes(size / 2 + odd);
        put(&format!("collection-{number}.wt"), &random)?;
        let text = prng.text(size / 2 + odd);
        put(&format!("db-{}/index-{number}.wt", number % 3), text.as_bytes())?;
    }
    for number in 0..40 {
        let size = prng.below(20_000) as usize;
        let bytes = prng.bytes(size);
        put(&format!("small/{number:02}.bson"), &bytes)?;
    }
    fs::create_dir_all(root.join("nothing/in/here")).doing("making a directory")?;
    let holes = File::create(root.join("holes.wt")).doing("making holes.wt")?;
    holes.set_len(9_000_001).doing("making holes.wt")?;
    std::os::unix::fs::FileExt::write_at(&holes, b"an island", 4_000_000).doing("making holes.wt")?;
    age(root, &mut prng)
}

/// Gives everything in a directory another mode and an older time, directories last.
fn age(directory: &Path, prng: &mut Prng) -> Result<()> {
    let doing = || format!("changing {}", directory.display());
    let mut entries: Vec<_> = fs::read_dir(directory)
        .doing(doing())?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    for path in entries {
        let is_dir = path.is_dir();
        if is_dir {
            age(&path, prng)?;
        }
        let modes: &[u32] = if is_dir {
            &[0o700, 0o755, 0o2750]
        } else {
            &[0o600, 0o640, 0o644, 0o400]
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(prng.pick(modes))).doing(doing())?;
        touch(
            &path,
            1_600_000_000 + prng.below(100_000_000),
            prng.below(1_000_000_000),
        )?;
    }
    Ok(())
}

/// Sets the modification time of a file or directory.
pub fn touch(path: &Path, seconds: u64, nanos: u64) -> Result<()> {
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(seconds, u32::try_from(nanos).unwrap_or(0));
    File::open(path)
        .and_then(|file| file.set_modified(time))
        .doing(format_args!("setting the time of {}", path.display()))
}
