//! What a member holds, by its own word: `dbHash` and a count of each collection.
//!
//! Run under the lock, so that the answer belongs to the very state that the files hold. It reads every document,
//! and writes stay blocked for as long: it is for tests and for the careful, and only on request.

use std::collections::BTreeMap;

use mongodb::bson::{Document, doc};

use crate::node::server::{CommandFailure, Server, integer};
use crate::source::DbHashes;

/// Every database but `local`, which is each member's own.
pub(crate) async fn record(server: &Server) -> Result<Vec<DbHashes>, CommandFailure> {
    let reply = server
        .run_patiently("admin", doc! {"listDatabases": 1, "nameOnly": true})
        .await?;
    let mut all = Vec::new();
    for database in documents(&reply, "databases") {
        if let Ok(name) = database.get_str("name")
            && name != "local"
        {
            all.push(one(server, name).await?);
        }
    }
    all.sort_by(|a, b| a.db.cmp(&b.db));
    Ok(all)
}

async fn one(server: &Server, db: &str) -> Result<DbHashes, CommandFailure> {
    let reply = server.run_patiently(db, doc! {"dbHash": 1}).await?;
    let mut collections = BTreeMap::new();
    for (name, hash) in reply.get_document("collections").into_iter().flatten() {
        if let Some(hash) = hash.as_str() {
            collections.insert(name.clone(), hash.to_owned());
        }
    }
    let mut counts = BTreeMap::new();
    for name in collections.keys() {
        match count(server, db, name).await {
            Ok(count) => {
                counts.insert(name.clone(), count);
            }
            // dbHash tells of collections that only `root` may read (system.keys and the like).
            Err(CommandFailure::NotAllowed { .. }) => {
                tracing::debug!(db, name, "may not be read: its documents are not counted");
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(DbHashes {
        db: db.to_owned(),
        hash: reply.get_str("md5").unwrap_or_default().to_owned(),
        collections,
        counts,
    })
}

/// Counts one by one: the size that the server remembers is wrong after a crash.
async fn count(server: &Server, db: &str, collection: &str) -> Result<u64, CommandFailure> {
    let command = doc! {
        "aggregate": collection,
        "pipeline": [{"$group": {"_id": null, "n": {"$sum": 1}}}],
        "cursor": {},
    };
    let reply = server.run_patiently(db, command).await?;
    let group = reply
        .get_document("cursor")
        .ok()
        .and_then(|cursor| documents(cursor, "firstBatch").next().cloned());
    Ok(group
        .and_then(|group| integer(&group, "n"))
        .and_then(|n| u64::try_from(n).ok())
        .unwrap_or(0))
}

fn documents<'a>(reply: &'a Document, key: &str) -> impl Iterator<Item = &'a Document> + use<'a> {
    reply
        .get_array(key)
        .into_iter()
        .flatten()
        .filter_map(|value| value.as_document())
}
