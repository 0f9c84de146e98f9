//! The kernel's mount table, and unmounting: what is ours, what is dead, and never anybody else's.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::MountError;

/// The type column of our mounts.
pub const FSTYPE: &str = "fuse.pbm-fs";

/// What the source column of our mounts begins with.
pub const SOURCE_PREFIX: &str = "pbm-fs";

/// How long a mount may take to answer before it is taken for alive but slow.
const PROBE: Duration = Duration::from_secs(5);

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's id; the kernel uses it again after an unmount.
    pub id: u64,
    /// Device numbers of the file system, `major:minor`. Unique among the file systems that are alive.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The file system's type with its subtype.
    pub fstype: String,
    /// What is mounted, in the words of who mounted it.
    pub source: String,
}

impl MountEntry {
    /// Whether pbm-fs mounted this.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.fstype == FSTYPE || (self.fstype == "fuse" && self.source.starts_with(SOURCE_PREFIX))
    }
}

/// All mounts that this process sees, in the order in which they were made.
pub fn table() -> Result<Vec<MountEntry>, MountError> {
    const PATH: &str = "/proc/self/mountinfo";
    let text = std::fs::read(PATH).map_err(|e| MountError::io("cannot read", PATH, e))?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
}

/// The mount that one sees at `point`: the last one made there. The path is taken as it is, see [`resolve`].
pub fn at(point: &Path) -> Result<Option<MountEntry>, MountError> {
    Ok(table()?.into_iter().rfind(|m| m.point == point))
}

/// An absolute path without links, as the mount table has it. Unlike `canonicalize` it does not touch the last
/// component unless that is a link, so that it works on a dead mount.
pub fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    // Without a slash at the end, behind which a link would be followed unseen.
    let path: &Path = &path.components().collect::<PathBuf>();
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !is_link => {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            Ok(parent.canonicalize()?.join(name))
        }
        _ => path.canonicalize(),
    }
}

/// What [`umount`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Umounted {
    /// The mount is gone.
    Clean,
    /// It was in use: the name is gone, readers that have files open finish undisturbed.
    Lazily,
    /// Its server had died; what was left of it is gone.
    Dead,
}

/// Unmounts a pbm-fs mount; the command `umount`. Refuses everything else. With `lazy` a mount in use is detached.
pub fn umount(path: &Path, lazy: bool) -> Result<Umounted, MountError> {
    let missing = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => MountError::NotMounted(path.to_owned()),
        _ => MountError::io("cannot look at", path, e),
    };
    let point = resolve(path).map_err(missing)?;
    let mount = at(&point)?.ok_or_else(|| MountError::NotMounted(path.to_owned()))?;
    if !mount.is_ours() {
        return Err(MountError::NotOurs {
            point,
            source_name: mount.source,
            fstype: mount.fstype,
        });
    }
    if is_dead(&point) {
        detach(&point)?;
        return Ok(Umounted::Dead);
    }
    // The last reader's close is still on its way at times; half a second spares people a second try.
    match plainly(&point, Duration::from_millis(500)) {
        Ok(()) => Ok(Umounted::Clean),
        Err(Errno::BUSY) if lazy => detach(&point).map(|()| Umounted::Lazily),
        Err(Errno::BUSY) => Err(MountError::Busy(point)),
        Err(Errno::PERM) => Err(MountError::NotPermitted(point)),
        Err(e) => Err(MountError::io("cannot unmount", point, e)),
    }
}

/// Takes away a pbm-fs mount whose server has died (kill -9 leaves one behind, and every access to it fails with
/// ENOTCONN). Anything alive, or not ours, or nothing, is left as it is. Returns whether there was one.
pub fn clear_stale(path: &Path) -> Result<bool, MountError> {
    let Ok(point) = resolve(path) else {
        return Ok(false);
    };
    let mut cleared = false;
    // Several may lie upon each other when older servers died, too.
    while let Some(mount) = at(&point)? {
        if !mount.is_ours() || !is_dead(&point) {
            break;
        }
        detach(&point)?;
        tracing::warn!(point = %point.display(), source = mount.source, "cleared the mount of a server that died");
        cleared = true;
    }
    Ok(cleared)
}

/// Whether the file system at `point` has lost its server. One that does not answer in time counts as alive.
fn is_dead(point: &Path) -> bool {
    let (sender, receiver) = mpsc::channel();
    let asked = point.to_owned();
    // statfs always asks the server, whatever the kernel remembers. On a thread, because a server that hangs would
    // hang us: then the thread is left behind, and ends with the mount.
    let probe = std::thread::Builder::new()
        .name("pbmfs-probe".into())
        .spawn(move || {
            let _ = sender.send(rustix::fs::statfs(&asked).err());
        });
    if probe.is_err() {
        return false;
    }
    matches!(
        receiver.recv_timeout(PROBE),
        Ok(Some(Errno::NOTCONN | Errno::CONNABORTED))
    )
}

/// umount(2), tried again while the mount is busy, until `patience` is over.
pub(crate) fn plainly(point: &Path, patience: Duration) -> Result<(), Errno> {
    let until = Instant::now() + patience;
    loop {
        match rustix::mount::unmount(point, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

fn detach(point: &Path) -> Result<(), MountError> {
    match rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => Err(MountError::NotPermitted(point.to_owned())),
        Err(e) => Err(MountError::io("cannot detach", point, e)),
    }
}

/// `id parent major:minor root point options [tags…] - fstype source options`, with spaces in names as `\040`.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().skip(6).position(|f| *f == b"-")? + 6;
    let text = |n: usize| {
        fields
            .get(n)
            .map(|f| String::from_utf8_lossy(&unescape(f)).into_owned())
    };
    Some(MountEntry {
        id: text(0)?.parse().ok()?,
        device: text(2)?,
        point: OsString::from_vec(unescape(fields.get(4)?)).into(),
        fstype: text(dash + 1)?,
        source: text(dash + 2)?,
    })
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (first, tail) {
            plain.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = after;
        } else {
            plain.push(*first);
        }
    }
    plain
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
