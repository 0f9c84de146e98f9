//! `describe-backup`

use pbmfs_agent::source::ChainInfo;
use pbmfs_repo::files::{FileEntry, FileKind};
use pbmfs_repo::objects::{ReplsetDoc, SnapshotDoc};
use pbmfs_repo::{ReplsetReader, SnapshotReader};
use serde::Serialize;
use serde_json::Value;

use super::snapshot::{DONE, node_field, restore_to, source, utc};
use crate::args::{DescribeBackup, Global, OutputFormat};
use crate::exit::{Failure, Outcome};
use crate::{format, open};

/// The snapshot, and what PBM tells of one under PBM's keys.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    doc: &'a SnapshotDoc,
    status: &'static str,
    src: String,
    restore_to_time: String,
    /// Seconds since 1970, as all `_ts`.
    last_write_ts: i64,
    last_write_time: String,
    last_transition_ts: i64,
    last_transition_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mongodb_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fcv: Option<&'a str>,
    pbm_version: &'a str,
    /// What it added to the repository.
    size: u64,
    size_h: String,
    size_uncompressed: u64,
    size_uncompressed_h: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<FileRow>>,
}

impl<'a> Described<'a> {
    fn new(doc: &'a SnapshotDoc, files: Option<Vec<FileRow>>) -> Self {
        let (write, stored) = (restore_to(doc), doc.stats.bytes_stored());
        Self {
            status: DONE,
            src: source(doc).unwrap_or_default(),
            restore_to_time: utc(write),
            last_write_ts: write.as_second(),
            last_write_time: utc(write),
            last_transition_ts: doc.finished.as_second(),
            last_transition_time: utc(doc.finished),
            mongodb_version: node_field(doc, "mongod_version"),
            fcv: node_field(doc, "fcv"),
            pbm_version: &doc.tool,
            size: stored,
            size_h: format::size(stored),
            size_uncompressed: doc.stats.bytes_total,
            size_uncompressed_h: format::size(doc.stats.bytes_total),
            files,
            doc,
        }
    }
}

#[derive(Serialize)]
struct FileRow {
    replset: String,
    path: String,
    kind: FileKind,
    size: u64,
    mode: String,
}

pub async fn run(global: &Global, args: &DescribeBackup) -> Result<Outcome, Failure> {
    let opened = open::repository(global).await?;
    let doc = opened.repo.resolve(&args.name).await?;
    let mut files = Vec::new();
    if args.files {
        let reader = SnapshotReader::open(&opened.repo, doc.clone()).await?;
        for replset in reader.replsets() {
            collect(replset, &mut files).await?;
        }
    }
    match global.output {
        OutputFormat::Json => format::json(&Described::new(&doc, args.files.then_some(files)))?,
        OutputFormat::Text => {
            format::line(text(&doc).join("\n"))?;
            if args.files {
                format::line("files:")?;
            }
            for f in files {
                let slash = if f.kind == FileKind::Directory { "/" } else { "" };
                format::line(format!(
                    "  {} {:>12} {}/dbpath/{}{slash}",
                    f.mode, f.size, f.replset, f.path
                ))?;
            }
        }
    }
    Ok(Outcome::Done)
}

async fn collect(replset: &ReplsetReader, out: &mut Vec<FileRow>) -> Result<(), Failure> {
    for number in 0..replset.files().len() {
        let entry = replset.explain(replset.files().get(number).await).await?;
        out.extend(entry.map(|FileEntry { meta, .. }| FileRow {
            replset: replset.doc().name.clone(),
            path: meta.path,
            kind: meta.kind,
            size: meta.size,
            mode: format!("{:04o}", meta.mode),
        }));
    }
    Ok(())
}

