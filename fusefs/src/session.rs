//! A mount's life: mounted by us, served by fuser, unmounted by us.
//!
//! fuser 0.18 can mount and unmount too, but its unmounting has defects (it unmounts again what somebody else has
//! unmounted, and perhaps hits what was mounted there since; it gives up on EBUSY). So it never gets to know the
//! mount point: we open `/dev/fuse`, call mount(2) and hand over the descriptor. What is left to guard is that *we*
//! unmount only our own: the session's event loops end when its file system is gone, and before each unmount the
//! mount table must still show our mount id and device at our mount point. A device number is not used again while
//! its file system lives, and it lives as long as the event loops run.
//!
//! Ways to end, all with the event loops joined and the directory removed if it was made for the mount:
//! - told to stop: umount(2), tried again while busy; after [`MountConfig::busy_grace`] the mount is detached and
//!   its connection aborted, so that readers who still have files open get an error instead of hanging.
//! - unmounted by somebody else: the event loops end by themselves, nothing is unmounted.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::sync::watch;

use crate::adapter::Adapter;
use crate::error::MountError;
use crate::fs::Fs;
use crate::mounts::{self, FSTYPE, MountEntry, SOURCE_PREFIX};
use crate::point::MountPoint;
use crate::tree::{Blocks, Tree};

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// What `df` and `mount` show after `pbm-fs:`; usually the snapshot's name.
    pub name: String,
    /// Whether users other than the one who mounts may look in. The files' own permissions hold in any case.
    pub allow_other: bool,
    /// The kernel's read-ahead window; `None` leaves its default of 128 KiB. 1 MiB is also the largest request that
    /// the kernel sends by default. Every fault of a mapped file reads a whole window, so a mongod that maps its
    /// files and reads them at random may be better off with less.
    pub read_ahead_kib: Option<u32>,
    /// Event loops; `None` is one per core, at least 2 and at most 16.
    pub threads: Option<usize>,
    /// How long readers may keep a stopping mount busy.
    pub busy_grace: Duration,
}

