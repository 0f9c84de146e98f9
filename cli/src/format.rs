//! Sizes, times and tables as people read them, and the one place that writes to stdout and stderr.

use std::io::{self, Write};

use pbmfs_repo::local_index::LEAST_MEMORY;
use serde::Serialize;

use crate::exit::{Failure, Kind};

/// Units, decimal and binary.
const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("TIB", 1 << 40),
];

/// Reads a size such as `512MiB`, `2GB`, `64M` (binary, as for restic) or `1048576`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("\"{text}\" is not a size such as 512MiB or 2GB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let mut unit = text[digits..].trim().to_ascii_uppercase();
    if matches!(unit.as_str(), "K" | "M" | "G" | "T") {
        unit.push_str("IB");
    }
    let unit = if unit == "B" { String::new() } else { unit };
    let factor = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, f)| *f)
        .ok_or_else(bad)?;
    number.checked_mul(factor).filter(|n| *n > 0).ok_or_else(bad)
}

/// Reads the size of a pack.
pub fn parse_pack_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if (1 << 20..=pbmfs_repo::ingest::MAX_PACK_SIZE).contains(&size) {
        Ok(size)
    } else {
        Err("a pack has 1 to 64 MiB".into())
    }
}

/// Reads the memory of a local index.
pub fn parse_index_memory(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if size >= LEAST_MEMORY {
        Ok(size)
    } else {
        Err(format!("an index needs {} MiB at least", LEAST_MEMORY >> 20))
    }
}

/// A number of things: `1 pack`, `2 packs`.
pub fn count(number: u64, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}

/// Reads `host:port`, or a host.
pub fn parse_node(text: &str) -> Result<String, String> {
    let sound = !text.is_empty()
        && !text.contains(|c: char| c.is_whitespace() || c.is_control() || "/,@?".contains(c));
    if sound {
        Ok(text.to_owned())
    } else {
        Err("it is not host:port".to_owned())
    }
}

/// A size with two digits behind the point, in decimal units, as PBM prints it: `139.82MB`.
pub fn size(bytes: u64) -> String {
    let (name, factor) = UNITS[..5]
        .iter()
        .rev()
        .find(|(_, f)| bytes >= *f)
        .copied()
        .unwrap_or(("B", 1));
    if factor == 1 {
        format!("{bytes}B")
    } else {
        format!("{:.2}{name}", bytes as f64 / factor as f64)
    }
}

/// A duration: `850ms`, `12.3s`, `4m05s`, `2h03m`.
pub fn duration(millis: u64) -> String {
    match millis {
        0..1000 => format!("{millis}ms"),
        1000..60_000 => format!("{:.1}s", millis as f64 / 1000.0),
        60_000..3_600_000 => format!("{}m{:02}s", millis / 60_000, millis / 1000 % 60),
        _ => format!("{}h{:02}m", millis / 3_600_000, millis / 60_000 % 60),
    }
}

/// Bytes a second.
pub fn rate(bytes: u64, millis: u64) -> String {
    format!(
        "{}/s",
        size((bytes as f64 * 1000.0 / millis.max(1) as f64) as u64)
    )
}

/// Writes a line to stderr. `eprintln!` panics when nobody reads it or the disk of a log is full, and no backup may
/// fail because of that.
pub fn note(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// Writes a line to stdout. A reader that went away, such as `head`, is no failure.
pub fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    written(writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush()))
}

/// Writes one JSON document to stdout.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::new(Kind::Error, e.to_string()))?;
    line(text)
}

/// Writes bytes to stdout.
pub fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    written(out.write_all(bytes).and_then(|()| out.flush()))
}

fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            Kind::Error,
            format!("cannot write to standard output: {e}"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("2GB"), Ok(2_000_000_000));
        assert_eq!(parse_size("64m"), Ok(64 << 20));
        assert_eq!(parse_size("100"), Ok(100));
        assert_eq!(parse_size("7 kb"), Ok(7000));
        for bad in ["", "x", "-1", "1.5GB", "0", "99999999999TiB", "5XB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(size(139_820_000), "139.82MB");
        assert_eq!(size(999), "999B");
        assert_eq!(duration(61_000), "1m01s");
    }
}
