//! What clients ask for, and the shapes of the answers.

use std::path::Path;

use mongodb::bson::{Bson, Document, RawDocument, Timestamp, Uuid, doc};

use super::{
    failure::{FAILED_TO_PARSE, Failure, INVALID_OPTIONS, TYPE_MISMATCH},
    history::NamedRange,
    pin::Pin,
};

/// How the server words its documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Percona Server since 4.4.18, 5.0.14, 6.0.3: `offset` and `length` are left out where both are 0; in a base the
    /// length is that of the file.
    #[default]
    Percona,
    /// Percona Server before that: `filename` and `fileSize` alone, and the stage's options are passed over in silence:
    /// no increments, and metadata do not repeat the options.
    PerconaEarly,
    /// MongoDB Enterprise: file documents also say `required`, `ns` and `uuid`.
    Enterprise,
    /// Every document has all four fields, and in a base a whole file is 0 and 0.
    Explicit,
}

/// The options of `$backupCursor`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupOptions {
    /// `disableIncrementalBackup`.
    pub disable: bool,
    /// `incrementalBackup`.
    pub incremental: bool,
    /// `blockSize`, in MB.
    pub block_size: Option<i32>,
    /// `thisBackupName`.
    pub this_name: Option<String>,
    /// `srcBackupName`.
    pub source_name: Option<String>,
}

impl BackupOptions {
    /// The server's own default.
    pub(super) fn block_size_mb(&self) -> i32 {
        self.block_size.unwrap_or(16)
    }

    pub(super) fn parse(spec: Option<&Bson>, style: Style) -> Result<Self, Failure> {
        let Some(Bson::Document(spec)) = spec else {
            return Err(Failure::new(
                FAILED_TO_PARSE,
                "$backupCursor parameters must be specified in an object",
            ));
        };
        let mut options = Self::default();
        if style == Style::PerconaEarly {
            return Ok(options);
        }
        let mismatch = |name: &str, kind: &str| {
            let text = format!("The '{name}' parameter of the $backupCursor stage must be a {kind} value");
            Failure::new(TYPE_MISMATCH, text)
        };
        for (name, value) in spec {
            let boolean = || value.as_bool().ok_or_else(|| mismatch(name, "boolean"));
            let string = || match value.as_str() {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(mismatch(name, "string")),
            };
            match name.as_str() {
                "disableIncrementalBackup" => options.disable = boolean()?,
                "incrementalBackup" => options.incremental = boolean()?,
                "blockSize" => match value {
                    Bson::Int32(size) if *size > 0 => options.block_size = Some(*size),
                    _ => return Err(mismatch(name, "positive integer")),
                },
                "thisBackupName" => options.this_name = string()?,
                "srcBackupName" => options.source_name = string()?,
                _ => {
                    let text = format!("Unrecognized option '{name}' in $backupCursor stage");
                    return Err(Failure::new(FAILED_TO_PARSE, text));
                }
            }
        }
        let invalid = |text: &str| Err(Failure::new(INVALID_OPTIONS, text));
        let (this, source) = (&options.this_name, &options.source_name);
        if options.incremental && options.disable {
            return invalid(
                "'incrementalBackup' and 'disableIncrementalBackup' parameters are mutually exclusive. Cannot enable both",
            );
        }
        if !options.incremental && (this.is_some() || source.is_some()) {
            return invalid(
                "'thisBackupName' and 'srcBackupName' parameters are only allowed when 'incrementalBackup' is true",
            );
        }
        if options.incremental && this.as_deref().is_none_or(str::is_empty) {
            return invalid("'thisBackupName' needs to exist when incrementalBackup=true");
        }
        Ok(options)
    }
}

/// `$backupCursorExtend`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExtendOptions {
    pub(super) backup_id: Uuid,
    pub(super) timestamp: Timestamp,
}

