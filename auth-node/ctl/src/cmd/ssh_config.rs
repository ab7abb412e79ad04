//! `ssh-config`: has plain `ssh HOST` work for the cluster's hosts.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use crate::{
    cmd::nodes,
    context::Context,
    exit::{NotFound, Usage},
    files::{PRIVATE, create_dir, write_atomic},
    output::{self, Done, Report},
    ssh_config::{Config, Host, quoted},
    ssh_dir::SshDir,
};

const SSH_CONFIG_HELP: &str = "\
Examples:
  mezctl ssh-config --write                          for the hosts that you see with `mezctl nodes ls`
  mezctl ssh-config --write --hosts '*.example.org'  for all that are called so; ssh finds them by their names
  mezctl ssh-config >> ~/.ssh/config                 without a file of its own
  mezctl --profile work ssh-config --remove          undoes --write

With --write it is ~/.ssh/mezite/PROFILE.conf, which a line at the top of ~/.ssh/config includes. Write it again when there are
new hosts, unless a pattern has them. ssh then renews the certificate by itself (`mezctl certs refresh`), for as long as the
session lasts; after that, `mezctl login`. Hosts are recognised by the cluster's CA alone.

Where several profiles name the same host, the one whose name comes first has it.";

/// Arguments of `ssh-config`.
#[derive(Debug, Args)]
#[command(after_help = SSH_CONFIG_HELP)]
pub(crate) struct SshConfig {
    /// Hosts that it is for, with `*` and `?` [default: the hosts that you see, by their names and addresses]
    #[arg(long, value_delimiter = ',', value_name = "PATTERN,…")]
    hosts: Vec<String>,
    /// As whom to log in, unless ssh is told [default: the login that you have, on hosts where it is the only one]
    #[arg(long, value_name = "LOGIN")]
    login: Option<String>,
    /// Write it, and have ssh read it, instead of printing it
    #[arg(long)]
    write: bool,
    /// Remove what --write has written for this profile
    #[arg(long, conflicts_with_all = ["write", "hosts", "login"])]
    remove: bool,
    /// With --write and --remove: the configuration that ssh reads [default: ~/.ssh/config]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// What is printed, where nothing is written.
#[derive(Serialize)]
struct Printed {
    profile: String,
    hosts: Vec<String>,
    config: String,
}

impl Report for Printed {
    fn text(&self) -> String {
        self.config.clone()
    }
}

#[derive(Serialize)]
struct Written {
    profile: String,
    hosts: Vec<String>,
    /// What was written.
    file: PathBuf,
    /// What includes it.
    included_by: PathBuf,
}

impl Report for Written {
    fn text(&self) -> String {
        let Self { hosts, file, included_by, .. } = self;
        let (file, included_by) = (file.display(), included_by.display());
        format!("Wrote {file}, which {included_by} includes.\n`ssh HOST` works for: {}", hosts.join(", "))
    }
}

pub(crate) async fn run(context: &Context, args: SshConfig) -> Result<()> {
    let place = || Place::new(args.file.as_deref(), context.home.name());
    if args.remove {
        let place = place()?;
        let name = place.file.display();
        return match place.remove()? {
            true => context.print(&Done::new(format!("Removed {name}."))),
            false => {
                Err(NotFound(format!("{name} is not there: nothing was written for this profile")).into())
            }
        };
    }
    let Some(profile) = context.home.load()? else { return Err(context.nobody()) };
    let hosts = match args.hosts.as_slice() {
        [] => seen(context).await?,
        patterns if patterns.iter().all(|pattern| pattern.starts_with('!')) => {
            let what = "--hosts names only what it is not for: add what it is for, as in `*.example.org,!x.example.org`";
            return Err(Usage(what.into()).into());
        }
        patterns => patterns.iter().map(|pattern| Host::pattern(pattern)).collect::<Result<_>>()?,
    };
    let dir = std::path::absolute(SshDir::new(context.home.ssh()).path())?;
    let home = context.homes.unusual().map(std::path::absolute).transpose()?;
    let program = program()?;
    let config = Config {
        profile: context.home.name(),
        home: home.as_deref(),
        cluster_name: profile.trust.cluster_name(),
        dir: &dir,
        program: &program,
        hosts: &hosts,
        login: args.login.as_deref(),
    };
    let text = config.render()?;
    let (profile, hosts) =
        (context.home.name().to_owned(), hosts.iter().map(|host| host.name().to_owned()).collect());
    if !args.write {
        return context.print(&Printed { profile, hosts, config: text });
    }
    let place = place()?;
    place.write(&text)?;
    context.print(&Written { profile, hosts, file: place.file, included_by: place.config })
}

/// Where this program is, by the name that it was started by where that leads to it: a link may lead to the next release.
fn program() -> Result<PathBuf> {
    let real = env::current_exe().context("this program does not know where it is")?;
    let name = env::args_os().next().map(PathBuf::from);
    Ok(name.and_then(|name| named(&name, &real)).unwrap_or(real))
}

/// The path by which a program that was started as `name` is the file `real`, as far as a shell finds it so.
fn named(name: &Path, real: &Path) -> Option<PathBuf> {
    let places = match name.components().count() {
        1 => env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).collect(),
        _ => vec![std::path::absolute(name).ok()?],
    };
    let is_it =
        |place: &&PathBuf| place.is_absolute() && fs::canonicalize(place).is_ok_and(|found| found == real);
    places.iter().find(is_it).cloned()
}

