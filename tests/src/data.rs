//! A data set with a fixed seed: the same seed and size give the same documents, so the same `dbHash`, everywhere.
//!
//! | collection | share | documents | secondary indexes |
//! |---|---|---|---|
//! | `rig_shop.orders` | 50 % | about 1 KiB of text and numbers, compressible | `customer`, `(status, placed)` |
//! | `rig_shop.users` | 10 % | about 200 bytes | `email`, unique |
//! | `rig_media.blobs` | 30 % | 4 to 64 KiB of random bytes, incompressible | `checksum` |
//! | `rig_media.events` | 10 % | about 100 bytes | `at`; `(kind, at)`, partial |
//! | `rig_media.empty` | | none | `nothing`, sparse |
//! | `rig_shop.open_orders` | | a view | |

use futures::future::try_join_all;
use mongodb::{
    Client,
    bson::{Binary, DateTime, Document, RawDocumentBuf, doc, oid::ObjectId, spec::BinarySubtype},
};

use crate::{
    error::{Doing, Result},
    prng::Prng,
};

/// How much is sent with one insert.
const BATCH_BYTES: usize = 2 << 20;

/// 2024-01-01, in milliseconds: no date in the data depends on when it is made.
const EPOCH: i64 = 1_704_067_200_000;

/// Which data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSpec {
    /// The seed.
    pub seed: u64,
    /// About how many bytes of documents, without indexes.
    pub bytes: u64,
}

impl DataSpec {
    /// This much data of the usual seed: 20 for CI, 2000 for a benchmark.
    pub fn megabytes(megabytes: u64) -> Self {
        Self {
            seed: 20_240_101,
            bytes: megabytes * 1_000_000,
        }
    }
}

/// What was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Documents, over all collections.
    pub documents: u64,
    /// Their bytes as BSON.
    pub bytes: u64,
}

#[derive(Clone, Copy)]
enum Kind {
    Orders,
    Users,
    Blobs,
    Events,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Orders, Kind::Users, Kind::Blobs, Kind::Events];

    fn namespace(self) -> (&'static str, &'static str) {
        match self {
            Kind::Orders => ("rig_shop", "orders"),
            Kind::Users => ("rig_shop", "users"),
            Kind::Blobs => ("rig_media", "blobs"),
            Kind::Events => ("rig_media", "events"),
        }
    }

    fn percent(self) -> u64 {
        match self {
            Kind::Orders => 50,
            Kind::Blobs => 30,
            Kind::Users | Kind::Events => 10,
        }
    }

    fn indexes(self) -> Vec<Document> {
        match self {
            Kind::Orders => vec![
                doc! {"key": {"customer": 1}, "name": "customer_1"},
                doc! {"key": {"status": 1, "placed": -1}, "name": "status_1_placed_-1"},
            ],
            Kind::Users => vec![doc! {"key": {"email": 1}, "name": "email_1", "unique": true}],
            Kind::Blobs => vec![doc! {"key": {"checksum": 1}, "name": "checksum_1"}],
            Kind::Events => vec![
                doc! {"key": {"at": 1}, "name": "at_1"},
                doc! {
                    "key": {"kind": 1, "at": 1}, "name": "kind_1_at_1",
                    "partialFilterExpression": {"kind": "error"},
                },
            ],
        }
    }

    fn document(self, number: i64, prng: &mut Prng) -> Document {
        let at = DateTime::from_millis(EPOCH + number * 1_000);
        match self {
            Kind::Orders => doc! {
                "_id": number,
                "customer": prng.below(5_000) as i64,
                "status": prng.pick(&["open", "paid", "sent", "returned"]),
                "placed": at,
                "lines": (0..1 + prng.below(4)).map(|_| doc! {
                    "article": prng.below(800) as i32, "count": 1 + prng.below(9) as i32,
                    "price": prng.below(100_000) as f64 / 100.0,
                }).collect::<Vec<_>>(),
                "note": prng.text(700),
            },
            Kind::Users => doc! {
                "_id": object_id(prng),
                "email": format!("user{number}@example.org"),
                "name": prng.text(20),
                "address": {"street": prng.text(40), "zip": prng.below(99_999) as i32},
                "since": at,
            },
            Kind::Blobs => {
                let size = 4_096 + prng.below(61_440) as usize;
                doc! {
                    "_id": object_id(prng),
                    "checksum": prng.next_u64() as i64,
                    "bytes": Binary { subtype: BinarySubtype::Generic, bytes: prng.bytes(size) },
                }
            }
            Kind::Events => doc! {
                "_id": object_id(prng),
                "at": at,
                "kind": prng.pick(&["login", "click", "click", "click", "error"]),
                "value": prng.next_u64() as i64,
            },
        }
    }
}

