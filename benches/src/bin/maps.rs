//! Bytes of map a scattered change, for several sizes of nodes: what `MapParams`' default is chosen by.

use std::io::Write;

use clap::Parser;
use pbmfs_benches::Result;
use pbmfs_benches::maps::{STORED_PER_CHANGE, SyntheticMap};
use pbmfs_repo::map::MapParams;

#[derive(Parser)]
#[command(about)]
struct Args {
    /// Extents of the map
    #[arg(long, default_value_t = 100_000)]
    extents: u64,
    /// Scattered changes in one backup
    #[arg(long, default_value_t = 1000)]
    changes: u64,
    /// Before it, so many backups of 0.1 % changes each
    #[arg(long, default_value_t = 0)]
    chain: u64,
    /// Sizes of leaves
    #[arg(long, value_delimiter = ',', default_value = "256,384,512,768,1024")]
    leaf: Vec<usize>,
    /// Sizes of inner nodes
    #[arg(long, value_delimiter = ',', default_value = "512,768,1024,2048,4096")]
    inner: Vec<usize>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut out = std::io::stdout();
    let share = |bytes: f64| format!("{bytes:.0} ({:.2} %)", bytes / STORED_PER_CHANGE * 100.0);
    writeln!(
        out,
        "leaf/inner levels bytes/extent {:>16} {:>16} bytes/leaf children/inner",
        "chain's last", "a change"
    )?;
    for &leaf in &args.leaf {
        for &inner in &args.inner {
            let mut map = SyntheticMap::build(args.extents, MapParams { leaf, inner }).await?;
            let built = map.built_bytes() as f64 / args.extents as f64;
            let mut chained = None;
            for _ in 0..args.chain {
                chained = Some(map.change(args.extents / 1000).await?.per_change());
            }
            let per_change = map.change(args.changes).await?.per_change();
            let leaves = map.leaves().await?;
            writeln!(
                out,
                "{:<10} {:>6} {built:>12.1} {:>16} {:>16} {:>10.0} {:>14.1}",
                format!("{leaf}/{inner}"),
                map.levels(),
                chained.map_or_else(String::new, share),
                share(per_change),
                leaves.bytes as f64 / leaves.count as f64,
                (leaves.count + leaves.inner_count - 1) as f64 / leaves.inner_count as f64,
            )?;
        }
    }
    Ok(())
}
