//! Single sign-on: what is drawn, fetched and verified between the decisions of `auth_core::sso`. The API's methods and the
//! web pages' are thin over these functions.
//!
//! A browser is sent to a provider with a state, a nonce and a PKCE challenge, and gets a secret in a cookie. Nonce and verifier
//! are derived from that secret and the state: so any node can go on when the browser comes back, and what is stored of a
//! login, digests, is of no use to whoever reads it. The login is taken away in a transaction of its own before its code is
//! exchanged; what the provider says is decided on in another.

mod github;
mod http;
mod oidc;

use auth_core::{
    CoreError, Credential,
    names::{ConnectorName, SessionHandle},
    secret::{SecretDigest, SecretKind},
    session::NewSession,
    sso::{self, Claims, Done, NewLogin, Next, Program, Proved, Refusal, State, Taken, Way},
    tables::{AuthMethod, ProviderRow, SessionRow},
    webauthn::WebauthnSecret,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::FutureExt as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use store_txn::Read as _;
use zeroize::Zeroizing;

use self::http::Http;
pub(crate) use self::http::Outbound;
use crate::{authn::Call, error::ApiError, passwords, rpc::convert, service::Service};

/// Longest code of a provider, or of ours, that is looked at, in bytes.
const MAX_CODE: usize = 4096;
/// Longest secret of a browser that is looked at, in bytes.
const MAX_BROWSER: usize = 256;
/// Verifiers of programs, in bytes (RFC 7636, section 4.1).
const VERIFIER: std::ops::RangeInclusive<usize> = 43..=128;
/// Most claims of a user, and most values of one.
const MAX_CLAIMS: usize = 256;
const MAX_VALUES: usize = 2048;

/// What binds what a provider says to the one login that it is for.
struct Flow {
    /// Where the provider sends the browser.
    redirect: String,
    /// What it hands back.
    state: String,
    /// What is in what it signs.
    nonce: String,
    /// What the exchange of its code takes (RFC 7636).
    verifier: Zeroizing<String>,
}

impl Flow {
    fn new(
        service: &Service,
        connector: &ConnectorName,
        state: &str,
        secret: &str,
        browser: &str,
    ) -> Result<Self, CoreError> {
        Ok(Self {
            redirect: format!("{}/v1/webapi/sso/callback/{connector}", origin(service)?),
            state: state.to_owned(),
            nonce: derived("nonce", secret, browser).as_str().to_owned(),
            verifier: derived("verifier", secret, browser),
        })
    }
}

/// A value that whoever has the browser's secret and the state's alone can tell.
fn derived(what: &str, secret: &str, browser: &str) -> Zeroizing<String> {
    let hasher = Sha256::new().chain_update("mezite sso ").chain_update(what);
    let hasher = hasher.chain_update([0]).chain_update(secret).chain_update([0]).chain_update(browser);
    Zeroizing::new(URL_SAFE_NO_PAD.encode(hasher.finalize()))
}

/// Where browsers reach the cluster.
fn origin(service: &Service) -> Result<&str, CoreError> {
    service.settings.web_origin.as_deref().ok_or_else(|| {
        let reason = "single sign-on takes an address at which browsers reach the cluster: an operator has to set \
                      web.public_url in the configuration of the auth nodes, the same in all";
        CoreError::Precondition(reason.into())
    })
}

/// What a provider said, verified.
struct Said {
    subject: String,
    claims: Claims,
}

/// A session that has ended must not stand in the way of the next.
fn anonymous(call: &Call) -> Call {
    Call { credential: Credential::None, ..call.clone() }
}

fn new_session(id: &str) -> NewSession {
    NewSession {
        digest: SecretDigest::of(SecretKind::Session, id),
        handle: SessionHandle::from_random(rand::random()),
        method: AuthMethod::Sso,
    }
}

/// The page that a program has the person in front of it open, and what it shows. It is behind the `#`, which browsers send to
/// nobody.
///
/// # Errors
/// As of [`sso::way`]; [`CoreError::Precondition`] where browsers have no address; [`ApiError::Store`].
pub(crate) async fn page(
    service: &Service,
    call: &Call,
    connector: &str,
    program: &Program,
) -> Result<(String, String), ApiError> {
    let name = ConnectorName::parse("connector", connector)?;
    let wanted = name.clone();
    service.read(&anonymous(call), move |view, _| sso::way(view, &wanted)).await?;
    let (challenge, port, path) = (hex::encode(program.challenge()), program.port(), program.path());
    let fragment = format!("connector={name}&challenge={challenge}&port={port}&path={path}");
    Ok((format!("{}/web/sso#{fragment}", origin(service)?), confirmation(&challenge)))
}

/// The front of a challenge, as people compare it.
fn confirmation(challenge: &str) -> String {
    let front: String = challenge.chars().take(8).collect::<String>().to_uppercase();
    let (left, right) = front.split_at_checked(4).unwrap_or((&front, ""));
    format!("{left}-{right}")
}

/// A login that has begun.
pub(crate) struct Begun {
    /// Where the browser goes.
    pub(crate) url: String,
    /// The secret that it keeps.
    pub(crate) browser: Zeroizing<String>,
}

/// Begins a login by a connector, of a browser or of a program.
///
/// # Errors
/// As of [`page`]; [`ApiError::Busy`] for a network that begins too many; [`ApiError::Unavailable`] when the provider cannot
/// be asked.
pub(crate) async fn begin(
    service: &Service,
    call: &Call,
    connector: &str,
    program: Option<Program>,
) -> Result<Begun, ApiError> {
    let call = &anonymous(call);
    let name = ConnectorName::parse("connector", connector)?;
    let network = passwords::network(&call.origin.client_address);
    service.pace.admit(format!("sso:{network}"))?;
    let wanted = name.clone();
    let way = service.read(call, move |view, _| sso::way(view, &wanted)).await?;
    let (secret, browser) = (convert::secret(), convert::secret());
    let mut flow = Flow::new(service, &name, "", &secret, &browser)?;
    let provider = Provider::open(service, &way, network)?;
    let to = provider.prepare().await.map_err(|reason| unavailable(&way, &reason))?;
    let new = NewLogin {
        state: SecretDigest::of(SecretKind::SsoState, &secret),
        browser: SecretDigest::of(SecretKind::SsoBrowser, &browser),
        random: rand::random(),
        connector: name,
        revision: way.revision,
        program,
        secret: WebauthnSecret::from_random(rand::random()),
    };
    let place = service.write(call, move |tx, context| sso::begin(tx, context, &new)).await?.value;
    flow.state = State::text(place, &secret);
    let url = to.url(&flow).map_err(|reason| unavailable(&way, &reason))?;
    Ok(Begun { url, browser })
}

fn unavailable(way: &Way, reason: &str) -> ApiError {
    tracing::warn!(connector = way.name.as_str(), reason, "the provider of a single sign-on cannot be used");
    ApiError::Unavailable("the single sign-on provider cannot be asked now: try again, or log in another way")
}

/// A provider that is asked.
enum Provider<'a> {
    Oidc(oidc::Provider<'a>),
    Github(github::Provider<'a>),
}

/// What a browser is sent to.
enum Destination<'a> {
    Oidc(Box<oidc::Found<'a>>),
    Github(&'a github::Provider<'a>),
}

impl<'a> Provider<'a> {
    fn open(service: &Service, way: &'a Way, network: String) -> Result<Self, ApiError> {
        let open = |anchors: &[String]| -> Result<Http, ApiError> {
            let http = service.outbound.open(network, anchors)?;
            http.map_err(|reason| unavailable(way, &reason))
        };
        match &way.row.provider {
            Some(ProviderRow::Oidc(row)) => {
                Ok(Self::Oidc(oidc::Provider { row, http: open(&row.ca_certificates)? }))
            }
            Some(ProviderRow::Github(row)) => {
                Ok(Self::Github(github::Provider { row, http: open(&row.ca_certificates)? }))
            }
            Some(ProviderRow::Saml(_)) | None => {
                Err(ApiError::Internal(format!("connector {} is of no kind to log in by", way.name)))
            }
        }
    }

    /// Looks where browsers are sent to.
    async fn prepare(&self) -> Result<Destination<'_>, String> {
        match self {
            Self::Oidc(provider) => {
                provider.discover().boxed().await.map(|found| Destination::Oidc(Box::new(found)))
            }
            Self::Github(provider) => Ok(Destination::Github(provider)),
        }
    }

    /// Exchanges a code for what is said of its user.
    async fn prove(&self, flow: &Flow, secret: &str, code: &str, now_ms: u64) -> Result<Said, String> {
        match self {
            Self::Oidc(provider) => provider.prove(flow, secret, code, now_ms).boxed().await,
            Self::Github(provider) => provider.prove(flow, secret, code).boxed().await,
        }
    }
}

impl Destination<'_> {
    fn url(&self, flow: &Flow) -> Result<String, String> {
        match self {
            Self::Oidc(found) => found.url(flow),
            Self::Github(provider) => provider.url(flow),
        }
    }
}

