//! What the command line prints: lists, descriptions, statistics, summaries, completions.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{fs, path::Path};

use pbmfs_tests::{
    CursorServer, CursorServerOptions, DataSpec, PbmFs, ReplSet, ReplSetOptions, Tree,
    cli::{name_of, text},
    data,
    fixture::{Fixture, says},
    prng::Prng,
    tree,
};
use serde_json::Value;
use tempfile::tempdir;

/// Bytes and number of the files below a directory, as `du --apparent-size` counts them.
fn du(path: &Path) -> (u64, u64) {
    let mut out = (0, 0);
    for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
        let meta = entry.metadata().unwrap();
        let (bytes, files) = match meta.is_dir() {
            true => du(&entry.path()),
            false => (meta.len(), 1),
        };
        out = (out.0 + bytes, out.1 + files);
    }
    out
}

/// `139.82MB`, as a number.
fn size(text: &str) -> f64 {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        other => panic!("{other} is no unit"),
    };
    digits.parse::<f64>().unwrap() * unit
}

/// Whether a size in a text is this number, as far as two digits behind the point tell.
fn is_size(text: &str, bytes: &Value) -> bool {
    let bytes = bytes.as_f64().unwrap();
    (size(text) - bytes).abs() <= (bytes * 0.006).max(0.5)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Every line of `list` says what its JSON does; returns the rows, newest first.
fn listed(pbmfs: &PbmFs) -> Vec<Value> {
    let rows = pbmfs.json(&["list"])["snapshots"].as_array().unwrap().clone();
    let out = pbmfs.ok(&["list"]).stdout;
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), rows.len(), "{out}");
    for (line, row) in lines.into_iter().zip(&rows) {
        let moment = jiff::Timestamp::from_second(row["restoreTo"].as_i64().unwrap()).unwrap();
        let base = if row["type"] == "incremental" && row["src"] == "" {
            ", base"
        } else {
            ""
        };
        let (name, rest) = line.split_once(' ').unwrap();
        let (stored, rest) = rest.split_once(' ').unwrap();
        assert_eq!(name, row["name"]);
        assert!(is_size(stored, &row["sizeStored"]), "{line} and {row}");
        let kind = row["type"].as_str().unwrap();
        let expected = format!("<{kind}{base}> [restore_to_time: {moment}]");
        assert_eq!(rest, expected, "{row}");
        assert_eq!(row["status"], "done");
        assert_eq!(row["printStatus"], "success");
        assert!(
            row["pbmVersion"].as_str().unwrap().starts_with("pbm-fs "),
            "{row}"
        );
    }
    assert!(rows.is_sorted_by(|a, b| a["name"].as_str() > b["name"].as_str()));
    rows
}

/// What the table of `stats` says is what its JSON does, and the whole is what lies on the disk.
fn counted(pbmfs: &PbmFs, names: &[&str]) -> Value {
    let stats = pbmfs.json(&[&["stats"], names].concat());
    let out = pbmfs.ok(&[&["stats"], names].concat()).stdout;
    let mut lines = out.lines();
    says(
        lines.next().unwrap(),
        &["snapshot", "logical", "unique", "stored", "only here"],
    );
    let rows = stats["snapshots"].as_array().unwrap();
    let several = (rows.len() > 1).then_some(&stats["total"]);
    for row in rows.iter().chain(several) {
        let line = lines.next().unwrap();
        let cells: Vec<_> = line
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .collect();
        let [name, logical, unique, stored, only, dedup, compression] = cells[..] else {
            panic!("{line}");
        };
        let first = row["name"].as_str();
        assert_eq!(
            name,
            first.unwrap_or(if names.is_empty() { "all" } else { "these together" })
        );
        assert!(is_size(logical, &row["bytes_logical"]), "{line} and {row}");
        assert!(is_size(unique, &row["bytes_unique"]), "{line} and {row}");
        assert!(is_size(stored, &row["bytes_stored"]), "{line} and {row}");
        assert!(is_size(only, &row["only"]["bytes_stored"]), "{line} and {row}");
        assert_eq!(dedup, format!("{:.2}x", row["dedup_ratio"].as_f64().unwrap()));
        let ratio = row["compression_ratio"].as_f64().unwrap();
        assert_eq!(compression, format!("{ratio:.2}x"));
    }
    let [blocks, repository] = [lines.next().unwrap(), lines.next().unwrap()];
    says(blocks, &[&stats["total"]["blocks"].to_string()]);
    says(repository, &[&stats["repository"]["packs"].to_string()]);
    assert_eq!(lines.next(), None);

    let (bytes, files) = du(&pbmfs.repo().join("packs"));
    assert_eq!(stats["repository"]["bytes_packs"], bytes);
    assert_eq!(stats["repository"]["packs"], files);
    stats
}

