//! Child processes that never outlive the test process.
//!
//! The kernel is asked, through `setpriv --pdeathsig KILL` (util-linux), to kill the child when its parent dies. What it
//! calls the parent is the *thread* that started the child, and a test's threads end early: tokio's workers with the
//! runtime, its blocking threads after ten idle seconds. So every child is started by one thread that lives as long as
//! the process.
//!
//! `setpriv` execs, so the process id is that of the program.

use std::{
    io,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Mutex, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Doing, Result, RigError};

/// How often a process is asked whether it has ended.
const POLL: Duration = Duration::from_millis(10);

/// A command for a program that the kernel kills when the test process dies. Arguments, streams and environment are the
/// caller's to set.
pub fn supervised(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// The same, with the program run as another user, who is in no group but the one of the same number.
pub fn supervised_as(user: u32, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    let user = user.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A running child. Dropped, it is killed and waited for.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Runs a program with these arguments, its output going to `output`.
    pub fn spawn(program: &Path, args: &[String], output: std::fs::File) -> Result<Self> {
        let errors = output.try_clone().doing("duplicating a file handle")?;
        let mut command = supervised(program);
        command.args(args);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        Self::of(command)
    }

    /// Runs a command that [`supervised`] made.
    pub fn of(command: Command) -> Result<Self> {
        let doing = format!("starting {command:?}");
        match start(command) {
            Ok(child) => Ok(Self { child }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RigError::Missing("setpriv, which is in util-linux".into()))
            }
            Err(source) => Err(RigError::Io { doing, source }),
        }
    }

    /// The ends of the pipes that its command asked for, once.
    pub fn pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?))
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().doing("waiting for a child process")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .map_err(io::Error::from)
            .doing(format_args!("sending {signal:?} to process {}", self.id()))
    }

    /// Waits for the end; `None` when it is still running after this time.
    pub async fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if start.elapsed() >= limit {
                return Ok(None);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().doing("killing a child process")?;
        self.child.wait().doing("waiting for a killed process")?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and the kernel kills the child at our end in any case.
        let _ = self.kill();
    }
}

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Has the command started by the thread that never ends.
fn start(command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::Builder::new()
            .name("rig-starter".into())
            .spawn(move || {
                for (mut command, reply) in inbox {
                    // The other end waits for the reply, so it is there.
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("the rig cannot start a thread");
        Mutex::new(orders)
    });
    let (reply, answer) = mpsc::sync_channel(1);
    let gone = || io::Error::other("the rig's starter thread is gone");
    starter
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, reply))
        .map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
