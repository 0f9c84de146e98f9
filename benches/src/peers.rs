//! Other programs that back up, as far as they are installed, each with its default compression into a repository of its
//! own on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::child::run;
use crate::system::size_of;

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Content-defined blocks of 1 MiB on average, zstd.
    Restic,
    /// restic's format, in Rust.
    Rustic,
    /// Content-defined blocks of 2 MiB on average, lz4.
    Borg,
}

impl Program {
    /// All that are known here.
    pub const ALL: [Program; 3] = [Program::Restic, Program::Rustic, Program::Borg];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Restic => "restic",
            Self::Rustic => "rustic",
            Self::Borg => "borg",
        }
    }
}

/// A program with an empty or growing repository.
pub struct Peer {
    /// Which.
    pub program: Program,
    /// What it says its version is.
    pub version: String,
    repo: PathBuf,
    taken: u32,
}

impl Peer {
    /// A new repository below `work`, which is removed when this is dropped; None if the program is not installed.
    ///
    /// # Errors
    /// The program's.
    pub fn new(program: Program, work: &Path) -> Result<Option<Self>> {
        let asked = Command::new(program.name())
            .arg(match program {
                Program::Restic => "version",
                Program::Rustic | Program::Borg => "--version",
            })
            .output();
        let Ok(said) = asked else { return Ok(None) };
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let peer = Self {
            program,
            version: said.split_whitespace().take(2).collect::<Vec<_>>().join(" "),
            repo: work.join(program.name()),
            taken: 0,
        };
        fs::create_dir_all(&peer.repo)?;
        let mut init = peer.command();
        match program {
            Program::Restic | Program::Rustic => init.arg("init"),
            Program::Borg => init.args(["init", "--encryption", "none"]).arg(peer.path()),
        };
        run(&mut init)?;
        Ok(Some(peer))
    }

    /// A backup of a directory; bytes that its repository has grown by.
    ///
    /// # Errors
    /// The program's.
    pub fn back_up(&mut self, dir: &Path) -> Result<u64> {
        let before = size_of(&self.path())?;
        let mut backup = self.command();
        backup.current_dir(dir);
        match self.program {
            Program::Restic | Program::Rustic => backup.args(["backup", "."]),
            Program::Borg => {
                let archive = format!("{}::{}", self.path().display(), self.taken);
                backup.args(["create", &archive, "."])
            }
        };
        run(&mut backup)?;
        self.taken += 1;
        Ok(size_of(&self.path())?.saturating_sub(before))
    }

    fn path(&self) -> PathBuf {
        self.repo.join("repo")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program.name());
        match self.program {
            Program::Restic => command
                .args(["--no-cache", "--quiet", "--repo"])
                .arg(self.path())
                .env("RESTIC_PASSWORD", "benchmark"),
            Program::Rustic => command
                .args([
                    "--no-cache",
                    "--no-progress",
                    "--log-level",
                    "error",
                    "--repository",
                ])
                .arg(self.path())
                .env("RUSTIC_PASSWORD", "benchmark"),
            Program::Borg => command
                .env("BORG_BASE_DIR", self.repo.join("base"))
                .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes"),
        };
        command
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The script removes the whole directory at last.
        let _ = fs::remove_dir_all(&self.repo);
    }
}
