//! What happens to the database between two backups.

use serde_json::json;

use super::{
    chain::{Chain, OPLOG, lock},
    driver::Driver,
};
use crate::error::Result;

/// What happens to the database between two backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing but what the writers do.
    Nothing,
    /// A thousandth of the largest table is updated.
    Update,
    /// Tables are made: one with rows, one that stays empty, one that has no checkpoint yet.
    Create,
    /// A table grows by half.
    Grow,
    /// A table is dropped.
    Drop,
    /// A table is dropped, and another one made under its name.
    DropAndCreate,
    /// Most rows of a table are removed, and it is compacted.
    Shrink,
    /// The database is closed and opened again.
    Restart,
    /// A backup is begun, and given up.
    GiveUp,
    /// The process is killed.
    Crash,
    /// The process is killed while a backup cursor is open.
    CrashUnderCursor,
    /// The next backup is taken without writers and checkpoints beside it, and the process is killed when its cursor has
    /// been closed, so that its id is lost.
    LoseNextId,
    /// The history is forgotten.
    ForceStop,
}

impl Event {
    /// All of them.
    pub const ALL: [Event; 13] = [
        Event::Nothing,
        Event::Update,
        Event::Create,
        Event::Grow,
        Event::Drop,
        Event::DropAndCreate,
        Event::Shrink,
        Event::Restart,
        Event::GiveUp,
        Event::Crash,
        Event::CrashUnderCursor,
        Event::LoseNextId,
        Event::ForceStop,
    ];
}

impl Chain {
    /// A table that may be dropped or changed as a whole.
    fn some_table(&mut self) -> String {
        let names: Vec<_> = self
            .tables
            .keys()
            .filter(|name| !matches!(name.as_str(), OPLOG | "big"))
            .cloned()
            .collect();
        names[self.prng.below(names.len() as u64) as usize].clone()
    }

    /// Has something happen, while the writers go on.
    pub fn happens(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Nothing => Ok(()),
            Event::Update => self.tell("update", json!({"name": "big", "every": 1000})),
            Event::Create => {
                let number = self.ids;
                let (rows, size) = (1 + self.prng.below(1500), 50 + self.prng.below(2000));
                self.create(&format!("new{number}"), rows, size)?;
                self.create(&format!("empty{number}"), 0, 100)?;
                self.tell("checkpoint", json!({}))?;
                self.create(&format!("late{number}"), 300, 500)
            }
            Event::Grow => self.tell("grow", json!({"name": "mid", "rows": 3000})),
            Event::Drop => {
                let name = self.some_table();
                if self.tables.len() > 6 && name != "mid" {
                    self.tables.remove(&name);
                    self.tell("drop", json!({"name": name}))?;
                }
                Ok(())
            }
            Event::DropAndCreate => {
                let name = self.some_table();
                self.tell("drop", json!({"name": name}))?;
                let (rows, size) = (self.prng.below(3000), 20 + self.prng.below(800));
                self.create(&name, rows, size)
            }
            Event::Shrink => self.get("shrink", json!({"name": "mid", "keep": 9})).map(drop),
            Event::Restart => {
                self.get("reopen", json!({}))?;
                self.tell("start", json!({"writers": 2}))
            }
            Event::GiveUp => {
                self.pin()?;
                self.tell("end", json!({}))
            }
            Event::Crash => self.crash(),
            Event::CrashUnderCursor => {
                self.pin()?;
                self.tell("grow", json!({"name": "mid", "rows": 200}))?;
                self.tell("checkpoint", json!({}))?;
                self.crash()
            }
            Event::LoseNextId => {
                self.crash_next = true;
                self.tell("halt", json!({}))
            }
            Event::ForceStop => self.tell("force_stop", json!({})),
        }
    }

    pub(super) fn crash(&mut self) -> Result<()> {
        {
            let mut driver = lock(&self.driver);
            driver.kill()?;
            *driver = Driver::start(&self.python, &self.place.join("driver.log"))?;
        }
        let seed = self.prng.below(1 << 40);
        self.open(seed)?;
        // What it holds now is what recovery found.
        let found: Vec<String> = lock(&self.driver).get("adopt", json!({"sizes": self.tables}))?;
        self.tables.retain(|name, _| found.contains(name));
        for name in found {
            self.tables.entry(name).or_insert(500);
        }
        self.tell("start", json!({"writers": 2}))
    }
}
