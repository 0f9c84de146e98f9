//! What may go wrong with a backup cursor: each is got over, or ends in one sentence, no snapshot, no cursor and no lock.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::time::Duration;

use mongodb::Client;
use pbmfs_tests::{
    CursorServerOptions, DataSpec, MongodOptions, PbmFs, ReplSet,
    chain::{BASE, INCREMENT, live_set, live_set_with, take},
    cli::text,
    compare,
    cursor_server::{Fault, Oddities, When},
    data, restore_steps, snapshot,
};
use rustix::process::Signal;
use tempfile::{TempDir, tempdir};

/// More patience than anybody has who waits for an answer of the cursor.
const LONG: Duration = Duration::from_secs(25);

struct Rig {
    place: TempDir,
    set: ReplSet,
    client: Client,
    pbmfs: PbmFs,
    spec: DataSpec,
    round: u64,
}

impl Rig {
    /// A set with a base and one change since.
    async fn new() -> Self {
        let place = tempdir().unwrap();
        let spec = DataSpec::megabytes(5);
        let (set, client) = live_set(place.path(), 1, &spec).await;
        let pbmfs = PbmFs::init(place.path().join("repo"));
        take(&pbmfs, &set.uri(), BASE).await;
        let mut rig = Self {
            place,
            set,
            client,
            pbmfs,
            spec,
            round: 0,
        };
        rig.change().await;
        rig
    }

    async fn change(&mut self) {
        self.round += 1;
        data::update_orders(&self.client, &self.spec, 50, self.round)
            .await
            .unwrap();
    }

    fn inject(&self, when: When, fault: Fault, times: usize) {
        self.set.cursor_servers()[0].faults().inject(when, fault, times);
    }

    /// An increment that works all the same.
    async fn works(&mut self) {
        let taken = take(&self.pbmfs, &self.set.uri(), INCREMENT).await;
        assert_eq!(taken.step(), "increment", "{}", taken.chain());
        self.nothing_left().await;
        self.change().await;
    }

    /// An increment that fails with this code and a sentence with these words, and leaves nothing; the next one works.
    async fn fails(&mut self, code: i32, words: &[&str], more: &[&str]) {
        let names = self.pbmfs.names();
        let uri = self.set.uri();
        let mut args = vec!["-q", "backup", "--uri", &uri];
        args.extend(INCREMENT);
        args.extend(more);
        let ran = tokio::task::block_in_place(|| self.pbmfs.run(&args));
        // A cursor that may be there still is asked again, and that is told.
        let sentence = ran.without_warnings().sentence(code);
        for word in words {
            assert!(sentence.contains(word), "{word} is not in: {sentence}");
        }
        assert_eq!(self.pbmfs.names(), names, "a snapshot was left");
        self.set.cursor_servers()[0].faults().clear();
        if self.set.member_mut(0).is_running() {
            self.nothing_left().await;
        }
    }

