//! The test rig: real mongods, data with a fixed seed, writers whose every write is accounted for, and the
//! comparison of what two servers hold.
//!
//! A test asks for a server in a directory of its own and gets one that answers:
//!
//! ```no_run
//! # async fn example() -> pbmfs_tests::Result<()> {
//! use pbmfs_tests::{DataSpec, ReplSet, ReplSetOptions, data, compare};
//!
//! let place = tempfile::tempdir().expect("a temporary directory");
//! let set = ReplSet::start(place.path(), ReplSetOptions::single("rs0")).await?;
//! let client = set.client().await?;
//! data::load(&client, &DataSpec::megabytes(20)).await?;
//! let before = compare::digest(&client).await?;
//! # let _ = before;
//! # Ok(())
//! # }
//! ```
//!
//! **The binary.** `scripts/get-mongod.sh` finds or fetches it, once per process; `PBMFS_MONGOD` names one directly
//! and `PBMFS_MONGOD_VERSION` asks the script for 4.4, 5.0 or 6.0 (see [`binary`]).
//!
//! **Nothing is left behind.** A [`Mongod`] kills its child when it is dropped, and the kernel kills the child when the
//! test process dies in any other way, `kill -9` included (see [`process`]).
//!
//! **The program** is run by [`cli::PbmFs`], which knows what an error has to look like; [`mounted::Mounted`] is a mount
//! that works, and [`tree::Tree`] is what two directories are compared by.
//!
//! **Ports** are leased for as long as a [`Mongod`] lives, across all test processes of a user, so a stopped member of
//! a set finds its port free when it is started again (see [`port`]).

pub mod binary;
pub mod campaign;
pub mod chain;
pub mod churn;
pub mod cli;
pub mod compare;
pub mod cursor_server;
pub mod damage;
pub mod data;
pub mod error;
pub mod fixture;
pub mod mongod;
pub mod mounted;
pub mod port;
pub mod prng;
pub mod process;
pub mod replset;
pub mod restore_steps;
pub mod snapshot;
pub mod tree;
pub mod writer;
pub mod wt_oracle;

pub use binary::{MongodBinary, pbmfs_bin};
pub use cli::PbmFs;
pub use compare::Digest;
pub use cursor_server::{CursorServer, CursorServerOptions};
pub use data::DataSpec;
pub use error::{Result, RigError};
pub use mongod::{Mongod, MongodOptions};
pub use mounted::Mounted;
pub use replset::{ReplSet, ReplSetOptions};
pub use tree::Tree;
pub use writer::{WriterOptions, Writers};
