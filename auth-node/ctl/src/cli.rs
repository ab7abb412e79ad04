//! The command line: what can be said. What it does is in `cmd`.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use clap::{Arg, ArgMatches, Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::{args::human_duration, cmd, exit::Proof, homes::PROFILE_VARIABLE};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage: an argument or an input file
  3  not logged in, or denied
  4  not found
  5  the cluster is unavailable: it is safe to try again
  6  outcome unknown, after all attempts: check before you repeat
  7  it is there already, or was changed meanwhile
  78 `agent run` alone: the cluster does not have this host any more, and starting it again changes nothing";

const EXAMPLES: &str = "\
Examples:
  mezctl login --addr a.example:3025,b.example:3025 --ca-pin sha256:… --user alice
  mezctl ssh-config --write                  and then: ssh deploy@host.example
  mezctl nodes ls --format json";

/// Says the pin where no option does.
pub(crate) const CA_PIN_VARIABLE: &str = "MEZITE_CA_PIN";

/// Talks to a Mezite cluster: for its users, its admins, and the hosts that they reach.
///
/// `login` keeps the cluster's addresses, its CAs and the session in a profile; every other command works with that.
/// Who works with more than one cluster, or as more than one user, has a profile for each: see `mezctl profiles --help`.
/// The first login needs --addr, and --ca-pin or --ca-file, so that no password goes to somebody else.
#[derive(Debug, Parser)]
#[command(
    name = "mezctl",
    version,
    after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"),
    disable_help_subcommand = true,
    subcommand_required = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Addresses of auth nodes, host:port, asked in this order until one serves [default: those that the profile knows, or the folder of a host or bot]
    #[arg(
        long,
        env = "MEZITE_ADDR",
        hide_env_values = true,
        value_delimiter = ',',
        global = true,
        value_name = "HOST:PORT,…"
    )]
    pub(crate) addr: Vec<String>,
    /// Folder of the profiles [default: $XDG_CONFIG_HOME/mezite, or ~/.config/mezite]
    #[arg(long, env = "MEZITE_HOME", hide_env_values = true, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Profile to work with: a cluster, and a session there [default: the one that `mezctl profiles use` chose]
    #[arg(long, env = PROFILE_VARIABLE, hide_env_values = true, global = true, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// How to print: text is for people, json and yaml for programs
    #[arg(long, short = 'o', value_enum, default_value_t = Format::Text, global = true)]
    pub(crate) format: Format,
    /// First contact: pin of the cluster's TLS CA, as `auth-node init` and `mezctl status` print it; while the CA is rotated both
    /// are good, with a comma between them
    #[arg(
        long,
        env = CA_PIN_VARIABLE,
        hide_env_values = true,
        global = true,
        value_name = "sha256:HEX",
        conflicts_with = "ca_file"
    )]
    pub(crate) ca_pin: Option<String>,
    /// First contact: PEM file of the cluster's TLS CA
    #[arg(long, env = "MEZITE_CA_FILE", hide_env_values = true, global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// How long a call may take, failover and repetitions included
    #[arg(long, default_value = "30s", value_parser = human_duration, global = true, value_name = "DURATION")]
    pub(crate) timeout: Duration,
}

