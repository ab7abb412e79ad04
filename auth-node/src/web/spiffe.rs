//! The bundle of the cluster's own SPIFFE trust domain, for those that federate with it. It is answered from the node's own state,
//! and works without a quorum too, as the trust bundle does; its sequence tells whoever asks another node that is behind.

use std::sync::Arc;

use auth_core::{CoreError, ca, tables::CaKind, trust};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};

use super::{Web, call::Asked};
use crate::{error::Problem, spiffe::bundle as document};

/// The X.509 authorities that vouch for the cluster's agents and agent identities.
pub(super) async fn bundle(State(web): State<Arc<Web>>, asked: Asked) -> Result<Response, Problem> {
    let call = asked.call("GetTrustBundle")?;
    let read = web.service.read_local(&call, |view| {
        let revision = ca::active(view, CaKind::Spiffe)?.revision;
        let authorities = trust::bundle(view)?.keys(CaKind::Spiffe).to_vec();
        document::write(&authorities, revision)
            .map_err(|error| CoreError::Internal(format!("a key of the SPIFFE CA: {error}")))
    });
    let bundle = web.carry_out(&call, read).await?;
    Ok(Json(bundle).into_response())
}
