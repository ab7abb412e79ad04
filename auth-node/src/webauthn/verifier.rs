//! What is asked of authenticators, and whether their answers are good: webauthn-rs, and what this product makes of it.
//!
//! A state is what webauthn-rs keeps of a ceremony: the challenge, and whether the user must be verified. The credentials of a login are
//! not in it: whoever finishes finds the one that was shown. So states are alike whoever is asked for.

use auth_core::{
    CoreError,
    tables::Purpose,
    webauthn::{RelyingParty, device::Registrant},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use webauthn_rs::prelude::{
    AttestationFormat, Credential, DiscoverableAuthentication, ParsedAttestation, PasskeyRegistration,
    PublicKeyCredential, RegisterPublicKeyCredential, SecurityKeyRegistration, Url, Uuid, Webauthn,
    WebauthnBuilder, WebauthnError,
};

use crate::error::ApiError;

/// A credential that is nobody's, which the answer is verified with where there is none. Whoever signs with its key, the base
/// point of P-256, is refused all the same.
const NOBODYS: &str = r#"{
    "cred_id": "",
    "cred": {"type_": "ES256", "key": {"EC_EC2": {
        "curve": "SECP256R1",
        "x": "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY",
        "y": "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU"
    }}},
    "counter": 0,
    "transports": null,
    "user_verified": false,
    "backup_eligible": false,
    "backup_state": false,
    "registration_policy": "preferred",
    "extensions": {},
    "attestation": {"data": "None", "metadata": "None"},
    "attestation_format": "none"
}"#;

/// Asks authenticators, for a relying party.
pub(super) struct Verifier(Webauthn);

/// A credential that was registered.
pub(super) struct Verified {
    /// Its id.
    pub(super) credential_id: Vec<u8>,
    /// Public key and properties, for [`Verifier::finish_login`].
    pub(super) credential: Vec<u8>,
    /// Signature counter.
    pub(super) counter: u32,
}

/// An authenticator's answer to a login.
pub(super) struct Answer(PublicKeyCredential);

impl Answer {
    /// Id of the credential that it is of.
    pub(super) fn credential_id(&self) -> &[u8] {
        self.0.get_credential_id()
    }
}

/// Reads an authenticator's answer to a login.
///
/// # Errors
/// [`CoreError::Invalid`] for `credential_json`.
pub(super) fn assertion(json: &str) -> Result<Answer, CoreError> {
    read(json, "an AuthenticationResponseJSON of WebAuthn").map(Answer)
}

/// Reads an authenticator's answer to a registration.
///
/// # Errors
/// [`CoreError::Invalid`] for `credential_json`.
pub(super) fn attestation(json: &str) -> Result<RegisterPublicKeyCredential, CoreError> {
    read(json, "a RegistrationResponseJSON of WebAuthn")
}

fn read<T: DeserializeOwned>(json: &str, what: &str) -> Result<T, CoreError> {
    // What serde says could repeat parts of it.
    serde_json::from_str(json).map_err(|error| {
        let reason = format!("this is not {what}: see line {}, column {}", error.line(), error.column());
        CoreError::invalid("credential_json", reason)
    })
}

/// How options name a credential.
pub(super) fn descriptor(id: &[u8]) -> Value {
    json!({"type": "public-key", "id": URL_SAFE_NO_PAD.encode(id)})
}

fn failed(error: impl std::fmt::Display) -> ApiError {
    ApiError::Internal(format!("WebAuthn: {error}"))
}

fn state(state: &impl Serialize) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(state).map_err(failed)
}

impl Verifier {
    /// For a relying party, which authenticators show as the cluster.
    ///
    /// # Errors
    /// [`ApiError::Internal`] for one that was not checked.
    pub(super) fn new(relying_party: &RelyingParty, cluster: &str) -> Result<Self, ApiError> {
        let origins: Result<Vec<_>, _> =
            relying_party.origins.iter().map(|origin| Url::parse(origin)).collect();
        let origins = origins.map_err(failed)?;
        let (first, others) = origins.split_first().ok_or_else(|| failed("there is no origin"))?;
        let mut builder = WebauthnBuilder::new(&relying_party.id, first).map_err(failed)?.rp_name(cluster);
        for origin in others {
            builder = builder.append_allowed_origin(origin);
        }
        builder.build().map(Self).map_err(failed)
    }

    /// Asks for the credentials of a login for which the user must be verified. Which credentials is for the caller to add.
    ///
    /// # Errors
    /// [`ApiError::Internal`].
    pub(super) fn begin_login(&self) -> Result<(Value, Vec<u8>), ApiError> {
        let (options, asked) = self.0.start_discoverable_authentication().map_err(failed)?;
        Ok((serde_json::to_value(options.public_key).map_err(failed)?, state(&asked)?))
    }

