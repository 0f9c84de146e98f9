//! `restore`

use std::sync::Arc;

use pbmfs_agent::restore::{RestoreOptions, RestorePlan, RestoreProgress, restore};

use crate::args::{Global, OutputFormat, Restore};
use crate::commands::cancel_on_signal;
use crate::exit::{Failure, Outcome};
use crate::progress::Meter;
use crate::{format, open};

struct Shown(Meter);

impl RestoreProgress for Shown {
    fn planned(&self, plan: &RestorePlan) {
        self.0
            .bytes(&format!("restoring {} files", plan.files), plan.bytes_data);
        self.0.advance(plan.bytes_done);
    }

    fn bytes(&self, done: u64) {
        self.0.advance(done);
    }

    fn finishing(&self) {
        self.0.step("making it durable");
    }
}

pub async fn run(global: &Global, args: &Restore) -> Result<Outcome, Failure> {
    let cancel = cancel_on_signal();
    let opened = open::repository(global).await?;
    let doc = opened.repo.resolve(&args.name).await?;
    let mut options = RestoreOptions::new(&args.target);
    options.replset = args.replset.clone();
    // An eighth of the memory is the repository's cache.
    options.memory = open::memory(global)? / 8 * 7;
    if let Some(threads) = global.threads {
        options.threads = threads.into();
    }
    let shown = Arc::new(Shown(Meter::new(global)));
    let done = restore(&opened.repo, doc, options, shown.clone(), cancel).await;
    shown.0.finish();
    let done = done?;
    tracing::info!(requests = ?opened.counts.counts(), "done");
    match global.output {
        OutputFormat::Json => format::json(&done)?,
        OutputFormat::Text => {
            let millis = (done.seconds * 1000.0) as u64;
            let resumed = if done.resumed {
                ", going on from an earlier run"
            } else {
                ""
            };
            format::line(format!(
                "restored {} into {}{resumed}",
                done.snapshot,
                done.target.display()
            ))?;
            format::line(format!(
                "  {} files, {}; {} written in {} ({})",
                done.files,
                format::size(done.bytes_total),
                format::size(done.bytes_written),
                format::duration(millis),
                format::rate(done.bytes_written, millis)
            ))?;
        }
    }
    Ok(Outcome::Done)
}
