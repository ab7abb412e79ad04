//! Folders of tests.

use std::{env, path::Path, thread};

use tempfile::TempDir;

/// A folder that goes with the test. One that fails leaves it for a look when `MEZITE_E2E_KEEP` is set.
#[derive(Debug)]
pub struct Scratch(Option<TempDir>);

impl Scratch {
    /// A new folder.
    #[must_use]
    pub fn new() -> Self {
        Self(Some(tempfile::Builder::new().prefix("mezite-e2e-").tempdir().unwrap()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() && env::var_os("MEZITE_E2E_KEEP").is_some() {
            eprintln!("kept: {}", self.0.take().unwrap().keep().display());
        }
    }
}
