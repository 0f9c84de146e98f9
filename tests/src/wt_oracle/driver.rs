//! `tests/wiredtiger/driver.py` as a child process: one JSON object a line in, one out.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Stdio},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    error::{Doing, Result, RigError},
    process::{Process, supervised},
};

/// A running driver. Dropped, it is killed, as by `kill -9`, and its database crashes.
#[derive(Debug)]
pub struct Driver {
    process: Process,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    talk: PathBuf,
}

#[derive(Deserialize)]
enum Answer {
    #[serde(rename = "ok")]
    Done(Value),
    #[serde(rename = "error")]
    Refused(String),
}

impl Driver {
    /// Starts one. What WiredTiger says goes to the file `talk`.
    pub fn start(python: &Path, talk: &Path) -> Result<Self> {
        let mut command = supervised(python);
        let log = File::options()
            .create(true)
            .append(true)
            .open(talk)
            .doing(format_args!("opening {}", talk.display()))?;
        command.arg("-B").arg(super::program("driver.py"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut process = Process::of(command)?;
        let (requests, answers) = process
            .pipes()
            .ok_or_else(|| RigError::Check("the driver has no pipes".into()))?;
        Ok(Self {
            process,
            requests,
            answers: BufReader::new(answers),
            talk: talk.to_owned(),
        })
    }

    /// What WiredTiger answers, or how it refused.
    pub fn ask<T: DeserializeOwned>(&mut self, what: &str, mut with: Value) -> Result<Result<T, String>> {
        with["do"] = json!(what);
        let mut line = String::new();
        let answered = writeln!(self.requests, "{with}")
            .and_then(|()| self.requests.flush())
            .and_then(|()| self.answers.read_line(&mut line));
        if answered.doing(format_args!("asking the driver to {what}"))? == 0 {
            let talk = fs::read_to_string(&self.talk).unwrap_or_default();
            let last: Vec<_> = talk.lines().rev().take(20).collect();
            let last: Vec<_> = last.into_iter().rev().collect();
            return Err(RigError::Check(format!(
                "the driver ended when asked to {what} {with}:\n{}",
                last.join("\n")
            )));
        }
        let broken = |error: serde_json::Error| RigError::Check(format!("{what}: {error} in {line}"));
        match serde_json::from_str(&line).map_err(broken)? {
            Answer::Done(value) => Ok(Ok(serde_json::from_value(value).map_err(broken)?)),
            Answer::Refused(how) => Ok(Err(how)),
        }
    }

    /// What WiredTiger answers; a refusal is an error.
    pub fn get<T: DeserializeOwned>(&mut self, what: &str, with: Value) -> Result<T> {
        let shown = with.to_string();
        self.ask(what, with)?
            .map_err(|how| RigError::Check(format!("WiredTiger refused to {what} {shown}: {how}")))
    }

    /// Something that answers nothing.
    pub fn tell(&mut self, what: &str, with: Value) -> Result<()> {
        self.get::<Option<Value>>(what, with).map(drop)
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }
}
