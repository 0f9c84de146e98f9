//! One machine, one directory: backup, restore, mount, maps, memory and mongod's page cache, each beside what the
//! machine itself can do. `benches/local.sh` runs it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use clap::Parser;
use pbmfs_benches::Result;
use pbmfs_benches::ceiling::{ceiling, disk_write};
use pbmfs_benches::child::{peak_of, run};
use pbmfs_benches::maps::{STORED_PER_CHANGE, SyntheticMap, scattered_change};
use pbmfs_benches::report::{Reach, Report, Row};
use pbmfs_benches::system::{self, System, drop_caches, files_of, resident, size_of, warm};
use pbmfs_repo::map::MapParams;
use pbmfs_tests::{Mongod, MongodBinary, MongodOptions, compare};
use rustix::fs::Advice;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const MB: f64 = 1e6;

/// Budgets at which the memory of each verb is measured.
const BUDGETS: [u64; 2] = [128, 512];

#[derive(Parser)]
#[command(about)]
struct Args {
    /// The dbPath of a stopped mongod
    #[arg(long)]
    dbpath: PathBuf,
    /// Directory for repositories and copies, made anew; on the disk that is to be measured
    #[arg(long)]
    work: PathBuf,
    /// The program
    #[arg(long)]
    pbm_fs: PathBuf,
    /// Runs of each, of which the best counts
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Maps of 0.1 M extents only
    #[arg(long)]
    small: bool,
    /// What to measure
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "backup,restore,mount,maps,memory,cache"
    )]
    only: Vec<String>,
    /// Write the rows there, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// The command line that the report names
    #[arg(long, default_value = "bench-local")]
    command: String,
}

