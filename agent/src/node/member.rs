//! Which member of a replica set is backed up, and whether its files are here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mongodb::bson::{Document, doc};
use mongodb::options::ClientOptions;

use super::server::{CommandFailure, Hello, Server, integer, parse_uri};
use crate::error::SourceError;
use crate::source::MemberRole;

/// Numbers of replSetGetStatus.
const STATE_PRIMARY: i64 = 1;
const STATE_SECONDARY: i64 = 2;
const STATE_RECOVERING: i64 = 3;
const STATE_ROLLBACK: i64 = 9;

/// Where to look, in the order to try.
pub(crate) enum Choice {
    /// The user named this one: it or none.
    Only(String),
    /// The best first.
    BestOf { replset: String, nodes: Vec<String> },
}

/// A member that may be locked, and whose files are here as far as can be told before the lock.
pub(crate) struct Member {
    pub server: Server,
    pub hello: Hello,
    pub role: MemberRole,
    pub dbpath: PathBuf,
    pub command_line: Document,
    pub engine: String,
}

/// Decides where to look. `--node` or `directConnection=true` name one member; a standalone is the only one anyway;
/// of a set it is the secondary with the least lag, and the primary last.
pub(crate) async fn choose(uri: &str, node: Option<&str>) -> Result<(ClientOptions, Choice), SourceError> {
    let parsed = parse_uri(uri).await.map_err(|failure| failure.on("the server"))?;
    if let Some(node) = node {
        return Ok((parsed, Choice::Only(node.to_owned())));
    }
    let seeds: Vec<String> = parsed.hosts.iter().map(ToString::to_string).collect();
    if parsed.direct_connection == Some(true)
        && let [only] = seeds.as_slice()
    {
        return Ok((parsed.clone(), Choice::Only(only.clone())));
    }

    let (seed, hello) = first_answer(&parsed, &seeds).await?;
    refuse_by_kind(&seed, &hello, false)?;
    let Some(replset) = hello.text("setName").map(str::to_owned) else {
        return Ok((parsed, Choice::Only(seed)));
    };
    let status = set_status(&parsed, &seed, &hello).await?;
    let nodes = ranked(&status, &seed, &hello);
    tracing::debug!(replset, ?nodes, "members in the order in which they are tried");
    Ok((parsed, Choice::BestOf { replset, nodes }))
}

async fn first_answer(options: &ClientOptions, seeds: &[String]) -> Result<(String, Hello), SourceError> {
    let mut first_failure = None;
    for seed in seeds {
        match Server::anonymous_hello(options, seed).await {
            Ok(hello) => return Ok((seed.clone(), hello)),
            Err(failure) => {
                first_failure.get_or_insert(failure.on(seed));
            }
        }
    }
    Err(first_failure.unwrap_or(SourceError::Uri {
        reason: "it names no host".into(),
    }))
}

/// Asks the seed, or, since an arbiter knows no users, any other member that it knows.
async fn set_status(options: &ClientOptions, seed: &str, hello: &Hello) -> Result<Document, SourceError> {
    let mut nodes = Vec::new();
    if !hello.flag("arbiterOnly") {
        nodes.push(seed.to_owned());
    }
    for list in ["hosts", "passives"] {
        let names = hello.0.get_array(list).into_iter().flatten();
        nodes.extend(names.filter_map(|name| name.as_str().map(str::to_owned)));
    }
    let mut first_failure = None;
    for node in nodes {
        let status = async {
            Server::connect(options, &node)
                .await?
                .run("admin", doc! {"replSetGetStatus": 1})
                .await
        };
        match status.await {
            Ok(status) => return Ok(status),
            Err(failure) => {
                first_failure.get_or_insert(failure.on(&node));
            }
        }
    }
    Err(first_failure.unwrap_or(SourceError::Uri {
        reason: "it names no data-bearing member".into(),
    }))
}

/// Secondaries by lag, then members that may be here and are unwell (to say so, rather than to lock the primary in
/// silence), then the primary. A member in initial sync has no users yet and is passed over.
fn ranked(status: &Document, seed: &str, hello: &Hello) -> Vec<String> {
    let mut members: Vec<(i64, i64, String)> = status
        .get_array("members")
        .into_iter()
        .flatten()
        .filter_map(|member| {
            let member = member.as_document()?;
            let name = member.get_str("name").ok()?;
            let healthy = integer(member, "health") != Some(0);
            let rank = match integer(member, "state")? {
                STATE_SECONDARY if healthy => 0,
                STATE_RECOVERING | STATE_ROLLBACK if healthy => 1,
                STATE_PRIMARY => 2,
                _ => return None,
            };
            let applied = member
                .get_datetime("optimeDate")
                .map_or(0, |applied| applied.timestamp_millis());
            // The address that reached the seed reaches it again; its name in the config may not resolve here.
            let node = if hello.text("me") == Some(name) {
                seed
            } else {
                name
            };
            Some((rank, -applied, node.to_owned()))
        })
        .collect();
    members.sort();
    members.into_iter().map(|(_, _, node)| node).collect()
}

