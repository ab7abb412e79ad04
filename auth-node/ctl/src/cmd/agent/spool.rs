//! Where a host keeps recordings until they are sent: `join` says it, to sshd as well; `run` holds to that; `leave` looks at what is
//! left there.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use mezite_client::Holdings;

use crate::{
    agent_dir::{AgentDir, AgentState},
    exit::Usage,
    files::create_dir,
    output::{self, warn},
    recording::{desk::SOCKET, mode::Mode},
    sshd_config::Recorder,
};

/// Keeps where recordings are from now on; `None`: nothing is recorded. The folder is made, since a service may write where there is one
/// and not make it. What is left in another folder is told.
pub(super) fn keep(dir: &AgentDir, state: &mut AgentState, spool: Option<PathBuf>) -> Result<()> {
    if let Some(spool) = &spool {
        // What sshd cannot be told is not kept.
        Recorder { program: &std::env::current_exe()?, socket: &spool.join(SOCKET) }.lines()?;
        create_dir(spool)?;
    }
    if let Some(before) = state.spool.as_ref().filter(|before| spool.as_ref() != Some(before)) {
        let left = Holdings::of(before)?;
        if !left.are_sent() {
            let folder = before.display();
            warn(&format!(
                "{folder} holds {left} that were not sent. The `mezctl agent run` that has it goes on sending them, and one that \
                 is started anew does not: wait until {folder}/sessions and {folder}/events are empty, or give --spool \
                 {folder} again"
            ));
        }
    }
    *state = dir.tell(|kept| kept.spool = spool)?;
    Ok(())
}

/// Where recordings are, as sshd was told. A folder that `agent run` is given must be that one.
pub(super) fn joined(given: Option<&Path>, dir: &AgentDir, state: &AgentState) -> Result<Option<PathBuf>> {
    let Some(given) = given else { return Ok(state.spool.clone()) };
    if state.spool.as_ref().is_some_and(|joined| is_same(joined, given)) {
        return Ok(state.spool.clone());
    }
    let told = match &state.spool {
        Some(joined) => format!("sshd has sessions recorded in {}", joined.display()),
        None => "sshd was not told to have sessions recorded".into(),
    };
    let (dir, given) = (dir.path().display(), given.display());
    let what = format!(
        "{told}: to record in {given}, run `mezctl agent join --out {dir} --spool {given}`, start this service, and reload sshd"
    );
    Err(Usage(what).into())
}

/// Whether two paths are of one folder, as far as that can be seen.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).ok();
    real(one).is_some_and(|one| real(other) == Some(one))
}

/// Refuses to let an agent go whose spool holds what only it can send. With `local` it can send nothing any more.
pub(super) fn refuse_unsent(dir: &AgentDir, spool: &Path, local: bool) -> Result<()> {
    let left = Holdings::of(spool).context("it cannot be seen whether all is sent; --force does not look")?;
    if left.are_sent() {
        return Ok(());
    }
    let (dir, spool) = (dir.path().display(), spool.display());
    let wait = match local {
        true => String::new(),
        false => format!("keep `mezctl agent run --dir {dir}` running until they are, or "),
    };
    bail!(
        "{spool} holds {left} that were not sent: {wait}give --force, which removes nothing there. An agent that then joins with \
         --spool {spool} sends what the cluster has not heard of; what this one had begun to send it sets aside, and says \
         how that is sent"
    );
}

/// How a host that has left records again, and what it leaves behind.
pub(super) fn farewell(spool: &Path) -> String {
    let folder = spool.display();
    let mut text = format!(" Its sessions are recorded again if it joins with --spool {folder}.");
    if let Ok(Holdings { aside, .. }) = Holdings::of(spool)
        && aside > 0
    {
        text += &format!(" What was set aside ({aside} recordings) stays in {folder}/aside.");
    }
    text
}

/// Tells that nothing is recorded on a host, once for each thing that the cluster may want.
#[derive(Debug, Default)]
pub(super) struct Unrecorded {
    told: Option<Mode>,
}

impl Unrecorded {
    /// Tells, if the cluster has not wanted the same before.
    pub(super) fn tell(&mut self, mode: Mode, dir: &AgentDir) {
        match (self.news(mode, dir.path()), mode) {
            (Some(text), Mode::Strict) => warn(&text),
            (Some(text), Mode::Off | Mode::BestEffort) => output::say(&text),
            (None, _) => {}
        }
    }

    fn news(&mut self, mode: Mode, dir: &Path) -> Option<String> {
        if self.told.replace(mode) == Some(mode) {
            return None;
        }
        let remedy = format!(
            "`mezctl agent join --out {} --spool /var/spool/mezite` has them recorded; then start this service anew, and \
             reload sshd",
            dir.display()
        );
        match mode {
            Mode::Off => None,
            Mode::BestEffort => Some(format!("sessions on this host are not recorded: {remedy}")),
            Mode::Strict => Some(format!(
                "the cluster wants no session that is not recorded (recording mode strict), and on this host none is \
                 recorded, nor refused for that: {remedy}"
            )),
        }
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
