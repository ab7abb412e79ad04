//! How the program ends: the exit code, what is said, and what to do next.

use std::{process::ExitCode, time::Duration};

use mezite_client::{ClientError, UploadError};
use mezite_daemon::REMOVED;
use tonic::Code;

use crate::{
    cmd::{
        agent::{Ended, Gone},
        bot::Over,
    },
    output,
};

/// The arguments, or a file that they name, are wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Nobody is logged in.
#[derive(Debug, thiserror::Error)]
#[error("not logged in")]
pub(crate) struct NotLoggedIn;

/// There is no profile yet; the message says what makes one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoProfile(pub(crate) String);

/// A login by single sign-on was refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SsoRefused(&'static str);

impl SsoRefused {
    /// What a word of the cluster's says.
    pub(crate) fn of(word: &str) -> Self {
        Self(match word {
            "anew" => {
                "this login is over, or was finished in another browser than it was begun in: log in anew"
            }
            "unproved" => {
                "the provider did not say who you are, or not in a way that is believed: an administrator finds the reason in the audit log"
            }
            "not-let-in" => {
                "the provider knows you, and the cluster does not let you in by it: an administrator finds the reason in the audit log"
            }
            _ => "the login could not be carried out: try again",
        })
    }
}

/// What is asked for is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotFound(pub(crate) String);

/// What is to be made is there already.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Conflict(pub(crate) String);

/// The pin that is given is of no CA that the profile knows.
#[derive(Debug, thiserror::Error)]
#[error("{0} names a CA that the profile does not know")]
pub(crate) struct StrangePin(pub(crate) &'static str);

/// What a failure amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Failed = 1,
    Usage = 2,
    Denied = 3,
    NotFound = 4,
    Unavailable = 5,
    Unknown = 6,
    Conflict = 7,
    /// A service has nothing left to do.
    Gone = REMOVED as isize,
}

/// With what a command proves who calls: it says what helps against a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The session of the profile.
    Session,
    /// A password.
    Password,
    /// What a provider says of who logs in.
    Sso,
    /// An invite.
    Invite,
    /// A join token.
    JoinToken,
    /// An AWS identity.
    Iam,
    /// The certificate of an agent.
    Agent,
    /// The secret or certificate of an agent identity.
    Bot,
}

const SSO_REFUSED: &str =
    "log in again; if it goes on, an admin sees why with `mezctl audit ls --event user.login.failed`";
const IAM_REFUSED: &str = "an admin sees why with `mezctl audit ls --event agent.join.denied`";

/// Shorter waits than this have been waited for already, again and again.
const WORTH_TELLING: Duration = Duration::from_secs(5);

/// Prints the error and what to do, on standard error, and chooses the exit code. `command` is what failed, as in `users ls`, and
/// `profile` the one that was asked for.
pub(crate) fn report(error: &anyhow::Error, proof: Proof, command: &str, profile: Option<&str>) -> ExitCode {
    tell(error);
    if let Some(hint) = hint(error, proof, command) {
        output::hint(&for_profile(&hint, profile));
    }
    ExitCode::from(outcome(error) as u8)
}

/// Says of a failure that a service goes on after. Where the cluster is not believed any more waiting helps seldom: so what does is
/// said as well.
pub(crate) fn warn(error: &anyhow::Error, proof: Proof) {
    output::warn(&format!("{error:#}"));
    if let Some(ClientError::Untrusted { reason, .. }) = client_error(error) {
        output::hint(&untrusted(reason, proof));
    }
}

/// Prints the error on standard error.
pub(crate) fn tell(error: &anyhow::Error) {
    output::fail(&format!("{error:#}"));
}

/// A hint that can be followed as it is: whoever asked for another profile logs in to that.
fn for_profile(hint: &str, profile: Option<&str>) -> String {
    match profile.filter(|profile| !profile.is_empty()) {
        Some(profile) => hint.replace("`mezctl login", &format!("`mezctl --profile {profile} login")),
        None => hint.to_owned(),
    }
}

fn client_error(error: &anyhow::Error) -> Option<&ClientError> {
    error.chain().find_map(|cause| match cause.downcast_ref::<UploadError>() {
        Some(UploadError::Client(error)) => Some(error),
        _ => cause.downcast_ref(),
    })
}

fn outcome(error: &anyhow::Error) -> Outcome {
    if error.chain().any(|cause| cause.is::<Usage>()) {
        return Outcome::Usage;
    }
    if error.chain().any(|cause| cause.is::<Gone>()) {
        return Outcome::Gone;
    }
    let is_denied = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<NotLoggedIn>()
            || cause.is::<NoProfile>()
            || cause.is::<Ended>()
            || cause.is::<Over>()
            || cause.is::<SsoRefused>()
    };
    if error.chain().any(is_denied) {
        return Outcome::Denied;
    }
    if error.chain().any(|cause| cause.is::<NotFound>()) {
        return Outcome::NotFound;
    }
    if error.chain().any(|cause| cause.is::<Conflict>()) {
        return Outcome::Conflict;
    }
    match client_error(error) {
        Some(ClientError::Config(_)) => Outcome::Usage,
        Some(ClientError::OutcomeUnknown { .. }) => Outcome::Unknown,
        Some(error) => match error.code() {
            Some(Code::Unauthenticated | Code::PermissionDenied) => Outcome::Denied,
            Some(Code::InvalidArgument) => Outcome::Usage,
            Some(Code::NotFound) => Outcome::NotFound,
            Some(Code::Unavailable | Code::DeadlineExceeded) => Outcome::Unavailable,
            Some(Code::AlreadyExists | Code::Aborted) => Outcome::Conflict,
            _ => Outcome::Failed,
        },
        None => Outcome::Failed,
    }
}

