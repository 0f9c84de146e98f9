//! `check`

use pbmfs_repo::check::{CheckOptions, CheckProgress, Severity, check};

use crate::args::{Check, Global, OutputFormat};
use crate::commands::cancel_on_signal;
use crate::exit::{self, Failure, Outcome};
use crate::progress::Meter;
use crate::{format, open};

/// Memory that a pack takes while it is read: a run of stored blocks, the same plain, and its trailer.
const PER_PACK: u64 = 16 << 20;

struct Shown(Meter);

impl CheckProgress for Shown {
    fn step(&self, what: &str, bytes: u64) {
        if bytes == 0 {
            self.0.step(what)
        } else {
            self.0.bytes(what, bytes)
        }
    }

    fn bytes(&self, done: u64) {
        self.0.advance(done);
    }
}

pub async fn run(global: &Global, args: &Check) -> Result<Outcome, Failure> {
    let cancel = cancel_on_signal();
    let opened = open::repository(global).await?;
    let threads = global.threads.map_or_else(
        || std::thread::available_parallelism().map_or(2, usize::from),
        usize::from,
    );
    let fit = (open::memory(global)? / 2 / PER_PACK).max(1) as usize;
    let options = CheckOptions {
        read_data: args.read_data,
        parallel: (threads * 2).min(fit),
    };
    let shown = Shown(Meter::new(global));
    let report = check(&opened.repo, options, &shown, &cancel).await;
    shown.0.finish();
    let report = report?;
    match global.output {
        OutputFormat::Json => format::json(&report)?,
        OutputFormat::Text => {
            for finding in &report.findings {
                let word = match finding.severity() {
                    Severity::Error => "error",
                    Severity::Note => "note",
                };
                format::line(format!("{word}: {finding}"))?;
            }
            format::line(format!(
                "{} snapshots with {} files, {} packs ({}), {} blocks{}",
                report.snapshots,
                report.files,
                report.packs,
                format::size(report.bytes_packs),
                report.blocks,
                if args.read_data {
                    format!(", {} of them read", report.blocks_read)
                } else {
                    String::new()
                },
            ))?;
            if report.packs_unreferenced > 0 {
                format::line(format!(
                    "{} packs are used by no snapshot",
                    report.packs_unreferenced
                ))?;
            }
            let errors = report
                .findings
                .iter()
                .filter(|f| f.severity() == Severity::Error)
                .count();
            format::line(match errors {
                0 => "the repository is sound".to_owned(),
                n => format!("{n} errors"),
            })?;
        }
    }
    Ok(if report.is_sound() {
        Outcome::Done
    } else {
        Outcome::Failed(exit::DAMAGED)
    })
}
