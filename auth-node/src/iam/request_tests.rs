use std::time::{SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use sha2::{Digest as _, Sha256};

use super::*;

const CHALLENGE: &str = "GwmaF3fEkPIOe7fQwKl9vXV0kGJ3ZZ9rbYd4eZ0m3xA";
const ACCESS_KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
/// 2026-11-28T21:31:59Z.
const NOW: u64 = 1_795_901_519;
const DATE: &str = "20261128T213159Z";

/// What a joiner may sign.
#[derive(Clone, Copy)]
struct Signer<'a> {
    region: &'a str,
    host: &'a str,
    service: &'a str,
    headers: &'a [(&'a str, &'a str)],
    token: Option<&'a str>,
    at: u64,
}

const HEADERS: [(&str, &str); 3] = [
    ("accept", "application/json"),
    ("content-type", "application/x-www-form-urlencoded"),
    ("x-mezite-challenge", CHALLENGE),
];

const GOOD: Signer<'static> = Signer {
    region: "eu-central-1",
    host: "sts.eu-central-1.amazonaws.com",
    service: "sts",
    headers: &HEADERS,
    token: None,
    at: NOW,
};

impl Signer<'_> {
    /// As AWS's own library signs.
    fn proof(self) -> v1::Proof {
        let token = self.token.map(str::to_owned);
        let identity = Credentials::new(ACCESS_KEY, SECRET, token, None, "test").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name(self.service)
            .time(UNIX_EPOCH + Duration::from_secs(self.at))
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let url = format!("https://{}/", self.host);
        let body = SignableBody::Bytes(BODY.as_bytes());
        let request = SignableRequest::new("POST", &url, self.headers.iter().copied(), body).unwrap();
        let (instructions, _) = sign(request, &params).unwrap().into_parts();
        let made = |name: &str| {
            let mut headers = instructions.headers();
            headers.find(|(found, _)| *found == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        v1::Proof {
            region: self.region.into(),
            authorization: made("authorization"),
            amz_date: made("x-amz-date"),
            security_token: made("x-amz-security-token"),
        }
    }
}

fn rebuild(proof: v1::Proof) -> Result<SignedRequest, CoreError> {
    Proof::parse(proof)?.rebuild(&Endpoints::Aws, CHALLENGE, NOW * 1000)
}

#[track_caller]
fn assert_refused(proof: v1::Proof, wanted: &str) {
    match rebuild(proof.clone()).map(|request| request.url) {
        Err(CoreError::Invalid { field, .. }) if field == wanted => {}
        other => panic!("expected a refusal of {wanted}, got {other:?} for {proof:?}"),
    }
}

fn header<'a>(request: &'a SignedRequest, name: &str) -> &'a str {
    request.headers.iter().find(|(found, _)| *found == name).unwrap().1.as_str()
}

/// The signature that AWS computes over what it gets: by its documentation, and with the secret that it knows.
fn signature(canonical: &str, region: &str) -> String {
    let digest = hex::encode(Sha256::digest(canonical));
    let to_sign = format!("AWS4-HMAC-SHA256\n{DATE}\n20261128/{region}/sts/aws4_request\n{digest}");
    let time: SystemTime = UNIX_EPOCH + Duration::from_secs(NOW);
    v4::calculate_signature(v4::generate_signing_key(SECRET, time, region, "sts"), to_sign.as_bytes())
}

