//! The machine: what it is, and its page cache.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use crate::Result;

/// Where and with what a benchmark ran.
#[derive(Debug, Clone, Serialize)]
pub struct System {
    /// Processor, cores, memory, kernel, file system.
    pub machine: String,
    /// Programs and their versions.
    pub versions: Vec<String>,
    /// The command line.
    pub command: String,
    /// Load averages at the begin and at the end: other work on the machine shows here.
    pub load: Vec<String>,
}

impl System {
    /// Looks at this machine; `place` is where the benchmark writes.
    pub fn here(place: &Path, programs: &[&Path], command: String) -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = field(&cpu, "model name")
            .unwrap_or("unknown processor")
            .to_owned();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = field(&info, "MemTotal")
            .and_then(|m| m.split(' ').next()?.parse::<u64>().ok())
            .unwrap_or_default();
        let kernel = said("uname", &["-sr"]);
        let fs_type = said("stat", &["-f", "-c", "%T", &place.display().to_string()]);
        let mut versions: Vec<String> = programs
            .iter()
            .map(|p| said(&p.display().to_string(), &["--version"]))
            .collect();
        versions.push(said("rustc", &["--version"]));
        versions.push(format!(
            "commit {}",
            said("git", &["describe", "--always", "--dirty"])
        ));
        versions.retain(|v| !v.is_empty());
        Self {
            machine: format!("{cores} × {model}, {} MiB, {kernel}, {fs_type}", memory >> 10),
            versions,
            command,
            load: vec![load()],
        }
    }

    pub(crate) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "machine:  {}", self.machine)?;
        writeln!(out, "versions: {}", self.versions.join("; "))?;
        writeln!(out, "command:  {}", self.command)?;
        writeln!(out, "load:     {}\n", self.load.join(" → "))
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|l| l.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

/// The first line that a command prints; empty if it does not run.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// The load averages of 1, 5 and 15 minutes.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Writes back everything, so that nobody pays for the writes of somebody before.
///
/// # Errors
/// There is no `sync`.
pub fn sync() -> Result<()> {
    Command::new("sync").status()?;
    Ok(())
}

/// Writes back and empties the page cache. Needs root.
///
/// # Errors
/// The kernel's.
pub fn drop_caches() -> Result<()> {
    sync()?;
    fs::write("/proc/sys/vm/drop_caches", "3")
        .map_err(|e| format!("cannot drop the page cache: {e}; run as root"))?;
    Ok(())
}

/// All regular files below a directory, in the order of their paths.
///
/// # Errors
/// The directory's.
pub fn files_of(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir)? {
        let (path, kind) = entry.map(|e| (e.path(), e.file_type()))?;
        if kind?.is_dir() {
            out.extend(files_of(&path)?);
        } else {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

/// Bytes of all files below a directory.
///
/// # Errors
/// The directory's.
pub fn size_of(dir: &Path) -> Result<u64> {
    let files = files_of(dir)?;
    Ok(files
        .iter()
        .filter_map(|f| f.metadata().ok())
        .map(|m| m.len())
        .sum())
}

/// Reads files to their end, so that they are in the page cache.
///
/// # Errors
/// The files'.
pub fn warm(files: &[PathBuf]) -> Result<()> {
    for file in files {
        io::copy(&mut fs::File::open(file)?, &mut io::sink())?;
    }
    Ok(())
}

/// Bytes of files that are in the page cache, as `fincore` of util-linux tells.
///
/// # Errors
/// There is no `fincore`.
pub fn resident(files: &[PathBuf]) -> Result<u64> {
    let output = Command::new("fincore")
        .args(["--bytes", "--noheadings", "--output", "RES"])
        .args(files)
        .output()
        .map_err(|e| format!("cannot run fincore of util-linux: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|l| l.trim().parse::<u64>().ok()).sum())
}
