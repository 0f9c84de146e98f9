//! Progress: a bar with rate and ETA on a terminal, a plain line now and then elsewhere, nothing if asked.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{Global, OutputFormat};
use crate::format;

/// How often a plain line is written.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Shows how far a long work is.
pub struct Meter {
    bar: Option<ProgressBar>,
    plain: Option<Mutex<Plain>>,
    done: AtomicU64,
    stored: AtomicU64,
}

struct Plain {
    what: String,
    total: u64,
    unit: Unit,
    began: Instant,
    last: Instant,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Items,
}

impl Meter {
    /// A meter as the command line wants it.
    pub fn new(global: &Global) -> Self {
        let silent = global.quiet;
        let terminal = std::io::stderr().is_terminal() && global.output == OutputFormat::Text;
        let bar = (terminal && !silent).then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
            bar.set_style(style("{spinner} {msg}"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let now = Instant::now();
        let plain = (!terminal && !silent && global.output == OutputFormat::Text).then(|| {
            Mutex::new(Plain {
                what: String::new(),
                total: 0,
                unit: Unit::Bytes,
                began: now,
                last: now,
            })
        });
        Self {
            bar,
            plain,
            done: AtomicU64::new(0),
            stored: AtomicU64::new(0),
        }
    }

    /// A step of unknown length begins.
    pub fn step(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_style(style("{spinner} {msg}"));
            bar.set_message(what.to_owned());
        }
        if self.plain.is_some() {
            format::note(what);
        }
    }

    /// A step of so many bytes begins.
    pub fn bytes(&self, what: &str, total: u64) {
        self.counted(what, total, Unit::Bytes);
    }

    /// A step of so many things begins.
    pub fn items(&self, what: &str, total: u64) {
        self.counted(what, total, Unit::Items);
    }

    fn counted(&self, what: &str, total: u64, unit: Unit) {
        self.done.store(0, Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_style(style(match unit {
                Unit::Bytes => "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} ETA {eta}",
                Unit::Items => "{msg} {wide_bar} {pos}/{len} ETA {eta}",
            }));
            bar.set_length(total);
            bar.set_position(0);
            bar.reset_eta();
            bar.set_message(what.to_owned());
        }
        if let Some(plain) = &self.plain {
            format::note(format!("{what}: {}", unit.text(total)));
            let now = Instant::now();
            *plain.lock().unwrap_or_else(PoisonError::into_inner) = Plain {
                what: what.to_owned(),
                total,
                unit,
                began: now,
                last: now,
            };
        }
    }

    /// So many more bytes or things are done.
    pub fn advance(&self, by: u64) {
        let done = self.done.fetch_add(by, Relaxed) + by;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        let Some(plain) = &self.plain else { return };
        let Ok(mut plain) = plain.try_lock() else { return };
        if plain.last.elapsed() >= PLAIN_EVERY {
            plain.last = Instant::now();
            let millis = plain.began.elapsed().as_millis() as u64;
            let left = plain.total.saturating_sub(done) as f64 / (done.max(1) as f64 / millis.max(1) as f64);
            let percent = done * 100 / plain.total.max(1);
            let (what, eta) = (&plain.what, format::duration(left as u64));
            let (size, total) = (plain.unit.text(done), plain.unit.text(plain.total));
            let rate = match plain.unit {
                Unit::Bytes => format!(" {},", format::rate(done, millis)),
                Unit::Items => String::new(),
            };
            format::note(format!("{what}: {percent} %, {size} of {total},{rate} ETA {eta}"));
        }
    }

    /// So many more bytes were added to the repository.
    pub fn add_stored(&self, bytes: u64) {
        self.stored.fetch_add(bytes, Relaxed);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Unit {
    fn text(self, count: u64) -> String {
        match self {
            Self::Bytes => format::size(count),
            Self::Items => count.to_string(),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.finish();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
