//! A data set that changes: the one on which `CHUNKING.md` measured block formats, in any size. The same seed and size
//! give the same documents and the same changes; how WiredTiger lays out their pages differs a little from run to run,
//! because it writes checkpoints by time.
//!
//! | collection of `churn` | share | documents | secondary indexes |
//! |---|---|---|---|
//! | `products` | 37 % | about 1.5 KB of text with Zipf's frequencies | `seller.email`; `(category, price)`; `updated` |
//! | `blobs` | 27 % | 20 to 90 KB of such text | |
//! | `chunks` | 19 % | 1 MiB of random bytes | |
//! | `events` | 17 % | about 115 bytes | `(dev, ts)` |

use futures::future::try_join_all;
use mongodb::{
    Client, Database,
    bson::{Binary, Bson, DateTime, Document, RawDocumentBuf, doc, spec::BinarySubtype},
};

use crate::{
    error::{Doing, Result},
    prng::Prng,
};

/// How much is sent with one command.
const BATCH_BYTES: usize = 4 << 20;

/// How many updates or deletes are sent with one command.
const BATCH_CHANGES: usize = 1_000;

/// 2024-01-01, in milliseconds: no date in the data depends on when it is made.
const EPOCH: i64 = 1_704_067_200_000;

/// When updates begin, in milliseconds after [`EPOCH`].
const UPDATES: i64 = 10_000_000_000;

/// What is in the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Small documents with indexes.
    Products,
    /// Larger ones of text.
    Blobs,
    /// Large ones that no codec makes smaller.
    Chunks,
    /// Many tiny ones, written in the order of time.
    Events,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 4] = [Part::Products, Part::Blobs, Part::Chunks, Part::Events];

    fn collection(self) -> &'static str {
        match self {
            Part::Products => "products",
            Part::Blobs => "blobs",
            Part::Chunks => "chunks",
            Part::Events => "events",
        }
    }

    /// Documents in a million bytes of the data set.
    fn per_megabyte(self) -> f64 {
        match self {
            Part::Products => 243.0,
            Part::Blobs => 4.85,
            Part::Chunks => 0.182,
            Part::Events => 1515.0,
        }
    }

    fn indexes(self) -> Vec<Document> {
        match self {
            Part::Products => vec![
                doc! {"key": {"seller.email": 1}, "name": "seller.email_1"},
                doc! {"key": {"category": 1, "price": 1}, "name": "category_1_price_1"},
                doc! {"key": {"updated": 1}, "name": "updated_1"},
            ],
            Part::Events => vec![doc! {"key": {"dev": 1, "ts": 1}, "name": "dev_1_ts_1"}],
            Part::Blobs | Part::Chunks => Vec::new(),
        }
    }

    /// The document, or what an update sets in it.
    fn document(self, id: i64, words: &Words, prng: &mut Prng, fields: Fields) -> Document {
        let at = DateTime::from_millis(EPOCH + id * 100);
        let mut document = match self {
            Part::Products => doc! {
                "stock": prng.below(1_000) as i32,
                "description": words.text(prng, 1_150),
            },
            Part::Blobs => {
                let size = 20_000 + prng.below(70_000) as usize;
                doc! {"body": words.text(prng, size)}
            }
            Part::Chunks => {
                let bytes = prng.bytes(1 << 20);
                doc! {"data": Binary { subtype: BinarySubtype::Generic, bytes }}
            }
            Part::Events => doc! {"value": prng.below(100_000) as f64 / 100.0},
        };
        if fields == Fields::Changing {
            return document;
        }
        document.insert("_id", id);
        match self {
            Part::Products => {
                document.extend(doc! {
                    "price": prng.below(1_000_000) as f64 / 100.0,
                    "updated": DateTime::from_millis(EPOCH + prng.below(UPDATES as u64) as i64),
                    "title": words.text(prng, 50),
                    "category": words.text(prng, 8),
                    "seller": {
                        "name": words.text(prng, 20),
                        "email": format!("{}.{}@example.org", words.text(prng, 5), prng.below(20_000)),
                        "since": DateTime::from_millis(EPOCH - prng.below(100_000_000_000) as i64),
                    },
                    "tags": (0..4).map(|_| words.text(prng, 4)).collect::<Vec<_>>(),
                });
            }
            Part::Events => {
                document.extend(doc! {
                    "ts": at,
                    "dev": format!("device-{:05}", prng.below(5_000)),
                    "site": prng.below(40) as i32,
                    "sequence": id,
                    "kind": prng.pick(&["temperature", "humidity", "pressure", "door"]),
                });
            }
            Part::Blobs => {
                document.insert("name", format!("{}-{id}.txt", words.text(prng, 6)));
            }
            Part::Chunks => {
                document.insert("n", id);
            }
        }
        document
    }
}

