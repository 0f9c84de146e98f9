use mongodb::bson::{Bson, DateTime};
use tempfile::tempdir;

use super::*;

fn member(name: &str, state: i32, health: f64, applied: i64) -> Bson {
    let applied = DateTime::from_millis(applied);
    Bson::Document(doc! {"name": name, "state": state, "health": health, "optimeDate": applied})
}

#[test]
fn the_freshest_secondary_comes_first_and_the_primary_last() {
    let status = doc! {"members": [
        member("p:1", 1, 1.0, 900),
        member("lagging:1", 2, 1.0, 100),
        member("fresh:1", 2, 1.0, 800),
        member("down:1", 8, 0.0, 0),
        member("arbiter:1", 7, 1.0, 0),
        member("syncing:1", 5, 1.0, 850),
        member("recovering:1", 3, 1.0, 850),
    ]};
    let hello = Hello(doc! {"me": "fresh:1"});
    assert_eq!(
        ranked(&status, "127.0.0.1:1", &hello),
        ["127.0.0.1:1", "lagging:1", "recovering:1", "p:1"]
    );
}

#[test]
fn servers_without_data_are_refused_by_what_they_say() {
    let refused = |hello: Document| refuse_by_kind("n:1", &Hello(hello), true).err();
    assert!(matches!(
        refused(doc! {"msg": "isdbgrid"}),
        Some(SourceError::Mongos { .. })
    ));
    assert!(matches!(
        refused(doc! {"setName": "rs", "arbiterOnly": true}),
        Some(SourceError::Arbiter { replset, .. }) if replset == "rs"
    ));
    assert!(matches!(
        refused(doc! {"isreplicaset": true}),
        Some(SourceError::NotInitiated { .. })
    ));
    assert!(refused(doc! {"setName": "rs", "secondary": true}).is_none());
    assert!(refused(doc! {"isWritablePrimary": true}).is_none());
    // An arbiter as seed still knows the others.
    assert!(refuse_by_kind("n:1", &Hello(doc! {"setName": "rs", "arbiterOnly": true}), false).is_ok());
}

#[test]
fn a_path_is_local_only_if_the_server_runs_on_it() {
    let dir = tempdir().unwrap();
    let why = |path: &Path| match prove_local(path, "n:1", 4711) {
        Ok(()) => "local".to_owned(),
        Err(SourceError::NotThisServer { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(
        why(&dir.path().join("nowhere")),
        "it does not exist on this machine"
    );
    assert_eq!(why(dir.path()), "no mongod runs on it");
    fs::write(dir.path().join("mongod.lock"), "").unwrap();
    assert_eq!(why(dir.path()), "no mongod runs on it");
    fs::write(dir.path().join("mongod.lock"), "12\n").unwrap();
    assert_eq!(why(dir.path()), "process 12 has it, the server is process 4711");
    fs::write(dir.path().join("mongod.lock"), "4711\n").unwrap();
    assert_eq!(why(dir.path()), "local");
}

#[test]
fn a_relative_dbpath_is_resolved_where_the_server_was_started() {
    let line = |path: &str| doc! {"parsed": {"storage": {"dbPath": path}}};
    let own = i64::from(std::process::id());
    assert_eq!(
        told_dbpath(&line("/srv/db"), "n", own).unwrap(),
        Path::new("/srv/db")
    );
    assert_eq!(
        told_dbpath(&doc! {"parsed": {}}, "n", own).unwrap(),
        Path::new("/data/db")
    );
    assert_eq!(
        told_dbpath(&line("db"), "n", own).unwrap(),
        std::env::current_dir().unwrap().join("db")
    );
    assert!(matches!(
        told_dbpath(&line("db"), "n", -1),
        Err(SourceError::NotThisServer { .. })
    ));
}

/// `--fork` moves a server away from where it was started; the lock file that it holds tells where its dbPath is.
#[test]
fn a_relative_dbpath_is_found_by_the_lock_that_is_held() {
    let place = tempfile::tempdir().unwrap();
    let dbpath = place.path().canonicalize().unwrap().join("moved-db");
    fs::create_dir(&dbpath).unwrap();
    let _held = fs::File::create(dbpath.join("mongod.lock")).unwrap();
    let own = i64::from(std::process::id());
    assert_eq!(open_dbpath(Path::new("some/moved-db"), own), Some(dbpath));
    assert_eq!(open_dbpath(Path::new("another-db"), own), None);
    assert_eq!(open_dbpath(Path::new("moved-db"), -1), None);
}

#[test]
fn a_set_of_another_name_is_refused() {
    assert!(refuse_other_set("n:1", None, Some("rs0")).is_ok());
    assert!(refuse_other_set("n:1", Some("rs0"), Some("rs0")).is_ok());
    let error = refuse_other_set("n:1", Some("rs1"), Some("rs0")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("asks for the replica set rs1, but n:1 is a member of the replica set rs0")
    );
    assert!(refuse_other_set("n:1", Some("rs1"), None).is_err());
}
