//! The packs of a repository: what describes their blocks, and the blocks themselves.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;

use super::finding::CheckReport;
use super::objects::object_finding;
use super::{CheckOptions, CheckProgress};
use crate::envelope::{HEADER_LEN, Header, ObjectKind};
use crate::error::{FormatError, RepoError, Result};
use crate::id::{BlockId, PackId, Slot};
use crate::ingest::Cancel;
use crate::key::{MAX_KEY_LEN, ObjectKey};
use crate::pack::{FOOTER_LEN, PackKind, PackLoc, Trailer, decode_footer, open_block};
use crate::repository::Repository;
use crate::storage::{Storage, StorageError};

/// What is known of a pack that was listed.
#[derive(Debug, Clone, Copy)]
pub(super) enum PackFacts {
    /// Header, trailer and footer fit together.
    Sound(PackLoc, PackKind),
    /// They do not.
    Damaged,
}

/// A block whose bytes are wrong.
#[derive(Debug, Clone)]
pub(super) struct BadBlock {
    pub pack: PackId,
    pub slot: u32,
    pub block: BlockId,
    pub reason: String,
}

/// What became of one pack.
enum Looked {
    Gone,
    Damaged(RepoError),
    Sound {
        loc: PackLoc,
        kind: PackKind,
        slots: u32,
        read: Option<BlocksRead>,
    },
}

#[derive(Default)]
struct BlocksRead {
    bytes: u64,
    bad: Vec<BadBlock>,
}

/// Looks at every pack, several at a time.
pub(super) async fn read(
    repo: &Repository,
    listed: &HashMap<PackId, u64>,
    options: CheckOptions,
    progress: &dyn CheckProgress,
    cancel: &Cancel,
    report: &mut CheckReport,
) -> Result<(HashMap<PackId, PackFacts>, Vec<BadBlock>)> {
    let total: u64 = listed.values().sum();
    progress.packs(listed.len() as u64, total);
    (report.packs, report.pack_bytes) = (listed.len() as u64, total);
    // A look at a pack with all its blocks needs some 8 MiB.
    let fit = usize::try_from(options.memory >> 23).unwrap_or(usize::MAX);
    let threads = match options.read_data {
        true => options.threads.min(fit).max(1),
        false => options.threads.max(1),
    };
    // Half of the memory is the caches'. The allocator keeps several times the stored and plain bytes of a chunk for
    // each thread (measured: 115 MiB with chunks of 4 MiB and two threads).
    let chunk = (options.memory / 32 / threads as u64).clamp(1 << 20, 4 << 20);
    let mut ids: Vec<_> = listed.iter().map(|(id, size)| (*id, *size)).collect();
    ids.sort_unstable();
    let mut looks = futures::stream::iter(ids)
        .map(|(id, size)| async move {
            cancel.check()?;
            let looked = look(
                &**repo.storage(),
                &id,
                size,
                options.read_data.then_some(chunk),
                cancel,
            )
            .await?;
            Ok::<_, RepoError>((id, size, looked))
        })
        .buffer_unordered(if options.read_data {
            threads
        } else {
            threads.max(16)
        });
    let (mut facts, mut bad) = (HashMap::new(), Vec::new());
    while let Some(looked) = looks.next().await {
        let (id, size, looked) = looked?;
        match looked {
            Looked::Gone => {}
            Looked::Damaged(e) => {
                facts.insert(id, PackFacts::Damaged);
                object_finding(&ObjectKey::pack(&id), e, report)?;
            }
            Looked::Sound {
                loc,
                kind,
                slots,
                read,
            } => {
                facts.insert(id, PackFacts::Sound(loc, kind));
                report.blocks += u64::from(slots);
                if let Some(read) = read {
                    report.bytes_read += size;
                    report.blocks_read += u64::from(slots);
                    debug_assert!(read.bytes <= size);
                    bad.extend(read.bad);
                }
            }
        }
        progress.pack(size);
    }
    bad.sort_by_key(|b| (b.pack, b.slot));
    Ok((facts, bad))
}

async fn look(
    storage: &dyn Storage,
    id: &PackId,
    size: u64,
    read: Option<u64>,
    cancel: &Cancel,
) -> Result<Looked> {
    let (loc, trailer) = match structure(storage, id, size).await {
        Ok(found) => found,
        Err(RepoError::Storage(e)) if e.is_not_found() => return Ok(Looked::Gone),
        Err(e @ RepoError::Damaged { .. }) => return Ok(Looked::Damaged(e)),
        Err(e) => return Err(e),
    };
    let (kind, slots) = (trailer.kind, trailer.len());
    let read = match read {
        None => None,
        Some(chunk) => match blocks(storage, id, Arc::new(trailer), chunk, cancel).await {
            Ok(read) => Some(read),
            Err(RepoError::Storage(e)) if e.is_not_found() => return Ok(Looked::Gone),
            Err(e @ RepoError::Damaged { .. }) => return Ok(Looked::Damaged(e)),
            Err(e) => return Err(e),
        },
    };
    Ok(Looked::Sound {
        loc,
        kind,
        slots,
        read,
    })
}

