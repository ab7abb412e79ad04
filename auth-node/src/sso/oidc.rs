//! OpenID Connect: the code flow with PKCE. An ID token counts when it is signed with a public key of the issuer's, is for this
//! client alone, of this login, fresh, and not past its end.

use std::collections::BTreeMap;

use auth_core::tables::OidcRow;
use chrono::{DateTime, TimeDelta, Utc};
use openidconnect::{
    AccessToken, AccessTokenHash, AdditionalClaims, AuthType, AuthorizationCode, Client, ClientId,
    ClientSecret, CsrfToken, EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet, EndpointSet, IdToken,
    IdTokenFields, IdTokenVerifier, IssuerUrl, JsonWebKeySet, Nonce, OAuth2TokenResponse as _,
    PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope, StandardErrorResponse, StandardTokenResponse,
    SubjectIdentifier, TokenResponse as _,
    core::{
        CoreAuthDisplay, CoreAuthPrompt, CoreAuthenticationFlow, CoreClientAuthMethod, CoreErrorResponseType,
        CoreGenderClaim, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm,
        CoreProviderMetadata, CoreRevocableToken, CoreRevocationErrorResponse,
        CoreTokenIntrospectionResponse, CoreTokenType,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Flow, Said, http::Http};

/// How an ID token may be signed: with a key of which the issuer publishes the public half. Never with the client's secret, and
/// never not at all, whatever the issuer says that it supports.
const SIGNED: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];
/// An ID token is made for the code that was just exchanged: it is no older than this, nor from further ahead.
const FRESH: TimeDelta = TimeDelta::minutes(10);

/// All claims that have no field of their own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Others {
    #[serde(flatten)]
    all: BTreeMap<String, Value>,
}

impl AdditionalClaims for Others {}

pub(super) type Token =
    IdToken<Others, CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm>;

type Tokens = StandardTokenResponse<
    IdTokenFields<
        Others,
        EmptyExtraTokenFields,
        CoreGenderClaim,
        CoreJweContentEncryptionAlgorithm,
        CoreJwsSigningAlgorithm,
    >,
    CoreTokenType,
>;

type OidcClient = Client<
    Others,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    Tokens,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// A provider, by its connector.
pub(super) struct Provider<'a> {
    pub(super) row: &'a OidcRow,
    pub(super) http: Http,
}

/// What a provider says of itself.
pub(super) struct Found<'a> {
    row: &'a OidcRow,
    metadata: CoreProviderMetadata,
}

impl<'a> Provider<'a> {
    /// Asks the issuer where its endpoints are, and for its keys (OpenID Connect Discovery).
    pub(super) async fn discover(&self) -> Result<Found<'a>, String> {
        let issuer = IssuerUrl::new(self.row.issuer_url.clone()).map_err(|error| error.to_string())?;
        let found = CoreProviderMetadata::discover_async(issuer, &self.http).await;
        let metadata = found.map_err(|error| told("the issuer's configuration", &error))?;
        Ok(Found { row: self.row, metadata })
    }

    /// Exchanges a code, and verifies what is said of its user. An error is for the audit log, and has no secret in it.
    pub(super) async fn prove(
        &self,
        flow: &Flow,
        secret: &str,
        code: &str,
        now_ms: u64,
    ) -> Result<Said, String> {
        let found = self.discover().await?;
        let client = found.client(Some(secret), flow)?;
        let exchange = client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .map_err(|error| error.to_string())?
            .set_pkce_verifier(PkceCodeVerifier::new(flow.verifier.as_str().to_owned()));
        let tokens = exchange
            .request_async(&self.http)
            .await
            .map_err(|error| told("the exchange of the code", &error))?;
        let token = tokens.id_token().ok_or("the provider gave no ID token")?;
        let now = i64::try_from(now_ms).ok().and_then(DateTime::from_timestamp_millis);
        let expected = Expected {
            client_id: &self.row.client_id,
            issuer: found.metadata.issuer(),
            keys: found.metadata.jwks(),
            nonce: &flow.nonce,
            now: now.ok_or("the time is out of bounds")?,
        };
        let (subject, mut claims) = expected.verify(token, tokens.access_token())?;
        if found.metadata.userinfo_endpoint().is_some() {
            let more = self.user_info(&client, tokens.access_token(), &subject).await?;
            with_more(&mut claims, more);
        }
        Ok(Said {
            subject: format!("{} {}", self.row.issuer_url, subject.as_str()),
            claims: super::claims(&Value::Object(claims))?,
        })
    }

    async fn user_info(
        &self,
        client: &OidcClient,
        access_token: &AccessToken,
        subject: &SubjectIdentifier,
    ) -> Result<serde_json::Map<String, Value>, String> {
        // It goes into a header.
        if !access_token.secret().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the provider's access token is none".into());
        }
        let request = client.user_info(access_token.clone(), Some(subject.clone()));
        let request = request.map_err(|error| error.to_string())?;
        let answered = request.request_async::<Others, _, CoreGenderClaim>(&self.http).await;
        let said = answered.map_err(|error| told("what more is said of the user", &error))?;
        object(serde_json::to_value(&said))
    }
}

