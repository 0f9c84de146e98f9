//! Exit codes, and errors as people and scripts see them.

use pbmfs_agent::ErrorKind as SourceKind;
use pbmfs_agent::SourceError;
use pbmfs_agent::backup::BackupError;
use pbmfs_agent::restore::RestoreError;
use pbmfs_fusefs::{MountError, MountErrorKind};
use pbmfs_repo::{ErrorKind as RepoKind, RepoError};
use serde::Serialize;

use crate::args::OutputFormat;
use crate::format::note;

/// All is well.
pub const DONE: u8 = 0;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// What `check` returns when it found damage.
pub const DAMAGED: u8 = Kind::Damaged.code();

/// What a command came to, when it could do its work.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    /// All is well.
    Done,
    /// The work was done, and its result is this exit code.
    Failed(u8),
}

/// What the user has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Error,
    Usage,
    Cancelled,
    NotFound,
    Busy,
    Damaged,
    Auth,
    Unsupported,
}

impl Kind {
    /// The exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Error => 1,
            Self::Usage => 2,
            Self::Cancelled => 3,
            Self::NotFound => 4,
            Self::Busy => 5,
            Self::Damaged => 6,
            Self::Auth => 7,
            Self::Unsupported => 8,
        }
    }
}

/// Why a command could not do its work.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    message: String,
}

#[derive(Serialize)]
struct JsonError<'a> {
    error: JsonErrorBody<'a>,
}

#[derive(Serialize)]
struct JsonErrorBody<'a> {
    kind: Kind,
    message: &'a str,
    exit_code: u8,
}

impl Failure {
    /// A failure of some kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// Wrong arguments.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        self.kind.code()
    }

    /// One sentence on stderr, or one line of JSON there.
    pub fn print(&self, format: OutputFormat) {
        match format {
            OutputFormat::Text => note(format!("pbm-fs: {}", self.message)),
            OutputFormat::Json => {
                let body = JsonErrorBody {
                    kind: self.kind,
                    message: &self.message,
                    exit_code: self.code(),
                };
                note(serde_json::to_string(&JsonError { error: body }).unwrap_or_default());
            }
        }
    }
}

impl From<RepoError> for Failure {
    fn from(e: RepoError) -> Self {
        Self::new(repo_kind(e.kind()), e.to_string())
    }
}

/// The exit code of a repository's error.
pub fn repo_kind(kind: RepoKind) -> Kind {
    match kind {
        RepoKind::Usage => Kind::Usage,
        RepoKind::NotFound => Kind::NotFound,
        RepoKind::Busy => Kind::Busy,
        RepoKind::Damaged => Kind::Damaged,
        RepoKind::Unsupported => Kind::Unsupported,
        RepoKind::Cancelled => Kind::Cancelled,
        _ => Kind::Error,
    }
}

impl From<SourceError> for Failure {
    fn from(e: SourceError) -> Self {
        let kind = match e.kind() {
            SourceKind::Usage => Kind::Usage,
            SourceKind::NotFound => Kind::NotFound,
            SourceKind::Busy => Kind::Busy,
            SourceKind::Auth => Kind::Auth,
            SourceKind::Unsupported => Kind::Unsupported,
            SourceKind::Cancelled => Kind::Cancelled,
            _ => Kind::Error,
        };
        Self::new(kind, e.to_string())
    }
}

impl From<BackupError> for Failure {
    fn from(e: BackupError) -> Self {
        match e {
            BackupError::Source(e) => e.into(),
            BackupError::Repo(e) => e.into(),
            other => Self::usage(other.to_string()),
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(e: RestoreError) -> Self {
        Self::new(repo_kind(e.kind()), e.to_string())
    }
}

impl From<MountError> for Failure {
    fn from(e: MountError) -> Self {
        let kind = match e.kind() {
            MountErrorKind::Usage => Kind::Usage,
            MountErrorKind::NotFound => Kind::NotFound,
            MountErrorKind::Busy => Kind::Busy,
            MountErrorKind::Damaged => Kind::Damaged,
            MountErrorKind::Unsupported => Kind::Unsupported,
            _ => Kind::Error,
        };
        Self::new(kind, e.to_string())
    }
}
