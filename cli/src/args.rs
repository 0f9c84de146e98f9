//! Arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Physical backups of MongoDB in a deduplicating repository, restored by copying or mounted.
#[derive(Debug, Parser)]
#[command(
    name = "pbm-fs",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(after_help = "\
Examples:
  export PBMFS_REPO=/backups/mongo
  pbm-fs init
  pbm-fs backup --uri mongodb://backup:secret@127.0.0.1:27017/
  pbm-fs list
  pbm-fs mount latest /mnt/snapshot
  pbm-fs restore latest --target /var/lib/mongodb-restored

Exit codes: 0 done, 1 error, 2 usage, 3 cancelled, 4 not found, 5 locked or busy, 6 damaged repository,
7 wrong password or missing privilege, 8 not supported by this version or server.")]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// The repository: a path or file:///path
    #[arg(long, short = 'r', global = true, env = "PBMFS_REPO", value_name = "ADDRESS")]
    pub repo: Option<String>,
    /// Output format of results and errors
    #[arg(long = "out", short = 'o', global = true, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// Memory for buffers and caches, such as 512MiB or 2GB
    #[arg(long, global = true, value_name = "SIZE", default_value = "512MiB", value_parser = crate::format::parse_size)]
    pub memory: u64,
    /// Threads for hashing and compression (default: one a core)
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// Show no progress
    #[arg(long, short = 'q', global = true)]
    pub quiet: bool,
    /// Say more on stderr; twice for even more (or PBMFS_LOG=debug)
    #[arg(long, short = 'v', global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people
    Text,
    /// One JSON document on stdout; errors as JSON on stderr
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a repository in an empty or new directory
    Init(Init),
    /// Take a backup of a mongod, or of a stopped mongod's dbPath
    Backup(Backup),
    /// List the snapshots, newest first
    List(List),
    /// Tell everything about a snapshot
    DescribeBackup(DescribeBackup),
    /// Restore a snapshot into a new directory
    Restore(Restore),
    /// Mount a snapshot read-only; runs until it is unmounted or stopped
    Mount(Mount),
    /// Unmount what `pbm-fs mount` mounted
    Umount(Umount),
    /// Check the repository
    Check(Check),
    /// Tell how much snapshots use, share, and have alone
    Stats(Stats),
    /// Print a completion script for a shell
    Completion(Completion),
    /// Write man pages into a directory
    #[command(hide = true)]
    Man(Man),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pbm-fs init --repo /backups/mongo
  pbm-fs init --repo /backups/mongo --pack-size 32MiB")]
pub struct Init {
    /// Stored size at which a pack is sealed, 1 to 64 MiB
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = crate::format::parse_pack_size)]
    pub pack_size: u64,
    /// zstd level; 1 is right for WiredTiger files, which are compressed already
    #[arg(long, value_name = "LEVEL", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=19))]
    pub compression_level: i32,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pbm-fs backup --uri 'mongodb://backup:secret@db1:27017,db2:27017/?replicaSet=rs0'
  pbm-fs backup -t incremental --base --uri $URI   (begins a chain of increments)
  pbm-fs backup -t incremental --uri $URI          (reads only what changed since)
  pbm-fs backup --uri mongodb://127.0.0.1:27017 --record-hashes
  pbm-fs backup --dbpath /var/lib/mongodb           (mongod is stopped)
  pbm-fs backup --dbpath /mnt/lvm-snapshot --replset rs0

With --uri a member of Percona Server for MongoDB or MongoDB Enterprise is read through $backupCursor, while reads and \
writes go on; one of MongoDB Community is locked with fsyncLock while its files are read: reads go on, writes wait. A \
secondary on this machine is taken unless --node or directConnection=true says otherwise.

An increment reads what the server says has changed since an earlier snapshot of the same member, and takes the rest \
from there by reference. Where the server cannot tell (another member, history lost, that snapshot deleted) everything \
is read and only new blocks are stored; the next increment goes on from there. Any snapshot can be deleted at any time.