#[test]
fn what_is_rebuilt_is_what_was_signed() {
    let request = rebuild(GOOD.proof()).unwrap();
    assert_eq!(
        (request.url.as_str(), request.partition),
        ("https://sts.eu-central-1.amazonaws.com/", Some("aws"))
    );
    let names: Vec<_> = request.headers.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["accept", "content-type", "x-amz-date", "x-mezite-challenge", "authorization"]);
    let canonical = "POST\n/\n\naccept:application/json\ncontent-type:application/x-www-form-urlencoded\n\
        host:sts.eu-central-1.amazonaws.com\nx-amz-date:20261128T213159Z\n\
        x-mezite-challenge:GwmaF3fEkPIOe7fQwKl9vXV0kGJ3ZZ9rbYd4eZ0m3xA\n\n\
        accept;content-type;host;x-amz-date;x-mezite-challenge\n\
        ab821ae955788b0e33ebd34c208442ccfc2d406e2edc5e7a39bd6458fbb4f843";
    assert_eq!(hex::encode(Sha256::digest(BODY)), canonical.rsplit('\n').next().unwrap());
    let authorization = header(&request, "authorization");
    let computed = signature(canonical, "eu-central-1");
    assert!(authorization.ends_with(&format!(", Signature={computed}")), "{authorization}");
    assert_eq!(authorization, GOOD.proof().authorization);
}

#[test]
fn a_session_token_is_signed_too() {
    let token = "IQoJb3JpZ2luX2VjEXAMPLE+/token==";
    let signer =
        Signer { token: Some(token), region: "cn-north-1", host: "sts.cn-north-1.amazonaws.com.cn", ..GOOD };
    let request = rebuild(signer.proof()).unwrap();
    assert_eq!((header(&request, "x-amz-security-token"), request.partition), (token, Some("aws-cn")));
    let canonical = format!(
        "POST\n/\n\naccept:application/json\ncontent-type:application/x-www-form-urlencoded\n\
         host:sts.cn-north-1.amazonaws.com.cn\nx-amz-date:20261128T213159Z\nx-amz-security-token:{token}\n\
         x-mezite-challenge:{CHALLENGE}\n\n\
         accept;content-type;host;x-amz-date;x-amz-security-token;x-mezite-challenge\n{}",
        hex::encode(Sha256::digest(BODY))
    );
    let computed = signature(&canonical, "cn-north-1");
    assert!(header(&request, "authorization").ends_with(&computed));
    // Neither left out, nor added to a signature without it.
    assert_refused(v1::Proof { security_token: String::new(), ..signer.proof() }, "authorization");
    assert_refused(v1::Proof { security_token: token.into(), ..GOOD.proof() }, "authorization");
}

#[test]
fn the_challenge_is_of_this_call_and_never_what_the_joiner_says() {
    // Signed over another one: the request has ours, so that AWS does not recognise the signature.
    let other = [HEADERS[0], HEADERS[1], ("x-mezite-challenge", "of another call")];
    let request = rebuild(Signer { headers: &other, ..GOOD }.proof()).unwrap();
    assert_eq!(header(&request, "x-mezite-challenge"), CHALLENGE);
    assert_ne!(header(&request, "authorization"), GOOD.proof().authorization);
}

#[test]
fn exactly_the_set_of_headers_is_signed() {
    let extra = [HEADERS[0], HEADERS[1], ("x-amz-extra", "1"), HEADERS[2]];
    let length = [HEADERS[0], ("content-length", "43"), HEADERS[1], HEADERS[2]];
    for headers in [&HEADERS[..2], &HEADERS[1..], &[HEADERS[0], HEADERS[2]], &extra, &length, &[]] {
        assert_refused(Signer { headers, ..GOOD }.proof(), "authorization");
    }
    let good = GOOD.proof();
    for (from, to) in [
        ("accept;", "accept;accept;"),
        ("accept;content-type", "content-type;accept"),
        ("host;", ""),
        ("host", "Host"),
        ("x-amz-date;", ""),
        (";x-mezite-challenge", ""),
        (";x-mezite-challenge", ";x-mezite-challenge2"),
    ] {
        assert!(good.authorization.contains(from));
        let authorization = good.authorization.replacen(from, to, 1);
        assert_refused(v1::Proof { authorization, ..good.clone() }, "authorization");
    }
}

