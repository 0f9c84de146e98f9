//! A repository of many packs, of which only the trailers have bytes: the rest of each file is a hole. An index of known
//! blocks reads nothing else.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use pbmfs_repo::Repository;
use pbmfs_repo::id::{BlockId, LeaseId, Nonce};
use pbmfs_repo::key::ObjectKey;
use pbmfs_repo::objects::Parameters;
use pbmfs_repo::pack::{BlockInfo, Codec, Owner, PackKind, PackLoc, Trailer, encode_footer};
use pbmfs_repo::storage::LocalStorage;

use crate::Result;
use crate::maps::mix;

/// Plain bytes of a block.
pub const BLOCK: u64 = 64 << 10;

/// Stored bytes of a block: of WiredTiger files zstd takes a fifth off.
const STORED: u32 = 52 << 10;

/// Blocks of that size in a pack of 16 MiB.
const SLOTS: u64 = 315;

/// The id of a block: looks random, is the same in each run, and takes no memory.
pub fn block_id(number: u64) -> BlockId {
    let mut id = [0; 32];
    for (word, at) in id.chunks_exact_mut(8).zip(0..) {
        word.copy_from_slice(&mix(number * 4 + at).to_le_bytes());
    }
    BlockId(id)
}

/// The pack that begins with a block.
pub fn pack(first: u64, blocks: u64) -> Result<(PackLoc, Trailer)> {
    let slots = (first..first + blocks).map(|number| BlockInfo {
        id: block_id(number),
        plain_len: BLOCK as u32,
        stored_len: STORED,
        codec: Codec::Zstd,
    });
    let owner = Owner::Lease(LeaseId([0; 16]));
    let trailer = Trailer::new(PackKind::Data, owner, Nonce([0; 16]), 120, slots.collect())?;
    let loc = PackLoc {
        id: trailer.pack_id(),
        trailer_offset: trailer.end(),
        trailer_len: trailer.encode().len() as u32,
    };
    Ok((loc, trailer))
}

/// The packs of so many blocks, from a block on.
pub fn packs(blocks: std::ops::Range<u64>) -> impl Iterator<Item = Result<(PackLoc, Trailer)>> {
    let end = blocks.end;
    blocks
        .step_by(SLOTS as usize)
        .map(move |first| pack(first, SLOTS.min(end - first)))
}

/// Makes a repository of so many blocks.
///
/// # Errors
/// The directory's.
pub async fn make(directory: &Path, blocks: u64) -> Result<()> {
    let parameters = Parameters {
        pack_size: 16 << 20,
        compression_level: 1,
    };
    Repository::init(Arc::new(LocalStorage::new(directory)), parameters).await?;
    for pack in packs(0..blocks) {
        let (loc, trailer) = pack?;
        let path = directory.join(ObjectKey::pack(&loc.id).as_str());
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        let mut tail = trailer.encode();
        tail.extend_from_slice(&encode_footer(loc.trailer_len));
        File::create(path)?.write_all_at(&tail, loc.trailer_offset.into())?;
    }
    Ok(())
}
