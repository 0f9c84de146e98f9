//! Objects that are not what was written: `check` finds and names them, and nobody ever gets wrong bytes.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use pbmfs_repo::{
    envelope::{self, ObjectKind},
    id::{ListId, PackId, SnapshotName},
    key::ObjectKey,
    objects::{CondemnedList, JsonObject, TombstoneDoc},
};
use pbmfs_tests::{
    Mounted, PbmFs, Tree, campaign,
    cli::{Ran, text},
    damage, tree,
};
use tempfile::{TempDir, tempdir};

/// A repository with two or more objects of each kind that `check` is to know.
struct Repo {
    place: TempDir,
    source: PathBuf,
    pbmfs: PbmFs,
}

impl Repo {
    fn new() -> Self {
        let place = tempdir().unwrap();
        let source = place.path().join("source");
        tree::make(&source, 6, 5).unwrap();
        let pbmfs = PbmFs::on(place.path().join("repo"));
        pbmfs.ok(&["init", "--pack-size", "1MiB"]);
        pbmfs.backup_of(&source);
        fs::write(source.join("new.wt"), "something new").unwrap();
        pbmfs.backup_of(&source);
        let this = Self { place, source, pbmfs };
        this.add_what_gc_writes();
        this.pbmfs.check();
        this
    }

    fn root(&self) -> &Path {
        self.pbmfs.repo()
    }

    fn put(&self, key: &ObjectKey, object: &Bytes) {
        damage::put(self.root(), key.as_str(), object).unwrap();
    }

    fn add_what_gc_writes(&self) {
        for number in [1, 2] {
            let list = CondemnedList {
                packs: vec![PackId([number; 32])],
            };
            let id = ListId([number; 16]);
            self.put(&ObjectKey::condemned(&id), &list.to_object(&id));
            let moment = jiff::Timestamp::from_second(1_700_000_000 + i64::from(number)).unwrap();
            let key = ObjectKey::snapshot(&SnapshotName::at(moment));
            let tombstone = TombstoneDoc {
                why: "deleted".into(),
                lease: None,
                at: moment,
            };
            self.put(&key, &tombstone.to_object(&key));
        }
    }

    fn objects(&self, kind: ObjectKind) -> Vec<PathBuf> {
        damage::objects(self.root(), kind).unwrap()
    }

    fn key<'a>(&self, object: &'a Path) -> &'a str {
        text(object.strip_prefix(self.root()).unwrap())
    }

    /// `check` must find this object, and name it; the structure alone has to do unless `deep` is wanted.
    #[track_caller]
    fn must_be_found(&self, what: &str, object: &Path, deep: bool) {
        let key = self.key(object);
        let names_it = |ran: &Ran| {
            assert_eq!(ran.code, Some(6), "{what} {key}: {ran}");
            // A pack is named by its id.
            let name = if key.starts_with("packs/") {
                key.rsplit('/').next().unwrap()
            } else {
                key
            };
            let said = format!("{}{}", ran.stdout, ran.stderr);
            assert!(said.contains(name), "{what}: {name} is not named: {ran}");
        };
        if !deep {
            names_it(&self.pbmfs.run(&["-q", "check"]));
        }
        names_it(&self.pbmfs.run(&["-q", "-o", "json", "check", "--read-data"]));
    }

    /// Does something to an object, asks, and puts it right again.
    #[track_caller]
    fn spoil(&self, what: &str, object: &Path, deep: bool, how: impl FnOnce(&Path)) {
        let saved = fs::read(object).unwrap();
        how(object);
        self.must_be_found(what, object, deep);
        fs::write(object, saved).unwrap();
    }
}

const KINDS: [ObjectKind; 5] = [
    ObjectKind::DataPack,
    ObjectKind::MapPack,
    ObjectKind::Snapshot,
    ObjectKind::Tombstone,
    ObjectKind::Condemned,
];

