//! What the benchmark programs share. The programs are in `src/bin/`; `benches/*.sh` run them.

pub mod ceiling;
pub mod child;
pub mod copies;
pub mod maps;
pub mod mix;
pub mod named;
pub mod packs;
pub mod peers;
pub mod report;
pub mod stored;
pub mod system;
pub mod tables;

/// Errors of benchmarks are read by whoever started one: a sentence is enough.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