/// What a browser brings back from a provider.
#[derive(Debug, Default)]
pub(crate) struct Back {
    pub(crate) state: String,
    pub(crate) code: String,
    /// Instead of a code.
    pub(crate) error: String,
    /// Who the provider is (RFC 9207), if it says so.
    pub(crate) issuer: Option<String>,
    /// The secret in the browser's cookie.
    pub(crate) browser: Option<Zeroizing<String>>,
}

/// What has become of a login.
pub(crate) struct Ended {
    /// The program that it is for.
    pub(crate) program: Option<Program>,
    /// The session, or a program's code.
    pub(crate) outcome: Result<Outcome, ApiError>,
}

/// What a login has ended with.
pub(crate) enum Outcome {
    /// A session: its id, and what it is.
    Session(Zeroizing<String>, SessionRow),
    /// What a program fetches its session with.
    Code(Zeroizing<String>),
}

/// Goes on with a login whose browser has come back from the provider of a connector, at any node.
///
/// # Errors
/// [`CoreError::Invalid`] for `connector`; [`ApiError::Store`]. What becomes of the login itself is in what is answered.
pub(crate) async fn end(
    service: &Service,
    call: &Call,
    connector: &str,
    back: Back,
) -> Result<Ended, ApiError> {
    let call = &anonymous(call);
    let name = ConnectorName::parse("connector", connector)?;
    let state = State::parse(&back.state);
    let browser = back.browser.as_deref().filter(|secret| secret.len() <= MAX_BROWSER);
    let digest = browser.map(|secret| SecretDigest::of(SecretKind::SsoBrowser, secret));
    let (taken_at, wanted) = (state.map(|(state, _)| state), name.clone());
    let taken = service.write(call, move |tx, _| Ok((sso::take(tx, taken_at, digest, &wanted)?, tx.now())));
    let (Taken { program, way }, now_ms) = taken.await?.value;
    let outcome = match (way, state, browser) {
        (Ok(way), Some((_, secret)), Some(browser)) => {
            let flow = Flow::new(service, &name, &back.state, secret, browser);
            match flow {
                Ok(flow) => prove(service, call, way, &flow, &back, now_ms, program.clone()).await,
                Err(error) => Err(error.into()),
            }
        }
        (Err(reason), ..) => refuse(service, call, &name, reason.to_owned(), Refusal::Anew).await,
        (Ok(_), ..) => refuse(service, call, &name, "there is no state".to_owned(), Refusal::Anew).await,
    };
    Ok(Ended { program, outcome })
}

