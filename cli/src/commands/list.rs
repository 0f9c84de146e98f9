//! `list`

use jiff::Timestamp;
use pbmfs_repo::Listing;
use pbmfs_repo::objects::SnapshotDoc;
use serde::Serialize;

use crate::args::{Global, OutputFormat};
use crate::exit::{Failure, Outcome};
use crate::{format, open};

/// PBM's keys, then ours.
#[derive(Serialize)]
struct Row {
    name: String,
    status: &'static str,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    backup_type: Option<String>,
    /// Seconds since 1970 of the moment to which the snapshot restores.
    #[serde(rename = "restoreTo", skip_serializing_if = "Option::is_none")]
    restore_to: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replsets: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(rename = "sizeStored", skip_serializing_if = "Option::is_none")]
    size_stored: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct Rows {
    snapshots: Vec<Row>,
}

/// The moment to which a snapshot restores: the greatest operation time of its replica sets, or the begin of the
/// backup where the source told none.
pub fn restore_to(doc: &SnapshotDoc) -> Timestamp {
    let times = doc
        .replsets
        .iter()
        .filter_map(|r| r.node.pointer("/operation_time/t")?.as_i64());
    times
        .max()
        .and_then(|t| Timestamp::from_second(t).ok())
        .unwrap_or(doc.started)
}

/// A moment as snapshot names write it.
pub fn utc(moment: Timestamp) -> String {
    moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
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
        OutputFormat::Text => {
            for item in &listed {
                format::line(match item {
                    Listing::Snapshot(doc) => format!(
                        "{} {} <{}> [restore_to_time: {}]",
                        doc.name,
                        format::size(doc.stats.bytes_stored()),
                        doc.backup_type,
                        utc(restore_to(doc))
                    ),
                    Listing::Unreadable(name, why) => format!("{name} unreadable: {why}"),
                })?;
            }
        }
    }
    Ok(Outcome::Done)
}

fn row(item: Listing) -> Row {
    match item {
        Listing::Snapshot(doc) => Row {
            status: "done",
            restore_to: Some(restore_to(&doc).as_second()),
            cluster: Some(doc.cluster.name.clone()),
            replsets: Some(doc.replsets.iter().map(|r| r.name.clone()).collect()),
            size: Some(doc.stats.bytes_total),
            size_stored: Some(doc.stats.bytes_stored()),
            name: doc.name.to_string(),
            backup_type: Some(doc.backup_type),
            error: None,
        },
        Listing::Unreadable(name, why) => Row {
            name: name.to_string(),
            status: "error",
            backup_type: None,
            restore_to: None,
            cluster: None,
            replsets: None,
            size: None,
            size_stored: None,
            error: Some(why),
        },
    }
}
