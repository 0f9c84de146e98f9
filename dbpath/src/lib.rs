//! What is inside a MongoDB dbPath: which files belong to a backup, and what kind of file a path is.
//!
//! Pure rules: nothing here opens a file, talks to a server or knows of a repository. Paths are relative to the
//! dbPath, separated by `/`.

pub mod selection;

pub use selection::{JournalPolicy, LeftOutReason, Selection, classify, is_wiredtiger_table};
