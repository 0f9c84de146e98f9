//! One mongod: start, stop, kill, start again on the same files.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use mongodb::{
    Client,
    bson::{Document, doc},
    options::ClientOptions,
};
use rustix::process::Signal;

use crate::{
    binary::MongodBinary,
    error::{Doing, Result, RigError},
    port::PortLease,
    process::Process,
};

/// How long a start or a clean stop may take. Both take half a second alone on a machine; recovery after a kill and a
/// machine full of other tests make it longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// mongod's exit code for "cannot listen".
const EXIT_PORT_TAKEN: i32 = 48;

/// How a mongod is started. The defaults make it light: 256 MB of cache and an oplog of 64 MB.
#[derive(Clone, Debug)]
pub struct MongodOptions {
    /// `--replSet`; none for a standalone server.
    pub replset: Option<String>,
    /// `--directoryperdb`; has to stay as it was when the files were made.
    pub directory_per_db: bool,
    /// `--oplogSize` in MB; counts when the oplog is made.
    pub oplog_mb: u32,
    /// WiredTiger's cache in MB; mongod takes no less than 256.
    pub cache_mb: u32,
    /// `--setParameter name=value`.
    pub parameters: Vec<(String, String)>,
    /// Anything else.
    pub extra_args: Vec<String>,
    /// The port; a free one is leased unless it is set.
    pub port: Option<Arc<PortLease>>,
    /// The executable; [`MongodBinary::locate`] unless it is set.
    pub binary: Option<MongodBinary>,
}

impl Default for MongodOptions {
    fn default() -> Self {
        Self {
            replset: None,
            directory_per_db: false,
            oplog_mb: 64,
            cache_mb: 256,
            parameters: Vec::new(),
            extra_args: Vec::new(),
            port: None,
            binary: None,
        }
    }
}

impl MongodOptions {
    /// A standalone server.
    pub fn standalone() -> Self {
        Self::default()
    }

    /// A member of the replica set of this name.
    pub fn member_of(replset: &str) -> Self {
        Self {
            replset: Some(replset.into()),
            ..Self::default()
        }
    }

    /// Adds `--setParameter name=value`.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: impl ToString) -> Self {
        self.parameters.push((name.into(), value.to_string()));
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.extra_args.extend(args.into_iter().map(Into::into));
        self
    }

    /// `--directoryperdb`.
    #[must_use]
    pub fn directory_per_db(mut self) -> Self {
        self.directory_per_db = true;
        self
    }

    fn command_line(&self, version: (u32, u32), dbpath: &Path, log: &Path, port: u16) -> Vec<String> {
        let mut args = vec![
            "--dbpath".into(),
            dbpath.display().to_string(),
            "--logpath".into(),
            log.display().to_string(),
            "--logappend".into(),
            "--bind_ip".into(),
            "127.0.0.1".into(),
            "--port".into(),
            port.to_string(),
            "--nounixsocket".into(),
            "--wiredTigerCacheSizeGB".into(),
            format!("{:.3}", f64::from(self.cache_mb) / 1024.0),
        ];
        if let Some(name) = &self.replset {
            args.extend([
                "--replSet".into(),
                name.clone(),
                "--oplogSize".into(),
                self.oplog_mb.to_string(),
            ]);
        }
        if self.directory_per_db {
            args.push("--directoryperdb".into());
        }
        let mut parameters = self.parameters.clone();
        // Since 5.0 a member of a set that gets SIGTERM goes on answering for 15 s, for its clients' sake.
        let quiesce = "shutdownTimeoutMillisForSignaledShutdown";
        if version >= (5, 0) && !parameters.iter().any(|(name, _)| name == quiesce) {
            parameters.push((quiesce.into(), "100".into()));
        }
        for (name, value) in parameters {
            args.extend(["--setParameter".into(), format!("{name}={value}")]);
        }
        args.extend(self.extra_args.iter().cloned());
        args
    }
}

