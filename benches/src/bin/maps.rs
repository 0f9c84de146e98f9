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
    /// Instead of one backup, so many, each of 0.1 % changes
    #[arg(long)]
    chain: Option<u64>,
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
    writeln!(
        out,
        "leaf/inner   levels  map bytes/extent  bytes/change  % of stored  leaf bytes  children/inner"
    )?;
    for &leaf in &args.leaf {
        for &inner in &args.inner {
            let mut map = SyntheticMap::build(args.extents, MapParams { leaf, inner }).await?;
            let built = map.built_bytes() as f64 / args.extents as f64;
            let mut cost = None;
            for _ in 0..args.chain.unwrap_or(1) {
                let changes = if args.chain.is_some() {
                    args.extents / 1000
                } else {
                    args.changes
                };
                cost = Some(map.change(changes).await?);
            }
            let per_change = cost.map_or(f64::NAN, |c| c.per_change());
            let leaves = map.leaves().await?;
            writeln!(
                out,
                "{:<12} {:>6} {built:>17.1} {per_change:>13.0} {:>12.2} {:>11.0} {:>15.1}",
                format!("{leaf}/{inner}"),
                map.levels(),
                per_change / STORED_PER_CHANGE * 100.0,
                leaves.bytes as f64 / leaves.count as f64,
                (leaves.count + leaves.inner_count - 1) as f64 / leaves.inner_count as f64,
            )?;
        }
    }
    Ok(())
}
