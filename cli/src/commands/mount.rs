//! `mount` and `umount`

use std::path::PathBuf;
use std::sync::Arc;

use pbmfs_fusefs::point::WhenMissing;
use pbmfs_fusefs::{Ended, Fs, FsConfig, MountConfig, MountPoint, Session, SnapshotTree, Umounted};
use serde::Serialize;

use crate::args::{Global, Mount, OutputFormat, Umount};
use crate::commands::{cancelled, stop_signal};
use crate::exit::{Failure, Outcome};
use crate::{format, open};

/// Printed when the mount can be used.
#[derive(Serialize)]
struct Mounted {
    snapshot: String,
    mountpoint: PathBuf,
    replsets: Vec<String>,
    read_ahead_kib: Option<u32>,
    /// Requests to the storage so far.
    requests: u64,
}

#[derive(Serialize)]
struct Unmounted {
    mountpoint: PathBuf,
    how: &'static str,
}

pub async fn mount(global: &Global, args: Mount) -> Result<Outcome, Failure> {
    // Before anything is made that a signal would leave behind.
    let mut stop = Box::pin(stop_signal());
    let found = async {
        let opened = open::repository(global).await?;
        let doc = opened.repo.resolve(&args.name).await?;
        Ok::<_, Failure>((opened, doc))
    };
    let (opened, doc) = tokio::select! {
        found = found => found?,
        () = &mut stop => return Err(cancelled()),
    };
    let (path, missing) = match args.mountpoint {
        Some(path) => (path, WhenMissing::Refuse),
        None => (PathBuf::from(doc.name.as_str()), WhenMissing::Create),
    };
    let apart: Vec<PathBuf> = open::directory(global).into_iter().collect();
    let point = MountPoint::prepare(&path, missing, &apart)?;
    let (name, replsets) = (
        doc.name.to_string(),
        doc.replsets.iter().map(|r| r.name.clone()).collect::<Vec<_>>(),
    );
    let tree = tokio::select! {
        tree = SnapshotTree::open(&opened.repo, doc) => tree?,
        () = &mut stop => return Err(cancelled()),
    };
    // A quarter of the memory: blocks on their way and what the allocator keeps take as much again and more, and the
    // repository has an eighth for its own caches.
    let config = FsConfig::with_budget(open::memory(global)? / 4);
    let fs = Fs::new(Arc::new(tree), config, tokio::runtime::Handle::current());
    let mount_config = MountConfig {
        name: name.clone(),
        allow_other: !args.private,
        read_ahead_kib: Some(args.read_ahead),
        threads: global.threads.map(usize::from),
        ..MountConfig::default()
    };
    let session = Session::mount(fs.clone(), point, &mount_config)?;
    let mounted = Mounted {
        snapshot: name,
        mountpoint: session.point().to_owned(),
        replsets,
        read_ahead_kib: session.read_ahead_kib(),
        requests: opened.counts.counts().reads(),
    };
    match global.output {
        OutputFormat::Json => format::json(&mounted)?,
        OutputFormat::Text => {
            let at = mounted.mountpoint.display();
            format::line(format!("snapshot {} is mounted on {at}", mounted.snapshot))?;
            for replset in &mounted.replsets {
                format::line(format!("  {at}/{replset}/dbpath"))?;
            }
            format::note(format!("press Ctrl-C, or run `pbm-fs umount {at}`, to unmount"));
        }
    }
    let ended = session.serve(stop).await?;
    tracing::info!(stats = ?fs.stats(), requests = ?opened.counts.counts(), "unmounted");
    if ended == Ended::CutOff {
        tracing::warn!("the mount was in use: readers were cut off");
    }
    Ok(Outcome::Done)
}

pub fn umount(global: &Global, args: &Umount) -> Result<Outcome, Failure> {
    let how = pbmfs_fusefs::umount(&args.mountpoint, args.lazy)?;
    let (word, sentence) = match how {
        Umounted::Clean => ("clean", "unmounted"),
        Umounted::Lazily => ("lazy", "detached; readers that have files open may finish"),
        Umounted::Dead => ("dead", "cleared: its server had died"),
    };
    match global.output {
        OutputFormat::Json => format::json(&Unmounted {
            mountpoint: args.mountpoint.clone(),
            how: word,
        })?,
        OutputFormat::Text => format::line(format!("{}: {sentence}", args.mountpoint.display()))?,
    }
    Ok(Outcome::Done)
}
