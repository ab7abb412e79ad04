//! `auth-nodes`: the nodes of the auth cluster itself.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Subcommand;
use mezite_client::Retry;
use mezite_proto::v1;
use serde::Serialize;

use crate::{
    args::{human_duration, proto_duration},
    cmd::call,
    context::Context,
    files::Pending,
    output::{self, Report},
};

/// Commands on auth nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum AuthNodes {
    /// Create a single-use token with which another auth node joins
    Token {
        /// How long it is good for, a day at most
        #[arg(long, default_value = "1h", value_parser = human_duration, value_name = "DURATION")]
        ttl: Duration,
        /// File to write the token to, mode 0600, instead of printing it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Serialize)]
struct AuthJoinToken {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
    ca_pin: String,
    peer_addresses: Vec<String>,
    expires_at: Option<String>,
}

impl Report for AuthJoinToken {
    fn text(&self) -> String {
        let file = self.token_file.as_ref().map(|file| file.display().to_string());
        let peers = self.peer_addresses.join(",");
        let command = format!(
            "auth-node join --config FILE --token-file {} --ca-pin {} --peer {peers}",
            file.as_deref().unwrap_or("FILE"),
            self.ca_pin
        );
        output::fields(&[
            ("token", self.token.clone().unwrap_or_default()),
            ("token file", file.unwrap_or_default()),
            ("ca pin", self.ca_pin.clone()),
            ("peers", peers),
            ("expires", self.expires_at.clone().unwrap_or_default()),
            ("use it with", command),
        ])
    }
}

pub(crate) async fn run(context: &Context, command: AuthNodes) -> Result<()> {
    let AuthNodes::Token { ttl, out } = command;
    let client = context.user().await?;
    let file = out.as_deref().map(Pending::create).transpose()?;
    let request = v1::CreateAuthJoinTokenRequest { ttl: Some(proto_duration(ttl)) };
    let check = Retry::once("run it again: a token that nobody has ends by itself");
    let reply = call!(client, check, create_auth_join_token, request)?;
    let mut report = AuthJoinToken {
        token: Some(reply.token),
        token_file: None,
        ca_pin: reply.ca_pin,
        peer_addresses: reply.peer_addresses,
        expires_at: output::time(reply.expires_at.as_ref()),
    };
    if let Some(file) = file {
        file.write_secret(&report.token.take().unwrap_or_default())?;
        report.token_file.clone_from(&out);
    }
    context.print(&report)
}
