//! What goes wrong, on demand.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Which command a fault waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// `$backupCursor`.
    Open,
    /// A getMore on the backup cursor.
    GetMore,
    /// `$backupCursorExtend`.
    Extend,
}

/// What happens to the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is answered with this code; see [`super::failure`]. A cursor that is refused with 50915 or 50917 has used up its
    /// `thisBackupName`, as on a real server.
    Fail(i32),
    /// It is answered with this code and this text.
    Refuse(i32, &'static str),
    /// It goes to the real server, which does not know the stage (40324).
    Unsupported,
    /// It is answered later.
    Delay(Duration),
    /// The cursor is busy with it for so long, whether or not the client waits: another getMore is refused meanwhile
    /// (12051).
    Stall(Duration),
    /// It is carried out, and its connection breaks instead of an answer. The cursor stays, as on a real server; what
    /// documents it gave are gone.
    HangUp,
    /// It is not answered before its `maxTimeMS`, or ever.
    Hang,
    /// The cursor is closed first, as `killCursors` of somebody else would do it.
    LoseCursor,
    /// The cursor is closed, and so are all connections.
    DropConnections,
    /// The real server is killed, and with it go the cursor and all connections.
    KillServer,
}

/// What the next backup cursors say that is true and yet surprising. It stays so until it is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Oddities {
    /// So many ranges behind the end of their files are named in an increment.
    pub phantom_ranges: usize,
    /// An increment's first file is one that did not change, if there is one.
    pub first_file_unchanged: bool,
    /// The file of this name (`sizeStorer.wt`) is named and not there.
    pub vanished: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Planned {
    when: When,
    skip: usize,
    times: usize,
    fault: Fault,
}

/// The faults that are planned. They are used up by the commands that they hit.
#[derive(Debug, Default)]
pub struct Faults {
    planned: Mutex<Vec<Planned>>,
    oddities: Mutex<Oddities>,
}

impl Faults {
    /// Hits the next `times` commands.
    pub fn inject(&self, when: When, fault: Fault, times: usize) {
        self.inject_after(0, when, fault, times);
    }

    /// Lets `skip` commands pass, then hits `times`.
    pub fn inject_after(&self, skip: usize, when: When, fault: Fault, times: usize) {
        self.planned().push(Planned {
            when,
            skip,
            times,
            fault,
        });
    }

    /// Forgets what is planned.
    pub fn clear(&self) {
        self.planned().clear();
        self.set_oddities(Oddities::default());
    }

    /// For the cursors that are opened from now on.
    pub fn set_oddities(&self, oddities: Oddities) {
        *self.oddities.lock().unwrap_or_else(PoisonError::into_inner) = oddities;
    }

    pub(super) fn oddities(&self) -> Oddities {
        self.oddities
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn planned(&self) -> MutexGuard<'_, Vec<Planned>> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault that hits a command which comes now. The first that was planned for it goes first.
    pub(super) fn hit(&self, when: When) -> Option<Fault> {
        let mut planned = self.planned();
        let at = planned.iter().position(|entry| entry.when == when)?;
        let entry = &mut planned[at];
        if entry.skip > 0 {
            entry.skip -= 1;
            return None;
        }
        let fault = entry.fault;
        entry.times = entry.times.saturating_sub(1);
        if entry.times == 0 {
            planned.remove(at);
        }
        Some(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Faults, When};

    #[test]
    fn faults_come_in_order_and_are_used_up() {
        let faults = Faults::default();
        faults.inject_after(1, When::Open, Fault::Fail(50_915), 2);
        faults.inject(When::Open, Fault::Hang, 1);
        let hits: Vec<_> = (0..5).map(|_| faults.hit(When::Open)).collect();
        let conflict = Some(Fault::Fail(50_915));
        assert_eq!(hits, [None, conflict, conflict, Some(Fault::Hang), None]);
        assert_eq!(faults.hit(When::Extend), None);
    }
}
