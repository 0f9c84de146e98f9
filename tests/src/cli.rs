//! The program under test, run as its users run it, and what its errors have to look like.
//!
//! Nothing here returns an error: what does not come out as it should is a panic that shows the command line and
//! everything that was printed.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    binary::pbmfs_bin,
    process::{Process, supervised, supervised_as},
    tree::Tree,
};

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Stands in the environment of every process that a [`PbmFs`] starts, so also in its guards'.
const TAG: &str = "PBMFS_TEST_TAG";

/// `pbm-fs` with a repository.
#[derive(Clone, Debug)]
pub struct PbmFs {
    program: PathBuf,
    repo: Option<PathBuf>,
    directory: Option<PathBuf>,
    home: Option<PathBuf>,
    user: Option<u32>,
    /// Where its local indexes are, unless it has a home.
    caches: Arc<TempDir>,
    tag: String,
}

/// A directory that every user may write to, whatever the umask.
fn new_caches() -> Arc<TempDir> {
    let made = || {
        let place = tempfile::tempdir()?;
        fs::set_permissions(place.path(), Permissions::from_mode(0o777))?;
        std::io::Result::Ok(place)
    };
    Arc::new(made().unwrap_or_else(|error| panic!("a directory for caches: {error}")))
}

impl PbmFs {
    /// Without a repository.
    pub fn bare() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            program: pbmfs_bin().unwrap_or_else(|error| panic!("{error}")),
            repo: None,
            directory: None,
            home: None,
            user: None,
            caches: new_caches(),
            tag: format!("{}-{count}", std::process::id()),
        }
    }

    /// With a repository that need not exist.
    pub fn on(repo: impl Into<PathBuf>) -> Self {
        Self {
            repo: Some(repo.into()),
            ..Self::bare()
        }
    }

    /// With a repository that is made.
    #[track_caller]
    pub fn init(repo: impl Into<PathBuf>) -> Self {
        let this = Self::on(repo);
        this.ok(&["init"]);
        this
    }

    /// Run in this directory.
    #[must_use]
    pub fn in_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Run with this home directory, and no other place for caches.
    #[must_use]
    pub fn at_home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// Run by this user, whose local indexes are his own.
    #[must_use]
    pub fn as_user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self.caches = new_caches();
        self
    }

    /// The directory in which its local indexes are.
    pub fn indexes(&self) -> PathBuf {
        self.caches.path().join("pbm-fs/index")
    }

    /// The repository's directory.
    pub fn repo(&self) -> &Path {
        self.repo.as_deref().expect("this pbm-fs has a repository")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.user {
            Some(user) => supervised_as(user, &self.program),
            None => supervised(&self.program),
        };
        for name in ["PBMFS_REPO", "PBMFS_URI", "PBMFS_LOG"] {
            command.env_remove(name);
        }
        command.env(TAG, &self.tag).args(args);
        if let Some(repo) = &self.repo {
            command.env("PBMFS_REPO", repo);
        }
        if let Some(home) = &self.home {
            command.env("HOME", home).env_remove("XDG_CACHE_HOME");
        } else {
            command.env("XDG_CACHE_HOME", self.caches.path());
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Starts a command.
    pub fn start(&self, args: &[&str]) -> Running {
        let file = || tempfile::tempfile().expect("a temporary file");
        let (out, err) = (file(), file());
        let dup = |file: &File| Stdio::from(file.try_clone().expect("a second handle"));
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(dup(&out)).stderr(dup(&err));
        Running {
            process: Process::of(command).unwrap_or_else(|error| panic!("{error}")),
            out,
            err,
            line: format!("pbm-fs {}", args.join(" ")),
            started: Instant::now(),
        }
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        self.start(args).wait()
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> Ran {
        self.run(args).ok()
    }

    /// Runs a command that must succeed, and reads its JSON.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        self.ok(&[&["-o", "json"], args].concat()).json()
    }

    /// Takes a backup of a directory and returns its name.
    #[track_caller]
    pub fn backup_of(&self, dbpath: &Path) -> String {
        name_of(&self.json(&["backup", "--dbpath", text(dbpath)]))
    }

    /// The names of all snapshots, newest first, none of which may be unreadable.
    #[track_caller]
    pub fn names(&self) -> Vec<String> {
        let listed = self.json(&["list"]);
        let rows = listed["snapshots"].as_array().expect("snapshots");
        for row in rows {
            assert_eq!(row["status"], "done", "{row}");
        }
        rows.iter().map(name_of).collect()
    }

    /// `check --read-data` must find nothing.
    #[track_caller]
    pub fn check(&self) {
        self.ok(&["-q", "check", "--read-data"]);
    }

    /// Runs a command that must fail with this exit code: once for people, which gives one line on stderr and nothing
    /// on stdout, and once for scripts, which gives one line of JSON with the same words. Returns the sentence.
    #[track_caller]
    pub fn refuses(&self, code: i32, args: &[&str]) -> String {
        let sentence = self.run(&[&["-q"], args].concat()).sentence(code);
        let scripted = self.run(&[&["-q", "-o", "json"], args].concat());
        let message = scripted.json_error(code);
        assert_eq!(without_ids(&message), without_ids(&sentence), "{scripted}");
        sentence
    }

    /// The same for a command line that is no good in itself: the parser's words take several lines.
    #[track_caller]
    pub fn refuses_usage(&self, args: &[&str]) -> String {
        let plain = self.run(args);
        assert_eq!(plain.code, Some(2), "{plain}");
        assert!(
            plain.stderr.starts_with("error: ") && plain.stdout.is_empty(),
            "{plain}"
        );
        self.run(&[&["-o", "json"], args].concat()).json_error(2)
    }

    /// Process ids of all processes that were started through this value, directly or not, and are still there.
    pub fn processes(&self) -> Vec<u32> {
        let tag = format!("{TAG}={}", self.tag);
        let all = std::fs::read_dir("/proc").expect("/proc can be listed");
        all.flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment
                    .split(|byte| *byte == 0)
                    .any(|entry| entry == tag.as_bytes())
            })
            .collect()
    }

    /// The repository's objects.
    #[track_caller]
    pub fn objects(&self) -> Tree {
        Tree::read(self.repo())
            .unwrap_or_else(|error| panic!("{error}"))
            .files()
    }

    /// The leases of writers.
    pub fn leases(&self) -> Vec<String> {
        match std::fs::read_dir(self.repo().join("leases")) {
            Ok(entries) => entries
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect(),
            Err(_) => Vec::new(),
        }
    }
}

