//! `certs refresh`: the certificate that a profile keeps for ssh, renewed where it has to be. ssh runs this before each
//! connection, so it says nothing and asks nobody while the certificate is good.

use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Error, Result};
use clap::Args;
use mezite_client::{Client, ClientError, Retry, RetryPolicy};
use mezite_daemon::clock;
use mezite_pki::ssh::SshKeyPair;
use mezite_proto::v1;

use super::{Subject, write};
use crate::{
    cmd::call,
    context::Context,
    output,
    ssh_dir::{KEY, SshDir, Standing},
};

/// How long somebody waits who could log in with the certificate that there is.
const HURRY: Duration = Duration::from_secs(5);

const REFRESH_HELP: &str = "\
`mezctl ssh-config` has ssh run it before each connection. While the certificate is good it says nothing and needs no network;
in the last third of its life it is renewed, and if that fails, it is but told. It fails when there is none that is good and
none can be had: `mezctl login` helps where the session has ended.

The key, the certificate and known_hosts are in the folder `ssh` of the profile. A login or logout removes the certificate.";

/// Arguments of `certs refresh`.
#[derive(Debug, Args)]
#[command(after_help = REFRESH_HELP)]
pub(crate) struct Refresh {
    /// Also while the one that is there is good: so that what an admin gave you counts at once
    #[arg(long)]
    force: bool,
}

pub(super) async fn refresh(context: &Context, args: &Refresh) -> Result<()> {
    let Some(login) = context.login()? else { return Err(context.nobody()) };
    let folder = SshDir::new(context.home.ssh());
    let look = || folder.standing(&login.user, clock::unix_seconds());
    if !args.force && look() == Standing::Fresh {
        return Ok(());
    }
    let (begun, most) = (Instant::now(), context.policy.overall_timeout);
    // Who can log in by what is there waits for nobody else.
    let waits = args.force || look() == Standing::Over;
    let Some(_held) = folder.lock(if waits { most } else { Duration::ZERO }).await? else {
        return if waits { Err(in_renewal(&context.user().await?, most)) } else { Ok(()) };
    };
    // Who held it may have renewed the certificate.
    let end = match look() {
        Standing::Over => None,
        _ if args.force => None,
        Standing::Fresh => return Ok(()),
        Standing::EndsAt(end) => Some(end),
    };
    let client = context.user().await?;
    let within = |time: Duration| {
        client.with_policy(RetryPolicy { overall_timeout: time.min(most), ..context.policy })
    };
    let Some(end) = end else {
        // However many wait for each other, none of them takes longer than one.
        return renew(&within(most.saturating_sub(begun.elapsed())), &folder, &login.user).await;
    };
    if let Err(error) = renew(&within(HURRY), &folder, &login.user).await {
        // What was tried in vain is not tried again for what follows a command.
        context.forget_cluster();
        not_renewed(end, &error);
    }
    Ok(())
}

/// The cluster was not asked, since others have asked it in vain for as long.
fn in_renewal(client: &Client, waited: Duration) -> Error {
    let waited = humantime::format_duration(waited);
    let reason = format!("other commands have been renewing the certificate for ssh for {waited}");
    let addresses = client.addresses().join(", ");
    ClientError::Unavailable { addresses, attempts: 0, reason, retry_after: None }.into()
}

fn not_renewed(end: u64, error: &Error) {
    let end = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(end));
    output::warn(&format!("the certificate for ssh ends at {end}, and could not be renewed: {error:#}"));
    if crate::exit::is_denied(error) {
        output::say("hint: run `mezctl login`");
    }
}

/// Gets a certificate for the key that is there, or for a new one.
async fn renew(client: &Client, folder: &SshDir, user: &str) -> Result<()> {
    let key = match folder.key()? {
        Some(key) => key,
        None => SshKeyPair::generate_ed25519(user)?,
    };
    let subject = Subject { public_line: key.public_line(), made: Some(key), name: KEY.into() };
    let request = v1::IssueUserCertsRequest {
        ssh_public_keys: vec![subject.public_line.clone()],
        ..v1::IssueUserCertsRequest::default()
    };
    // A certificate that nobody received is of use to nobody: its key is here.
    let reply = call!(client, Retry::Idempotent, issue_user_certs, request)?;
    write(folder.path(), &subject, None, reply).map(drop)
}
