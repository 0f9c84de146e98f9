//! Makes the dbPath that benchmarks back up, once: a real mongod is filled and stopped cleanly.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use clap::Parser;
use pbmfs_benches::{Result, system};
use pbmfs_tests::{DataSpec, Mongod, MongodOptions, data};

#[derive(Parser)]
#[command(about)]
struct Args {
    /// Directory that keeps the data; the dbPath is DIR/dbpath
    #[arg(long)]
    dir: PathBuf,
    /// Megabytes of documents, without indexes
    #[arg(long)]
    megabytes: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let (dbpath, ready) = (args.dir.join("dbpath"), args.dir.join("ready"));
    let wanted = format!("{} MB of documents, standalone, short journal\n", args.megabytes);
    if fs::read_to_string(&ready).is_ok_and(|text| text == wanted) {
        return Ok(());
    }
    fs::create_dir_all(&args.dir)?;
    for old in [&ready, &args.dir.join("dbpath.log"), &args.dir.join("dbpath.out")] {
        // Not there at the first time.
        let _ = fs::remove_file(old);
    }
    if dbpath.exists() {
        fs::remove_dir_all(&dbpath)?;
    }
    let options = MongodOptions {
        cache_mb: if args.megabytes > 500 { 2048 } else { 512 },
        ..MongodOptions::standalone()
    };
    // By default the journal is 300 MB of zeros, which cost nobody anything and make all rates look better.
    let options = options.args([
        "--wiredTigerEngineConfigString",
        "log=(file_max=8MB,prealloc=false)",
    ]);
    let mut mongod = Mongod::start(&dbpath, options).await?;
    let loaded = data::load(&mongod.client().await?, &DataSpec::megabytes(args.megabytes)).await?;
    mongod.stop().await?;
    fs::write(ready, wanted)?;
    writeln!(
        std::io::stderr(),
        "loaded {} documents of {} bytes: a dbPath of {} bytes",
        loaded.documents,
        loaded.bytes,
        system::size_of(&dbpath)?
    )?;
    Ok(())
}
