//! The commands, one file per family.

pub(crate) mod agent;
pub(crate) mod agent_identities;
pub(crate) mod audit;
pub(crate) mod auth;
pub(crate) mod bot;
pub(crate) mod certs;
pub(crate) mod cluster;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod connectors;
pub(crate) mod devices;
pub(crate) mod invite;
pub(crate) mod locks;
pub(crate) mod login;
pub(crate) mod man;
pub(crate) mod nodes;
pub(crate) mod profiles;
pub(crate) mod record;
pub(crate) mod recordings;
pub(crate) mod requests;
pub(crate) mod resources;
pub(crate) mod roles;
pub(crate) mod sessions;
pub(crate) mod spiffe_domains;
pub(crate) mod ssh_config;
mod sso;
pub(crate) mod status;
pub(crate) mod tokens;
pub(crate) mod top;
pub(crate) mod trusted_clusters;
pub(crate) mod users;

use std::ops::ControlFlow;

use anyhow::Result;

use crate::{cli::Command, context::Context};

/// Carries a command out, and does what belongs after any.
pub(crate) async fn run(context: &Context, command: Command) -> Result<()> {
    let outcome = carry_out(context, command).await;
    context.done(&outcome).await;
    outcome
}

async fn carry_out(context: &Context, command: Command) -> Result<()> {
    match command {
        Command::Login(args) => login::login(context, args).await,
        Command::Logout => login::logout(context).await,
        Command::Passwd(args) => login::passwd(context, args).await,
        Command::AcceptInvite(args) => invite::accept(context, args).await,
        Command::Status => status::status(context).await,
        Command::Get(args) => resources::get(context, args).await,
        Command::Create(args) => resources::create(context, args).await,
        Command::Rm(args) => resources::rm(context, args).await,
        Command::Completion(args) => completion::completion(&args),
        Command::Man(args) => man::man(context, &args),
        Command::Profiles(command) => profiles::run(context, command),
        Command::SshConfig(args) => ssh_config::run(context, args).await,
        Command::Top => top::top(context).await,
        Command::Users(command) => users::run(context, command).await,
        Command::Roles(command) => roles::run(context, command).await,
        Command::AgentIdentities(command) => agent_identities::run(context, command).await,
        Command::Bot(command) => bot::run(context, command).await,
        Command::Tokens(command) => tokens::run(context, command).await,
        Command::Nodes(command) => nodes::run(context, command).await,
        Command::Certs(command) => certs::run(context, command).await,
        Command::Agent(command) => agent::run(context, command).await,
        // It ends as what it runs does, and so `main` has carried it out.
        Command::Record(_) => Ok(()),
        Command::Recordings(command) => recordings::run(context, command).await,
        Command::Sessions(command) => sessions::run(context, command).await,
        Command::Devices(command) => devices::run(context, command).await,
        Command::Requests(command) => requests::run(context, command).await,
        Command::Audit(command) => audit::run(context, command).await,
        Command::Auth(command) => auth::run(context, command).await,
        Command::Config(command) => config::run(context, command).await,
        Command::Locks(command) => locks::run(context, command).await,
        Command::Connectors(command) => connectors::run(context, command).await,
        Command::SpiffeDomains(command) => spiffe_domains::run(context, command).await,
        Command::TrustedClusters(command) => trusted_clusters::run(context, command).await,
        Command::Cluster(command) => cluster::run(context, command).await,
    }
}

/// `$client.call($retry, $request, …)` of the method `$method`: a closure per call would say the same each time.
macro_rules! call {
    ($client:expr, $retry:expr, $method:ident, $request:expr) => {
        $client
            .call($retry, $request, |mut auth: mezite_client::AuthClient, request| async move {
                auth.$method(request).await
            })
            .await
    };
}
pub(crate) use call;

/// All pages of a list method; or each of them, for `$visit`. `$request` is built per page from the page's token.
macro_rules! list {
    ($client:expr, $method:ident, $entries:ident, |$token:ident| $request:expr) => {
        $crate::cmd::list!(mezite_client::all_pages; $client, $method, $entries, |$token| $request;)
    };
    ($client:expr, $method:ident, $entries:ident, |$token:ident| $request:expr, $visit:expr) => {
        $crate::cmd::list!(mezite_client::each_page; $client, $method, $entries, |$token| $request; $visit)
    };
    ($walk:path; $client:expr, $method:ident, $entries:ident, |$token:ident| $request:expr; $($visit:expr)?) => {{
        let client = &$client;
        let fetch = |$token| async move {
            let reply = $crate::cmd::call!(client, mezite_client::Retry::Idempotent, $method, $request)?;
            Ok::<_, mezite_client::ClientError>((reply.$entries, reply.next_page_token))
        };
        $walk(fetch, $($visit)?).await
    }};
}
pub(crate) use list;

/// Looks for an entry in a page of a list that is ordered by ids. Breaks when it is there, or will not come any more.
pub(crate) fn seek<T>(page: Vec<T>, wanted: &str, id: impl Fn(&T) -> &str) -> ControlFlow<Option<T>> {
    match page.into_iter().find(|entry| id(entry) >= wanted) {
        Some(entry) => ControlFlow::Break(Some(entry).filter(|entry| id(entry) == wanted)),
        None => ControlFlow::Continue(()),
    }
}

/// Fails like the server when it left out what the reply must have.
pub(crate) fn present<T>(value: Option<T>, what: &str) -> Result<T> {
    value.ok_or_else(|| anyhow::anyhow!("the cluster's reply lacks {what}"))
}

#[cfg(test)]
mod flow_tests;
