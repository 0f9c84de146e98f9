//! The local index: look-ups, memory, disk, and how long it takes to build it. `benches/index.sh` runs it. Each figure of
//! an index comes from a process of its own, so that its memory can be told.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use pbmfs_benches::Result;
use pbmfs_benches::child::run;
use pbmfs_benches::packs::{BLOCK, block_id, make, packs};
use pbmfs_benches::report::{Reach, Report, Row};
use pbmfs_benches::system::{self, System, files_of, size_of};
use pbmfs_repo::index::KnownBlocks;
use pbmfs_repo::local_index::{DEFAULT_MEMORY, Index, IndexOptions};
use pbmfs_repo::storage::LocalStorage;
use pbmfs_repo::{Repository, Session};
use rustix::fs::Advice;
use serde::{Deserialize, Serialize};

/// What an index may have resident at 20 million blocks.
const CONTRACT: f64 = 256.0;

#[derive(Parser)]
#[command(about)]
struct Args {
    /// Directory for repositories and indexes, made anew; on the disk that is to be measured
    #[arg(long)]
    work: PathBuf,
    /// Blocks of the repositories
    #[arg(long, value_delimiter = ',', default_value = "1000000,20000000")]
    blocks: Vec<u64>,
    /// Look-ups of each kind
    #[arg(long, default_value_t = 1_000_000)]
    lookups: u64,
    /// Memory of the index
    #[arg(long, default_value_t = DEFAULT_MEMORY)]
    memory: u64,
    /// Write the rows there, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// The command line that the report names
    #[arg(long, default_value = "bench-index")]
    command: String,
    /// Use the index with this name and tell about it in JSON: what a child does
    #[arg(long, hide = true)]
    child: Option<String>,
}

/// What a child found out.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    /// Seconds until it was open.
    open: f64,
    /// Microseconds a hit, of the first ones and of later ones, and a miss.
    first_hits: f64,
    hit: f64,
    miss: f64,
    /// Microseconds a hit with as many threads as cores.
    parallel_hit: f64,
    /// Microseconds a block that was learnt; 0 if none was.
    learn: f64,
    /// Resident megabytes after all of it.
    resident: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(name) = &args.child {
        let told = child(&args, name).await?;
        serde_json::to_writer(std::io::stdout(), &told)?;
        return Ok(());
    }
    fs::create_dir_all(&args.work)?;
    let mut system = System::here(&args.work, &[], args.command.clone());
    let mut rows = Vec::new();
    for &blocks in &args.blocks {
        rows.extend(measure(&args, blocks).await?);
    }
    system.load.push(system::load());
    let report = Report { system, rows };
    report.print(&mut std::io::stdout())?;
    args.json.map_or(Ok(()), |path| report.write_json(&path))
}

async fn measure(args: &Args, blocks: u64) -> Result<Vec<Row>> {
    let millions = blocks as f64 / 1e6;
    eprintln!("making a repository of {millions} M blocks");
    let repo = args.work.join("repo");
    let indexes = args.work.join("indexes");
    for old in [&repo, &indexes] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    make(&repo, blocks).await?;
    let of = |what: &str| format!("{millions} M blocks: {what}");
    let gigabytes = (blocks * BLOCK) as f64 / 1e9;

    eprintln!("measuring: an index in memory");
    let memory = Used::run(args, blocks, "memory")?;
    eprintln!("measuring: an index that is built");
    let built = Used::run(args, blocks, "build")?;
    let disk = size_of(&indexes)? as f64;
    eprintln!("measuring: an index that is opened");
    forget(&indexes)?;
    let cold = Used::run(args, blocks, "open")?;
    let warm = Used::run(args, blocks, "open")?;
    eprintln!("measuring: an index that learns");
    let learnt = Used::run(args, blocks, "learn")?;

    let against =
        |what: &str, value: f64, unit, other| Row::new(of(what), value, unit).against("in memory", other);
    let resident = |what: &str, value: f64| {
        Row::new(of(what), value, "MiB")
            .against("contract", CONTRACT)
            .reach(Reach::AtMost(1.0))
    };
    let mut rows = vec![
        against("a hit", warm.told.hit, "µs", memory.told.hit),
        against("a miss", warm.told.miss, "µs", memory.told.miss),
        against(
            "a hit, a thread a core",
            warm.told.parallel_hit,
            "µs",
            memory.told.parallel_hit,
        ),
        Row::new(
            of("a hit, the first with no page in the cache"),
            cold.told.first_hits,
            "µs",
        ),
        against("a block learnt", learnt.told.learn, "µs", memory.told.learn),
        against("built from trailers", built.told.open, "s", memory.told.open),
        Row::new(
            of("the same, for each GB of data"),
            built.told.open * 1e3 / gigabytes,
            "ms",
        ),
        against("opened, nothing new", warm.told.open, "s", memory.told.open),
        Row::new(of("on disk, for each block"), disk / blocks as f64, "bytes"),
    ];
    rows.extend([
        resident("peak resident, building", built.peak),
        resident("resident after look-ups", warm.told.resident),
        resident("peak resident, learning a twentieth", learnt.peak),
        Row::new(of("peak resident, index in memory"), memory.peak, "MiB"),
    ]);
    fs::remove_dir_all(&repo)?;
    fs::remove_dir_all(&indexes)?;
    Ok(rows)
}