/// All of every pack is used, but for its envelope, the fixed part of its trailer and its footer.
fn nothing_is_wasted(stats: &Value) {
    assert_eq!(stats["repository"]["bytes_unused"], 0, "{stats}");
    let packs = number(&stats["repository"]["packs"]);
    let own = number(&stats["repository"]["bytes_packs"]) - number(&stats["total"]["bytes_stored"]);
    assert!(
        (packs * 68..packs * 512).contains(&own),
        "{own} bytes for {packs} packs"
    );
}

#[test]
fn statistics_of_what_is_known() {
    let f = Fixture::make();
    // The same files twice: of the files neither has anything alone.
    let stats = counted(&f.pbmfs, &[]);
    nothing_is_wasted(&stats);
    let source = Tree::read(&f.source).unwrap();
    for row in stats["snapshots"].as_array().unwrap() {
        assert_eq!(row["bytes_logical"], source.bytes());
        assert_eq!(row["only"]["blocks"], 0, "{row}");
        assert_eq!(row["bytes_unique"], stats["total"]["bytes_unique"]);
    }
    assert_eq!(stats["total"]["bytes_logical"], 2 * source.bytes());
    assert_eq!(
        stats["total"]["only"]["bytes_stored"],
        stats["total"]["bytes_stored"]
    );
    let names: Vec<_> = stats["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(name_of)
        .collect();
    assert_eq!(names, f.names);

    // Noise that only a third one has: all of it is new, none can be compressed.
    let noise = f.path("noise");
    tree::make(&noise, 0, 77).unwrap();
    let bytes = Prng::new(78).bytes(1_000_000);
    fs::write(noise.join("noise.wt"), &bytes).unwrap();
    let before = number(&counted(&f.pbmfs, &[])["total"]["bytes_unique"]);
    let third = f.pbmfs.backup_of(&noise);
    let stats = counted(&f.pbmfs, &[&third]);
    let row = &stats["snapshots"][0];
    assert_eq!(row["name"], third.as_str());
    let only = number(&row["only"]["bytes_unique"]);
    assert!(only >= 1_000_000, "{row}");
    assert!(number(&row["only"]["bytes_stored_data"]) > 1_000_000, "{row}");
    let all = counted(&f.pbmfs, &[]);
    assert_eq!(number(&all["total"]["bytes_unique"]), before + only);
    // The two older ones are free of the third, and of nothing else.
    let old = counted(&f.pbmfs, &[&f.names[0], &f.names[1]]);
    assert_eq!(old["snapshots"].as_array().unwrap().len(), 2);
    let stored = |value: &Value| number(&value["bytes_stored"]);
    assert_eq!(
        stored(&old["total"]["only"]) + stored(&stats["total"]),
        stored(&all["total"])
    );
    assert_eq!(number(&old["repository"]["snapshots"]), 3);
    // A name twice, and its beginning, are one snapshot.
    let again = counted(&f.pbmfs, &["latest", &third, &third]);
    assert_eq!(again["snapshots"], stats["snapshots"]);

    let empty = PbmFs::init(f.path("empty"));
    says(&empty.ok(&["stats"]).stderr, &["no snapshot"]);
    let stats = empty.json(&["stats"]);
    assert_eq!(stats["snapshots"].as_array().unwrap().len(), 0);
    assert_eq!(stats["repository"]["packs"], 0);
    assert!(stats["total"].get("dedup_ratio").is_none());
}

#[test]
fn what_is_asked_for_wrongly() {
    let f = Fixture::make();
    let source = text(&f.source);
    for unknown in ["2001-02-03T04:05:06Z", "nonsense"] {
        f.refuses(4, &["stats", unknown], &[unknown, &f.names[0], &f.names[1]]);
        f.refuses(4, &["stats", "latest", unknown], &[unknown]);
    }
    f.refuses(2, &["stats", "20"], &["20", &f.names[0], &f.names[1]]);
    f.refuses(2, &["--memory", "8MiB", "stats"], &["--memory", "64MiB"]);
    // Nobody listens there, and nobody is asked.
    let uri = "mongodb://127.0.0.1:1/";
    f.refuses(
        2,
        &["backup", "--base", "--uri", uri],
        &["--base", "-t incremental"],
    );
    f.refuses(
        2,
        &["backup", "-t", "incremental", "--dbpath", source],
        &["directory", "-t incremental"],
    );
    let wrong: [&[&str]; 6] = [
        &["backup", "-t", "incremental", "--base", "--dbpath", source],
        &["backup", "--method", "lock", "--dbpath", source],
        &["backup", "--block-size", "0", "--uri", uri],
        &["backup", "--method", "magic", "--uri", uri],
        &["backup", "-t", "logical", "--uri", uri],
        &[
            "backup",
            "-t",
            "incremental",
            "--block-size",
            "2",
            "--dbpath",
            source,
        ],
    ];
    for args in wrong {
        assert!(!f.pbmfs.refuses_usage(args).is_empty());
    }
    assert_eq!(f.pbmfs.names(), f.names);
}

#[test]
fn completions_know_every_verb_and_flag() {
    let bare = PbmFs::bare();
    let verbs = [
        "init",
        "backup",
        "list",
        "describe-backup",
        "restore",
        "mount",
        "umount",
        "check",
        "stats",
        "completion",
    ];
    let flags = [
        "type",
        "base",
        "block-size",
        "method",
        "record-hashes",
        "read-data",
        "lazy",
    ];
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = bare.ok(&["completion", shell]).stdout;
        says(&script, &verbs);
        says(&script, &flags);
        // Those that know values.
        if matches!(shell, "bash" | "zsh" | "fish") {
            says(&script, &["physical", "incremental", "auto", "cursor", "lock"]);
        }
    }
    bare.refuses_usage(&["completion", "tcsh"]);
}

