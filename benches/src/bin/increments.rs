//! What increments cost: bytes stored and read, and time, beside the floor, 16 MB ranges, and other programs on the same
//! copies. `benches/increments.sh` runs it.
//!
//! pbm-fs is driven through its library. Changes are named by comparing two copies of a dbPath in granules of 1 MiB, where
//! a server would tell them through its backup cursor: so all programs see the same files, and nobody the journal.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use pbmfs_benches::Result;
use pbmfs_benches::copies::{Changed, GRANULE, PBM_GRANULE, compare, floor, granule_bytes, large_ranges};
use pbmfs_benches::maps::scattered_change;
use pbmfs_benches::mix::{COPIES, Live, Mix, SMALL_UPDATES};
use pbmfs_benches::named::Chain;
use pbmfs_benches::peers::{Peer, Program};
use pbmfs_benches::report::{Reach, Report, Row};
use pbmfs_benches::stored::Added;
use pbmfs_benches::system::{self, System, size_of};
use pbmfs_benches::tables::{Tables, tables_of};
use pbmfs_repo::objects::SnapshotStats;
use pbmfs_tests::MongodBinary;

const MB: f64 = 1e6;

/// Increments of the chain of small updates.
const CHAIN: usize = 20;

#[derive(Parser)]
#[command(about)]
struct Args {
    /// Directory that keeps the copies of the dbPath
    #[arg(long)]
    data: PathBuf,
    /// Directory for repositories
    #[arg(long)]
    work: PathBuf,
    /// Megabytes of documents
    #[arg(long)]
    megabytes: u64,
    /// Small maps, and little data for the times
    #[arg(long)]
    small: bool,
    /// Increments of each size of data, of which the fastest counts
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// What to measure
    #[arg(long, value_delimiter = ',', default_value = "mix,chain,time,maps")]
    only: Vec<String>,
    /// Write the rows there, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// The command line that the report names
    #[arg(long, default_value = "bench-increments")]
    command: String,
}

struct Bench {
    args: Args,
    rows: Vec<Row>,
    versions: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.work)?;
    let mongod = MongodBinary::locate()?;
    let mut system = System::here(&args.work, &[mongod.path()], args.command.clone());
    let mut bench = Bench {
        args,
        rows: Vec::new(),
        versions: Vec::new(),
    };
    for part in bench.args.only.clone() {
        eprintln!("measuring: {part}");
        match part.as_str() {
            "mix" => bench.mix().await?,
            "chain" => bench.chain().await?,
            "time" => bench.time().await?,
            "maps" => bench.maps().await?,
            other => return Err(format!("there is nothing called {other} to measure").into()),
        }
    }
    system.load.push(system::load());
    system.versions.append(&mut bench.versions);
    let report = Report {
        system,
        rows: bench.rows,
    };
    report.print(&mut std::io::stdout())?;
    bench.args.json.map_or(Ok(()), |path| report.write_json(&path))
}