impl ExtendOptions {
    pub(super) fn parse(spec: Option<&Bson>) -> Result<Self, Failure> {
        let field = |name: &str| spec.and_then(Bson::as_document).and_then(|spec| spec.get(name));
        let missing =
            |name: &str| Failure::new(INVALID_OPTIONS, format!("Required parameter missing: {name}"));
        let mismatch = |name: &str| {
            let text = format!("The '{name}' parameter of the $backupCursorExtend stage has a wrong type");
            Failure::new(TYPE_MISMATCH, text)
        };
        let backup_id = match field("backupId").ok_or_else(|| missing("backupId"))? {
            Bson::Binary(binary) => binary.to_uuid().map_err(|_| mismatch("backupId"))?,
            _ => return Err(mismatch("backupId")),
        };
        let timestamp = field("timestamp").ok_or_else(|| missing("timestamp"))?;
        Ok(Self {
            backup_id,
            timestamp: timestamp.as_timestamp().ok_or_else(|| mismatch("timestamp"))?,
        })
    }
}

/// A command that is answered here.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) kind: Kind,
    pub(super) database: String,
    /// The session that it comes in.
    pub(super) session: Option<Bson>,
    pub(super) batch_size: Option<usize>,
    pub(super) max_time_ms: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// With the stage's value.
    Open(Option<Bson>),
    Extend(Option<Bson>),
    GetMore(i64),
    Kill(Vec<i64>),
}

impl Command {
    /// The command in a message, if it is one of those that can be meant for a backup cursor.
    pub(super) fn of(body: &RawDocument) -> Option<Self> {
        let (name, _) = body.iter().next()?.ok()?;
        if !["aggregate", "getMore", "killCursors"].contains(&name) {
            return None;
        }
        let body = Document::try_from(body).ok()?;
        let number = |value: &Bson| match value {
            Bson::Int32(value) => Some(i64::from(*value)),
            Bson::Int64(value) => Some(*value),
            Bson::Double(value) => Some(*value as i64),
            _ => None,
        };
        let kind = match name {
            // On no collection.
            "aggregate" if body.get("aggregate").and_then(number) == Some(1) => {
                let stage = body.get_array("pipeline").ok()?.first()?.as_document()?;
                match stage.keys().next()?.as_str() {
                    "$backupCursor" => Kind::Open(stage.get("$backupCursor").cloned()),
                    "$backupCursorExtend" => Kind::Extend(stage.get("$backupCursorExtend").cloned()),
                    _ => return None,
                }
            }
            "getMore" => Kind::GetMore(body.get("getMore").and_then(number)?),
            "killCursors" => Kind::Kill(
                body.get_array("cursors")
                    .ok()?
                    .iter()
                    .filter_map(number)
                    .collect(),
            ),
            _ => return None,
        };
        let batch_size = match kind {
            Kind::GetMore(_) => body.get("batchSize"),
            _ => body
                .get_document("cursor")
                .ok()
                .and_then(|cursor| cursor.get("batchSize")),
        };
        Some(Self {
            kind,
            database: body.get_str("$db").unwrap_or("admin").to_owned(),
            session: body
                .get_document("lsid")
                .ok()
                .and_then(|lsid| lsid.get("id"))
                .cloned(),
            batch_size: batch_size
                .and_then(number)
                .and_then(|size| usize::try_from(size).ok()),
            max_time_ms: body
                .get("maxTimeMS")
                .and_then(number)
                .map(i64::unsigned_abs)
                .filter(|time| *time > 0),
        })
    }
}

/// The first document of a backup cursor.
pub(super) fn metadata(id: Uuid, pin: &Pin, options: &BackupOptions, style: Style) -> Document {
    let mut metadata = doc! {"backupId": id, "dbpath": text(&pin.directory)};
    if let Some((start, end)) = pin.oplog {
        metadata.insert("oplogStart", start.to_document());
        metadata.insert("oplogEnd", end.to_document());
    }
    if let Some(checkpoint) = pin.checkpoint {
        metadata.insert("checkpointTimestamp", checkpoint);
    }
    if style != Style::PerconaEarly {
        metadata.insert("disableIncrementalBackup", options.disable);
        metadata.insert("incrementalBackup", options.incremental);
        metadata.insert("blockSize", options.block_size_mb());
        for (name, value) in [
            ("thisBackupName", &options.this_name),
            ("srcBackupName", &options.source_name),
        ] {
            if let Some(value) = value {
                metadata.insert(name, value);
            }
        }
    }
    doc! {"metadata": metadata}
}

