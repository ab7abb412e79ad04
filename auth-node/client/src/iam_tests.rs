use super::*;

fn signer(region: &str, token: Option<&str>, endpoint: Option<&str>) -> IamSigner {
    let credentials = Credentials::new("AKIDEXAMPLE", "secret", token.map(str::to_owned), None, "test");
    let config = aws_sdk_sts::config::Builder::new().behavior_version(BehaviorVersion::latest());
    let config = match endpoint {
        Some(endpoint) => config.endpoint_url(endpoint),
        None => config,
    };
    IamSigner::new(config, credentials, region.to_owned())
}

/// Exactly what a server takes: it would refuse one header more or less.
#[tokio::test]
async fn what_is_signed_are_the_headers_that_the_cluster_rebuilds_and_nothing_is_sent() {
    for (token, signed) in [
        (None, "accept;content-type;host;x-amz-date;x-mezite-challenge"),
        (Some("t0ken"), "accept;content-type;host;x-amz-date;x-amz-security-token;x-mezite-challenge"),
    ] {
        let signer = signer("eu-central-1", token, None);
        let proof = signer.sign("challenge").await.unwrap();
        let date = proof.amz_date.get(..8).unwrap();
        let start = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{date}/eu-central-1/sts/aws4_request, \
             SignedHeaders={signed}, Signature="
        );
        let signature = proof.authorization.strip_prefix(&start).unwrap_or_else(|| panic!("{proof:?}"));
        assert_eq!((proof.region.as_str(), signature.len()), ("eu-central-1", 64));
        assert_eq!((proof.amz_date.len(), proof.security_token.as_str()), (16, token.unwrap_or_default()));
        assert!(!format!("{signer:?}").contains("secret"));
    }
}

#[tokio::test]
async fn a_signature_is_for_one_challenge_and_one_host() {
    let sign = async |challenge: &str, endpoint: Option<&str>| {
        let proof = signer("eu-central-1", None, endpoint).sign(challenge).await.unwrap();
        (proof.amz_date, proof.authorization)
    };
    // Within one second they differ by what they are for alone.
    loop {
        let (date, one) = sign("one", None).await;
        let (again, same) = sign("one", None).await;
        let (other, two) = sign("two", None).await;
        let (elsewhere, three) = sign("one", Some("https://sts.cloud.example:8443")).await;
        if date == again && date == other && date == elsewhere {
            assert!(one == same && one != two && one != three);
            return;
        }
    }
}

#[tokio::test]
async fn a_challenge_that_is_no_header_is_not_signed() {
    let refused = signer("eu-central-1", None, None).sign("a\r\nx-evil: 1").await;
    assert!(matches!(refused, Err(IamError::Signing(_))), "{refused:?}");
}
