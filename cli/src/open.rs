//! Opening the repository that the command line names.

use std::path::PathBuf;
use std::sync::Arc;

use pbmfs_repo::Repository;
use pbmfs_repo::local_index::IndexOptions;
use pbmfs_repo::storage::{CountingStorage, LocalStorage, Storage, local_path};

use crate::args::Global;
use crate::exit::Failure;

/// Least memory that any command works with.
pub const MIN_MEMORY: u64 = 64 << 20;

/// An open repository and what was counted on the way to it.
pub struct Opened {
    pub repo: Repository,
    pub counts: Arc<CountingStorage>,
}

/// The repository's address.
pub fn address(global: &Global) -> Result<&str, Failure> {
    match global.repo.as_deref() {
        Some("") | None => Err(Failure::usage(
            "no repository is given: use --repo ADDRESS or set PBMFS_REPO in the environment",
        )),
        Some(address) => Ok(address),
    }
}

/// Checks the memory budget.
pub fn memory(global: &Global) -> Result<u64, Failure> {
    if global.memory < MIN_MEMORY {
        return Err(Failure::usage("--memory must be at least 64MiB"));
    }
    Ok(global.memory)
}

/// The storage at the address.
pub fn storage(global: &Global) -> Result<Arc<CountingStorage>, Failure> {
    let inner = pbmfs_repo::storage::open(address(global)?).map_err(pbmfs_repo::RepoError::from)?;
    Ok(Arc::new(CountingStorage::new(inner)))
}

/// The repository at the address; an eighth of the memory is for its caches.
pub async fn repository(global: &Global) -> Result<Opened, Failure> {
    let memory = memory(global)?;
    let counts = storage(global)?;
    let repo = Repository::open(counts.clone() as Arc<dyn Storage>, memory / 8).await?;
    Ok(Opened { repo, counts })
}

/// The local index of a backup: in the directory that was asked for, else where caches belong. What was asked for is
/// used by one process at a time; in the usual place each backup finds an index.
pub fn index(asked: Option<PathBuf>, memory: u64) -> IndexOptions {
    let share = asked.is_none();
    let directory = asked.or_else(|| Some(caches()?.join("pbm-fs/index")));
    if directory.is_none() {
        tracing::warn!(
            "the index is kept in memory: there is no place for it without HOME; give it one with --index"
        );
    }
    IndexOptions {
        directory,
        share,
        memory,
        ..IndexOptions::in_memory()
    }
}

/// Where caches belong. Relative paths in the variables mean nothing.
fn caches() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))
}

/// The directory in which the repository lies, if it is one.
pub fn directory(global: &Global) -> Option<PathBuf> {
    local_path(address(global).ok()?).ok()
}

/// Removes what crashed writers left half written.
pub fn sweep(global: &Global) {
    if let Some(root) = directory(global) {
        let removed = LocalStorage::new(root).sweep();
        if removed > 0 {
            tracing::info!("removed {removed} temporary files of writers that died");
        }
    }
}
