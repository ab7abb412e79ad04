//! Ports that tests which run at the same time do not take from each other, whichever crate they are of. Only tests
//! depend on this crate.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up has failed")]

use std::{
    env,
    fs::{self, File, TryLockError},
    net::{Ipv4Addr, TcpListener},
    ops::Range,
};

/// Above what services use, and below the ports that the kernel gives to outgoing connections.
const RANGE: Range<u16> = 20_000..32_000;

/// A port of 127.0.0.1 that is this test's until the value is dropped, whether or not something listens on it.
///
/// A lease is a lock on a file, so it ends with the process that has it, however that ends.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lease: File,
}

impl Port {
    /// Leases a port on which nothing listens.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn lease() -> Self {
        let dir = env::temp_dir().join(format!("mezite-e2e-ports-{}", nix::unistd::geteuid()));
        fs::create_dir_all(&dir).unwrap();
        let first = rand::random_range(RANGE);
        for number in (first..RANGE.end).chain(RANGE.start..first) {
            let path = dir.join(number.to_string());
            let lease = File::options().create(true).truncate(false).write(true).open(path).unwrap();
            match lease.try_lock() {
                Ok(()) if is_free(number) => return Self { number, _lease: lease },
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => panic!("{}: {error}", dir.display()),
            }
        }
        panic!("no port is free");
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// 127.0.0.1:port.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

/// Whether nothing that knows nothing of leases has it.
fn is_free(number: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_port_is_leased_once_and_free_again_afterwards() {
        let ports: Vec<_> = (0..50).map(|_| Port::lease()).collect();
        let numbers: BTreeSet<_> = ports.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), ports.len());
        for number in &numbers {
            assert!(RANGE.contains(number));
            TcpListener::bind((Ipv4Addr::LOCALHOST, *number)).unwrap();
        }
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_free() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(!is_free(taken.local_addr().unwrap().port()));
    }
}
