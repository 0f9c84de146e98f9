//! A chain of increments of a set that knows its users and speaks TLS.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{fs, os::unix::fs::PermissionsExt};

use mongodb::bson::doc;
use pbmfs_tests::{
    CursorServerOptions, DataSpec, MongodOptions, PbmFs, ReplSet, ReplSetOptions,
    chain::{BASE, INCREMENT, take},
    cli::text,
    cursor_server::Tls,
    data,
    mongod::client,
    restore_steps,
};
use tempfile::tempdir;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn increments_with_a_login_over_tls() {
    let place = tempdir().unwrap();
    let key = place.path().join("key");
    fs::write(&key, "c2VzYW1lIG9wZW4gc2VzYW1lIG9wZW4=").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    let tls = Tls::issue(place.path()).unwrap();
    let mongod = MongodOptions::default()
        .args(["--keyFile", text(&key)])
        .args(tls.mongod_args());
    let servers = CursorServerOptions {
        tls: Some(tls.clone()),
        ..CursorServerOptions::default()
    };
    let options = ReplSetOptions::single("rs0")
        .mongod(mongod)
        .with_cursor_servers(servers);
    let set = ReplSet::start(place.path(), options).await.unwrap();
    let server = &set.cursor_servers()[0];
    let uri = |user: &str, password: &str| {
        let login = if user.is_empty() {
            String::new()
        } else {
            format!("{user}:{password}@")
        };
        format!(
            "mongodb://{login}{}/?replicaSet=rs0&authSource=admin&tls=true&tlsCAFile={}",
            server.address(),
            text(&tls.authority)
        )
    };
    let user = |name: &str, roles: &[&str]| {
        let roles: Vec<_> = roles.iter().map(|role| (*role).to_owned()).collect();
        doc! {"createUser": name, "pwd": format!("{name}-secret"), "roles": roles}
    };
    let direct = uri("", "").replace("replicaSet=rs0", "directConnection=true");
    let first = client(&direct).await.unwrap().database("admin");
    first.run_command(user("root", &["root"])).await.unwrap();
    server.log_in("root", "root-secret");
    let root = client(&uri("root", "root-secret")).await.unwrap();
    let admin = root.database("admin");
    let roles = ["hostManager", "clusterMonitor", "backup"];
    admin.run_command(user("backup", &roles)).await.unwrap();
    admin
        .run_command(user("meek", &["clusterMonitor", "backup"]))
        .await
        .unwrap();
    let spec = DataSpec::megabytes(3);
    data::load(&root, &spec).await.unwrap();

    let pbmfs = PbmFs::init(place.path().join("repo"));
    let good = uri("backup", "backup-secret");
    let base = take(&pbmfs, &good, BASE).await;
    assert_eq!(base.step(), "base");
    data::update_orders(&root, &spec, 20, 1).await.unwrap();
    let increment = take(&pbmfs, &good, INCREMENT).await;
    assert_eq!(increment.step(), "increment", "{}", increment.chain());
    assert!(!increment.doc.to_string().contains("secret"));

    // Refused, and nothing is changed.
    let objects = pbmfs.objects();
    let refused = |uri: String| {
        let mut args = vec!["backup", "--uri", &uri];
        args.extend(INCREMENT);
        tokio::task::block_in_place(|| pbmfs.refuses(7, &args))
    };
    let sentence = refused(uri("backup", "guess"));
    assert!(sentence.contains("password"), "{sentence}");
    let sentence = refused(uri("meek", "meek-secret"));
    assert!(
        sentence.contains("$backupCursor") && sentence.contains("hostManager"),
        "{sentence}"
    );
    objects.must_equal(&pbmfs.objects());
    assert!(!server.is_open());

    let target = place.path().join("restored");
    pbmfs.ok(&["restore", "latest", "--target", text(&target)]);
    let mut mongod = restore_steps::open_recovered(&target, &MongodOptions::default())
        .await
        .unwrap();
    // By hashes of its databases: not even root may count all of `admin`.
    for name in ["rig_shop", "rig_media"] {
        let mut hashes = Vec::new();
        for server in [&root, &mongod.client().await.unwrap()] {
            let reply = server
                .database(name)
                .run_command(doc! {"dbHash": 1})
                .await
                .unwrap();
            hashes.push(reply.get_str("md5").unwrap().to_owned());
        }
        assert_eq!(hashes[0], hashes[1], "{name}");
    }
    mongod.kill().unwrap();
}
