//! An authenticator in software, with the client that stands between it and a relying party: what a browser makes of a security key or
//! a platform. It does as it is told, also what no honest one does.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const USER_PRESENT: u8 = 0x01;
const USER_VERIFIED: u8 = 0x04;
const ATTESTED_CREDENTIAL: u8 = 0x40;

/// An authenticator, and its credentials.
pub struct Authenticator {
    /// Origin of the page that asks it.
    pub origin: String,
    /// Whether it verifies its user.
    pub verifies: bool,
    /// By how much its counter rises with each signature; 0: it stands still.
    pub step: u32,
    /// Signs for this relying party rather than the one that asks.
    pub relying_party: Option<String>,
    /// Signs this challenge rather than the one that was sent.
    pub challenge: Option<Vec<u8>>,
    /// Says that this is the user.
    pub user_handle: Option<Vec<u8>>,
    credentials: Vec<Credential>,
}

/// A credential.
struct Credential {
    id: Vec<u8>,
    key: KeyPair,
    relying_party: String,
    user: Vec<u8>,
    counter: u32,
}

impl Authenticator {
    /// One whose pages are at this origin; it verifies its user, and counts.
    #[must_use]
    pub fn new(origin: &str) -> Self {
        Self {
            origin: origin.to_owned(),
            verifies: true,
            step: 1,
            relying_party: None,
            challenge: None,
            user_handle: None,
            credentials: Vec::new(),
        }
    }

    /// Makes a credential as PublicKeyCredentialCreationOptions ask, JSON, and answers a RegistrationResponseJSON.
    pub fn create(&mut self, options: &str) -> String {
        let options: Value = serde_json::from_str(options).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let id = rand::random::<[u8; 32]>().to_vec();
        let relying_party = options["rp"]["id"].as_str().unwrap().to_owned();
        let mut attested = vec![0; 16];
        attested.extend(u16::try_from(id.len()).unwrap().to_be_bytes());
        attested.extend(&id);
        attested.extend(cose(&key));
        let auth_data = self.auth_data(&relying_party, ATTESTED_CREDENTIAL, 0, &attested);
        let mut attestation = vec![0xa3];
        attestation.extend(b"\x63fmt\x64none\x67attStmt\xa0\x68authData");
        attestation.push(0x59);
        attestation.extend(u16::try_from(auth_data.len()).unwrap().to_be_bytes());
        attestation.extend(auth_data);
        let answer = json!({
            "id": text(&id),
            "rawId": text(&id),
            "type": "public-key",
            "clientExtensionResults": {},
            "response": {
                "clientDataJSON": text(self.client_data("webauthn.create", &options).as_bytes()),
                "attestationObject": text(&attestation),
                "transports": ["usb"],
            },
        });
        let user = bytes(&options["user"]["id"]);
        self.credentials.push(Credential { id, key, relying_party, user, counter: 0 });
        answer.to_string()
    }

    /// Signs as PublicKeyCredentialRequestOptions ask, JSON, with the first of its credentials that is asked for, and answers an
    /// AuthenticationResponseJSON. `None`: it has none of them.
    pub fn get(&mut self, options: &str) -> Option<String> {
        let options: Value = serde_json::from_str(options).unwrap();
        let allowed: Vec<_> =
            options["allowCredentials"].as_array().unwrap().iter().map(|it| bytes(&it["id"])).collect();
        let asked = |credential: &Credential| {
            credential.relying_party == options["rpId"]
                && (allowed.is_empty() || allowed.contains(&credential.id))
        };
        let index = self.credentials.iter().position(asked)?;
        Some(self.sign(index, &options, allowed.is_empty()))
    }

    /// Signs with its first credential, whatever is asked for.
    pub fn force(&mut self, options: &str) -> String {
        self.sign(0, &serde_json::from_str(options).unwrap(), false)
    }

    fn sign(&mut self, index: usize, options: &Value, discovered: bool) -> String {
        let client_data = self.client_data("webauthn.get", options);
        let relying_party = options["rpId"].as_str().unwrap().to_owned();
        let (step, told) = (self.step, self.user_handle.clone());
        let credential = self.credentials.get_mut(index).unwrap();
        credential.counter += step;
        let (counter, id) = (credential.counter, credential.id.clone());
        let user = told.or_else(|| discovered.then(|| credential.user.clone()));
        let auth_data = self.auth_data(&relying_party, 0, counter, &[]);
        let mut signed = auth_data.clone();
        signed.extend(Sha256::digest(&client_data));
        let signature = self.credentials.get(index).unwrap().key.sign(&signed).unwrap();
        let mut response = json!({
            "clientDataJSON": text(client_data.as_bytes()),
            "authenticatorData": text(&auth_data),
            "signature": text(&signature),
        });
        if let (Some(user), Some(response)) = (user, response.as_object_mut()) {
            response.insert("userHandle".into(), text(&user).into());
        }
        let answer = json!({
            "id": text(&id),
            "rawId": text(&id),
            "type": "public-key",
            "clientExtensionResults": {},
            "response": response,
        });
        answer.to_string()
    }

    fn client_data(&self, kind: &str, options: &Value) -> String {
        let challenge = self.challenge.clone().unwrap_or_else(|| bytes(&options["challenge"]));
        let data = json!({
            "type": kind,
            "challenge": text(&challenge),
            "origin": self.origin,
            "crossOrigin": false,
        });
        data.to_string()
    }

    fn auth_data(&self, relying_party: &str, flags: u8, counter: u32, attested: &[u8]) -> Vec<u8> {
        let relying_party = self.relying_party.as_deref().unwrap_or(relying_party);
        let mut data = Sha256::digest(relying_party).to_vec();
        data.push(flags | USER_PRESENT | if self.verifies { USER_VERIFIED } else { 0 });
        data.extend(counter.to_be_bytes());
        data.extend(attested);
        data
    }
}

/// The public key, as COSE has it (RFC 9053, section 7.1.1).
fn cose(key: &KeyPair) -> Vec<u8> {
    // An uncompressed point.
    let (x, y) = key.der_bytes().get(1..).unwrap().split_at(32);
    let mut cose = vec![0xa5, 0x01, 0x02, 0x03, 0x26, 0x20, 0x01, 0x21, 0x58, 0x20];
    cose.extend(x);
    cose.extend([0x22, 0x58, 0x20]);
    cose.extend(y);
    cose
}

fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn bytes(value: &Value) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(value.as_str().unwrap()).unwrap()
}