struct Bench {
    args: Args,
    rows: Vec<Row>,
    files: Vec<PathBuf>,
    total: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.work)?;
    let mongod = MongodBinary::locate()?;
    let mut system = System::here(&args.work, &[&args.pbm_fs, mongod.path()], args.command.clone());
    let files: Vec<PathBuf> = files_of(&args.dbpath)?
        .into_iter()
        .filter(|f| {
            let in_backup = |name| !f.components().any(|c| c.as_os_str() == name);
            in_backup("mongod.lock") && in_backup("diagnostic.data")
        })
        .collect();
    let total = files
        .iter()
        .filter_map(|f| f.metadata().ok())
        .map(|m| m.len())
        .sum();
    let json = args.json.clone();
    let mut bench = Bench {
        args,
        rows: Vec::new(),
        files,
        total,
    };
    bench.rows.push(Row::new("dbPath", total as f64 / MB, "MB"));
    for part in bench.args.only.clone() {
        eprintln!("measuring: {part}");
        match part.as_str() {
            "backup" => bench.backup()?,
            "restore" => bench.restore()?,
            "mount" => bench.mount()?,
            "maps" => bench.maps().await?,
            "memory" => bench.memory()?,
            "cache" => bench.cache().await?,
            other => return Err(format!("there is nothing called {other} to measure").into()),
        }
    }
    system.load.push(system::load());
    let report = Report {
        system,
        rows: bench.rows,
    };
    report.print(&mut std::io::stdout())?;
    json.map_or(Ok(()), |path| report.write_json(&path))
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.args.work.join(name)
    }

    fn pbm_fs(&self, repo: &Path) -> Command {
        let mut command = Command::new(&self.args.pbm_fs);
        command
            .env("XDG_CACHE_HOME", self.path("cache"))
            .arg("--repo")
            .arg(repo)
            .arg("--quiet")
            .args(["-o", "json"]);
        command
    }

    /// An empty repository at `path`.
    fn fresh(&self, path: &Path) -> Result<()> {
        remove(path)?;
        run(self.pbm_fs(path).arg("init"))?;
        Ok(())
    }

    /// A backup of the dbPath into a fresh repository; bytes a second.
    fn back_up(&self, repo: &Path, cold: bool) -> Result<f64> {
        self.fresh(repo)?;
        self.page_cache(cold)?;
        let ran = run(self
            .pbm_fs(repo)
            .arg("backup")
            .arg("--dbpath")
            .arg(&self.args.dbpath))?;
        Ok(self.total as f64 / ran.seconds)
    }

    /// The files in the page cache, or nothing.
    fn page_cache(&self, cold: bool) -> Result<()> {
        if cold {
            drop_caches()
        } else {
            system::sync()?;
            warm(&self.files)
        }
    }

    /// The repository with one snapshot that all but the first part read.
    fn repo(&self) -> Result<PathBuf> {
        let repo = self.path("repo");
        if !repo.join("snapshots").exists() {
            self.back_up(&repo, false)?;
        }
        Ok(repo)
    }

    fn best(&self, mut once: impl FnMut() -> Result<f64>) -> Result<f64> {
        let mut best: f64 = 0.0;
        for _ in 0..self.args.runs {
            best = best.max(once()?);
        }
        Ok(best)
    }

    fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    fn backup(&mut self) -> Result<()> {
        let repo = self.path("repo");
        let disk = self.best(|| disk_write(&self.path("disk"), self.total.min(1 << 30)))? / MB;
        self.row(Row::new("disk: files of 16 MiB, fsynced", disk, "MB/s"));
        for (cold, state) in [(false, "warm"), (true, "cold")] {
            // One after the other, so that what else the machine does meets both.
            let (mut most, mut reached): (f64, f64) = (0.0, 0.0);
            for _ in 0..self.args.runs {
                self.page_cache(cold)?;
                most = most.max(ceiling(&self.files)? / MB);
                reached = reached.max(self.back_up(&repo, cold)? / MB);
            }
            self.row(
                Row::new(format!("backup, {state}"), reached, "MB/s")
                    .against("read + BLAKE3 + zstd-1", most)
                    .reach(Reach::AtLeast(0.6)),
            );
        }
        let stored = size_of(&repo)? as f64 / MB;
        self.row(Row::new("repository", stored, "MB").against("dbPath", self.total as f64 / MB));
        // With a disk that costs nothing: what the pipeline itself does.
        let memory = PathBuf::from("/dev/shm/pbm-fs-bench");
        let (mut most, mut reached): (f64, f64) = (0.0, 0.0);
        for _ in 0..self.args.runs {
            self.page_cache(false)?;
            most = most.max(ceiling(&self.files)? / MB);
            let rate = self.back_up(&memory, false);
            remove(&memory)?;
            reached = reached.max(rate? / MB);
        }
        self.row(
            Row::new("backup to /dev/shm, warm", reached, "MB/s")
                .against("read + BLAKE3 + zstd-1", most)
                .reach(Reach::AtLeast(0.6)),
        );
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        let repo = self.repo()?;
        let (copy, target) = (self.path("copy"), self.path("restored"));
        let (mut copied, mut restored): (f64, f64) = (0.0, 0.0);
        for _ in 0..self.args.runs {
            remove(&copy)?;
            drop_caches()?;
            let started = Instant::now();
            run(Command::new("cp").arg("-r").arg(&self.args.dbpath).arg(&copy))?;
            run(Command::new("sync").arg("-f").arg(&copy))?;
            copied = copied.max(self.total as f64 / started.elapsed().as_secs_f64() / MB);
            remove(&copy)?;
            remove(&target)?;
            drop_caches()?;
            let mut command = self.pbm_fs(&repo);
            let ran = run(command.args(["restore", "latest", "--target"]).arg(&target))?;
            restored = restored.max(self.total as f64 / ran.seconds / MB);
        }
        for file in &self.files {
            let name = file.strip_prefix(&self.args.dbpath)?;
            let same = run(Command::new("cmp").arg("-s").arg(file).arg(target.join(name)));
            same.map_err(|e| format!("the restored {} differs: {e}", name.display()))?;
        }
        remove(&target)?;
        self.row(
            Row::new("restore, cold", restored, "MB/s")
                .against("cp -r and sync", copied)
                .reach(Reach::AtLeast(0.6)),
        );
        Ok(())
    }

    /// The largest file, by its path in the dbPath.
    fn largest(&self) -> Result<PathBuf> {
        let size = |f: &&PathBuf| f.metadata().map_or(0, |m| m.len());
        let largest = self.files.iter().max_by_key(size).ok_or("the dbPath is empty")?;
        Ok(largest.strip_prefix(&self.args.dbpath)?.to_owned())
    }

    fn mount(&mut self) -> Result<()> {
        let repo = self.repo()?;
        let file = self.largest()?;
        let len = self.args.dbpath.join(&file).metadata()?.len();
        let mut first_byte = f64::MAX;
        let mut requests = (0, 0);
        for _ in 0..self.args.runs {
            drop_caches()?;
            let started = Instant::now();
            let mounted = Mounted::new(self, &repo, 512)?;
            let mut open = File::open(mounted.dbpath.join(&file))?;
            open.seek(SeekFrom::Start(len / 2 / 4096 * 4096))?;
            open.read_exact(&mut [0; 4096])?;
            first_byte = first_byte.min(started.elapsed().as_secs_f64());
            drop(open);
            requests = (mounted.requests, mounted.end()?.requests);
        }
        let (mut cold, mut warm_rate): (f64, f64) = (0.0, 0.0);
        let (mut plain_cold, mut plain_warm): (f64, f64) = (0.0, 0.0);
        for _ in 0..self.args.runs {
            drop_caches()?;
            plain_cold = plain_cold.max(read_rate(&self.args.dbpath.join(&file))?);
            plain_warm = plain_warm.max(read_rate(&self.args.dbpath.join(&file))?);
            let mounted = Mounted::new(self, &repo, 512)?;
            drop_caches()?;
            cold = cold.max(read_rate(&mounted.dbpath.join(&file))?);
            warm_rate = warm_rate.max(read_rate(&mounted.dbpath.join(&file))?);
            mounted.end()?;
        }
        self.row(
            Row::new("mount: command to first byte, cold", first_byte * 1000.0, "ms")
                .against("contract", 100.0)
                .reach(Reach::AtMost(1.0)),
        );
        self.row(Row::new(
            "mount: requests until mounted",
            requests.0 as f64,
            "requests",
        ));
        self.row(
            Row::new(
                "mount: requests with the first read",
                requests.1 as f64,
                "requests",
            )
            .against("contract", 16.0)
            .reach(Reach::AtMost(1.0)),
        );
        self.row(Row::new("mount: sequential, cold", cold, "MB/s").against("plain file, cold", plain_cold));
        self.row(
            Row::new("mount: sequential, in the page cache", warm_rate, "MB/s")
                .against("plain file", plain_warm)
                .reach(Reach::AtLeast(0.5)),
        );
        Ok(())
    }

    async fn maps(&mut self) -> Result<()> {
        let params = MapParams::default();
        let sizes: &[u64] = if self.args.small {
            &[100_000]
        } else {
            &[100_000, 1_000_000, 20_000_000]
        };
        for &extents in sizes {
            self.row(scattered_change(extents).await?);
        }
        let chains: &[u64] = if self.args.small {
            &[100_000]
        } else {
            &[100_000, 1_000_000]
        };
        for &extents in chains {
            let mut map = SyntheticMap::build(extents, params).await?;
            let mut last = map.change(extents / 1000).await?;
            for _ in 1..20 {
                last = map.change(extents / 1000).await?;
            }
            let leaves = map.leaves().await?;
            let size = extents as f64 / 1e6;
            self.row(
                Row::new(
                    format!("map of {size} M extents: a change of the 20th increment of 0.1 %"),
                    last.per_change(),
                    "bytes",
                )
                .against("stored data", STORED_PER_CHANGE)
                .reach(Reach::AtMost(if extents <= 100_000 { 0.05 } else { 0.08 })),
            );
            let filled = leaves.bytes as f64 / leaves.count as f64;
            let row = Row::new(
                format!("map of {size} M extents: a leaf after it"),
                filled,
                "bytes",
            );
            self.row(row.against("aim", params.leaf as f64));
        }
        Ok(())
    }

    fn memory(&mut self) -> Result<()> {
        let repo = self.repo()?;
        for budget in BUDGETS {
            let flag = format!("{budget}MiB");
            let with = |repo: &Path| {
                let mut command = self.pbm_fs(repo);
                command.args(["--memory", &flag]);
                command
            };
            let second = self.path("second");
            self.fresh(&second)?;
            let backup = run(with(&second).arg("backup").arg("--dbpath").arg(&self.args.dbpath))?;
            // The second one has an index to load and a parent to compare with.
            let again = run(with(&second).arg("backup").arg("--dbpath").arg(&self.args.dbpath))?;
            remove(&second)?;
            let target = self.path("restored");
            remove(&target)?;
            let restore = run(with(&repo).args(["restore", "latest", "--target"]).arg(&target))?;
            remove(&target)?;
            drop_caches()?;
            let mounted = Mounted::new(self, &repo, budget)?;
            for file in &self.files {
                read_rate(&mounted.dbpath.join(file.strip_prefix(&self.args.dbpath)?))?;
            }
            let mount = mounted.end()?.peak;
            let check_data = run(with(&repo).args(["check", "--read-data"]))?.peak;
            // These end within milliseconds: several looks.
            let (mut check, mut list) = (0, 0);
            for _ in 0..10 {
                check = check.max(run(with(&repo).arg("check"))?.peak);
                list = list.max(run(with(&repo).arg("list"))?.peak);
            }
            let verbs = [
                ("backup", backup.peak),
                ("backup, nothing new", again.peak),
                ("restore", restore.peak),
                ("mount, all read", mount),
                ("check", check),
                ("check --read-data", check_data),
                ("list", list),
            ];
            for (verb, peak) in verbs {
                let row = Row::new(format!("peak memory: {verb}"), peak as f64 / 1048576.0, "MiB");
                self.row(row.against("--memory", budget as f64));
            }
        }
        Ok(())
    }

    /// mongod's pages before and after a backup of it while it runs.
    async fn cache(&mut self) -> Result<()> {
        let copy = self.path("copy");
        remove(&copy)?;
        run(Command::new("cp").arg("-r").arg(&self.args.dbpath).arg(&copy))?;
        let options = MongodOptions {
            cache_mb: 512,
            ..MongodOptions::standalone()
        };
        let mut mongod = Mongod::start(&copy, options).await?;
        drop_caches()?;
        compare::digest(&mongod.client().await?).await?;
        // Half of the files leave the cache: a backup must neither throw out pages nor bring some in.
        let tables: Vec<PathBuf> = files_of(&copy)?
            .into_iter()
            .filter(|f| f.extension().is_some_and(|e| e == "wt"))
            .collect();
        for table in tables.iter().step_by(2) {
            rustix::fs::fadvise(File::open(table)?, 0, None, Advice::DontNeed)?;
        }
        let repo = self.path("second");
        self.fresh(&repo)?;
        let before = resident(&tables)? as f64 / MB;
        let uri = mongod.uri();
        run(self.pbm_fs(&repo).arg("backup").args(["--uri", &uri]))?;
        let after = resident(&tables)? as f64 / MB;
        mongod.stop().await?;
        remove(&repo)?;
        remove(&copy)?;
        self.row(
            Row::new("mongod's files in the page cache after a backup", after, "MB")
                .against("before", before)
                .reach(Reach::Near(0.05)),
        );
        Ok(())
    }
}

