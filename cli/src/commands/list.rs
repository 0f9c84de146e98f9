//! `list`

use pbmfs_agent::source::ChainStep;
use pbmfs_repo::Listing;
use serde::Serialize;

use super::snapshot::{DONE, label, restore_to, source, step, utc};
use crate::args::{Global, OutputFormat};
use crate::exit::{Failure, Outcome};
use crate::{format, open};

/// PBM's keys, then ours.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    status: &'static str,
    print_status: &'static str,
    #[serde(flatten)]
    known: Option<Known>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What is known of a snapshot that can be read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Known {
    /// Seconds since 1970 of the moment to which the snapshot restores.
    restore_to: i64,
    /// Of the program that took it.
    pbm_version: String,
    #[serde(rename = "type")]
    backup_type: String,
    /// The snapshot of which it is an increment; empty for any other, as in PBM.
    src: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<ChainStep>,
    cluster: String,
    replsets: Vec<String>,
    /// Bytes of all its files.
    size: u64,
    size_read: u64,
    size_referenced: u64,
    /// Bytes that it added to the repository.
    size_stored: u64,
}

#[derive(Serialize)]
struct Rows {
    snapshots: Vec<Row>,
}

pub async fn run(global: &Global) -> Result<Outcome, Failure> {
    let opened = open::repository(global).await?;
    let mut listed = opened.repo.snapshots().await?;
    listed.reverse();
    match global.output {
        OutputFormat::Json => format::json(&Rows {
            snapshots: listed.into_iter().map(row).collect(),
        })?,
        OutputFormat::Text if listed.is_empty() => format::note("the repository holds no snapshot yet"),
        OutputFormat::Text => listed.iter().try_for_each(|item| format::line(text(item)))?,
    }
    Ok(Outcome::Done)
}

fn text(item: &Listing) -> String {
    match item {
        Listing::Snapshot(doc) => format!(
            "{} {} <{}> [restore_to_time: {}]",
            doc.name,
            format::size(doc.stats.bytes_stored()),
            label(doc),
            utc(restore_to(doc))
        ),
        Listing::Unreadable(name, why) => format!("{name} unreadable: {why}"),
    }
}

fn row(item: Listing) -> Row {
    match item {
        Listing::Snapshot(doc) => Row {
            name: doc.name.to_string(),
            status: DONE,
            print_status: "success",
            error: None,
            known: Some(Known {
                restore_to: restore_to(&doc).as_second(),
                src: source(&doc).unwrap_or_default(),
                chain: step(&doc),
                replsets: doc.replsets.iter().map(|r| r.name.clone()).collect(),
                size: doc.stats.bytes_total,
                size_read: doc.stats.bytes_read,
                size_referenced: doc.stats.bytes_referenced,
                size_stored: doc.stats.bytes_stored(),
                pbm_version: doc.tool,
                backup_type: doc.backup_type,
                cluster: doc.cluster.name,
            }),
        },
        Listing::Unreadable(name, why) => Row {
            name: name.to_string(),
            status: "error",
            print_status: "failed",
            known: None,
            error: Some(why),
        },
    }
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
