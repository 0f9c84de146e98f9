//! Damage, done on purpose: to the files of a repository in a directory.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use pbmfs_repo::{
    Repository, SnapshotReader,
    envelope::{Header, ObjectKind},
    error::RepoError,
    id::Slot,
    pack::BLOCK_HEADER_LEN,
    storage::LocalStorage,
};

use crate::error::{Doing, Result, RigError};

/// Turns one bit of a file around.
pub fn flip_bit(path: &Path, bit: u64) -> Result<()> {
    let doing = || format!("spoiling {}", path.display());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .doing(doing())?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).doing(doing())?;
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).doing(doing())
}

/// Cuts a file off.
pub fn truncate(path: &Path, length: u64) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(length))
        .doing(format_args!("cutting {}", path.display()))
}

/// Puts each of two files in the other's place.
pub fn swap(one: &Path, other: &Path) -> Result<()> {
    let aside = one.with_extension("aside");
    let moves = [(one, aside.as_path()), (other, one), (&aside, other)];
    for (from, to) in moves {
        fs::rename(from, to).doing(format_args!("moving {}", from.display()))?;
    }
    Ok(())
}

/// The objects of a kind, in the order of their keys.
pub fn objects(repo: &Path, kind: ObjectKind) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in crate::tree::Tree::read(repo)?.files().paths() {
        let path = repo.join(path);
        let bytes = fs::read(&path).doing(format_args!("reading {}", path.display()))?;
        if Header::decode(&bytes).is_ok_and(|header| header.kind == kind) {
            found.push(path);
        }
    }
    Ok(found)
}

/// A block of a file, and where it lies in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// The pack's file.
    pub object: PathBuf,
    /// The pack's id.
    pub pack: String,
    /// The block's id.
    pub block: String,
    /// Where the stored bytes lie in the pack.
    pub stored: std::ops::Range<u64>,
    /// Which bytes of the file they are.
    pub range: std::ops::Range<u64>,
}

/// Where the byte of a file at `offset` is stored. The file is named by its path in the newest snapshot's only replica
/// set.
pub async fn find_block(repo: &Path, path: &str, offset: u64) -> Result<BlockPlace> {
    let failed = |error: RepoError| RigError::Check(format!("looking for {path} in the repository: {error}"));
    let none = |what: &str| RigError::Check(format!("{path} at {offset}: there is no {what}"));
    let repository = Repository::open(Arc::new(LocalStorage::new(repo)), 1 << 20)
        .await
        .map_err(failed)?;
    let doc = repository.resolve("latest").await.map_err(failed)?;
    let reader = SnapshotReader::open(&repository, doc).await.map_err(failed)?;
    let replset = &reader.replsets()[0];
    let (_, entry) = replset
        .files()
        .find(path)
        .await
        .map_err(failed)?
        .ok_or_else(|| none("file"))?;
    let extents = replset
        .extents(&entry.root, entry.meta.size, offset..offset + 1)
        .await
        .map_err(failed)?;
    let extents = match extents.first() {
        // All of the block, and not only the one byte of it.
        Some(_) => replset
            .extents(&entry.root, entry.meta.size, 0..entry.meta.size)
            .await
            .map_err(failed)?,
        None => return Err(none("extent")),
    };
    for extent in &extents {
        for span in replset.spans(extent).await.map_err(failed)? {
            let range = span.offset..span.offset + u64::from(span.to - span.from);
            if !range.contains(&offset) {
                continue;
            }
            let loc = replset.pack(span.pack).await.map_err(failed)?;
            let trailer = replset.trailer(span.pack).await.map_err(failed)?;
            let slot = Slot(span.slot);
            let info = trailer.slot(slot).ok_or_else(|| none("slot"))?;
            let begin =
                u64::from(trailer.offset(slot).ok_or_else(|| none("slot"))?) + BLOCK_HEADER_LEN as u64;
            let pack = loc.id.to_string();
            return Ok(BlockPlace {
                object: repo.join(format!("packs/{}/{pack}", &pack[..2])),
                pack,
                block: info.id.to_string(),
                stored: begin..begin + u64::from(info.stored_len),
                range,
            });
        }
    }
    Err(none("block"))
}

/// Puts an object's bytes under a key, directories included.
pub fn put(repo: &Path, key: &str, object: &Bytes) -> Result<()> {
    let path = repo.join(key);
    let parent = path.parent().unwrap_or(repo);
    fs::create_dir_all(parent).doing(format_args!("making {}", parent.display()))?;
    fs::write(&path, object).doing(format_args!("writing {}", path.display()))
}