impl Found<'_> {
    /// Where the browser is sent.
    pub(super) fn url(&self, flow: &Flow) -> Result<String, String> {
        let client = self.client(None, flow)?;
        let challenge = PkceCodeChallenge::from_code_verifier_sha256(&PkceCodeVerifier::new(
            flow.verifier.as_str().to_owned(),
        ));
        let (state, nonce) = (CsrfToken::new(flow.state.clone()), Nonce::new(flow.nonce.clone()));
        let (url, ..) = client
            .authorize_url(CoreAuthenticationFlow::AuthorizationCode, move || state, move || nonce)
            .add_scopes(self.row.scopes.iter().cloned().map(Scope::new))
            .set_pkce_challenge(challenge)
            .url();
        match url.scheme() {
            "https" => Ok(url.into()),
            _ => Err("the issuer's authorization endpoint is not at https://".into()),
        }
    }

    fn client(&self, secret: Option<&str>, flow: &Flow) -> Result<OidcClient, String> {
        let client = OidcClient::from_provider_metadata(
            self.metadata.clone(),
            ClientId::new(self.row.client_id.clone()),
            secret.map(|secret| ClientSecret::new(secret.to_owned())),
        );
        let supported = self.metadata.token_endpoint_auth_methods_supported();
        let in_body = supported.is_some_and(|methods| {
            !methods.contains(&CoreClientAuthMethod::ClientSecretBasic)
                && methods.contains(&CoreClientAuthMethod::ClientSecretPost)
        });
        let client = if in_body { client.set_auth_type(AuthType::RequestBody) } else { client };
        let redirect = RedirectUrl::new(flow.redirect.clone()).map_err(|error| error.to_string())?;
        Ok(client.set_redirect_uri(redirect))
    }
}

/// What an ID token must say.
pub(super) struct Expected<'a> {
    pub(super) client_id: &'a str,
    pub(super) issuer: &'a IssuerUrl,
    pub(super) keys: &'a JsonWebKeySet<CoreJsonWebKey>,
    pub(super) nonce: &'a str,
    pub(super) now: DateTime<Utc>,
}

impl Expected<'_> {
    /// Verifies an ID token and, where that speaks of it, the access token that came with it: whose they are, and all claims.
    pub(super) fn verify(
        &self,
        token: &Token,
        access_token: &AccessToken,
    ) -> Result<(SubjectIdentifier, serde_json::Map<String, Value>), String> {
        let now = self.now;
        let verifier = IdTokenVerifier::new_public_client(
            ClientId::new(self.client_id.to_owned()),
            self.issuer.clone(),
            self.keys.clone(),
        )
        .set_allowed_algs(SIGNED)
        .set_time_fn(move || now)
        .set_issue_time_verifier_fn(move |issued| match (now - issued).abs() <= FRESH {
            true => Ok(()),
            false => Err(format!("it was issued at {issued}, and it is {now}")),
        });
        let wrong = |error: &dyn std::error::Error| told("the ID token", error);
        let claims =
            token.claims(&verifier, &Nonce::new(self.nonce.to_owned())).map_err(|error| wrong(&error))?;
        if let Some(expected) = claims.access_token_hash() {
            let algorithm = token.signing_alg().map_err(|error| wrong(&error))?;
            let key = token.signing_key(&verifier).map_err(|error| wrong(&error))?;
            let actual = AccessTokenHash::from_token(access_token, algorithm, key);
            if actual.map_err(|error| wrong(&error))? != *expected {
                return Err("the access token is not the one that the ID token is of".into());
            }
        }
        let subject = claims.subject().clone();
        if !(1..=255).contains(&subject.as_str().len()) {
            return Err("the ID token's subject has not 1 to 255 characters".into());
        }
        Ok((subject, object(serde_json::to_value(claims))?))
    }
}

fn object(value: serde_json::Result<Value>) -> Result<serde_json::Map<String, Value>, String> {
    match value {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("the provider's claims are no object".into()),
        Err(error) => Err(format!("the provider's claims cannot be read: {error}")),
    }
}

/// An error and its sources, of what was tried.
fn told(what: &str, error: &dyn std::error::Error) -> String {
    let (mut text, mut next) = (format!("{what}: {error}"), error.source());
    while let Some(source) = next {
        text.push_str(&format!(": {source}"));
        next = source.source();
    }
    text
}

/// Adds what the provider says of a user beside what it has signed, which counts first. An address and whether it is verified
/// come from one of them.
fn with_more(signed: &mut serde_json::Map<String, Value>, more: serde_json::Map<String, Value>) {
    let has_address = signed.contains_key("email");
    if !has_address {
        signed.remove("email_verified");
    }
    for (name, value) in more {
        if !(has_address && name == "email_verified") {
            signed.entry(name).or_insert(value);
        }
    }
}

#[cfg(test)]
#[path = "oidc_tests.rs"]
mod tests;
