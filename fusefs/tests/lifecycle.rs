//! How mounts begin and end, through the real kernel. Needs root and /dev/fuse.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Mounted, bytes, cat, eventually, is_mounted, sh, small_tree};
use pbmfs_fusefs::point::WhenMissing;
use pbmfs_fusefs::{
    Ended, Fs, FsConfig, MountConfig, MountError, MountErrorKind, MountPoint, Session, Umounted, clear_stale,
    umount,
};

/// Tells the child of [`Server::start`] where to mount.
const SERVE: &str = "PBMFS_TEST_SERVE";

/// Not a test: the child process that serves a mount until SIGTERM.
#[test]
fn child_that_serves() {
    let Some(path) = std::env::var_os(SERVE) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ended = runtime.block_on(async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let fs = Fs::new(
            Arc::new(small_tree()),
            FsConfig::default(),
            tokio::runtime::Handle::current(),
        );
        let point = MountPoint::prepare(Path::new(&path), WhenMissing::Create, &[]).unwrap();
        let config = MountConfig {
            busy_grace: Duration::from_millis(300),
            ..MountConfig::default()
        };
        let session = Session::mount(fs, point, &config).unwrap();
        let stop = async {
            term.recv().await;
        };
        session.serve(stop).await.unwrap()
    });
    let code = match ended {
        Ended::Stopped => 10,
        Ended::CutOff => 11,
        Ended::UnmountedElsewhere => 12,
    };
    std::process::exit(code);
}

struct Server {
    child: Child,
    path: PathBuf,
    _home: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        Self::start_on(tempfile::tempdir().unwrap())
    }

    /// With a mount point that was there before, and so stays.
    fn start_on_existing() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("mnt")).unwrap();
        Self::start_on(home)
    }

    fn start_on(home: tempfile::TempDir) -> Self {
        let path = home.path().canonicalize().unwrap().join("mnt");
        let child = spawn(&path);
        eventually("the child has mounted", || is_mounted(&path));
        Self {
            child,
            path,
            _home: home,
        }
    }

    fn file(&self) -> String {
        self.path
            .join("rs0/dbpath/collection-0.wt")
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the child has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = Command::new("umount")
            .arg("-lq")
            .arg(&self.path)
            .stderr(Stdio::null())
            .status();
    }
}

fn spawn(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_serves"])
        .env(SERVE, path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A process that keeps a file of the mount open; its standard output says when.
fn holder(file: &str) -> Child {
    use std::io::{BufRead, BufReader};
    let mut child = Command::new("sh")
        .args([
            "-c",
            &format!("exec 3< {file}; head -c 10 <&3 > /dev/null; echo open; exec sleep 60"),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "open\n");
    child
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn sigterm_unmounts_and_removes_the_directory_it_made() {
    let mut server = Server::start();
    assert_eq!(cat(&server.file()), bytes(300_000, 2));
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.code(), Some(10));
    assert!(!server.path.exists());
}

#[test]
fn a_busy_mount_is_detached_when_its_server_is_told_to_stop() {
    let mut server = Server::start();
    let holder = holder(&server.file());
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.code(), Some(11));
    assert!(!is_mounted(&server.path) && !server.path.exists());
    end(holder);
}

#[test]
fn the_sessions_threads_end_although_a_reader_holds_on() {
    let mount = Mounted::with(
        small_tree(),
        FsConfig::default(),
        &MountConfig {
            busy_grace: Duration::from_millis(100),
            ..MountConfig::default()
        },
    );
    let holder = holder(&mount.file("rs0/dbpath/collection-0.wt"));
    let path = mount.path.clone();
    assert_eq!(mount.stop().unwrap(), Ended::CutOff);
    assert!(!is_mounted(&path));
    end(holder);
}

#[test]
fn a_server_killed_leaves_a_mount_that_the_next_one_clears() {
    let mut server = Server::start();
    server.signal(rustix::process::Signal::KILL);
    assert_eq!(server.code(), None);
    assert!(is_mounted(&server.path));
    assert!(common::sh_fails(&format!("ls {}", server.path.display())).contains("not connected"));
    // The next mount on the same place just works.
    let second = spawn(&server.path);
    server.child = second;
    eventually("the second server serves", || {
        Command::new("test")
            .args(["-f", &server.file()])
            .status()
            .unwrap()
            .success()
    });
    assert_eq!(cat(&server.file()), bytes(300_000, 2));
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.code(), Some(10));
    assert!(!is_mounted(&server.path));
}

#[test]
fn dead_mounts_are_cleared_also_by_umount_and_though_somebody_is_inside() {
    for use_umount in [true, false] {
        let mut server = Server::start();
        let inside = holder(&server.file());
        server.signal(rustix::process::Signal::KILL);
        server.code();
        if use_umount {
            assert_eq!(umount(&server.path, false).unwrap(), Umounted::Dead);
        } else {
            assert!(clear_stale(&server.path).unwrap());
        }
        assert!(!is_mounted(&server.path));
        assert!(!clear_stale(&server.path).unwrap());
        end(inside);
    }
}

#[test]
fn an_unmount_by_others_ends_the_session_and_nothing_else_is_unmounted() {
    let mut server = Server::start_on_existing();
    // Something else is mounted on the same place at once, before the server notices.
    sh(&format!(
        "umount {0} && mount -t tmpfs other {0}",
        server.path.display()
    ));
    assert_eq!(server.code(), Some(12));
    let there = pbmfs_fusefs::mounts::at(&server.path).unwrap().unwrap();
    assert_eq!(there.fstype, "tmpfs");
    sh(&format!("umount {}", server.path.display()));
}

#[test]
fn what_was_mounted_over_ours_is_not_unmounted_by_us() {
    let mut server = Server::start();
    sh(&format!("mount -t tmpfs other {}", server.path.display()));
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.code(), Some(12));
    assert_eq!(
        pbmfs_fusefs::mounts::at(&server.path).unwrap().unwrap().fstype,
        "tmpfs"
    );
    sh(&format!("umount {}", server.path.display()));
    assert!(clear_stale(&server.path).unwrap());
}

