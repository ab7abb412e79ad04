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
             AuthorizedPrincipalsCommandUser {command_user}\n"
        ))
    }
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
