//! What it costs to cut tables along WiredTiger's blocks: CPU time of the walk over data that did not change, and of a
//! whole backup, beside one in blocks of 64 KiB. `benches/cut.sh` runs it.
//!
//! CPU time and not wall time: it is what mongod has to do without, and it depends less on what else the machine does.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser;
use pbmfs_agent::cutter_of;
use pbmfs_benches::Result;
use pbmfs_benches::report::{Reach, Report, Row};
use pbmfs_benches::system::{self, System, files_of, warm};
use pbmfs_repo::files::{FileKind, FileMeta, path_order};
use pbmfs_repo::index::MemoryIndex;
use pbmfs_repo::ingest::{
    Cancel, Cutter, FIXED_BLOCK, FixedCutter, IngestOptions, Input, Job, NoProgress, ReadAt, ingest,
};
use pbmfs_repo::objects::Parameters;
use pbmfs_repo::storage::MemoryStorage;
use pbmfs_repo::{Repository, Session};

/// Bytes that are read and cut at a time, as in a backup.
const SEGMENT: usize = 1 << 20;

/// Passes over small data are repeated until they took so many seconds: the kernel counts hundredths.
const LEAST: f64 = 2.0;

#[derive(Parser)]
#[command(about)]
struct Args {
    /// The dbPath of a stopped mongod
    #[arg(long)]
    dbpath: PathBuf,
    /// Runs of each backup, of which the best counts
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Write the rows there, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// The command line that the report names
    #[arg(long, default_value = "bench-cut")]
    command: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut system = System::here(&args.dbpath, &[], args.command.clone());
    let files: Vec<PathBuf> = files_of(&args.dbpath)?
        .into_iter()
        .filter(|file| !file.ends_with("mongod.lock"))
        .collect();
    let tables: Vec<PathBuf> = files.iter().filter(|file| is_table(file)).cloned().collect();
    warm(&files)?;
    let mut rows = Vec::new();

    let (bytes, pieces) = walk(&tables, false)?;
    let total: u64 = tables
        .iter()
        .filter_map(|t| t.metadata().ok())
        .map(|m| m.len())
        .sum();
    rows.push(Row::new("tables", total as f64 / 1e6, "MB"));
    rows.push(Row::new(
        "mean block",
        total as f64 / pieces as f64 / 1024.0,
        "KiB",
    ));
    rows.push(Row::new("read + walk + CRC32C, one core", bytes / 1e9, "GB/s"));
    let (bytes, _) = walk(&tables, true)?;
    rows.push(
        Row::new("read + walk + CRC32C + BLAKE3, one core", bytes / 1e9, "GB/s")
            .against("contract", 1.5)
            .reach(Reach::AtLeast(1.0)),
    );

    let plain = best(args.runs, || plain_zstd(&files))?;
    let (mut fixed, mut along) = (Backup::default(), Backup::default());
    for _ in 0..args.runs {
        // One after the other, so that what else the machine does meets both.
        fixed.keep_best(back_up(&args.dbpath, &files, |_| Box::new(FixedCutter)).await?);
        along.keep_best(back_up(&args.dbpath, &files, cutter_of).await?);
    }
    rows.push(Row::new(
        "BLAKE3 + zstd-1 of 64 KiB, nothing else: user CPU",
        plain,
        "s/GB",
    ));
    rows.push(Row::new("backup in 64 KiB: user CPU", fixed.user, "s/GB"));
    rows.push(
        Row::new("backup along blocks: user CPU", along.user, "s/GB")
            .against("64 KiB", fixed.user)
            .reach(Reach::AtMost(1.1)),
    );
    rows.push(Row::new("backup along blocks: stored", along.stored, "MB").against("64 KiB", fixed.stored));

    system.load.push(system::load());
    let report = Report { system, rows };
    report.print(&mut io::stdout())?;
    args.json.map_or(Ok(()), |path| report.write_json(&path))
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wt")
}

/// Seconds that this process computed so far, and that the kernel did for it.
fn cpu() -> Result<(f64, f64)> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Behind the program's name, which may hold anything.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let seconds = |at: usize| -> Result<f64> {
        let ticks: f64 = fields.get(at).ok_or("/proc/self/stat is too short")?.parse()?;
        Ok(ticks / 100.0)
    };
    Ok((seconds(11)?, seconds(12)?))
}

fn best(runs: u32, mut once: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..runs {
        best = best.min(once()?);
    }
    Ok(best)
}

