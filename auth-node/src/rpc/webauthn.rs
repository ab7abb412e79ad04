//! WebAuthn: logging in with an authenticator, and users' devices.

use auth_core::{CoreError, names::DeviceId, session::Listed, tables::DeviceRow, webauthn::device};
use mezite_proto::v1;

use super::{convert, sessions};
use crate::{
    authn::Call,
    error::ApiError,
    service::Service,
    webauthn::{self, LoggedIn, Registered},
};

/// Begins a login.
pub(crate) async fn begin_login(
    service: &Service,
    call: &Call,
    request: v1::BeginWebAuthnLoginRequest,
) -> Result<v1::BeginWebAuthnLoginResponse, ApiError> {
    let begun = webauthn::begin_login(service, call, &request.username).await?;
    Ok(v1::BeginWebAuthnLoginResponse { challenge_id: begun.challenge_id, options_json: begun.options_json })
}

/// Exchanges an authenticator's answer for a session.
pub(crate) async fn finish_login(
    service: &Service,
    call: &Call,
    request: v1::FinishWebAuthnLoginRequest,
) -> Result<v1::FinishWebAuthnLoginResponse, ApiError> {
    let v1::FinishWebAuthnLoginRequest { challenge_id, credential_json } = request;
    Ok(logged_in(webauthn::finish_login(service, call, &challenge_id, &credential_json).await?))
}

/// Exchanges an authenticator's answer for a session, where a password came before it.
pub(crate) async fn finish_step_up(
    service: &Service,
    call: &Call,
    challenge_id: &str,
    credential_json: &str,
) -> Result<v1::FinishWebAuthnLoginResponse, ApiError> {
    Ok(logged_in(webauthn::finish_step_up(service, call, challenge_id, credential_json).await?))
}

fn logged_in(LoggedIn { session_id, session }: LoggedIn) -> v1::FinishWebAuthnLoginResponse {
    let last_used_ms = session.created_at_ms;
    v1::FinishWebAuthnLoginResponse {
        session_id: session_id.as_str().to_owned(),
        session: Some(sessions::session(Listed { session, last_used_ms })),
    }
}

/// Begins the registration of a device of the caller.
pub(crate) async fn begin_registration(
    service: &Service,
    call: &Call,
    request: v1::BeginWebAuthnRegistrationRequest,
) -> Result<v1::BeginWebAuthnRegistrationResponse, ApiError> {
    let begun = webauthn::begin_registration(service, call, request.passkey).await?;
    Ok(v1::BeginWebAuthnRegistrationResponse {
        challenge_id: begun.challenge_id,
        options_json: begun.options_json,
    })
}

/// Registers a device of the caller.
pub(crate) async fn finish_registration(
    service: &Service,
    call: &Call,
    request: v1::FinishWebAuthnRegistrationRequest,
) -> Result<v1::FinishWebAuthnRegistrationResponse, ApiError> {
    let v1::FinishWebAuthnRegistrationRequest { challenge_id, credential_json, name } = request;
    let Registered { id, device } =
        webauthn::finish_registration(service, call, &challenge_id, &credential_json, &name).await?;
    Ok(v1::FinishWebAuthnRegistrationResponse { device: Some(reply(id, device)) })
}

/// Lists the caller's devices, ordered by id.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListWebAuthnDevicesRequest,
) -> Result<v1::ListWebAuthnDevicesResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token)?;
    let page = service.read(call, move |view, context| device::list(view, context, &page)).await?;
    let page = page.map(|(id, row)| reply(id, row));
    Ok(v1::ListWebAuthnDevicesResponse {
        devices: page.items,
        next_page_token: convert::page_token(page.next),
    })
}

/// Removes a device of the caller.
pub(crate) async fn delete(
    service: &Service,
    call: &Call,
    request: v1::DeleteWebAuthnDeviceRequest,
) -> Result<v1::DeleteWebAuthnDeviceResponse, ApiError> {
    let refused = || CoreError::invalid("device_id", "32 hexadecimal digits, as lists show it");
    let id = DeviceId::parse(&request.device_id).ok_or_else(refused)?;
    service.write(call, move |tx, context| device::delete(tx, context, &id)).await?;
    Ok(v1::DeleteWebAuthnDeviceResponse {})
}

/// A device as its user sees it.
fn reply(id: DeviceId, device: DeviceRow) -> v1::WebAuthnDevice {
    v1::WebAuthnDevice {
        device_id: id.into(),
        created_at: Some(convert::timestamp(device.created_at_ms)),
        last_used_at: webauthn::last_used(&device).map(convert::timestamp),
        name: device.name,
        passkey: device.passkey,
        relying_party_id: device.relying_party,
    }
}
