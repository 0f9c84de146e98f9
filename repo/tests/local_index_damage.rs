//! A local index whose files are not what they should be: no hit is ever wrong, and the index is built anew.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/warnings.rs"]
mod warnings;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::Dice;
use common::packs::Packs;
use pbmfs_repo::local_index::{IndexOptions, LEAST_MEMORY, LocalIndex};
use pbmfs_repo::{Repository, Session};
use warnings::Warnings;

/// A repository with an index that was used: in bulk, bit by bit, with heads and with packs that are gone.
struct Used {
    packs: Packs,
    place: tempfile::TempDir,
    repo: Repository,
}

impl Used {
    async fn new(seed: u64) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut packs = Packs::new(&place.path().join("repo"), seed).await;
        for _ in 0..160 {
            packs.put_new(20);
        }
        let repo = packs.repo.clone();
        let mut this = Self { packs, place, repo };
        this.open(async |packs, index| {
            assert_eq!(packs.lost(index), 0);
            index.put_head(b"rs0", b"head");
        })
        .await;
        let gone: Vec<_> = this.packs.packs.iter().take(20).map(|p| p.loc.id).collect();
        for id in gone {
            this.packs.remove(&id);
        }
        for _ in 0..3 {
            this.packs.put_new(60);
            this.open(async |packs, index| assert_eq!(packs.lost(index), 0))
                .await;
        }
        fs::rename(this.indexes(), this.place.path().join("good")).unwrap();
        this
    }

    fn indexes(&self) -> PathBuf {
        self.place.path().join("indexes")
    }

    fn own(&self) -> PathBuf {
        self.indexes().join(self.repo.config().repository_id.to_string())
    }

    /// Brings the undamaged index back.
    fn reset(&self) {
        let _ = fs::remove_dir_all(self.indexes());
        copy(&self.place.path().join("good"), &self.indexes());
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.own().join("db"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        files.sort();
        files
    }

    async fn open<T>(&mut self, act: impl AsyncFnOnce(&Packs, &LocalIndex) -> T) -> T {
        let session = Session::begin(&self.packs.reopened().await, "backup", jiff::Timestamp::now())
            .await
            .unwrap();
        let index = LocalIndex::open(&session, &self.indexes(), &options(&self.indexes()))
            .await
            .unwrap();
        let out = act(&self.packs, &index).await;
        drop(index);
        session.abandon().await;
        out
    }

    /// Whatever was done to it: at once nothing is wrong, and on the next day nothing is lost. Returns what was said.
    async fn must_recover(&mut self, what: &str) -> Vec<String> {
        let log = Warnings::collect();
        let lost = self.open(async |packs, index| packs.lost(index)).await;
        let said = log.take();
        assert!(said.len() <= 1, "{what}: {said:?}");
        assert!(lost == 0 || said.len() == 1, "{what}: {lost} lost without a word");
        let lost = self.open(async |packs, index| packs.lost(index)).await;
        assert_eq!(lost, 0, "{what}");
        let again = log.take();
        let told = said
            .iter()
            .any(|line| line.contains("the next backup builds it anew"));
        assert_eq!(again.len(), usize::from(told), "{what}: {said:?} {again:?}");
        let lost = self.open(async |packs, index| packs.lost(index)).await;
        assert_eq!((lost, log.take().len()), (0, 0), "{what}");
        said
    }
}

