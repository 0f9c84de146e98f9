//! The table that a benchmark prints, and its JSON.

use std::io::{self, Write};
use std::path::Path;

use serde::{Serialize, Serializer};

use crate::system::System;

/// What a ratio should reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reach {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// No further from 1 than this.
    Near(f64),
}

impl Reach {
    fn met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
            Self::Near(off) => (ratio - 1.0).abs() <= off,
        }
    }
}

impl std::fmt::Display for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {least:.2}"),
            Self::AtMost(most) => write!(f, "<= {most:.2}"),
            Self::Near(off) => write!(f, "{:.2} to {:.2}", 1.0 - off, 1.0 + off),
        }
    }
}

impl Serialize for Reach {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// One row.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it is compared with, and that one's figure.
    pub against: Option<String>,
    /// The figure as a share of that.
    pub ratio: Option<f64>,
    /// What the ratio should be.
    pub reach: Option<Reach>,
    /// Whether it is.
    pub met: Option<bool>,
}

impl Row {
    /// A figure by itself.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            against: None,
            ratio: None,
            reach: None,
            met: None,
        }
    }

    /// Compares it with a figure of the same unit.
    #[must_use]
    pub fn against(mut self, what: &str, value: f64) -> Self {
        self.against = Some(format!("{what}: {} {}", number(value), self.unit));
        self.ratio = Some(self.value / value);
        self
    }

    /// What the ratio should be.
    #[must_use]
    pub fn reach(mut self, reach: Reach) -> Self {
        self.reach = Some(reach);
        self.met = self.ratio.map(|ratio| reach.met(ratio));
        self
    }
}

/// All of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where and with what it ran.
    #[serde(flatten)]
    pub system: System,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Report {
    /// Prints the table, in Markdown, so that it can be put into `docs/benchmarks.md` as it is.
    ///
    /// # Errors
    /// The output's.
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        self.system.print(out)?;
        let header = ["what", "figure", "against", "ratio", "reach", "met"].map(String::from);
        let mut lines = vec![header];
        let text = |value: Option<String>| value.unwrap_or_default();
        for row in &self.rows {
            lines.push([
                row.name.clone(),
                format!("{} {}", number(row.value), row.unit),
                text(row.against.clone()),
                text(row.ratio.map(share)),
                text(row.reach.map(|reach| reach.to_string())),
                text(row.met.map(|met| if met { "yes" } else { "no" }.into())),
            ]);
        }
        let width = |column: usize| {
            lines
                .iter()
                .map(|l| l[column].chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..6).map(width).collect();
        for (at, line) in lines.iter().enumerate() {
            for (cell, width) in line.iter().zip(&widths) {
                write!(out, "| {cell:width$} ")?;
            }
            writeln!(out, "|")?;
            if at == 0 {
                for width in &widths {
                    write!(out, "|{:-<1$}", "", width + 2)?;
                }
                writeln!(out, "|")?;
            }
        }
        Ok(())
    }

    /// Writes the JSON.
    ///
    /// # Errors
    /// The file's.
    pub fn write_json(&self, path: &Path) -> crate::Result<()> {
        std::fs::write(path, serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

/// Two digits behind the point, more for a small share.
fn share(ratio: f64) -> String {
    let digits = if ratio.abs() < 0.095 { 4 } else { 2 };
    format!("{ratio:.digits$}")
}

/// Three significant digits, more only where they are whole.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}