/// Which fields of a document are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fields {
    All,
    Changing,
}

/// Words with Zipf's frequencies.
#[derive(Debug)]
struct Words {
    words: Vec<String>,
    /// Sums of the frequencies up to each word; the last is their total.
    sums: Vec<u64>,
}

impl Words {
    fn new(seed: u64) -> Self {
        const COUNT: usize = 30_000;
        let mut prng = Prng::for_part(seed, 1);
        let letters = b"eeeeettttaaaooiinnsshhrrddlcumwfgypbvk";
        let words = (0..COUNT)
            .map(|rank| {
                // Rare words are longer.
                let shortest = 2 + u64::from((rank + 1).ilog2()) / 4;
                let length = shortest + prng.below(6);
                (0..length).map(|_| char::from(prng.pick(letters))).collect()
            })
            .collect();
        let mut sum = 0;
        let sums = (0..COUNT)
            .map(|rank| {
                sum += (1e12 / (rank as f64 + 2.7)) as u64;
                sum
            })
            .collect();
        Self { words, sums }
    }

    /// About so many bytes.
    fn text(&self, prng: &mut Prng, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes + 16);
        let total = self.sums.last().copied().unwrap_or_default();
        loop {
            let drawn = prng.below(total);
            text.push_str(&self.words[self.sums.partition_point(|sum| *sum <= drawn)]);
            if text.len() >= bytes {
                return text;
            }
            text.push(' ');
        }
    }
}

/// The data set on a server.
#[derive(Debug)]
pub struct Churn {
    database: Database,
    words: Words,
    seed: u64,
    /// The `_id`s of each part that are there.
    ids: [Vec<i64>; 4],
    /// The next one of each part.
    next: [i64; 4],
    /// Changes so far: each draws numbers of its own.
    changes: u64,
}

impl Churn {
    /// Loads about so many megabytes of documents of a seed into an empty server.
    pub async fn load(client: &Client, megabytes: u64, seed: u64) -> Result<Self> {
        let mut churn = Self {
            database: client.database("churn"),
            words: Words::new(seed),
            seed,
            ids: Default::default(),
            next: [0; 4],
            changes: 0,
        };
        for part in Part::ALL {
            let name = part.collection();
            let doing = || format!("making churn.{name}");
            churn.database.create_collection(name).await.doing(doing())?;
            if !part.indexes().is_empty() {
                let command = doc! {"createIndexes": name, "indexes": part.indexes()};
                churn.database.run_command(command).await.doing(doing())?;
            }
        }
        let counts = Part::ALL.map(|part| (part.per_megabyte() * megabytes as f64).ceil() as u64);
        churn.insert(counts).await?;
        Ok(churn)
    }

    /// Appends documents: so many thousandths of what is there.
    pub async fn append(&mut self, parts: &[Part], permille: u64) -> Result<()> {
        let counts = Part::ALL.map(|part| match parts.contains(&part) {
            true => share(self.ids[part as usize].len(), permille),
            false => 0,
        });
        self.insert(counts).await
    }