/// A child that ended.
struct Used {
    told: Told,
    /// Its peak resident memory in MiB.
    peak: f64,
}

impl Used {
    fn run(args: &Args, blocks: u64, name: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("--work")
            .arg(&args.work)
            .args(["--child", name, "--blocks", &blocks.to_string()])
            .args(["--lookups", &args.lookups.to_string()])
            .args(["--memory", &args.memory.to_string()]);
        let ran = run(&mut command)?;
        Ok(Self {
            told: serde_json::from_str(&ran.stdout)?,
            peak: ran.peak as f64 / f64::from(1 << 20),
        })
    }
}

async fn child(args: &Args, name: &str) -> Result<Told> {
    let blocks = args.blocks.first().copied().unwrap_or_default();
    let storage = Arc::new(LocalStorage::new(args.work.join("repo")));
    let repo = Repository::open(storage, 8 << 20).await?;
    let session = Session::begin(&repo, "benchmark", jiff::Timestamp::now()).await?;
    let options = IndexOptions {
        directory: (name != "memory").then(|| args.work.join("indexes")),
        memory: args.memory,
        ..IndexOptions::in_memory()
    };
    let started = Instant::now();
    let index = Index::open(&session, &options).await?;
    let open = started.elapsed().as_secs_f64();
    if matches!(index, Index::Memory(_)) != (name == "memory") {
        return Err("the index is not where it should be".into());
    }
    let first_hits = lookups(&index, 0..blocks, args.lookups / 50, 1)?;
    let mut learn = 0.0;
    if matches!(name, "learn" | "memory") {
        let new = blocks..blocks + blocks / 20;
        let mut seconds = 0.0;
        for pack in packs(new.clone()) {
            let (loc, trailer) = pack?;
            let started = Instant::now();
            index.learn(&loc, &trailer);
            seconds += started.elapsed().as_secs_f64();
        }
        learn = seconds * 1e6 / (new.end - new.start) as f64;
    }
    // Once to warm up.
    lookups(&index, 0..blocks, args.lookups, 2)?;
    let told = Told {
        open,
        first_hits,
        hit: lookups(&index, 0..blocks, args.lookups, 3)?,
        miss: lookups(&index, blocks * 2..blocks * 3, args.lookups, 4)?,
        parallel_hit: parallel(&index, blocks, args.lookups)?,
        learn,
        resident: resident()?,
    };
    drop(index);
    session.abandon().await;
    Ok(told)
}

/// Microseconds a look-up of blocks that are all there, or none of them.
fn lookups(index: &Index, range: std::ops::Range<u64>, count: u64, seed: u64) -> Result<f64> {
    let len = range.end - range.start;
    let started = Instant::now();
    let mut found = 0;
    for n in 0..count {
        // A multiple of an odd number goes everywhere.
        let at = range.start + n.wrapping_mul(0x9e37_79b9_7f4a_7c15 | 1).wrapping_add(seed) % len;
        found += u64::from(index.lookup(&block_id(at)).is_some());
    }
    if found != 0 && found != count {
        return Err(format!("{found} of {count} blocks were found").into());
    }
    Ok(started.elapsed().as_secs_f64() * 1e6 / count as f64)
}

fn parallel(index: &Index, blocks: u64, count: u64) -> Result<f64> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|n| scope.spawn(move || lookups(index, 0..blocks, count, 10 + n)))
            .collect();
        let mut slowest = 0f64;
        for thread in threads {
            slowest = slowest.max(thread.join().map_err(|_| "a thread panicked")??);
        }
        Ok(slowest)
    })
}

/// Resident memory of this process in MiB.
fn resident() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|l| l.trim().split(' ').next()?.parse::<f64>().ok());
    Ok(kilobytes.ok_or("there is no VmRSS")? / 1024.0)
}

/// Drops the pages of the files of a directory.
fn forget(directory: &Path) -> Result<()> {
    system::sync()?;
    for file in files_of(directory)? {
        rustix::fs::fadvise(File::open(file)?, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}
