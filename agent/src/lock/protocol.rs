//! What parent and guard say to each other: one JSON object a line on the guard's stdin and stdout.

use serde::{Deserialize, Serialize};

use crate::node::server::CommandFailure;
use crate::source::Timestamp;

/// From the parent. The first is `Connect`; stdin's end stands for `Unlock` at any time.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub(crate) enum Order {
    /// Log in and answer [`Report::Ready`]. The connection string comes this way because everybody on the machine
    /// can read a process's arguments, and often its environment.
    Connect {
        uri: String,
        node: String,
        /// Names the lock command in the server's list of operations.
        nonce: String,
    },
    /// Lock and answer [`Report::Locked`].
    Lock,
    /// Unlock, answer [`Report::Unlocked`] and exit.
    Unlock,
}

/// Why a lock is off although nobody here ended it: a server that is told to stop ends it, too.
pub(crate) const UNLOCKED: &str = "it was unlocked: by somebody else, or because the server is stopping";
/// Why a lock is off with its server.
pub(crate) const WENT_AWAY: &str = "the server stopped or crashed";

/// From the guard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "report")]
pub(crate) enum Report {
    /// Connected and logged in.
    Ready {
        /// Hex; see `Hello::process_id`.
        process_id: Option<String>,
    },
    /// The lock is on.
    Locked {
        lock_count: i64,
        operation_time: Option<Timestamp>,
    },
    /// The lock is not on any more, or it may not be: what was read is worthless. The guard goes on to unlock.
    Lost { reason: String },
    /// The server acknowledged our unlock.
    Unlocked { remaining: i64 },
    /// There is nothing left to unlock, and we did not do it.
    NothingToUnlock,
    /// The process that was locked is gone, and its lock with it.
    Gone,
    /// Nothing was locked, because this failed.
    Failed { failure: CommandFailure },
}
