//! Logins, privileges and TLS, which go through the proxy.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use mongodb::bson::doc;
use pbmfs_tests::{
    CursorServerOptions, MongodOptions, ReplSet, ReplSetOptions,
    cursor_server::{Tls, failure},
    mongod::client,
};
use tempfile::tempdir;

use crate::client::{Cursor, code, majority_time};

#[tokio::test]
async fn the_stage_wants_a_login_and_a_privilege_and_speaks_tls() {
    let place = tempdir().unwrap();
    let key = place.path().join("key");
    fs::write(&key, "c2VzYW1lIG9wZW4gc2VzYW1lIG9wZW4=").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    let tls = Tls::issue(place.path()).unwrap();
    let mongod = MongodOptions::default()
        .args(["--keyFile", key.to_str().unwrap()])
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
    let plain = server.uri();
    let encrypted = format!("{plain}&tls=true&tlsCAFile={}", tls.authority.display());
    let as_user = |name: &str| {
        let login = format!("mongodb://{name}:{name}-secret@");
        format!("{}&authSource=admin", encrypted.replace("mongodb://", &login))
    };

    // The first user may be made from this machine without a login, also through the proxy.
    let user = |name: &str, role: &str| {
        doc! {"createUser": name, "pwd": format!("{name}-secret"), "roles": [role]}
    };
    let first = client(&encrypted).await.unwrap().database("admin");
    first.run_command(user("root", "root")).await.unwrap();
    server.log_in("root", "root-secret");
    let root = client(&as_user("root")).await.unwrap();
    for (name, role) in [("host", "hostManager"), ("backup", "backup")] {
        root.database("admin")
            .run_command(user(name, role))
            .await
            .unwrap();
    }

    assert_eq!(
        code(Cursor::open(&encrypted, doc! {}).await),
        Some(failure::UNAUTHORIZED)
    );
    assert_eq!(
        code(Cursor::open(&as_user("backup"), doc! {}).await),
        Some(failure::UNAUTHORIZED)
    );
    let mut cursor = Cursor::open(&as_user("host"), doc! {}).await.unwrap();
    let time = majority_time(&root).await;
    assert!(
        !cursor
            .extend(time, Duration::from_secs(60))
            .await
            .unwrap()
            .is_empty()
    );
    cursor.kill().await;

    // Without TLS nobody is let in.
    let hasty = format!("{plain}&serverSelectionTimeoutMS=500");
    assert!(
        client(&hasty)
            .await
            .unwrap()
            .database("admin")
            .run_command(doc! {"ping": 1})
            .await
            .is_err()
    );
}
