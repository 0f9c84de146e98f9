//! Where the programs under test are: mongod and pbm-fs. Nothing is built here.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::error::{Doing, Result, RigError};

/// A mongod executable and the version that it says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MongodBinary {
    path: PathBuf,
    version: (u32, u32),
}

impl MongodBinary {
    /// The mongod that the tests run against: `$PBMFS_MONGOD`, or what `scripts/get-mongod.sh` finds or fetches, at the
    /// version in `$PBMFS_MONGOD_VERSION` if that is set. The first call of a process may take as long as a download of
    /// 46 MB; the others cost nothing. A test that starts other test programs hands them [`MongodBinary::path`] in
    /// `PBMFS_MONGOD`.
    pub fn locate() -> Result<Self> {
        static FOUND: OnceLock<Result<MongodBinary, String>> = OnceLock::new();
        FOUND
            .get_or_init(|| {
                let found = match env::var_os("PBMFS_MONGOD") {
                    Some(path) if !path.is_empty() => Self::at(path),
                    _ => Self::from_script(env::var("PBMFS_MONGOD_VERSION").ok().as_deref()),
                };
                found.map_err(|error| error.to_string())
            })
            .clone()
            .map_err(RigError::Missing)
    }

    /// A mongod of a given version (`4.4`, `5.0`, `6.0`), from the script.
    pub fn of_version(version: &str) -> Result<Self> {
        Self::from_script(Some(version))
    }

    /// The mongod at this path; it is asked for its version.
    pub fn at(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let output = Command::new(&path)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .doing(format_args!("running {} --version", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = parse_version(&text).ok_or_else(|| {
            RigError::Missing(format!(
                "{} --version does not say 'db version v…': {text}",
                path.display()
            ))
        })?;
        Ok(Self { path, version })
    }

    fn from_script(version: Option<&str>) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/get-mongod.sh");
        let mut command = Command::new("bash");
        command.arg(&script).stdin(Stdio::null());
        if let Some(version) = version {
            command.args(["--version", version]);
        }
        let output = command
            .output()
            .doing(format_args!("running {}", script.display()))?;
        if !output.status.success() {
            let talk = String::from_utf8_lossy(&output.stderr);
            return Err(RigError::Missing(format!("a mongod; {}", talk.trim_end())));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        match text.lines().last() {
            Some(path) => Self::at(path),
            None => Err(RigError::Missing(format!("{} printed no path", script.display()))),
        }
    }

    /// The executable. Its process id is mongod's own.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Major and minor: `(6, 0)`.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let number = text.lines().find_map(|line| line.strip_prefix("db version v"))?;
    let mut parts = number.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The `pbm-fs` program for end-to-end tests: `$PBMFS_BIN`, or the one in the target directory that the running test
/// program lies in (`target/<profile>/deps/<test>` beside `target/<profile>/pbm-fs`). It is not built here, so run
/// `cargo build` first; nor is it checked that it is up to date.
pub fn pbmfs_bin() -> Result<PathBuf> {
    if let Some(path) = env::var_os("PBMFS_BIN").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return match path.is_file() {
            true => Ok(path),
            false => Err(RigError::Missing(format!(
                "PBMFS_BIN is {}, which is no file",
                path.display()
            ))),
        };
    }
    let me = env::current_exe().doing("asking for the path of the test program")?;
    let candidates: Vec<_> = me
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("pbm-fs"))
        .collect();
    candidates
        .iter()
        .find(|path| path.is_file())
        .cloned()
        .ok_or_else(|| {
            let places: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
            RigError::Missing(format!(
                "pbm-fs is not at {}: run `cargo build`, or set PBMFS_BIN",
                places.join(" nor at ")
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn versions_are_read_from_what_mongod_prints() {
        assert_eq!(parse_version("db version v6.0.27\nBuild Info: {\n"), Some((6, 0)));
        assert_eq!(parse_version("noise\ndb version v4.4.2-2\n"), Some((4, 4)));
        assert_eq!(parse_version("mongod 6.0"), None);
    }
}