/// The document of a file or a range.
pub(super) fn file(pin: &Path, range: &NamedRange, style: Style) -> Document {
    let mut document = doc! {
        "filename": text(&pin.join(&range.file)), "fileSize": signed(range.file_size),
    };
    let (offset, length) = (signed(range.offset), signed(range.length));
    let said = match style {
        Style::Percona | Style::Enterprise => offset != 0 || length != 0,
        Style::PerconaEarly => false,
        Style::Explicit => true,
    };
    if said {
        document.insert("offset", offset);
        document.insert("length", length);
    }
    if style == Style::Enterprise {
        document.extend(doc! {"required": true, "ns": "", "uuid": ""});
    }
    document
}

/// The document of a journal file that an extend names.
pub(super) fn journal(pin: &Path, name: &str, style: Style) -> Document {
    let mut document = doc! {"filename": text(&pin.join("journal").join(name))};
    if style == Style::Enterprise {
        document.insert("required", true);
    }
    document
}

/// The reply to an aggregate or a getMore.
pub(super) fn batch(database: &str, first: bool, id: i64, documents: Vec<Document>) -> Document {
    let batch = if first { "firstBatch" } else { "nextBatch" };
    doc! {
        "cursor": {batch: documents, "id": id, "ns": format!("{database}.$cmd.aggregate")},
        "ok": 1.0,
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mongodb::bson::{Bson, Document, doc};

    use super::{BackupOptions, Style, file};
    use crate::cursor_server::history::NamedRange;

    fn parse(spec: Document, style: Style) -> Result<BackupOptions, i32> {
        BackupOptions::parse(Some(&Bson::Document(spec)), style).map_err(|failure| failure.code)
    }

    #[test]
    fn options_are_taken_as_the_server_takes_them() {
        let spec =
            doc! {"incrementalBackup": true, "thisBackupName": "b", "srcBackupName": "a", "blockSize": 1};
        let expected = BackupOptions {
            disable: false,
            incremental: true,
            block_size: Some(1),
            this_name: Some("b".into()),
            source_name: Some("a".into()),
        };
        assert_eq!(parse(spec.clone(), Style::Percona), Ok(expected));
        assert_eq!(parse(spec, Style::PerconaEarly), Ok(BackupOptions::default()));
        let refused = |spec| parse(spec, Style::Percona).err();
        assert_eq!(refused(doc! {"incrementalBackup": 1}), Some(14));
        assert_eq!(refused(doc! {"blockSize": 1_i64}), Some(14));
        assert_eq!(refused(doc! {"granularity": 1}), Some(9));
        assert_eq!(refused(doc! {"thisBackupName": "b"}), Some(72));
        assert_eq!(refused(doc! {"incrementalBackup": true}), Some(72));
        let both = doc! {"incrementalBackup": true, "thisBackupName": "b", "disableIncrementalBackup": true};
        assert_eq!(refused(both), Some(72));
    }

    #[test]
    fn each_style_words_a_file_in_its_own_way() {
        let range = |offset, length| NamedRange {
            file: "a.wt".into(),
            file_size: 4096,
            offset,
            length,
            whole: false,
        };
        let shown = |range, style| file(Path::new("/db"), &range, style);
        let bare = doc! {"filename": "/db/a.wt", "fileSize": 4096_i64};
        let mut full = bare.clone();
        full.extend(doc! {"offset": 0_i64, "length": 4096_i64});
        assert_eq!(shown(range(0, 4096), Style::Percona), full);
        assert_eq!(shown(range(0, 0), Style::Percona), bare);
        assert_eq!(shown(range(0, 4096), Style::PerconaEarly), bare);
        let enterprise = shown(range(0, 0), Style::Enterprise);
        assert!(enterprise.contains_key("required") && !enterprise.contains_key("length"));
        let explicit = shown(range(0, 0), Style::Explicit);
        assert_eq!(
            (explicit.get_i64("offset"), explicit.get_i64("length")),
            (Ok(0), Ok(0))
        );
    }
}
