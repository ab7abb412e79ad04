//! Authenticators by the web: registered, asked for after a password, and alone.

use auth_core::{
    CoreError,
    tables::{ClusterConfigKey, ClusterConfigRow, SecondFactor},
};
use mezite_client::testing::Authenticator;
use store_txn::TransactionExt as _;

use super::*;

/// A site whose users are asked for the device that they have, and `boss` with one.
async fn with_device() -> (Site, Authenticator) {
    let site = Site::start().await;
    let row = ClusterConfigRow {
        second_factor: SecondFactor::Optional.into(),
        webauthn_rp_id: "test.example".into(),
        webauthn_origins: vec![WEB.into()],
        ..ClusterConfigRow::default()
    };
    let written = site.node.service.store.transact(move |tx| {
        tx.put(&ClusterConfigKey, &row);
        Ok::<_, CoreError>(())
    });
    written.await.map_err(crate::error::ApiError::from).unwrap();
    let (cookie, mut device) = (site.cookie().await, Authenticator::new(WEB));
    let begin = post("/v1/webapi/devices/begin", &json!({ "passkey": true }));
    let begun = site.ask(with_cookie(begin, &cookie)).await.json();
    let credential: Value = serde_json::from_str(&device.create(&begun["options"].to_string())).unwrap();
    let finish =
        json!({ "challenge_id": begun["challenge_id"], "credential": credential, "name": "Work laptop" });
    let done = site.ask(with_cookie(post("/v1/webapi/devices/finish", &finish), &cookie)).await;
    assert_eq!((done.status, &done.json()["device"]["name"]), (200, &json!("Work laptop")), "{done:?}");
    let devices = site.ask(with_cookie(get("/v1/webapi/devices"), &cookie)).await.json();
    assert_eq!(
        (&devices["devices"][0]["name"], devices["devices"][1].is_null()),
        (&json!("Work laptop"), true)
    );
    let ping = site.ask(get("/v1/webapi/ping")).await.json();
    let relying_party = (&devices["devices"][0]["relying_party_id"], &ping["relying_party_id"]);
    assert_eq!(relying_party, (&json!("test.example"), &json!("test.example")));
    (site, device)
}

/// What a device answers to a challenge, as it is sent.
fn answer(device: &mut Authenticator, begun: &Value) -> Value {
    let credential = device.get(&begun["options"].to_string()).unwrap();
    let credential: Value = serde_json::from_str(&credential).unwrap();
    json!({ "challenge_id": begun["challenge_id"], "credential": credential })
}

#[tokio::test]
async fn whoever_has_a_device_is_asked_for_it_after_the_password_and_has_no_session_before() {
    let (site, mut device) = with_device().await;
    let half = site.ask(login("boss", BOSS)).await;
    let begun = half.json()["step_up"].clone();
    assert!(half.status == 200 && begun["options"]["challenge"].is_string(), "{half:?}");
    assert!(half.headers.get(SET_COOKIE).is_none() && half.json().get("session").is_none());
    let wrong = site.ask(login("boss", "not the password")).await;
    assert_eq!(wrong.refusal(), (401, "UNAUTHENTICATED".into()), "nothing tells of the device");

    let finish = answer(&mut device, &begun);
    let whole = site.ask(post("/v1/webapi/login/finish", &finish)).await;
    assert_eq!((whole.status, &whole.json()["session"]["method"]), (200, &json!("webauthn")), "{whole:?}");
    let own = site.ask(with_cookie(get("/v1/webapi/session"), &whole.cookie())).await;
    assert_eq!(own.json()["session"]["user"], "boss");
    let again = site.ask(post("/v1/webapi/login/finish", &finish)).await;
    assert_eq!(again.refusal(), (401, "UNAUTHENTICATED".into()), "a challenge is good once");
}

#[tokio::test]
async fn a_passkey_logs_in_alone_and_what_was_begun_in_one_way_is_not_finished_in_the_other() {
    let (site, mut device) = with_device().await;
    let begin = async || site.ask(post("/v1/webapi/login/passkey", &json!({}))).await.json();
    let mut finish = answer(&mut device, &begin().await);
    finish["token"] = json!(true);
    let done = site.ask(post("/v1/webapi/login/passkey/finish", &finish)).await;
    let id = done.json()["session_id"].as_str().unwrap().to_owned();
    assert!(done.headers.get(SET_COOKIE).is_none());
    let bearer = with_header(get("/v1/webapi/session"), "authorization", &format!("Bearer {id}"));
    assert_eq!(site.ask(bearer).await.json()["session"]["method"], "webauthn");

    let alone = answer(&mut device, &begin().await);
    let half = site.ask(login("boss", BOSS)).await.json()["step_up"].clone();
    let second_half = answer(&mut device, &half);
    for (path, body) in [("/v1/webapi/login/finish", alone), ("/v1/webapi/login/passkey/finish", second_half)]
    {
        assert_eq!(site.ask(post(path, &body)).await.refusal(), (401, "UNAUTHENTICATED".into()), "{path}");
    }
}
