//! Opening the cursor: what is checked, pinned, named and remembered.

use std::{
    fs,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use mongodb::bson::{Document, Uuid};
use tokio::{io::AsyncReadExt, net::TcpStream, task::AbortHandle};

use super::{
    documents::{self, BackupOptions, Command, Style},
    failure::{CHECKPOINT_CONFLICT, CURSOR_OPEN, Failure, OPLOG_ROLLED_OVER},
    feed::Feed,
    history::{Claim, Image, NamedRange},
    journal::Logs,
    pin::{Pin, PinError},
    scribble::Scribbler,
    server::{FIRST_BATCH, OpenCursor, Server, lock},
};
use crate::error::Doing;

impl Server {
    /// Answers `$backupCursor`; with `refused`, as late as the real server would refuse it.
    pub(super) async fn open(
        self: &Arc<Self>,
        command: &Command,
        options: &BackupOptions,
        refused: Option<Failure>,
    ) -> Result<Document, PinError> {
        let mut history = self.history.lock().await;
        if self.is_open() {
            return Err(PinError::Refused(Failure::usual(CURSOR_OPEN)));
        }
        let claim = match (&options.this_name, options.disable) {
            (Some(this), false) => {
                let block_size = u64::from(options.block_size_mb().unsigned_abs()) << 20;
                let claim = history.claim(this, options.source_name.as_deref(), block_size);
                Some(claim.map_err(PinError::Refused)?)
            }
            _ => None,
        };
        if let Some(failure) = refused {
            // The cursor was open before the server saw why it must not be.
            if let Some(claim) =
                claim.filter(|_| [CHECKPOINT_CONFLICT, OPLOG_ROLLED_OVER].contains(&failure.code))
            {
                history.remember(&claim, Image::new());
            }
            return Err(PinError::Refused(failure));
        }
        if options.disable {
            history.forget();
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let pin = Pin::make(&self.upstream, self.place.join(id.to_string())).await?;
        let backup_id = Uuid::new();
        let style = self.options.style;
        let mut feed = Feed {
            directory: pin.directory.clone(),
            style,
            // In a base some servers give no length, and in a plain backup none does.
            told: match style {
                Style::Explicit => options.source_name.is_some(),
                _ => options.incremental,
            },
            batch: self.options.batch.max(1),
            grow: self.options.grow,
            named: [].into(),
            made: [documents::metadata(backup_id, &pin, options, style)].into(),
            batches: 0,
        };
        // A cursor that only ends history names no files.
        if !options.disable {
            let ranges = self.ranges(&pin, claim.as_ref());
            feed.named.extend(ranges.iter().cloned());
            let name = options.this_name.clone().unwrap_or_default();
            lock(&self.named).insert(name, ranges);
        }
        if let Some(claim) = &claim {
            history.remember(claim, pin.image());
        }
        if let Some(name) = self.faults.oddities().vanished {
            fs::remove_file(pin.directory.join(name)).doing("making a file vanish")?;
        }
        let scribbler = match self.options.scribble {
            Some(seed) => Some(Scribbler::start(&pin, seed).doing("starting to scribble")?),
            None => None,
        };
        let stream = TcpStream::connect(self.upstream.address).await;
        let stream = stream.doing("connecting to the server")?;
        let mut open = lock(&self.open);
        let cursor = open.insert(OpenCursor {
            id,
            backup_id,
            session: command.session.clone(),
            sentinel: self.sentinel(id, stream),
            feed,
            used: Instant::now(),
            extended: Logs::new(),
            pin,
            scribbler,
        });
        let documents = cursor.feed.next(command.batch_size.unwrap_or(FIRST_BATCH));
        Ok(documents::batch(&command.database, true, id, documents))
    }

    /// What the cursor names, but for its metadata.
    fn ranges(&self, pin: &Pin, claim: Option<&Claim>) -> Vec<NamedRange> {
        let whole = |file: String, file_size| NamedRange {
            file,
            file_size,
            offset: 0,
            length: file_size,
            whole: true,
        };
        let increment = claim.filter(|claim| claim.has_source());
        let mut ranges = Vec::new();
        for file in &pin.files {
            match increment.filter(|_| file.is_compared()) {
                Some(claim) => ranges.extend(claim.ranges(&file.name, &file.image)),
                None => ranges.push(whole(file.name.clone(), file.image.size)),
            }
        }
        let oddities = self.faults.oddities();
        if let Some(claim) = increment {
            ranges.extend(claim.phantoms(&ranges, oddities.phantom_ranges));
            let unchanged = ranges.iter().position(|range| range.length == 0);
            if let Some(at) = unchanged.filter(|_| oddities.first_file_unchanged) {
                let range = ranges.remove(at);
                ranges.insert(0, range);
            }
        }
        ranges.extend(pin.logs.iter().map(|name| {
            let file = format!("journal/{name}");
            let size = fs::metadata(pin.directory.join(&file)).map_or(0, |meta| meta.len());
            whole(file, size)
        }));
        ranges
    }

    /// Closes the cursor when the real server goes away.
    fn sentinel(self: &Arc<Self>, id: i64, mut stream: TcpStream) -> AbortHandle {
        let server = Arc::downgrade(self);
        let watch = async move {
            // It is never asked anything, so all that can come is the end.
            let _ = stream.read_u8().await;
            if let Some(server) = server.upgrade() {
                server.close_id(id);
            }
        };
        tokio::spawn(watch).abort_handle()
    }
}
