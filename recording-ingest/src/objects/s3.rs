//! A store in a bucket of S3, or of whatever speaks its protocol.
//!
//! Credentials and region are found as any program of AWS's users finds them. What a recording's objects are, and when they count
//! as durable, is not decided here.

use std::{fmt, sync::Arc, time::Duration};

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use futures::future::BoxFuture;
use mezite_daemon::clock;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, CredentialProvider, Error as ObjectError, ObjectStore,
    ObjectStoreExt as _, PutMode, PutOptions, RetryConfig,
    aws::{AmazonS3Builder, AwsCredential},
    path::Path,
    prefix::PrefixStore,
};
use tokio::sync::Mutex;

use super::StoreError;
use crate::config::S3Config;

/// A request that the store refuses, as it does under load, is repeated so often, and not after so long. Whoever writes may go to
/// another ingest meanwhile, and repeats by itself.
const RETRIES: usize = 6;
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);
const BACKOFF: BackoffConfig = BackoffConfig {
    init_backoff: Duration::from_millis(100),
    max_backoff: Duration::from_secs(3),
    base: 2.0,
};
/// Credentials that end sooner than this are asked for anew: a request is signed once, and repeated with that signature.
const FRESH: Duration = Duration::from_secs(300);
/// Credentials that do not end are looked at again after so long: whoever exchanges them need not restart the ingest.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Opens the bucket of `s3://BUCKET` or `s3://BUCKET/PREFIX`, and makes sure that it creates an object once.
///
/// # Errors
/// When the URL or the configuration is wrong, no credentials or region are found, the bucket cannot be reached or written, or
/// it creates an object although there is one.
pub(super) async fn open(url: &str, config: &S3Config) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let (bucket, prefix) = split(url).ok_or_else(|| failed(format!("{url} is not s3://BUCKET/PREFIX")))?;
    let mut chain = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = &config.region {
        chain = chain.region(Region::new(region.clone()));
    }
    let found = chain.load().await;
    let region = match (found.region(), &config.endpoint) {
        (Some(region), _) => region.to_string(),
        // What most servers of their own expect to be signed for.
        (None, Some(_)) => "us-east-1".to_owned(),
        (None, None) => return Err(failed("no AWS region is known: set s3.region, or AWS_REGION")),
    };
    let provider = found.credentials_provider();
    let credentials = Chain::new(provider.ok_or_else(|| failed("there is no provider of AWS credentials"))?);
    // Now, and not with the first recording.
    let known = credentials.get_credential().await;
    known.map_err(|error| failed(format!("no AWS credentials were found: {error}")))?;
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region)
        .with_credentials(Arc::new(credentials))
        .with_virtual_hosted_style_request(!config.path_style)
        // One object is deleted at a time, and not every server has the call for many.
        .with_disable_bulk_delete(true)
        .with_retry(RetryConfig { backoff: BACKOFF, max_retries: RETRIES, retry_timeout: RETRY_TIMEOUT })
        .with_client_options(client_options(config)?);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    let store = PrefixStore::new(builder.build().map_err(failed)?, prefix);
    check_conditional(&store).await?;
    Ok(Arc::new(store))
}

/// Bucket and prefix of the URL of a store.
pub(crate) fn split(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("s3://")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let prefix = prefix.trim_end_matches('/');
    let parts =
        prefix.is_empty() || prefix.split('/').all(|part| !part.is_empty() && part.chars().all(known));
    ((3..=63).contains(&bucket.len()) && bucket.chars().all(known) && parts).then_some((bucket, prefix))
}

