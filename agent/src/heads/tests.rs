use std::sync::Arc;

use pbmfs_repo::key::ObjectKey;
use pbmfs_repo::local_index::IndexOptions;
use pbmfs_repo::objects::{ClusterRef, JsonObject, Parameters, ReplsetDoc, SnapshotStats, TombstoneDoc};
use pbmfs_repo::storage::{CountingStorage, MemoryStorage};
use pbmfs_repo::{Repository, Session};
use tempfile::{TempDir, tempdir};

use super::*;

/// A repository, and the directory of a machine's local indexes.
struct Place {
    repo: Repository,
    memory: Arc<MemoryStorage>,
    storage: Arc<CountingStorage>,
    indexes: TempDir,
    second: i64,
}

impl Place {
    async fn new() -> Self {
        let memory = Arc::new(MemoryStorage::default());
        let storage = Arc::new(CountingStorage::new(memory.clone()));
        let repo = Repository::init(storage.clone(), Parameters::default())
            .await
            .unwrap();
        Self {
            repo,
            memory,
            storage,
            indexes: tempdir().unwrap(),
            second: 1_800_000_000,
        }
    }

    async fn session(&mut self) -> Session {
        self.second += 1;
        let now = jiff::Timestamp::from_second(self.second).unwrap();
        Session::begin(&self.repo, "test", now).await.unwrap()
    }

    async fn index(&self, session: &Session) -> Index {
        let options = IndexOptions::below(self.indexes.path());
        Index::open(session, &options).await.unwrap()
    }

    /// Commits a snapshot of a replica set without files. `here` says whether this machine took it.
    async fn snapshot(&mut self, replset: &str, node: Option<&str>, here: bool) -> SnapshotName {
        self.snapshot_of(replset, "id", node, here).await
    }

    /// The same, with the set's id.
    async fn snapshot_of(&mut self, replset: &str, id: &str, node: Option<&str>, here: bool) -> SnapshotName {
        let session = self.session().await;
        let head = node.map(|node| ChainHead {
            node: node.into(),
            replset_id: id.into(),
            this_backup_name: format!("backup-{}", self.second),
            block_size: 1,
            checkpoint_ts: (1, 1),
        });
        let started = jiff::Timestamp::from_second(self.second).unwrap();
        let doc = SnapshotDoc {
            name: session.name().clone(),
            lease: session.lease(),
            cluster: ClusterRef {
                name: replset.into(),
                id: None,
            },
            backup_type: "incremental".into(),
            tool: "test".into(),
            started,
            finished: started,
            stats: SnapshotStats::default(),
            replsets: vec![ReplsetDoc {
                name: replset.into(),
                file_list: None,
                pack_table: None,
                chain_head: head,
                node: serde_json::Value::Null,
            }],
        };
        session.commit(&doc).await.unwrap();
        if here {
            let session = self.session().await;
            remember(&self.index(&session).await, &doc);
            session.abandon().await;
        }
        doc.name
    }

    /// The heads, as names of snapshots, and how many objects were read for them.
    async fn heads(&mut self, replset: &str) -> (Vec<SnapshotName>, u64) {
        let session = self.session().await;
        let index = self.index(&session).await;
        let before = self.storage.counts().get;
        let found = heads(&self.repo, &index, replset).await.unwrap();
        let reads = self.storage.counts().get - before;
        session.abandon().await;
        (found.into_iter().map(|head| head.snapshot).collect(), reads)
    }

    fn lose_the_index(&mut self) {
        self.indexes = tempdir().unwrap();
    }
}

#[tokio::test]
async fn two_of_each_node_and_the_newest_first() {
    let mut place = Place::new().await;
    let mut all = Vec::new();
    for node in ["a", "b", "a", "a", "b", "c"] {
        all.push(place.snapshot("rs0", Some(node), true).await);
    }
    place.snapshot("rs0", None, true).await;
    place.snapshot("rs1", Some("a"), true).await;
    let wanted = [&all[5], &all[4], &all[3], &all[2], &all[1]].map(Clone::clone);
    assert_eq!(place.heads("rs0").await.0, wanted);
    place.lose_the_index();
    assert_eq!(place.heads("rs0").await.0, wanted);
    assert_eq!(place.heads("rs2").await.0, []);
}