/// A server that can tell what changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_its_increment_and_a_lost_history() {
    let place = tempdir().unwrap();
    let set = ReplSet::start(place.path().join("set"), ReplSetOptions::single("rs0"))
        .await
        .unwrap();
    let server = CursorServer::start(&set.members()[0], CursorServerOptions::default()).unwrap();
    let client = set.client().await.unwrap();
    let spec = DataSpec::megabytes(20);
    data::load(&client, &spec).await.unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    let uri = server.uri();
    let incremental = ["backup", "-t", "incremental", "--uri", &uri];

    let out = pbmfs.ok(&[&incremental[..], &["--base"]].concat()).stdout;
    says(&out, &["snapshot 2", " read in ", " blocks are new"]);
    assert_eq!(out.lines().count(), 3, "{out}");
    data::update_orders(&client, &spec, 500, 1).await.unwrap();
    let out = pbmfs.ok(&incremental).stdout;
    let rows = listed(&pbmfs);
    let base = name_of(&rows[1]);
    says(&out, &[&format!("changed since {base}, "), " referenced, in "]);
    assert_eq!(out.lines().count(), 3, "{out}");
    let kinds = |row: &Value| (row["type"].clone(), row["src"].clone(), row["chain"].clone());
    let kind = |src: &str, step: &str| (Value::from("incremental"), Value::from(src), Value::from(step));
    assert_eq!(kinds(&rows[0]), kind(&base, "increment"));
    assert_eq!(kinds(&rows[1]), kind("", "base"));
    assert!(
        number(&rows[0]["sizeStored"]) < number(&rows[1]["sizeStored"]) / 2,
        "{rows:?}"
    );

    // What the description tells, in both forms.
    let described = pbmfs.json(&["describe-backup", "latest"]);
    let stats = &described["stats"];
    let replset = &described["replsets"][0];
    assert_eq!(described["src"], base.as_str());
    assert_eq!(described["status"], "done");
    assert_eq!(described["size"], rows[0]["sizeStored"]);
    assert_eq!(described["size_uncompressed"], rows[0]["size"]);
    assert_eq!(described["last_write_ts"], rows[0]["restoreTo"]);
    assert_eq!(described["last_write_time"], described["restore_to_time"]);
    assert_eq!(described["mongodb_version"], replset["node"]["mongod_version"]);
    assert_eq!(replset["node"]["chain"]["source_snapshot"], base.as_str());
    assert_eq!(replset["node"]["source"], "backup_cursor");
    let named = number(&replset["node"]["chain"]["bytes_named"]);
    let (read, referenced) = (number(&stats["bytes_read"]), number(&stats["bytes_referenced"]));
    let total = number(&stats["bytes_total"]);
    assert_eq!(read + referenced, total, "{described}");
    assert!(referenced > 0 && named > 0, "{described}");
    // Beside what was named only storage.bson is read, and what lies between a granule's edges and a block's.
    assert!(read <= named + named / 10, "{described}");
    let told = pbmfs.ok(&["describe-backup", "latest"]).stdout;
    let line = |key: &str| {
        let mut lines = told.lines();
        let found = lines.find_map(|line| line.strip_prefix(key));
        found.unwrap_or_else(|| panic!("no {key} in {told}")).to_owned()
    };
    assert_eq!(line("type: "), "incremental");
    assert_eq!(line("src: "), base);
    assert_eq!(line("    step: "), "increment");
    assert_eq!(line("    source_snapshot: "), base);
    assert_eq!(line("    block_size: "), "1MiB");
    assert!(is_size(&line("    named: "), &named.into()), "{told}");
    assert!(is_size(&line("referenced: "), &referenced.into()), "{told}");
    assert!(
        is_size(line("read: ").split(' ').next().unwrap(), &read.into()),
        "{told}"
    );
    let head = &replset["chain_head"];
    assert_eq!(line("    this_backup_name: "), head["this_backup_name"]);
    assert_eq!(line("    node: "), head["node"]);

    // Of a server that has forgotten.
    server.forget_history();
    let out = pbmfs.ok(&incremental).stdout;
    assert_eq!(out.lines().count(), 4, "{out}");
    says(&out, &["everything was read: ", " knows nothing of "]);
    let rows = listed(&pbmfs);
    assert_eq!(kinds(&rows[0]), kind("", "full_read"));
    let told = pbmfs.ok(&["describe-backup", "latest"]).stdout;
    says(
        &told,
        &["    step: full_read", "    reason: \"", "referenced: 0B"],
    );
    assert!(!told.contains("src: "), "{told}");

    // Nothing in three snapshots of a chain is stored twice.
    let stats = counted(&pbmfs, &[]);
    nothing_is_wasted(&stats);
    for row in stats["snapshots"].as_array().unwrap() {
        let described = pbmfs.json(&["describe-backup", &name_of(row)]);
        assert_eq!(row["bytes_logical"], described["stats"]["bytes_total"]);
        assert_eq!(row["files"], described["stats"]["files"]);
        let target = place.path().join(name_of(row));
        pbmfs.ok(&["restore", &name_of(row), "--target", text(&target)]);
        assert_eq!(row["bytes_logical"], Tree::read(&target).unwrap().bytes());
    }
    let sum = |key: &str| {
        let rows = stats["snapshots"].as_array().unwrap();
        rows.iter().map(|row| number(&row[key])).sum::<u64>()
    };
    assert!(
        sum("bytes_stored") > 2 * number(&stats["total"]["bytes_stored"]),
        "{stats}"
    );
    let stored: u64 = rows.iter().map(|row| number(&row["sizeStored"])).sum();
    assert_eq!(
        stored,
        number(&stats["repository"]["bytes_packs"]),
        "what each added is what is there"
    );
}

