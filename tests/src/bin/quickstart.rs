//! The main job of pbm-fs on a mongod of its own; what `scripts/quickstart.sh` runs. It prints the commands that it
//! gives, so that they can be given again by hand on the repository that it leaves behind.
#![allow(clippy::print_stdout, reason = "it is a program that talks to people")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pbmfs_tests::compare::digest;
use pbmfs_tests::cursor_server::CursorServerOptions;
use pbmfs_tests::data::{DataSpec, load, update_orders};
use pbmfs_tests::mongod::MongodOptions;
use pbmfs_tests::replset::{ReplSet, ReplSetOptions};
use pbmfs_tests::restore_steps::{RestoredSet, open_recovered, prepare};
use pbmfs_tests::snapshot::{Copied, copy_dbpath};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Where things are.
struct Place {
    pbm_fs: PathBuf,
    play: PathBuf,
}

impl Place {
    fn command(&self, args: &[&str]) -> Command {
        println!("\n$ pbm-fs {}", args.join(" "));
        let mut command = Command::new(&self.pbm_fs);
        command
            .args(args)
            .env("PBMFS_REPO", self.play.join("repo"))
            .env("XDG_CACHE_HOME", self.play.join("cache"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Outcome {
        let status = self.command(args).arg("--quiet").status()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("pbm-fs {} ended with {status}", args[0]).into())
        }
    }
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    if let Err(e) = runtime.block_on(quickstart()) {
        eprintln!("quickstart: {e}");
        std::process::exit(1);
    }
}

fn arguments() -> Outcome<(PathBuf, Place)> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let get = |name: &str| {
        let at = args
            .iter()
            .position(|a| a == name)
            .ok_or(format!("{name} is missing"))?;
        args.get(at + 1)
            .map(PathBuf::from)
            .ok_or(format!("{name} needs a value"))
    };
    Ok((
        get("--mongod")?,
        Place {
            pbm_fs: get("--pbm-fs")?,
            play: get("--play")?,
        },
    ))
}

async fn quickstart() -> Outcome {
    let (mongod, place) = arguments()?;
    // The rig finds its mongod through the environment, which only a child can be given.
    if std::env::var_os("PBMFS_MONGOD").is_none() {
        let status = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env("PBMFS_MONGOD", &mongod)
            .status()?;
        std::process::exit(status.code().unwrap_or(1));
    }
    let play = &place.play;
    // A mount that an earlier run left behind is not to be removed with the directory.
    let _ = Command::new(&place.pbm_fs)
        .args(["umount", "--lazy"])
        .arg(play.join("mnt"))
        .output();
    if play.exists() {
        std::fs::remove_dir_all(play)?;
    }
    std::fs::create_dir_all(play.join("mnt"))?;

    println!("starting a replica set of one member, with 60 MB of documents");
    // What can be fetched is MongoDB Community; the tests' stand-in in front of it adds $backupCursor.
    let options = ReplSetOptions::single("rs0").with_cursor_servers(CursorServerOptions::default());
    let mut set = ReplSet::start(play.join("source"), options).await?;
    let client = set.client().await?;
    let spec = DataSpec::megabytes(60);
    load(&client, &spec).await?;

    place.run(&["init"])?;
    let uri = set.uri();
    place.run(&["backup", "-t", "incremental", "--base", "--uri", &uri])?;
    for round in 1..=2 {
        println!("\nupdating one order in a hundred");
        update_orders(&client, &spec, 100, round).await?;
        place.run(&["backup", "-t", "incremental", "--uri", &uri])?;
    }
    let source = digest(&client).await?.documents();
    set.stop().await?;
    place.run(&["list"])?;
    place.run(&["describe-backup", "latest"])?;

    let mut mount = Mounted::start(&place)?;
    let inside = play.join("mnt/rs0/dbpath");
    println!("\n$ ls {}", inside.display());
    let mut names: Vec<_> = std::fs::read_dir(&inside)?
        .map(|e| e.map(|e| e.file_name()))
        .collect::<Result<_, _>>()?;
    names.sort();
    let shown: Vec<_> = names.iter().take(6).map(|n| n.to_string_lossy()).collect();
    println!("{} … ({} entries)", shown.join("  "), names.len());
    copy_dbpath(&inside, &play.join("copied"), Copied::WithJournal)?;
    mount.stop(&place)?;

    let target = play.join("restored");
    place.run(&["restore", "latest", "--target", &target.to_string_lossy()])?;
    place.run(&["check", "--read-data"])?;

    println!("\nstarting a mongod on the restored files, and one on the copy out of the mount");
    let restored = documents(&target).await?;
    let copied = documents(&play.join("copied")).await?;
    for scratch in ["source", "copied", "restored"] {
        std::fs::remove_dir_all(play.join(scratch))?;
    }
    println!("\nTo play on:  export PBMFS_REPO={}", play.join("repo").display());
    println!("             {} list", place.pbm_fs.display());
    if source == restored && source == copied {
        println!(
            "source count {source} = restored count {restored} = count through the mount's copy {copied}"
        );
        return Ok(());
    }
    Err(
        format!("source count {source}, restored count {restored}, count through the mount's copy {copied}")
            .into(),
    )
}

/// Documents that a mongod finds in these files when it has replayed their journal and oplog: nothing was written while
/// the last snapshot was taken.
async fn documents(dbpath: &Path) -> Outcome<u64> {
    let options = MongodOptions::standalone();
    prepare(dbpath, &RestoredSet::new("rs0", 1)?, None, &options).await?;
    let mut mongod = open_recovered(dbpath, &options).await?;
    let count = digest(&mongod.client().await?).await?.documents();
    mongod.stop().await?;
    Ok(count)
}

/// A mount that a child serves.
struct Mounted(Child, PathBuf);

impl Mounted {
    fn start(place: &Place) -> Outcome<Self> {
        let point = place.play.join("mnt");
        let child = place
            .command(&["mount", "latest", &point.to_string_lossy()])
            .spawn()?;
        let mounted = Self(child, point);
        let began = Instant::now();
        while !mounted.1.join("rs0/dbpath").is_dir() {
            if began.elapsed() > Duration::from_secs(30) {
                return Err("the mount did not come up".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        println!(
            "first look inside {} ms after the command",
            began.elapsed().as_millis()
        );
        Ok(mounted)
    }

    fn stop(&mut self, place: &Place) -> Outcome {
        place.run(&["umount", &self.1.to_string_lossy()])?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.1)
            .stderr(Stdio::null())
            .status();
    }
}
