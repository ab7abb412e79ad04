//! `profiles`: the clusters that a user works with, and as whom.

use anyhow::Result;
use clap::Subcommand;
use mezite_daemon::clock;
use serde::Serialize;

use crate::{
    context::Context,
    exit::{Conflict, NotFound},
    homes::DEFAULT,
    output::{Done, Row},
    profile::Home,
};

const PROFILES_HELP: &str = "\
Examples:
  mezctl --profile work login --addr a.work.example:3025 --ca-pin sha256:… --user alice     makes it
  mezctl --profile work nodes ls                          once
  MEZITE_PROFILE=work mezctl nodes ls                     as long as the variable is set
  mezctl profiles use work                                from now on

Where nothing says another, the profile is `default`. Each is a folder in $XDG_CONFIG_HOME/mezite (~/.config/mezite), or in the
folder that --home or MEZITE_HOME names. What an older release kept in ~/.mezite was moved there, as `default`.";

/// Commands on profiles.
#[derive(Debug, Subcommand)]
#[command(after_help = PROFILES_HELP)]
pub(crate) enum Profiles {
    /// List the profiles that there are
    Ls,
    /// Have a profile be the one that commands work with
    Use {
        /// Its name, as `mezctl profiles ls` shows it
        name: String,
    },
    /// Remove a profile, with its keys and certificates for ssh
    #[command(visible_alias = "delete")]
    Rm {
        /// Its name, as `mezctl profiles ls` shows it
        name: String,
        /// Although it is logged in: the session goes on at the cluster until it ends
        #[arg(long)]
        force: bool,
    },
}

#[derive(Serialize)]
struct ProfileView {
    name: String,
    /// Whether commands work with it.
    current: bool,
    cluster_name: String,
    user: Option<String>,
    session_expires_at: Option<String>,
    addresses: Vec<String>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl ProfileView {
    fn of(home: &Home, current: &str) -> Self {
        let mut view = Self {
            name: home.name().to_owned(),
            current: home.name() == current,
            cluster_name: String::new(),
            user: None,
            session_expires_at: None,
            addresses: Vec::new(),
            problem: None,
        };
        match home.load() {
            Ok(Some(profile)) => {
                view.cluster_name = profile.trust.cluster_name().to_owned();
                view.addresses = profile.addresses;
                if let Some(login) = profile.login {
                    view.user = Some(login.user);
                    view.session_expires_at = login.expires_at;
                }
            }
            // It went in between.
            Ok(None) => {}
            Err(error) => view.problem = Some(format!("{error:#}")),
        }
        view
    }
}

impl Row<6> for ProfileView {
    const HEADER: [&'static str; 6] = ["PROFILE", "IN USE", "CLUSTER", "USER", "SESSION UNTIL", "ADDRESSES"];

    fn row(&self) -> [String; 6] {
        [
            self.name.clone(),
            if self.current { "yes" } else { "" }.into(),
            self.problem.clone().unwrap_or_else(|| self.cluster_name.clone()),
            self.user.clone().unwrap_or_default(),
            self.session_expires_at.clone().unwrap_or_default(),
            self.addresses.join(","),
        ]
    }
}

pub(crate) fn run(context: &Context, command: Profiles) -> Result<()> {
    match command {
        Profiles::Ls => {
            let homes = context.homes.all()?;
            context.print_list(
                homes.iter().map(|home| ProfileView::of(home, context.home.name())).collect::<Vec<_>>(),
            )
        }
        Profiles::Use { name } => {
            let home = found(context, &name)?;
            context.homes.set_current(home.name())?;
            context.print(&Done::new(format!("Commands work with the profile {name} from now on.")))
        }
        Profiles::Rm { name, force } => rm(context, &name, force),
    }
}

fn found(context: &Context, name: &str) -> Result<Home> {
    let home = context.homes.open(Some(name))?;
    match home.exists() {
        true => Ok(home),
        false => Err(NotFound(format!(
            "there is no profile `{name}`: `mezctl profiles ls` lists them, and `mezctl --profile {name} login` makes it"
        ))
        .into()),
    }
}

fn rm(context: &Context, name: &str, force: bool) -> Result<()> {
    let home = found(context, name)?;
    if !force && is_logged_in(&home) {
        return Err(Conflict(format!(
            "the profile {name} is logged in: run `mezctl --profile {name} logout` first, or give --force"
        ))
        .into());
    }
    home.remove()?;
    // Nothing is left to be in use.
    if context.homes.current()? == name {
        context.homes.set_current(DEFAULT)?;
    }
    context.print(&Done::new(format!(
        "Removed the profile {name}. If ssh was told of it, `mezctl --profile {name} ssh-config --remove` undoes that."
    )))
}

/// Whether it has a session that has not ended by itself. A profile that cannot be read has none that could be ended.
fn is_logged_in(home: &Home) -> bool {
    let login = home.load().ok().flatten().and_then(|profile| profile.login);
    login.is_some_and(|login| {
        let end = login.expires_at.and_then(|time| humantime::parse_rfc3339(&time).ok());
        end.is_none_or(|end| end > clock::now())
    })
}
