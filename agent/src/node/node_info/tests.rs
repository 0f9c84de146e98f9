use super::*;

#[test]
fn storage_options_are_what_the_server_was_started_with() {
    assert_eq!(
        storage(&doc! {"parsed": {}}, "wiredTiger"),
        StorageOptions {
            engine: "wiredTiger".into(),
            directory_per_db: false,
            directory_for_indexes: false,
            block_compressor: None,
            journal_compressor: None,
        }
    );
    let started = doc! {"parsed": {"storage": {
        "directoryPerDB": true,
        "wiredTiger": {
            "engineConfig": {"directoryForIndexes": true, "journalCompressor": "none"},
            "collectionConfig": {"blockCompressor": "zstd"},
        },
    }}};
    assert_eq!(
        storage(&started, "wiredTiger"),
        StorageOptions {
            engine: "wiredTiger".into(),
            directory_per_db: true,
            directory_for_indexes: true,
            block_compressor: Some("zstd".into()),
            journal_compressor: Some("none".into()),
        }
    );
}