async fn refuse<T: Send + 'static>(
    service: &Service,
    call: &Call,
    connector: &ConnectorName,
    reason: String,
    refusal: Refusal,
) -> Result<T, ApiError> {
    let connector = connector.clone();
    let refuse =
        service.decide(call, move |tx, context| Ok(sso::refuse(tx, context, &connector, &reason, refusal)));
    refuse.await
}

async fn prove(
    service: &Service,
    call: &Call,
    way: Way,
    flow: &Flow,
    back: &Back,
    now_ms: u64,
    program: Option<Program>,
) -> Result<Outcome, ApiError> {
    let said = match ask(service, call, &way, flow, back, now_ms).await? {
        Ok(said) => said,
        Err(reason) => return refuse(service, call, &way.name, reason, Refusal::Unproved).await,
    };
    let proved = Proved { way, subject: said.subject, claims: said.claims };
    let secret = convert::secret();
    let next = match program {
        None => Next::Session(new_session(&secret)),
        Some(program) => Next::Code(SecretDigest::of(SecretKind::SsoCode, &secret), program),
    };
    let concluded =
        service.decide(call, move |tx, context| sso::conclude(tx, context, &proved, &next)).await?;
    Ok(match concluded {
        Done::Session(session) => Outcome::Session(secret, session),
        Done::Code => Outcome::Code(secret),
    })
}