/// Whether the cluster was reached, and answered this.
pub(crate) fn is_answer(error: &anyhow::Error) -> bool {
    let status = client_error(error).and_then(ClientError::status);
    status.is_some_and(|status| !matches!(status.code, Code::Unavailable | Code::DeadlineExceeded))
}

/// Whether it failed because the cluster cannot be reached now, or cannot serve.
pub(crate) fn is_unavailable(error: &anyhow::Error) -> bool {
    outcome(error) == Outcome::Unavailable
}

/// Whether it failed because nobody is logged in, or because of who is.
pub(crate) fn is_denied(error: &anyhow::Error) -> bool {
    outcome(error) == Outcome::Denied
}

/// Whether it failed because something is not there.
pub(crate) fn is_not_found(error: &anyhow::Error) -> bool {
    outcome(error) == Outcome::NotFound
}

/// Whether it failed because something is there already.
pub(crate) fn is_conflict(error: &anyhow::Error) -> bool {
    outcome(error) == Outcome::Conflict
}

fn hint(error: &anyhow::Error, proof: Proof, command: &str) -> Option<String> {
    if let Some(StrangePin(by)) = error.downcast_ref() {
        let undo = if by.starts_with('-') { "leave it out" } else { "unset it" };
        return Some(format!(
            "{by} overrides the profile: {undo} to go by the profile; for the cluster that it names, check it and --addr, \
             and run `mezctl login`"
        ));
    }
    if error.chain().any(|cause| cause.is::<NotLoggedIn>()) {
        return Some("run `mezctl login`".into());
    }
    let error = client_error(error)?;
    let hint = match (error, error.code()) {
        (ClientError::Untrusted { reason, .. }, _) => return Some(untrusted(reason, proof)),
        (_, Some(Code::Unauthenticated)) => unknown_caller(proof),
        (_, Some(Code::PermissionDenied)) if says(error, "second factor is required") => {
            "`mezctl login` has no second factor but where a provider asks for it: `mezctl login --sso CONNECTOR`"
        }
        (_, Some(Code::PermissionDenied)) => return refused(error, proof, command).map(str::to_owned),
        (_, Some(Code::NotFound)) if proof == Proof::Sso => "the cluster's login page lists the connectors",
        (_, Some(Code::NotFound)) => {
            return listed_by(error).map(|command| format!("`mezctl {command}` lists what there is"));
        }
        (_, Some(Code::Aborted)) => "it was changed meanwhile: get it again, and repeat your change",
        (_, Some(Code::AlreadyExists)) => {
            "see what is there with `get` or `ls`: change that, or choose another name"
        }
        (_, Some(Code::Unimplemented)) => "the cluster does not offer this yet",
        (ClientError::Unavailable { retry_after: Some(wait), .. }, _) if *wait >= WORTH_TELLING => {
            return Some(again_in(*wait));
        }
        (_, Some(Code::Unavailable | Code::DeadlineExceeded)) if lacks_ingests(error) => {
            "`mezctl cluster status` lists the ingests, and which are online; what is stored stays where it is meanwhile"
        }
        (_, Some(Code::Unavailable | Code::DeadlineExceeded))
            if proof == Proof::Session && command != "status" =>
        {
            "try again, or name further nodes with --addr host:port,host:port; `mezctl status` says how each address is"
        }
        (_, Some(Code::Unavailable | Code::DeadlineExceeded)) => {
            "try again, or name further nodes with --addr host:port,host:port"
        }
        (_, Some(Code::FailedPrecondition)) if command == "auth rotate" => {
            "`mezctl auth status` says what a rotation waits for, and `--force` does not wait"
        }
        // The message says what to do.
        (_, Some(Code::ResourceExhausted)) if error.has_reason("DATABASE_FULL") => return None,
        (_, Some(Code::ResourceExhausted)) => {
            let wait = error.status().and_then(|status| status.retry_after);
            return Some(wait.map_or_else(|| "try again later".into(), again_in));
        }
        _ => return None,
    };
    Some(hint.into())
}

