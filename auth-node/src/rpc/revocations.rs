//! The list of revoked certificates, as OpenSSH reads it.

use auth_core::revocation;
use bytes::Bytes;
use mezite_pki::ssh::revocation_list;
use mezite_proto::v1;
use tokio::sync::Mutex;

use crate::{authn::Call, error::ApiError, service::Service};

/// The list that was made last, for all who ask until something is revoked.
#[derive(Debug, Default)]
pub(crate) struct RevocationList(Mutex<Option<(u64, Bytes)>>);

/// Answers the revocation list, unless the caller has it: every revocation that was acknowledged before the call, by any
/// node, is in it.
pub(crate) async fn get(
    service: &Service,
    call: &Call,
    request: v1::GetRevocationListRequest,
) -> Result<v1::GetRevocationListResponse, ApiError> {
    let revision = service.read(call, |view, _| revocation::head(view)).await?;
    // Who has none is given one, which may be empty: sshd refuses everybody while the file is missing.
    if revision == request.known_revision && revision != 0 {
        return Ok(v1::GetRevocationListResponse { krl: Bytes::new(), revision });
    }
    let (revision, krl) = current(service, call, revision).await?;
    Ok(v1::GetRevocationListResponse { krl, revision })
}

/// The list of at least a revision. Many may ask for a new one at once: it is made once.
async fn current(service: &Service, call: &Call, at_least: u64) -> Result<(u64, Bytes), ApiError> {
    let mut made = service.revocation_list.0.lock().await;
    if let Some((revision, krl)) = &*made
        && *revision >= at_least
    {
        return Ok((*revision, krl.clone()));
    }
    let read = service.read_local(call, |view| Ok((revocation::head(view)?, revocation::serials(view)?)));
    let (revision, serials) = read.await?;
    let comment = format!("mezite {}", service.settings.cluster);
    let now = (service.clock)() / 1000;
    let krl = Bytes::from(revocation_list(&serials, revision, now, &comment));
    *made = Some((revision, krl.clone()));
    Ok((revision, krl))
}