fn client_options(config: &S3Config) -> Result<ClientOptions, StoreError> {
    let mut options = ClientOptions::new()
        .with_allow_http(config.allow_http)
        .with_timeout(config.request_timeout)
        .with_connect_timeout(config.connect_timeout);
    if let Some(file) = &config.ca_file {
        let unusable = |error: &dyn fmt::Display| failed(format!("{}: {error}", file.display()));
        let pem = std::fs::read(file).map_err(|error| unusable(&error))?;
        for certificate in Certificate::from_pem_bundle(&pem).map_err(|error| unusable(&error))? {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

/// Objects are never changed, and two replicas rely on it: a server that does not heed `If-None-Match` would lose recordings
/// silently.
async fn check_conditional(store: &impl ObjectStore) -> Result<(), StoreError> {
    let path = Path::from(format!("check/v1/{:032x}", rand::random::<u128>()));
    let create = |text: &'static str| {
        store.put_opts(&path, text.into(), PutOptions { mode: PutMode::Create, ..PutOptions::default() })
    };
    let first = create("one").await;
    let second = create("two").await;
    let left = store.delete(&path).await;
    match (first, second) {
        // The answer to the first one may have been lost.
        (Ok(_) | Err(ObjectError::AlreadyExists { .. }), Err(ObjectError::AlreadyExists { .. })) => {
            left.map_err(|error| failed(format!("the bucket does not let this ingest delete: {error}")))
        }
        (Err(error), _) | (Ok(_), Err(error)) => Err(failed(error)),
        (_, Ok(_)) => Err(failed(
            "the bucket takes an object where there is one: it does not heed If-None-Match, and cannot keep recordings",
        )),
    }
}

fn failed(error: impl fmt::Display) -> StoreError {
    StoreError::Failed(error.to_string())
}

/// AWS's standard chain of credentials: environment, profile, web identity, container, instance.
struct Chain {
    provider: SharedCredentialsProvider,
    /// The last ones, and until when they are used (Unix milliseconds).
    last: Mutex<Option<(Arc<AwsCredential>, u64)>>,
}

impl Chain {
    fn new(provider: SharedCredentialsProvider) -> Self {
        Self { provider, last: Mutex::default() }
    }

    async fn fetch(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut last = self.last.lock().await;
        let now = clock::unix_ms();
        if let Some((credential, until)) = last.as_ref()
            && now < *until
        {
            return Ok(Arc::clone(credential));
        }
        let found = self
            .provider
            .provide_credentials()
            .await
            .map_err(|error| ObjectError::Generic { store: "S3", source: Box::new(error) })?;
        let ends = found.expiry().and_then(|ends| ends.duration_since(std::time::UNIX_EPOCH).ok());
        let until = match ends {
            Some(ends) => ends.saturating_sub(FRESH).as_millis(),
            None => u128::from(now) + LOOK_AGAIN.as_millis(),
        };
        let credential = Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        });
        *last = Some((Arc::clone(&credential), u64::try_from(until).unwrap_or(u64::MAX)));
        Ok(credential)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").finish_non_exhaustive()
    }
}

impl CredentialProvider for Chain {
    type Credential = AwsCredential;

    fn get_credential<'a, 'b>(&'a self) -> BoxFuture<'b, object_store::Result<Arc<AwsCredential>>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(self.fetch())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        time::UNIX_EPOCH,
    };

    use aws_credential_types::{
        Credentials,
        provider::{ProvideCredentials, future::ProvideCredentials as Provided},
    };
    use futures::StreamExt as _;
    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn a_bucket_and_a_prefix_are_told_apart() {
        assert_eq!(split("s3://recordings"), Some(("recordings", "")));
        assert_eq!(split("s3://recordings/"), Some(("recordings", "")));
        assert_eq!(split("s3://recordings/eu/ssh/"), Some(("recordings", "eu/ssh")));
        let long = format!("s3://{}", "b".repeat(64));
        for wrong in
            ["s3://", "s3://ab", &long, "s3://a b c", "s3://abc//x", "s3://abc/x?y", "file:///abc", "abc"]
        {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_store_that_creates_once_is_taken_and_left_as_it_was() {
        let store = InMemory::new();
        check_conditional(&store).await.unwrap();
        assert_eq!(store.list(None).count().await, 0);
    }

    /// Says how often it was asked.
    #[derive(Debug)]
    struct Counted {
        asked: AtomicU64,
        ends_ms: Option<u64>,
    }

    impl ProvideCredentials for Counted {
        fn provide_credentials<'a>(&'a self) -> Provided<'a>
        where
            Self: 'a,
        {
            let count = self.asked.fetch_add(1, Ordering::Relaxed);
            let ends = self.ends_ms.map(|ends| UNIX_EPOCH + Duration::from_millis(ends));
            Provided::ready(Ok(Credentials::new(format!("key-{count}"), "secret", None, ends, "test")))
        }
    }

    #[tokio::test]
    async fn credentials_are_kept_until_shortly_before_they_end() {
        let now = clock::unix_ms();
        let asked = async |ends_ms: Option<u64>| {
            let chain =
                Chain::new(SharedCredentialsProvider::new(Counted { asked: AtomicU64::new(0), ends_ms }));
            chain.get_credential().await.unwrap();
            chain.get_credential().await.unwrap().key_id.clone()
        };
        assert_eq!(asked(None).await, "key-0");
        assert_eq!(asked(Some(now + 3_600_000)).await, "key-0");
        // They end within the time that a request may be repeated.
        assert_eq!(asked(Some(now + 200_000)).await, "key-1");
    }
}
