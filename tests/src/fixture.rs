//! A small repository to ask for wrong things.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use tempfile::{TempDir, tempdir};

use crate::{cli::PbmFs, tree};

/// A directory with a repository that holds two snapshots of a small directory.
pub struct Fixture {
    /// Where everything is.
    pub place: TempDir,
    /// What was backed up.
    pub source: PathBuf,
    /// With the repository.
    pub pbmfs: PbmFs,
    /// Newest first.
    pub names: Vec<String>,
}

impl Fixture {
    /// Makes it.
    #[track_caller]
    pub fn make() -> Self {
        let place = tempdir().expect("a fixture");
        // For those tests in which another user looks.
        fs::set_permissions(place.path(), Permissions::from_mode(0o755)).expect("a fixture");
        let source = place.path().join("source");
        tree::make(&source, 2, 3).expect("a fixture");
        let pbmfs = PbmFs::init(place.path().join("repo"));
        pbmfs.backup_of(&source);
        pbmfs.backup_of(&source);
        let names = pbmfs.names();
        assert_eq!(names.len(), 2);
        Self {
            place,
            source,
            pbmfs,
            names,
        }
    }

    /// A path beside the others.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Refused, and the repository is as it was, without a lease.
    #[track_caller]
    pub fn refuses(&self, code: i32, args: &[&str], words: &[&str]) {
        let before = self.pbmfs.objects();
        let sentence = self.pbmfs.refuses(code, args);
        says(&sentence, words);
        before.must_equal(&self.pbmfs.objects());
        assert!(self.pbmfs.leases().is_empty());
    }
}

/// A sentence must have these words.
#[track_caller]
pub fn says(sentence: &str, words: &[&str]) {
    for word in words {
        assert!(sentence.contains(word), "not said: \"{word}\" in: {sentence}");
    }
}
