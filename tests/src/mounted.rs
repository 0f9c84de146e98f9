//! File systems that a test mounts, which are gone when it ends.

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    mount::{MountFlags, UnmountFlags},
    process::Signal,
};
use serde_json::Value;

use crate::cli::{PbmFs, Running, text};

const PATIENCE: Duration = Duration::from_secs(120);

/// A snapshot that `pbm-fs mount` has mounted and serves. Unmounted when it is dropped.
#[derive(Debug)]
pub struct Mounted {
    running: Running,
    point: PathBuf,
    told: Value,
}

impl Mounted {
    /// Mounts on a directory, which is made if it is not there, and returns when the mount can be used.
    #[track_caller]
    pub fn new(pbmfs: &PbmFs, name: &str, point: &Path) -> Self {
        if !is_mount_point(point) {
            fs::create_dir_all(point).expect("a mount point");
        }
        let running = pbmfs.start(&["-o", "json", "mount", name, text(point)]);
        Self::wait(running, point)
    }

    #[track_caller]
    fn wait(mut running: Running, point: &Path) -> Self {
        let start = Instant::now();
        loop {
            // What a command has printed is there when it has ended, so it is asked for that first.
            let ended = running.ended();
            if let Ok(told) = serde_json::from_str(&running.stdout()) {
                let point = point.to_owned();
                return Self { running, point, told };
            }
            assert!(!ended, "the mount ended: {}", running.stderr());
            assert!(
                start.elapsed() < PATIENCE,
                "the mount does not come: {}",
                running.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it said when it could be used.
    pub fn told(&self) -> &Value {
        &self.told
    }

    /// Where.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// The files of a replica set.
    pub fn dbpath(&self, replset: &str) -> PathBuf {
        self.point.join(replset).join("dbpath")
    }

    /// What the server has printed to stderr so far.
    pub fn stderr(&self) -> String {
        self.running.stderr()
    }

    /// Asks it by SIGTERM to unmount and end, which must succeed.
    #[track_caller]
    pub fn unmount(self) {
        self.running.signal(Signal::TERM);
        self.wait_for_end();
    }

    /// Waits for the server's end, which must be a good one: somebody else unmounts.
    #[track_caller]
    pub fn wait_for_end(mut self) {
        let start = Instant::now();
        while !self.running.ended() {
            assert!(
                start.elapsed() < PATIENCE,
                "the mount does not end: {}",
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!is_mount_point(&self.point), "still mounted: {}", self.stderr());
    }

    /// `kill -9` to the server; what it leaves mounted stays so.
    pub fn kill(mut self) {
        self.running.kill();
        // Not dropped as usual, which would clear it.
        self.point = PathBuf::new();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.point.as_os_str().is_empty() || !is_mount_point(&self.point) {
            return;
        }
        // Without the server first, so that nobody waits for its answer.
        self.running.kill();
        clear(&self.point);
    }
}

/// Whether a file system is mounted on the directory. Does not touch it, since a dead one does not answer.
pub fn is_mount_point(path: &Path) -> bool {
    let Some(parent) = path.parent().and_then(|parent| parent.canonicalize().ok()) else {
        return false;
    };
    let path = parent.join(path.file_name().unwrap_or_default());
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the kernel tells what is mounted");
    let field = |line: &str| line.split(' ').nth(4).map(|point| point.replace("\\040", " "));
    table.lines().any(|line| field(line).as_deref() == path.to_str())
}

/// Takes away whatever is mounted on the directory.
pub fn clear(path: &Path) {
    // Nothing can be done about a failure, and a test that failed has other news.
    let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
}

/// A file system in memory, with as little room as is wanted.
#[derive(Debug)]
pub struct Tmpfs {
    point: PathBuf,
}

impl Tmpfs {
    /// Mounts one; `options` are `size=8m` and the like.
    #[track_caller]
    pub fn new(point: &Path, options: &str) -> Self {
        fs::create_dir_all(point).expect("a mount point");
        let data = c_string(options);
        rustix::mount::mount("tmpfs", point, "tmpfs", MountFlags::empty(), data.as_c_str())
            .unwrap_or_else(|error| panic!("mounting a tmpfs, for which root is needed: {error}"));
        Self { point: point.into() }
    }

    /// Where.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Gives it other options, so more room.
    #[track_caller]
    pub fn resize(&self, options: &str) {
        let data = c_string(options);
        rustix::mount::mount_remount(&self.point, MountFlags::empty(), data.as_c_str())
            .unwrap_or_else(|error| panic!("changing a tmpfs: {error}"));
    }
}

fn c_string(options: &str) -> CString {
    CString::new(options).expect("options without zeros")
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        clear(&self.point);
    }
}