    async fn nothing_left(&self) {
        assert!(!self.set.cursor_servers()[0].is_open(), "a cursor was left open");
        assert!(
            !snapshot::is_locked(&self.client).await.unwrap(),
            "a lock was left"
        );
        assert_eq!(self.pbmfs.leases(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_only_collides_is_tried_again() {
    let mut rig = Rig::new().await;
    for code in [50_915, 50_917, 50_886] {
        let before = rig.set.cursor_servers()[0].opened().len();
        rig.inject(When::Open, Fault::Fail(code), 3);
        rig.works().await;
        let opened = rig.set.cursor_servers()[0].opened();
        let tries = &opened[before..];
        let codes: Vec<_> = tries.iter().map(|(_, code)| *code).collect();
        assert_eq!(codes, [Some(code), Some(code), Some(code), None]);
        // A refused attempt has used up its name.
        let mut names: Vec<_> = tries
            .iter()
            .map(|(options, _)| options.this_name.clone())
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 4, "{names:?}");
    }
    rig.inject(When::Open, Fault::Fail(50_915), 100);
    rig.fails(5, &["10 attempts"], &[]).await;
    rig.inject(When::Open, Fault::Fail(50_886), 100);
    rig.fails(5, &["another backup", "initial sync"], &["--lock-timeout", "1"])
        .await;
    rig.works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lost_cursor_ends_the_backup() {
    let mut rig = Rig::new().await;
    for fault in [Fault::LoseCursor, Fault::DropConnections, Fault::Fail(43)] {
        // The first getMore asks for more documents, the last one comes when all is read.
        let faults = rig.set.cursor_servers()[0].faults();
        faults.inject_after(1, When::GetMore, fault, 1);
        rig.fails(1, &["backup cursor", "lost", "nothing was saved"], &[])
            .await;
        rig.works().await;
    }
    let faults = rig.set.cursor_servers()[0].faults();
    faults.inject_after(1, When::GetMore, Fault::KillServer, 1);
    rig.fails(1, &["backup cursor", "lost"], &[]).await;
    rig.set.member_mut(0).restart().await.unwrap();
    rig.set.wait_ready().await.unwrap();
    rig.works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_journal_that_does_not_come_ends_the_backup() {
    let mut rig = Rig::new().await;
    rig.inject(When::Extend, Fault::Hang, 1);
    rig.fails(1, &["last majority write", "2 s"], &["--lock-timeout", "2"])
        .await;
    rig.inject(When::Extend, Fault::Fail(8), 1);
    rig.fails(1, &["$backupCursorExtend"], &[]).await;
    rig.inject(When::Extend, Fault::KillServer, 1);
    rig.fails(1, &["lost"], &[]).await;
    rig.set.member_mut(0).restart().await.unwrap();
    rig.set.wait_ready().await.unwrap();
    rig.works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_backup_that_is_stopped_closes_its_cursor() {
    let mut rig = Rig::new().await;
    let (uri, names) = (rig.set.uri(), rig.pbmfs.names());
    rig.inject(When::Extend, Fault::Hang, 1);
    let backup = rig
        .pbmfs
        .start(&["-q", "backup", "--uri", &uri, "-t", "incremental"]);
    while !rig.set.cursor_servers()[0].is_open() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    backup.signal(Signal::INT);
    let ran = tokio::task::spawn_blocking(|| backup.wait()).await.unwrap();
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    assert_eq!(rig.pbmfs.names(), names);
    rig.nothing_left().await;
    rig.works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn strange_lists_are_understood_or_refused() {
    let mut rig = Rig::new().await;
    rig.set.cursor_servers()[0].faults().set_oddities(Oddities {
        phantom_ranges: 5,
        first_file_unchanged: true,
        vanished: None,
    });
    rig.works().await;
    let taken = take(&rig.pbmfs, &rig.set.uri(), INCREMENT).await;
    let target = rig.place.path().join("restored");
    rig.pbmfs.ok(&["restore", &taken.name, "--target", text(&target)]);
    let mut mongod = restore_steps::open_recovered(&target, &MongodOptions::default())
        .await
        .unwrap();
    let restored = compare::digest(&mongod.client().await.unwrap()).await.unwrap();
    let live = compare::digest(&rig.client).await.unwrap();
    restored.check_equal(&live).unwrap();
    mongod.kill().unwrap();

    rig.set.cursor_servers()[0].faults().set_oddities(Oddities {
        vanished: Some("sizeStorer.wt".into()),
        ..Oddities::default()
    });
    rig.fails(1, &["sizeStorer.wt"], &[]).await;
    rig.works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_without_the_stage_is_locked_instead() {
    let rig = Rig::new().await;
    let uri = rig.set.uri();
    rig.inject(When::Open, Fault::Unsupported, 1);
    let ran = tokio::task::block_in_place(|| {
        rig.pbmfs
            .run(&["-o", "json", "backup", "-t", "incremental", "--uri", &uri])
            .ok()
    });
    let told = &ran.stderr;
    assert!(
        told.contains("without $backupCursor") && told.contains("fsyncLock instead"),
        "{told}"
    );
    let node = &ran.json()["replsets"][0]["node"];
    assert_eq!(
        (&node["source"], &node["chain"]["step"]),
        (&"fsync_lock".into(), &"full_read".into())
    );
    rig.nothing_left().await;
    let mut rig = rig;
    rig.inject(When::Open, Fault::Unsupported, 1);
    rig.fails(
        8,
        &["without $backupCursor", "--method lock"],
        &["--method", "cursor"],
    )
    .await;
    rig.works().await;
}

/// A cursor belongs to the server and to its session: what happens to an answer, or to the connection, is no reason to
/// give up what is still there.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stalled_answer_loses_no_cursor() {
    let mut rig = Rig::new().await;
    // The first getMore asks for more documents. Nobody waits longer than 20 s for a sign of life.
    let faults = rig.set.cursor_servers()[0].faults();
    faults.inject_after(1, When::GetMore, Fault::Delay(LONG), 1);
    rig.works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cursor_that_is_busy_is_not_lost() {
    let mut rig = Rig::new().await;
    let faults = rig.set.cursor_servers()[0].faults();
    faults.inject_after(1, When::GetMore, Fault::Stall(LONG), 1);
    rig.works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_connection_that_breaks_loses_no_cursor() {
    let mut rig = Rig::new().await;
    let faults = rig.set.cursor_servers()[0].faults();
    faults.inject_after(1, When::GetMore, Fault::HangUp, 1);
    rig.works().await;
}

/// They are not given twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn documents_that_were_lost_on_their_way_end_the_backup() {
    let place = tempdir().unwrap();
    let spec = DataSpec::megabytes(5);
    let servers = CursorServerOptions {
        batch: 10,
        ..CursorServerOptions::default()
    };
    let (set, client) = live_set_with(place.path(), 1, &spec, servers).await;
    let pbmfs = PbmFs::init(place.path().join("repo"));
    take(&pbmfs, &set.uri(), BASE).await;
    let mut rig = Rig {
        place,
        set,
        client,
        pbmfs,
        spec,
        round: 0,
    };
    for fault in [Fault::LoseCursor, Fault::Fail(43), Fault::HangUp] {
        rig.change().await;
        let faults = rig.set.cursor_servers()[0].faults();
        faults.inject_after(1, When::GetMore, fault, 1);
        rig.fails(1, &[], &[]).await;
        rig.works().await;
    }
}