#[test]
fn an_object_that_is_cut_off_or_gone_or_another_is_found_and_named() {
    let repo = Repo::new();
    for kind in KINDS {
        let objects = repo.objects(kind);
        let [one, other, ..] = &objects[..] else {
            panic!("two objects of kind {kind:?}");
        };
        let length = fs::metadata(one).unwrap().len();
        for left in [0, 1, 95, length / 2, length - 1] {
            repo.spoil("cut off", one, false, |path| {
                damage::truncate(path, left).unwrap()
            });
        }
        repo.spoil("longer", one, false, |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes.extend_from_slice(b"tail");
            fs::write(path, bytes).unwrap();
        });
        if kind.is_pack() {
            repo.spoil("missing", one, false, |path| fs::remove_file(path).unwrap());
        }
        damage::swap(one, other).unwrap();
        repo.must_be_found("swapped", one, false);
        repo.must_be_found("swapped", other, false);
        damage::swap(one, other).unwrap();
    }
    // A tombstone in a snapshot's place is a deletion only if it was written there.
    let (snapshot, tombstone) = (
        &repo.objects(ObjectKind::Snapshot)[0],
        &repo.objects(ObjectKind::Tombstone)[0],
    );
    repo.spoil("a tombstone of another", snapshot, false, |path| {
        fs::copy(tombstone, path).unwrap();
    });
    repo.pbmfs.check();
}

#[test]
fn repo_json_is_looked_at_first() {
    let repo = Repo::new();
    let path = repo.root().join("repo.json");
    let saved = fs::read(&path).unwrap();
    for bit in [8 * 60, 8 * 70, 8 * 100, 8 * (saved.len() as u64 - 1)] {
        damage::flip_bit(&path, bit).unwrap();
        let sentence = repo.pbmfs.refuses(6, &["check"]);
        assert!(sentence.contains("repo.json"), "{sentence}");
        assert_eq!(repo.pbmfs.refuses(6, &["list"]), sentence);
        fs::write(&path, &saved).unwrap();
    }
    damage::truncate(&path, 100).unwrap();
    let target = repo.place.path().join("target");
    let sentence = repo
        .pbmfs
        .refuses(6, &["restore", "latest", "--target", text(&target)]);
    assert!(
        sentence.contains("repo.json") && sentence.contains("truncated"),
        "{sentence}"
    );
    fs::remove_file(&path).unwrap();
    repo.pbmfs.refuses(4, &["check"]);
    fs::write(&path, saved).unwrap();
    repo.pbmfs.check();
}