    /// Changes so many thousandths of the products and blobs, chosen at random: of a blob its text, of a product its text,
    /// its stock, and the time of its last update, which is indexed.
    pub async fn update(&mut self, permille: u64) -> Result<()> {
        for part in [Part::Products, Part::Blobs] {
            let mut prng = self.draw(part);
            let ids = &self.ids[part as usize];
            let now = EPOCH + UPDATES + self.changes as i64 * 1_000_000;
            let updates: Vec<Bson> = (0..share(ids.len(), permille) as i64)
                .map(|number| {
                    let id = ids[prng.below(ids.len() as u64) as usize];
                    let mut set = part.document(id, &self.words, &mut prng, Fields::Changing);
                    if part == Part::Products {
                        set.insert("updated", DateTime::from_millis(now + number));
                    }
                    doc! {"q": {"_id": id}, "u": {"$set": set}}.into()
                })
                .collect();
            for batch in updates.chunks(match part {
                Part::Blobs => 50,
                _ => BATCH_CHANGES,
            }) {
                self.run(doc! {"update": part.collection(), "updates": batch.to_vec()})
                    .await?;
            }
        }
        Ok(())
    }

    /// Deletes so many thousandths of everything: the oldest events, the others at random.
    pub async fn delete(&mut self, permille: u64) -> Result<()> {
        for part in Part::ALL {
            let mut prng = self.draw(part);
            let ids = &mut self.ids[part as usize];
            let count = share(ids.len(), permille) as usize;
            let gone: Vec<i64> = match part {
                Part::Events => ids.drain(..count).collect(),
                _ => (0..count)
                    .map(|_| ids.swap_remove(prng.below(ids.len() as u64) as usize))
                    .collect(),
            };
            for batch in gone.chunks(BATCH_CHANGES) {
                let delete = doc! {"q": {"_id": {"$in": batch.to_vec()}}, "limit": 0};
                self.run(doc! {"delete": part.collection(), "deletes": [delete]})
                    .await?;
            }
        }
        Ok(())
    }

    /// Has the server compact a collection.
    pub async fn compact(&self, part: Part) -> Result<()> {
        let command = doc! {"compact": part.collection(), "force": true};
        self.database
            .run_command(command)
            .await
            .doing(format!("compacting churn.{}", part.collection()))?;
        Ok(())
    }

    /// Numbers of their own for the next change.
    fn draw(&mut self, part: Part) -> Prng {
        self.changes += 1;
        Prng::for_part(self.seed, 100 + self.changes * 4 + part as u64)
    }

    async fn run(&self, mut command: Document) -> Result<Document> {
        command.insert("writeConcern", doc! {"w": "majority"});
        let doing = format!("changing {}", command.iter().next().map_or("", |(name, _)| name));
        self.database.run_command(command).await.doing(doing)
    }

    async fn insert(&mut self, counts: [u64; 4]) -> Result<()> {
        let prngs = Part::ALL.map(|part| self.draw(part));
        let first = self.next;
        let loads = Part::ALL.into_iter().zip(prngs).map(|(part, prng)| {
            let at = part as usize;
            self.insert_part(part, first[at]..first[at] + counts[at] as i64, prng)
        });
        try_join_all(loads).await?;
        for (at, count) in counts.into_iter().enumerate() {
            self.next[at] += count as i64;
            self.ids[at].extend(first[at]..self.next[at]);
        }
        Ok(())
    }

    async fn insert_part(&self, part: Part, ids: std::ops::Range<i64>, mut prng: Prng) -> Result<()> {
        let doing = || format!("loading churn.{}", part.collection());
        let collection = self.database.collection::<RawDocumentBuf>(part.collection());
        let mut ids = ids.peekable();
        while ids.peek().is_some() {
            let (mut batch, mut size) = (Vec::new(), 0);
            while size < BATCH_BYTES
                && let Some(id) = ids.next()
            {
                let document = part.document(id, &self.words, &mut prng, Fields::All);
                let raw = RawDocumentBuf::from_document(&document).doing(doing())?;
                size += raw.as_bytes().len();
                batch.push(raw);
            }
            collection.insert_many(batch).await.doing(doing())?;
        }
        Ok(())
    }
}

/// At least one.
fn share(count: usize, permille: u64) -> u64 {
    (count as u64 * permille / 1_000).max(1)
}

#[cfg(test)]
mod tests;
