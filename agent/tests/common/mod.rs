//! Just enough of a rig for this crate: a mongod in a directory of its own, killed when dropped.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mongodb::Client;
use mongodb::bson::{Document, doc};
use mongodb::options::ClientOptions;
use pbmfs_agent::source::Timestamp;
use pbmfs_agent::{FsyncLockSource, GuardCommand, LockOptions};
use pbmfs_tests::port::PortLease;
use tempfile::TempDir;

fn mongod_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("PBMFS_MONGOD") {
            return path.into();
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/get-mongod.sh");
        let output = Command::new(script)
            .stderr(Stdio::inherit())
            .output()
            .expect("scripts/get-mongod.sh runs");
        assert!(output.status.success(), "scripts/get-mongod.sh found no mongod");
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim().lines().last().expect("a path").into()
    })
}

pub struct Mongod {
    pub dir: TempDir,
    port: PortLease,
    args: Vec<String>,
    child: Child,
    /// Removed with the server.
    keys: Option<TempDir>,
}

impl Mongod {
    pub async fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = PortLease::take().unwrap();
        let args = args.iter().map(|arg| arg.to_string()).collect();
        let child = spawn(dir.path(), port.port(), &args);
        let server = Self {
            dir,
            port,
            args,
            child,
            keys: None,
        };
        server.until_it_answers().await;
        server
    }

    pub async fn start_again(&mut self) {
        self.kill();
        self.child = spawn(self.dir.path(), self.port.port(), &self.args);
        self.until_it_answers().await;
    }

    async fn until_it_answers(&self) {
        let client = self.client().await;
        within(Duration::from_secs(30), "mongod answers", async || {
            client
                .database("admin")
                .run_command(doc! {"ping": 1})
                .await
                .is_ok()
        })
        .await;
    }

    pub fn dbpath(&self) -> PathBuf {
        self.dir.path().join("db")
    }

    pub fn node(&self) -> String {
        self.port.host()
    }

    pub fn uri(&self) -> String {
        format!("mongodb://{}/?directConnection=true", self.node())
    }

    pub async fn client(&self) -> Client {
        connect(&self.uri()).await
    }

    pub async fn admin(&self, command: Document) -> mongodb::error::Result<Document> {
        self.client().await.database("admin").run_command(command).await
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits: a clean shutdown.
    pub fn stop(&mut self) {
        signal(self.child.id(), rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

impl Drop for Mongod {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(dir: &Path, port: u16, args: &Vec<String>) -> Child {
    std::fs::create_dir_all(dir.join("db")).unwrap();
    Command::new(mongod_binary())
        .args([
            "--bind_ip",
            "127.0.0.1",
            "--wiredTigerCacheSizeGB",
            "0.25",
            "--logappend",
            "--nounixsocket",
        ])
        .arg("--dbpath")
        .arg(dir.join("db"))
        .arg("--logpath")
        .arg(dir.join("mongod.log"))
        .arg("--port")
        .arg(port.to_string())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mongod starts")
}

pub async fn connect(uri: &str) -> Client {
    let mut options = ClientOptions::parse(uri).await.unwrap();
    options.server_selection_timeout = Some(Duration::from_secs(2));
    Client::with_options(options).unwrap()
}

/// Initiates a set and waits until the first member is primary and the others are secondaries or arbiters.
pub async fn initiate(members: &[&Mongod], arbiters: &[usize]) {
    let list: Vec<Document> = members
        .iter()
        .enumerate()
        .map(|(index, member)| {
            let arbiter = arbiters.contains(&index);
            let priority = if index == 0 {
                2
            } else if arbiter {
                0
            } else {
                1
            };
            doc! {"_id": index as i32, "host": member.node(), "arbiterOnly": arbiter, "priority": priority}
        })
        .collect();
    members[0]
        .admin(doc! {"replSetInitiate": {"_id": "rs0", "members": list}})
        .await
        .unwrap();
    for (index, member) in members.iter().enumerate() {
        let flag = match index {
            0 => "isWritablePrimary",
            _ if arbiters.contains(&index) => "arbiterOnly",
            _ => "secondary",
        };
        within(Duration::from_secs(60), flag, async || {
            member
                .admin(doc! {"hello": 1})
                .await
                .is_ok_and(|hello| hello.get_bool(flag) == Ok(true))
        })
        .await;
    }
}

pub async fn single() -> Mongod {
    let server = Mongod::start(&["--replSet", "rs0"]).await;
    initiate(&[&server], &[]).await;
    server
}

pub async fn insert(client: &Client, n: i32) -> mongodb::error::Result<()> {
    client
        .database("test")
        .collection::<Document>("c")
        .insert_one(doc! {"n": n})
        .await
        .map(|_| ())
}

pub async fn is_locked(server: &Mongod) -> bool {
    let reply = server
        .admin(doc! {"currentOp": 1, "$ownOps": true})
        .await
        .unwrap();
    reply.get_bool("fsyncLock").unwrap_or(false)
}

/// Waits until `done`, and returns how long it took.
pub async fn within(limit: Duration, what: &str, mut done: impl AsyncFnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !done().await {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    started.elapsed()
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

pub fn is_running(pid: u32) -> bool {
    // A zombie whose parent was killed with it may linger; it runs no more.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

pub fn options(uri: &str) -> LockOptions {
    let program = env!("CARGO_BIN_EXE_pbmfs-lock-probe").into();
    let guard = GuardCommand {
        program,
        ..GuardCommand::default()
    };
    LockOptions {
        guard,
        ..LockOptions::new(uri)
    }
}

pub fn source(uri: &str) -> FsyncLockSource {
    FsyncLockSource::new(options(uri))
}

pub async fn top_of_oplog(server: &Mongod) -> Timestamp {
    let oplog = server
        .client()
        .await
        .database("local")
        .collection::<Document>("oplog.rs");
    let top = oplog
        .find_one(doc! {})
        .sort(doc! {"$natural": -1})
        .await
        .unwrap()
        .unwrap();
    let ts = top.get_timestamp("ts").unwrap();
    Timestamp {
        t: ts.time,
        i: ts.increment,
    }
}

/// A one-member set with authentication, a root and a user that may do nothing.
pub async fn with_auth() -> Mongod {
    use std::os::unix::fs::PermissionsExt;
    let keys = tempfile::tempdir().unwrap();
    let key_file = keys.path().join("key");
    std::fs::write(&key_file, "c2VzYW1lIG9wZW4gc2VzYW1l").unwrap();
    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut server = Mongod::start(&["--replSet", "rs0", "--keyFile", key_file.to_str().unwrap()]).await;
    server.keys = Some(keys);
    initiate(&[&server], &[]).await;
    server
        .admin(doc! {"createUser": "root", "pwd": "sesame", "roles": ["root"]})
        .await
        .unwrap();
    let root = connect(&with_login(&server, "root", "sesame"))
        .await
        .database("admin");
    root.run_command(doc! {"createUser": "nobody", "pwd": "sesame", "roles": []})
        .await
        .unwrap();
    let roles = ["hostManager", "clusterMonitor", "backup", "readAnyDatabase"].to_vec();
    root.run_command(doc! {"createUser": "operator", "pwd": "sesame", "roles": roles})
        .await
        .unwrap();
    server
}

pub fn with_login(server: &Mongod, user: &str, password: &str) -> String {
    format!(
        "mongodb://{user}:{password}@{}/?directConnection=true&authSource=admin",
        server.node()
    )
}
