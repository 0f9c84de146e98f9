//! The listed files as they are in the dbPath: owners, modes, and the directories above them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use pbmfs_dbpath::is_wiredtiger_table;

use super::documents::Listed;
use crate::error::SourceError;
use crate::source::{SourceFile, path_order};
use crate::walk::source_file;

/// Needed at every start of mongod, and named by no cursor.
const STORAGE_BSON: &str = "storage.bson";

/// Describes the files and their directories, in [`path_order`]. Blocking.
///
/// # Errors
/// `Unreadable` for a file that is listed and cannot be looked at; `Changed` for one that is gone, or shorter than it was
/// at the checkpoint.
pub(super) fn describe(root: &Path, listed: &Listed) -> Result<Vec<SourceFile>, SourceError> {
    let mut found = Vec::with_capacity(listed.files.len() + 1);
    let mut directories = BTreeSet::new();
    for (path, file) in &listed.files {
        let mut described = look(root, path)?;
        // A table may have grown since; of a log everything counts that is there by now.
        if let Some(size) = file.size.filter(|_| is_wiredtiger_table(path)) {
            if described.size < size {
                return Err(SourceError::Changed {
                    path: root.join(path),
                });
            }
            described.size = size;
        }
        found.push(described);
        let above = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
        directories.extend(above);
    }
    for directory in &directories {
        found.push(look(root, directory)?);
    }
    if !listed.files.contains_key(STORAGE_BSON) && root.join(STORAGE_BSON).exists() {
        found.push(look(root, STORAGE_BSON)?);
    }
    found.sort_by(|a, b| path_order(&a.path, &b.path));
    Ok(found)
}

fn look(root: &Path, path: &str) -> Result<SourceFile, SourceError> {
    let full = root.join(path);
    match fs::metadata(&full) {
        Ok(meta) => Ok(source_file(path.to_owned(), &meta)),
        // The cursor keeps its files: whatever removed this one, the rest is no whole any more.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(SourceError::Changed { path: full })
        }
        Err(error) => Err(SourceError::io(full, error)),
    }
}