A process list shows a password that stands in --uri; in the environment variable PBMFS_URI it is not shown.")]
pub struct Backup {
    /// Connection string of a running mongod or replica set (or in the environment variable PBMFS_URI)
    #[arg(long, value_name = "URI", conflicts_with = "dbpath")]
    pub uri: Option<String>,
    /// What to take: everything, or what changed since the last snapshot
    #[arg(long = "type", short = 't', value_enum, default_value_t = BackupType::Physical, value_name = "TYPE")]
    pub backup_type: BackupType,
    /// Begin a new chain of increments: the server forgets its history and everything is read
    #[arg(long, conflicts_with = "dbpath")]
    pub base: bool,
    /// Unit in MiB in which the server names changes (default: that of the chain, or 1). A change begins a new history
    #[arg(long, value_name = "MIB", conflicts_with = "dbpath", value_parser = clap::value_parser!(u32).range(1..=2048))]
    pub block_size: Option<u32>,
    /// How the files of a running server are kept still
    #[arg(long, value_enum, default_value_t = Method::Auto, conflicts_with = "dbpath")]
    pub method: Method,
    /// Directory of a stopped mongod, or a file-system snapshot of one
    #[arg(long, value_name = "DIR")]
    pub dbpath: Option<PathBuf>,
    /// Take this member, primary or not
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "dbpath", value_parser = crate::format::parse_node)]
    pub node: Option<String>,
    /// Where the member's dbPath is seen from here, if not where the server says
    #[arg(long, value_name = "DIR", conflicts_with = "dbpath")]
    pub local_dbpath: Option<PathBuf>,
    /// Name of the replica set in the snapshot (default: what the server says, or "standalone")
    #[arg(long, value_name = "NAME")]
    pub replset: Option<String>,
    /// Name of the cluster in the snapshot (default: the replica set's)
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Record dbHash and counts of every database under fsyncLock; takes a read of all documents
    #[arg(long, conflicts_with = "dbpath")]
    pub record_hashes: bool,
    /// Where local indexes of known blocks are kept (default: pbm-fs/index in $XDG_CACHE_HOME or ~/.cache)
    #[arg(long, value_name = "DIR")]
    pub index: Option<PathBuf>,
    /// Memory for the local index, besides --memory
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = crate::format::parse_index_memory)]
    pub index_memory: u64,
    /// Longest wait for the lock, for another backup cursor to be closed, and for the journal to be complete
    // The longest that a server takes in milliseconds.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 120,
        conflicts_with = "dbpath",
        value_parser = clap::value_parser!(u64).range(1..=2_147_483)
    )]
    pub lock_timeout: u64,
}

/// What a backup takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackupType {
    /// Everything
    Physical,
    /// What changed since the last snapshot, if the server can tell
    Incremental,
}

/// How a running server's files are kept still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// $backupCursor where the server has it, fsyncLock otherwise
    Auto,
    /// $backupCursor: writes go on
    Cursor,
    /// fsyncLock: writes wait
    Lock,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pbm-fs list
  pbm-fs list -o json | jq -r '.snapshots[].name'

The size is what the snapshot added to the repository. An incremental snapshot that has no source is a base.")]
pub struct List {}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pbm-fs describe-backup latest
  pbm-fs describe-backup 2026-11-21T10 --files
  pbm-fs describe-backup 2026-11-21T10:48:00Z -o json")]
pub struct DescribeBackup {
    /// Name, beginning of a name, or `latest`
    pub name: String,
    /// List the files, too
    #[arg(long)]
    pub files: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pbm-fs restore latest --target /var/lib/mongodb-restored
  pbm-fs restore 2026-11-21T10:48:00Z --target /data/rs0 --replset rs0

The files are written to DIR.pbmfs-partial, which becomes DIR at the very end. A restore that was interrupted \
goes on where it stopped when the same command is given again.")]
pub struct Restore {
    /// Name, beginning of a name, or `latest`
    pub name: String,
    /// Directory that will hold the files; must not exist yet
    #[arg(long, short = 't', value_name = "DIR")]
    pub target: PathBuf,
    /// Which replica set, if the snapshot has several
    #[arg(long, value_name = "NAME")]
    pub replset: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pbm-fs mount latest /mnt/snapshot          (files are in /mnt/snapshot/<replica set>/dbpath)
  pbm-fs mount 2026-11-21T10:48:00Z          (on ./2026-11-21T10:48:00Z, made and removed again)
  pbm-fs umount /mnt/snapshot

Runs in the foreground until Ctrl-C, SIGTERM or `pbm-fs umount`. Needs root or CAP_SYS_ADMIN.")]
pub struct Mount {
    /// Name, beginning of a name, or `latest`
    pub name: String,
    /// Existing empty directory (default: ./NAME, which is made)
    pub mountpoint: Option<PathBuf>,
    /// The kernel's read-ahead window in KiB
    #[arg(long, value_name = "KIB", default_value_t = 1024)]
    pub read_ahead: u32,
    /// Keep other users out
    #[arg(long)]
    pub private: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pbm-fs umount /mnt/snapshot
  pbm-fs umount --lazy /mnt/snapshot         (readers that have files open may finish)")]
pub struct Umount {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    /// Detach it although it is in use
    #[arg(long, short = 'l')]
    pub lazy: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pbm-fs check
  pbm-fs check --read-data -o json")]
pub struct Check {
    /// Read and verify every byte of every pack
    #[arg(long)]
    pub read_data: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pbm-fs stats
  pbm-fs stats latest
  pbm-fs stats 2026-11-21T10 2026-11-21T11       (and what both together would free)
  pbm-fs stats -o json | jq .total.dedup_ratio

logical      bytes of the files, as a restore makes them
unique       of these, each block counted once, and no runs of zeros
stored       what those blocks take in the repository, compressed, with their maps
only here    what no other snapshot uses: deleting the snapshot would free it
dedup        logical / unique
compression  unique / stored, without maps

All snapshots are looked at, whichever are named, because what one has alone depends on all others.")]
pub struct Stats {
    /// Names, beginnings of names, or `latest` (default: all snapshots)
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pbm-fs completion bash > /etc/bash_completion.d/pbm-fs
  pbm-fs completion zsh > ~/.zfunc/_pbm-fs")]
pub struct Completion {
    /// Which shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct Man {
    /// Where the pages are written
    pub directory: PathBuf,
}