/// Loads the data set; nothing of it may be there yet. The server's own write concern counts: from 5.0 on the data is on
/// a majority of the set when this returns.
pub async fn load(client: &Client, spec: &DataSpec) -> Result<Loaded> {
    let media = client.database("rig_media");
    media
        .create_collection("empty")
        .await
        .doing("creating rig_media.empty")?;
    let index = doc! {"key": {"nothing": 1}, "name": "nothing_1", "sparse": true};
    media
        .run_command(doc! {"createIndexes": "empty", "indexes": [index]})
        .await
        .doing("indexing rig_media.empty")?;
    let loads = Kind::ALL
        .into_iter()
        .zip(0..)
        .map(|(kind, part)| load_one(client, spec, kind, part));
    let parts = try_join_all(loads).await?;
    client
        .database("rig_shop")
        .run_command(doc! {
            "create": "open_orders", "viewOn": "orders", "pipeline": [{"$match": {"status": "open"}}],
        })
        .await
        .doing("creating the view rig_shop.open_orders")?;
    Ok(parts.into_iter().fold(Loaded::default(), |sum, part| Loaded {
        documents: sum.documents + part.documents,
        bytes: sum.bytes + part.bytes,
    }))
}

async fn load_one(client: &Client, spec: &DataSpec, kind: Kind, part: u64) -> Result<Loaded> {
    let (db, name) = kind.namespace();
    let database = client.database(db);
    let doing = || format!("loading {db}.{name}");
    // The indexes come first, so that they grow with the data as a real server's do.
    database.create_collection(name).await.doing(doing())?;
    database
        .run_command(doc! {"createIndexes": name, "indexes": kind.indexes()})
        .await
        .doing(doing())?;
    let collection = database.collection::<RawDocumentBuf>(name);
    let limit = spec.bytes / 100 * kind.percent();
    let mut prng = Prng::for_part(spec.seed, part);
    let mut loaded = Loaded::default();
    while loaded.bytes < limit {
        let (mut batch, mut size) = (Vec::new(), 0);
        while size < BATCH_BYTES && loaded.bytes + (size as u64) < limit {
            let document = kind.document((loaded.documents + batch.len() as u64) as i64, &mut prng);
            let raw = RawDocumentBuf::from_document(&document).doing(doing())?;
            size += raw.as_bytes().len();
            batch.push(raw);
        }
        let count = batch.len() as u64;
        collection.insert_many(batch).await.doing(doing())?;
        loaded.documents += count;
        loaded.bytes += size as u64;
    }
    Ok(loaded)
}

/// Changes about one order in `one_in`, chosen at random over the whole collection and for good: what an increment has
/// to carry. Each round chooses others. Returns how many were changed.
pub async fn update_orders(client: &Client, spec: &DataSpec, one_in: u64, round: u64) -> Result<u64> {
    let orders = client.database("rig_shop").collection::<Document>("orders");
    let total = orders
        .count_documents(doc! {})
        .await
        .doing("counting rig_shop.orders")?;
    let mut prng = Prng::for_part(spec.seed, 1_000 + round);
    let mut changed = 0;
    let updates: Vec<_> = (0..total / one_in.max(1))
        .map(|_| {
            let set = doc! {"status": format!("changed in round {round}"), "note": prng.text(700)};
            doc! {"q": {"_id": prng.below(total) as i64}, "u": {"$set": set}}
        })
        .collect();
    for batch in updates.chunks(1_000) {
        let reply = client
            .database("rig_shop")
            .run_command(
                doc! {"update": "orders", "updates": batch.to_vec(), "writeConcern": {"w": "majority"}},
            )
            .await
            .doing("updating rig_shop.orders")?;
        changed += u64::from(
            reply
                .get_i32("n")
                .doing("updating rig_shop.orders")?
                .unsigned_abs(),
        );
    }
    Ok(changed)
}

/// From the generator and not from the clock; unlike a driver's they do not rise, so inserts scatter over the _id index.
fn object_id(prng: &mut Prng) -> ObjectId {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&prng.next_u64().to_be_bytes());
    bytes[8..].copy_from_slice(&prng.next_u64().to_be_bytes()[..4]);
    ObjectId::from_bytes(bytes)
}
