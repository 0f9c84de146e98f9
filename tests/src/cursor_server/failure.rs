//! The errors that a server with `$backupCursor` answers, by their codes.

use mongodb::bson::{Document, doc};

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The server's code.
    pub code: i32,
    message: String,
}

/// A checkpoint came while the cursor was being opened.
pub const CHECKPOINT_CONFLICT: i32 = 50_915;
/// The oplog rolled over while the cursor was being opened.
pub const OPLOG_ROLLED_OVER: i32 = 50_917;
/// To an open: there is a cursor. To an extend: there is none.
pub const CURSOR_OPEN: i32 = 50_886;
/// The server is locked.
pub const LOCKED: i32 = 50_887;
/// To `fsyncLock`: there is a cursor.
pub const NO_LOCK_BESIDE_CURSOR: i32 = 50_884;
/// The extend is for another backup.
pub const OTHER_BACKUP: i32 = 29_094;
/// There is nothing to extend to without a replica set.
pub const NO_REPLICATION: i32 = 29_144;
/// A getMore on a cursor that is closed.
pub const CURSOR_NOT_FOUND: i32 = 43;
/// A getMore on a cursor that is busy with another one.
pub const CURSOR_IN_USE: i32 = 12_051;
/// `maxTimeMS` is over.
pub const TIME_LIMIT: i32 = 50;
/// Not logged in, or not allowed.
pub const UNAUTHORIZED: i32 = 13;
/// WiredTiger's EINVAL: `thisBackupName` is known already.
pub const BAD_VALUE: i32 = 2;
/// WiredTiger's ENOENT: `srcBackupName` is not known.
pub const UNKNOWN_ERROR: i32 = 8;
/// An option that the stage does not have.
pub const FAILED_TO_PARSE: i32 = 9;
/// An option of the wrong type.
pub const TYPE_MISMATCH: i32 = 14;
/// Options that do not go together.
pub const INVALID_OPTIONS: i32 = 72;
/// The cursor was closed while it was extended.
pub const INTERRUPTED: i32 = 11_601;
/// The cursor server itself failed.
pub const INTERNAL: i32 = 1;

impl Failure {
    pub(super) fn new(code: i32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// What a server says with this code, where the text does not depend on anything.
    pub(super) fn usual(code: i32) -> Self {
        let message = match code {
            CHECKPOINT_CONFLICT => "A checkpoint took place while opening a backup cursor.",
            OPLOG_ROLLED_OVER => "Oplog rolled over while establishing the backup cursor.",
            CURSOR_OPEN => "The existing backup cursor must be closed before $backupCursor can succeed.",
            LOCKED => "The node is currently fsyncLocked.",
            NO_LOCK_BESIDE_CURSOR => {
                "The existing backup cursor must be closed before fsyncLock can succeed."
            }
            OTHER_BACKUP => "backupId provided to $backupCursorExtend does not match active backup",
            NO_REPLICATION => "Cannot extend backup cursor when replication is not enabled",
            CURSOR_IN_USE => "cursor already in use",
            TIME_LIMIT => "operation exceeded time limit",
            INTERRUPTED => "operation was interrupted",
            // What PBM looks for.
            UNKNOWN_ERROR => "2: No such file or directory",
            BAD_VALUE => "22: Invalid argument",
            _ => "injected",
        };
        Self::new(code, message)
    }

    pub(super) fn cursor_not_found(id: i64) -> Self {
        Self::new(CURSOR_NOT_FOUND, format!("cursor id {id} not found"))
    }

    pub(super) fn to_reply(&self) -> Document {
        let name = match self.code {
            BAD_VALUE => "BadValue".to_owned(),
            UNKNOWN_ERROR => "UnknownError".to_owned(),
            FAILED_TO_PARSE => "FailedToParse".to_owned(),
            UNAUTHORIZED => "Unauthorized".to_owned(),
            TYPE_MISMATCH => "TypeMismatch".to_owned(),
            CURSOR_NOT_FOUND => "CursorNotFound".to_owned(),
            TIME_LIMIT => "MaxTimeMSExpired".to_owned(),
            INVALID_OPTIONS => "InvalidOptions".to_owned(),
            INTERRUPTED => "Interrupted".to_owned(),
            INTERNAL => "InternalError".to_owned(),
            CURSOR_IN_USE => "CursorInUse".to_owned(),
            24 => "LockTimeout".to_owned(),
            91 => "ShutdownInProgress".to_owned(),
            189 => "PrimarySteppedDown".to_owned(),
            10_107 => "NotWritablePrimary".to_owned(),
            11_600 => "InterruptedAtShutdown".to_owned(),
            11_602 => "InterruptedDueToReplStateChange".to_owned(),
            13_436 => "NotPrimaryOrSecondary".to_owned(),
            code => format!("Location{code}"),
        };
        doc! {"ok": 0.0, "errmsg": &self.message, "code": self.code, "codeName": name}
    }
}
