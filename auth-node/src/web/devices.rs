//! The caller's authenticators: passkeys and security keys.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use mezite_proto::v1;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Web,
    call::{Asked, Body},
};
use crate::{
    error::{ApiError, Problem},
    rpc,
};

/// Most devices that are shown: as many as a page of the API has at most.
const ALL: u32 = 1000;

/// What kind of authenticator is to be registered.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Begin {
    /// Whether it is to know the user by itself.
    #[serde(default)]
    passkey: bool,
}

/// What an authenticator answered to the challenge of a registration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Finish {
    challenge_id: String,
    /// `RegistrationResponseJSON` of WebAuthn Level 3.
    credential: Value,
    /// What the user calls it.
    name: String,
}

/// Lists them.
pub(super) async fn list(State(web): State<Arc<Web>>, asked: Asked) -> Result<Response, Problem> {
    let call = asked.call("ListWebAuthnDevices")?;
    let request = v1::ListWebAuthnDevicesRequest { page_size: ALL, page_token: String::new() };
    let work = rpc::webauthn::list(&web.service, &call, request);
    let reply = web.carry_out(&call, work).await?;
    let devices: Vec<_> = reply.devices.iter().map(view).collect();
    Ok(Json(json!({ "devices": devices })).into_response())
}

/// Begins the registration of one.
pub(super) async fn begin(
    State(web): State<Arc<Web>>,
    asked: Asked,
    Body(begin): Body<Begin>,
) -> Result<Response, Problem> {
    let call = asked.call("BeginWebAuthnRegistration")?;
    let request = v1::BeginWebAuthnRegistrationRequest { passkey: begin.passkey };
    let work = rpc::webauthn::begin_registration(&web.service, &call, request);
    let reply = web.carry_out(&call, work).await?;
    Ok(Json(challenge(reply.challenge_id, &reply.options_json)?).into_response())
}

/// Ends it.
pub(super) async fn finish(
    State(web): State<Arc<Web>>,
    asked: Asked,
    Body(finish): Body<Finish>,
) -> Result<Response, Problem> {
    let call = asked.call("FinishWebAuthnRegistration")?;
    let Finish { challenge_id, credential, name } = finish;
    let credential_json = credential.to_string();
    let request = v1::FinishWebAuthnRegistrationRequest { challenge_id, credential_json, name };
    let work = rpc::webauthn::finish_registration(&web.service, &call, request);
    let reply = web.carry_out(&call, work).await?;
    Ok(Json(json!({ "device": reply.device.as_ref().map(view) })).into_response())
}

/// Removes one.
pub(super) async fn remove(
    State(web): State<Arc<Web>>,
    asked: Asked,
    Path(device_id): Path<String>,
) -> Result<Response, Problem> {
    let call = asked.call("DeleteWebAuthnDevice")?;
    let request = v1::DeleteWebAuthnDeviceRequest { device_id };
    let work = rpc::webauthn::delete(&web.service, &call, request);
    let v1::DeleteWebAuthnDeviceResponse {} = web.carry_out(&call, work).await?;
    Ok(Json(json!({})).into_response())
}

/// A challenge, its options as JSON of their own.
pub(super) fn challenge(challenge_id: String, options_json: &str) -> Result<Value, Problem> {
    let malformed = |error: serde_json::Error| {
        ApiError::Internal(format!("the options of a challenge are no JSON: {error}")).into_problem("")
    };
    let options: Value = serde_json::from_str(options_json).map_err(malformed)?;
    Ok(json!({ "challenge_id": challenge_id, "options": options }))
}

fn view(device: &v1::WebAuthnDevice) -> Value {
    json!({
        "id": device.device_id,
        "name": device.name,
        "created_at": device.created_at.map(|time| time.to_string()),
        "last_used_at": device.last_used_at.map(|time| time.to_string()),
        "passkey": device.passkey,
        "relying_party_id": device.relying_party_id,
    })
}
