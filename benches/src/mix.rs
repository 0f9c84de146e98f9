//! The data set of `CHUNKING.md` in small, before and after each of its four changes: copies of the dbPath of a live
//! member, each made under its lock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use pbmfs_tests::churn::{Churn, Part};
use pbmfs_tests::snapshot::{Copied, copy_dbpath, fsync_lock, fsync_unlock};
use pbmfs_tests::{MongodOptions, ReplSet, ReplSetOptions};

use crate::Result;
use crate::system::files_of;

const SEED: u64 = 7;

/// The copies: their names, and what was done since the one before.
pub const COPIES: [(&str, &str); 5] = [
    ("base", "loaded"),
    ("inc1", "1 % updated, 2 % of events appended"),
    ("inc2", "5 % appended"),
    ("inc3", "0.1 % updated"),
    ("inc4", "10 % deleted, 10 % inserted, products compacted"),
];

/// Which of [`COPIES`] has the small random updates.
pub const SMALL_UPDATES: &str = "inc3";

/// Where a copy lies while a program works on it, so that all copies are at one path, as a dbPath always is.
const CURRENT: &str = "current";

/// The copies of the mix on disk.
pub struct Mix {
    dir: PathBuf,
}

impl Mix {
    /// Makes them in `dir`, from about so many megabytes of documents, unless they are there.
    ///
    /// # Errors
    /// The server's or the disk's.
    pub async fn make(dir: &Path, megabytes: u64) -> Result<Self> {
        let mix = Self { dir: dir.into() };
        let ready = dir.join("ready");
        let wanted = format!("{megabytes} MB of documents, seed {SEED}\n");
        let whole = || COPIES.iter().all(|(name, _)| mix.path(name).is_dir());
        if fs::read_to_string(&ready).is_ok_and(|text| text == wanted) && whole() {
            return Ok(mix);
        }
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir_all(dir)?;
        let mut live = Live::start(dir, megabytes).await?;
        for (name, _) in COPIES {
            live.change(name).await?;
            live.pin(&mix.path(name)).await?;
        }
        live.stop().await?;
        fs::write(ready, wanted)?;
        Ok(mix)
    }

    /// A copy.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Has `work` done on a copy while it is at the one path that all of them have in turn.
    ///
    /// # Errors
    /// The work's, or the disk's.
    pub fn at_one_path<T>(&self, name: &str, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let current = self.path(CURRENT);
        fs::rename(self.path(name), &current)?;
        let done = work(&current);
        fs::rename(current, self.path(name))?;
        done
    }
}

/// A live member with the data set.
pub struct Live {
    set: ReplSet,
    churn: Churn,
    place: PathBuf,
}

impl Live {
    /// Starts one in `place` and loads about so many megabytes.
    ///
    /// # Errors
    /// The server's.
    pub async fn start(place: &Path, megabytes: u64) -> Result<Self> {
        let options = MongodOptions {
            // The share that the study had.
            oplog_mb: (megabytes * 15 / 100).max(16) as u32,
            cache_mb: if megabytes > 300 { 1024 } else { 256 },
            ..MongodOptions::default()
        };
        // By default the journal is 300 MB, and no copy has it.
        let options = options.args([
            "--wiredTigerEngineConfigString",
            "log=(file_max=8MB,prealloc=false)",
        ]);
        let place = place.join("live");
        let set = ReplSet::start(&place, ReplSetOptions::single("rs").mongod(options)).await?;
        let churn = Churn::load(&set.client().await?, megabytes, SEED).await?;
        Ok(Self { set, churn, place })
    }

    /// The changes that lead to one of [`COPIES`].
    async fn change(&mut self, name: &str) -> Result<()> {
        let churn = &mut self.churn;
        match name {
            "inc1" => {
                churn.update(10).await?;
                churn.append(&[Part::Events], 20).await?;
            }
            "inc2" => churn.append(&Part::ALL, 50).await?,
            SMALL_UPDATES => self.small_updates().await?,
            "inc4" => {
                churn.delete(100).await?;
                churn.append(&Part::ALL, 100).await?;
                churn.compact(Part::Products).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// 0.1 % of products and blobs.
    ///
    /// # Errors
    /// The server's.
    pub async fn small_updates(&mut self) -> Result<()> {
        Ok(self.churn.update(1).await?)
    }

    /// Copies the files as they are at a checkpoint now, without journal and diagnostic data; `to` must not exist.
    ///
    /// # Errors
    /// The server's or the disk's.
    pub async fn pin(&self, to: &Path) -> Result<()> {
        let primary = self.set.primary().await?;
        let client = primary.client().await?;
        fsync_lock(&client).await?;
        let copied = copy(primary.dbpath(), to);
        fsync_unlock(&client).await?;
        copied
    }

    /// Stops it and removes its files.
    ///
    /// # Errors
    /// The server's or the disk's.
    pub async fn stop(mut self) -> Result<()> {
        self.set.stop().await?;
        fs::remove_dir_all(&self.place)?;
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    copy_dbpath(from, to, Copied::Locked)?;
    fs::remove_dir_all(to.join("diagnostic.data"))?;
    // A file that did not change looks so.
    for file in files_of(to)? {
        let original = from.join(file.strip_prefix(to)?);
        let modified = fs::metadata(original)?.modified()?;
        File::options().write(true).open(&file)?.set_modified(modified)?;
    }
    Ok(())
}
