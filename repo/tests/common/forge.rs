//! Samples of everything that is decoded, ways to spoil them, and packs of spoilt blocks.

use std::sync::Arc;

use bytes::Bytes;
use pbmfs_repo::id::{BlockId, LeaseId, Nonce};
use pbmfs_repo::key::{ObjectKey, prefix};
use pbmfs_repo::pack::{Encoder, Owner, PackBuilder, PackKind, Place, Trailer, open_block};
use pbmfs_repo::storage::{MemoryStorage, Storage};

use super::Dice;

/// A block in a map pack, and where it is.
#[derive(Debug, Clone)]
pub struct MapBlock {
    pub place: Place,
    pub plain: Bytes,
}

pub fn trailer_of(object: &[u8]) -> Trailer {
    let footer = object.len() - 16;
    let len = u32::from_le_bytes(object[footer..footer + 4].try_into().unwrap()) as usize;
    Trailer::decode(&object[footer - len..footer]).unwrap()
}

/// Every block of every map pack.
pub fn map_blocks(memory: &MemoryStorage) -> Vec<MapBlock> {
    let mut out = Vec::new();
    for (key, object) in memory.snapshot() {
        if !key.starts_with(prefix::PACKS) {
            continue;
        }
        let trailer = trailer_of(&object);
        for (i, info) in trailer.slots().iter().enumerate() {
            let offset = trailer.offset(pbmfs_repo::id::Slot(i as u32)).unwrap();
            let len = info.packed_len() as u32;
            if trailer.kind == PackKind::Map {
                let packed = object.slice(offset as usize..(offset + len) as usize);
                let place = Place {
                    pack: trailer.pack_id(),
                    offset,
                    len,
                    id: info.id,
                };
                out.push(MapBlock {
                    place,
                    plain: open_block(info, &packed).unwrap(),
                });
            }
        }
    }
    out
}

/// Puts a block into a pack of its own.
pub async fn put_block(memory: &Arc<MemoryStorage>, plain: &[u8], nonce: u64) -> Place {
    let mut packed = Vec::new();
    let id = BlockId::of(plain);
    let info = Encoder::new(1).unwrap().append(id, plain, &mut packed).unwrap();
    let mut builder = PackBuilder::new(PackKind::Map, Owner::Lease(LeaseId([9; 16])), Vec::new());
    let (_, offset) = builder.push(info, &packed);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&nonce.to_le_bytes());
    let sealed = builder.seal(Nonce(bytes));
    let key = ObjectKey::pack(&sealed.loc.id);
    memory.put(&key, sealed.object).await.unwrap();
    Place {
        pack: sealed.loc.id,
        offset,
        len: packed.len() as u32,
        id,
    }
}

/// Makes every place in `bytes` that names the block `old` name another one.
pub fn renamed(bytes: &[u8], old: &Place, new: &Place) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for at in 40..(bytes.len() + 1).saturating_sub(32) {
        if bytes[at..at + 32] == old.id.0 {
            out[at - 40..at - 8].copy_from_slice(&new.pack.0);
            out[at - 8..at - 4].copy_from_slice(&new.offset.to_le_bytes());
            out[at - 4..at].copy_from_slice(&new.len.to_le_bytes());
            out[at..at + 32].copy_from_slice(&new.id.0);
        }
    }
    out
}

/// Spoils a few bytes.
pub fn spoil(bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..1 + dice.below(3) {
        let at = dice.below(out.len() as u64 + 1) as usize;
        let odd = [0, 1, 0x7f, 0x80, 0xff][dice.below(5) as usize];
        match dice.below(8) {
            0 => out.truncate(at),
            1 => out.insert(at, odd),
            2 => out.extend(dice.bytes(3)),
            3 if at < out.len() => drop(out.remove(at)),
            // A varint of the greatest number.
            4 => drop(out.splice(at..(at + 1).min(out.len()), [0xff; 9].into_iter().chain([1]))),
            // Front bytes hold counts and kinds: spoil them more often.
            5 if !out.is_empty() => {
                let front = dice.below(out.len().min(12) as u64) as usize;
                out[front] = odd;
            }
            6 if at < out.len() => out[at] ^= 1 << dice.below(8),
            _ if at < out.len() => out[at] = odd,
            _ => {}
        }
    }
    out
}
