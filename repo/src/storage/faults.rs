//! A decorator that injects faults: it sits on top of a real storage and decides before each call what goes wrong.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Page, PutOutcome, Storage, StorageError};
use crate::key::ObjectKey;

/// A storage call, as a plan sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// `get`
    Get,
    /// `get_range`
    GetRange,
    /// `put_if_absent`
    PutIfAbsent,
    /// `put_once`
    PutOnce,
    /// `put`
    Put,
    /// `list`
    List,
    /// `delete`
    Delete,
    /// `head`
    Head,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Self::Get | Self::GetRange => "read",
            Self::PutIfAbsent | Self::PutOnce | Self::Put => "write",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Head => "look at",
        }
    }

    fn changes(self) -> bool {
        matches!(self, Self::PutIfAbsent | Self::PutOnce | Self::Put | Self::Delete)
    }
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing goes wrong.
    None,
    /// The call is carried out after a while.
    Delay(Duration),
    /// Nothing is done, and the error says so.
    Fail,
    /// Nothing is done, and the error leaves it open.
    FailUnknown,
    /// The call is carried out, and the error leaves it open. Of a call that only reads: the same as `Fail`.
    DoneButUnknown,
    /// The call is carried out, and the error claims that nothing was done.
    DoneButFailed,
    /// Nothing is done: no space is left.
    NoSpace,
    /// A read gives the right number of bytes, of which one bit is wrong.
    FlipBit,
    /// The caller never sees an answer, and nothing is done: a process that dies at this call.
    Hang,
}

/// Decides about the call with this number (from 0).
pub type FaultPlan = Box<dyn Fn(u64, Op, &str) -> Fault + Send + Sync>;

/// Injects the faults of a plan.
pub struct FaultyStorage {
    inner: Arc<dyn Storage>,
    plan: FaultPlan,
    calls: AtomicU64,
}

impl fmt::Debug for FaultyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStorage")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl FaultyStorage {
    /// Passes calls to `inner` as `plan` says.
    pub fn new(inner: Arc<dyn Storage>, plan: FaultPlan) -> Self {
        Self {
            inner,
            plan,
            calls: AtomicU64::new(0),
        }
    }

    /// Number of calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    fn decide(&self, op: Op, key: &str) -> (u64, Fault) {
        let number = self.calls.fetch_add(1, Relaxed);
        (number, (self.plan)(number, op, key))
    }

    async fn run<T>(
        &self,
        op: Op,
        key: &str,
        call: impl Future<Output = Result<T, StorageError>> + Send,
    ) -> Result<T, StorageError> {
        let (_, fault) = self.decide(op, key);
        self.carry_out(op, key, fault, call).await
    }

    async fn carry_out<T>(
        &self,
        op: Op,
        key: &str,
        fault: Fault,
        call: impl Future<Output = Result<T, StorageError>> + Send,
    ) -> Result<T, StorageError> {
        let failed = || StorageError::Failed {
            op: op.name(),
            key: key.into(),
            reason: "injected fault".into(),
        };
        let unknown = || match ObjectKey::parse(key) {
            Some(key) if op.changes() => StorageError::Unknown {
                op: op.name(),
                key,
                reason: "injected fault".into(),
            },
            _ => failed(),
        };
        match fault {
            Fault::None | Fault::FlipBit => call.await,
            Fault::Delay(wait) => {
                tokio::time::sleep(wait).await;
                call.await
            }
            Fault::Fail => Err(failed()),
            Fault::FailUnknown => Err(unknown()),
            Fault::DoneButUnknown => call.await.and_then(|_| Err(unknown())),
            Fault::DoneButFailed => call.await.and_then(|_| Err(failed())),
            Fault::NoSpace => match ObjectKey::parse(key) {
                Some(key) => Err(StorageError::NoSpace {
                    key,
                    place: self.address(),
                }),
                None => Err(failed()),
            },
            Fault::Hang => std::future::pending().await,
        }
    }

    async fn read(
        &self,
        op: Op,
        key: &ObjectKey,
        call: impl Future<Output = Result<Bytes, StorageError>> + Send,
    ) -> Result<Bytes, StorageError> {
        let (number, fault) = self.decide(op, key.as_str());
        let bytes = self.carry_out(op, key.as_str(), fault, call).await?;
        if fault != Fault::FlipBit || bytes.is_empty() {
            return Ok(bytes);
        }
        let mut altered = bytes.to_vec();
        let at = number as usize % altered.len();
        altered[at] ^= 0x10;
        Ok(altered.into())
    }
}

#[async_trait]
impl Storage for FaultyStorage {
    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StorageError> {
        self.read(Op::Get, key, self.inner.get(key)).await
    }

    async fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Bytes, StorageError> {
        self.read(Op::GetRange, key, self.inner.get_range(key, offset, len))
            .await
    }

    async fn put_if_absent(&self, key: &ObjectKey, object: Bytes) -> Result<PutOutcome, StorageError> {
        self.run(
            Op::PutIfAbsent,
            key.as_str(),
            self.inner.put_if_absent(key, object),
        )
        .await
    }

    async fn put_once(&self, key: &ObjectKey, object: Bytes) -> Result<(), StorageError> {
        self.run(Op::PutOnce, key.as_str(), self.inner.put_once(key, object))
            .await
    }

    async fn put(&self, key: &ObjectKey, object: Bytes) -> Result<(), StorageError> {
        self.run(Op::Put, key.as_str(), self.inner.put(key, object)).await
    }

    async fn list(&self, prefix: &str, from: Option<String>) -> Result<Page, StorageError> {
        self.run(Op::List, prefix, self.inner.list(prefix, from)).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.run(Op::Delete, key.as_str(), self.inner.delete(key)).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<u64, StorageError> {
        self.run(Op::Head, key.as_str(), self.inner.head(key)).await
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}
