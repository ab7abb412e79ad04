//! What anybody may know before logging in: it is answered from the node's own state, and works without a quorum too.

use std::sync::Arc;

use auth_core::{
    CoreError, cluster, cluster_config, connector,
    page::PageRequest,
    tables::{ProviderRow, SecondFactor},
    webauthn,
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use serde_json::json;

use super::{Web, call::Asked};
use crate::error::Problem;

/// Most connectors that are named.
const CONNECTORS: u32 = 100;

/// The cluster's name, and what a login takes.
pub(super) async fn ping(State(web): State<Arc<Web>>, asked: Asked) -> Result<Response, Problem> {
    let call = asked.call("Ping")?;
    let read = web.service.read_local(&call, |view| {
        let (cluster, settings) = (cluster::get(view)?.row, cluster_config::settings(view)?);
        let connectors = connector::list(view, &PageRequest::new(CONNECTORS, None))?.items;
        let relying_party = match webauthn::relying_party(view) {
            Ok(relying_party) => Some(relying_party.id),
            Err(CoreError::Precondition(_)) => None,
            Err(error) => return Err(error),
        };
        Ok((cluster, settings, connectors, relying_party))
    });
    let (cluster, settings, connectors, relying_party) = web.carry_out(&call, read).await?;
    let connectors: Vec<_> = connectors
        .into_iter()
        .map(|(name, stored)| {
            let kind = match &stored.row.provider {
                Some(ProviderRow::Oidc(_)) => "oidc",
                Some(ProviderRow::Github(_)) => "github",
                Some(ProviderRow::Saml(_)) => "saml",
                None => "none",
            };
            json!({ "name": name.as_str(), "display_name": stored.row.display_name, "kind": kind })
        })
        .collect();
    let second_factor = match settings.second_factor {
        SecondFactor::Optional => "optional",
        SecondFactor::Webauthn => "webauthn",
        SecondFactor::Off | SecondFactor::Unspecified => "off",
    };
    let body = json!({
        "cluster": cluster.name,
        "version": env!("CARGO_PKG_VERSION"),
        "second_factor": second_factor,
        "connectors": connectors,
        "passkeys": relying_party.is_some(),
        "relying_party_id": relying_party,
        "public_url": web.service.settings.web_origin,
    });
    Ok(Json(body).into_response())
}
