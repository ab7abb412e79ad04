//! mezctl: the command line of Mezite, for users, admins and the hosts that they reach.
//!
//! A command is a file in `cmd`: it reads its arguments, calls the cluster through `mezite-client`, and prints a
//! report. What is kept on disk is in `profile` (a user's cluster and session) `agent_dir` (a host's identity) and
//! `bot_dir` (an agent identity's credentials).
//! No rule of the service lives here.

#![warn(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what is printed has three formats, and what is said beside it may have no reader: see `output`"
)]

mod agent_dir;
mod args;
mod audit_proof;
mod bot_dir;
mod cli;
mod cmd;
mod confirm;
mod connector_file;
mod context;
mod exit;
mod files;
mod hidden;
mod homes;
mod keys;
mod live;
mod log;
mod look;
mod normal;
mod output;
mod profile;
mod progress;
mod recording;
mod recording_proof;
mod resource;
mod role_file;
mod secret;
mod ssh_config;
mod ssh_dir;
mod sshd_config;
mod svid_dir;
mod watch;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{ArgMatches, FromArgMatches as _};

fn main() -> ExitCode {
    if std::env::args_os().len() <= 1 {
        // Variables of the environment are options too: clap would find something said.
        let _ = write!(io::stderr(), "{}", cli::command().render_help());
        return ExitCode::from(2);
    }
    let matches = cli::command().get_matches();
    let cli = cli::Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let cli::Command::Record(args) = cli.command {
        // It ends as what it runs does.
        return cmd::record::main(args);
    }
    let (proof, profile) = (cli.command.proof(), cli.global.profile.clone());
    match run(cli, &matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error, proof, &cli::path(&matches), profile.as_deref()),
    }
}

fn run(cli: cli::Cli, matches: &ArgMatches) -> anyhow::Result<()> {
    // A second installation can only fail because the first one stands.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let context = context::Context::new(cli.global)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match cli::watch(matches) {
        None => runtime.block_on(cmd::run(&context, cli.command)),
        Some(every) => {
            let again = || Ok(cli::Cli::from_arg_matches(matches)?.command);
            runtime.block_on(watch::watch(&context, every, again))
        }
    }
}