/// The hosts that the user sees.
async fn seen(context: &Context) -> Result<Vec<Host>> {
    let mut hosts = Vec::new();
    for (node, logins) in nodes::hosts(&context.user().await?).await? {
        match Host::node(&node.hostname, &node.address, &logins) {
            Some(host) => hosts.push(host),
            None => output::warn(&format!(
                "{} is left out: `{}` is no name for ssh_config",
                node.agent_id, node.hostname
            )),
        }
    }
    match hosts.is_empty() {
        true => {
            let what = "you see no hosts: `mezctl nodes ls` lists them; give --hosts '*.example.org' for those to come";
            Err(NotFound(what.into()).into())
        }
        false => Ok(hosts),
    }
}

/// Where it is written.
#[derive(Debug)]
struct Place {
    /// What ssh reads.
    config: PathBuf,
    /// What that includes, for this profile.
    file: PathBuf,
    /// The line that includes it, and those of the other profiles.
    include: String,
}

impl Place {
    fn new(config: Option<&Path>, profile: &str) -> Result<Self> {
        let config = match config {
            Some(config) => std::path::absolute(config)?,
            None => env::home_dir().context("there is no home folder: give --file")?.join(".ssh/config"),
        };
        let dir = config.parent().ok_or_else(|| Usage("--file names no file".into()))?.join("mezite");
        let include = format!("Include {}", quoted(&dir.join("*.conf"))?);
        Ok(Self { file: dir.join(format!("{profile}.conf")), config, include })
    }

    /// Writes it, and has it included.
    fn write(&self, text: &str) -> Result<()> {
        if let Some(dir) = self.file.parent() {
            create_dir(dir)?;
        }
        write_atomic(&self.file, text.as_bytes(), PRIVATE)?;
        let before = self.read()?;
        // Below a Host or Match it would be for those hosts alone.
        let is_block = |line: &&str| {
            let keyword = line.split(|c: char| c.is_whitespace() || c == '=').next().unwrap_or_default();
            ["host", "match"].contains(&keyword.to_ascii_lowercase().as_str())
        };
        let is_there =
            before.lines().map(str::trim).take_while(|line| !is_block(line)).any(|line| line == self.include);
        if is_there { Ok(()) } else { self.replace(&format!("{}\n{before}", self.include)) }
    }

    /// Removes it, and what includes it where nothing else is included by that. Answers whether it was there.
    fn remove(&self) -> Result<bool> {
        let was_there = match fs::remove_file(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            removed => {
                removed.map(|()| true).with_context(|| format!("cannot remove {}", self.file.display()))?
            }
        };
        // It stays while there are other profiles in it.
        let is_last = self.file.parent().is_none_or(|dir| fs::remove_dir(dir).is_ok() || !dir.exists());
        if is_last {
            let before = self.read()?;
            let after: String =
                before.split_inclusive('\n').filter(|line| line.trim() != self.include).collect();
            if after != before {
                self.replace(&after)?;
            }
        }
        Ok(was_there)
    }

