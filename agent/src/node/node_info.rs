//! Asks a member what a snapshot should remember of it.

use mongodb::bson::{Bson, Document, doc};

use super::member::Member;
use super::server::{CommandFailure, Server};
use crate::source::{NodeInfo, SourceKind, StorageOptions};

/// All but what only the pin tells. Run before the pin: a lock keeps writes blocked for shorter.
pub(crate) async fn collect(member: &Member, source: SourceKind) -> Result<NodeInfo, CommandFailure> {
    let Member {
        server, hello, role, ..
    } = member;
    let build = server.run("admin", doc! {"buildInfo": 1}).await?;
    let fcv = server
        .run(
            "admin",
            doc! {"getParameter": 1, "featureCompatibilityVersion": 1},
        )
        .await?;
    let fcv = fcv
        .get_document("featureCompatibilityVersion")
        .ok()
        .and_then(|fcv| text(fcv, "version"));
    let replset = hello.text("setName").map(str::to_owned);
    let config = match replset {
        Some(_) => {
            let reply = server.run("admin", doc! {"replSetGetConfig": 1}).await?;
            reply.get_document("config").ok().cloned()
        }
        None => None,
    };
    let (cluster_id, shard) = cluster(server, hello.0.contains_key("configsvr")).await?;

    Ok(NodeInfo {
        replset,
        replica_set_id: config.as_ref().and_then(replica_set_id),
        cluster_id,
        shard,
        node: Some(hello.text("me").unwrap_or(server.node()).to_owned()),
        role: Some(*role),
        mongod_version: text(&build, "version"),
        fcv,
        storage: Some(storage(&member.command_line, &member.engine)),
        replset_config: config.map(|config| Bson::Document(config).into_canonical_extjson()),
        ..NodeInfo::unknown(source)
    })
}

/// The id of the sharded cluster, and the member's place in it. Every database may be read by the `backup` role,
/// but it is not worth a failed backup if it may not.
async fn cluster(
    server: &Server,
    config_server: bool,
) -> Result<(Option<String>, Option<String>), CommandFailure> {
    let found = if config_server {
        first(server, "config", doc! {"find": "version", "limit": 1}).await?
    } else {
        first(
            server,
            "admin",
            doc! {"find": "system.version", "filter": {"_id": "shardIdentity"}},
        )
        .await?
    };
    let Some(found) = found else {
        return Ok((None, None));
    };
    let id = found.get_object_id("clusterId").ok().map(|id| id.to_hex());
    let shard = if config_server {
        Some("config".into())
    } else {
        text(&found, "shardName")
    };
    Ok((id, shard))
}

async fn first(server: &Server, db: &str, find: Document) -> Result<Option<Document>, CommandFailure> {
    let reply = match server.run(db, find).await {
        Ok(reply) => reply,
        Err(CommandFailure::NotAllowed { .. }) => {
            tracing::debug!(
                node = server.node(),
                db,
                "may not be read: the cluster's id is not recorded"
            );
            return Ok(None);
        }
        Err(failure) => return Err(failure),
    };
    let batch = reply
        .get_document("cursor")
        .and_then(|cursor| cursor.get_array("firstBatch"))
        .ok();
    Ok(batch.and_then(|batch| batch.first()?.as_document().cloned()))
}

fn replica_set_id(config: &Document) -> Option<String> {
    config
        .get_document("settings")
        .ok()?
        .get_object_id("replicaSetId")
        .ok()
        .map(|id| id.to_hex())
}

fn storage(command_line: &Document, engine: &str) -> StorageOptions {
    let empty = Document::new();
    let at = |document: &Document, key: &str| document.get_document(key).cloned().unwrap_or_default();
    let storage = at(command_line.get_document("parsed").unwrap_or(&empty), "storage");
    let wired_tiger = at(&storage, "wiredTiger");
    StorageOptions {
        engine: engine.to_owned(),
        directory_per_db: storage.get_bool("directoryPerDB").unwrap_or(false),
        directory_for_indexes: at(&wired_tiger, "engineConfig")
            .get_bool("directoryForIndexes")
            .unwrap_or(false),
        block_compressor: text(&at(&wired_tiger, "collectionConfig"), "blockCompressor"),
        journal_compressor: text(&at(&wired_tiger, "engineConfig"), "journalCompressor"),
    }
}

fn text(document: &Document, key: &str) -> Option<String> {
    document.get_str(key).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests;
