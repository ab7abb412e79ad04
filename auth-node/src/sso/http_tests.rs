use tokio::time::Instant;

use super::*;
use crate::outbound::testing::{Reply, Server, ca, endless, reply};

fn open(outbound: &Outbound, network: &str, anchors: &[String]) -> Http {
    outbound.open(network.into(), anchors).unwrap().unwrap()
}

async fn ask(http: &Http, url: &str) -> Result<HttpResponse, Unanswered> {
    let mut request = HttpRequest::default();
    *request.uri_mut() = url.parse().unwrap();
    http.send(request).await
}

#[tokio::test]
async fn a_provider_is_believed_by_its_authorities_over_tls_and_sends_nobody_elsewhere() {
    let (target, _) = Server::on_the_web(reply("200 OK", "", "{}")).await;
    let location = format!("location: {}\r\n", target.url("/"));
    let (server, web) = Server::on_the_web(reply("302 Found", &location, "")).await;
    let (outbound, anchors) = (Outbound::new(), [web.certificate_pem().to_owned()]);
    let answer = ask(&open(&outbound, "a", &anchors), &server.url("/")).await.unwrap();
    assert_eq!((answer.status().as_u16(), server.count(), target.count()), (302, 1, 0));
    let plain = server.url("/").replace("https", "http");
    assert!(ask(&open(&outbound, "a", &anchors), &plain).await.is_err());
    for anchors in [vec![ca().certificate_pem().to_owned()], vec![]] {
        assert!(ask(&open(&outbound, "a", &anchors), &server.url("/")).await.is_err());
    }
    assert_eq!(server.count(), 1, "whoever is not believed is not asked");
}

#[tokio::test]
async fn an_answer_has_a_bound_of_size_and_of_time() {
    let fits = " ".repeat(MAX_ANSWER);
    let (server, web) = Server::on_the_web(reply("200 OK", "", &fits)).await;
    let (outbound, anchors) = (Outbound::new(), [web.certificate_pem().to_owned()]);
    // Each in a connection of its own: the server answers once in one.
    let http = || open(&outbound, "a", &anchors);
    assert_eq!(ask(&http(), &server.url("/")).await.unwrap().body().len(), MAX_ANSWER);
    for too_long in [reply("200 OK", "", &format!("{fits} ")), endless("200 OK", MAX_ANSWER)] {
        server.tell(too_long);
        let refused = ask(&http(), &server.url("/")).await.unwrap_err().to_string();
        assert!(refused.contains("more than"), "{refused}");
    }
    let Reply(bytes, _) = reply("200 OK", "", "{}");
    server.tell(Reply(bytes, Duration::from_millis(200)));
    let begun = Instant::now();
    assert!(ask(&http(), &server.url("/")).await.is_err());
    assert!((TIMEOUT..TIMEOUT * 4).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn so_many_ask_at_a_time_and_no_network_takes_all() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outbound = Outbound::new();
    let mut held: Vec<_> = (0..EACH).map(|_| open(&outbound, "a", &[])).collect();
    assert!(matches!(outbound.open("a".into(), &[]), Err(ApiError::Busy { .. })));
    held.extend((EACH..MOST).map(|network| open(&outbound, &network.to_string(), &[])));
    assert!(matches!(outbound.open("b".into(), &[]), Err(ApiError::Busy { .. })));
    held.pop();
    let _ = open(&outbound, "b", &[]);
}