#[test]
fn a_mount_that_moved_with_its_parent_is_found() {
    let mut server = Server::start_on_existing();
    let parent = server.path.parent().unwrap();
    let moved = parent.with_extension("moved");
    std::fs::rename(parent, &moved).unwrap();
    assert!(is_mounted(&moved.join("mnt")));
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.code(), Some(10));
    assert!(!is_mounted(&moved.join("mnt")));
    std::fs::rename(&moved, server.path.parent().unwrap()).unwrap();
}

#[test]
fn umount_ends_the_server() {
    let mut server = Server::start();
    assert_eq!(umount(&server.path, false).unwrap(), Umounted::Clean);
    assert_eq!(server.code(), Some(12));
    let error = umount(&server.path, false).unwrap_err();
    assert!(matches!(error, MountError::NotMounted(_)), "{error}");
    assert_eq!(error.kind(), MountErrorKind::NotFound);
}

#[test]
fn umount_of_a_busy_mount_is_refused_or_lazy() {
    let mut server = Server::start();
    let reader = holder(&server.file());
    let error = umount(&server.path, false).unwrap_err();
    assert!(matches!(error, MountError::Busy(_)), "{error}");
    assert_eq!(umount(&server.path, true).unwrap(), Umounted::Lazily);
    assert!(!is_mounted(&server.path));
    // The reader's file is still served; the server ends with it.
    assert!(server.child.try_wait().unwrap().is_none());
    let through = format!("/proc/{}/fd/3", reader.id());
    assert_eq!(cat(&through), bytes(300_000, 2));
    end(reader);
    assert_eq!(server.code(), Some(12));
}

#[test]
fn a_lazily_unmounted_server_still_obeys_sigterm() {
    let mut server = Server::start();
    let reader = holder(&server.file());
    assert_eq!(umount(&server.path, true).unwrap(), Umounted::Lazily);
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.code(), Some(12));
    end(reader);
}

#[test]
fn a_session_that_is_dropped_leaves_nothing_mounted() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().canonicalize().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for _ in 0..5 {
        let fs = Fs::new(
            Arc::new(small_tree()),
            FsConfig::default(),
            runtime.handle().clone(),
        );
        let point = MountPoint::prepare(&path, WhenMissing::Refuse, &[]).unwrap();
        let session = Session::mount(fs, point, &MountConfig::default()).unwrap();
        assert!(is_mounted(&path));
        drop(session);
        assert!(!is_mounted(&path) && path.exists());
    }
}

#[test]
fn mount_points_that_do_not_fit_are_refused_in_one_sentence() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().canonicalize().unwrap();
    let repo = home.join("repo");
    std::fs::create_dir_all(repo.join("packs")).unwrap();
    std::fs::create_dir(home.join("empty")).unwrap();
    std::fs::create_dir(home.join("full")).unwrap();
    std::fs::write(home.join("full/file"), "x").unwrap();
    std::fs::write(home.join("file"), "x").unwrap();
    std::os::unix::fs::symlink(&repo, home.join("link")).unwrap();
    let apart = [repo.clone()];
    let refused = |path: &Path, when| {
        let error = MountPoint::prepare(path, when, &apart).unwrap_err();
        (error.kind(), error.to_string())
    };
    let cases = [
        ("missing", MountErrorKind::NotFound, "does not exist"),
        ("missing/deeper", MountErrorKind::NotFound, "does not exist"),
        ("file", MountErrorKind::Usage, "is not a directory"),
        ("full", MountErrorKind::Usage, "is not empty"),
        ("repo", MountErrorKind::Usage, "may not contain each other"),
        ("repo/packs", MountErrorKind::Usage, "may not contain each other"),
        ("repo/new", MountErrorKind::Usage, "may not contain each other"),
        ("link", MountErrorKind::Usage, "may not contain each other"),
        ("link/new", MountErrorKind::Usage, "may not contain each other"),
        (".", MountErrorKind::Usage, "may not contain each other"),
    ];
    for (name, kind, words) in cases {
        let (got, text) = refused(&home.join(name), WhenMissing::Refuse);
        assert_eq!(got, kind, "{name}: {text}");
        assert!(text.contains(words) && !text.contains('\n'), "{name}: {text}");
    }
    let (kind, _) = refused(&home.join("missing/deeper"), WhenMissing::Create);
    assert_eq!(kind, MountErrorKind::NotFound);
    assert!(!repo.join("new").exists());

    let made = MountPoint::prepare(&home.join("missing"), WhenMissing::Create, &apart).unwrap();
    assert!(made.created() && home.join("missing").exists());
    drop(made);
    assert!(!home.join("missing").exists());
    let found = MountPoint::prepare(&home.join("empty"), WhenMissing::Create, &apart).unwrap();
    drop(found);
    assert!(home.join("empty").exists());
}

#[test]
fn a_live_mount_is_not_mounted_over() {
    let server = Server::start();
    let error = MountPoint::prepare(&server.path, WhenMissing::Refuse, &[]).unwrap_err();
    assert!(matches!(error, MountError::AlreadyMounted { .. }), "{error}");
    assert_eq!(error.kind(), MountErrorKind::Busy);
    assert!(!clear_stale(&server.path).unwrap());
    assert_eq!(cat(&server.file()), bytes(300_000, 2));
}