impl Default for MountConfig {
    fn default() -> Self {
        Self {
            name: "snapshot".into(),
            allow_other: true,
            read_ahead_kib: Some(1024),
            threads: None,
            busy_grace: Duration::from_secs(2),
        }
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop, and nobody used the mount.
    Stopped,
    /// It was told to stop, and readers who had files open were cut off.
    CutOff,
    /// Somebody else unmounted it.
    UnmountedElsewhere,
}

/// A mounted file system that is being served. Dropping it unmounts at once, cutting off readers.
pub struct Session {
    point: MountPoint,
    mount: MountEntry,
    read_ahead_kib: Option<u32>,
    threads: usize,
    busy_grace: Duration,
    server: Option<JoinHandle<std::io::Result<()>>>,
    ended: watch::Receiver<bool>,
}

impl Session {
    /// Mounts `fs` on `point` and begins to serve it, on threads of its own.
    pub fn mount<T: Tree + Blocks>(
        fs: Arc<Fs<T>>,
        point: MountPoint,
        config: &MountConfig,
    ) -> Result<Self, MountError> {
        let threads = config.threads.unwrap_or_else(default_threads).max(1);
        let device = kernel_mount(point.path(), config)?;
        let mut undo = DetachOnDrop(Some(point.path()));
        let mount = mounts::at(point.path())?
            .filter(MountEntry::is_ours)
            .ok_or_else(|| MountError::NotMounted(point.path().to_owned()))?;

        let mut options = fuser::Config::default();
        options.n_threads = Some(threads);
        options.clone_fd = true;
        // The kernel itself keeps others out unless it was mounted with allow_other.
        options.acl = fuser::SessionACL::All;
        let session = fuser::Session::from_fd(Adapter::new(fs), device, options.acl, options)
            .map_err(|e| MountError::io("cannot begin to serve", point.path(), e))?;
        let (sender, ended) = watch::channel(false);
        let server = std::thread::Builder::new()
            .name("pbmfs-session".into())
            .spawn(move || {
                let result = session.run();
                // Nobody may be listening any more.
                let _ = sender.send(true);
                match result {
                    // fusectl's abort is a way to end, not a failure.
                    Err(e) if e.raw_os_error() == Some(Errno::CONNABORTED.raw_os_error()) => Ok(()),
                    result => result,
                }
            })
            .map_err(|e| MountError::io("cannot begin to serve", point.path(), e))?;
        undo.0 = None;
        drop(undo);

        let read_ahead_kib = set_read_ahead(&mount.device, config.read_ahead_kib);
        tracing::info!(point = %point.path().display(), read_ahead_kib, threads, "mounted");
        let busy_grace = config.busy_grace;
        Ok(Self {
            point,
            mount,
            read_ahead_kib,
            threads,
            busy_grace,
            server: Some(server),
            ended,
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn point(&self) -> &Path {
        self.point.path()
    }

    /// The kernel's read-ahead window as it is now, if it can be told.
    #[must_use]
    pub fn read_ahead_kib(&self) -> Option<u32> {
        self.read_ahead_kib
    }

    /// Number of event loops.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Serves until `stop` is ready or somebody unmounts, and leaves nothing mounted.
    pub async fn serve(mut self, stop: impl Future<Output = ()>) -> Result<Ended, MountError> {
        let mut ended = self.ended.clone();
        let told = tokio::select! {
            // An error means that the thread died; then it is over as well.
            _ = ended.wait_for(|ended| *ended) => false,
            () = stop => true,
        };
        // umount(2) and joining block.
        let closing = tokio::task::spawn_blocking(move || {
            let how = if told {
                self.unmount(self.busy_grace)?
            } else {
                Ended::UnmountedElsewhere
            };
            self.finish(self.busy_grace)?;
            Ok(how)
        });
        closing
            .await
            .unwrap_or_else(|e| Err(self_io("cannot stop", std::io::Error::other(e))))
    }

    /// Unmounts if the mount is still ours.
    fn unmount(&self, grace: Duration) -> Result<Ended, MountError> {
        let Some(point) = self.place() else {
            return Ok(Ended::UnmountedElsewhere);
        };
        match mounts::plainly(&point, grace) {
            Ok(()) => return Ok(Ended::Stopped),
            // EINVAL: not a mount point any more, somebody was quicker.
            Err(Errno::INVAL) => return Ok(Ended::UnmountedElsewhere),
            Err(Errno::BUSY) => {}
            Err(e) => tracing::warn!("cannot unmount {}: {e}; detaching", point.display()),
        }
        // A while has passed: look again.
        let Some(point) = self.place() else {
            return Ok(Ended::UnmountedElsewhere);
        };
        // FORCE aborts the connection, which ends the event loops although files are open; DETACH removes the name.
        let flags = UnmountFlags::DETACH | UnmountFlags::FORCE | UnmountFlags::NOFOLLOW;
        match rustix::mount::unmount(&point, flags) {
            Ok(()) => Ok(Ended::CutOff),
            Err(Errno::INVAL) => Ok(Ended::UnmountedElsewhere),
            Err(e) => Err(MountError::io("cannot unmount", point, e)),
        }
    }

    /// Where our mount is now: a directory above it may have been renamed. `None` if it is gone, or if somebody
    /// mounted something over it, which unmounting would take away.
    fn place(&self) -> Option<PathBuf> {
        if *self.ended.borrow() || self.server.as_ref().is_none_or(JoinHandle::is_finished) {
            return None;
        }
        let table = mounts::table().ok()?;
        let same = |m: &&MountEntry| m.id == self.mount.id && m.device == self.mount.device && m.is_ours();
        let ours = table.iter().find(same)?;
        let top = table.iter().rfind(|m| m.point == ours.point)?;
        (top.id == ours.id).then(|| ours.point.clone())
    }

    /// Waits for the event loops. They end with the file system, which outlives its name while files are open (after
    /// somebody's lazy unmount, say): then its connection is aborted.
    fn finish(&mut self, grace: Duration) -> Result<(), MountError> {
        if !self.ends_within(grace) {
            abort_connection(&self.mount.device);
            if !self.ends_within(Duration::from_secs(1)) {
                // The process is about to exit, which closes the device and has the same effect.
                tracing::warn!("readers still have files of {} open", self.point().display());
                self.server = None;
                return Ok(());
            }
        }
        match self.server.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(e))) => Err(MountError::io("serving failed on", self.point(), e)),
            Some(Err(_)) => {
                let panicked = std::io::Error::other("the serving thread panicked");
                Err(MountError::io("serving failed on", self.point(), panicked))
            }
        }
    }

