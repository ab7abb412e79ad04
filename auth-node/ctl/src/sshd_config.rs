//! The configuration with which a stock OpenSSH server is a node of the cluster.
//!
//! A user's certificate names logins that are good everywhere (`login`) or on one node (`login@agent_id`). OpenSSH
//! accepts a certificate when one of its principals is in a list; `AuthorizedPrincipalsCommand` makes that list for
//! the login that is asked for. `printf` makes it, so nothing of ours runs inside sshd.

use std::path::Path;

use anyhow::Result;

use crate::exit::Usage;

/// Prints its arguments, one a line. OpenSSH asks that it and the folders above it are root's and nobody else's.
const PRINTF: &str = "/usr/bin/printf";

/// What the snippet is made of.
#[derive(Debug)]
pub(crate) struct Snippet<'a> {
    /// Folder with the agent's files, absolute.
    pub(crate) dir: &'a Path,
    /// Name of the cluster.
    pub(crate) cluster_name: &'a str,
    /// The agent's id.
    pub(crate) agent_id: &'a str,
    /// User that sshd runs the command as. Only root's sshd can become another.
    pub(crate) command_user: &'a str,
    /// What records sessions; `None`: nothing does.
    pub(crate) recorder: Option<Recorder<'a>>,
}

/// What sshd runs in place of users' shells and commands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recorder<'a> {
    /// This program, absolute.
    pub(crate) program: &'a Path,
    /// Socket of the agent, absolute.
    pub(crate) socket: &'a Path,
}

impl Snippet<'_> {
    /// Lines for sshd_config.
    ///
    /// # Errors
    /// When a value cannot be written there.
    pub(crate) fn render(&self) -> Result<String> {
        let dir = quotable(self.dir)?;
        // The id is the server's; it must not be able to add a line.
        if !self.agent_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            anyhow::bail!("the cluster answered an agent id that is none");
        }
        let recorder = self.recorder.map_or_else(|| Ok(String::new()), |recorder| recorder.lines())?;
        let Self { cluster_name, agent_id, command_user, .. } = self;
        Ok(format!(
            "# Makes this OpenSSH server node {agent_id} of the Mezite cluster {cluster_name}.\n\
             # Put `Include {dir}/sshd_config` at the top of /etc/ssh/sshd_config, and reload sshd.\n\
             # Where no other HostKey is named there, hosts that know this one by its old keys will ask again.\n\
             HostKey \"{dir}/ssh_host_ed25519_key\"\n\
             HostCertificate \"{dir}/ssh_host_ed25519_key-cert.pub\"\n\
             TrustedUserCAKeys \"{dir}/trusted_user_ca_keys\"\n\
             RevokedKeys \"{dir}/revoked_keys\"\n\
             # sshd replaces %% by % and %u by the login that is asked for.\n\
             AuthorizedPrincipalsCommand {PRINTF} %%s\\n %u %u@{agent_id}\n\
             AuthorizedPrincipalsCommandUser {command_user}\n\
             {recorder}"
        ))
    }
}

impl Recorder<'_> {
    /// Its lines for sshd_config.
    ///
    /// # Errors
    /// When a path cannot be written there.
    pub(crate) fn lines(&self) -> Result<String> {
        let (program, socket) = (plain(self.program)?, plain(self.socket)?);
        Ok(format!(
            "# Every session goes through the recorder, which asks the agent whose it is by what sshd exposes. Users' own\n\
             # ~/.ssh/rc would run before it, and so would ~/.bashrc for a bash that takes itself for the first (SHLVL).\n\
             # sftp needs a program as its Subsystem: internal-sftp is refused.\n\
             ExposeAuthInfo yes\n\
             PermitUserRC no\n\
             SetEnv SHLVL=1\n\
             ForceCommand {program} record --socket {socket}\n"
        ))
    }
}

/// A path that is a word for whatever shell a user has.
fn plain(path: &Path) -> Result<&str> {
    let usable = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    let text = path.to_str().filter(|text| text.chars().all(usable) && path.is_absolute());
    text.ok_or_else(|| {
        let name = path.display();
        Usage(format!("{name} cannot be named in ForceCommand: it takes letters, digits and /._-+")).into()
    })
}

/// A path that can stand in quotes.
fn quotable(path: &Path) -> Result<&str> {
    let text = path.to_str().filter(|text| !text.chars().any(|c| c.is_control() || c == '"' || c == '\\'));
    let text = text.filter(|_| path.is_absolute());
    text.ok_or_else(|| Usage(format!("{} cannot be named in sshd_config", path.display())).into())
}

#[cfg(test)]
#[path = "sshd_config_tests.rs"]
mod tests;
