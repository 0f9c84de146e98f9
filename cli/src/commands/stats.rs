//! `stats`

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use pbmfs_repo::id::SnapshotName;
use pbmfs_repo::stats::{Contents, Footprint, SnapshotUse, Stats, StatsOptions, StatsProgress, Use, stats};
use serde::Serialize;

use crate::args::{Global, OutputFormat, Stats as Args};
use crate::commands::cancel_on_signal;
use crate::exit::{Failure, Outcome};
use crate::progress::Meter;
use crate::{format, open};

struct Shown(Meter);

impl StatsProgress for Shown {
    fn files(&self, total: u64) {
        self.0.items("looking at files", total);
    }

    fn done(&self, files: u64) {
        self.0.advance(files);
    }
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a SnapshotName,
    #[serde(rename = "type")]
    backup_type: &'a str,
    #[serde(flatten)]
    figures: Figures,
}

/// A [`Use`], with what follows from it.
#[derive(Debug, Serialize)]
struct Figures {
    files: u64,
    bytes_logical: u64,
    #[serde(flatten)]
    uses: Footprint,
    bytes_stored: u64,
    /// Absent where nothing is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    dedup_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression_ratio: Option<f64>,
    only: Only,
}

#[derive(Debug, Serialize)]
struct Only {
    #[serde(flatten)]
    uses: Footprint,
    bytes_stored: u64,
}

impl Figures {
    fn of(usage: &Use) -> Self {
        let ratio = |of: u64, to: u64| (to > 0).then(|| of as f64 / to as f64);
        let uses = usage.uses;
        Self {
            files: usage.files,
            bytes_logical: usage.bytes_logical,
            bytes_stored: uses.bytes_stored(),
            dedup_ratio: ratio(usage.bytes_logical, uses.bytes_unique),
            compression_ratio: ratio(uses.bytes_unique, uses.bytes_stored_data),
            only: Only {
                uses: usage.only,
                bytes_stored: usage.only.bytes_stored(),
            },
            uses,
        }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    snapshots: Vec<Row<'a>>,
    total: Figures,
    repository: Contents,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    unreadable: &'a [SnapshotName],
}

pub async fn run(global: &Global, args: &Args) -> Result<Outcome, Failure> {
    let cancel = cancel_on_signal();
    let opened = open::repository(global).await?;
    let mut names = Vec::new();
    for asked in &args.names {
        names.push(opened.repo.resolve(asked).await?.name);
    }
    let options = StatsOptions {
        // An eighth of the memory is the repository's cache.
        memory: open::memory(global)? / 8 * 7,
    };
    let shown = Shown(Meter::new(global));
    let found = stats(&opened.repo, &names, options, &shown, &cancel).await;
    shown.0.finish();
    let found = found?;
    match global.output {
        OutputFormat::Json => format::json(&document(&found))?,
        OutputFormat::Text if found.contents.snapshots == 0 => {
            format::note("the repository holds no snapshot yet");
            format::line(contents(&found.contents))?;
        }
        OutputFormat::Text => text(&found).iter().try_for_each(format::line)?,
    }
    Ok(Outcome::Done)
}

/// Newest first, as `list` has them.
fn newest_first(found: &Stats) -> impl Iterator<Item = &SnapshotUse> {
    found.snapshots.iter().rev()
}

fn document(found: &Stats) -> Document<'_> {
    let row = |row: &'_ SnapshotUse| Figures::of(&row.usage);
    Document {
        snapshots: newest_first(found)
            .map(|s| Row {
                name: &s.name,
                backup_type: &s.backup_type,
                figures: row(s),
            })
            .collect(),
        total: Figures::of(&found.total),
        repository: found.contents,
        unreadable: &found.unreadable,
    }
}

fn text(found: &Stats) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "snapshot",
        "logical",
        "unique",
        "stored",
        "only here",
        "dedup",
        "compression",
    ]);
    for row in newest_first(found) {
        table.add_row(cells(row.name.to_string(), &row.usage));
    }
    if found.snapshots.len() > 1 {
        let all = found.snapshots.len() as u64 == found.contents.snapshots;
        let what = if all { "all" } else { "these together" };
        table.add_row(cells(what.into(), &found.total));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
        if column.index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut out: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    let uses = &found.total.uses;
    out.push(format!(
        "{} blocks of files; {} blocks of maps and lists, {}",
        uses.blocks,
        uses.blocks_map,
        format::size(uses.bytes_stored_map)
    ));
    out.push(contents(&found.contents));
    out
}

fn cells(name: String, usage: &Use) -> [String; 7] {
    let figures = Figures::of(usage);
    let ratio = |ratio: Option<f64>| ratio.map_or("-".into(), |r| format!("{r:.2}x"));
    [
        name,
        format::size(figures.bytes_logical),
        format::size(figures.uses.bytes_unique),
        format::size(figures.bytes_stored),
        format::size(figures.only.bytes_stored),
        ratio(figures.dedup_ratio),
        ratio(figures.compression_ratio),
    ]
}

fn contents(contents: &Contents) -> String {
    format!(
        "the repository holds {} in {}, {}, of which no snapshot uses {}",
        format::count(contents.snapshots, "snapshot"),
        format::count(contents.packs, "pack"),
        format::size(contents.bytes_packs),
        format::size(contents.bytes_unused)
    )
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
