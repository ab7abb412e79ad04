use auth_core::{
    login::WRONG,
    tables::{ClusterConfigKey, ClusterConfigRow, SecondFactor, SessionKey, UserKey},
};
use mezite_client::testing::Authenticator;
use mezite_proto::v1::{self, lock_target::Target};
use store_txn::{ReadExt as _, TransactionExt as _};
use tonic::Code;

use super::*;
use crate::rpc::{
    login::{Given, with_second_factor},
    testing::{BOSS, Node, anonymous, assert_invalid, with},
};

const ORIGIN: &str = "https://mezite.example.com";

/// A node of a cluster with a relying party, and its admin's session.
struct World {
    node: Node,
    boss: String,
}

impl World {
    async fn start() -> Self {
        let node = Node::start().await;
        let world = Self { boss: node.boss().await, node };
        world.configure(SecondFactor::Off, 10).await;
        world
    }

    async fn configure(&self, second_factor: SecondFactor, lockout_threshold: u32) {
        let row = ClusterConfigRow {
            second_factor: second_factor.into(),
            webauthn_rp_id: "example.com".into(),
            webauthn_origins: vec![ORIGIN.into()],
            lockout_threshold: Some(lockout_threshold),
            ..ClusterConfigRow::default()
        };
        let written = self.node.service.store.transact(move |tx| {
            tx.put(&ClusterConfigKey, &row);
            Ok::<_, CoreError>(())
        });
        written.await.map_err(ApiError::from).unwrap();
    }

    /// A user with the password of `boss`, logged in.
    async fn add_user(&self, name: &str) -> String {
        let name = UserName::parse("", name).unwrap();
        let row = self.user("boss").await;
        let key = UserKey(name.clone());
        let written = self.node.service.store.transact(move |tx| {
            tx.put(&key, &row);
            Ok::<_, CoreError>(())
        });
        written.await.map_err(ApiError::from).unwrap();
        self.node.log_in(name.as_str(), BOSS).await.unwrap()
    }

    async fn user(&self, name: &str) -> auth_core::tables::UserRow {
        let key = UserKey(UserName::parse("", name).unwrap());
        let read = self.node.service.store.read(move |view| Ok::<_, CoreError>(view.get(&key)?.unwrap().row));
        read.await.map_err(ApiError::from).unwrap()
    }

    async fn session(&self, id: &str) -> SessionRow {
        let key = SessionKey(SecretDigest::of(SecretKind::Session, id));
        let read = self.node.service.store.read(move |view| Ok::<_, CoreError>(view.get(&key)?.unwrap().row));
        read.await.map_err(ApiError::from).unwrap()
    }

    async fn begin_registration(&self, session: &str, passkey: bool) -> Result<Begun, ApiError> {
        let call = with(session, "BeginWebAuthnRegistration");
        begin_registration(&self.node.service, &call, passkey).await
    }

    async fn finish_registration(
        &self,
        session: &str,
        begun: &Begun,
        answer: &str,
    ) -> Result<Registered, ApiError> {
        let call = with(session, "FinishWebAuthnRegistration");
        finish_registration(&self.node.service, &call, &begun.challenge_id, answer, "key").await
    }

    /// Registers a credential of an authenticator; answers the device.
    async fn register(
        &self,
        session: &str,
        device: &mut Authenticator,
        passkey: bool,
    ) -> Result<Registered, ApiError> {
        let begun = self.begin_registration(session, passkey).await?;
        let answer = device.create(&begun.options_json);
        self.finish_registration(session, &begun, &answer).await
    }

    async fn begin(&self, username: &str) -> Begun {
        begin_login(&self.node.service, &anonymous("BeginWebAuthnLogin"), username).await.unwrap()
    }

    async fn finish(&self, begun: &Begun, answer: &str) -> Result<LoggedIn, ApiError> {
        let call = anonymous("FinishWebAuthnLogin");
        finish_login(&self.node.service, &call, &begun.challenge_id, answer).await
    }