    /// What ssh reads now.
    fn read(&self) -> Result<String> {
        match fs::read_to_string(&self.config) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read.with_context(|| format!("cannot read {}", self.config.display())),
        }
    }

    /// Replaces what ssh reads, where it really is, and with the mode that it has. Nothing is no file.
    fn replace(&self, text: &str) -> Result<()> {
        let path = really(&self.config);
        if text.is_empty() {
            return fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()));
        }
        let mode = fs::metadata(&path).map_or(PRIVATE, |found| found.permissions().mode() & 0o777);
        write_atomic(&path, text.as_bytes(), mode)
    }
}

/// Where a file is, or will be, that may be a link.
fn really(path: &Path) -> PathBuf {
    let leads_to = || {
        let target = fs::read_link(path).ok()?;
        Some(path.parent()?.join(target))
    };
    fs::canonicalize(path).ok().or_else(leads_to).unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "Host *\n  Compression yes\n";

    fn place(dir: &Path, profile: &str) -> Place {
        Place::new(Some(&dir.join("ssh/config")), profile).unwrap()
    }

    #[test]
    fn what_is_written_is_included_once_and_before_all_else() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path(), "default");
        create_dir(&dir.path().join("ssh")).unwrap();
        fs::write(&place.config, OWN).unwrap();
        fs::set_permissions(&place.config, fs::Permissions::from_mode(0o644)).unwrap();
        place.write("one").unwrap();
        place.write("two").unwrap();
        let include = format!("Include \"{}/ssh/mezite/*.conf\"\n", dir.path().display());
        assert_eq!(fs::read_to_string(&place.config).unwrap(), include.clone() + OWN);
        assert_eq!(fs::read_to_string(&place.file).unwrap(), "two");
        assert_eq!(fs::metadata(&place.config).unwrap().permissions().mode() & 0o777, 0o644);
        // Where it would be for some hosts alone, it is not enough.
        fs::write(&place.config, OWN.to_owned() + &include).unwrap();
        place.write("three").unwrap();
        assert!(fs::read_to_string(&place.config).unwrap().starts_with(&include));
    }

    #[test]
    fn what_was_written_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (work, home) = (place(dir.path(), "work"), place(dir.path(), "home"));
        create_dir(&dir.path().join("ssh")).unwrap();
        fs::write(&work.config, OWN).unwrap();
        work.write("w").unwrap();
        home.write("h").unwrap();
        assert!(work.remove().unwrap());
        assert!(!work.file.exists() && home.file.exists());
        assert!(
            fs::read_to_string(&work.config).unwrap().starts_with("Include"),
            "the other is still included"
        );
        assert!(home.remove().unwrap() && !home.remove().unwrap());
        assert_eq!(fs::read_to_string(&work.config).unwrap(), OWN);
        assert!(!dir.path().join("ssh/mezite").exists());
    }

    #[test]
    fn a_configuration_that_was_made_goes_again_and_a_link_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path(), "default");
        place.write("one").unwrap();
        assert_eq!(fs::metadata(&place.config).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert!(place.remove().unwrap() && !place.config.exists());

        let real = dir.path().join("dotfiles");
        fs::write(&real, OWN).unwrap();
        std::os::unix::fs::symlink(&real, &place.config).unwrap();
        place.write("one").unwrap();
        assert!(fs::symlink_metadata(&place.config).unwrap().is_symlink());
        assert!(fs::read_to_string(&real).unwrap().starts_with("Include"));

        // Also one to a file that is not there yet.
        fs::remove_file(&real).unwrap();
        place.write("one").unwrap();
        assert!(fs::symlink_metadata(&place.config).unwrap().is_symlink());
        assert!(fs::read_to_string(&real).unwrap().starts_with("Include"));
    }

    #[test]
    fn a_program_is_named_as_it_was_started_where_that_leads_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        let (real, link) = (dir.join("mezctl-1"), dir.join("mezctl"));
        fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(named(&link, &real), Some(link.clone()));
        assert_eq!(named(&dir.join("gone"), &real), None);
        fs::write(dir.join("other"), "").unwrap();
        assert_eq!(named(&dir.join("other"), &real), None);
    }
}
