//! What a server holds, as a value that can be compared and printed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use futures::TryStreamExt;
use mongodb::{
    Client, Database,
    bson::{Document, doc},
};

use crate::error::{Doing, Result, RigError};

/// Which databases are looked at. `local` never is: it differs by member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Scope {
    /// All but `config` and `local`. A running set changes `config` by itself: sessions, transactions, images.
    #[default]
    Data,
    /// With `config`: for servers that nothing writes to, and for what a sharded cluster knows.
    WithConfig,
}

/// What a server holds: each collection's hash, number of documents and indexes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Digest {
    databases: BTreeMap<String, DatabaseDigest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct DatabaseDigest {
    hash: String,
    collections: BTreeMap<String, CollectionDigest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct CollectionDigest {
    hash: String,
    documents: u64,
    indexes: Vec<String>,
}

/// The digest of all data; see [`digest_of`].
pub async fn digest(client: &Client) -> Result<Digest> {
    digest_of(client, Scope::Data).await
}

/// Reads everything on the server (`dbHash` and a count by scanning), so it takes as long as reading the data does, and
/// means something only while nobody writes. On a secondary give it a direct client.
pub async fn digest_of(client: &Client, scope: Scope) -> Result<Digest> {
    let mut databases = BTreeMap::new();
    for name in database_names(client, scope).await? {
        databases.insert(name.clone(), digest_database(&client.database(&name)).await?);
    }
    Ok(Digest { databases })
}

async fn database_names(client: &Client, scope: Scope) -> Result<Vec<String>> {
    let mut names = client.list_database_names().await.doing("listing databases")?;
    names.retain(|name| name != "local" && (name != "config" || scope == Scope::WithConfig));
    names.sort();
    Ok(names)
}

/// The names of everything that has documents of its own: no views, and a time series by its buckets.
async fn collection_names(database: &Database) -> Result<Vec<String>> {
    let command = doc! {"listCollections": 1, "filter": {"type": "collection"}, "nameOnly": true};
    let cursor = database
        .run_cursor_command(command)
        .await
        .doing(format_args!("listing collections of {}", database.name()))?;
    let entries: Vec<Document> = cursor
        .try_collect()
        .await
        .doing(format_args!("listing collections of {}", database.name()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(
            entry
                .get_str("name")
                .doing("reading a collection's name")?
                .to_owned(),
        );
    }
    names.sort();
    Ok(names)
}

async fn digest_database(database: &Database) -> Result<DatabaseDigest> {
    let doing = |what: &str| format!("{what} of {}", database.name());
    let reply = database
        .run_command(doc! {"dbHash": 1})
        .await
        .doing(doing("dbHash"))?;
    let hashes = reply.get_document("collections").doing(doing("dbHash"))?;
    let mut collections = BTreeMap::new();
    for name in collection_names(database).await? {
        let collection = database.collection::<Document>(&name);
        let documents = collection
            .count_documents(doc! {})
            .await
            .doing(doing(&format!("counting {name}")))?;
        let specs = database
            .run_cursor_command(doc! {"listIndexes": &name})
            .await
            .doing(doing(&format!("listing indexes of {name}")))?;
        let specs: Vec<Document> = specs
            .try_collect()
            .await
            .doing(doing(&format!("listing indexes of {name}")))?;
        let mut indexes: Vec<_> = specs.iter().map(Document::to_string).collect();
        indexes.sort();
        // Collections that members may differ in are not in dbHash's answer.
        let hash = hashes.get_str(&name).unwrap_or("(not hashed)").to_owned();
        collections.insert(
            name,
            CollectionDigest {
                hash,
                documents,
                indexes,
            },
        );
    }
    Ok(DatabaseDigest {
        hash: reply.get_str("md5").doing(doing("dbHash"))?.to_owned(),
        collections,
    })
}

impl Digest {
    /// How many documents there are, over all collections.
    pub fn documents(&self) -> u64 {
        self.databases
            .values()
            .flat_map(|db| db.collections.values())
            .map(|coll| coll.documents)
            .sum()
    }

    /// How many documents a collection has; `None` when there is no such collection.
    pub fn count(&self, database: &str, collection: &str) -> Option<u64> {
        Some(
            self.databases
                .get(database)?
                .collections
                .get(collection)?
                .documents,
        )
    }

    /// Leaves a database out of the comparison.
    #[must_use]
    pub fn without(mut self, database: &str) -> Self {
        self.databases.remove(database);
        self
    }

    /// Each difference as a line, `self` to the left; none when they are equal.
    pub fn diff(&self, other: &Digest) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, left, right) in both(&self.databases, &other.databases) {
            let (left, right) = match (left, right) {
                (Some(left), Some(right)) => (left, right),
                (left, _) => {
                    lines.push(format!("{name}: only on the {}", side(left.is_some())));
                    continue;
                }
            };
            let before = lines.len();
            for (coll, left, right) in both(&left.collections, &right.collections) {
                diff_collection(&format!("{name}.{coll}"), left, right, &mut lines);
            }
            if before == lines.len() && left.hash != right.hash {
                lines.push(format!(
                    "{name}: dbHash {} | {}, by what is no collection",
                    left.hash, right.hash
                ));
            }
        }
        lines
    }

    /// An error that names every difference.
    pub fn check_equal(&self, other: &Digest) -> Result<()> {
        match self.diff(other) {
            lines if lines.is_empty() => Ok(()),
            lines => Err(RigError::Check(format!(
                "the data differs:\n  {}",
                lines.join("\n  ")
            ))),
        }
    }
}

