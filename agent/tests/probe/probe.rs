//! Helper of the tests: with the guard's argument it is a guard; otherwise it reads a connection string from
//! stdin, locks, prints the guard's process id, and holds the lock until it is killed.

use std::io::{Write, stdin, stdout};

use pbmfs_agent::lock::guard;
use pbmfs_agent::{FsyncLockSource, LockOptions, Source};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).as_deref() == Some(guard::GUARD_ARGUMENT) {
        return Ok(guard::run(stdin(), stdout())?);
    }
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut uri = String::new();
        stdin().read_line(&mut uri)?;
        let mut source = FsyncLockSource::new(LockOptions::new(uri.trim()));
        source.open().await?;
        writeln!(stdout(), "{}", source.guard_pid().unwrap_or_default())?;
        std::future::pending::<()>().await;
        Ok(())
    })
}
