//! The request that a joiner has signed, built anew of its proof. Pure: nothing is sent here.

use std::time::Duration;

use auth_core::CoreError;
use mezite_proto::v1::register_using_iam_method_request as v1;
use store_txn::UnixMillis;
use zeroize::Zeroizing;

use super::regions::{self, Partition};

/// What is asked of STS.
pub(crate) const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
/// Headers that are signed, in the order of their names, where there is no session token. Whoever signs more or less is
/// refused: a header that is not signed could be changed, and one that is not known cannot be built anew.
const SIGNED: &str = "accept;content-type;host;x-amz-date;x-mezite-challenge";
/// And where there is one.
const SIGNED_WITH_TOKEN: &str = "accept;content-type;host;x-amz-date;x-amz-security-token;x-mezite-challenge";
/// How far a signature's date may be from the cluster's time: AWS takes as much.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// Longest authorization that is looked at, in bytes.
const MAX_AUTHORIZATION: usize = 1024;
/// Longest session token, in bytes.
const MAX_SECURITY_TOKEN: usize = 8 << 10;
/// Longest id of an access key, in characters.
const MAX_ACCESS_KEY: usize = 128;
/// Longest name of a region, in bytes.
const MAX_REGION: usize = 32;

/// Where STS is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoints {
    /// Where AWS has it, by region.
    Aws,
    /// Where the configuration says, for any region: host, or host:port.
    Configured(String),
}

/// A request to STS, all of it but the body.
pub(crate) struct SignedRequest {
    /// `https://host/`, or `https://host:port/`.
    pub(crate) url: String,
    /// Names and values; not the host, which is in the URL.
    pub(crate) headers: Vec<(&'static str, Zeroizing<String>)>,
    /// Partition of AWS that the answer must be of; `None`: any.
    pub(crate) partition: Option<&'static str>,
}

/// What a joiner sends of a request that it has signed, checked by itself.
pub(crate) struct Proof {
    region: String,
    authorization: Zeroizing<String>,
    amz_date: String,
    /// Unix time in seconds of `amz_date`.
    seconds: u64,
    security_token: Option<Zeroizing<String>>,
}

impl Proof {
    /// Reads a proof.
    ///
    /// # Errors
    /// [`CoreError::Invalid`].
    pub(crate) fn parse(given: v1::Proof) -> Result<Self, CoreError> {
        let authorization = Zeroizing::new(given.authorization);
        let security_token = Zeroizing::new(given.security_token);
        if authorization.len() > MAX_AUTHORIZATION {
            return Err(CoreError::invalid("authorization", format!("at most {MAX_AUTHORIZATION} bytes")));
        }
        let visible = security_token.bytes().all(|byte| byte.is_ascii_graphic());
        if security_token.len() > MAX_SECURITY_TOKEN || !visible {
            let reason = format!("at most {MAX_SECURITY_TOKEN} bytes of visible ASCII");
            return Err(CoreError::invalid("security_token", reason));
        }
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=MAX_REGION).contains(&given.region.len()) || !given.region.bytes().all(plain) {
            return Err(CoreError::invalid("region", "a region of AWS, such as eu-central-1"));
        }
        let seconds = seconds(&given.amz_date)
            .ok_or_else(|| CoreError::invalid("amz_date", "the header X-Amz-Date: YYYYMMDDThhmmssZ"))?;
        let security_token = Some(security_token).filter(|token| !token.is_empty());
        Ok(Self { region: given.region, authorization, amz_date: given.amz_date, seconds, security_token })
    }