    fn ends_within(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while !*self.ended.borrow() && self.server.as_ref().is_some_and(|s| !s.is_finished()) {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.server.is_none() {
            return;
        }
        let done = self
            .unmount(Duration::ZERO)
            .and_then(|_| self.finish(Duration::from_millis(100)));
        if let Err(e) = done {
            tracing::warn!("{e}");
        }
    }
}

/// Takes the mount away again when serving could not begin.
struct DetachOnDrop<'a>(Option<&'a Path>);

impl Drop for DetachOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(point) = self.0 {
            let flags = UnmountFlags::DETACH | UnmountFlags::FORCE | UnmountFlags::NOFOLLOW;
            let _ = rustix::mount::unmount(point, flags);
        }
    }
}

fn self_io(what: &'static str, source: std::io::Error) -> MountError {
    MountError::io(what, "the session", source)
}

fn default_threads() -> usize {
    std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, 16)
}

fn kernel_mount(point: &Path, config: &MountConfig) -> Result<OwnedFd, MountError> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(
        |e| match e {
            Errno::ACCESS | Errno::PERM => MountError::NotPermitted(point.to_owned()),
            e => MountError::NoFuse(e.into()),
        },
    )?;
    let (uid, gid) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    let mut data = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions",
        device.as_raw_fd()
    );
    if config.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).expect("invariant: no zero byte among digits and words");
    let flags = MountFlags::RDONLY
        | MountFlags::NODEV
        | MountFlags::NOSUID
        | MountFlags::NOEXEC
        | MountFlags::NOATIME;
    match rustix::mount::mount(source_name(&config.name), point, FSTYPE, flags, data.as_c_str()) {
        Ok(()) => Ok(device),
        Err(Errno::PERM) => Err(MountError::NotPermitted(point.to_owned())),
        Err(Errno::NODEV) => Err(MountError::NoFuse(Errno::NODEV.into())),
        Err(e) => Err(MountError::io("cannot mount on", point, e)),
    }
}

/// The mount table's source column. Commas, backslashes and the like mean something to who reads mount options.
fn source_name(name: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.:/+@".contains(c) {
            c
        } else {
            '_'
        }
    };
    format!("{SOURCE_PREFIX}:{}", name.chars().map(plain).collect::<String>())
}

/// fusectl's switch, if it is mounted. The device is still ours: its number is taken while the event loops run.
fn abort_connection(device: &str) {
    let minor = device.split_once(':').map_or(device, |(_, minor)| minor);
    let path = format!("/sys/fs/fuse/connections/{minor}/abort");
    if let Err(e) = std::fs::write(&path, "1") {
        tracing::debug!("{path}: {e}");
    }
}

/// Raises the kernel's read-ahead for this mount only. Best effort: the answer is what is in force afterwards.
fn set_read_ahead(device: &str, wanted: Option<u32>) -> Option<u32> {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Some(kib) = wanted
        && let Err(e) = std::fs::write(&path, kib.to_string())
    {
        tracing::warn!("the kernel's read-ahead stays as it is: {path}: {e}");
    }
    std::fs::read_to_string(&path).ok()?.trim().parse().ok()
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