    async fn log_in(&self, username: &str, device: &mut Authenticator) -> Result<LoggedIn, ApiError> {
        let begun = self.begin(username).await;
        let answer = device.force(&begun.options_json);
        self.finish(&begun, &answer).await
    }

    /// By password, up to where an authenticator is asked. `None`: there is a session already.
    async fn try_step_up(&self, username: &str, password: &str) -> Result<Option<Begun>, ApiError> {
        let (call, password) = (anonymous("AuthenticateLocal"), Zeroizing::new(password.to_owned()));
        match with_second_factor(&self.node.service, &call, username, password).await? {
            Given::StepUp(begun) => Ok(Some(begun)),
            Given::Session(..) => Ok(None),
        }
    }

    async fn begin_step_up(&self, username: &str) -> Result<Begun, ApiError> {
        Ok(self.try_step_up(username, BOSS).await?.unwrap())
    }

    async fn finish_step_up(&self, begun: &Begun, answer: &str) -> Result<LoggedIn, ApiError> {
        let call = anonymous("AuthenticateLocal");
        finish_step_up(&self.node.service, &call, &begun.challenge_id, answer).await
    }

    /// Why the last login failed, as the audit log has it.
    async fn reason(&self) -> String {
        let record = self.node.audited("user.login.failed").await.pop().unwrap();
        record.fields["reason"].clone()
    }

