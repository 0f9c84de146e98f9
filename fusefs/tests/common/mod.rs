//! Real mounts for tests. The server's threads are in the test's process; everything that reads the mount is a
//! process of its own, because a process that waits for itself cannot even be killed.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pbmfs_fusefs::fs::FsStats;
use pbmfs_fusefs::memory::MemoryTree;
use pbmfs_fusefs::point::WhenMissing;
use pbmfs_fusefs::tree::{Blocks, Tree};
use pbmfs_fusefs::{Ended, Fs, FsConfig, MountConfig, MountError, MountPoint, Session};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A served mount on a directory of its own.
pub struct Mounted<T> {
    pub fs: Arc<Fs<T>>,
    pub path: PathBuf,
    pub read_ahead_kib: Option<u32>,
    runtime: Runtime,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<Result<Ended, MountError>>>,
    _home: tempfile::TempDir,
}

impl<T: Tree + Blocks> Mounted<T> {
    pub fn new(tree: T) -> Self {
        Self::with(tree, FsConfig::with_budget(64 << 20), &MountConfig::default())
    }

    pub fn with(tree: T, fs: FsConfig, config: &MountConfig) -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().canonicalize().unwrap().join("mnt");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let fs = Fs::new(Arc::new(tree), fs, runtime.handle().clone());
        let point = MountPoint::prepare(&path, WhenMissing::Create, &[]).unwrap();
        let session = Session::mount(fs.clone(), point, config).unwrap();
        let read_ahead_kib = session.read_ahead_kib();
        let (stop, told) = oneshot::channel();
        let serving = runtime.spawn(session.serve(async move {
            let _ = told.await;
        }));
        Self {
            fs,
            path,
            read_ahead_kib,
            runtime,
            stop: Some(stop),
            serving: Some(serving),
            _home: home,
        }
    }

    pub fn file(&self, name: &str) -> String {
        self.path.join(name).to_str().unwrap().to_owned()
    }

    pub fn stats(&self) -> FsStats {
        self.fs.stats()
    }

    /// What a signal does.
    pub fn stop(mut self) -> Result<Ended, MountError> {
        self.stop.take().unwrap().send(()).unwrap();
        self.ended()
    }

    /// Waits for the session to end.
    pub fn ended(&mut self) -> Result<Ended, MountError> {
        let serving = self.serving.take().unwrap();
        let done = self
            .runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(20), serving).await });
        done.expect("the session should have ended").unwrap()
    }
}

impl<T> Drop for Mounted<T> {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(serving) = self.serving.take() {
            let _ = self
                .runtime
                .block_on(async { tokio::time::timeout(Duration::from_secs(20), serving).await });
        }
    }
}

/// Bytes that look random and are the same every time.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut all = Vec::with_capacity(len + 8);
    while all.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend_from_slice(&state.to_le_bytes());
    }
    all.truncate(len);
    all
}

/// A small tree in the shape of a snapshot.
pub fn small_tree() -> MemoryTree {
    let mut tree = MemoryTree::new(4096);
    tree.add("rs0/dbpath/WiredTiger", bytes(47, 1));
    tree.add("rs0/dbpath/collection-0.wt", bytes(300_000, 2));
    tree.add("rs0/dbpath/empty", Vec::new());
    tree
}

pub fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .output()
        .unwrap()
}

/// Runs a shell script; gives its standard output, and panics with the error output if it fails.
pub fn sh(script: &str) -> String {
    let output = run("sh", &["-c", script]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a shell script that should fail; gives its error output.
pub fn sh_fails(script: &str) -> String {
    let output = run("sh", &["-c", script]);
    assert!(!output.status.success(), "{script} should have failed");
    String::from_utf8(output.stderr).unwrap()
}

/// A file's content as another process reads it.
pub fn cat(path: &str) -> Vec<u8> {
    let output = run("cat", &[path]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

pub fn is_mounted(path: &Path) -> bool {
    pbmfs_fusefs::mounts::at(path).unwrap().is_some()
}

/// Waits until `what` holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