/// Reads tables, finds their blocks, and hashes each if wanted. Bytes for each second of CPU, the kernel's included;
/// and the number of blocks.
fn walk(tables: &[PathBuf], hash: bool) -> Result<(f64, u64)> {
    let mut window = vec![0; 2 * SEGMENT];
    let (mut bytes, mut pieces, mut passes) = (0, 0, 0);
    let before = cpu()?;
    loop {
        passes += 1;
        for table in tables {
            let file = File::open(table)?;
            let len = file.metadata()?.len();
            let mut cutter = cutter_of("table.wt");
            let (mut from, mut filled) = (0u64, 0usize);
            while from < len {
                let fresh = (len - from - filled as u64).min(SEGMENT as u64) as usize;
                file.read_exact_at(&mut window[filled..filled + fresh], from + filled as u64)?;
                filled += fresh;
                let last = from + filled as u64 == len;
                let mut at = 0;
                for piece in cutter.cut(from, &window[..filled], last) {
                    let end = at + piece as usize;
                    if hash {
                        std::hint::black_box(blake3::hash(&window[at..end]));
                    }
                    at = end;
                    pieces += 1;
                }
                window.copy_within(at..filled, 0);
                (from, filled) = (from + at as u64, filled - at);
            }
            bytes += len;
        }
        let now = cpu()?;
        let took = now.0 + now.1 - before.0 - before.1;
        if took > LEAST {
            return Ok((bytes as f64 / took, pieces / passes));
        }
    }
}

/// User CPU of what no backup can do without, in blocks of 64 KiB, with zstd as it comes: seconds for each GB.
fn plain_zstd(files: &[PathBuf]) -> Result<f64> {
    let mut zstd = zstd::bulk::Compressor::new(1)?;
    let mut buf = vec![0; SEGMENT];
    let mut out = vec![0; zstd::zstd_safe::compress_bound(FIXED_BLOCK)];
    let mut bytes = 0;
    let before = cpu()?;
    for path in files {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        for offset in (0..len).step_by(SEGMENT) {
            let part = &mut buf[..(len - offset).min(SEGMENT as u64) as usize];
            file.read_exact_at(part, offset)?;
            for block in part.chunks(FIXED_BLOCK) {
                if block.iter().any(|byte| *byte != 0) {
                    std::hint::black_box(blake3::hash(block));
                    std::hint::black_box(zstd.compress_to_buffer(block, &mut out)?);
                }
            }
        }
        bytes += len;
    }
    Ok((cpu()?.0 - before.0) / (bytes as f64 / 1e9))
}

/// What a backup cost.
#[derive(Clone, Copy)]
struct Backup {
    /// Seconds of user CPU for each GB.
    user: f64,
    /// Megabytes in the repository.
    stored: f64,
}

impl Default for Backup {
    fn default() -> Self {
        Self {
            user: f64::MAX,
            stored: 0.0,
        }
    }
}

impl Backup {
    fn keep_best(&mut self, other: Self) {
        if other.user < self.user {
            *self = other;
        }
    }
}

/// Backs files up into memory.
async fn back_up(root: &Path, files: &[PathBuf], cutter: fn(&str) -> Box<dyn Cutter>) -> Result<Backup> {
    let repo = Repository::init(Arc::new(MemoryStorage::default()), Parameters::default()).await?;
    let session = Session::begin(&repo, "benchmark", jiff::Timestamp::now()).await?;
    let mut metas = files
        .iter()
        .map(|file| meta_of(root, file))
        .collect::<Result<Vec<_>>>()?;
    metas.sort_by(|a, b| path_order(&a.path, &b.path));
    let bytes: u64 = metas.iter().map(|meta| meta.size).sum();
    let job = Job {
        input: Arc::new(Files {
            root: root.to_owned(),
            cutter,
        }),
        files: metas,
        parent: None,
        known: Arc::new(MemoryIndex::default()),
        options: IngestOptions::for_repository(repo.config(), 512 << 20),
        progress: Arc::new(NoProgress),
        cancel: Cancel::default(),
    };
    let before = cpu()?;
    let stats = ingest(&session, job).await?.stats;
    let user = cpu()?.0 - before.0;
    session.abandon().await;
    Ok(Backup {
        user: user / (bytes as f64 / 1e9),
        stored: (stats.bytes_stored_data + stats.bytes_stored_map) as f64 / 1e6,
    })
}

fn meta_of(root: &Path, file: &Path) -> Result<FileMeta> {
    let meta = file.metadata()?;
    let path = file.strip_prefix(root)?.to_str().ok_or("a name is not UTF-8")?;
    Ok(FileMeta {
        path: path.to_owned(),
        kind: FileKind::Regular,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec() as u32),
        size: meta.len(),
    })
}

struct Files {
    root: PathBuf,
    cutter: fn(&str) -> Box<dyn Cutter>,
}

impl Input for Files {
    fn open(&self, file: &FileMeta) -> io::Result<Box<dyn ReadAt>> {
        Ok(Box::new(Plain(File::open(self.root.join(&file.path))?)))
    }

    fn cutter(&self, file: &FileMeta) -> Box<dyn Cutter> {
        (self.cutter)(&file.path)
    }

    fn check(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

struct Plain(File);

impl ReadAt for Plain {
    fn read_exact_at(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }
}