/// Asks the provider who has come back; or why it is not known, for the audit log.
async fn ask(
    service: &Service,
    call: &Call,
    way: &Way,
    flow: &Flow,
    back: &Back,
    now_ms: u64,
) -> Result<Result<Said, String>, ApiError> {
    if let (Some(ProviderRow::Oidc(row)), Some(issuer)) = (&way.row.provider, &back.issuer)
        && *issuer != row.issuer_url
    {
        return Ok(Err(format!("the answer is of another provider: {issuer}")));
    }
    if !back.error.is_empty() {
        return Ok(Err(format!("the provider answered: {}", back.error)));
    }
    if back.code.is_empty() || back.code.len() > MAX_CODE {
        return Ok(Err("the provider gave no code".into()));
    }
    let secret = auth_core::connector::open_secret(service.cas.kek(), &way.name, &way.row)?;
    let secret = std::str::from_utf8(&secret)
        .map_err(|_| ApiError::Internal(format!("the client secret of connector {} is no text", way.name)))?;
    let network = passwords::network(&call.origin.client_address);
    let provider = Provider::open(service, way, network)?;
    Ok(provider.prove(flow, secret, &back.code, now_ms).await)
}

/// Exchanges a program's code for its session.
///
/// # Errors
/// [`CoreError::Invalid`] for what is out of bounds; [`Refusal::Anew`] and [`Refusal::NotLetIn`]; [`ApiError::Store`].
pub(crate) async fn redeem(
    service: &Service,
    call: &Call,
    code: &str,
    verifier: &str,
) -> Result<(Zeroizing<String>, SessionRow), ApiError> {
    if code.len() > MAX_CODE {
        return Err(CoreError::invalid("code", format!("at most {MAX_CODE} bytes")).into());
    }
    if !VERIFIER.contains(&verifier.len()) || !verifier.bytes().all(|byte| byte.is_ascii_graphic()) {
        let reason = "43 to 128 visible ASCII characters, those of which the challenge is the SHA-256";
        return Err(CoreError::invalid("verifier", reason).into());
    }
    let id = convert::secret();
    let (code, verifier) = (SecretDigest::of(SecretKind::SsoCode, code), Sha256::digest(verifier).into());
    let new = new_session(&id);
    let call = &anonymous(call);
    let redeem = service.decide(call, move |tx, context| sso::redeem(tx, context, code, verifier, &new));
    Ok((id.clone(), redeem.await?))
}

/// Claims of a JSON object: texts, numbers and truths, and lists of those. What is more than so many is an error.
fn claims(object: &Value) -> Result<Claims, String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    let object = object.as_object().ok_or("the provider's claims are no object")?;
    if object.len() > MAX_CLAIMS {
        return Err(format!("there are more than {MAX_CLAIMS} claims"));
    }
    let mut claims = Claims::new();
    for (name, value) in object {
        let values: Vec<_> = match value {
            Value::Array(values) if values.len() > MAX_VALUES => {
                return Err(format!("claim {name} has more than {MAX_VALUES} values"));
            }
            Value::Array(values) => values.iter().filter_map(text).collect(),
            value => text(value).into_iter().collect(),
        };
        if !values.is_empty() {
            claims.insert(name.clone(), values);
        }
    }
    Ok(claims)
}

#[cfg(test)]
#[path = "sso/tests.rs"]
mod tests;
