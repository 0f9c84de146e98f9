use super::*;

#[test]
fn a_directory_is_followed_by_what_it_holds() {
    let mut paths = vec!["a.b", "a/b", "a", "b", "a/b/c", "a/b.c", "a-b", "B"];
    paths.sort_by(|a, b| path_order(a, b));
    assert_eq!(paths, ["B", "a", "a/b", "a/b/c", "a/b.c", "a-b", "a.b", "b"]);
}

#[test]
fn names_in_json_are_stable() {
    let file = SourceFile {
        path: "a".into(),
        kind: FileKind::Regular,
        size: 1,
        mode: 0o600,
        uid: 2,
        gid: 3,
        mtime: FileTime { secs: -1, nanos: 5 },
    };
    assert_eq!(
        serde_json::to_string(&file).unwrap(),
        r#"{"path":"a","kind":"regular","size":1,"mode":384,"uid":2,"gid":3,"mtime":{"secs":-1,"nanos":5}}"#
    );

    let info = NodeInfo {
        role: Some(MemberRole::Secondary),
        operation_time: Some(Timestamp { t: 7, i: 1 }),
        ..NodeInfo::unknown(SourceKind::FsyncLock)
    };
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["source"], "fsync_lock");
    assert_eq!(json["role"], "secondary");
    assert_eq!(json["operation_time"], serde_json::json!({"t": 7, "i": 1}));
    assert_eq!(serde_json::from_value::<NodeInfo>(json).unwrap(), info);
}

#[test]
fn reasons_are_one_flat_word() {
    for (why, word) in [
        (LeftOutWhy::Rule(LeftOutReason::Journal), "journal"),
        (LeftOutWhy::Special(SpecialFile::DanglingLink), "dangling_link"),
    ] {
        assert_eq!(serde_json::to_value(why).unwrap(), word);
        assert_eq!(serde_json::from_value::<LeftOutWhy>(word.into()).unwrap(), why);
    }
}