/// A server that cannot tell what changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_increment_of_a_community_server() {
    let place = tempdir().unwrap();
    let set = ReplSet::start(place.path().join("set"), ReplSetOptions::single("rs0"))
        .await
        .unwrap();
    data::load(&set.client().await.unwrap(), &DataSpec::megabytes(2))
        .await
        .unwrap();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    let uri = set.members()[0].uri();
    let asked = ["backup", "-t", "incremental", "--uri", &uri];
    let sentence = pbmfs.refuses(8, &[&asked[..], &["--method", "cursor"]].concat());
    says(&sentence, &["$backupCursor"]);
    assert!(pbmfs.names().is_empty() && pbmfs.leases().is_empty());

    let ran = pbmfs.ok(&asked);
    let reason = "everything was read: mongod ";
    says(&ran.stdout, &[reason, " has no $backupCursor"]);
    says(&ran.stderr, &["fsyncLock", "writes wait"]);
    let out = pbmfs.ok(&[&asked[..], &["--method", "lock"]].concat()).stdout;
    says(
        &out,
        &["everything was read: files were read under fsyncLock, as asked"],
    );
    let out = pbmfs.ok(&["backup", "--method", "lock", "--uri", &uri]).stdout;
    assert!(!out.contains("asked") && out.lines().count() == 3, "{out}");
    let rows = listed(&pbmfs);
    for (row, chain) in rows
        .iter()
        .zip([Value::Null, "full_read".into(), "full_read".into()])
    {
        assert_eq!(
            (&row["type"], &row["src"], &row["chain"]),
            (&"physical".into(), &"".into(), &chain)
        );
    }
    let told = pbmfs.ok(&["describe-backup", &name_of(&rows[2])]).stdout;
    says(
        &told,
        &["type: physical", "    step: full_read", "  source: fsync_lock"],
    );
    assert!(!told.contains("chain_head"), "{told}");
    let stats = counted(&pbmfs, &[]);
    assert_eq!(stats["snapshots"].as_array().unwrap().len(), 3);
    nothing_is_wasted(&stats);
}
