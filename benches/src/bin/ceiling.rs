//! What the machine can do with the files of a directory: read + BLAKE3 + zstd-1 on all cores. Alone, to be run
//! under a profiler.

use std::io::Write;
use std::path::PathBuf;

use clap::Parser;
use pbmfs_benches::Result;
use pbmfs_benches::ceiling::ceiling;
use pbmfs_benches::report::number;
use pbmfs_benches::system::files_of;

#[derive(Parser)]
#[command(about)]
struct Args {
    /// The directory
    dir: PathBuf,
}

fn main() -> Result<()> {
    let rate = ceiling(&files_of(&Args::parse().dir)?)? / 1e6;
    writeln!(std::io::stdout(), "{} MB/s", number(rate))?;
    Ok(())
}