/// How output is printed.
// Values are explained by the option: a text for each would make every help page twice as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Log in with a password or by single sign-on, and keep the session in the profile
    Login(cmd::login::Login),
    /// End the session of the profile
    Logout,
    /// Change your own password
    Passwd(cmd::login::Passwd),
    /// Set your first or a new password with an invite, which an admin has sent you
    AcceptInvite(cmd::invite::Accept),
    /// See, choose and remove profiles
    #[command(subcommand)]
    Profiles(cmd::profiles::Profiles),
    /// Show the cluster, its members, and who you are
    Status,
    /// Watch the cluster: its members, hosts and ingests
    #[command(after_help = cmd::top::HELP)]
    Top,
    /// Show resources of any kind, as a table or as documents that `create` reads
    Get(cmd::resources::Get),
    /// Create resources of any kind from a file of documents
    Create(cmd::resources::Create),
    /// Remove resources of any kind
    #[command(visible_alias = "delete")]
    Rm(cmd::resources::Rm),
    /// Manage users
    #[command(subcommand)]
    Users(cmd::users::Users),
    /// Manage roles
    #[command(subcommand)]
    Roles(cmd::roles::Roles),
    /// Manage agent identities: bots, CI jobs, AI agents
    #[command(subcommand)]
    AgentIdentities(cmd::agent_identities::AgentIdentities),
    /// Be an agent identity: get its credentials, and keep them fresh
    #[command(subcommand)]
    Bot(cmd::bot::Bot),
    /// Manage join tokens of SSH nodes and ingests
    #[command(subcommand)]
    Tokens(cmd::tokens::Tokens),
    /// See, label and remove SSH nodes, and remove ingests
    #[command(subcommand)]
    Nodes(cmd::nodes::Nodes),
    /// Get certificates for ssh
    #[command(subcommand)]
    Certs(cmd::certs::Certs),
    /// Have plain `ssh HOST` work for the cluster's hosts
    SshConfig(cmd::ssh_config::SshConfig),
    /// Make this host an SSH node of the cluster
    #[command(subcommand)]
    Agent(cmd::agent::Agent),
    /// Record a session on this host, as sshd's ForceCommand
    Record(cmd::record::Record),
    /// Send and fetch session recordings
    #[command(subcommand)]
    Recordings(cmd::recordings::Recordings),
    /// See and revoke login sessions
    #[command(subcommand)]
    Sessions(cmd::sessions::Sessions),
    /// See and remove your WebAuthn devices
    #[command(subcommand)]
    Devices(cmd::devices::Devices),
    /// Ask for access for a time, and review what others ask for
    #[command(subcommand)]
    Requests(cmd::requests::Requests),
    /// Read the audit log, export it, and verify an export
    #[command(subcommand)]
    Audit(cmd::audit::Audit),
    /// See, exchange and export the cluster's certificate authorities
    #[command(subcommand)]
    Auth(cmd::auth::Auth),
    /// See and change the configuration of the whole cluster
    #[command(subcommand)]
    Config(cmd::config::Config),
    /// Keep users, agent identities, roles, logins, nodes and devices out
    #[command(subcommand)]
    Locks(cmd::locks::Locks),
    /// Manage single sign-on providers
    #[command(subcommand)]
    Connectors(cmd::connectors::Connectors),
    /// Let users of other clusters in
    #[command(subcommand)]
    TrustedClusters(cmd::trusted_clusters::TrustedClusters),
    /// Let workloads of SPIFFE trust domains in
    #[command(subcommand)]
    SpiffeDomains(cmd::spiffe_domains::SpiffeDomains),
    /// Manage the nodes of the auth cluster, and save backups
    #[command(subcommand)]
    Cluster(cmd::cluster::Cluster),
    /// Print what a shell reads to complete commands and options
    Completion(cmd::completion::Completion),
    /// Write manual pages
    Man(cmd::man::Man),
}

/// Commands that only show something, wherever they are.
const SHOWING: [&str; 3] = ["ls", "show", "status"];
/// And the one at the top.
const SHOWING_ANY: &str = "get";
const WATCH: &str = "watch";
/// The least and the most between two rounds: a second, and a day.
const WATCHES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// The command line, whole: commands that only show something can do so again and again.
pub(crate) fn command() -> clap::Command {
    let watched = |command: clap::Command| {
        command.arg(
            Arg::new(WATCH)
                .long(WATCH)
                .value_name("DURATION")
                .num_args(0..=1)
                .default_missing_value("2s")
                .value_parser(watch_interval)
                .help("Show it again so often, every 2 seconds where that is not said; a bare number is seconds; Ctrl-C ends it"),
        )
    };
    Cli::command().mut_subcommands(|command| {
        let shows = |name: &str| SHOWING.contains(&name);
        let command = command.mut_subcommands(|sub| if shows(sub.get_name()) { watched(sub) } else { sub });
        if shows(command.get_name()) || command.get_name() == SHOWING_ANY {
            watched(command)
        } else {
            command
        }
    })
}

/// `5s`, `1m`, or `5`: seconds.
fn watch_interval(text: &str) -> Result<Duration, String> {
    let every = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => human_duration(text)?,
    };
    if WATCHES.contains(&every) { Ok(every) } else { Err("must be from a second to a day".into()) }
}

/// The names of the command, from the first to the last, and what is said with the last.
fn last(matches: &ArgMatches) -> (Vec<&str>, &ArgMatches) {
    let (mut names, mut last) = (Vec::new(), matches);
    while let Some((name, matches)) = last.subcommand() {
        names.push(name);
        last = matches;
    }
    (names, last)
}

