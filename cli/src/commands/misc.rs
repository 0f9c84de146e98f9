//! `completion` and `man`

use clap::CommandFactory;

use crate::args::{Cli, Completion, Man};
use crate::exit::{Failure, Kind, Outcome};
use crate::format;

pub fn completion(args: &Completion) -> Result<Outcome, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pbm-fs", &mut script);
    format::raw(&script)?;
    Ok(Outcome::Done)
}

pub fn man(args: &Man) -> Result<Outcome, Failure> {
    std::fs::create_dir_all(&args.directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.directory))
        .map_err(|e| {
            Failure::new(
                Kind::Error,
                format!("cannot write to {}: {e}", args.directory.display()),
            )
        })?;
    Ok(Outcome::Done)
}
