use tokio::time::Instant;
use zeroize::Zeroizing;

use super::*;
use crate::outbound::testing::{Reply, Server, endless, reply};

const GOOD: &str = r#"{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":"123456789012",
    "Arn":"arn:aws:iam::123456789012:user/ann","UserId":"AIDA"}}}"#;

/// What stands in for STS.
struct Aws {
    server: Server,
    ca: tempfile::NamedTempFile,
}

impl Aws {
    async fn start(reply: Reply) -> Self {
        let (server, ca) = Server::on_the_web(reply).await;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ca.certificate_pem()).unwrap();
        Self { server, ca: file }
    }

    fn sts(&self) -> Sts {
        Sts::new(&IamConfig {
            sts_endpoint: Some(self.server.url("")),
            sts_ca_file: Some(self.ca.path().to_owned()),
        })
        .unwrap()
    }

    fn request(&self) -> SignedRequest {
        let headers = vec![("accept", Zeroizing::new("application/json".to_owned()))];
        SignedRequest { url: self.server.url("/"), headers, partition: None }
    }

    async fn ask(&self) -> Result<Result<AwsIdentity, String>, ApiError> {
        self.sts().ask("192.0.2.1", self.request()).await
    }
}

#[tokio::test]
async fn an_answer_is_believed_from_who_proves_to_be_the_endpoint() {
    let aws = Aws::start(reply("200 OK", "", GOOD)).await;
    let identity = aws.ask().await.unwrap().unwrap();
    assert_eq!(identity.arn(), "arn:aws:iam::123456789012:user/ann");
    // By another authority.
    let other = Aws::start(reply("200 OK", "", GOOD)).await;
    let sts = Sts::new(&IamConfig {
        sts_endpoint: Some(aws.server.url("")),
        sts_ca_file: Some(other.ca.path().to_owned()),
    });
    let refused = sts.unwrap().ask("192.0.2.1", aws.request()).await;
    assert!(matches!(refused, Err(ApiError::Unavailable(_))));
    assert_eq!(aws.server.count(), 1);
    // And nothing is asked in plain text.
    let plain = SignedRequest { url: aws.server.url("/").replace("https", "http"), ..aws.request() };
    assert!(matches!(aws.sts().ask("192.0.2.1", plain).await, Err(ApiError::Unavailable(_))));
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let target = Aws::start(reply("200 OK", "", GOOD)).await;
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let location = format!("location: {}\r\n", target.server.url("/"));
        let aws = Aws::start(reply(status, &location, "")).await;
        assert!(matches!(aws.ask().await, Err(ApiError::Unavailable(_))), "{status}");
        assert_eq!(aws.server.count(), 1);
    }
    assert_eq!(target.server.count(), 0);
}

#[tokio::test]
async fn an_answer_is_read_up_to_its_bound() {
    let padded = |length: usize| format!("{GOOD}{}", " ".repeat(length - GOOD.len()));
    let aws = Aws::start(reply("200 OK", "", &padded(MAX_ANSWER))).await;
    assert!(aws.ask().await.unwrap().is_ok());
    let aws = Aws::start(reply("200 OK", "", &padded(MAX_ANSWER + 1))).await;
    assert!(matches!(aws.ask().await, Err(ApiError::Unavailable(_))));
    // Also one that does not say how long it is, and an error's.
    for status in ["200 OK", "403 Forbidden"] {
        let aws = Aws::start(endless(status, MAX_ANSWER)).await;
        assert!(matches!(aws.ask().await, Err(ApiError::Unavailable(_))), "{status}");
    }
}

#[tokio::test]
async fn an_answer_that_drips_is_waited_for_no_longer_than_its_time() {
    let Reply(bytes, _) = reply("200 OK", "", GOOD);
    let aws = Aws::start(Reply(bytes, Duration::from_millis(100))).await;
    let begun = Instant::now();
    assert!(matches!(aws.ask().await, Err(ApiError::Unavailable(_))));
    assert!((TIMEOUT..TIMEOUT * 4).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn so_many_are_asked_at_a_time_and_no_network_takes_all() {
    let aws = Aws::start(Reply(b"H".to_vec(), Duration::ZERO)).await;
    let sts = aws.sts();
    let mut held: Vec<_> =
        (0..EACH).map(|_| sts.places.take(passwords::network("192.0.2.1")).unwrap()).collect();
    let before = Instant::now();
    let busy = sts.ask("192.0.2.77", aws.request()).await;
    assert!(matches!(busy, Err(ApiError::Busy { .. })) && before.elapsed() < TIMEOUT);
    for network in 0..MOST {
        held.extend(sts.places.take(format!("network:{network}")));
    }
    assert_eq!((held.len(), sts.places.count()), (MOST, MOST));
    assert!(matches!(sts.ask("198.51.100.1", aws.request()).await, Err(ApiError::Busy { .. })));
    assert_eq!(aws.server.count(), 0);
}

#[test]
fn an_endpoint_is_a_host_behind_https_and_nothing_else() {
    for (good, host) in [
        ("https://sts.cloud.example", "sts.cloud.example"),
        ("https://127.0.0.1:8443", "127.0.0.1:8443"),
        ("https://[::1]:8443", "[::1]:8443"),
    ] {
        assert_eq!(authority(good), Some(host));
    }
    for bad in [
        "",
        "sts.cloud.example",
        "http://sts.cloud.example",
        "https://",
        "https://a/",
        "https://a/b",
        "https://a?b",
        "https://a#b",
        "https://user@a",
        "https://a:b",
        "https://a b",
    ] {
        assert_eq!(authority(bad), None, "{bad}");
    }
}

#[test]
fn authorities_that_cannot_be_read_stop_the_node() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = IamConfig {
        sts_endpoint: Some("https://sts.cloud.example".into()),
        sts_ca_file: Some(file.path().to_owned()),
    };
    assert!(matches!(Sts::new(&config), Err(NodeError::Malformed { .. })));
}