/// What is said to be done, such as `users ls`.
pub(crate) fn path(matches: &ArgMatches) -> String {
    last(matches).0.join(" ")
}

/// How often what is said is to be shown again; `None`: once.
pub(crate) fn watch(matches: &ArgMatches) -> Option<Duration> {
    last(matches).1.try_get_one(WATCH).ok().flatten().copied()
}

impl Command {
    /// With what it proves who calls.
    pub(crate) fn proof(&self) -> Proof {
        match self {
            Self::Login(login) if login.is_by_sso() => Proof::Sso,
            Self::Login(_) => Proof::Password,
            Self::AcceptInvite(_) => Proof::Invite,
            Self::Agent(cmd::agent::Agent::Join(join)) if join.is_by_iam() => Proof::Iam,
            Self::Agent(cmd::agent::Agent::Join(_)) => Proof::JoinToken,
            Self::Bot(_) => Proof::Bot,
            Self::Agent(_) | Self::Recordings(cmd::recordings::Recordings::Upload(_)) => Proof::Agent,
            _ => Proof::Session,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn what_only_shows_something_can_be_watched_and_nothing_else() {
        let watched = |line: &str| {
            let words = std::iter::once("mezctl").chain(line.split(' '));
            command().try_get_matches_from(words).ok().map(|matches| watch(&matches))
        };
        for line in [
            "nodes ls",
            "recordings ls",
            "cluster status",
            "auth status",
            "status",
            "get users",
            "config show",
        ] {
            assert_eq!(watched(line), Some(None), "{line}");
            assert_eq!(watched(&format!("{line} --watch")), Some(Some(Duration::from_secs(2))), "{line}");
            assert_eq!(watched(&format!("{line} --watch 5")), Some(Some(Duration::from_secs(5))), "{line}");
            assert_eq!(watched(&format!("{line} --watch 1m")), Some(Some(Duration::from_secs(60))), "{line}");
            for wrong in ["0", "500ms", "25h", "soon"] {
                assert_eq!(watched(&format!("{line} --watch {wrong}")), None, "{line} {wrong}");
            }
        }
        for line in ["login", "users add a", "recordings get a", "logout", "rm user/a"] {
            assert_eq!(watched(line), Some(None), "{line}");
            assert_eq!(watched(&format!("{line} --watch")), None, "{line}");
        }
    }

    #[test]
    fn commands_have_the_names_that_people_try() {
        for line in [
            "delete user/a",
            "users create a",
            "users delete a",
            "tokens create",
            "tokens delete a",
            "locks create user:a",
            "locks delete a",
            "connectors create a.yaml",
            "connectors delete a",
            "roles add a.yaml",
            "roles delete a",
            "requests add --roles a",
            "sessions rm a",
            "sessions delete a",
            "nodes delete a",
            "trusted-clusters delete a",
            "agent-identities create a",
            "agent-identities delete a",
            "devices delete a",
            "spiffe-domains create a --bundle a.json",
            "spiffe-domains delete a",
            "cluster delete 1",
        ] {
            let words = std::iter::once("mezctl").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn of_an_endpoint_more_is_added_with_its_url_and_changed_alone() {
        let is_taken = |line: &str| {
            let words = std::iter::once("mezctl").chain(line.split(' '));
            Cli::try_parse_from(words).is_ok()
        };
        for of_endpoint in ["--endpoint-spiffe-id a", "--endpoint-ca a"] {
            let (add, update) = ("spiffe-domains add a --bundle b", "spiffe-domains update a");
            assert!(!is_taken(&format!("{add} {of_endpoint}")), "{of_endpoint}");
            assert!(is_taken(&format!("{add} {of_endpoint} --endpoint c")), "{of_endpoint}");
            assert!(is_taken(&format!("{update} {of_endpoint}")), "{of_endpoint}");
            assert!(!is_taken(&format!("{update} {of_endpoint} --no-endpoint")), "{of_endpoint}");
        }
    }

    #[test]
    fn addresses_are_a_list() {
        let cli = Cli::try_parse_from(["mezctl", "status", "--addr", "a:1,b:2", "--format", "json"]).unwrap();
        assert_eq!(cli.global.addr, ["a:1", "b:2"]);
        assert_eq!(cli.global.format, Format::Json);
    }
}
