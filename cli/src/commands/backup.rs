//! `backup`

use std::sync::Arc;
use std::time::Duration;

use pbmfs_agent::backup::{BackupOptions, BackupProgress, Phase, backup};
use pbmfs_agent::source::ChainStep;
use pbmfs_agent::{
    BackupType, CursorOptions, DirectorySource, LiveSource, LockOptions, Method as PinMethod, Source,
};
use pbmfs_repo::ingest::{IngestOptions, Progress};
use pbmfs_repo::objects::SnapshotDoc;

use crate::args::{Backup, BackupType as AskedType, Global, Method, OutputFormat};
use crate::commands::cancel_on_signal;
use crate::commands::snapshot::{chains, source, step};
use crate::exit::{Failure, Outcome};
use crate::progress::Meter;
use crate::{format, open};

struct Shown(Meter);

impl Progress for Shown {
    fn bytes(&self, done: u64) {
        self.0.advance(done);
    }

    fn stored(&self, bytes: u64) {
        self.0.add_stored(bytes);
    }

    fn file(&self, path: &str) {
        tracing::debug!("{path}");
    }
}

impl BackupProgress for Shown {
    fn phase(&self, phase: Phase) {
        match phase {
            Phase::LoadingIndex => self.0.step("loading the index of known blocks"),
            Phase::Pinning => self.0.step("pinning the files"),
            Phase::Reading { files, bytes, from } => {
                self.0.bytes(&format!("reading {files} files of {from}"), bytes);
            }
            Phase::Committing => self.0.step("committing"),
        }
    }
}

pub async fn run(global: &Global, args: Backup) -> Result<Outcome, Failure> {
    let uri = match (args.uri, &args.dbpath) {
        (None, None) => std::env::var("PBMFS_URI").ok().filter(|uri| !uri.is_empty()),
        (uri, _) => uri,
    };
    let backup_type = match (args.backup_type, args.base) {
        (AskedType::Physical, false) => BackupType::Physical,
        (AskedType::Physical, true) => {
            return Err(Failure::usage(
                "--base begins a chain of increments: say -t incremental --base",
            ));
        }
        (AskedType::Incremental, true) => BackupType::Base,
        (AskedType::Incremental, false) => BackupType::Increment,
    };
    if backup_type != BackupType::Physical && args.dbpath.is_some() {
        return Err(Failure::usage(
            "a directory cannot tell what changed in it: leave out -t incremental; only new blocks are stored anyway",
        ));
    }
    if args.record_hashes && args.method == Method::Cursor {
        return Err(Failure::usage(
            "--record-hashes reads all documents under fsyncLock: leave it out, or say --method lock",
        ));
    }
    if args.block_size.is_some() && (backup_type == BackupType::Physical || args.method == Method::Lock) {
        return Err(Failure::usage(
            "--block-size is how a server names what changed, for increments through $backupCursor alone",
        ));
    }
    let cancel = cancel_on_signal();
    let opened = open::repository(global).await?;
    // An eighth of the memory is the repository's cache.
    let memory = open::memory(global)? / 8 * 7;
    let pack_size = opened.repo.config().parameters.pack_size;
    let least = IngestOptions::least_memory(pack_size);
    if memory < least {
        return Err(Failure::usage(format!(
            "--memory must be at least {}MiB for this repository, whose packs are of {}MiB",
            (least / 7 * 8).div_ceil(1 << 20),
            pack_size >> 20
        )));
    }
    open::sweep(global);
    let options = BackupOptions {
        backup_type,
        replset: args.replset,
        cluster: args.cluster,
        memory,
        index: open::index(args.index, args.index_memory),
        threads: global.threads.map(usize::from),
        repository: open::directory(global),
        tool: concat!("pbm-fs ", env!("CARGO_PKG_VERSION")).into(),
    };
    let mut source: Box<dyn Source> = match (uri, args.dbpath) {
        (_, Some(dbpath)) => Box::new(DirectorySource::new(dbpath)),
        (Some(uri), None) => {
            let mut cursor = CursorOptions::new(&uri);
            cursor.node = args.node.clone();
            cursor.dbpath = args.local_dbpath.clone();
            cursor.block_size = args.block_size;
            cursor.patience = Duration::from_secs(args.lock_timeout);
            cursor.extend_patience = cursor.patience;
            let mut lock = LockOptions::new(uri);
            lock.node = args.node;
            lock.dbpath = args.local_dbpath;
            lock.record_hashes = args.record_hashes;
            lock.patience = Duration::from_secs(args.lock_timeout);
            let method = match args.method {
                Method::Auto => PinMethod::Auto,
                Method::Cursor => PinMethod::Cursor,
                Method::Lock => PinMethod::Lock,
            };
            Box::new(LiveSource::new(method, cursor, lock))
        }
        (None, None) => {
            return Err(Failure::usage(
                "nothing says what to back up: give --uri URI for a running mongod, or --dbpath DIR for a stopped one",
            ));
        }
    };
    let shown = Arc::new(Shown(Meter::new(global)));
    let doc = backup(&opened.repo, &mut *source, &options, shown.clone(), &cancel).await;
    shown.0.finish();
    let doc = doc?;
    tracing::info!(requests = ?opened.counts.counts(), "done");
    match global.output {
        OutputFormat::Text => format::line(summary(&doc).join("\n"))?,
        OutputFormat::Json => format::json(&doc)?,
    }
    Ok(Outcome::Done)
}

fn summary(doc: &SnapshotDoc) -> Vec<String> {
    let s = &doc.stats;
    let (files, read, took) = (s.files, format::size(s.bytes_read), s.seconds.0);
    let mut out = vec![format!("snapshot {}", doc.name)];
    out.push(match (step(doc), source(doc)) {
        (Some(ChainStep::Increment), Some(source)) => {
            let named = chains(doc).filter_map(|chain| chain.bytes_named).sum();
            format!(
                "  {files} files, {read} read of {} that changed since {source}, {} referenced, in {}",
                format::size(named),
                format::size(s.bytes_referenced),
                format::duration(took)
            )
        }
        _ => format!(
            "  {files} files, {read} read in {} ({})",
            format::duration(took),
            format::rate(s.bytes_read, took)
        ),
    });
    out.push(format!(
        "  {} of {} blocks are new, {}; {} stored",
        s.blocks_new,
        s.blocks_read,
        format::size(s.bytes_new),
        format::size(s.bytes_stored())
    ));
    let full = chains(doc).filter(|chain| chain.step == ChainStep::FullRead);
    out.extend(
        full.filter_map(|chain| chain.reason)
            .map(|reason| format!("  everything was read: {reason}")),
    );
    out
}

#[cfg(test)]
#[path = "backup_tests.rs"]
mod tests;
