use std::collections::HashMap;

use anyhow::Context as _;
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;

fn unavailable() -> ClientError {
    ClientError::Unavailable { addresses: "a:1".into(), attempts: 1, reason: "x".into(), retry_after: None }
}

#[test]
fn exit_codes_tell_failures_apart() {
    let wrapped = Err::<(), _>(unavailable()).context("listing users").unwrap_err();
    assert_eq!(outcome(&wrapped), Outcome::Unavailable);
    assert_eq!(outcome(&UploadError::from(unavailable()).into()), Outcome::Unavailable);
    assert_eq!(outcome(&Usage("x".into()).into()), Outcome::Usage);
    assert_eq!(outcome(&NotLoggedIn.into()), Outcome::Denied);
    assert_eq!(outcome(&NotFound("x".into()).into()), Outcome::NotFound);
    let wrapped = Err::<(), _>(Conflict("x".into())).context("document 2").unwrap_err();
    assert_eq!(outcome(&wrapped), Outcome::Conflict);
    assert_eq!(outcome(&anyhow::anyhow!("x")), Outcome::Failed);
    let untrusted = ClientError::Untrusted { address: "a:1".into(), reason: "x".into() };
    assert_eq!(outcome(&untrusted.into()), Outcome::Failed);
    assert_eq!(outcome(&ClientError::Protocol("x".into()).into()), Outcome::Failed);
    let unknown = ClientError::OutcomeUnknown { check: "look".into(), reason: "x".into() };
    assert_eq!(outcome(&unknown.into()), Outcome::Unknown);
}

#[test]
fn an_error_says_what_to_do() {
    assert!(hint(&NotLoggedIn.into(), Proof::Session, "").unwrap().contains("mezctl login"));
    assert!(hint(&unavailable().into(), Proof::Session, "").unwrap().contains("--addr"));
    for (wait, told) in [(Duration::from_millis(250), "--addr"), (Duration::from_secs(30), "in 30s")] {
        let (addresses, reason) = ("a:1".into(), "x".into());
        let busy = ClientError::Unavailable { addresses, attempts: 1, reason, retry_after: Some(wait) };
        assert!(hint(&busy.into(), Proof::Session, "").unwrap().contains(told), "{wait:?}");
    }
    // The message says all of it.
    assert_eq!(hint(&NoProfile("x".into()).into(), Proof::Session, ""), None);
    assert_eq!(outcome(&NoProfile("x".into()).into()), Outcome::Denied);
    for (by, undo) in [("--ca-pin", "leave it out"), ("MEZITE_CA_PIN", "unset it")] {
        let untrusted = ClientError::Untrusted { address: "a:1".into(), reason: "x".into() };
        for error in [anyhow::Error::from(untrusted), NotLoggedIn.into()] {
            let before = outcome(&error);
            let error = error.context(StrangePin(by)).context("document 1");
            assert!(
                hint(&error, Proof::Session, "")
                    .unwrap()
                    .starts_with(&format!("{by} overrides the profile: {undo}"))
            );
            assert_eq!(outcome(&error), before);
        }
    }
}

#[test]
fn who_asked_for_a_profile_is_told_to_log_in_to_that() {
    let hint = hint(&NotLoggedIn.into(), Proof::Session, "").unwrap();
    assert_eq!(for_profile(&hint, None), "run `mezctl login`");
    assert_eq!(for_profile(&hint, Some("")), "run `mezctl login`");
    assert_eq!(for_profile(&hint, Some("work")), "run `mezctl --profile work login`");
}

#[test]
fn who_lacks_a_second_factor_is_not_told_to_ask_for_a_role() {
    let said = tonic::Status::permission_denied("a second factor is required, and you have no device yet");
    let error = ClientError::Status(Box::new((&said).into()));
    assert!(hint(&error.into(), Proof::Session, "").unwrap().contains("login --sso"));
}

#[test]
fn whose_name_is_taken_is_told_how_it_becomes_free() {
    let said = tonic::Status::permission_denied("the name web1 belongs to another agent");
    for proof in [Proof::JoinToken, Proof::Iam] {
        let error = ClientError::Status(Box::new((&said).into()));
        assert!(hint(&error.into(), proof, "").unwrap().contains("nodes rm ID"), "{proof:?}");
    }
}

#[test]
fn an_answer_is_what_the_cluster_said() {
    let status = |code| ClientError::Status(Box::new((&tonic::Status::new(code, "no")).into()));
    for (code, answered) in [
        (Code::PermissionDenied, true),
        (Code::Unauthenticated, true),
        (Code::NotFound, true),
        (Code::Unavailable, false),
        (Code::DeadlineExceeded, false),
    ] {
        let error = anyhow::Error::from(status(code)).context("document 1");
        assert_eq!(is_answer(&error), answered, "{code:?}");
    }
    assert!(!is_answer(&unavailable().into()) && !is_answer(&Usage("x".into()).into()));
}

#[test]
fn a_service_that_the_cluster_does_not_have_any_more_ends_with_a_status_of_its_own() {
    let details = ErrorDetails::with_error_info("NOT_REGISTERED", "mezite", HashMap::new());
    let status = tonic::Status::with_error_details(Code::Unauthenticated, "no", details);
    let refused = || ClientError::Status(Box::new((&status).into()));
    let gone = anyhow::Error::from(Gone(refused()));
    assert_eq!(outcome(&gone) as u8, 78);
    assert!(hint(&gone, Proof::Agent, "").unwrap().contains("join again"));
    // A command that was refused so is denied as any.
    assert_eq!(outcome(&refused().into()), Outcome::Denied);
}

