//! A backup by hand: the lock of MongoDB Community and a copy of the files. What pbm-fs does is measured against it.

use std::{fs, path::Path};

use mongodb::{
    Client,
    bson::{Timestamp, doc},
};

use crate::error::{Doing, Result, RigError};

/// What `fsyncLock` answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locked {
    /// The newest oplog entry in the files, on a member of a set; `None` from a standalone server.
    ///
    /// The *oplog* in the files ends with it. The *data* is older while writes go on, on a set of one member too: the
    /// files' checkpoint is of the stable time. What lies between is applied from the oplog when the files are opened,
    /// and in that there is a trap. A primary's files say in `local.replset.oplogTruncateAfterPoint` up to where its
    /// oplog surely had no holes, which lags by as much as its journal does (100 ms). Opened as they are, with
    /// `recoverFromOplogAsStandalone`, they lose every write after the later of that point and the checkpoint (log
    /// 21557), although these were acknowledged and are in the files. There can be no holes under the lock, so a restore
    /// empties that collection first, as [`crate::restore_steps::prepare`] does; then every write up to this time is
    /// there and none after.
    ///
    /// Seen with 6.0.27 and eight writers with `w: 1`: 142 to 363 writes lost without it on a set of one member, 18 to
    /// 62 on the primary of three, none on a secondary, where the point is empty between two batches.
    pub operation_time: Option<Timestamp>,
    /// How many locks are held now.
    pub locks: i64,
}

/// Locks the server behind a direct client: its files then stay as they are, but for `diagnostic.data` and the log.
/// The lock outlives the client; [`fsync_unlock`] takes it away.
pub async fn fsync_lock(client: &Client) -> Result<Locked> {
    let reply = client
        .database("admin")
        .run_command(doc! {"fsync": 1, "lock": true})
        .await
        .doing("locking")?;
    let locks = reply.get_i64("lockCount").doing("reading the lock's reply")?;
    Ok(Locked {
        operation_time: reply.get_timestamp("operationTime").ok(),
        locks,
    })
}

/// Takes one lock away and returns how many are left.
pub async fn fsync_unlock(client: &Client) -> Result<i64> {
    let reply = client
        .database("admin")
        .run_command(doc! {"fsyncUnlock": 1})
        .await
        .doing("unlocking")?;
    reply.get_i64("lockCount").doing("reading the unlock's reply")
}

/// Whether anybody's lock is on.
pub async fn is_locked(client: &Client) -> Result<bool> {
    let reply = client
        .database("admin")
        .run_command(doc! {"currentOp": 1, "$ownOps": true})
        .await
        .doing("asking for the lock")?;
    Ok(reply.get_bool("fsyncLock").unwrap_or(false))
}

/// What of a dbPath is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Everything but `mongod.lock` and the journal's files: enough under a lock.
    Locked,
    /// Everything but `mongod.lock`: a stopped or killed server needs its journal.
    WithJournal,
}

/// Copies a dbPath, `to` must not exist, and returns the bytes copied. It blocks; in a test that is no harm.
pub fn copy_dbpath(from: &Path, to: &Path, what: Copied) -> Result<u64> {
    fs::create_dir(to).doing(format_args!("making {}", to.display()))?;
    let mut bytes = 0;
    let doing = || format!("copying {}", from.display());
    for entry in fs::read_dir(from).doing(doing())? {
        let entry = entry.doing(doing())?;
        let (path, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type().doing(doing())?;
        if name == "mongod.lock" {
            continue;
        }
        let target = to.join(&name);
        if name == "journal" && what == Copied::Locked {
            fs::create_dir(&target).doing(doing())?;
        } else if kind.is_dir() {
            bytes += copy_dbpath(&path, &target, what)?;
        } else if kind.is_file() {
            match fs::copy(&path, &target) {
                Ok(count) => bytes += count,
                // mongod turns the diagnostic data over whenever it likes.
                Err(_) if from.ends_with("diagnostic.data") => {}
                Err(source) => {
                    return Err(RigError::Io {
                        doing: format!("copying {}", path.display()),
                        source,
                    });
                }
            }
        }
    }
    Ok(bytes)
}
