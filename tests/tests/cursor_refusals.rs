//! Refusals of `$backupCursor`: what passes is waited out or tried again, what says that history is lost costs a full
//! read, and nothing else makes the server forget.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use mongodb::Client;
use pbmfs_tests::{
    DataSpec, PbmFs, ReplSet,
    chain::{BASE, INCREMENT, Taken, live_set, take},
    cursor_server::{CursorServer, Fault, When},
    data, snapshot,
};
use tempfile::{TempDir, tempdir};

/// A set with a base and an increment.
struct Rig {
    _place: TempDir,
    set: ReplSet,
    client: Client,
    pbmfs: PbmFs,
    spec: DataSpec,
    round: u64,
}

impl Rig {
    async fn new() -> Self {
        let place = tempdir().unwrap();
        let spec = DataSpec::megabytes(5);
        let (set, client) = live_set(place.path(), 1, &spec).await;
        let pbmfs = PbmFs::init(place.path().join("repo"));
        take(&pbmfs, &set.uri(), BASE).await;
        let mut rig = Self {
            _place: place,
            set,
            client,
            pbmfs,
            spec,
            round: 0,
        };
        rig.increment().await;
        rig
    }

    fn server(&self) -> &CursorServer {
        &self.set.cursor_servers()[0]
    }

    fn refuse(&self, code: i32, text: &'static str, times: usize) {
        self.server()
            .faults()
            .inject(When::Open, Fault::Refuse(code, text), times);
    }

    async fn take(&mut self) -> Taken {
        self.round += 1;
        data::update_orders(&self.client, &self.spec, 50, self.round)
            .await
            .unwrap();
        let taken = take(&self.pbmfs, &self.set.uri(), INCREMENT).await;
        self.nothing_left().await;
        taken
    }

    /// An increment, and history goes on.
    async fn increment(&mut self) {
        let ended = self.server().asked_to_forget();
        let taken = self.take().await;
        assert_eq!(taken.step(), "increment", "{}", taken.chain());
        assert_eq!(self.server().asked_to_forget(), ended);
    }

    /// Fails with this code and a sentence, which is returned; leaves nothing, and history goes on.
    async fn fails(&mut self, code: i32, more: &[&str]) -> String {
        let (names, ended) = (self.pbmfs.names(), self.server().asked_to_forget());
        let uri = self.set.uri();
        let args = [&["-q", "backup", "--uri", &uri], INCREMENT, more].concat();
        let sentence = tokio::task::block_in_place(|| self.pbmfs.run(&args).sentence(code));
        assert_eq!(self.pbmfs.names(), names, "a snapshot was left");
        assert_eq!(self.server().asked_to_forget(), ended, "history was forgotten");
        self.server().faults().clear();
        self.nothing_left().await;
        sentence
    }

    async fn nothing_left(&self) {
        assert!(!self.server().is_open(), "a cursor was left open");
        assert!(
            !snapshot::is_locked(&self.client).await.unwrap(),
            "a lock was left"
        );
        assert_eq!(self.pbmfs.leases(), Vec::<String>::new());
    }

    /// The codes of the openings since the first `before`.
    fn codes(&self, before: usize) -> Vec<Option<i32>> {
        let opened = self.server().opened();
        opened[before..].iter().map(|(_, code)| *code).collect()
    }
}

/// Somebody else is at work who will be done sooner or later.
const OTHERS: [(i32, &str); 2] = [
    (50_887, "The node is currently fsyncLocked."),
    (29_098, "Unable to start a backup: there is a hot backup running."),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn others_at_work_are_waited_out() {
    let mut rig = Rig::new().await;
    for (code, text) in OTHERS {
        let before = rig.server().opened().len();
        rig.refuse(code, text, 2);
        rig.increment().await;
        assert_eq!(rig.codes(before), [Some(code), Some(code), None]);
        rig.refuse(code, text, usize::MAX);
        let sentence = rig.fails(5, &["--lock-timeout", "1"]).await;
        assert!(sentence.contains("1 s"), "how long is not said: {sentence}");
        rig.increment().await;
    }
}

/// A server that changes its state or was too busy at that moment.
const PASSING: [(i32, &str); 9] = [
    (11_600, "interrupted at shutdown"),
    (
        11_602,
        "operation was interrupted because the server changed state",
    ),
    (13_436, "node is not in primary or recovering state"),
    (91, "The server is in quiesce mode and will shut down"),
    (189, "Not primary: stepped down while processing"),
    (10_107, "not primary"),
    (24, "Unable to acquire the lock within the time given"),
    (50, "operation exceeded time limit"),
    (11_601, "operation was interrupted"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_passes_is_tried_again() {
    let mut rig = Rig::new().await;
    for (code, text) in PASSING {
        let before = rig.server().opened().len();
        rig.refuse(code, text, 2);
        rig.increment().await;
        assert_eq!(rig.codes(before), [Some(code), Some(code), None]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_should_pass_and_does_not_is_an_error() {
    let mut rig = Rig::new().await;
    // Two that the driver takes for a change of the server's state, and one that it does not.
    for (code, text) in [PASSING[0], PASSING[2], PASSING[6]] {
        let before = rig.server().opened().len();
        rig.refuse(code, text, usize::MAX);
        let sentence = rig.fails(1, &[]).await;
        assert!(
            sentence.contains(text),
            "the server's words are missing: {sentence}"
        );
        let codes = rig.codes(before);
        assert!((2..=10).contains(&codes.len()), "{codes:?}");
        assert!(codes.iter().all(|found| *found == Some(code)), "{codes:?}");
        rig.increment().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn history_that_is_not_known_costs_a_full_read() {
    let mut rig = Rig::new().await;
    for (code, text) in [
        (8, "2: No such file or directory"),
        (2, "2: No such file or directory"),
        (72, "'srcBackupName' refers to a backup that is not known"),
        (9, "srcBackupName: no such backup"),
    ] {
        // As often as there are names that it may know.
        rig.refuse(code, text, 2);
        let ended = rig.server().asked_to_forget();
        let taken = rig.take().await;
        assert_eq!(taken.step(), "full_read", "{}", taken.chain());
        let reason = taken.chain()["reason"].as_str().unwrap();
        assert!(reason.contains(text), "{reason}");
        assert_eq!(rig.server().asked_to_forget(), ended + 1);
        rig.increment().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn other_refusals_are_no_loss_of_history() {
    let mut rig = Rig::new().await;
    for (code, text) in [
        (1, "something went wrong inside"),
        (2, "22: Invalid argument"),
        (9, "Failed to parse what the stage was given"),
        (72, "the options do not go together"),
        (96, "the backup could not be started"),
    ] {
        rig.refuse(code, text, usize::MAX);
        let sentence = rig.fails(1, &[]).await;
        assert!(
            sentence.contains(text),
            "the server's words are missing: {sentence}"
        );
        rig.increment().await;
    }
}