/// Any bit of any object. Either it is found, or it does not matter: a zstd frame has bits that mean nothing, and a block
/// is proven by what comes out of it.
#[test]
fn no_bit_can_be_turned_without_notice() {
    let repo = Repo::new();
    let mut prng = campaign::prng("turned bits");
    let objects: Vec<_> = KINDS.iter().map(|kind| repo.objects(*kind)).collect();
    let wanted = Tree::read(&repo.source).unwrap();
    let mut meaningless = 0;
    for run in 0..campaign::runs(30, 1_000) {
        let of_kind = &objects[(run % KINDS.len() as u64) as usize];
        let object = &of_kind[prng.below(of_kind.len() as u64) as usize];
        // As often in headers and trailers as in what lies between.
        let bits = fs::metadata(object).unwrap().len() * 8;
        let bit = match prng.below(3) {
            0 => prng.below(bits.min(8 * 250)),
            1 => bits - 1 - prng.below(bits.min(8 * 250)),
            _ => prng.below(bits),
        };
        // A version or a feature of the future is no damage, and refused all the same.
        let future = [8..10, 11..12, 14..16]
            .iter()
            .any(|bytes| bytes.contains(&(bit / 8)));
        if future {
            continue;
        }
        let saved = fs::read(object).unwrap();
        damage::flip_bit(object, bit).unwrap();
        // Of a pack all blocks are read by --read-data alone; the structure is those nodes that a snapshot leads to.
        let in_pack = objects[..2].concat().contains(object);
        if in_pack && repo.pbmfs.run(&["-q", "check", "--read-data"]).code == Some(0) {
            meaningless += 1;
            let target = repo.place.path().join(format!("target-{run}"));
            repo.pbmfs
                .ok(&["-q", "restore", "latest", "--target", text(&target)]);
            wanted.must_equal(&Tree::read(&target).unwrap());
            fs::remove_dir_all(&target).unwrap();
        } else {
            repo.must_be_found(&format!("bit {bit} turned"), object, in_pack);
        }
        fs::write(object, saved).unwrap();
    }
    // Three in a hundred are many already.
    assert!(meaningless <= 2 + campaign::runs(30, 1_000) / 20, "{meaningless}");
    eprintln!("{meaningless} bits meant nothing");
    repo.pbmfs.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_block_is_an_error_where_it_is_and_nowhere_else() {
    let place = tempdir().unwrap();
    let source = place.path().join("source");
    tree::make(&source, 8, 6).unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    pbmfs.backup_of(&source);
    let file = "collection-3.wt";
    let bytes = fs::read(source.join(file)).unwrap();
    let middle = bytes.len() as u64 / 2;
    let block = damage::find_block(pbmfs.repo(), file, middle).await.unwrap();
    assert!(block.range.contains(&middle) && block.range.start > 0 && block.range.end < bytes.len() as u64);
    let bit = (block.stored.start + block.stored.end) / 2 * 8 + 3;
    damage::flip_bit(&block.object, bit).unwrap();

    // The mount.
    let mounted = Mounted::new(&pbmfs, "latest", &place.path().join("point"));
    let dbpath = mounted.dbpath("standalone");
    let step = 4096;
    for offset in (0..bytes.len() as u64).step_by(step) {
        let end = (offset + step as u64).min(bytes.len() as u64);
        let mut read = vec![0; (end - offset) as usize];
        let outcome = File::open(dbpath.join(file))
            .unwrap()
            .read_exact_at(&mut read, offset);
        if offset < block.range.end && block.range.start < end {
            assert_eq!(outcome.unwrap_err().raw_os_error(), Some(5), "EIO at {offset}");
        } else {
            outcome.unwrap_or_else(|e| panic!("at {offset}, beside {:?}: {e}", block.range));
            assert_eq!(read, bytes[offset as usize..end as usize], "at {offset}");
        }
    }
    assert_eq!(fs::read(dbpath.join(file)).unwrap_err().raw_os_error(), Some(5));
    let others = |tree: Tree| tree.only(|path| path != file);
    let rest = |root: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let names = others(Tree::read(&source).unwrap()).files();
        names
            .paths()
            .map(|path| (path.into(), fs::read(root.join(path)).unwrap()))
            .collect()
    };
    assert!(rest(&source) == rest(&dbpath), "all other files can be read");
    let log = mounted.stderr();
    for word in [
        format!("standalone/dbpath/{file}"),
        block.range.start.to_string(),
        block.block.clone(),
        block.pack.clone(),
    ] {
        assert!(log.contains(&word), "the mount's log does not say {word}: {log}");
    }
    mounted.unmount();

    // The check.
    pbmfs.ok(&["-q", "check"]);
    for args in [
        &["-q", "check", "--read-data"] as &[&str],
        &["-q", "-o", "json", "check", "--read-data"],
    ] {
        let ran = pbmfs.run(args);
        assert_eq!(ran.code, Some(6), "{ran}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        for word in [file, &block.range.start.to_string(), &block.block, &block.pack] {
            assert!(said.contains(word), "not said: {word}: {ran}");
        }
    }

    // The restore.
    let target = place.path().join("target");
    let sentence = pbmfs
        .run(&["-q", "restore", "latest", "--target", text(&target)])
        .sentence(6);
    for word in [file, &block.range.start.to_string(), &block.pack] {
        assert!(sentence.contains(word), "not said: {word}: {sentence}");
    }
    assert!(!target.exists());

    // Put right, it goes on.
    damage::flip_bit(&block.object, bit).unwrap();
    pbmfs.ok(&["-q", "restore", "latest", "--target", text(&target)]);
    Tree::read(&source)
        .unwrap()
        .must_equal(&Tree::read(&target).unwrap());
    pbmfs.check();
}

/// A pack that is gone takes what is in it, and no more; a backup stores it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_pack_is_said_and_stored_again() {
    let repo = Repo::new();
    let block = damage::find_block(repo.root(), "collection-0.wt", 0)
        .await
        .unwrap();
    fs::remove_file(&block.object).unwrap();
    let target = repo.place.path().join("target");
    let sentence = repo
        .pbmfs
        .run(&["-q", "restore", "latest", "--target", text(&target)])
        .sentence(6);
    assert!(
        sentence.contains(&block.pack) && sentence.contains("missing"),
        "{sentence}"
    );
    assert!(!target.exists());

    // Other snapshots do not make a new one worse: what is not there is stored, not referred to.
    repo.pbmfs.backup_of(&repo.source);
    let other = repo.place.path().join("other");
    repo.pbmfs
        .ok(&["-q", "restore", "latest", "--target", text(&other)]);
    Tree::read(&repo.source)
        .unwrap()
        .must_equal(&Tree::read(&other).unwrap());
}

#[test]
fn a_wrong_kind_of_object_is_found() {
    let repo = Repo::new();
    let lists = repo.objects(ObjectKind::Condemned);
    let key = repo.key(&lists[0]).to_owned();
    let parsed = ObjectKey::parse(&key).unwrap();
    repo.spoil("a beat in its place", &lists[0], false, |path| {
        let object = envelope::encode(ObjectKind::Beat, &parsed, b"{\"counter\": 1}");
        fs::write(path, object).unwrap();
    });
}
