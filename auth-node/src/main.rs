//! auth-node: makes a cluster or joins one, and serves it until it is told to stop.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use auth_node::{
    Init, Join, NodeError, Restore, Succeeded, config::Config, init, inspect, join, recover, restore,
    secret_from, start,
};
use clap::{Parser, Subcommand};
use mezite_daemon::{
    program::{self, Common, StopSignals},
    supervisor,
};

/// Exit code of a check that found something.
const NOT_SOUND: u8 = 2;

/// The control plane of Mezite
#[derive(Debug, Parser)]
#[command(name = "auth-node", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the first node of a new cluster; run again to finish an init that was interrupted
    Init {
        #[command(flatten)]
        common: Common,
        /// Name of the cluster: a-z, 0-9, - and dots, at most 63 characters
        #[arg(long, value_name = "NAME")]
        cluster_name: String,
        /// Name of the first user, who administers the cluster
        #[arg(long, value_name = "NAME")]
        admin_user: String,
        /// File with that user's password, mode 0600; without it, a password is made and printed once
        #[arg(long, value_name = "FILE")]
        admin_password_file: Option<PathBuf>,
        /// Succeed where the data directory holds a node already, and change nothing: for what starts nodes by itself
        #[arg(long)]
        if_needed: bool,
    },
    /// Make a further node of a cluster; run again to finish a join that was interrupted
    Join {
        #[command(flatten)]
        common: Common,
        /// File with the token of `mezctl cluster token`, mode 0600. Not needed once joined
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// Pin of the cluster's peer CA, as printed beside the token
        #[arg(long, value_name = "PIN")]
        ca_pin: Option<String>,
        /// host:port of members' peer listeners; each is tried
        #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
        peer: Vec<String>,
        /// Stay a learner, which has everything and no vote, until `mezctl cluster add` makes it a voter
        #[arg(long)]
        learner: bool,
    },
    /// Make the first node of a new cluster from a backup; run again to finish a restore that was interrupted
    ///
    /// The new cluster has the users, roles, nodes and CAs of the backup, and its audit log. It has an id of its own:
    /// nodes of the old cluster are none of the new one. All sessions and all join tokens are void. What was changed
    /// after the backup is undone: a user, role or host that was removed since is there again.
    Restore {
        #[command(flatten)]
        common: Common,
        /// The backup, as `mezctl cluster backup` wrote it
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// The key-encryption key of the cluster that the backup is of: the file `kek` of any of its nodes, mode 0600. It
        /// is copied to where the configuration says; not needed where it is there
        #[arg(long, value_name = "FILE")]
        kek_file: Option<PathBuf>,
    },
    /// Make a new cluster from the last node of one that has lost its quorum for good; run again to finish
    ///
    /// What the node was is kept in a folder of its data directory. Writes that never reached this node are lost. As
    /// after `restore`, all sessions and join tokens are void, and nodes join anew.
    Recover {
        #[command(flatten)]
        common: Common,
        /// A new cluster: the other nodes of the old one are given up
        #[arg(long, required = true)]
        force_new_cluster: bool,
        /// The other nodes of the old cluster are destroyed, or will never be started again
        #[arg(long, required = true)]
        yes_i_understand_that_the_other_nodes_must_never_run_again: bool,
    },
    /// Look whether the data directory of a stopped node is sound; it changes nothing
    ///
    /// Exit codes: 0 sound, 1 it could not be looked at, 2 not sound.
    Check {
        #[command(flatten)]
        common: Common,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Serve until SIGTERM
    ///
    /// Exit codes: 0 stopped, 1 failed, 78 the node was removed from its cluster: to start it again changes nothing.
    Run {
        #[command(flatten)]
        common: Common,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let serves = matches!(cli.command, Command::Run { .. });
    program::exit_code("auth-node", run(cli), |error| {
        serves && matches!(error.downcast_ref(), Some(NodeError::Removed { .. }))
    })
}

fn run(cli: Cli) -> Result<ExitCode> {
    let (Command::Init { common, .. }
    | Command::Join { common, .. }
    | Command::Restore { common, .. }
    | Command::Recover { common, .. }
    | Command::Check { common, .. }
    | Command::Run { common }) = &cli.command;
    let Some(config) = common.load::<Config>()? else { return Ok(ExitCode::SUCCESS) };
    let runtime = program::begin("auth-node", &config, program::BLOCKING_THREADS)?;
    let done = match cli.command {
        Command::Init { cluster_name, admin_user, admin_password_file, if_needed, .. } => {
            let password = admin_password_file.as_deref().map(secret_from).transpose()?;
            let new = Init { cluster_name, admin_user, admin_password: password };
            runtime.block_on(make_cluster(&config, new, if_needed))
        }
        Command::Join { token_file, ca_pin, peer, learner, .. } => {
            let how = || how_to_join(token_file.as_deref(), ca_pin, peer, learner);
            runtime.block_on(join_cluster(&config, how))
        }
        Command::Restore { from, kek_file, .. } => {
            let from = Restore { backup: from, kek_file };
            runtime.block_on(async { report(&config, "restored", &restore(&config, from).await?) })
        }
        Command::Recover { .. } => {
            runtime.block_on(async { report(&config, "recovered", &recover(&config).await?) })
        }
        Command::Check { json, .. } => return check(&config, json),
        Command::Run { .. } => runtime.block_on(serve(config)),
    };
    runtime.end();
    done.map(|()| ExitCode::SUCCESS)
}

async fn make_cluster(config: &Config, new: Init, if_needed: bool) -> Result<()> {
    let made = match init(config, new).await {
        Err(NodeError::Member { node_id, cluster_id, .. }) if if_needed => {
            println!("node {node_id} of cluster {cluster_id} is here already, and nothing was changed");
            return Ok(());
        }
        made => made?,
    };
    println!("cluster     {}", made.cluster_name);
    println!("cluster id  {}", made.cluster_id);
    println!("ca pin      {}", made.ca_pin);
    println!("admin       {}", made.admin_user);
    match &made.admin_password {
        Some(password) => println!("password    {} (shown once)", password.as_str()),
        None if made.resumed => {
            println!("password    the one that was given to the init that was interrupted")
        }
        None => println!("password    the one that was given"),
    }
    println!();
    println!("Start the node with `auth-node run`, and then log in:");
    let (address, pin, admin) = (&config.advertise, &made.ca_pin, &made.admin_user);
    println!("  mezctl login --addr {address} --ca-pin {pin} --user {admin}");
    println!(
        "Keep {} safe, and apart from backups: without it no CA key can be used.",
        config.kek_path().display()
    );
    Ok(made.finish()?)
}

fn how_to_join(
    token_file: Option<&Path>,
    ca_pin: Option<String>,
    peers: Vec<String>,
    learner: bool,
) -> Result<Join, NodeError> {
    let needed = || NodeError::Refused("joining needs --token-file, --ca-pin and --peer".into());
    let (Some(token_file), Some(ca_pin)) = (token_file, ca_pin) else { return Err(needed()) };
    Ok(Join { token: secret_from(token_file)?, ca_pin, peers, learner })
}

async fn join_cluster(config: &Config, how: impl FnOnce() -> Result<Join, NodeError>) -> Result<()> {
    let joined = join(config, how).await?;
    let how = if joined.already { "had joined" } else { "joined" };
    println!("node {} {how} cluster {}; start it with `auth-node run`", joined.node_id, joined.cluster_id);
    Ok(())
}

fn report(config: &Config, how: &str, made: &Succeeded) -> Result<()> {
    println!("cluster     {}", made.cluster_name);
    println!("cluster id  {} (new)", made.cluster_id);
    println!("ca pin      {} (as before)", made.ca_pin);
    println!("{how:<10}  from the state with SHA-256 {}", made.backup_sha256);
    if let Some(aside) = &made.aside {
        println!("set aside   {}: delete it when the new cluster is well", aside.display());
    }
    println!();
    println!(
        "All sessions and join tokens are void. Start the node with `auth-node run`, log in again, and let further"
    );
    println!("nodes join into new data directories, each with a token of `mezctl cluster token`.");
    if made.aside.is_none() {
        println!(
            "What was changed after the backup is undone: look for users and hosts that were removed since."
        );
    }
    println!("Keep {} safe: it is the key-encryption key of this cluster too.", config.kek_path().display());
    Ok(())
}

fn check(config: &Config, json: bool) -> Result<ExitCode> {
    let found = inspect(config)?;
    if json {
        println!("{:#}", found.json());
    } else {
        print!("{found}");
    }
    Ok(if found.is_sound() { ExitCode::SUCCESS } else { ExitCode::from(NOT_SOUND) })
}

async fn serve(config: Config) -> Result<()> {
    let mut stop = StopSignals::catch()?;
    let mut handle = tokio::select! {
        started = start(config) => started?,
        () = stop.received() => return Ok(()),
    };
    supervisor::ready();
    let mut ended = Ok(());
    tokio::select! {
        () = stop.received() => (),
        broken = handle.broken() => match broken {
            // Calls in progress get their answers, that of the removal among them.
            NodeError::Removed { .. } => ended = Err(broken.into()),
            broken => return Err(broken.into()),
        },
    }
    tracing::info!("stopping");
    supervisor::stopping();
    if !handle.stop().await {
        tracing::warn!("some calls were not answered in time");
    }
    ended
}
