//! The verbs, one file each.

mod backup;
mod check;
mod describe;
mod init;
mod list;
mod misc;
mod mount;
mod restore;

use std::future::Future;

use pbmfs_repo::ingest::Cancel;

use crate::args::{Cli, Command};
use crate::exit::{Failure, Kind, Outcome};

/// Carries out the command.
pub fn run(cli: Cli) -> Result<Outcome, Failure> {
    let Cli { global, command } = cli;
    match command {
        Command::Init(args) => block_on(init::run(&global, &args)),
        Command::Backup(args) => block_on(backup::run(&global, args)),
        Command::List(_) => block_on(list::run(&global)),
        Command::DescribeBackup(args) => block_on(describe::run(&global, &args)),
        Command::Restore(args) => block_on(restore::run(&global, &args)),
        Command::Mount(args) => block_on(mount::mount(&global, args)),
        Command::Umount(args) => mount::umount(&global, &args),
        Command::Check(args) => block_on(check::run(&global, &args)),
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

/// Becomes ready at the first SIGINT, SIGTERM or SIGHUP.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut stream) => {
                stream.recv().await;
            }
            // Without a handler the signal ends the process in its own way.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
}

/// Cancels work at the first signal; at the second one the process ends at once.
fn cancel_on_signal() -> Cancel {
    let cancel = Cancel::default();
    let asked = cancel.clone();
    tokio::spawn(async move {
        stop_signal().await;
        eprintln!("stopping; once more to stop at once");
        asked.cancel();
        stop_signal().await;
        std::process::exit(i32::from(Kind::Cancelled.code()));
    });
    cancel
}
