//! The local index and processes: two at once, some that are killed, and how much memory one takes.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/warnings.rs"]
mod warnings;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::Dice;
use common::packs::Packs;
use pbmfs_repo::index::KnownBlocks;
use pbmfs_repo::local_index::{IndexError, IndexOptions, LEAST_MEMORY, LocalIndex};
use pbmfs_repo::pack::PackKind;

const PLACE: &str = "PBMFS_INDEX_PLACE";
const TASK: &str = "PBMFS_INDEX_TASK";

fn options(place: &Path) -> IndexOptions {
    IndexOptions {
        memory: LEAST_MEMORY,
        ..IndexOptions::below(place.join("indexes"))
    }
}

fn say(word: &str) {
    let line = format!("\nINDEX {word}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

/// Megabytes that a line of `/proc/self/status` names.
fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() >> 10
}

/// What a child does.
#[tokio::test]
async fn child() {
    let Some(place) = std::env::var_os(PLACE).map(PathBuf::from) else {
        return;
    };
    let task = std::env::var(TASK).unwrap();
    let mut packs = Packs::found(&place.join("repo")).await;
    packs.dice = Dice(u64::from(std::process::id()));
    let session = packs.session().await;
    let options = match task.strip_prefix("memory ") {
        Some(bytes) => IndexOptions {
            memory: bytes.parse().unwrap(),
            ..options(&place)
        },
        None => options(&place),
    };
    let before = status("VmRSS:");
    let index = LocalIndex::open(&session, &place.join("indexes"), &options)
        .await
        .unwrap();
    match task.as_str() {
        "learn" => {
            say("ready");
            loop {
                let own = packs.put_new(1500);
                index.learn(&own.loc, &own.trailer);
            }
        }
        "hold" => {
            say("ready");
            std::io::stdin().read_exact(&mut [0]).unwrap_err();
        }
        _ => {
            let ids: Vec<_> = packs
                .packs
                .iter()
                .flat_map(|p| p.ids().collect::<Vec<_>>())
                .collect();
            let mut found = 0;
            for _ in 0..300_000 {
                let at = packs.dice.below(ids.len() as u64) as usize;
                found += u32::from(index.lookup(&ids[at]).is_some());
            }
            assert_eq!(found, 300_000);
            // What was there before has the ids, too.
            let grown = status("VmHWM:") - before - ((ids.len() as u64 * 32) >> 20);
            say(&format!("ready {grown}"));
        }
    }
    session.abandon().await;
}

struct Process {
    child: Child,
    from: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(place: &Path, task: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(PLACE, place)
            .env(TASK, task)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        Self { child, from }
    }

    /// What it says when it has the index.
    fn ready(&mut self) -> String {
        for line in self.from.by_ref().lines() {
            if let Some(word) = line.unwrap().strip_prefix("INDEX ready") {
                return word.trim().to_owned();
            }
        }
        panic!("the child ended: {:?}", self.child.wait());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

/// Opens the index as the next backup does: nothing is wrong, and nothing is lost.
async fn must_be_right(place: &Path) {
    let packs = Packs::found(&place.join("repo")).await;
    let session = packs.session().await;
    let log = warnings::Warnings::collect();
    let index = LocalIndex::open(&session, &place.join("indexes"), &options(place))
        .await
        .unwrap();
    assert_eq!(packs.lost(&index), 0);
    assert!(log.take().is_empty(), "a crash is no damage");
    drop(index);
    session.abandon().await;
}

#[tokio::test]
async fn another_process_has_the_index() {
    let place = tempfile::tempdir().unwrap();
    let mut packs = Packs::new(&place.path().join("repo"), 1).await;
    packs.put_new(10);
    let mut other = Process::start(place.path(), "hold");
    other.ready();
    let session = packs.session().await;
    let indexes = place.path().join("indexes");
    let error = LocalIndex::open(&session, &indexes, &options(place.path()))
        .await
        .unwrap_err();
    assert!(matches!(error, IndexError::Busy(_)), "{error}");
    // The lock ends with its holder, however that ends.
    other.kill();
    let index = LocalIndex::open(&session, &indexes, &options(place.path()))
        .await
        .unwrap();
    assert_eq!(packs.lost(&index), 0);
    session.abandon().await;
}

/// Names of what lies in a directory; none if there is none.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn killed_while_it_loads() {
    let place = tempfile::tempdir().unwrap();
    let mut packs = Packs::new(&place.path().join("repo"), 2).await;
    for _ in 0..160 {
        packs.put_new(1000);
    }
    let own = place
        .path()
        .join("indexes")
        .join(packs.repo.config().repository_id.to_string());
    let count = |directory: &str, prefix: &str| {
        let names = names(&own.join(directory));
        names.iter().filter(|n| n.starts_with(prefix)).count()
    };
    let tables = || {
        names(&own.join("db"))
            .iter()
            .filter(|n| n.ends_with(".sst"))
            .count()
    };
    let mut killed = 0;
    for round in 0..if common::full() { 60 } else { 12 } {
        let _ = fs::remove_dir_all(&own);
        let mut process = Process::start(place.path(), "load");
        // Until it has come so far.
        let reached = || match round % 6 {
            0 => count("db", "CURRENT") == 1,
            1 => count("load", "run-") > 0,
            2 => count("load", "run-") > 1,
            3 => count("load", "table-") > 0,
            // Records are bound; the tables are in; the records say so.
            4 => count("load", "table-") > 0 && tables() > 8,
            _ => own.join("load").exists() && tables() > 4,
        };
        while !reached() && !process.ended() {
            std::thread::yield_now();
        }
        killed += u32::from(!process.ended());
        process.kill();
        must_be_right(place.path()).await;
    }
    assert!(killed > 4, "{killed}");
}

#[tokio::test]
async fn killed_while_it_learns() {
    let place = tempfile::tempdir().unwrap();
    let mut packs = Packs::new(&place.path().join("repo"), 3).await;
    packs.put_new(10);
    let mut dice = Dice(0x1ea12);
    for _ in 0..if common::full() { 40 } else { 6 } {
        let mut process = Process::start(place.path(), "learn");
        process.ready();
        let before = packs_in(place.path());
        let enough = before + 1 + dice.below(40) as usize;
        while packs_in(place.path()) < enough {
            assert!(!process.ended());
        }
        process.kill();
        // The last pack may be half a file: a storage would not show it.
        let repo = place.path().join("repo/packs");
        for directory in names(&repo) {
            for name in names(&repo.join(&directory)) {
                let path = repo.join(&directory).join(name);
                if fs::read(&path).unwrap().last_chunk() != Some(b"PBMF-END") {
                    fs::remove_file(path).unwrap();
                }
            }
        }
        must_be_right(place.path()).await;
    }
}

fn packs_in(place: &Path) -> usize {
    let repo = place.join("repo/packs");
    names(&repo)
        .iter()
        .map(|directory| names(&repo.join(directory)).len())
        .sum()
}

/// What an index takes does not grow with the repository.
#[tokio::test]
async fn memory_is_bounded() {
    let place = tempfile::tempdir().unwrap();
    let mut packs = Packs::new(&place.path().join("repo"), 4).await;
    for _ in 0..190 {
        let ids = (0..8000).map(|_| packs.draw()).collect();
        let pack = packs.make(PackKind::Data, ids);
        packs.put(&pack);
    }
    packs.packs.clear();
    for (load, most) in [("built anew", 56), ("opened again", 32)] {
        let mut process = Process::start(place.path(), &format!("memory {}", 16 << 20));
        let grown: u64 = process.ready().parse().unwrap();
        assert!(process.child.wait().unwrap().success());
        // In memory a million and a half blocks take 90 MB.
        assert!(grown < most, "{load}: {grown} MiB for 16 MiB");
    }
}
