//! `check`

use pbmfs_repo::check::{CheckOptions, CheckProgress, CheckReport, Severity, check};
use pbmfs_repo::id::SnapshotName;
use serde::Serialize;

use crate::args::{Check, Global, OutputFormat};
use crate::commands::cancel_on_signal;
use crate::exit::{self, Failure, Outcome};
use crate::progress::Meter;
use crate::{format, open};

struct Shown {
    meter: Meter,
    read_data: bool,
}

impl CheckProgress for Shown {
    fn packs(&self, total: u64, bytes: u64) {
        if self.read_data {
            self.meter.bytes(&format!("reading {total} packs"), bytes);
        } else {
            self.meter.step(&format!("looking at {total} packs"));
        }
    }

    fn pack(&self, bytes: u64) {
        if self.read_data {
            self.meter.advance(bytes);
        }
    }

    fn snapshots(&self, total: u64) {
        self.meter.step(&format!("walking {total} snapshots"));
    }

    fn snapshot(&self, name: &SnapshotName) {
        tracing::debug!("{name} was walked");
    }
}

#[derive(Serialize)]
struct Checked<'a> {
    sound: bool,
    #[serde(flatten)]
    report: &'a CheckReport,
}

pub async fn run(global: &Global, args: &Check) -> Result<Outcome, Failure> {
    let cancel = cancel_on_signal();
    let opened = open::repository(global).await?;
    let mut options = CheckOptions {
        read_data: args.read_data,
        ..CheckOptions::default()
    };
    // An eighth of the memory is the repository's cache.
    options.memory = open::memory(global)? / 8 * 7;
    options.threads = global.threads.map_or(options.threads, usize::from);
    let shown = Shown {
        meter: Meter::new(global),
        read_data: args.read_data,
    };
    let report = check(&opened.repo, options, &shown, &cancel).await;
    shown.meter.finish();
    let report = report?;
    match global.output {
        OutputFormat::Json => format::json(&Checked {
            sound: report.is_sound(),
            report: &report,
        })?,
        OutputFormat::Text => text(&report, args.read_data)?,
    }
    Ok(if report.is_sound() {
        Outcome::Done
    } else {
        Outcome::Failed(exit::DAMAGED)
    })
}

fn text(report: &CheckReport, read_data: bool) -> Result<(), Failure> {
    for finding in &report.findings {
        let word = match finding.severity() {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        format::line(format!("{word}: {finding}"))?;
    }
    let read = if read_data {
        format!(", {} of them read", report.blocks_read)
    } else {
        String::new()
    };
    format::line(format!(
        "{} snapshots with {} files, {} packs ({}), {} blocks{read}",
        report.snapshots,
        report.files,
        report.packs,
        format::size(report.pack_bytes),
        report.blocks,
    ))?;
    format::line(match report.count(Severity::Error) {
        0 => "the repository is sound".to_owned(),
        1 => "1 error".to_owned(),
        n => format!("{n} errors"),
    })
}
