//! What can go wrong in the rig. A test prints these and fails, so each says what was being done and to which server.

use std::{fmt::Display, path::PathBuf, time::Duration};

/// The rig's result.
pub type Result<T, E = RigError> = std::result::Result<T, E>;

/// A failure of the rig or of a server that it runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RigError {
    /// The machine lacks something that the rig needs: install it.
    #[error("the rig needs something that is not here: {0}")]
    Missing(String),
    /// A mongod ended when it should have run, or with an exit code that is not 0. The log's last lines are included.
    #[error("mongod on {} {what}\n{log}", dbpath.display())]
    Mongod {
        /// Its data directory.
        dbpath: PathBuf,
        /// What it did.
        what: String,
        /// The last lines of its log and of its standard error.
        log: String,
    },
    /// Something that should have come about did not.
    #[error("waited {} s in vain: {what}", after.as_secs())]
    Timeout {
        /// What was waited for, and the last state seen.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// A command failed on a server.
    #[error("{doing}: {source}")]
    Mongo {
        /// What was being done.
        doing: String,
        /// The driver's error.
        source: Box<mongodb::error::Error>,
    },
    /// An operation on files or processes failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A server's reply, or what it holds, is not what it has to be.
    #[error("{0}")]
    Check(String),
}

impl RigError {
    /// The server's error code, where a command failed with one: 20, 40324, ….
    pub fn code(&self) -> Option<i32> {
        match self {
            RigError::Mongo { source, .. } => match source.kind.as_ref() {
                mongodb::error::ErrorKind::Command(error) => Some(error.code),
                mongodb::error::ErrorKind::Write(mongodb::error::WriteFailure::WriteError(error)) => {
                    Some(error.code)
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// Says what was being done when an error came up.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl Display) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, mongodb::error::Error> {
    fn doing(self, what: impl Display) -> Result<T> {
        self.map_err(|source| RigError::Mongo {
            doing: what.to_string(),
            source: Box::new(source),
        })
    }
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, what: impl Display) -> Result<T> {
        self.map_err(|source| RigError::Io {
            doing: what.to_string(),
            source,
        })
    }
}

impl<T> Doing<T> for std::result::Result<T, mongodb::bson::raw::Error> {
    fn doing(self, what: impl Display) -> Result<T> {
        self.map_err(|source| RigError::Check(format!("{what}: {source}")))
    }
}

impl<T> Doing<T> for std::result::Result<T, mongodb::bson::document::ValueAccessError> {
    fn doing(self, what: impl Display) -> Result<T> {
        self.map_err(|source| RigError::Check(format!("{what}: {source}")))
    }
}
