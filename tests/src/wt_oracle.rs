//! The second oracle: WiredTiger itself, from its Python package.
//!
//! A [`Driver`] runs a live database, with writers and checkpoints, and takes backups of it with WiredTiger's own
//! incremental backup cursors. A [`Chain`] feeds the ranges that they name to the ingest pipeline and restores each
//! snapshot, and then two judges look at it: [`compare`] wants every block that lives at the pinned checkpoint to be as
//! in a full copy that was made under the same cursor, and WiredTiger has to open it, verify every table, and find in it
//! what the live database held at that checkpoint.
//!
//! What WiredTiger promises about ranges stands in `docs/wiredtiger-facts.md`.

pub mod chain;
pub mod checkpoint;
pub mod compare;
pub mod driver;
pub mod events;
pub mod input;
pub mod judge;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

pub use chain::{Chain, How};
pub use compare::Compared;
pub use driver::Driver;
pub use events::Event;
pub use judge::Judged;

use crate::error::{Doing, Result, RigError};

/// The script's exit code for "it cannot be built on this machine".
const CANNOT: i32 = 3;

/// A Python that imports `wiredtiger`: `$PBMFS_WIREDTIGER_PYTHON`, or what `scripts/get-wiredtiger.sh` finds or builds,
/// which takes minutes the first time. `None`, with a loud line, where it cannot be built.
pub fn python() -> Result<Option<PathBuf>> {
    static FOUND: OnceLock<Result<Option<PathBuf>, String>> = OnceLock::new();
    FOUND
        .get_or_init(|| locate().map_err(|error| error.to_string()))
        .clone()
        .map_err(RigError::Missing)
}

fn locate() -> Result<Option<PathBuf>> {
    if let Some(path) = env::var_os("PBMFS_WIREDTIGER_PYTHON").filter(|path| !path.is_empty()) {
        return Ok(Some(path.into()));
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/get-wiredtiger.sh");
    let output = Command::new("bash")
        .arg(&script)
        .stdin(Stdio::null())
        .output()
        .doing(format_args!("running {}", script.display()))?;
    let talk = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(CANNOT) {
        eprintln!("NOT TESTED AGAINST WIREDTIGER: {}", talk.trim_end());
        return Ok(None);
    }
    if !output.status.success() {
        return Err(RigError::Missing(format!("WiredTiger; {}", talk.trim_end())));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().last() {
        Some(path) => Ok(Some(path.into())),
        None => Err(RigError::Missing(format!("{} printed no path", script.display()))),
    }
}

/// A program beside the driver.
pub fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("wiredtiger")
        .join(name)
}
