//! What is inside a MongoDB dbPath: which files belong to a backup, what kind of file a path is, and where the blocks of
//! a WiredTiger table begin.
//!
//! Pure rules: nothing here opens a file, talks to a server or knows of a repository. Paths are relative to the
//! dbPath, separated by `/`.

pub mod blocks;
pub mod selection;

pub use blocks::TableCutter;
pub use selection::{JournalPolicy, LeftOutReason, Selection, classify, is_journal, is_wiredtiger_table};