#[tokio::test]
async fn other_sets_in_the_same_repository_bury_nothing() {
    let mut place = Place::new().await;
    let first = place.snapshot("rs0", Some("a"), true).await;
    let second = place.snapshot("rs0", Some("a"), true).await;
    for _ in 0..SEARCHED + 20 {
        place.snapshot("rs1", Some("b"), false).await;
    }
    assert_eq!(
        place.heads("rs0").await.0,
        [second.clone(), first.clone()],
        "remembered"
    );
    place.lose_the_index();
    let (found, _) = place.heads("rs0").await;
    assert_eq!(found.first(), Some(&second), "searched for");
}

#[tokio::test]
async fn what_another_machine_took_is_found() {
    let mut place = Place::new().await;
    let a = place.snapshot("rs0", Some("a"), true).await;
    let elsewhere = place.snapshot("rs0", Some("a"), false).await;
    let b = place.snapshot("rs0", Some("b"), true).await;
    assert_eq!(place.heads("rs0").await.0, [b, elsewhere, a]);
}

#[tokio::test]
async fn what_was_deleted_is_no_head() {
    let mut place = Place::new().await;
    let first = place.snapshot("rs0", Some("a"), true).await;
    let second = place.snapshot("rs0", Some("a"), true).await;
    let key = ObjectKey::snapshot(&second);
    let tombstone = TombstoneDoc {
        why: "deleted".into(),
        lease: None,
        at: jiff::Timestamp::UNIX_EPOCH,
    };
    place.memory.tamper(&key, Some(tombstone.to_object(&key)));
    assert_eq!(place.heads("rs0").await.0, [first]);
}

#[tokio::test]
async fn an_index_spares_reading_old_snapshots() {
    let mut place = Place::new().await;
    for _ in 0..SEARCHED {
        place.snapshot("rs0", Some("a"), true).await;
    }
    let (_, with) = place.heads("rs0").await;
    place.lose_the_index();
    let (_, without) = place.heads("rs0").await;
    assert_eq!(without, SEARCHED as u64);
    // Those that are read ahead.
    assert!(with <= 20, "{with} objects were read");
}

/// Each on a machine of its own, which calls its member by the same address.
#[tokio::test]
async fn two_sets_of_one_name_and_one_address_are_two() {
    for here in [true, false] {
        let mut place = Place::new().await;
        let mut all = Vec::new();
        for id in ["daily", "daily", "daily", "hourly", "hourly", "hourly"] {
            let node = Some("localhost:27017");
            all.push(place.snapshot_of("rs0", id, node, here).await);
        }
        let wanted = [&all[5], &all[4], &all[2], &all[1]].map(Clone::clone);
        assert_eq!(place.heads("rs0").await.0, wanted, "remembered: {here}");
        place.lose_the_index();
        assert_eq!(place.heads("rs0").await.0, wanted, "searched for");
    }
}

#[tokio::test]
async fn a_machine_remembers_the_set_that_it_takes_seldom() {
    let mut place = Place::new().await;
    let node = Some("localhost:27017");
    let daily = place.snapshot_of("rs0", "daily", node, true).await;
    let mut hourly = Vec::new();
    for _ in 0..SEARCHED + 20 {
        hourly.push(place.snapshot_of("rs0", "hourly", node, true).await);
    }
    let newest = hourly.iter().rev().take(HEADS_OF_A_NODE).cloned();
    let wanted: Vec<_> = newest.chain([daily]).collect();
    assert_eq!(place.heads("rs0").await.0, wanted);
}

#[tokio::test]
async fn a_member_that_was_left_costs_no_search_each_time() {
    let mut place = Place::new().await;
    let left = place.snapshot("rs0", Some("old:1"), true).await;
    let mut since = Vec::new();
    for _ in 0..100 {
        since.push(place.snapshot("rs0", Some("new:1"), true).await);
    }
    let (found, reads) = place.heads("rs0").await;
    assert_eq!(found, [since[99].clone(), since[98].clone(), left]);
    // Those that are read ahead, and the one that is remembered.
    assert!(reads <= 21, "{reads} objects were read");
}