/// The name in a snapshot's JSON.
#[track_caller]
pub fn name_of(snapshot: &Value) -> String {
    snapshot["name"]
        .as_str()
        .unwrap_or_else(|| panic!("no name in {snapshot}"))
        .to_owned()
}

/// Two runs of a command that fails give their objects other ids.
fn without_ids(sentence: &str) -> String {
    let words = sentence.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    let is_id = |word: &str| word.len() >= 32 && word.chars().filter(char::is_ascii_hexdigit).count() >= 32;
    let mut out = String::new();
    for word in words {
        out.push_str(if is_id(word) { "…" } else { word });
    }
    // A pack's directory is the beginning of its id.
    match out.find("packs/") {
        Some(at) if out.is_char_boundary(at + 8) => out.replace_range(at + 6..at + 8, "…"),
        _ => {}
    }
    out
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A command at work. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    process: Process,
    out: File,
    err: File,
    line: String,
    started: Instant,
}

impl Running {
    /// What it has printed to stdout so far.
    pub fn stdout(&self) -> String {
        read_all(&self.out)
    }

    /// What it has printed to stderr so far.
    pub fn stderr(&self) -> String {
        read_all(&self.err)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.process
            .ended()
            .unwrap_or_else(|error| panic!("{error}"))
            .is_some()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process
            .signal(signal)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// `kill -9`; returns when the process is gone.
    pub fn kill(&mut self) {
        self.process.kill().unwrap_or_else(|error| panic!("{error}"));
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(mut self) -> Ran {
        loop {
            if let Some(status) = self.process.ended().unwrap_or_else(|error| panic!("{error}")) {
                return self.ran(status);
            }
            assert!(
                self.started.elapsed() < PATIENCE,
                "{} does not end; stdout:\n{}\nstderr:\n{}",
                self.line,
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn ran(&self, status: ExitStatus) -> Ran {
        Ran {
            code: status.code(),
            stdout: self.stdout(),
            stderr: self.stderr(),
            took: self.started.elapsed(),
            line: self.line.clone(),
        }
    }
}

/// By offset: the position is the child's.
fn read_all(file: &File) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        match file.read_at(&mut buffer, bytes.len() as u64) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) => panic!("reading a command's output: {error}"),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it printed.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
    line: String,
}

impl Ran {
    /// It must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    /// Without the warnings that came before the error.
    pub fn without_warnings(mut self) -> Self {
        let lines = self.stderr.lines().filter(|line| !line.contains("Z  WARN "));
        self.stderr = lines.map(|line| format!("{line}\n")).collect();
        self
    }

    /// The JSON document on stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }

    /// It must have failed with this exit code, and said why in one sentence, which is returned.
    #[track_caller]
    pub fn sentence(&self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self}");
        assert!(self.stdout.is_empty(), "an error is not for stdout: {self}");
        let lines: Vec<_> = self.stderr.lines().collect();
        let [line] = lines[..] else {
            panic!("not one line on stderr: {self}");
        };
        let sentence = line
            .strip_prefix("pbm-fs: ")
            .unwrap_or_else(|| panic!("not our error: {self}"));
        check_sentence(sentence);
        sentence.to_owned()
    }

    /// It must have failed with this exit code, and said so in one line of JSON, whose message is returned.
    #[track_caller]
    pub fn json_error(&self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self}");
        assert!(self.stdout.is_empty(), "an error is not for stdout: {self}");
        assert_eq!(self.stderr.lines().count(), 1, "not one line on stderr: {self}");
        let error: Value =
            serde_json::from_str(&self.stderr).unwrap_or_else(|e| panic!("no JSON ({e}): {self}"));
        assert_eq!(error["error"]["exit_code"], code, "{self}");
        assert!(error["error"]["kind"].is_string(), "{self}");
        let message = error["error"]["message"].as_str();
        message.unwrap_or_else(|| panic!("no message: {self}")).to_owned()
    }
}

/// A sentence is for people: no debug output of a program's insides, and not a page.
#[track_caller]
fn check_sentence(sentence: &str) {
    assert!(
        (10..600).contains(&sentence.len()),
        "too short or too long: {sentence}"
    );
    for inside in [
        "Some(",
        "Err(",
        "Ok(",
        "Error {",
        "Os {",
        " { ",
        "ErrorKind",
        "panicked",
        "RUST_",
    ] {
        assert!(
            !sentence.contains(inside),
            "\"{inside}\" is nothing for people: {sentence}"
        );
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ended with {:?} after {:?}\nstdout:\n{}\nstderr:\n{}",
            self.line, self.code, self.took, self.stdout, self.stderr
        )
    }
}