    /// The same after a password: the user is verified where the device can, and must be where it did when it was registered.
    ///
    /// # Errors
    /// [`ApiError::Internal`].
    pub(super) fn begin_step_up(&self) -> Result<(Value, Vec<u8>), ApiError> {
        let (mut options, asked) = self.0.start_securitykey_authentication(&[]).map_err(failed)?;
        // Passkeys serve as well.
        options.public_key.hints = None;
        Ok((serde_json::to_value(options.public_key).map_err(failed)?, state(&asked)?))
    }

    /// Verifies the answer to a login: with the credential that was shown and its user's handle, if it is one that was asked for.
    /// Answers the signature counter, which is compared elsewhere, or what is wrong, for the audit log alone. It takes as long
    /// without a credential.
    pub(super) fn finish_login(
        &self,
        state: &[u8],
        answer: &Answer,
        known: Option<(&[u8], [u8; 16])>,
        named: bool,
    ) -> Result<u32, String> {
        let stored = known.map_or(NOBODYS.as_bytes(), |(credential, _)| credential);
        let mut credential: Credential =
            serde_json::from_slice(stored).map_err(|error| format!("a stored credential: {error}"))?;
        if known.is_none() {
            credential.cred_id = answer.credential_id().to_vec();
        }
        // Both kinds of login keep the same: webauthn-rs calls this one discoverable, since the credential is found afterwards.
        let state: DiscoverableAuthentication =
            serde_json::from_slice(state).map_err(|error| format!("a stored ceremony: {error}"))?;
        let verified = self.0.finish_discoverable_authentication_v2(&answer.0, state, &credential);
        let Some((_, handle)) = known else {
            return Err("the credential is not one that was asked for".into());
        };
        let verified = verified.map_err(said)?;
        match answer.0.get_user_unique_id() {
            None if named => {}
            Some(shown) if shown == handle => {}
            // Some send an empty one for none.
            Some([]) if named => {}
            _ => return Err("the user handle is not that of the credential's user".into()),
        }
        Ok(verified.counter())
    }

    /// Asks for a new credential: a discoverable one whose user is verified, for a passkey.
    ///
    /// # Errors
    /// [`ApiError::Internal`].
    pub(super) fn begin_registration(
        &self,
        registrant: &Registrant,
        purpose: Purpose,
    ) -> Result<(Value, Vec<u8>), ApiError> {
        let (id, name) = (Uuid::from_bytes(registrant.handle), registrant.user.as_str());
        let has = Some(registrant.credentials.clone());
        if purpose != Purpose::Passkey {
            let (options, asked) =
                self.0.start_securitykey_registration(id, name, name, has, None, None).map_err(failed)?;
            return Ok((serde_json::to_value(options.public_key).map_err(failed)?, state(&asked)?));
        }
        let (options, asked) = self.0.start_passkey_registration(id, name, name, has).map_err(failed)?;
        let mut options = serde_json::to_value(options.public_key).map_err(failed)?;
        // webauthn-rs would have an authenticator make a discoverable credential only if it likes.
        if let Some(selection) = options.get_mut("authenticatorSelection").and_then(Value::as_object_mut) {
            selection.insert("residentKey".into(), "required".into());
            selection.insert("requireResidentKey".into(), true.into());
        }
        Ok((options, state(&asked)?))
    }

    /// Verifies the answer to a registration: what the credential is, or what is wrong. What tells of the device's maker is left
    /// out: it was not asked for.
    pub(super) fn finish_registration(
        &self,
        purpose: Purpose,
        state: &[u8],
        answer: &RegisterPublicKeyCredential,
    ) -> Result<Verified, String> {
        let stored = |error: serde_json::Error| format!("a stored ceremony: {error}");
        let mut credential: Credential = if purpose == Purpose::Passkey {
            let state: PasskeyRegistration = serde_json::from_slice(state).map_err(stored)?;
            self.0.finish_passkey_registration(answer, &state).map_err(said)?.into()
        } else {
            let state: SecurityKeyRegistration = serde_json::from_slice(state).map_err(stored)?;
            self.0.finish_securitykey_registration(answer, &state).map_err(said)?.into()
        };
        credential.transports = None;
        credential.attestation = ParsedAttestation::default();
        credential.attestation_format = AttestationFormat::None;
        // The one that counts is compared where the session is made.
        let counter = std::mem::take(&mut credential.counter);
        Ok(Verified {
            credential_id: credential.cred_id.clone(),
            credential: serde_json::to_vec(&credential).map_err(stored)?,
            counter,
        })
    }
}

fn said(error: WebauthnError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobodys_credential_says_is_read() {
        let credential: Credential = serde_json::from_str(NOBODYS).unwrap();
        assert_eq!(credential.counter, 0);
    }

    #[test]
    fn what_is_no_answer_names_its_field_and_repeats_nothing_of_it() {
        for bad in ["", "{", "[]", r#"{"id": "hunter2"}"#] {
            for refused in [assertion(bad).err(), attestation(bad).err()] {
                let refused = refused.unwrap();
                assert!(matches!(&refused, CoreError::Invalid { field, .. } if field == "credential_json"));
                assert!(!refused.to_string().contains("hunter2"));
            }
        }
    }
}
