//! Extending the backup to a later time.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mongodb::bson::{Bson, Document};

use super::{
    documents::{self, Command, ExtendOptions},
    failure::{CURSOR_OPEN, Failure, INTERRUPTED, NO_REPLICATION, OTHER_BACKUP, TIME_LIMIT},
    pin::{Pin, PinError},
    server::{FIRST_BATCH, Server, lock, take},
    upstream::optime,
};
use crate::error::RigError;

/// How often the real server is asked whether it has come as far as an extend wants.
const POLL: Duration = Duration::from_millis(20);

impl Server {
    /// Answers `$backupCursorExtend`, within `limit`.
    pub(super) async fn extend(
        self: &Arc<Self>,
        command: &Command,
        spec: Option<&Bson>,
        limit: Option<Duration>,
    ) -> Result<Document, PinError> {
        let options = ExtendOptions::parse(spec).map_err(PinError::Refused)?;
        let (journal, known) = {
            let open = lock(&self.open);
            let no_cursor = "Cannot extend backup cursor because backup cursor is not open";
            let Some(cursor) = open.as_ref() else {
                return Err(PinError::Refused(Failure::new(CURSOR_OPEN, no_cursor)));
            };
            if cursor.backup_id != options.backup_id {
                return Err(PinError::Refused(Failure::usual(OTHER_BACKUP)));
            }
            (cursor.pin.journal(), &cursor.pin.logs | &cursor.extended)
        };
        let reached = self.reach(options);
        match limit {
            None => reached.await?,
            Some(limit) => match tokio::time::timeout(limit, reached).await {
                Ok(result) => result?,
                Err(_) => return Err(PinError::Refused(Failure::usual(TIME_LIMIT))),
            },
        }
        // In a task of its own, because this one may be cancelled and the lock must not stay.
        let server = Arc::clone(self);
        let flush = tokio::spawn(async move { Pin::extend(journal, known, &server.upstream).await });
        let logs = flush
            .await
            .map_err(|error| RigError::Check(format!("extending: {error}")))??;
        let mut open = lock(&self.open);
        let cursor = open.as_mut().filter(|open| open.backup_id == options.backup_id);
        let cursor = cursor.ok_or_else(|| PinError::Refused(Failure::usual(INTERRUPTED)))?;
        let document = |name: &String| documents::journal(&cursor.pin.directory, name, self.options.style);
        let mut rest: VecDeque<_> = logs.iter().map(document).collect();
        cursor.extended.extend(logs);
        drop(open);
        let documents = take(&mut rest, command.batch_size.unwrap_or(FIRST_BATCH));
        let mut id = 0;
        if !rest.is_empty() {
            id = self.next_id.fetch_add(1, Ordering::Relaxed);
            lock(&self.extends).insert(id, rest);
        }
        Ok(documents::batch(&command.database, true, id, documents))
    }

    /// Waits until the server has applied everything up to this time, and a majority has too.
    async fn reach(&self, options: ExtendOptions) -> Result<(), PinError> {
        let admin = self.upstream.connect().await?;
        loop {
            let Some(status) = admin.status().await? else {
                return Err(PinError::Refused(Failure::usual(NO_REPLICATION)));
            };
            let reached = |name| optime(&status, name).is_some_and(|at| at.ts >= options.timestamp);
            if reached("appliedOpTime") && reached("lastCommittedOpTime") {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
