//! `describe-backup`

use pbmfs_repo::files::{FileEntry, FileKind};
use pbmfs_repo::objects::{ReplsetDoc, SnapshotDoc};
use pbmfs_repo::{ReplsetReader, SnapshotReader};
use serde::Serialize;
use serde_json::Value;

use crate::args::{DescribeBackup, Global, OutputFormat};
use crate::commands::list::{restore_to, utc};
use crate::exit::{Failure, Outcome};
use crate::{format, open};

#[derive(Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    doc: &'a SnapshotDoc,
    restore_to_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<FileRow>>,
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
        OutputFormat::Json => format::json(&Described {
            doc: &doc,
            restore_to_time: utc(restore_to(&doc)),
            files: args.files.then_some(files),
        })?,
        OutputFormat::Text => {
            text(&doc)?;
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

fn text(doc: &SnapshotDoc) -> Result<(), Failure> {
    let s = &doc.stats;
    let pairs = [
        ("name", doc.name.to_string()),
        ("type", doc.backup_type.clone()),
        ("cluster", doc.cluster.name.clone()),
        ("restore_to_time", utc(restore_to(doc))),
        ("started", utc(doc.started)),
        ("took", format::duration(s.seconds.0)),
        ("tool", doc.tool.clone()),
        ("files", s.files.to_string()),
        ("size", format::size(s.bytes_total)),
        (
            "read",
            format!("{} in {} blocks", format::size(s.bytes_read), s.blocks_read),
        ),
        (
            "new",
            format!("{} in {} blocks", format::size(s.bytes_new), s.blocks_new),
        ),
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
    for (key, value) in pairs {
        format::line(format!("{key}: {value}"))?;
    }
    format::line("replsets:")?;
    doc.replsets.iter().try_for_each(replset_text)
}

fn replset_text(replset: &ReplsetDoc) -> Result<(), Failure> {
    format::line(format!("- name: {}", replset.name))?;
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
            format::line(format!("  {key}: {value}"))?;
        }
    }
    let number = |path| replset.node.pointer(path).and_then(Value::as_u64);
    if let (Some(t), Some(i)) = (number("/operation_time/t"), number("/operation_time/i")) {
        format::line(format!("  operation_time: {t},{i}"))?;
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
        format::line(format!(
            "  dbhash {}: {} ({documents} documents)",
            text("db"),
            text("hash")
        ))?;
    }
    Ok(())
}