/// Reads all of a pack but its blocks, and compares. Three requests.
async fn structure(storage: &dyn Storage, id: &PackId, size: u64) -> Result<(PackLoc, Trailer)> {
    let key = ObjectKey::pack(id);
    let damaged = |reason| RepoError::Damaged {
        key: key.clone(),
        reason,
    };
    let head = size.min((HEADER_LEN + MAX_KEY_LEN) as u64);
    let head = range(storage, &key, 0..head).await?;
    let header = Header::decode(&head).map_err(damaged)?;
    let foot_at = size
        .checked_sub(FOOTER_LEN as u64)
        .ok_or(FormatError::TooShort)
        .map_err(damaged)?;
    let foot = range(storage, &key, foot_at..size).await?;
    let trailer_len = decode_footer(&foot).map_err(damaged)?;
    let trailer_at = foot_at
        .checked_sub(trailer_len.into())
        .and_then(|at| u32::try_from(at).ok())
        .ok_or(FormatError::BadField("trailer length"))
        .map_err(damaged)?;
    let sealed = range(storage, &key, trailer_at.into()..foot_at).await?;
    let trailer = Trailer::decode_of(id, &sealed).map_err(damaged)?;
    header.verify(&key, &sealed).map_err(damaged)?;
    let kind = match trailer.kind {
        PackKind::Data => ObjectKind::DataPack,
        PackKind::Map => ObjectKind::MapPack,
    };
    if header.kind != kind {
        return Err(damaged(FormatError::WrongKind {
            expected: kind.name(),
            found: header.kind.name().into(),
        }));
    }
    // The bytes between header and trailer are the blocks, and nothing else.
    let fits = header.len() as u64 == u64::from(trailer.first_block)
        && trailer.end() == trailer_at
        && header.payload_len == size - header.len() as u64;
    if !fits {
        return Err(damaged(FormatError::BadField("pack length")));
    }
    let loc = PackLoc {
        id: *id,
        trailer_offset: trailer_at,
        trailer_len,
    };
    Ok((loc, trailer))
}

/// Reads and verifies every block, about `chunk` bytes at a time.
async fn blocks(
    storage: &dyn Storage,
    id: &PackId,
    trailer: Arc<Trailer>,
    chunk: u64,
    cancel: &Cancel,
) -> Result<BlocksRead> {
    let key = ObjectKey::pack(id);
    let mut out = BlocksRead::default();
    let mut at = 0;
    while at < trailer.len() {
        cancel.check()?;
        let mut end = at;
        let mut bytes = 0;
        while let Some(info) = trailer.slot(Slot(end)) {
            if end > at && bytes + info.packed_len() > chunk {
                break;
            }
            bytes += info.packed_len();
            end += 1;
        }
        let offset = |slot| trailer.offset(Slot(slot)).map_or(0, u64::from);
        let run = range(storage, &key, offset(at)..offset(end)).await?;
        let (slots, of, pack) = (at..end, trailer.clone(), *id);
        let bad = tokio::task::spawn_blocking(move || verify(&pack, &of, slots, &run))
            .await
            .map_err(|e| RepoError::Poisoned(e.to_string()))?;
        out.bad.extend(bad);
        out.bytes += bytes;
        at = end;
    }
    Ok(out)
}

/// The blocks of a run that are not what the trailer says.
fn verify(pack: &PackId, trailer: &Trailer, slots: Range<u32>, run: &Bytes) -> Vec<BadBlock> {
    let start = trailer.offset(Slot(slots.start)).unwrap_or_default();
    let mut bad = Vec::new();
    for slot in slots {
        let Some((info, at)) = trailer.slot(Slot(slot)).zip(trailer.offset(Slot(slot))) else {
            continue;
        };
        let from = (at - start) as usize;
        let end = from + info.packed_len() as usize;
        let packed = (end <= run.len()).then(|| run.slice(from..end));
        let opened = packed
            .ok_or(FormatError::TooShort)
            .and_then(|packed| open_block(info, &packed));
        if let Err(reason) = opened {
            bad.push(BadBlock {
                pack: *pack,
                slot,
                block: info.id,
                reason: reason.to_string(),
            });
        }
    }
    bad
}

/// A range of an object; that it is not there means that the object is truncated.
async fn range(storage: &dyn Storage, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
    let len = range.end - range.start;
    match storage.get_range(key, range.start, len).await {
        Err(StorageError::OutOfRange { .. }) => Err(RepoError::Damaged {
            key: key.clone(),
            reason: FormatError::TooShort,
        }),
        other => Ok(other?),
    }
}