/// What one copy cost.
struct Step {
    changes: Vec<Changed>,
    stats: SnapshotStats,
    added: Added,
    /// By name, what others take for it.
    others: Vec<(String, u64)>,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.args.work.join(name)
    }

    fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    async fn mix(&mut self) -> Result<()> {
        let mix = Mix::make(&self.args.data.join("mix"), self.args.megabytes).await?;
        let size = size_of(&mix.path(COPIES[0].0))? as f64 / MB;
        self.row(Row::new("the mix: dbPath before it", size, "MB"));
        let mut steps = self.own(&mix).await?;
        for (pair, step) in COPIES.windows(2).zip(&mut steps) {
            let copy = mix.path(pair[1].0);
            let streams = large_ranges(&copy, &step.changes)?;
            step.others = vec![
                ("floor".into(), floor(&copy, &step.changes)?),
                ("16 MB ranges, S2".into(), streams.s2),
                ("16 MB ranges, zstd-3".into(), streams.zstd),
            ];
        }
        for program in Program::ALL {
            let Some(mut peer) = Peer::new(program, &self.args.work)? else {
                eprintln!("NOT MEASURED: {} is not installed", program.name());
                continue;
            };
            self.versions.push(peer.version.clone());
            mix.at_one_path(COPIES[0].0, |dir| peer.back_up(dir))?;
            for ((name, _), step) in COPIES[1..].iter().zip(&mut steps) {
                let added = mix.at_one_path(name, |dir| peer.back_up(dir))?;
                step.others.push((program.name().into(), added));
            }
        }
        self.mix_rows(&steps);
        Ok(())
    }

    /// Snapshots of all copies; the first, which is no increment, is left out of what is told.
    async fn own(&self, mix: &Mix) -> Result<Vec<Step>> {
        let repo = self.path("pbm-fs");
        let mut chain = Chain::new(&repo).await?;
        chain.take(&mix.path(COPIES[0].0), &[]).await?;
        let mut steps = Vec::new();
        for pair in COPIES.windows(2) {
            let (old, new) = (mix.path(pair[0].0), mix.path(pair[1].0));
            let changes = compare(&old, &new)?;
            let (stats, added) = chain.take(&new, &changes).await?;
            chain.verify(&new).await?;
            steps.push(Step {
                changes,
                stats,
                added,
                others: Vec::new(),
            });
        }
        remove(&repo)?;
        Ok(steps)
    }

    fn mix_rows(&mut self, steps: &[Step]) {
        for ((name, what), step) in COPIES[1..].iter().zip(steps) {
            let changed = step.changes.iter().map(Changed::bytes).sum::<u64>() as f64 / MB;
            let dbpath = step.changes.iter().map(|file| file.len).sum::<u64>() as f64 / MB;
            self.row(
                Row::new(format!("{name} ({what}): changed sectors"), changed, "MB")
                    .against("dbPath", dbpath),
            );
            let own = step.added.total() as f64 / MB;
            for (other, bytes) in &step.others {
                let bytes = *bytes as f64 / MB;
                let row = if other == "floor" {
                    Row::new(format!("{name}: stored"), own, "MB").against(other, bytes)
                } else {
                    Row::new(format!("{name}: {other}"), bytes, "MB").against("pbm-fs", own)
                };
                self.row(match (*name == SMALL_UPDATES, other.as_str()) {
                    (true, "restic") => row.reach(Reach::AtLeast(10.0)),
                    (true, ranges) if ranges.starts_with("16 MB") => row.reach(Reach::AtLeast(20.0)),
                    _ => row,
                });
            }
            let named = granule_bytes(&step.changes, GRANULE) as f64 / MB;
            let read = step.stats.bytes_read as f64 / MB;
            self.row(
                Row::new(format!("{name}: read"), read, "MB")
                    .against("ranges named", named)
                    .reach(Reach::AtMost(1.1)),
            );
            let large = granule_bytes(&step.changes, PBM_GRANULE) as f64 / MB;
            self.row(Row::new(format!("{name}: 16 MB ranges named"), large, "MB").against("read", read));
            self.row(maps_row(
                format!("{name}: maps, file list, pack table"),
                &step.added,
            ));
            let packs = [step.added.data, step.added.maps];
            let framing =
                packs.map(|p| p.headers + p.slots + p.frames).iter().sum::<u64>() + step.added.other;
            self.row(
                Row::new(
                    format!("{name}: headers, trailers, snapshot.json"),
                    framing as f64 / 1e3,
                    "kB",
                )
                .against("stored", own * 1e3),
            );
        }
        let sum = |of: &dyn Fn(&Step) -> u64| steps.iter().map(of).sum::<u64>() as f64 / MB;
        let own = sum(&|step| step.added.total());
        for (at, (other, _)) in steps[0].others.iter().enumerate() {
            let bytes = sum(&|step| step.others[at].1);
            self.row(if other == "floor" {
                Row::new("all four: stored", own, "MB")
                    .against(other, bytes)
                    .reach(Reach::AtMost(1.05))
            } else {
                Row::new(format!("all four: {other}"), bytes, "MB").against("pbm-fs", own)
            });
        }
    }

    /// Many increments of small updates, one on top of the other.
    async fn chain(&mut self) -> Result<()> {
        let (data, repo) = (self.args.data.join("chain"), self.path("pbm-fs"));
        remove(&data)?;
        fs::create_dir_all(&data)?;
        let megabytes = self.args.megabytes / 4;
        let mut live = Live::start(&data, megabytes).await?;
        let mut chain = Chain::new(&repo).await?;
        let mut old = data.join("0");
        live.pin(&old).await?;
        chain.take(&old, &[]).await?;
        let mut steps = Vec::new();
        for number in 1..=CHAIN {
            live.small_updates().await?;
            let new = data.join(number.to_string());
            live.pin(&new).await?;
            let changes = compare(&old, &new)?;
            let (_, added) = chain.take(&new, &changes).await?;
            steps.push((added, floor(&new, &changes)?));
            remove(&old)?;
            old = new;
        }
        chain.verify(&old).await?;
        live.stop().await?;
        remove(&data)?;
        remove(&repo)?;
        let total = |what: &dyn Fn(&(Added, u64)) -> u64| steps.iter().map(what).sum::<u64>() as f64 / MB;
        let name = format!("{CHAIN} increments of 0.1 % updates, {megabytes} MB of documents");
        self.row(
            Row::new(format!("{name}: stored"), total(&|step| step.0.total()), "MB")
                .against("floor", total(&|step| step.1)),
        );
        for at in [0, CHAIN - 1] {
            let row = maps_row(
                format!("increment {} of them: maps, file list, pack table", at + 1),
                &steps[at].0,
            );
            self.row(row.reach(Reach::AtMost(0.05)));
        }
        Ok(())
    }

    /// The same changes in ever more data.
    async fn time(&mut self) -> Result<()> {
        let (dir, repo) = (self.path("tables"), self.path("pbm-fs"));
        let smallest = if self.args.small { 16 } else { 256 } << 20;
        let granules = smallest / GRANULE / 5;
        let mut tables = Tables::new(&dir)?;
        let mut chain = Chain::new(&repo).await?;
        let mut first = None;
        for times in [1, 4, 10] {
            let grown = tables.grow(tables_of(smallest) * times)?;
            chain.take(tables.dir(), &grown).await?;
            let mut fastest = u64::MAX;
            for _ in 0..self.args.runs {
                let changes = tables.change(granules)?;
                let (stats, _) = chain.take(tables.dir(), &changes).await?;
                fastest = fastest.min(stats.seconds.0);
            }
            let name = format!(
                "{granules} granules of 1 MiB changed in {} MiB of made tables, {times} x: time",
                (smallest * times) >> 20
            );
            let row = Row::new(name, fastest as f64, "ms");
            self.row(match first {
                Some(first) => row.against("1 x", first).reach(Reach::AtMost(1.3)),
                None => row,
            });
            first = first.or(Some(fastest as f64));
        }
        chain.verify(tables.dir()).await?;
        remove(&dir)?;
        remove(&repo)
    }

    async fn maps(&mut self) -> Result<()> {
        let extents = if self.args.small { 100_000 } else { 20_000_000 };
        let row = scattered_change(extents).await?;
        self.row(row);
        Ok(())
    }
}

/// What the metadata of an increment takes, headers and trailers of its blocks too, beside its data.
fn maps_row(name: String, added: &Added) -> Row {
    Row::new(name, added.maps.total() as f64 / 1e3, "kB")
        .against("data stored", added.data.total() as f64 / 1e3)
}

fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path)?;
    }
    Ok(())
}
