//! Ports that nobody takes away between two starts of the same server.
//!
//! Asking the kernel for a free port (bind to port 0, close, start the server) races twice: with other test processes
//! that ask at the same time, and with every outgoing connection of the machine, since these get their ports from the
//! same range. So ports are taken from below that range, and each is leased through a locked file which all test
//! processes of the user respect.

use std::{
    env,
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::error::{Doing, Result, RigError};

/// Linux gives outgoing connections 32768 and above; services with a fixed port mostly sit below 20000.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

/// A port on 127.0.0.1 that is the holder's until this is dropped.
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    // The lock goes with the file.
    _file: File,
}

impl PortLease {
    /// Leases a port that nobody listens on now.
    pub fn take() -> Result<Self> {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let directory =
            env::temp_dir().join(format!("pbm-fs-rig-ports-{}", rustix::process::getuid().as_raw()));
        fs::create_dir_all(&directory).doing(format_args!("making {}", directory.display()))?;
        // Each process starts somewhere else, so that few have to try twice.
        let start = process::id()
            .wrapping_mul(97)
            .wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed));
        for step in 0..COUNT {
            let number = FIRST + start.wrapping_add(step) % COUNT;
            let port = u16::try_from(number).expect("the range lies below 65536");
            let path = directory.join(number.to_string());
            let file = File::create(&path).doing(format_args!("making {}", path.display()))?;
            if file.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(Self { port, _file: file });
            }
        }
        Err(RigError::Missing(format!(
            "a free port from {FIRST} to {}",
            FIRST + COUNT - 1
        )))
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:<port>`, as it stands in a replica set's configuration.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::PortLease;

    #[test]
    fn leases_held_together_are_different() {
        let leases: Vec<_> = (0..50).map(|_| PortLease::take().unwrap()).collect();
        let ports: BTreeSet<_> = leases.iter().map(PortLease::port).collect();
        assert_eq!(ports.len(), leases.len());
    }
}