/// The command that lists what the server knows none of. It says the kind in its message alone.
fn listed_by(error: &ClientError) -> Option<&'static str> {
    let (kind, _) = error.status()?.message.strip_prefix("no such ")?.split_once(':')?;
    Some(match kind {
        "user" => "users ls",
        "role" => "roles ls",
        "token" => "tokens ls",
        "node" => "nodes ls",
        "auth node" => "cluster ls",
        "lock" => "locks ls",
        "session" => "sessions ls",
        "device" => "devices ls",
        "connector" => "connectors ls",
        "recording" => "recordings ls",
        "access request" => "requests ls",
        "agent identity" => "agent-identities ls",
        "trusted cluster" => "trusted-clusters ls",
        "SPIFFE trust domain" => "spiffe-domains ls",
        _ => return None,
    })
}

fn again_in(wait: Duration) -> String {
    format!("try again in {}", humantime::format_duration(wait))
}

/// The cluster is not the one that is known, or its certificate or ours is not good at this time.
fn untrusted(reason: &str, proof: Proof) -> String {
    let anew = match proof {
        Proof::Session | Proof::Password | Proof::Sso => {
            "check --addr; for a cluster with a new CA, check its pin and log in again with --ca-pin"
        }
        Proof::Invite | Proof::JoinToken | Proof::Iam | Proof::Bot => {
            "check --addr and --ca-pin: an admin sees the pin of the cluster with `mezctl status`"
        }
        Proof::Agent => {
            "check --addr; if the cluster's TLS CA was exchanged while this host was away, run `mezctl agent leave --local`, and \
             join again with the pin of now, and with --spool if the host records sessions"
        }
    };
    if is_about_time(reason) { format!("{CLOCK_FIRST}; if that is right, {anew}") } else { anew.to_owned() }
}

/// What is to be looked at before a certificate is exchanged that is said not to be good at this time.
pub(crate) const CLOCK_FIRST: &str = "look at this machine's clock first";

/// Whether a certificate was refused for its time: rustls says so in words alone, and servers by an alert.
fn is_about_time(reason: &str) -> bool {
    let words = ["certificate expired", "certificate not valid yet", "Expired", "NotValidYet"];
    words.iter().any(|words| reason.contains(words))
}

/// The cluster does not know who calls.
fn unknown_caller(proof: Proof) -> &'static str {
    match proof {
        Proof::Session => "log in again with `mezctl login`",
        Proof::Password => {
            "check the name and the password; an admin can let you set another: `mezctl users reset NAME`"
        }
        Proof::Sso => SSO_REFUSED,
        Proof::Invite => "ask an admin for another invite: `mezctl users reset NAME`",
        Proof::JoinToken => "ask an admin for another join token: `mezctl tokens add`",
        Proof::Iam => IAM_REFUSED,
        Proof::Agent => {
            "run `mezctl agent leave --local`, and join again with a new token, and with --spool if the host records sessions"
        }
        Proof::Bot => "ask an admin for another secret: `mezctl agent-identities reset NAME`",
    }
}

/// The cluster does not let who calls do this.
fn refused(error: &ClientError, proof: Proof, command: &str) -> Option<&'static str> {
    match proof {
        _ if error.has_reason("LOCKED") => {
            Some("while the lock is there nothing else helps: admins see it with `mezctl locks ls`")
        }
        Proof::Session if says(error, "your roles allow no login") => Some(
            "an admin gives a user logins with `mezctl users update NAME --logins LOGIN,…`, for roles that allow the logins of a trait",
        ),
        Proof::Session if command.starts_with("requests") => {
            Some("an admin sees with `mezctl roles get` who may ask for what, and who may approve")
        }
        Proof::Session | Proof::Password => Some(
            "if it is a role that you lack, an admin can give you one, or you ask: `mezctl requests create`",
        ),
        Proof::Sso => Some(SSO_REFUSED),
        Proof::Invite => {
            Some("an invite is good once and for a time: ask an admin for another: `mezctl users reset NAME`")
        }
        Proof::JoinToken | Proof::Iam if says(error, "belongs to another agent") => Some(
            "an admin removes that agent, if it will not come back: `mezctl nodes rm ID`, with the id from `mezctl nodes ls` or \
             `mezctl nodes ls --unfinished`",
        ),
        Proof::JoinToken if says(error, "does not allow the name") => Some(
            "join with other --principals, or ask an admin for a token that allows these: `mezctl tokens add --principals`",
        ),
        Proof::JoinToken => Some("ask an admin for another join token (`mezctl tokens add`), if it is that"),
        Proof::Iam => Some(IAM_REFUSED),
        Proof::Bot => Some(
            "a secret is good once and for a time: ask an admin for another: `mezctl agent-identities reset NAME`",
        ),
        // It has no roles; the message says why.
        Proof::Agent => None,
    }
}

/// Whether an auth node serves, and no ingest does. It has no word for that but its message.
fn lacks_ingests(error: &ClientError) -> bool {
    matches!(error, ClientError::Unavailable { reason, .. } if reason.contains("no recording ingest"))
}

/// What the cluster says of a refusal in its message alone.
fn says(error: &ClientError, words: &str) -> bool {
    error.status().is_some_and(|status| status.message.contains(words))
}

#[cfg(test)]
#[path = "exit_tests.rs"]
mod tests;
