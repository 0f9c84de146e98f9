//! The memory budget of a pipeline, and the flag that stops all of its threads.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::error::{RepoError, Result};

/// Lets a caller stop a running operation.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the operation to stop; it ends with `Cancelled` soon after.
    pub fn cancel(&self) {
        self.0.store(true, SeqCst);
    }

    /// Whether it was asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(SeqCst)
    }

    /// # Errors
    /// `Cancelled` if it was asked.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            Err(RepoError::Cancelled)
        } else {
            Ok(())
        }
    }
}

/// Why threads stop: the first error of any of them.
#[derive(Debug, Default)]
pub(crate) struct Poison {
    stopped: AtomicBool,
    error: Mutex<Option<RepoError>>,
    budget: Mutex<u64>,
    freed: Condvar,
}

impl Poison {
    /// With `bytes` to give out.
    pub fn with_budget(bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            budget: Mutex::new(bytes),
            ..Self::default()
        })
    }

    /// Keeps the first error and stops everybody.
    pub fn fail(&self, error: RepoError) {
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.stop();
    }

    /// Stops everybody.
    pub fn stop(&self) {
        self.stopped.store(true, SeqCst);
        // Under the lock, so that nobody who is about to wait misses it.
        let _budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        self.freed.notify_all();
    }

    /// Whether threads should end.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(SeqCst)
    }

    /// The first error.
    pub fn take_error(&self) -> Option<RepoError> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits until `bytes` are free and takes them; `None` if everybody was stopped.
    pub fn acquire(self: &Arc<Self>, bytes: u64) -> Option<Permit> {
        let mut left = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        while *left < bytes && !self.is_stopped() {
            left = self.freed.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
        if self.is_stopped() {
            return None;
        }
        *left -= bytes;
        Some(Permit {
            from: self.clone(),
            bytes,
        })
    }

    /// Stops everybody if the thread that holds the returned value panics.
    pub fn dart(self: &Arc<Self>) -> Dart {
        Dart(self.clone())
    }
}

/// Bytes of the budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    from: Arc<Poison>,
    bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.from.budget.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.from.freed.notify_all();
    }
}

/// Stops everybody when it is dropped by a panic.
pub(crate) struct Dart(Arc<Poison>);

impl Drop for Dart {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .fail(RepoError::Poisoned("a thread of the pipeline panicked".into()));
        }
    }
}
