//! The two judges of a snapshot: the copy, and WiredTiger.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use pbmfs_agent::restore::{NoRestoreProgress, RestoreOptions, restore};
use pbmfs_repo::{
    check::{CheckOptions, NoCheckProgress, check},
    ingest::Cancel,
    objects::{SnapshotDoc, SnapshotStats},
};
use serde::Deserialize;
use serde_json::json;

use super::{
    chain::{Chain, How, failed, lock},
    compare::{Compared, compare},
};
use crate::error::{Doing, Result, RigError};

/// What a backup was, and what the judges found.
#[derive(Clone, Debug)]
pub struct Judged {
    /// How it went.
    pub how: How,
    /// Of the pipeline.
    pub stats: SnapshotStats,
    /// Bytes that had to be read.
    pub asked: u64,
    /// Ranges that begin behind the end of their file.
    pub phantoms: usize,
    /// What the copy says.
    pub compared: Compared,
    /// Rows in all tables.
    pub rows: u64,
}

/// What a table holds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Contents {
    rows: u64,
    sum: String,
}

#[derive(Debug, Deserialize)]
struct Inspected {
    tables: BTreeMap<String, Contents>,
    oplog: u64,
}

impl Inspected {
    fn wrong(&self, recorded: &BTreeMap<String, Contents>, oplog: (u64, u64)) -> Vec<String> {
        let mut wrong = Vec::new();
        for name in recorded.keys().chain(self.tables.keys()).collect::<BTreeSet<_>>() {
            let (was, is) = (recorded.get(name), self.tables.get(name));
            if was != is {
                wrong.push(format!(
                    "table {name} held {was:?} at its checkpoint and holds {is:?}"
                ));
            }
        }
        if !(oplog.0..=oplog.1).contains(&self.oplog) {
            let found = self.oplog;
            wrong.push(format!(
                "the log goes to entry {found} instead of to one of {oplog:?}"
            ));
        }
        wrong
    }
}

impl Chain {
    /// Restores a snapshot and has it judged: what the copy says, and how many rows there are.
    pub(super) async fn judge(
        &self,
        doc: SnapshotDoc,
        copy: &Path,
        names: &BTreeSet<String>,
        recorded: &BTreeMap<String, Contents>,
        oplog: (u64, u64),
    ) -> Result<(Compared, u64)> {
        let target = self.place.join("restored");
        let options = RestoreOptions::new(&target);
        let restored = restore(
            &self.repo,
            doc,
            options,
            Arc::new(NoRestoreProgress),
            Cancel::default(),
        );
        restored
            .await
            .map_err(|error| RigError::Check(error.to_string()))?;
        let mut wrong = Vec::new();
        let compared = compare(&target, copy, names).unwrap_or_else(|found| {
            wrong.extend(found);
            Compared::default()
        });
        let found: Result<Inspected, String> = {
            let driver = self.driver.clone();
            let with = json!({"home": target});
            let found = tokio::task::spawn_blocking(move || lock(&driver).ask("inspect", with));
            found
                .await
                .map_err(|error| RigError::Check(error.to_string()))??
        };
        let rows = match found {
            Ok(found) => {
                wrong.extend(found.wrong(recorded, oplog));
                found.tables.values().map(|table| table.rows).sum()
            }
            Err(how) => {
                wrong.push(format!("WiredTiger does not open it: {how}"));
                0
            }
        };
        if !wrong.is_empty() {
            return Err(RigError::Check(wrong.join("\n")));
        }
        fs::remove_dir_all(&target).doing(format_args!("removing {}", target.display()))?;
        Ok((compared, rows))
    }

    /// Has all the repository checked.
    pub async fn check(&self) -> Result<()> {
        let cancel = Cancel::default();
        let report = check(&self.repo, CheckOptions::default(), &NoCheckProgress, &cancel).await;
        let report = report.map_err(failed)?;
        match report.findings.is_empty() {
            true => Ok(()),
            false => Err(RigError::Check(format!("{:?}", report.findings))),
        }
    }
}