fn options(indexes: &Path) -> IndexOptions {
    IndexOptions {
        memory: LEAST_MEMORY,
        ..IndexOptions::below(indexes)
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, target) = (
            entry.as_ref().unwrap().path(),
            to.join(entry.unwrap().file_name()),
        );
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

fn write(path: &Path, at: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[tokio::test]
async fn a_flipped_bit_anywhere() {
    let flips = if common::full() { 4000 } else { 60 };
    let mut used = Used::new(1).await;
    used.reset();
    // Bits of small files are as likely as bits of large ones.
    let files: Vec<_> = used
        .files()
        .into_iter()
        .filter(|f| f.metadata().unwrap().len() > 0)
        .collect();
    let (mut dice, mut noticed) = (Dice(0xf11b), 0);
    for round in 0..flips {
        used.reset();
        let file = &files[round % files.len()];
        let at = dice.below(file.metadata().unwrap().len());
        let bit = dice.below(8);
        let byte = fs::read(file).unwrap()[at as usize];
        write(file, at, &[byte ^ 1 << bit]);
        let what = format!("bit {bit} of byte {at} of {}", file.display());
        noticed += used.must_recover(&what).await.len();
    }
    assert!(noticed * 4 > flips, "{noticed} of {flips}");
}

#[tokio::test]
async fn a_file_that_is_cut_emptied_scribbled_over_or_gone() {
    let mut used = Used::new(2).await;
    used.reset();
    let mut dice = Dice(0xc07);
    for file in used.files() {
        for way in 0..5 {
            used.reset();
            let len = file.metadata().unwrap().len();
            let cut = |to| {
                fs::OpenOptions::new()
                    .write(true)
                    .open(&file)
                    .unwrap()
                    .set_len(to)
                    .unwrap()
            };
            match way {
                0 => fs::remove_file(&file).unwrap(),
                1 => cut(0),
                2 => cut(dice.below(len)),
                3 => cut(len + 1 + dice.below(5000)),
                _ => {
                    let n = dice.below(600) as usize;
                    write(&file, dice.below(len), &dice.bytes(n));
                }
            }
            used.must_recover(&format!("way {way} with {}", file.display()))
                .await;
        }
    }
}

#[tokio::test]
async fn files_of_another_day() {
    let mut used = Used::new(3).await;
    used.reset();
    let old = used.place.path().join("old");
    copy(&used.indexes(), &old);
    for _ in 0..150 {
        used.packs.put_new(15);
    }
    used.open(async |packs, index| assert_eq!(packs.lost(index), 0))
        .await;
    let new = used.place.path().join("new");
    copy(&used.indexes(), &new);
    let name = used.own().file_name().unwrap().to_owned();
    let mut dice = Dice(0x01d);
    for round in 0..if common::full() { 100 } else { 8 } {
        let (base, other) = if round % 2 == 0 {
            (&new, &old)
        } else {
            (&old, &new)
        };
        let _ = fs::remove_dir_all(used.indexes());
        copy(base, &used.indexes());
        // Some of the other day's files replace these or are added.
        for file in fs::read_dir(other.join(&name).join("db")).unwrap() {
            let file = file.unwrap();
            if dice.below(3) == 0 {
                fs::copy(file.path(), used.own().join("db").join(file.file_name())).unwrap();
            }
        }
        used.must_recover(&format!("round {round}")).await;
    }
    // A whole directory of another day is merely behind.
    let _ = fs::remove_dir_all(used.indexes());
    copy(&old, &used.indexes());
    assert!(used.must_recover("the old one").await.is_empty());
}

#[tokio::test]
async fn what_is_no_index_of_this_repository() {
    let mut used = Used::new(4).await;
    // Another repository's, under this one's name.
    let others = tempfile::tempdir().unwrap();
    let mut other = Packs::new(&others.path().join("repo"), 5).await;
    for _ in 0..4 {
        other.put_new(9);
    }
    let session = other.session().await;
    let foreign = others.path().join("indexes");
    drop(
        LocalIndex::open(&session, &foreign, &options(&foreign))
            .await
            .unwrap(),
    );
    session.abandon().await;
    let id = other.repo.config().repository_id.to_string();
    copy(&foreign.join(&id), &used.own());
    let said = used.must_recover("another repository's").await;
    assert!(
        said[0].contains(&id) && said[0].contains("built anew"),
        "{said:?}"
    );
    // The heads of the other one are gone with it.
    used.open(async |_, index| assert_eq!(index.head(b"rs0"), None))
        .await;

    // A directory that RocksDB did not make.
    fs::remove_dir_all(used.indexes()).unwrap();
    fs::create_dir_all(used.own().join("db")).unwrap();
    fs::write(used.own().join("db/CURRENT"), "MANIFEST-000001\n").unwrap();
    fs::write(used.own().join("db/letter"), "Dear Sir").unwrap();
    let said = used.must_recover("a foreign directory").await;
    assert!(said[0].contains("built anew"), "{said:?}");

    // One that somebody marked.
    used.reset();
    fs::write(used.own().join("damaged"), "a reason").unwrap();
    let said = used.must_recover("a mark").await;
    assert!(said[0].contains("a reason"), "{said:?}");
    assert!(!used.own().join("damaged").exists());

    // Left by a load that did not end.
    used.reset();
    fs::create_dir(used.own().join("load")).unwrap();
    fs::write(used.own().join("load/run-0"), "half").unwrap();
    assert!(used.must_recover("half a load").await.is_empty());
    assert!(!used.own().join("load").exists());
}