/// A running mount. Dropping it unmounts.
struct Mounted {
    child: Child,
    dbpath: PathBuf,
    /// Requests until it was mounted.
    requests: u64,
}

/// What a mount needed in its whole life.
struct Life {
    requests: u64,
    peak: u64,
}

impl Mounted {
    fn new(bench: &Bench, repo: &Path, memory: u64) -> Result<Self> {
        let point = bench.path("mnt");
        fs::create_dir_all(&point)?;
        let mut child = bench
            .pbm_fs(repo)
            .args(["--memory", &format!("{memory}MiB"), "mount", "latest"])
            .arg(&point)
            .env("PBMFS_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut text = String::new();
        let stdout = child.stdout.take().ok_or("no stdout")?;
        // The document may take several lines.
        for line in BufReader::new(stdout).lines() {
            text.push_str(&line?);
            if serde_json::from_str::<Value>(&text).is_ok() {
                break;
            }
        }
        let told: Value = serde_json::from_str(&text).map_err(|e| format!("mount said \"{text}\": {e}"))?;
        let replset = told["replsets"][0].as_str().ok_or("no replica set")?;
        Ok(Self {
            dbpath: point.join(replset).join("dbpath"),
            requests: told["requests"].as_u64().unwrap_or_default(),
            child,
        })
    }

    fn stop(&mut self) -> Result<Life> {
        let peak = peak_of(&self.child);
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.ok_or("no pid")?, Signal::TERM)?;
        let mut log = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut log)?;
        }
        self.child.wait()?;
        let count = |name: &str| {
            let (_, rest) = log.rsplit_once(&format!(" {name}: "))?;
            rest.split(|c: char| !c.is_ascii_digit())
                .next()?
                .parse::<u64>()
                .ok()
        };
        let counts = ["get", "get_range", "list", "head"].map(count);
        let requests = counts.into_iter().sum::<Option<u64>>();
        let requests = requests.ok_or_else(|| format!("the log of the mount tells no requests: {log}"))?;
        Ok(Life { requests, peak })
    }

    fn end(mut self) -> Result<Life> {
        self.stop()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Nobody could do anything about a failure; `local.sh` looks for mounts at its end.
            let _ = self.stop();
        }
    }
}

/// Reads a file in steps of 1 MiB; MB a second.
fn read_rate(path: &Path) -> Result<f64> {
    let started = Instant::now();
    let mut file = File::open(path)?;
    let mut buf = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match file.read(&mut buf)? {
            0 => break,
            n => total += n,
        }
    }
    Ok(total as f64 / started.elapsed().as_secs_f64() / MB)
}

/// Removes a directory, if it is there, and lets the disk come to rest.
fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path)?;
        system::sync()?;
    }
    Ok(())
}
