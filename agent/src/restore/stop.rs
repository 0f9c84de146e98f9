//! Why a restore stops before its end.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use pbmfs_repo::ingest::Cancel;

use super::error::{RestoreError, Result};

/// The first error of any thread, or the caller's wish.
#[derive(Debug, Clone)]
pub(super) struct Stop {
    cancel: Cancel,
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    stopped: AtomicBool,
    error: Mutex<Option<RestoreError>>,
}

/// Stops everybody when it is dropped: the caller no longer waits.
pub(super) struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.inner.stopped.store(true, SeqCst);
    }
}

impl Stop {
    /// Stops when `cancel` says so, too.
    pub fn new(cancel: Cancel) -> Self {
        Self {
            cancel,
            inner: Arc::default(),
        }
    }

    /// Stops everybody when the returned value is dropped.
    pub fn on_drop(&self) -> StopOnDrop {
        StopOnDrop(self.clone())
    }

    /// Keeps the first error and stops everybody.
    pub fn fail(&self, error: RestoreError) {
        let mut first = self.inner.error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        self.inner.stopped.store(true, SeqCst);
    }

    /// Whether everybody should end.
    pub fn is_stopped(&self) -> bool {
        self.inner.stopped.load(SeqCst) || self.cancel.is_cancelled()
    }

    /// # Errors
    /// `Cancelled` if everybody should end, for whatever reason.
    pub fn check(&self) -> Result<()> {
        if self.is_stopped() {
            Err(RestoreError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// # Errors
    /// Why everybody stopped, if somebody failed or the caller wished it.
    pub fn verdict(&self) -> Result<()> {
        let first = self
            .inner
            .error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match first {
            Some(e) => Err(e),
            None => self.check(),
        }
    }
}