#[test]
fn the_scope_is_of_this_region_date_and_service() {
    for other in [
        Signer { service: "iam", ..GOOD },
        Signer { region: "eu-west-1", ..GOOD },
        Signer { at: NOW - 24 * 3600, ..GOOD },
    ] {
        let proof = v1::Proof { region: GOOD.region.into(), amz_date: DATE.into(), ..other.proof() };
        assert_refused(proof, "authorization");
    }
    // The region chooses the host: signed for another one, AWS will not recognise it.
    let elsewhere = Signer { host: "evil.example", ..GOOD }.proof();
    assert_eq!(rebuild(elsewhere).unwrap().url, "https://sts.eu-central-1.amazonaws.com/");
}

#[test]
fn an_authorization_has_one_form() {
    let good = GOOD.proof();
    let signature = good.authorization.rsplit('=').next().unwrap().to_owned();
    let long = "A".repeat(129);
    for (from, to) in [
        ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
        ("AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256  "),
        (", SignedHeaders", ",SignedHeaders"),
        (ACCESS_KEY, ""),
        (ACCESS_KEY, "AKID EXAMPLE"),
        (ACCESS_KEY, "AKID\r\nx-evil: 1"),
        (ACCESS_KEY, &long),
        (&signature, ""),
        (&signature, &signature[1..]),
        (&signature, &signature.to_uppercase()),
        (&signature, &format!("{signature}, Signature={signature}")),
        (&signature, &format!("{signature}\n")),
    ] {
        let authorization = good.authorization.replacen(from, to, 1);
        if authorization != good.authorization {
            assert_refused(v1::Proof { authorization, ..good.clone() }, "authorization");
        }
    }
    for authorization in [String::new(), "Bearer x".into(), "x".repeat(1025)] {
        assert_refused(v1::Proof { authorization, ..good.clone() }, "authorization");
    }
    assert_refused(v1::Proof { security_token: "a b".into(), ..good.clone() }, "security_token");
    assert_refused(v1::Proof { security_token: "a\r\nb: c".into(), ..good.clone() }, "security_token");
    assert_refused(v1::Proof { security_token: "a".repeat(8193), ..good }, "security_token");
}

#[test]
fn a_signature_is_of_now() {
    for at in [NOW - 300, NOW + 300] {
        assert!(rebuild(Signer { at, ..GOOD }.proof()).is_ok());
    }
    for at in [NOW - 301, NOW + 301, 0, 4_000_000_000] {
        assert_refused(Signer { at, ..GOOD }.proof(), "amz_date");
    }
    for amz_date in [
        "",
        "20261128",
        "20261128T213159",
        "20261128T213159z",
        "2026-11-28T21:31:59Z",
        "20261328T213159Z",
        "20261131T213159Z",
        "20261128T253159Z",
        " 20261128T213159Z",
        "20261128T213159Z ",
        "2026112٨T213159Z",
    ] {
        assert_refused(v1::Proof { amz_date: amz_date.into(), ..GOOD.proof() }, "amz_date");
    }
    assert_eq!(seconds(DATE), Some(NOW));
    assert_eq!(seconds("20240229T000000Z"), Some(1_709_164_800));
}

#[test]
fn a_region_is_one_that_is_known_and_a_configured_endpoint_takes_any() {
    let region = |region: &str| v1::Proof { region: region.into(), ..GOOD.proof() };
    for bad in ["", "EU-CENTRAL-1", "eu-central-1.evil.example", "eu-central-1/", "../x", &"a".repeat(33)] {
        assert_refused(region(bad), "region");
    }
    assert_refused(Signer { region: "moon-1", ..GOOD }.proof(), "region");

    let private = Signer { region: "moon-1", host: "sts.cloud.example:8443", ..GOOD }.proof();
    let configured = Endpoints::Configured("sts.cloud.example:8443".into());
    let request = Proof::parse(private).unwrap().rebuild(&configured, CHALLENGE, NOW * 1000).unwrap();
    assert_eq!((request.url.as_str(), request.partition), ("https://sts.cloud.example:8443/", None));
}