/// Keys as in JSON where it has them.
fn text(doc: &SnapshotDoc) -> Vec<String> {
    let s = &doc.stats;
    let in_blocks = |bytes, blocks| format!("{} in {blocks} blocks", format::size(bytes));
    let mut out = vec![
        format!("name: {}", doc.name),
        format!("type: {}", doc.backup_type),
    ];
    if let Some(source) = source(doc) {
        out.push(format!("src: {source}"));
    }
    let pairs = [
        ("status", DONE.to_owned()),
        ("cluster", doc.cluster.name.clone()),
        ("restore_to_time", utc(restore_to(doc))),
        ("started", utc(doc.started)),
        ("finished", utc(doc.finished)),
        ("took", format::duration(s.seconds.0)),
        ("tool", doc.tool.clone()),
        ("files", s.files.to_string()),
        ("size_uncompressed", format::size(s.bytes_total)),
        ("read", in_blocks(s.bytes_read, s.blocks_read)),
        ("referenced", format::size(s.bytes_referenced)),
        ("new", in_blocks(s.bytes_new, s.blocks_new)),
        (
            "stored",
            format!(
                "{} ({} data, {} maps)",
                format::size(s.bytes_stored()),
                format::size(s.bytes_stored_data),
                format::size(s.bytes_stored_map)
            ),
        ),
    ];
    out.extend(pairs.map(|(key, value)| format!("{key}: {value}")));
    out.push("replsets:".into());
    doc.replsets
        .iter()
        .for_each(|replset| replset_text(replset, &mut out));
    out
}

fn replset_text(replset: &ReplsetDoc, out: &mut Vec<String>) {
    out.push(format!("- name: {}", replset.name));
    for key in [
        "source",
        "node",
        "role",
        "mongod_version",
        "fcv",
        "replica_set_id",
        "cluster_id",
        "shard",
    ] {
        if let Some(value) = replset.node.get(key).and_then(Value::as_str) {
            out.push(format!("  {key}: {value}"));
        }
    }
    let number = |path| replset.node.pointer(path).and_then(Value::as_u64);
    if let (Some(t), Some(i)) = (number("/operation_time/t"), number("/operation_time/i")) {
        out.push(format!("  operation_time: {t},{i}"));
    }
    if let Some(chain) = ChainInfo::of(replset) {
        chain_text(&chain, out);
    }
    if let Some(head) = &replset.chain_head {
        let (t, i) = head.checkpoint_ts;
        out.push("  chain_head:".into());
        out.push(format!("    node: {}", head.node));
        out.push(format!("    this_backup_name: {}", head.this_backup_name));
        out.push(format!("    block_size: {}MiB", head.block_size));
        out.push(format!("    checkpoint_ts: {t},{i}"));
    }
    let hashes = replset.node.get("hashes").and_then(Value::as_array);
    for db in hashes.into_iter().flatten() {
        let text = |key| db.get(key).and_then(Value::as_str).unwrap_or_default();
        let counts = db.get("counts").and_then(Value::as_object);
        let documents: u64 = counts
            .into_iter()
            .flat_map(|c| c.values())
            .filter_map(Value::as_u64)
            .sum();
        out.push(format!(
            "  dbhash {}: {} ({documents} documents)",
            text("db"),
            text("hash")
        ));
    }
}

/// How the chain went.
fn chain_text(chain: &ChainInfo, out: &mut Vec<String>) {
    out.push("  chain:".into());
    out.push(format!("    step: {}", chain.step.name()));
    if let Some(source) = &chain.source_snapshot {
        out.push(format!("    source_snapshot: {source}"));
    }
    if let Some(reason) = &chain.reason {
        // It has colons of its own.
        out.push(format!("    reason: {}", Value::from(reason.as_str())));
    }
    if let Some(size) = chain.block_size {
        out.push(format!("    block_size: {size}MiB"));
    }
    if let Some(bytes) = chain.bytes_named {
        out.push(format!("    named: {}", format::size(bytes)));
    }
}

#[cfg(test)]
#[path = "describe_tests.rs"]
mod tests;
