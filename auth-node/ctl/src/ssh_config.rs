//! What a user's ssh_config says of the cluster's hosts: which key and certificate ssh takes, by what it recognises them, and
//! that the certificate is renewed before. Whatever comes from the cluster or from a path is checked before it is written.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use anyhow::Result;

use crate::{
    exit::Usage,
    ssh_dir::{CERTIFICATE, KEY, KNOWN_HOSTS},
};

/// Where ssh connects to unless it is told otherwise.
const SSH_PORT: u16 = 22;

/// Hosts for which something is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// A name, or a pattern of names.
    pattern: String,
    /// Where it is, if its name does not say so.
    place: Option<(String, u16)>,
    /// As whom one logs in who says nothing.
    login: Option<String>,
}

impl Host {
    /// A node, by the name that it has a certificate for; `None`: what the cluster says of it cannot be written. Who may log in
    /// as one user alone need not say so.
    pub(crate) fn node(hostname: &str, address: &str, logins: &[String]) -> Option<Self> {
        is_name(hostname).then(|| Self {
            pattern: hostname.to_owned(),
            place: place(address).filter(|(host, port)| host != hostname || *port != SSH_PORT),
            login: match logins {
                [only] if is_login(only) => Some(only.clone()),
                _ => None,
            },
        })
    }

    /// All hosts with such names, which are where their names say.
    ///
    /// # Errors
    /// When it is no pattern of names.
    pub(crate) fn pattern(pattern: &str) -> Result<Self> {
        let bare = pattern.strip_prefix('!').unwrap_or(pattern);
        match is_name(&bare.replace(['*', '?'], "x")) {
            true => Ok(Self { pattern: pattern.to_owned(), place: None, login: None }),
            false => {
                Err(Usage(format!("`{pattern}` is no pattern of host names, such as `*.example.org`")).into())
            }
        }
    }

    /// Its name or pattern.
    pub(crate) fn name(&self) -> &str {
        &self.pattern
    }

    /// What is said of it alone.
    fn block(&self) -> String {
        let mut lines = String::new();
        if let Some((host, port)) = &self.place {
            // It has a certificate for its name, wherever it is.
            lines += &format!("    HostName {host}\n    Port {port}\n    HostKeyAlias {}\n", self.pattern);
        }
        if let Some(login) = &self.login {
            lines += &format!("    User {login}\n");
        }
        if lines.is_empty() { lines } else { format!("Host {}\n{lines}", self.pattern) }
    }
}

/// What is written.
#[derive(Debug)]
pub(crate) struct Config<'a> {
    /// Name of the profile.
    pub(crate) profile: &'a str,
    /// Folder of the profiles, where it is not the usual one.
    pub(crate) home: Option<&'a Path>,
    /// Name of the cluster.
    pub(crate) cluster_name: &'a str,
    /// Folder with the key and certificate, absolute.
    pub(crate) dir: &'a Path,
    /// This program, absolute.
    pub(crate) program: &'a Path,
    /// For whom it is said; at least one.
    pub(crate) hosts: &'a [Host],
    /// As whom one logs in who says nothing, on all of them.
    pub(crate) login: Option<&'a str>,
}

impl Config<'_> {
    /// Lines for ssh_config.
    ///
    /// # Errors
    /// When a value cannot be written there.
    pub(crate) fn render(&self) -> Result<String> {
        let names: BTreeSet<&str> = self.hosts.iter().map(Host::name).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let Self { profile, cluster_name, .. } = self;
        let file = |name: &str| quoted(&self.dir.join(name));
        let user = match self.login {
            Some(login) if is_login(login) => format!("    User {login}\n"),
            Some(login) => return Err(Usage(format!("`{login}` is no name of a login")).into()),
            None => String::new(),
        };
        let general = format!(
            "# Hosts of the Mezite cluster {cluster_name}, by the profile {profile}: `mezctl ssh-config` wrote this.\n\
             # The certificate is renewed before each connection, if it ends soon. Where it cannot be, that is told.\n\
             Match originalhost \"{}\" exec \"{}\"\n\
             Host {}\n    \
                 IdentityFile {}\n    \
                 CertificateFile {}\n    \
                 IdentitiesOnly yes\n    \
                 UserKnownHostsFile {}\n    \
                 StrictHostKeyChecking yes\n\
             {user}",
            names.join(","),
            self.refresh()?,
            names.join(" "),
            file(KEY)?,
            file(CERTIFICATE)?,
            file(KNOWN_HOSTS)?,
        );
        // What is said first counts, and so a login for all of them does.
        Ok(self.hosts.iter().fold(general, |text, host| text + &host.block()))
    }

    /// The command that renews the certificate, for the user's shell.
    fn refresh(&self) -> Result<String> {
        let mut words = vec![word(self.program)?];
        if let Some(home) = self.home {
            words.extend(["--home".to_owned(), word(home)?]);
        }
        words.extend(["--profile", self.profile, "certs", "refresh"].map(str::to_owned));
        Ok(words.join(" "))
    }
}

/// A path as ssh_config has it: in quotes, and with what ssh would replace doubled.
pub(crate) fn quoted(path: &Path) -> Result<String> {
    Ok(format!("\"{}\"", written(path)?))
}

/// A path as a word of a command in quotes, for whichever shell the user has.
fn word(path: &Path) -> Result<String> {
    let text = written(path)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    Ok(if text.chars().all(plain) { text } else { format!("'{text}'") })
}

/// A path that is the same within both kinds of quotes, of which ssh replaces nothing.
fn written(path: &Path) -> Result<String> {
    let special = |c: char| c.is_control() || "\"'\\$`!".contains(c);
    let text = path.to_str().filter(|text| path.is_absolute() && !text.contains(special));
    let text = text.map(|text| text.replace('%', "%%"));
    text.ok_or_else(|| {
        let name = path.display();
        Usage(format!(
            "{name} cannot be named in ssh_config: use a folder without quotes, backslashes, `$` and `!`"
        ))
        .into()
    })
}

/// Whether a text is a host's name or address, and nothing that ssh_config or a shell takes for more.
fn is_name(text: &str) -> bool {
    let usable = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    !text.is_empty() && !text.starts_with('-') && text.chars().all(usable)
}

/// Whether a text is the name of an account, and nothing that ssh_config takes for more.
fn is_login(text: &str) -> bool {
    let usable = |c: char| c.is_alphanumeric() || "._-@+".contains(c);
    !text.is_empty() && !text.starts_with('-') && text.chars().all(usable)
}

/// `host:port`, `[::1]:port`.
fn place(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bare {
        Some(bare) => bare.parse::<IpAddr>().ok()?.to_string(),
        None => Some(host).filter(|host| is_name(host) && !host.contains(':'))?.to_owned(),
    };
    Some((host, port.parse().ok().filter(|port| *port != 0)?))
}

#[cfg(test)]
#[path = "ssh_config_tests.rs"]
mod tests;
