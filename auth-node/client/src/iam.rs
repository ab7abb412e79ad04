//! Joining by an AWS identity: a request that asks AWS who one is, signed over a challenge and never sent, so that the
//! cluster can ask it in one's stead.
//!
//! AWS's own library finds the credentials, as it does for any program of AWS's users, and signs. What it has signed is
//! taken from it where it would go out to the network, for which it is given none.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use aws_config::{BehaviorVersion, Region};
use aws_sdk_sts::config::{
    ConfigBag, Credentials, HttpClient, Intercept, ProvideCredentials as _, RuntimeComponents,
    http::HttpRequest, interceptors::BeforeTransmitInterceptorContextMut, retry::RetryConfig,
};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        http::{HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
        result::ConnectorError,
    },
};
use futures::{StreamExt as _, future, stream};
use mezite_proto::v1::{
    RegisterUsingIamMethodRequest, register_using_iam_method_request as asked,
    register_using_iam_method_response as told,
};
use tokio::sync::oneshot;
use tonic::{Response, Status};

use crate::{AuthClient, Client, ClientError, Retry};

/// Why there is no join by an AWS identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IamError {
    /// The environment names no region.
    #[error("no AWS region is known: give one, or set AWS_REGION")]
    NoRegion,
    /// The environment has no credentials.
    #[error("no AWS credentials were found: {0}")]
    NoCredentials(String),
    /// The request could not be signed.
    #[error("the request to AWS STS could not be signed: {0}")]
    Signing(String),
    /// The call failed.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Signs as an AWS identity.
pub struct IamSigner {
    config: aws_sdk_sts::config::Builder,
    region: String,
}

impl fmt::Debug for IamSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IamSigner").field("region", &self.region).finish_non_exhaustive()
    }
}

impl IamSigner {
    /// With the credentials that AWS's standard chain finds: environment, profile, web identity, container, instance. The
    /// region is the one given, or else what the chain says.
    ///
    /// # Errors
    /// [`IamError::NoRegion`], [`IamError::NoCredentials`].
    pub async fn from_environment(region: Option<String>) -> Result<Self, IamError> {
        let mut chain = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = region {
            chain = chain.region(Region::new(region));
        }
        let found = chain.load().await;
        let region = found.region().ok_or(IamError::NoRegion)?.to_string();
        let provider = found
            .credentials_provider()
            .ok_or_else(|| IamError::NoCredentials("there is no provider of any".into()))?;
        // Now, while nobody waits for them.
        let credentials = provider.provide_credentials().await;
        let credentials = credentials.map_err(|error| IamError::NoCredentials(described(&error)))?;
        Ok(Self::new((&found).into(), credentials, region))
    }

    fn new(config: aws_sdk_sts::config::Builder, credentials: Credentials, region: String) -> Self {
        let config = config
            .region(Region::new(region.clone()))
            .credentials_provider(credentials)
            // The cluster knows one endpoint of each region.
            .use_fips(false)
            .use_dual_stack(false)
            .retry_config(RetryConfig::disabled());
        Self { config, region }
    }

    /// Signs for a challenge.
    ///
    /// # Errors
    /// [`IamError::Signing`].
    pub async fn sign(&self, challenge: &str) -> Result<asked::Proof, IamError> {
        let captured = Captured::default();
        let config = self.config.clone().http_client(captured.clone()).build();
        let question = aws_sdk_sts::Client::from_conf(config).get_caller_identity().customize();
        let sent = question.interceptor(ExactHeaders { challenge: challenge.to_owned() }).send().await;
        let Some(request) = captured.take() else {
            let reason = sent.err().map(|error| described(&error));
            return Err(IamError::Signing(reason.unwrap_or_else(|| "nothing was signed".into())));
        };
        let header = |name: &str| request.headers().get(name).unwrap_or_default().to_owned();
        Ok(asked::Proof {
            region: self.region.clone(),
            authorization: header("authorization"),
            amz_date: header("x-amz-date"),
            security_token: header("x-amz-security-token"),
        })
    }
}

impl Client {
    /// Joins by an AWS identity: certificates and registration in one. By the same keys and names it is the same join, so
    /// it may be repeated.
    ///
    /// # Errors
    /// See [`IamError`] and [`ClientError`].
    pub async fn register_using_iam(
        &self,
        signer: &IamSigner,
        init: asked::Init,
    ) -> Result<told::Joined, IamError> {
        let attempt =
            |auth: AuthClient, init| async move { exchange(auth, init, signer).await.map(Response::new) };
        self.call(Retry::Idempotent, init, attempt).await?
    }
}

/// One call: asks, is given a challenge, proves, and is told what came of it. A failure to sign is no matter of the call's.
async fn exchange(
    mut auth: AuthClient,
    init: asked::Init,
    signer: &IamSigner,
) -> Result<Result<told::Joined, IamError>, Status> {
    let request = |message| RegisterUsingIamMethodRequest { message: Some(message) };
    let (prove, proof) = oneshot::channel();
    let first = stream::once(future::ready(request(asked::Message::Init(init))));
    let second = stream::once(proof).filter_map(|proof| future::ready(proof.ok()));
    let mut replies = auth.register_using_iam_method(first.chain(second)).await?.into_inner();
    let mut next = async || Ok::<_, Status>(replies.message().await?.and_then(|reply| reply.message));
    let odd = || Status::internal("the cluster's answer is none to this call");

    let Some(told::Message::Challenge(challenge)) = next().await? else { return Err(odd()) };
    match signer.sign(&challenge).await {
        Ok(proof) => drop(prove.send(request(asked::Message::Proof(proof)))),
        Err(error) => return Ok(Err(error)),
    }
    match next().await? {
        Some(told::Message::Joined(joined)) => Ok(Ok(joined)),
        _ => Err(odd()),
    }
}

/// Leaves of a request, before it is signed, what the cluster will rebuild, and adds the challenge.
#[derive(Debug)]
struct ExactHeaders {
    challenge: String,
}

impl Intercept for ExactHeaders {
    fn name(&self) -> &'static str {
        "ExactHeaders"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let headers = context.request_mut().headers_mut();
        let names: Vec<_> = headers.iter().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            headers.remove(name);
        }
        headers.try_insert("accept", "application/json")?;
        headers.try_insert("content-type", "application/x-www-form-urlencoded")?;
        headers.try_insert("x-mezite-challenge", self.challenge.clone())?;
        Ok(())
    }
}

/// In place of the network: keeps the request, and says that it was not sent.
#[derive(Debug, Clone, Default)]
struct Captured(Arc<Mutex<Option<HttpRequest>>>);

impl Captured {
    fn take(&self) -> Option<HttpRequest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl HttpConnector for Captured {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(request);
        HttpConnectorFuture::ready(Err(ConnectorError::user("it is not sent".into())))
    }
}

impl HttpClient for Captured {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

/// An error and its sources.
fn described(error: &dyn Error) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(source) = next {
        text.push_str(&format!(": {source}"));
        next = source.source();
    }
    text
}

#[cfg(test)]
#[path = "iam_tests.rs"]
mod tests;
