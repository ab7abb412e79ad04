//! What the cluster wants of sessions that cannot be recorded, where a recorder finds it while no agent answers.
//!
//! The file is in the spool's folder, which others than the agent may enter and not write: so its readers can rely on it.

use std::path::Path;

use anyhow::Result;
use mezite_daemon::files;
use mezite_proto::v1::RecordingMode;
use serde::{Deserialize, Serialize};

use crate::files::{PUBLIC, write_atomic};

/// Name of the file, beside the socket.
const FILE: &str = "mode";

/// What happens to a session that cannot be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// No session is recorded.
    Off,
    /// It goes on, with a notice.
    BestEffort,
    /// It is refused, or ended. So it is before the cluster has said anything.
    #[default]
    Strict,
}

impl Mode {
    /// What the cluster says; a release that says nothing knows no other than best-effort.
    pub(crate) fn of(told: i32) -> Self {
        match RecordingMode::try_from(told) {
            Ok(RecordingMode::Off) => Self::Off,
            Ok(RecordingMode::BestEffort | RecordingMode::Unspecified) => Self::BestEffort,
            // A later release may know a stricter one: it is no reason to record less.
            Ok(RecordingMode::Strict) | Err(_) => Self::Strict,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::BestEffort => "best-effort",
            Self::Strict => "strict",
        }
    }

    /// Writes it where recorders look.
    pub(crate) fn keep(self, spool: &Path) -> Result<()> {
        write_atomic(&spool.join(FILE), format!("{}\n", self.word()).as_bytes(), PUBLIC)
    }

    /// What was written beside a socket. Where nothing is known, a session that is not recorded could be one that must be.
    pub(crate) fn beside(socket: &Path) -> Self {
        let path = socket.parent().unwrap_or(Path::new("/")).join(FILE);
        let text = files::read_text(&path).ok().flatten().unwrap_or_default();
        let known = [Self::Off, Self::BestEffort, Self::Strict];
        known.into_iter().find(|mode| mode.word() == text.trim()).unwrap_or(Self::Strict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_strict() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("record.sock");
        assert_eq!(Mode::beside(&socket), Mode::Strict);
        for mode in [Mode::Off, Mode::BestEffort, Mode::Strict] {
            mode.keep(dir.path()).unwrap();
            assert_eq!(Mode::beside(&socket), mode);
        }
        std::fs::write(dir.path().join(FILE), "of").unwrap();
        assert_eq!(Mode::beside(&socket), Mode::Strict);
        assert_eq!(Mode::of(0), Mode::BestEffort);
        assert_eq!(
            (Mode::of(1), Mode::of(2), Mode::of(3), Mode::of(4)),
            (Mode::Off, Mode::BestEffort, Mode::Strict, Mode::Strict)
        );
    }
}
