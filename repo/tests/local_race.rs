//! Sixteen processes race for one key of a local directory.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use pbmfs_repo::key::ObjectKey;
use pbmfs_repo::storage::{LocalStorage, PutOutcome, Storage};

const PROCESSES: u8 = 16;
const DIRECTORY: &str = "PBMFS_RACE_DIRECTORY";
const NUMBER: &str = "PBMFS_RACE_NUMBER";

fn key(round: u64) -> ObjectKey {
    ObjectKey::parse(&format!("snapshots/{round:05}/snapshot.json")).unwrap()
}

/// The object of one process: large enough to be seen half.
fn object(process: u8) -> Bytes {
    let mut bytes = vec![process; 50_000 + usize::from(process)];
    bytes.extend_from_slice(b"end");
    bytes.into()
}

/// Whose object this is; panics if it is not whole.
fn owner(bytes: &Bytes) -> u8 {
    let process = bytes[0];
    assert!(
        *bytes == object(process),
        "half an object of {} bytes",
        bytes.len()
    );
    process
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// What a child does: waits for a round and its start, races, and tells the outcome and whose object it then sees.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let number: u8 = std::env::var(NUMBER).unwrap().parse().unwrap();
    let storage = LocalStorage::new(directory);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (round, start) = line.split_once(' ').unwrap();
        let key = key(round.parse().unwrap());
        let start: u64 = start.parse().unwrap();
        std::thread::sleep(Duration::from_micros(start.saturating_sub(now())));
        let (outcome, seen) = runtime.block_on(async {
            let outcome = storage.put_if_absent(&key, object(number)).await.unwrap();
            (outcome, owner(&storage.get(&key).await.unwrap()))
        });
        let outcome = if outcome == PutOutcome::Created {
            "created"
        } else {
            "exists"
        };
        writeln!(std::io::stdout(), "RACE {outcome} {seen}").unwrap();
    }
}

struct Racer {
    child: Child,
    to: ChildStdin,
    from: BufReader<std::process::ChildStdout>,
}

impl Racer {
    fn start(directory: &std::path::Path, number: u8) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, directory)
            .env(NUMBER, number.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        Self { child, to, from }
    }

    /// Whether it created the object, and whose it saw.
    fn answer(&mut self) -> (bool, u8) {
        loop {
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "a child died");
            // The test harness may have written to the same line before.
            if let Some((_, answer)) = line.trim_end().split_once("RACE ") {
                let (outcome, seen) = answer.split_once(' ').unwrap();
                return (outcome == "created", seen.parse().unwrap());
            }
        }
    }
}

#[test]
fn of_sixteen_processes_one_creates_the_object() {
    let dir = tempfile::tempdir().unwrap();
    let mut racers: Vec<_> = (0..PROCESSES).map(|n| Racer::start(dir.path(), n)).collect();
    let rounds = 1000;
    // Somebody who looks at all times: an object that can be seen is whole.
    let (stop, storage) = (Arc::new(AtomicBool::new(false)), LocalStorage::new(dir.path()));
    let watcher = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut seen = 0u64;
            while !stop.load(Ordering::SeqCst) && seen < rounds {
                if let Ok(bytes) = runtime.block_on(storage.get(&key(seen))) {
                    owner(&bytes);
                    seen += 1;
                }
                std::thread::sleep(Duration::from_micros(300));
            }
            seen
        })
    };
    let mut wins = [0u32; PROCESSES as usize];
    for round in 0..rounds {
        let start = now() + 1000;
        for racer in &mut racers {
            writeln!(racer.to, "{round} {start}").unwrap();
        }
        let answers: Vec<_> = racers.iter_mut().map(Racer::answer).collect();
        let winners: Vec<_> = (0..PROCESSES).filter(|n| answers[usize::from(*n)].0).collect();
        assert_eq!(winners.len(), 1, "round {round}: {answers:?}");
        assert!(
            answers.iter().all(|a| a.1 == winners[0]),
            "round {round}: {answers:?}"
        );
        wins[usize::from(winners[0])] += 1;
    }
    stop.store(true, Ordering::SeqCst);
    assert!(watcher.join().unwrap() > 0);
    for racer in racers {
        let Racer { mut child, to, .. } = racer;
        drop(to);
        assert!(child.wait().unwrap().success());
    }
    // It was a race, and nothing is left of it but the objects.
    assert!(wins.iter().filter(|w| **w > 0).count() > 4, "{wins:?}");
    assert!(
        std::fs::read_dir(dir.path().join("tmp"))
            .unwrap()
            .next()
            .is_none()
    );
    assert_eq!(
        std::fs::read_dir(dir.path().join("snapshots")).unwrap().count() as u64,
        rounds
    );
}
