//! The verbs, one file each.

mod backup;
mod check;
mod describe;
mod init;
mod list;
mod misc;
mod mount;
mod restore;
mod snapshot;
mod stats;

use std::future::Future;

use pbmfs_repo::ingest::Cancel;

use crate::args::{Cli, Command};
use crate::exit::{Failure, Kind, Outcome};
use crate::format;

/// Carries out the command.
pub fn run(cli: Cli) -> Result<Outcome, Failure> {
    let Cli { global, command } = cli;
    match command {
        Command::Init(args) => block_on(unless_stopped(init::run(&global, &args))),
        Command::Backup(args) => block_on(backup::run(&global, args)),
        Command::List(_) => block_on(unless_stopped(list::run(&global))),
        Command::DescribeBackup(args) => block_on(unless_stopped(describe::run(&global, &args))),
        Command::Restore(args) => block_on(restore::run(&global, &args)),
        Command::Mount(args) => block_on(mount::mount(&global, args)),
        Command::Umount(args) => mount::umount(&global, &args),
        Command::Check(args) => block_on(check::run(&global, &args)),
        Command::Stats(args) => block_on(stats::run(&global, &args)),
        Command::Completion(args) => misc::completion(&args),
        Command::Man(args) => misc::man(&args),
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Kind::Error, format!("cannot start threads: {e}")))?;
    let result = runtime.block_on(work);
    // A storage call that hangs must not keep the program.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

/// Becomes ready at the first SIGINT, SIGTERM or SIGHUP. From the call on they do not end the process.
fn stop_signal() -> impl Future<Output = ()> + Send + use<> {
    use tokio::signal::unix::{SignalKind, signal};
    let catch = |kind: SignalKind| (!is_ignored(kind)).then(|| signal(kind).ok()).flatten();
    let mut caught = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ]
    .map(catch);
    std::future::poll_fn(move |cx| {
        let came = |stream: &mut Option<_>| {
            let stream: &mut tokio::signal::unix::Signal = stream.as_mut()?;
            stream.poll_recv(cx).is_ready().then_some(())
        };
        match caught.iter_mut().find_map(came) {
            Some(()) => std::task::Poll::Ready(()),
            None => std::task::Poll::Pending,
        }
    })
}

/// Whether this process was started under `nohup`: then a hangup is to be ignored, and a handler would undo that.
fn is_ignored(kind: tokio::signal::unix::SignalKind) -> bool {
    if kind != tokio::signal::unix::SignalKind::hangup() {
        return false;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}

/// Ends work that may be dropped anywhere at the first signal.
async fn unless_stopped<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let stop = stop_signal();
    tokio::select! {
        done = work => done,
        () = stop => Err(cancelled()),
    }
}

fn cancelled() -> Failure {
    Failure::new(Kind::Cancelled, "cancelled")
}

/// Cancels work at the first signal; at the second one the process ends at once.
fn cancel_on_signal() -> Cancel {
    let cancel = Cancel::default();
    let asked = cancel.clone();
    let stop = stop_signal();
    tokio::spawn(async move {
        stop.await;
        format::note("stopping; once more to stop at once");
        asked.cancel();
        stop_signal().await;
        std::process::exit(i32::from(Kind::Cancelled.code()));
    });
    cancel
}
