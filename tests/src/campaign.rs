//! Random campaigns: few runs by default, many with `PBMFS_CAMPAIGN=full`; a seed that is printed, and set again with
//! `PBMFS_SEED`.

use std::{
    env,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::prng::Prng;

/// How many runs: `small` by default, `full` in a full campaign.
pub fn runs(small: u64, full: u64) -> u64 {
    match env::var("PBMFS_CAMPAIGN").as_deref() {
        Ok("full") => full,
        _ => small,
    }
}

/// The generator of a campaign. Its seed is printed, so that it stands in the output of a test that failed. What is
/// random is mostly a moment, so the same seed makes the same run likely and no more.
pub fn prng(campaign: &str) -> Prng {
    let seed = match env::var("PBMFS_SEED") {
        Ok(text) => text.parse().expect("PBMFS_SEED is a number"),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_nanos() as u64 % 1_000_000_000),
    };
    eprintln!("{campaign}: PBMFS_SEED={seed}");
    Prng::new(seed)
}

/// A random time below `limit`.
pub fn below(prng: &mut Prng, limit: Duration) -> Duration {
    Duration::from_micros(prng.below(u64::try_from(limit.as_micros()).unwrap_or(u64::MAX)))
}

/// Asks until there is an answer, for two minutes. For tests whose thread may block.
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "waited in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