    async fn may(&self, session: &str) -> Result<(), ApiError> {
        self.node.service.read(&with(session, "ListUsers"), |_, _| Ok(())).await
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, ApiError>) {
    match result {
        Err(ApiError::Core(refused)) if refused == login::REFUSED => {}
        other => panic!("expected the one refusal, got {other:?}"),
    }
}

fn ids(begun: &Begun) -> Vec<String> {
    let options: Value = serde_json::from_str(&begun.options_json).unwrap();
    let ids = options["allowCredentials"].as_array().unwrap().iter();
    ids.map(|credential| credential["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_passkey_is_registered_and_logs_in_with_and_without_a_name() {
    let world = World::start().await;
    let mut device = Authenticator::new(ORIGIN);
    let begun = world.begin_registration(&world.boss, true).await.unwrap();
    let options: Value = serde_json::from_str(&begun.options_json).unwrap();
    assert_eq!(options["authenticatorSelection"]["residentKey"], "required");
    assert_eq!(options["authenticatorSelection"]["userVerification"], "required");
    assert_eq!(options["rp"]["id"], "example.com");
    let answer = device.create(&begun.options_json);
    let registered = world.finish_registration(&world.boss, &begun, &answer).await.unwrap();
    assert!(registered.device.passkey && registered.device.relying_party == "example.com");
    let record = world.node.audited("user.device.register").await.pop().unwrap();
    assert_eq!((record.actor.as_str(), record.target), ("user:boss", format!("device:{}", registered.id)));

    for username in ["", "BOSS"] {
        let begun = world.begin(username).await;
        assert_eq!(ids(&begun).is_empty(), username.is_empty());
        let answer = device.get(&begun.options_json).unwrap();
        let LoggedIn { session_id, session } = world.finish(&begun, &answer).await.unwrap();
        assert_eq!((session.user.as_str(), session.method()), ("boss", AuthMethod::Webauthn));
        assert_eq!(session.device, registered.id.as_str());
        assert_eq!(world.session(&session_id).await, session);
        let record = world.node.audited("user.login").await.pop().unwrap();
        assert_eq!(
            (record.actor.as_str(), record.fields["device"].as_str()),
            ("user:boss", registered.id.as_str())
        );
        world.may(&session_id).await.unwrap();
    }
}

#[tokio::test]
async fn a_challenge_is_good_once_whatever_comes_of_it() {
    let world = World::start().await;
    let mut device = Authenticator::new(ORIGIN);
    let begun = world.begin_registration(&world.boss, true).await.unwrap();
    let answer = device.create(&begun.options_json);
    world.finish_registration(&world.boss, &begun, &answer).await.unwrap();
    let again = world.finish_registration(&world.boss, &begun, &answer).await;
    assert_invalid(again, "challenge_id");

    let begun = world.begin("boss").await;
    let answer = device.get(&begun.options_json).unwrap();
    let (one, two) = tokio::join!(world.finish(&begun, &answer), world.finish(&begun, &answer));
    let (good, bad): (Vec<_>, Vec<_>) = [one, two].into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (1, 1));
    bad.into_iter().for_each(assert_refused);

    // One that was answered wrong is used up, too.
    let begun = world.begin("boss").await;
    let answer = device.get(&begun.options_json).unwrap();
    let mut stranger = Authenticator::new("https://evil.example.org");
    stranger
        .create(&world.begin_registration(&world.add_user("ann").await, true).await.unwrap().options_json);
    assert_refused(world.finish(&begun, &stranger.force(&begun.options_json)).await);
    assert_refused(world.finish(&begun, &answer).await);
    assert_eq!(world.reason().await, "the challenge is unknown, used, or past its end");
}

#[tokio::test]
async fn a_challenge_is_for_its_purpose_its_user_and_its_session() {
    let world = World::start().await;
    let mut device = Authenticator::new(ORIGIN);
    world.register(&world.boss, &mut device, true).await.unwrap();
    // Begun after a password, it is none for a login without one, and the other way round.
    let begun = world.begin_step_up("boss").await.unwrap();
    let answer = device.get(&begun.options_json).unwrap();
    assert_refused(world.finish(&begun, &answer).await);
    assert_refused(world.finish_step_up(&begun, &answer).await);
    let begun = world.begin("boss").await;
    let answer = device.get(&begun.options_json).unwrap();
    assert_refused(world.finish_step_up(&begun, &answer).await);

    let ann = world.add_user("ann").await;
    let other = world.node.log_in("ann", BOSS).await.unwrap();
    for session in [&world.boss, &other] {
        let begun = world.begin_registration(&ann, true).await.unwrap();
        let answer = Authenticator::new(ORIGIN).create(&begun.options_json);
        assert_invalid(world.finish_registration(session, &begun, &answer).await, "challenge_id");
        assert_invalid(world.finish_registration(&ann, &begun, &answer).await, "challenge_id");
    }
    let begun = world.begin_registration(&ann, true).await.unwrap();
    let answer = device.force(&world.begin("").await.options_json);
    assert_refused(world.finish(&begun, &answer).await);
}

#[tokio::test]
async fn what_an_authenticator_answers_is_verified_and_refused_alike() {
    let world = World::start().await;
    world.configure(SecondFactor::Off, 1000).await;
    let mut device = Authenticator::new(ORIGIN);
    let registered = world.register(&world.boss, &mut device, true).await.unwrap();
    let mut anns = Authenticator::new(ORIGIN);
    world.register(&world.add_user("ann").await, &mut anns, true).await.unwrap();

    type Twist = fn(&mut Authenticator);
    let twists: [(&str, Twist, Twist); 6] = [
        ("origin", |it| it.origin = "https://evil.example.com".into(), |it| it.origin = ORIGIN.into()),
        (
            "relying party id hash",
            |it| it.relying_party = Some("example.org".into()),
            |it| it.relying_party = None,
        ),
        ("challenge", |it| it.challenge = Some(vec![7; 32]), |it| it.challenge = None),
        ("user verified", |it| it.verifies = false, |it| it.verifies = true),
        ("user handle", |it| it.user_handle = Some(vec![1; 16]), |it| it.user_handle = None),
        ("counter did not rise", |it| it.step = 0, |it| it.step = 1),
    ];
    // So that there is a counter to stand still.
    world.log_in("boss", &mut device).await.unwrap();
    for (wrong, twist, back) in twists {
        twist(&mut device);
        assert_refused(world.log_in("boss", &mut device).await);
        let reason = world.reason().await;
        assert!(reason.contains(wrong), "{wrong}: {reason}");
        back(&mut device);
        world.log_in("boss", &mut device).await.unwrap();
    }
    let suspect = world.node.audited("user.device.suspect").await;
    assert_eq!((suspect.len(), suspect[0].target.clone()), (1, format!("device:{}", registered.id)));

    // Another user's credential, where the first one is asked for; and one that nobody has.
    assert_refused(world.log_in("boss", &mut anns).await);
    assert!(world.reason().await.contains("not one that was asked for"));
    let mut nobodys = Authenticator::new(ORIGIN);
    nobodys.create(&world.begin_registration(&world.add_user("eve").await, true).await.unwrap().options_json);
    for name in ["boss", "", "nobody"] {
        assert_refused(world.log_in(name, &mut nobodys).await);
    }
    // Without a name, the credential says who it is.
    let begun = world.begin("").await;
    let answer = anns.get(&begun.options_json).unwrap();
    assert_eq!(world.finish(&begun, &answer).await.unwrap().session.user, "ann");
    // And where it says nothing, or another, nobody is.
    let begun = world.begin("").await;
    assert_refused(world.finish(&begun, &anns.force(&begun.options_json)).await);
}

#[tokio::test]
async fn a_registration_is_verified_and_a_refusal_audited() {
    let world = World::start().await;
    let twists: [fn(&mut Authenticator); 4] = [
        |it| it.origin = "https://evil.example.org".into(),
        |it| it.relying_party = Some("example.org".into()),
        |it| it.challenge = Some(vec![7; 32]),
        |it| it.verifies = false,
    ];
    for twist in twists {
        let mut device = Authenticator::new(ORIGIN);
        twist(&mut device);
        assert_invalid(world.register(&world.boss, &mut device, true).await, "credential_json");
    }
    assert_eq!(world.node.audited("user.device.register.failed").await.len(), 4);
    let begun = world.begin_registration(&world.boss, true).await.unwrap();
    let call = with(&world.boss, "FinishWebAuthnRegistration");
    let finish = async |json: &str, name: &str| {
        finish_registration(&world.node.service, &call, &begun.challenge_id, json, name).await
    };
    for name in ["", &"n".repeat(65), "a\nb"] {
        assert_invalid(finish("{}", name).await, "name");
    }
    for json in ["{}", &"x".repeat(MAX_JSON + 1)] {
        assert_invalid(finish(json, "key").await, "credential_json");
    }
    // None of that has used it up.
    let answer = Authenticator::new(ORIGIN).create(&begun.options_json);
    finish(&answer, "key").await.unwrap();
}

#[tokio::test]
async fn a_key_that_verifies_nobody_is_a_second_factor_and_no_first_one() {
    let world = World::start().await;
    let mut key = Authenticator::new(ORIGIN);
    key.verifies = false;
    let registered = world.register(&world.boss, &mut key, false).await.unwrap();
    assert!(!registered.device.passkey);
    assert_refused(world.log_in("boss", &mut key).await);

    let begun = world.begin_step_up("boss").await.unwrap();
    let answer = key.get(&begun.options_json).unwrap();
    let LoggedIn { session, .. } = world.finish_step_up(&begun, &answer).await.unwrap();
    assert_eq!((session.method(), session.device.as_str()), (AuthMethod::Webauthn, registered.id.as_str()));
    assert_eq!(world.node.audited("user.login.step_up").await.len(), 1);
}

#[tokio::test]
async fn a_step_up_is_bound_to_the_password_that_was_verified() {
    let world = World::start().await;
    let mut device = Authenticator::new(ORIGIN);
    assert!(world.try_step_up("boss", BOSS).await.unwrap().is_none(), "whoever has no device is not asked");
    world.register(&world.boss, &mut device, true).await.unwrap();
    let begun = world.begin_step_up("boss").await.unwrap();
    let answer = device.get(&begun.options_json).unwrap();
    let request =
        v1::ChangePasswordRequest { old_password: BOSS.into(), new_password: "another password".into() };
    let call = with(&world.boss, "ChangePassword");
    crate::rpc::login::change_password(&world.node.service, &call, request).await.unwrap();
    assert_refused(world.finish_step_up(&begun, &answer).await);
    assert_eq!(world.reason().await, "the password was changed meanwhile");

    let refused = world.try_step_up("boss", BOSS).await;
    assert!(matches!(refused, Err(ApiError::Core(refused)) if refused == WRONG));
    let begun = world.try_step_up("boss", "another password").await.unwrap().unwrap();
    let answer = device.get(&begun.options_json).unwrap();
    world.finish_step_up(&begun, &answer).await.unwrap();
}

#[tokio::test]
async fn who_is_unknown_or_has_no_device_is_answered_alike_and_always_the_same() {
    let world = World::start().await;
    let _ = world.add_user("ann").await;
    let mut device = Authenticator::new(ORIGIN);
    world.register(&world.boss, &mut device, true).await.unwrap();
    let shape = |begun: &Begun| {
        let mut options: Value = serde_json::from_str(&begun.options_json).unwrap();
        let credentials = options["allowCredentials"].as_array().unwrap().clone();
        for credential in &credentials {
            let keys: Vec<_> = credential.as_object().unwrap().keys().cloned().collect();
            assert_eq!(keys, ["id", "type"]);
        }
        options["allowCredentials"] = credentials.is_empty().into();
        options["challenge"] = Value::Null;
        options
    };
    let real = world.begin("boss").await;
    let mut seen = vec![ids(&real)];
    for name in ["ann", "nobody", "no name at all"] {
        let begun = world.begin(name).await;
        assert_eq!(shape(&begun), shape(&real), "{name}");
        assert_eq!(ids(&world.begin(name).await), ids(&begun), "{name}");
        assert!(!seen.contains(&ids(&begun)));
        seen.push(ids(&begun));
        assert_refused(world.finish(&begun, &device.force(&begun.options_json)).await);
    }
    assert_eq!(ids(&world.begin("ANN").await), seen[1]);
    let targets: Vec<_> =
        world.node.audited("user.login.failed").await.into_iter().map(|record| record.target).collect();
    assert_eq!(targets, ["user:ann", "user:?", "user:?"]);
}

#[tokio::test]
async fn failures_shut_the_logins_out_as_wrong_passwords_do() {
    let world = World::start().await;
    let mut device = Authenticator::new(ORIGIN);
    let mut wrong = Authenticator::new("https://evil.example.org");
    world.register(&world.boss, &mut device, true).await.unwrap();
    wrong.create(&world.begin_registration(&world.add_user("ann").await, true).await.unwrap().options_json);
    world.configure(SecondFactor::Off, 3).await;
    for _ in 0..3 {
        assert_refused(world.log_in("boss", &mut wrong).await);
    }
    assert_refused(world.log_in("boss", &mut device).await);
    assert_eq!(world.reason().await, "too many failures");
    assert_eq!(world.node.log_in("boss", BOSS).await.unwrap_err().code(), Code::Unauthenticated);
    // However often, right or wrong: nothing tells which it was.
    for _ in 0..40 {
        for password in [BOSS, "a wrong password"] {
            let refused = world.try_step_up("boss", password).await;
            assert!(matches!(refused, Err(ApiError::Core(refused)) if refused == WRONG));
        }
    }
    assert_eq!(world.node.audited("user.lockout").await.len(), 1);
}

#[tokio::test]
async fn a_lock_on_a_device_holds_at_login_and_for_the_sessions_that_were_made_with_it() {
    let world = World::start().await;
    let ann = world.add_user("ann").await;
    let mut device = Authenticator::new(ORIGIN);
    let registered = world.register(&ann, &mut device, true).await.unwrap();
    let session = world.log_in("ann", &mut device).await.unwrap().session_id;
    let target = Some(v1::LockTarget { target: Some(Target::Device(registered.id.to_string())) });
    let request = v1::CreateLockRequest { target, ..Default::default() };
    let call = with(&world.boss, "CreateLock");
    crate::rpc::locks::create(&world.node.service, &call, request).await.unwrap();
    assert!(matches!(world.may(&session).await, Err(ApiError::Core(CoreError::Locked(_)))));
    let before = ids(&world.begin("ann").await);
    assert_refused(world.log_in("ann", &mut device).await);
    assert!(world.reason().await.contains("is locked"));
    // That it is locked is not seen, and the session of the password goes on.
    assert_eq!(ids(&world.begin("ann").await), before);
    world.may(&ann).await.unwrap();
}

#[tokio::test]
async fn where_a_second_factor_is_required_a_password_alone_registers_a_device_and_nothing_else() {
    let world = World::start().await;
    let ann = world.add_user("ann").await;
    world.configure(SecondFactor::Webauthn, 10).await;
    let denied = world.may(&ann).await.unwrap_err();
    assert!(
        denied.code() == Code::PermissionDenied && denied.to_string().contains("register one"),
        "{denied}"
    );
    let open = ["ListWebAuthnDevices", "Logout", "BeginWebAuthnRegistration"];
    for method in open.into_iter().chain(["FinishWebAuthnRegistration"]) {
        world.node.service.read(&with(&ann, method), |_, _| Ok(())).await.unwrap();
    }
    for rule in mezite_proto::access::METHODS {
        let closed = world.node.service.read(&with(&ann, rule.method), |_, _| Ok(())).await.is_err();
        // An admin removes any agent by what is public for agents.
        let public = rule.classes.contains(&v1::AccessClass::Public) && rule.method != "DeregisterAgent";
        let opened = open.contains(&rule.method) || rule.method == "FinishWebAuthnRegistration";
        assert_eq!(closed, !public && !opened, "{}", rule.method);
    }

    let mut device = Authenticator::new(ORIGIN);
    world.register(&ann, &mut device, true).await.unwrap();
    let another = world.register(&ann, &mut Authenticator::new(ORIGIN), true).await.unwrap_err();
    assert_eq!(another.code(), Code::PermissionDenied);
    let session = world.log_in("ann", &mut device).await.unwrap().session_id;
    world.may(&session).await.unwrap();
    world.register(&session, &mut Authenticator::new(ORIGIN), false).await.unwrap();
    let denied = world.may(&ann).await.unwrap_err();
    assert!(denied.to_string().contains("log in with your authenticator"), "{denied}");
}

#[tokio::test]
async fn who_begins_too_many_is_turned_away_at_once_and_others_are_not() {
    let world = World::start().await;
    let call = anonymous("BeginWebAuthnLogin");
    let refused = loop {
        // Other than by time nobody gets another one.
        while world.node.service.pace.admit(network(&call)).is_ok() {}
        if let Err(refused) = begin_login(&world.node.service, &call, "boss").await {
            break refused;
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let mut elsewhere = call.clone();
    elsewhere.origin.client_address = "198.51.100.1".into();
    begin_login(&world.node.service, &elsewhere, "boss").await.unwrap();
    world.begin_registration(&world.boss, true).await.unwrap();
}

#[tokio::test]
async fn without_a_relying_party_it_is_said_what_to_configure() {
    let node = Node::start().await;
    let boss = node.boss().await;
    let refused = begin_login(&node.service, &anonymous("BeginWebAuthnLogin"), "boss").await.unwrap_err();
    assert!(refused.code() == Code::FailedPrecondition && refused.to_string().contains("--webauthn-rp-id"));
    let call = with(&boss, "BeginWebAuthnRegistration");
    let refused = begin_registration(&node.service, &call, true).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}