/// A mongod on files of its own. It is killed when this is dropped; the files stay.
///
/// Its log is `<dbpath>.log`, beside the data directory, as is what it printed, `<dbpath>.out`.
#[derive(Debug)]
pub struct Mongod {
    dbpath: PathBuf,
    options: MongodOptions,
    binary: MongodBinary,
    port: Arc<PortLease>,
    process: Option<Process>,
}

impl Mongod {
    /// Starts a mongod and returns when it listens. The directory is made if it is not there.
    pub async fn start(dbpath: impl AsRef<Path>, options: MongodOptions) -> Result<Self> {
        let dbpath = dbpath.as_ref();
        fs::create_dir_all(dbpath).doing(format_args!("making {}", dbpath.display()))?;
        let dbpath = fs::canonicalize(dbpath).doing(format_args!("resolving {}", dbpath.display()))?;
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            // It may run a download.
            None => tokio::task::spawn_blocking(MongodBinary::locate)
                .await
                .map_err(|error| RigError::Check(format!("looking for mongod: {error}")))??,
        };
        let fixed = options.port.clone();
        let mut attempt = 0;
        loop {
            let port = match &fixed {
                Some(lease) => Arc::clone(lease),
                None => Arc::new(PortLease::take()?),
            };
            let mut mongod = Self {
                dbpath: dbpath.clone(),
                options: options.clone(),
                binary: binary.clone(),
                port,
                process: None,
            };
            attempt += 1;
            match mongod.launch().await? {
                Launch::Listening => return Ok(mongod),
                // A program that knows nothing of leases was quicker.
                Launch::PortTaken if fixed.is_none() && attempt < 5 => continue,
                Launch::PortTaken => return Err(mongod.failure("finds its port taken")),
            }
        }
    }

    /// Starts it again, on the same files, port and options.
    pub async fn restart(&mut self) -> Result<()> {
        if self.is_running() {
            return Err(RigError::Check(format!(
                "mongod on {} is running",
                self.dbpath.display()
            )));
        }
        match self.launch().await? {
            Launch::Listening => Ok(()),
            Launch::PortTaken => Err(self.failure("finds its port taken")),
        }
    }

    /// Starts it again on the same files and port with other options.
    pub async fn restart_with(&mut self, options: MongodOptions) -> Result<()> {
        if let Some(binary) = &options.binary {
            self.binary = binary.clone();
        }
        self.options = options;
        self.restart().await
    }

    async fn launch(&mut self) -> Result<Launch> {
        let mut log = LogTail::at_end(self.log_path());
        let output = File::create(self.output_path())
            .doing(format_args!("making {}", self.output_path().display()))?;
        let version = self.binary.version();
        let args = self
            .options
            .command_line(version, &self.dbpath, &self.log_path(), self.port.port());
        let process = self
            .process
            .insert(Process::spawn(self.binary.path(), &args, output)?);
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            // Its own log and not a ping: another server may be the one that answers on the port, and a ping fails
            // where TLS is required. 23016 is "Waiting for connections".
            if log.contains(r#""id":23016,"#)? {
                return Ok(Launch::Listening);
            }
            if let Some(status) = process.ended()? {
                self.process = None;
                if status.code() == Some(EXIT_PORT_TAKEN) {
                    return Ok(Launch::PortTaken);
                }
                return Err(self.failure(format!("ended at its start: {status}")));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(self.failure(format!("does not listen after {} s", PATIENCE.as_secs())))
    }

    /// SIGTERM, and waits for the end: the files are then as a clean shutdown leaves them.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        process.signal(Signal::TERM)?;
        let status = process.wait(PATIENCE).await?;
        match status {
            Some(status) if status.success() => {
                self.process = None;
                Ok(())
            }
            Some(status) => {
                self.process = None;
                Err(self.failure(format!("did not stop cleanly: {status}")))
            }
            None => Err(self.failure(format!("does not stop, {} s after SIGTERM", PATIENCE.as_secs()))),
        }
    }

    /// SIGKILL: the files are as a crash of the process leaves them.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Sends any signal, `STOP` and `CONT` for instance.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match &self.process {
            Some(process) => process.signal(signal),
            None => Err(RigError::Check(format!(
                "mongod on {} is not running",
                self.dbpath.display()
            ))),
        }
    }

    /// Whether the process is there.
    pub fn is_running(&mut self) -> bool {
        match &mut self.process {
            Some(process) => matches!(process.ended(), Ok(None)),
            None => false,
        }
    }

    /// The process id, of a running server.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Its data directory, absolute.
    pub fn dbpath(&self) -> &Path {
        &self.dbpath
    }

    /// Its log: JSON lines, of all its starts.
    pub fn log_path(&self) -> PathBuf {
        beside(&self.dbpath, "log")
    }

    fn output_path(&self) -> PathBuf {
        beside(&self.dbpath, "out")
    }

    /// The options of the last start.
    pub fn options(&self) -> &MongodOptions {
        &self.options
    }

    /// The executable.
    pub fn binary(&self) -> &MongodBinary {
        &self.binary
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port.port()
    }

    /// Its port's lease: hand it to another server that shall take over the address.
    pub fn lease(&self) -> Arc<PortLease> {
        Arc::clone(&self.port)
    }

    /// `127.0.0.1:<port>`.
    pub fn host(&self) -> String {
        self.port.host()
    }

    /// Reaches this server and no other member of its set.
    pub fn uri(&self) -> String {
        format!("mongodb://{}/?directConnection=true", self.host())
    }

    /// A client of this server alone. Make a new one after a set was initiated or the server was started with other
    /// options: a client remembers what kind of server it saw first.
    pub async fn client(&self) -> Result<Client> {
        client(&self.uri()).await
    }

    /// Runs a command on its `admin` database.
    pub async fn admin(&self, command: Document) -> Result<Document> {
        let name = command.keys().next().cloned().unwrap_or_default();
        let client = self.client().await?;
        client
            .database("admin")
            .run_command(command)
            .await
            .doing(format_args!("{name} on {}", self.host()))
    }

    /// What it says of its role.
    pub async fn hello(&self) -> Result<Document> {
        self.admin(doc! {"hello": 1}).await
    }

    fn failure(&self, what: impl Into<String>) -> RigError {
        let mut log = last_lines(&self.output_path(), 5);
        log.push_str(&last_lines(&self.log_path(), 25));
        RigError::Mongod {
            dbpath: self.dbpath.clone(),
            what: what.into(),
            log,
        }
    }
}