fn diff_collection(
    name: &str,
    left: Option<&CollectionDigest>,
    right: Option<&CollectionDigest>,
    lines: &mut Vec<String>,
) {
    let (Some(left), Some(right)) = (left, right) else {
        lines.push(format!("{name}: only on the {}", side(left.is_some())));
        return;
    };
    if left.documents != right.documents {
        lines.push(format!(
            "{name}: {} documents | {}",
            left.documents, right.documents
        ));
    } else if left.hash != right.hash {
        lines.push(format!(
            "{name}: {} documents each, hash {} | {}",
            left.documents, left.hash, right.hash
        ));
    }
    let sets = [&left.indexes, &right.indexes].map(|list| list.iter().collect::<BTreeSet<_>>());
    for index in sets[0].symmetric_difference(&sets[1]) {
        lines.push(format!(
            "{name}: index only on the {}: {index}",
            side(sets[0].contains(index))
        ));
    }
}

fn side(left: bool) -> &'static str {
    if left { "left" } else { "right" }
}

/// The keys of both maps with what each has.
fn both<'a, V>(
    left: &'a BTreeMap<String, V>,
    right: &'a BTreeMap<String, V>,
) -> impl Iterator<Item = (&'a String, Option<&'a V>, Option<&'a V>)> {
    let names: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    names
        .into_iter()
        .map(|name| (name, left.get(name), right.get(name)))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, database) in &self.databases {
            writeln!(f, "{name}: {}", database.hash)?;
            for (coll, digest) in &database.collections {
                let indexes = digest.indexes.len();
                writeln!(
                    f,
                    "  {coll}: {}, {} documents, {indexes} indexes",
                    digest.hash, digest.documents
                )?;
            }
        }
        Ok(())
    }
}

/// Runs `validate {full: true}` on every collection, `config` included, and returns how many there were. Collections
/// are locked while it works. The error names all that are not valid, with what mongod says of them.
pub async fn validate_all(client: &Client) -> Result<usize> {
    let (mut seen, mut bad) = (0, Vec::new());
    for name in database_names(client, Scope::WithConfig).await? {
        let database = client.database(&name);
        for coll in collection_names(&database).await? {
            let doing = format!("validating {name}.{coll}");
            let reply = database
                .run_command(doc! {"validate": &coll, "full": true})
                .await
                .doing(&doing)?;
            seen += 1;
            if !reply.get_bool("valid").doing(&doing)? {
                let errors = reply
                    .get_array("errors")
                    .map(|list| format!("{list:?}"))
                    .unwrap_or_default();
                bad.push(format!("{name}.{coll}: {errors}"));
            }
        }
    }
    match bad.is_empty() {
        true => Ok(seen),
        false => Err(RigError::Check(format!("not valid:\n  {}", bad.join("\n  ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::{CollectionDigest, DatabaseDigest, Digest};

    fn digest(documents: u64, hash: &str, index: &str) -> Digest {
        let collection = CollectionDigest {
            hash: hash.into(),
            documents,
            indexes: vec![index.into()],
        };
        let database = DatabaseDigest {
            hash: hash.into(),
            collections: [("things".to_owned(), collection)].into(),
        };
        Digest {
            databases: [("shop".to_owned(), database)].into(),
        }
    }

    #[test]
    fn differences_are_named() {
        let left = digest(3, "aa", "x_1");
        assert!(left.check_equal(&left.clone()).is_ok());
        assert_eq!(
            left.diff(&digest(4, "bb", "x_1")),
            ["shop.things: 3 documents | 4"]
        );
        assert_eq!(
            left.diff(&digest(3, "bb", "x_1")),
            ["shop.things: 3 documents each, hash aa | bb"]
        );
        assert_eq!(
            left.diff(&digest(3, "aa", "y_1")),
            [
                "shop.things: index only on the left: x_1",
                "shop.things: index only on the right: y_1"
            ]
        );
        assert_eq!(left.diff(&Digest::default()), ["shop: only on the left"]);
        assert_eq!(left.clone().without("shop"), Digest::default());
    }
}
