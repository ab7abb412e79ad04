//! Runs a program on files in a folder of its own.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

/// What a program answered.
pub(crate) struct Answer {
    /// Whether it succeeded.
    pub(crate) success: bool,
    /// Both of its outputs.
    pub(crate) text: String,
}

impl Answer {
    /// The text of a success.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.success, "{}", self.text);
        self.text
    }
}

/// A folder in which programs run.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file that only its owner may read, as `ssh-keygen` wants private keys.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        use std::{io::Write, os::unix::fs::OpenOptionsExt};
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(self.path(name)).unwrap().write_all(text.as_ref()).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Runs a program in the folder, with a file of the folder as its input.
    pub(crate) fn run(&self, program: &str, arguments: &[&str], input: Option<&str>) -> Answer {
        let input = input.map_or(Stdio::null(), |name| fs::File::open(self.path(name)).unwrap().into());
        let output = Command::new(program)
            .args(arguments)
            .current_dir(self.0.path())
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .stdin(input)
            .output()
            .unwrap_or_else(|error| panic!("{program} must be installed: {error}"));
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        Answer { success: output.status.success(), text }
    }
}