/// Connects to a member and refuses what cannot be locked here.
pub(crate) async fn inspect(
    options: &ClientOptions,
    node: &str,
    dbpath: Option<&Path>,
) -> Result<Member, SourceError> {
    let on_node = |failure: CommandFailure| failure.on(node);
    let hello = Server::anonymous_hello(options, node).await.map_err(on_node)?;
    refuse_by_kind(node, &hello, true)?;
    refuse_other_set(node, options.repl_set_name.as_deref(), hello.text("setName"))?;
    let readable = hello.flag("isWritablePrimary") || hello.flag("secondary");
    let server = match Server::connect(options, node).await {
        Ok(server) => server,
        // In initial sync a member has no users yet, so a right password is refused too.
        Err(CommandFailure::WrongPassword) if !readable => {
            return Err(SourceError::MemberState {
                node: node.into(),
                state: "STARTUP".into(),
            });
        }
        Err(failure) => return Err(failure.on(node)),
    };

    let command_line = server
        .run("admin", doc! {"getCmdLineOpts": 1})
        .await
        .map_err(on_node)?;
    let status = server
        .run("admin", doc! {"serverStatus": 1, "repl": 0, "metrics": 0})
        .await
        .map_err(on_node)?;
    let pid = integer(&status, "pid").unwrap_or(0);
    let dbpath = match dbpath {
        Some(path) => path.to_owned(),
        None => told_dbpath(&command_line, node, pid)?,
    };
    prove_local(&dbpath, node, pid)?;
    if !readable {
        return Err(SourceError::MemberState {
            node: node.into(),
            state: state_of(&server).await,
        });
    }
    let engine = status
        .get_document("storageEngine")
        .ok()
        .and_then(|engine| engine.get_str("name").ok());
    let engine = engine.unwrap_or("unknown").to_owned();
    if engine != "wiredTiger" {
        return Err(SourceError::Engine {
            node: node.into(),
            engine,
        });
    }
    let role = match (hello.text("setName"), hello.flag("secondary")) {
        (None, _) => MemberRole::Standalone,
        (Some(_), true) => MemberRole::Secondary,
        (Some(_), false) => MemberRole::Primary,
    };
    Ok(Member {
        server,
        hello,
        role,
        dbpath,
        command_line,
        engine,
    })
}

fn refuse_by_kind(node: &str, hello: &Hello, arbiter_too: bool) -> Result<(), SourceError> {
    let node = node.to_owned();
    if hello.text("msg") == Some("isdbgrid") {
        Err(SourceError::Mongos { node })
    } else if hello.text("setName").is_none() && hello.flag("isreplicaset") {
        Err(SourceError::NotInitiated { node })
    } else if arbiter_too && hello.flag("arbiterOnly") {
        let replset = hello.text("setName").unwrap_or("the set").to_owned();
        Err(SourceError::Arbiter { node, replset })
    } else {
        Ok(())
    }
}

/// The driver would look for a member of the set that the connection string names, and find none.
fn refuse_other_set(node: &str, asked: Option<&str>, found: Option<&str>) -> Result<(), SourceError> {
    match asked {
        Some(asked) if Some(asked) != found => {
            let found = found.map_or("of no replica set".into(), |found| {
                format!("of the replica set {found}")
            });
            Err(SourceError::Uri {
                reason: format!("it asks for the replica set {asked}, but {node} is a member {found}"),
            })
        }
        _ => Ok(()),
    }
}

async fn state_of(server: &Server) -> String {
    let Ok(status) = server.run("admin", doc! {"replSetGetStatus": 1}).await else {
        return "unknown".into();
    };
    let own = status
        .get_array("members")
        .into_iter()
        .flatten()
        .filter_map(|member| member.as_document());
    let mut own = own.filter(|member| member.get_bool("self").unwrap_or(false));
    own.next()
        .and_then(|member| member.get_str("stateStr").ok())
        .unwrap_or("unknown")
        .to_owned()
}

/// The dbPath as the server was told it. A relative one is relative to where the server was started.
fn told_dbpath(command_line: &Document, node: &str, pid: i64) -> Result<PathBuf, SourceError> {
    let storage = command_line
        .get_document("parsed")
        .and_then(|parsed| parsed.get_document("storage"));
    let told = storage
        .ok()
        .and_then(|storage| storage.get_str("dbPath").ok())
        .unwrap_or("/data/db");
    let told = PathBuf::from(told);
    if told.is_absolute() {
        return Ok(told);
    }
    if let Some(open) = open_dbpath(&told, pid) {
        return Ok(open);
    }
    match fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(cwd) => Ok(cwd.join(told)),
        Err(error) => Err(SourceError::NotThisServer {
            node: node.into(),
            dbpath: told,
            reason: format!("it is relative, and the directory of process {pid} cannot be read: {error}"),
        }),
    }
}

/// The directory of the `mongod.lock` that the process holds open: `--fork` moves it away from where it was started.
fn open_dbpath(told: &Path, pid: i64) -> Option<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let mut targets = entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    let lock = targets.find(|target| target.ends_with("mongod.lock"))?;
    let dbpath = lock.parent()?;
    (dbpath.file_name() == told.file_name()).then(|| dbpath.to_owned())
}

/// A running mongod keeps its process id in `mongod.lock`. Many machines have a mongod on the same path, so the path
/// proves nothing; the id nearly does, and what is left (process 1 of two containers) comes out when
/// `WiredTiger.backup` does not appear with the lock.
fn prove_local(dbpath: &Path, node: &str, pid: i64) -> Result<(), SourceError> {
    let not_here = |reason: String| SourceError::NotThisServer {
        node: node.into(),
        dbpath: dbpath.into(),
        reason,
    };
    let path = dbpath.join("mongod.lock");
    let held_by = match fs::read_to_string(&path) {
        Ok(text) => text.trim().to_owned(),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            let what = if dbpath.exists() {
                "no mongod runs on it"
            } else {
                "it does not exist on this machine"
            };
            return Err(not_here(what.into()));
        }
        Err(error) => return Err(SourceError::io(path, error)),
    };
    if held_by.is_empty() {
        return Err(not_here("no mongod runs on it".into()));
    }
    if held_by != pid.to_string() {
        return Err(not_here(format!(
            "process {held_by} has it, the server is process {pid}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
