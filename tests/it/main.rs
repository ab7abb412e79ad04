//! The product as its users, hosts and operators meet it: its programs, run as they would run them, among real peers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot be set up has failed"
)]

mod access;
mod architecture;
mod audit;
mod authz;
mod backup;
mod bots;
mod browser;
mod bucket;
mod chaos;
mod cluster;
mod config;
mod connectors;
mod ctl_ssh_config;
mod ctl_terminal;
mod deployed;
mod failover;
mod host;
mod iam;
mod idle;
mod invites;
mod kubernetes;
mod lockout;
mod locks;
mod main_path;
mod mezctl;
mod observed;
mod once;
mod openssh;
mod operator;
mod playing;
mod presence;
mod proto;
mod proving;
mod proxies;
mod python;
mod record;
mod recording_kills;
mod recordings;
mod references;
mod refusals;
mod resources;
mod restart;
mod rotation;
mod runbook;
mod secrets;
mod security;
mod spiffe;
mod sso;
mod streams;
mod supervised;
mod support;
mod timing;
mod trust;
mod upgrade;
mod web;
mod web_recordings;
mod webauthn;