#[test]
fn who_does_not_believe_a_certificate_for_its_time_looks_at_the_clock_first() {
    use rustls::{AlertDescription, CertificateError, Error, pki_types::UnixTime};
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let hint = |reason: Error| {
        let untrusted = ClientError::Untrusted { address: "a:1".into(), reason: reason.to_string() };
        hint(&untrusted.into(), Proof::Agent, "").unwrap()
    };
    for reason in [
        Error::InvalidCertificate(CertificateError::ExpiredContext { time: at(9), not_after: at(5) }),
        Error::InvalidCertificate(CertificateError::NotValidYetContext { time: at(1), not_before: at(5) }),
        Error::InvalidCertificate(CertificateError::Expired),
        Error::InvalidCertificate(CertificateError::NotValidYet),
        Error::AlertReceived(AlertDescription::CertificateExpired),
    ] {
        let (said, hint) = (reason.to_string(), hint(reason));
        assert!(hint.starts_with(CLOCK_FIRST) && hint.contains("agent leave --local"), "{said}: {hint}");
    }
    let other = hint(Error::InvalidCertificate(CertificateError::UnknownIssuer));
    assert!(!other.contains("clock") && other.contains("agent leave --local"), "{other}");
}

/// What helps depends on how the caller proves who it is.
#[test]
fn a_hint_fits_the_command() {
    let refused = |code: Code, reason: &str, proof| {
        let details = ErrorDetails::with_error_info(reason, "mezite", HashMap::new());
        let status = tonic::Status::with_error_details(code, "no", details);
        let error = ClientError::Status(Box::new((&status).into()));
        hint(&error.into(), proof, "").unwrap_or_default()
    };
    for (proof, unknown, denied) in [
        (Proof::Session, "mezctl login", "requests create"),
        (Proof::Password, "users reset", "requests create"),
        (Proof::Sso, "user.login.failed", "user.login.failed"),
        (Proof::Invite, "users reset", "users reset"),
        (Proof::JoinToken, "tokens add", "tokens add"),
        (Proof::Iam, "agent.join.denied", "agent.join.denied"),
        (Proof::Agent, "join again", ""),
        (Proof::Bot, "agent-identities reset", "agent-identities reset"),
    ] {
        assert!(refused(Code::Unauthenticated, "UNAUTHENTICATED", proof).contains(unknown), "{proof:?}");
        assert!(refused(Code::PermissionDenied, "DENIED", proof).contains(denied), "{proof:?}");
        assert!(refused(Code::PermissionDenied, "LOCKED", proof).contains("locks ls"), "{proof:?}");
        let untrusted = ClientError::Untrusted { address: "a:1".into(), reason: "x".into() };
        assert!(hint(&untrusted.into(), proof, "").unwrap().contains("check --addr"), "{proof:?}");
    }
    assert!(refused(Code::Unauthenticated, "NOT_REGISTERED", Proof::Agent).contains("--spool"));
    assert_eq!(refused(Code::PermissionDenied, "DENIED", Proof::Agent), "");
    assert!(refused(Code::NotFound, "NOT_FOUND", Proof::Sso).contains("login page"));
    assert_eq!(refused(Code::NotFound, "NOT_FOUND", Proof::Password), "");
    assert_eq!(refused(Code::ResourceExhausted, "DATABASE_FULL", Proof::Session), "");
}

#[test]
fn what_is_not_there_is_told_with_what_lists_the_rest() {
    let said = |message: &str| {
        let error = ClientError::Status(Box::new((&tonic::Status::not_found(message)).into()));
        hint(&error.into(), Proof::Session, "")
    };
    for (message, command) in [("no such user: bob", "users ls"), ("no such auth node: 99", "cluster ls")] {
        assert!(said(message).unwrap().contains(&format!("`mezctl {command}`")), "{message}");
    }
    for other in ["no such wonder: x", "gone"] {
        assert_eq!(said(other), None, "{other}");
    }
}

#[test]
fn who_finds_no_ingest_is_not_told_of_other_auth_nodes() {
    let (addresses, reason) = ("a:1".into(), "no recording ingest can be reached now".into());
    let error = ClientError::Unavailable { addresses, attempts: 1, reason, retry_after: None };
    let hint = hint(&error.into(), Proof::Session, "").unwrap();
    assert!(hint.contains("`mezctl cluster status`") && !hint.contains("--addr"), "{hint}");
}

#[test]
fn what_is_refused_is_told_with_what_would_be_allowed() {
    let said = |code, message: &str, proof, command| {
        let error = ClientError::Status(Box::new((&tonic::Status::new(code, message)).into()));
        hint(&error.into(), proof, command).unwrap_or_default()
    };
    let denied = |message, proof, command| said(Code::PermissionDenied, message, proof, command);
    let name = "the join token does not allow the name 192.0.2.7";
    assert!(denied(name, Proof::JoinToken, "agent join").contains("tokens add --principals"));
    assert!(denied("your roles allow no login", Proof::Session, "certs issue").contains("--logins"));
    let waits = "1 have not taken this phase up: agent:x; wait for that, or force it";
    assert!(
        said(Code::FailedPrecondition, waits, Proof::Session, "auth rotate").contains("mezctl auth status")
    );
    assert_eq!(said(Code::FailedPrecondition, "x", Proof::Session, "users rm"), "");
}

#[test]
fn nobody_is_sent_in_a_circle() {
    let denied = ClientError::Status(Box::new((&tonic::Status::permission_denied("no")).into()));
    let hint_of = |error: ClientError, command| hint(&error.into(), Proof::Session, command).unwrap();
    assert!(!hint_of(denied, "requests create").contains("requests create"));
    assert!(!hint_of(unavailable(), "status").contains("mezctl status"));
    assert!(hint_of(unavailable(), "users ls").contains("mezctl status"));
}
