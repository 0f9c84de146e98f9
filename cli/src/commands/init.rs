//! `init`

use std::sync::Arc;

use pbmfs_repo::Repository;
use pbmfs_repo::objects::Parameters;
use pbmfs_repo::storage::Storage;
use serde::Serialize;

use crate::args::{Global, Init, OutputFormat};
use crate::exit::{Failure, Outcome};
use crate::{format, open};

#[derive(Serialize)]
struct Made<'a> {
    repository: String,
    repository_id: String,
    format_version: u16,
    parameters: &'a Parameters,
}

pub async fn run(global: &Global, args: &Init) -> Result<Outcome, Failure> {
    if let Some(path) = open::directory(global)
        && path.exists()
        && !path.is_dir()
    {
        return Err(Failure::usage(format!("{} is not a directory", path.display())));
    }
    let storage: Arc<dyn Storage> = open::storage(global)?;
    let parameters = Parameters {
        pack_size: args.pack_size,
        compression_level: args.compression_level,
    };
    let repo = Repository::init(storage.clone(), parameters).await?;
    let config = repo.config();
    match global.output {
        OutputFormat::Text => format::line(format!(
            "made the repository {} in {}",
            config.repository_id,
            storage.address()
        ))?,
        OutputFormat::Json => format::json(&Made {
            repository: storage.address(),
            repository_id: config.repository_id.to_string(),
            format_version: config.format_version,
            parameters: &config.parameters,
        })?,
    }
    Ok(Outcome::Done)
}
