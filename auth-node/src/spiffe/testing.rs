//! A trust domain that signs JWT-SVIDs, for tests: what is in a token is theirs to say, so that nothing stands between them and
//! what is wrong with it.

use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{self, EcdsaKeyPair, KeyPair as _, RsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

enum Key {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// A key that signs tokens, with an id.
pub(crate) struct Issuer {
    key: Key,
    pub(crate) key_id: String,
}

impl Issuer {
    pub(crate) fn new(key_id: &str) -> Self {
        let key = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { key: Key::Ec(key), key_id: key_id.into() }
    }

    pub(crate) fn rsa(key_id: &str) -> Self {
        Self { key: Key::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()), key_id: key_id.into() }
    }

    /// The public key, as a bundle has it.
    pub(crate) fn jwk(&self) -> Value {
        let public = self.public();
        match &self.key {
            Key::Ec(_) => json!({
                "use": "jwt-svid", "kid": self.key_id, "kty": "EC", "crv": "P-256",
                "x": base64(&public[1..33]), "y": base64(&public[33..]),
            }),
            // In its DER form (RFC 8017, A.1.1), what is in front of the modulus of 2048 bits has nine bytes.
            Key::Rsa(_) => json!({
                "use": "jwt-svid", "kid": self.key_id, "kty": "RSA", "n": base64(&public[9..265]), "e": "AQAB",
            }),
        }
    }

    fn public(&self) -> Vec<u8> {
        match &self.key {
            Key::Ec(key) => key.public_key().as_ref().to_vec(),
            Key::Rsa(key) => key.public_key().as_ref().to_vec(),
        }
    }

    /// A token, as SPIRE would make it.
    pub(crate) fn token(&self, claims: &Value) -> String {
        let alg = if matches!(self.key, Key::Ec(_)) { "ES256" } else { "RS256" };
        self.with_header(&json!({ "alg": alg, "kid": self.key_id, "typ": "JWT" }), claims)
    }

    /// A token with this header, signed as the key signs.
    pub(crate) fn with_header(&self, header: &Value, claims: &Value) -> String {
        let signed = signed(header, claims);
        let random = SystemRandom::new();
        let signature = match &self.key {
            Key::Ec(key) => key.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec(),
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature).unwrap();
                signature
            }
        };
        format!("{signed}.{}", base64(signature))
    }

    /// A token whose signature is an HMAC with the public key as its secret.
    pub(crate) fn confused(&self, header: &Value, claims: &Value) -> String {
        let signed = signed(header, claims);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.public());
        format!("{signed}.{}", base64(hmac::sign(&key, signed.as_bytes())))
    }
}

/// What is signed in a token.
pub(crate) fn signed(header: &Value, claims: &Value) -> String {
    format!("{}.{}", base64(header.to_string()), base64(claims.to_string()))
}

/// What a token says: of a workload, for an audience, for five minutes from now (Unix seconds). No two are the same.
pub(crate) fn claims(sub: &str, audience: &str, now: u64) -> Value {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_string();
    json!({ "sub": sub, "aud": [audience], "iat": now, "exp": now + 300, "jti": number })
}

/// The same token with another signature, as good as the first: of (r, s), (r, n - s) is one too.
pub(crate) fn with_other_signature(token: &str) -> String {
    /// The order of P-256 (SEC 2), most significant byte first.
    const ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let (signed, encoded) = token.rsplit_once('.').unwrap();
    let mut signature = URL_SAFE_NO_PAD.decode(encoded).unwrap();
    let order = hex::decode(ORDER).unwrap();
    let mut borrow = false;
    for index in (0..32).rev() {
        let s = &mut signature[32 + index];
        let (once, first) = order[index].overflowing_sub(*s);
        let (twice, second) = once.overflowing_sub(u8::from(borrow));
        *s = twice;
        borrow = first || second;
    }
    format!("{signed}.{}", base64(signature))
}
