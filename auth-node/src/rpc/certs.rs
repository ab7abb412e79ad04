//! Certificates for users.

use auth_core::{
    CoreError,
    issue::{self, UserCertRequest, UserCerts},
};
use mezite_proto::v1;

use super::convert;
use crate::{authn::Call, error::ApiError, service::Service};

/// Issues certificates to the caller, within what its roles allow.
pub(crate) async fn issue_user_certs(
    service: &Service,
    call: &Call,
    request: v1::IssueUserCertsRequest,
) -> Result<v1::IssueUserCertsResponse, ApiError> {
    let asked = parse(request);
    let again = asked.clone();
    let at_once =
        service.write(call, move |tx, context| issue::user_certs_at_once(tx, context, &again.clone()?));
    if let Some(decided) = at_once.await?.value {
        return sign(service, decided);
    }
    let asked = asked?;
    // Outside of the transaction: it would otherwise conflict with every change of any node.
    let looked_for = asked.clone();
    let found =
        service.read(call, move |view, context| issue::candidates(view, context, &looked_for)).await?;
    let decided = service.write(call, move |tx, context| issue::user_certs(tx, context, &asked, &found));
    sign(service, decided.await?.value)
}

fn parse(request: v1::IssueUserCertsRequest) -> Result<UserCertRequest, CoreError> {
    let asked = UserCertRequest::new(
        &request.ssh_public_keys,
        request.tls_public_key.into(),
        request.ttl.map(|ttl| convert::duration_in("ttl", ttl)).transpose()?,
        request.logins,
        &request.node,
        convert::serial,
    )?;
    asked.with_requests(&request.access_request_ids)
}

/// Signs what was decided, now that it is committed.
fn sign(service: &Service, certs: UserCerts) -> Result<v1::IssueUserCertsResponse, ApiError> {
    let authority = service.cas.ssh(&certs.user_ca)?;
    let ssh_certificates =
        certs.ssh.iter().map(|spec| authority.sign_user(spec)).collect::<Result<_, _>>()?;
    let (tls_certificate, end) = match certs.tls {
        Some(spec) => service.cas.user_leaf(&certs.tls_ca, spec, &certs.tls_roles)?,
        None => (String::new(), u64::MAX),
    };
    Ok(v1::IssueUserCertsResponse {
        ssh_certificates,
        tls_certificate,
        known_hosts: certs.trust.known_hosts()?,
        tls_ca_certificates: certs.trust.tls_ca_certificates(),
        expires_at: Some(convert::timestamp(end.saturating_mul(1000).min(certs.expires_at_ms))),
        logins: certs.logins.into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use mezite_pki::ssh::SshKeyPair;

    use super::*;

    fn request() -> v1::IssueUserCertsRequest {
        let key = SshKeyPair::generate_ed25519("").unwrap().public_line();
        v1::IssueUserCertsRequest { ssh_public_keys: vec![key], ..Default::default() }
    }

    #[test]
    fn a_ttl_that_is_zero_or_negative_is_an_error() {
        assert!(parse(request()).is_ok());
        for (seconds, nanos) in [(0, 0), (-1, 0), (0, -1), (0, 999_999_999), (i64::MIN, 0)] {
            let ttl = Some(prost_types::Duration { seconds, nanos });
            let refused = parse(v1::IssueUserCertsRequest { ttl, ..request() });
            assert!(
                matches!(refused, Err(CoreError::Invalid { field, .. }) if field == "ttl"),
                "{seconds} {nanos}"
            );
        }
        let ttl = Some(prost_types::Duration { seconds: 1, nanos: 0 });
        assert!(parse(v1::IssueUserCertsRequest { ttl, ..request() }).is_ok());
    }

    #[test]
    fn access_requests_are_not_ignored() {
        let with = v1::IssueUserCertsRequest { access_request_ids: vec!["r".into()], ..request() };
        assert!(
            matches!(parse(with), Err(CoreError::Invalid { field, .. }) if field == "access_request_ids[0]")
        );
    }
}
