//! The journal of a pin: a hard link to each of the live server's log files, made before the server can remove it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::task::AbortHandle;

use crate::error::{Doing, Result, RigError};

/// How often it is looked for new files. One lives for as long as it takes to fill it and to make a checkpoint after
/// that; should one come and go in between all the same, [`without_hole`] notices.
const WATCH: Duration = Duration::from_millis(10);

const PREFIX: &str = "WiredTigerLog.";

/// Names of log files, which sort by age.
pub(super) type Logs = BTreeSet<String>;

#[derive(Debug)]
pub(super) struct Journal {
    live: PathBuf,
    pinned: PathBuf,
    linked: Mutex<Logs>,
}

impl Journal {
    /// Links what is there now.
    pub(super) fn pin(dbpath: &Path, pin: &Path) -> Result<Self> {
        let journal = Self {
            live: dbpath.join("journal"),
            pinned: pin.join("journal"),
            linked: Mutex::default(),
        };
        fs::create_dir_all(&journal.pinned).doing(format_args!("making {}", journal.pinned.display()))?;
        journal.catch_up()?;
        Ok(journal)
    }

    fn linked(&self) -> MutexGuard<'_, Logs> {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Links what is new, and returns all that are linked.
    pub(super) fn catch_up(&self) -> Result<Logs> {
        let mut linked = self.linked();
        for name in logs(&self.live)? {
            if linked.contains(&name) {
                continue;
            }
            match fs::hard_link(self.live.join(&name), self.pinned.join(&name)) {
                // It was removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.doing(format_args!("linking {name}"))?,
            }
            linked.insert(name);
        }
        Ok(linked.clone())
    }

    /// Makes copies of these in place of the links. Once a file is finished, the server cuts off what it had allocated in
    /// advance; it does not do so while a backup cursor is open.
    pub(super) fn detach(&self, logs: &Logs) -> Result<()> {
        for name in logs {
            let (path, copy) = (self.pinned.join(name), self.pinned.join("copy"));
            copy_data(&path, &copy).doing(format_args!("copying {name}"))?;
            fs::rename(&copy, &path).doing(format_args!("copying {name}"))?;
        }
        Ok(())
    }

    /// Goes on linking until the handle is used.
    pub(super) fn watch(self: &Arc<Self>) -> AbortHandle {
        let journal = Arc::clone(self);
        let watch = async move {
            let mut ticks = tokio::time::interval(WATCH);
            // A server that is stopped or being wiped has no journal to look at.
            loop {
                ticks.tick().await;
                let _ = journal.catch_up();
            }
        };
        tokio::spawn(watch).abort_handle()
    }
}

/// Copies a file and leaves holes where there are zeros: most of a young log file.
fn copy_data(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (File::open(from)?, File::create(to)?);
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let count = from.read_at(&mut buffer, at)?;
        if count == 0 {
            return to.set_len(at);
        }
        if buffer[..count].iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer[..count], at)?;
        }
        at += count as u64;
    }
}

/// The log files in a directory. WiredTiger makes others in advance, under another name.
pub(super) fn logs(directory: &Path) -> Result<Logs> {
    let doing = || format!("listing {}", directory.display());
    let mut found = Logs::new();
    for entry in fs::read_dir(directory).doing(doing())? {
        let name = entry.doing(doing())?.file_name();
        found.extend(name.into_string().ok().filter(|name| name.starts_with(PREFIX)));
    }
    Ok(found)
}

/// The files that are written no more. Opening a backup cursor makes WiredTiger begin a new file, and `fsyncLock` opens
/// one; should it not have, the file that is being written has to do, up to where it is written.
pub(super) fn finished(mut logs: Logs, before_lock: &Logs) -> Logs {
    if logs.last() > before_lock.last() {
        logs.pop_last();
    }
    logs
}

/// Whether the files follow each other by their numbers.
pub(super) fn without_hole(logs: &Logs) -> Result<()> {
    let numbers: Vec<u64> = logs
        .iter()
        .filter_map(|name| name.strip_prefix(PREFIX)?.parse().ok())
        .collect();
    match numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        None => Ok(()),
        Some(pair) => Err(RigError::Check(format!(
            "the server removed journal files between {} and {} before they could be kept: start it with \
             --wiredTigerEngineConfigString=log=(archive=false)",
            pair[0], pair[1]
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::{Journal, Logs, finished, without_hole};

    fn of(numbers: &[u32]) -> Logs {
        numbers
            .iter()
            .map(|number| format!("WiredTigerLog.{number:010}"))
            .collect()
    }

    #[test]
    fn a_new_file_is_not_finished() {
        assert_eq!(finished(of(&[1, 2, 3]), &of(&[1, 2])), of(&[1, 2]));
        assert_eq!(finished(of(&[1, 2]), &of(&[1, 2])), of(&[1, 2]));
    }

    #[test]
    fn a_detached_file_is_no_longer_the_servers() {
        let place = tempfile::tempdir().unwrap();
        let (live, pin) = (place.path().join("db"), place.path().join("pin"));
        let log = live.join("journal/WiredTigerLog.0000000001");
        fs::create_dir_all(live.join("journal")).unwrap();
        let mut bytes = vec![7; 5000];
        bytes.resize(3 << 20, 0);
        fs::write(&log, &bytes).unwrap();
        let journal = Journal::pin(&live, &pin).unwrap();
        journal.detach(&of(&[1])).unwrap();
        File::options()
            .write(true)
            .open(&log)
            .unwrap()
            .set_len(5000)
            .unwrap();
        assert_eq!(
            fs::read(pin.join("journal/WiredTigerLog.0000000001")).unwrap(),
            bytes
        );
        assert_eq!(journal.catch_up().unwrap(), of(&[1]));
    }

    #[test]
    fn a_hole_is_noticed() {
        assert!(without_hole(&of(&[9, 10, 11])).is_ok());
        let error = without_hole(&of(&[9, 10, 12])).unwrap_err().to_string();
        assert!(error.contains("between 10 and 12"), "{error}");
    }
}
