//! Packs of blocks that nobody wrote: only their trailers have bytes, the rest of each file is a hole. An index reads
//! nothing else, so a repository of many packs is made at once.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pbmfs_repo::id::{BlockId, LeaseId, ListId, Nonce, PackId, draw16};
use pbmfs_repo::index::{Found, KnownBlocks};
use pbmfs_repo::key::{ObjectKey, prefix};
use pbmfs_repo::objects::CondemnedList;
use pbmfs_repo::pack::{BlockInfo, Codec, Owner, PackKind, PackLoc, Trailer, encode_footer};
use pbmfs_repo::storage::{LocalStorage, list_all};
use pbmfs_repo::{Repository, Session};

use super::{Dice, new_repo};

/// A pack, and what an index may say of its blocks.
#[derive(Debug, Clone)]
pub struct Pack {
    pub loc: PackLoc,
    pub trailer: Trailer,
}

impl Pack {
    pub fn of(kind: PackKind, ids: impl IntoIterator<Item = BlockId>, nonce: u64) -> Self {
        let slots: Vec<_> = ids
            .into_iter()
            .map(|id| BlockInfo {
                id,
                plain_len: 4096,
                stored_len: 1000,
                codec: Codec::Zstd,
            })
            .collect();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&nonce.to_le_bytes());
        let owner = Owner::Lease(LeaseId([3; 16]));
        let trailer = Trailer::new(kind, owner, Nonce(bytes), 120, slots).unwrap();
        let loc = PackLoc {
            id: trailer.pack_id(),
            trailer_offset: trailer.end(),
            trailer_len: trailer.encode().len() as u32,
        };
        Self { loc, trailer }
    }

    pub fn ids(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.trailer.slots().iter().map(|info| info.id)
    }
}

/// A repository in a directory, with such packs.
pub struct Packs {
    pub directory: PathBuf,
    pub repo: Repository,
    pub packs: Vec<Pack>,
    pub dice: Dice,
}

impl Packs {
    pub async fn new(directory: &Path, seed: u64) -> Self {
        let repo = new_repo(Arc::new(LocalStorage::new(directory))).await;
        Self {
            directory: directory.to_owned(),
            repo,
            packs: Vec::new(),
            dice: Dice(seed),
        }
    }

    /// The same repository with caches that are empty.
    pub async fn reopened(&self) -> Repository {
        let storage = Arc::new(LocalStorage::new(&self.directory));
        Repository::open(storage, 8 << 20).await.unwrap()
    }

    /// What lies in a directory that others wrote to.
    pub async fn found(directory: &Path) -> Self {
        let repo = Repository::open(Arc::new(LocalStorage::new(directory)), 8 << 20)
            .await
            .unwrap();
        let mut packs = Vec::new();
        for listed in list_all(&**repo.storage(), prefix::PACKS).await.unwrap() {
            let id = listed.key.last().unwrap();
            let (loc, trailer) = repo.packs().locate(&id, listed.size).await.unwrap();
            packs.push(Pack {
                loc,
                trailer: (*trailer).clone(),
            });
        }
        Self {
            directory: directory.to_owned(),
            repo,
            packs,
            dice: Dice(0),
        }
    }

    pub fn path(&self, id: &PackId) -> PathBuf {
        self.directory.join(ObjectKey::pack(id).as_str())
    }

    /// A new block's id.
    pub fn draw(&mut self) -> BlockId {
        BlockId(self.dice.bytes(32).try_into().unwrap())
    }

    /// A pack that is not put.
    pub fn make(&mut self, kind: PackKind, ids: Vec<BlockId>) -> Pack {
        let nonce = self.dice.next();
        Pack::of(kind, ids, nonce)
    }

    pub fn put(&mut self, pack: &Pack) {
        let path = self.path(&pack.loc.id);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create(path).unwrap();
        let mut tail = pack.trailer.encode();
        tail.extend_from_slice(&encode_footer(pack.loc.trailer_len));
        file.write_all_at(&tail, pack.loc.trailer_offset.into()).unwrap();
        self.packs.push(pack.clone());
    }

    /// Puts a pack of new blocks.
    pub fn put_new(&mut self, blocks: usize) -> Pack {
        let ids = (0..blocks).map(|_| self.draw()).collect();
        let pack = self.make(PackKind::Data, ids);
        self.put(&pack);
        pack
    }

    pub fn remove(&mut self, id: &PackId) {
        fs::remove_file(self.path(id)).unwrap();
        self.packs.retain(|pack| pack.loc.id != *id);
    }

    /// Puts a list of doomed packs.
    pub async fn condemn(&self, packs: Vec<PackId>) {
        let id = ListId(draw16(&**self.repo.randomness()));
        let list = CondemnedList { packs };
        let storage = self.repo.storage();
        storage
            .put(&ObjectKey::condemned(&id), list.to_object(&id))
            .await
            .unwrap();
    }

    pub async fn session(&self) -> Session {
        let repo = self.reopened().await;
        Session::begin(&repo, "backup", jiff::Timestamp::now())
            .await
            .unwrap()
    }

    /// Every place of every block.
    pub fn places(&self) -> HashMap<BlockId, Vec<Found>> {
        let mut out: HashMap<BlockId, Vec<Found>> = HashMap::new();
        for pack in &self.packs {
            for (id, slot) in pack.ids().zip(0..) {
                out.entry(id).or_default().push(Found { pack: pack.loc, slot });
            }
        }
        out
    }

    /// Looks every block up: nothing may be named that is wrong. Returns how many were not found.
    pub fn lost(&self, index: &dyn KnownBlocks) -> usize {
        let mut lost = 0;
        for (id, places) in self.places() {
            match index.lookup(&id) {
                Some(found) => assert!(places.contains(&found), "{id} is not in {found:?}"),
                None => lost += 1,
            }
        }
        lost
    }
}
