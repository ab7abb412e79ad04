//! mezctl: the command line of Mezite, for users, admins and the hosts that they reach.
//!
//! A command is a file in `cmd`: it reads its arguments, calls the cluster through `mezite-client`, and prints a
//! report. What is kept on disk is in `profile` (a user's cluster and session) `agent_dir` (a host's identity) and
//! `bot_dir` (an agent identity's credentials).
//! No rule of the service lives here.

mod agent_dir;
mod args;
mod audit_proof;
mod bot_dir;
mod cli;
mod cmd;
mod connector_file;
mod context;
mod exit;
mod files;
mod hidden;
mod normal;
mod output;
mod profile;
mod recording;
mod recording_proof;
mod resource;
mod role_file;
mod secret;
mod sshd_config;
mod svid_dir;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    if let cli::Command::Record(args) = cli.command {
        // It ends as what it runs does.
        return cmd::record::main(args);
    }
    let proof = cli.command.proof();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error, proof),
    }
}

fn run(cli: cli::Cli) -> anyhow::Result<()> {
    // A second installation can only fail because the first one stands.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let context = context::Context::new(cli.global)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(cmd::run(&context, cli.command))
}
