//! A replica set that knows its users.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{fs, os::unix::fs::PermissionsExt};

use mongodb::bson::{Document, doc};
use pbmfs_tests::{
    DataSpec, MongodOptions, PbmFs, ReplSet, ReplSetOptions, cli::text, data, mongod::client, restore_steps,
};
use tempfile::tempdir;

fn login(set: &ReplSet, user: &str, password: &str) -> String {
    let hosts = set.members()[0].host();
    format!(
        "mongodb://{user}:{password}@{hosts}/?replicaSet={}&authSource=admin",
        set.name()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_logs_in_with_the_roles_that_it_needs() {
    let place = tempdir().unwrap();
    let key_file = place.path().join("key");
    fs::write(&key_file, "c2VzYW1lIG9wZW4gc2VzYW1lIG9wZW4=").unwrap();
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o400)).unwrap();
    let options = MongodOptions::default().args(["--keyFile", text(&key_file)]);
    let set = ReplSet::start(place.path(), ReplSetOptions::single("rs0").mongod(options))
        .await
        .unwrap();
    // The first user may be made from this machine without a login.
    let admin = |uri: String| async move { client(&uri).await.unwrap().database("admin") };
    let user = |name: &str, roles: &[&str]| {
        let roles: Vec<_> = roles.iter().map(|role| (*role).to_owned()).collect();
        doc! {"createUser": name, "pwd": format!("{name}-secret"), "roles": roles}
    };
    admin(set.uri())
        .await
        .run_command(user("root", &["root"]))
        .await
        .unwrap();
    let root = login(&set, "root", "root-secret");
    let roles = ["hostManager", "clusterMonitor", "backup", "readAnyDatabase"];
    let db = admin(root.clone()).await;
    db.run_command(user("backup", &roles)).await.unwrap();
    db.run_command(user("reader", &["readAnyDatabase"]))
        .await
        .unwrap();
    let root_client = client(&root).await.unwrap();
    data::load(&root_client, &DataSpec::megabytes(3)).await.unwrap();

    let pbmfs = PbmFs::init(place.path().join("repo"));
    let good = login(&set, "backup", "backup-secret");
    let doc = pbmfs.json(&["backup", "--record-hashes", "--uri", &good]);
    let node = &doc["replsets"][0]["node"];
    assert!(
        node["hashes"]
            .as_array()
            .unwrap()
            .iter()
            .any(|db| db["db"] == "rig_shop"),
        "{node}"
    );
    assert!(!doc.to_string().contains("secret"), "no password in a snapshot");

    // Refused, and nothing is changed.
    let objects = pbmfs.objects();
    let host = set.members()[0].host();
    let wrong = login(&set, "backup", "guess-secret");
    let sentence = pbmfs.refuses(7, &["backup", "--uri", &wrong]);
    assert!(
        sentence.contains("password") && sentence.contains(&host),
        "{sentence}"
    );
    let reader = login(&set, "reader", "reader-secret");
    let sentence = pbmfs.refuses(7, &["backup", "--uri", &reader]);
    assert!(
        sentence.contains("roles") && sentence.contains("hostManager"),
        "{sentence}"
    );
    let sentence = pbmfs.refuses(7, &["backup", "--uri", &set.uri()]);
    assert!(sentence.contains("user"), "{sentence}");
    objects.must_equal(&pbmfs.objects());
    assert!(pbmfs.leases().is_empty() && pbmfs.processes().is_empty());

    // Nothing is locked, and the restored server knows the same users.
    root_client
        .database("rig")
        .collection("things")
        .insert_one(doc! {"a": 1})
        .await
        .unwrap();
    let target = place.path().join("target");
    pbmfs.ok(&["restore", "latest", "--target", text(&target)]);
    let restored = restore_steps::open_recovered(&target, &MongodOptions::default())
        .await
        .unwrap();
    let users = restored.client().await.unwrap().database("admin");
    let count = users
        .collection::<Document>("system.users")
        .count_documents(doc! {})
        .await
        .unwrap();
    assert_eq!(count, 3);
}