/// A client for any address, one that notices quickly when another member becomes primary.
pub async fn client(uri: &str) -> Result<Client> {
    let mut options = ClientOptions::parse(uri)
        .await
        .doing(format_args!("parsing {uri}"))?;
    options.heartbeat_freq = Some(Duration::from_millis(500));
    Client::with_options(options).doing(format_args!("making a client for {uri}"))
}

enum Launch {
    Listening,
    PortTaken,
}

/// Reads what is appended to a log.
struct LogTail {
    path: PathBuf,
    offset: u64,
    text: String,
}

impl LogTail {
    fn at_end(path: PathBuf) -> Self {
        let offset = fs::metadata(&path).map_or(0, |meta| meta.len());
        Self {
            path,
            offset,
            text: String::new(),
        }
    }

    fn contains(&mut self, pattern: &str) -> Result<bool> {
        let Ok(mut file) = File::open(&self.path) else {
            return Ok(false);
        };
        let doing = || format!("reading {}", self.path.display());
        file.seek(SeekFrom::Start(self.offset)).doing(doing())?;
        let mut bytes = Vec::new();
        let count = file.read_to_end(&mut bytes).doing(doing())?;
        self.offset += count as u64;
        self.text.push_str(&String::from_utf8_lossy(&bytes));
        let found = self.text.contains(pattern);
        // The pattern may be cut by the end of what was read: the line that is not finished stays.
        if let Some(end) = self.text.rfind('\n') {
            self.text.drain(..=end);
        }
        Ok(found)
    }
}

fn beside(dbpath: &Path, extension: &str) -> PathBuf {
    let mut name = dbpath.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

fn last_lines(path: &Path, count: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..]
        .iter()
        .map(|line| format!("  {line}\n"))
        .collect()
}
