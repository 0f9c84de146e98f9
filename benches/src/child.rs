//! Running of pbm-fs: how long it takes and how much memory it needs.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// How often the memory of a child is looked at. The kernel keeps the peak; only what a child takes in its very last
/// moments can be missed, which is much of the life of one that ends at once.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// What became of a child.
#[derive(Debug)]
pub struct Ran {
    /// Seconds from start to end.
    pub seconds: f64,
    /// Its peak resident memory in bytes.
    pub peak: u64,
    /// What it printed.
    pub stdout: String,
}

/// Runs a command to its end; it must succeed.
///
/// # Errors
/// It cannot be started or fails.
pub fn run(command: &mut Command) -> Result<Ran> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot run {command:?}: {e}"))?;
    let mut stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.as_mut().map(|s| s.read_to_string(&mut text));
        read.transpose().map(|_| text)
    });
    let mut peak = 0;
    let status = loop {
        peak = peak.max(peak_of(&child));
        match child.try_wait()? {
            Some(status) => break status,
            None => std::thread::sleep(LOOK_EVERY),
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    let stdout = reader.join().map_err(|_| "the reader of its output panicked")??;
    if !status.success() {
        return Err(format!("{command:?} failed: {status}").into());
    }
    Ok(Ran {
        seconds,
        peak,
        stdout,
    })
}

/// The peak resident memory of a running child so far, in bytes.
pub fn peak_of(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().split(' ').next()?.parse::<u64>().ok())
        .unwrap_or_default()
        << 10
}