    /// Builds the request that this is a proof of, for the challenge of the call. Of what the joiner sent, the region, the
    /// date, the session token, the access key's id and the signature are in it; all else is fixed, and if the joiner
    /// signed anything else, AWS will not recognise it.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for a region that is not known, a date too far from `now`, and an authorization that is not
    /// for exactly this region, date and set of headers.
    pub(crate) fn rebuild(
        self,
        endpoints: &Endpoints,
        challenge: &str,
        now: UnixMillis,
    ) -> Result<SignedRequest, CoreError> {
        if (now / 1000).abs_diff(self.seconds) > SKEW.as_secs() {
            let reason = "the signature was made more than 5 minutes from now: check this host's clock";
            return Err(CoreError::invalid("amz_date", reason));
        }
        let (authority, partition) = self.endpoint(endpoints)?;
        let authorization = self.authorization()?;
        let fixed = |value: &str| Zeroizing::new(value.to_owned());
        let mut headers = vec![
            ("accept", fixed("application/json")),
            ("content-type", fixed("application/x-www-form-urlencoded")),
            ("x-amz-date", fixed(&self.amz_date)),
            ("x-mezite-challenge", fixed(challenge)),
            ("authorization", authorization),
        ];
        headers.extend(self.security_token.map(|token| ("x-amz-security-token", token)));
        let partition = partition.map(|partition| partition.name);
        Ok(SignedRequest { url: format!("https://{authority}/"), headers, partition })
    }

    fn endpoint(&self, endpoints: &Endpoints) -> Result<(String, Option<Partition>), CoreError> {
        match endpoints {
            Endpoints::Configured(authority) => Ok((authority.clone(), None)),
            Endpoints::Aws => {
                let unknown = || {
                    let reason =
                        "this release knows no such region of AWS: sign for another one, by --region";
                    CoreError::invalid("region", reason)
                };
                regions::sts(&self.region)
                    .map(|(host, partition)| (host, Some(partition)))
                    .ok_or_else(unknown)
            }
        }
    }

    /// The header, composed of the access key's id and the signature. It must come out as it was sent.
    fn authorization(&self) -> Result<Zeroizing<String>, CoreError> {
        let invalid = |reason: &str| CoreError::invalid("authorization", reason);
        let malformed = || {
            invalid("the header Authorization: AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…")
        };
        let rest = self.authorization.strip_prefix("AWS4-HMAC-SHA256 Credential=").ok_or_else(malformed)?;
        let (access_key, _) = rest.split_once('/').ok_or_else(malformed)?;
        let (_, signature) = rest.rsplit_once(", Signature=").ok_or_else(malformed)?;
        let is_key = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if !(1..=MAX_ACCESS_KEY).contains(&access_key.len())
            || !access_key.bytes().all(is_key)
            || signature.len() != 64
            || !signature.bytes().all(is_digit)
        {
            return Err(malformed());
        }
        let day = self.amz_date.get(..8).unwrap_or_default();
        let signed = if self.security_token.is_some() { SIGNED_WITH_TOKEN } else { SIGNED };
        let composed = Zeroizing::new(format!(
            "AWS4-HMAC-SHA256 Credential={access_key}/{day}/{}/sts/aws4_request, SignedHeaders={signed}, \
             Signature={signature}",
            self.region
        ));
        if *composed != *self.authorization {
            let reason = format!(
                "it must be for {day}/{}/sts/aws4_request and sign the headers {signed}, no more and no fewer",
                self.region
            );
            return Err(invalid(&reason));
        }
        Ok(composed)
    }
}

/// The time of `YYYYMMDDThhmmssZ`, in seconds of Unix time; only that form.
fn seconds(amz_date: &str) -> Option<u64> {
    let digits = |range: std::ops::Range<usize>| {
        amz_date.get(range).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let (year, month, day) = (digits(0..4)?, digits(4..6)?, digits(6..8)?);
    let (hour, minute, second) = (digits(9..11)?, digits(11..13)?, digits(13..15)?);
    let rebuilt = format!("{year}{month}{day}T{hour}{minute}{second}Z");
    let time = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z").parse::<prost_types::Timestamp>();
    let seconds = time.ok().and_then(|time| u64::try_from(time.seconds).ok());
    seconds.filter(|_| rebuilt == amz_date)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
