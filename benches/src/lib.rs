//! What the benchmark programs share. The programs are in `src/bin/`; `benches/*.sh` run them.

pub mod ceiling;
pub mod child;
pub mod maps;
pub mod report;
pub mod system;

/// Errors of benchmarks are read by whoever started one: a sentence is enough.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
