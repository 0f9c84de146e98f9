use super::*;

#[test]
fn a_line_of_the_table_is_parsed_with_tags_and_escapes() {
    let line = br"61 28 0:52 / /mnt/with\040space\134and\011tab rw,nosuid shared:7 master:1 - fuse.pbm-fs pbm-fs:2026\040x ro";
    let mount = parse_line(line).unwrap();
    assert_eq!(mount.id, 61);
    assert_eq!(mount.device, "0:52");
    assert_eq!(mount.point, Path::new("/mnt/with space\\and\ttab"));
    assert_eq!(mount.fstype, "fuse.pbm-fs");
    assert_eq!(mount.source, "pbm-fs:2026 x");
    assert!(mount.is_ours());
}

#[test]
fn lines_that_are_none_give_nothing() {
    for line in [
        &b""[..],
        b"1 2 3",
        b"61 28 0:52 / /mnt rw - ",
        b"x 28 0:52 / /mnt rw - ext4 /dev/vda rw",
    ] {
        let mount = parse_line(line);
        assert!(
            mount.is_none_or(|m| m.fstype.is_empty()),
            "{}",
            String::from_utf8_lossy(line)
        );
    }
}

#[test]
fn only_our_own_mounts_are_ours() {
    let mount = |fstype: &str, source: &str| MountEntry {
        id: 1,
        device: "0:1".into(),
        point: "/mnt".into(),
        fstype: fstype.into(),
        source: source.into(),
    };
    assert!(mount("fuse.pbm-fs", "anything").is_ours());
    assert!(mount("fuse", "pbm-fs:x").is_ours());
    assert!(!mount("fuse.sshfs", "pbm-fs:x").is_ours());
    assert!(!mount("ext4", "pbm-fs").is_ours());
}

#[test]
fn the_table_of_this_machine_has_a_root() {
    assert!(table().unwrap().iter().any(|m| m.point == Path::new("/")));
    assert!(
        at(Path::new("/proc"))
            .unwrap()
            .is_some_and(|m| m.fstype == "proc")
    );
}

#[test]
fn what_is_not_ours_is_not_unmounted() {
    let error = umount(Path::new("/proc"), true).unwrap_err();
    assert!(matches!(error, MountError::NotOurs { .. }), "{error}");
    let error = umount(Path::new("/usr"), false).unwrap_err();
    assert!(matches!(error, MountError::NotMounted(_)), "{error}");
    let error = umount(Path::new("/no/such/path"), false).unwrap_err();
    assert!(matches!(error, MountError::NotMounted(_)), "{error}");
    assert!(!clear_stale(Path::new("/proc")).unwrap());
}

#[test]
fn paths_are_resolved_without_touching_the_last_component() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
    assert_eq!(resolve(&real.join("link/new")).unwrap(), real.join("new"));
    assert_eq!(resolve(&real.join("link")).unwrap(), real);
    // `symlink_metadata` of a path with a slash at its end follows the link.
    assert_eq!(resolve(&real.join("link/")).unwrap(), real);
    assert_eq!(resolve(&real.join("link/.")).unwrap(), real);
    assert_eq!(resolve(&real.join("new//")).unwrap(), real.join("new"));
    assert_eq!(resolve(Path::new("/")).unwrap(), Path::new("/"));
    assert_eq!(resolve(&real.join("link/..")).unwrap(), real.parent().unwrap());
    assert_eq!(
        resolve(Path::new("new")).unwrap(),
        std::env::current_dir().unwrap().join("new")
    );
}
