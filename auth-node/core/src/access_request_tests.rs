use super::*;
use crate::{
    evaluate::Traits,
    issue::{self, UserCertRequest, UserCerts},
    lock::{NewLock, Target},
    names::LockId,
    secret::SecretDigest,
    tables::{RoleOptionsRow, RoleRow},
    testing::{assert_invalid, name, role_name, strings, traits},
    world::{Host, World, assert_denied},
};

const DAY: u64 = 24 * 3600 * 1000;

fn id(number: u8) -> RequestId {
    RequestId::from_random([number; 16])
}

/// A role that may ask for some roles and review requests for others.
fn asks(request: &[&str], review: &[&str], approvals: u32) -> RoleRow {
    let requests = RequestRulesRow {
        request_roles: strings(request).values,
        review_roles: strings(review).values,
        approvals,
    };
    let allow = ConditionsRow { requests: Some(requests), ..ConditionsRow::default() };
    RoleRow { allow: Some(allow), ..RoleRow::default() }
}

fn logs_in(login: &str, env: &str) -> RoleRow {
    let node_labels = [("env".to_owned(), strings(&[env]))].into();
    let allow = ConditionsRow { logins: vec![login.into()], node_labels, ..ConditionsRow::default() };
    RoleRow { allow: Some(allow), ..RoleRow::default() }
}

/// `ann` may ask for `dba` and `ops` and has nothing; `rob`, `ron` and `roy` may review `dba`. Two nodes: `prod`, `test`.
struct Office {
    world: World,
    ann: SecretDigest,
    rob: SecretDigest,
    ron: SecretDigest,
    prod: Host,
    test: Host,
}

impl Office {
    fn new(approvals: u32) -> Self {
        let mut world = World::new();
        // The office is open for longer than a session of the other tests lasts.
        world
            .run(|tx, _| {
                let session_ttl_ms = Some(30 * DAY);
                let row = crate::tables::ClusterConfigRow { session_ttl_ms, ..Default::default() };
                tx.put(&crate::tables::ClusterConfigKey, &row);
                Ok(())
            })
            .unwrap();
        world.boss = world.log_in("boss");
        let options =
            Some(RoleOptionsRow { max_session_ttl_ms: Some(3_600_000), ..RoleOptionsRow::default() });
        world.add_role("dba", &RoleRow { options, ..logs_in("dba", "prod") });
        world.add_role("ops", &logs_in("ops", "test"));
        world.add_role("asker", &asks(&["dba", "ops"], &[], approvals));
        world.add_role("reviewer", &asks(&[], &["dba"], 0));
        let ann = world.user_with("ann", "asker", Traits::new());
        let [rob, ron] = ["rob", "ron"].map(|user| world.user_with(user, "reviewer", Traits::new()));
        let prod = world.joined(NodeKind::Ssh, "prod.example.org", &[("env", "prod")]);
        let test = world.joined(NodeKind::Ssh, "test.example.org", &[("env", "test")]);
        Self { world, ann, rob, ron, prod, test }
    }

    fn ask_with(
        &mut self,
        number: u8,
        change: impl FnOnce(&mut NewRequest),
    ) -> Result<RequestRow, CoreError> {
        let mut new = NewRequest {
            id: id(number),
            roles: [role_name("dba")].into(),
            nodes: BTreeSet::new(),
            reason: "ticket 7".into(),
            duration: None,
        };
        change(&mut new);
        let made = self.world.call(self.ann, |tx, context| create(tx, context, &new))?;
        Ok(made.1.row)
    }

    fn ask(&mut self, number: u8) -> RequestRow {
        self.ask_with(number, |_| {}).unwrap()
    }

    fn review(&mut self, by: SecretDigest, number: u8, approve: bool) -> Result<RequestRow, CoreError> {
        let reviewed =
            self.world.call(by, |tx, context| review(tx, context, &id(number), approve, "looked at it"))?;
        Ok(reviewed.1.row)
    }

    fn cancel(&mut self, by: SecretDigest, number: u8) -> Result<RequestRow, CoreError> {
        Ok(self.world.call(by, |tx, context| cancel(tx, context, &id(number)))?.1.row)
    }

    fn state(&mut self, number: u8) -> RequestState {
        let now = self.world.now;
        self.world.admin(|tx, context| get(tx, context, &id(number))).unwrap().1.row.state_at(now)
    }

    /// Ann's certificates by these requests.
    fn certs(&mut self, numbers: &[u8]) -> Result<UserCerts, CoreError> {
        let key = mezite_pki::ssh::SshKeyPair::generate_ed25519("").unwrap().public_line();
        let ids: Vec<_> = numbers.iter().map(|number| id(*number).to_string()).collect();
        let request =
            UserCertRequest::new(&[key], Vec::new(), None, Vec::new(), "", || 5)?.with_requests(&ids)?;
        let found = self.world.call(self.ann, |view, context| issue::candidates(view, context, &request))?;
        self.world.call(self.ann, |tx, context| issue::user_certs(tx, context, &request, &found))
    }
}

fn principals(certs: &UserCerts) -> Vec<&str> {
    certs.ssh[0].principals.iter().map(String::as_str).collect()
}

#[test]
fn an_approved_request_gives_its_roles_until_it_ends_and_no_longer_than_the_strictest_allows() {
    let mut office = Office::new(0);
    assert_denied(office.certs(&[]), "no login");
    let asked = office.ask(1);
    assert_eq!((asked.approvals, asked.duration_ms, asked.state()), (1, 3_600_000, RequestState::Pending));
    assert_denied(office.certs(&[1]), "not an approved one");
    let rob = office.rob;
    let approved = office.review(rob, 1, true).unwrap();
    assert_eq!(
        (approved.state(), approved.ends_at_ms),
        (RequestState::Approved, office.world.now + 3_600_000)
    );
    office.world.now += 1_000;
    let certs = office.certs(&[1]).unwrap();
    let prod = office.prod.id();
    assert_eq!(principals(&certs), [format!("dba@{prod}")]);
    assert_eq!(certs.expires_at_ms, approved.ends_at_ms, "not an hour from now on");
    assert_eq!(office.world.last_audit().fields["access_requests"], id(1).to_string());
    office.world.now = approved.ends_at_ms;
    assert_eq!(office.state(1), RequestState::Expired);
    assert_denied(office.certs(&[1]), "it is over");
    assert_denied(office.certs(&[]), "no login");
}

#[test]
fn nodes_narrow_where_the_roles_count_and_choose_the_roles_that_reach_them() {
    let mut office = Office::new(0);
    let (prod, test) = (office.prod.id(), office.test.id());
    let rob = office.rob;
    let chosen = office
        .ask_with(1, |new| {
            new.roles.clear();
            new.nodes = [prod.clone()].into();
        })
        .unwrap();
    assert_eq!(chosen.roles, ["dba"]);
    office.review(rob, 1, true).unwrap();
    // Another node that the role reaches is not in it.
    let _other = office.world.joined(NodeKind::Ssh, "prod2.example.org", &[("env", "prod")]);
    assert_eq!(principals(&office.certs(&[1]).unwrap()), [format!("dba@{prod}")]);
    assert_denied(office.ask_with(2, |new| new.nodes = [test.clone()].into()), "no role that you ask for");
    let nowhere = AgentId::from_random([9; 16]);
    assert_denied(office.ask_with(2, |new| new.nodes = [nowhere].into()), "no such node");
    let both = office
        .ask_with(2, |new| {
            new.roles.clear();
            new.nodes = [prod, test].into();
        })
        .unwrap();
    assert_eq!(both.roles, ["dba", "ops"]);
}

#[test]
fn only_the_requested_roles_are_evaluated_and_only_what_may_be_asked_for_is() {
    let mut office = Office::new(0);
    for (role, says) in [("admin", "do not let you ask"), ("nothing", "do not let you ask")] {
        assert_denied(office.ask_with(1, |new| new.roles = [role_name(role)].into()), says);
    }
    // A deny side takes it away again.
    let deny = asks(&["dba"], &[], 0).allow;
    office.world.add_role("not-dba", &RoleRow { deny, ..RoleRow::default() });
    let grants = crate::testing::grants(&["asker", "not-dba"]);
    office.world.admin(|tx, context| crate::user::update(tx, context, &name("ann"), 0, &grants)).unwrap();
    assert_denied(office.ask_with(1, |_| {}), "do not let you ask");
}

#[test]
fn no_self_approval_one_review_an_author_and_strangers_see_nothing() {
    let mut office = Office::new(2);
    let (ann, rob, ron) = (office.ann, office.rob, office.ron);
    office.ask(1);
    assert_denied(office.review(ann, 1, true), "its own");
    let stranger = office.world.user_with("eve", "access", traits(&[]));
    for result in [office.review(stranger, 1, true), office.cancel(stranger, 1), office.cancel(rob, 1)] {
        assert!(matches!(result, Err(CoreError::NotFound { .. })), "{result:?}");
    }
    let seen = office.world.call(stranger, |tx, context| list(tx, context, None, &PageRequest::new(0, None)));
    assert!(seen.unwrap().items.is_empty());
    assert_eq!(office.review(rob, 1, true).unwrap().state(), RequestState::Pending);
    let twice = office.review(rob, 1, true);
    assert!(matches!(twice, Err(CoreError::Precondition(_))), "{twice:?}");
    assert_eq!(office.review(ron, 1, true).unwrap().state(), RequestState::Approved);
    // Who may review all of a request's roles alone may review it.
    office.ask_with(2, |new| new.roles = [role_name("dba"), role_name("ops")].into()).unwrap();
    let result = office.review(rob, 2, true);
    assert!(matches!(result, Err(CoreError::NotFound { .. })), "{result:?}");
    let boss = office.world.boss;
    office.review(boss, 2, true).unwrap();
}

#[test]
fn an_admin_does_not_approve_its_own_request_either() {
    let mut office = Office::new(0);
    let grants = crate::testing::grants(&["asker", "admin"]);
    office.world.admin(|tx, context| crate::user::update(tx, context, &name("ann"), 0, &grants)).unwrap();
    office.ask(1);
    let ann = office.ann;
    assert_denied(office.review(ann, 1, true), "its own");
}

/// From every final state, by every way to change it.
#[test]
fn terminal_states_never_change() {
    let mut office = Office::new(0);
    let (ann, rob, ron) = (office.ann, office.rob, office.ron);
    for number in 1..=4 {
        office.ask(number);
    }
    office.review(rob, 1, true).unwrap();
    office.review(rob, 2, false).unwrap();
    office.cancel(ann, 3).unwrap();
    let expected =
        [RequestState::Approved, RequestState::Denied, RequestState::Cancelled, RequestState::Expired];
    // The fourth is looked at by nobody for a day, while the first is asked for as soon as it is there.
    for (number, state) in (1..).zip(expected).take(3) {
        for result in
            [office.review(ron, number, true), office.review(ron, number, false), office.cancel(ann, number)]
        {
            assert!(matches!(result, Err(CoreError::Precondition(_))), "{number}: {result:?}");
        }
        assert_eq!(office.state(number), state);
    }
    office.world.now += PENDING_MS;
    for result in [office.review(ron, 4, true), office.cancel(ann, 4)] {
        assert!(matches!(result, Err(CoreError::Precondition(_))), "{result:?}");
    }
    assert_eq!(office.state(4), RequestState::Expired);
    office.world.now += KEPT_MS;
    office.world.boss = office.world.log_in("boss");
    let front = store_txn::KeyWriter::table(<RequestKey as store_txn::Key>::TABLE);
    let gone = office.world.admin(|tx, context| list(tx, context, None, &PageRequest::new(0, None))).unwrap();
    assert!(gone.items.is_empty() && office.world.rows(front) == 0);
}

#[test]
fn reasons_lists_and_lives_are_bounded() {
    let mut office = Office::new(0);
    assert_invalid(office.ask_with(1, |new| new.roles.clear()), "roles");
    assert_invalid(office.ask_with(1, |new| new.reason = "x".repeat(1025)), "reason");
    assert_invalid(office.ask_with(1, |new| new.reason = "a\u{1b}[2J".into()), "reason");
    let many = (0..17).map(|n| role_name(&format!("r{n}"))).collect();
    assert_invalid(office.ask_with(1, |new| new.roles = many), "roles");
    let many = (0..65).map(|n| AgentId::from_random([n; 16])).collect();
    assert_invalid(office.ask_with(1, |new| new.nodes = many), "nodes");
    assert_invalid(office.ask_with(1, |new| new.duration = Some(Duration::from_secs(59))), "duration");
    let long = office.ask_with(1, |new| new.duration = Some(Duration::from_secs(86_400))).unwrap();
    assert_eq!(long.duration_ms, 3_600_000, "cut to what the role allows");
    for number in 2..=u8::try_from(MAX_PER_USER).unwrap() {
        office.ask(number);
    }
    let one_more = office.ask_with(201, |_| {});
    assert!(matches!(one_more, Err(CoreError::Precondition(_))), "{one_more:?}");
    let key = mezite_pki::ssh::SshKeyPair::generate_ed25519("").unwrap().public_line();
    let request = UserCertRequest::new(&[key], Vec::new(), None, Vec::new(), "", || 5).unwrap();
    let ids = vec![id(1).to_string(); MAX_USED + 1];
    assert_invalid(request.clone().with_requests(&ids), "access_request_ids");
    assert_invalid(request.with_requests(&["x".into()]), "access_request_ids[0]");
}

#[test]
fn a_locked_role_is_neither_asked_for_nor_used() {
    let mut office = Office::new(0);
    let rob = office.rob;
    office.ask(1);
    office.review(rob, 1, true).unwrap();
    office.certs(&[1]).unwrap();
    let lock = NewLock {
        id: LockId::from_random([1; 16]),
        target: Target::Role(role_name("dba")),
        message: "call 1234".into(),
        ttl: None,
    };
    office.world.admin(|tx, context| lock::create(tx, context, lock)).unwrap();
    for result in [office.certs(&[1]).map(drop), office.ask_with(2, |_| {}).map(drop)] {
        assert!(matches!(result, Err(CoreError::Locked(_))), "{result:?}");
    }
    // What was issued by the role through a request is revoked with it.
    assert_eq!(office.world.run(|tx, _| crate::revocation::serials(tx)).unwrap(), [5]);
}

#[test]
fn somebody_elses_request_gives_nothing() {
    let mut office = Office::new(0);
    let (rob, ann) = (office.rob, office.ann);
    office.ask(1);
    office.review(rob, 1, true).unwrap();
    office.ann = office.world.user_with("eve", "asker", Traits::new());
    assert_denied(office.certs(&[1]), "not an approved one of yours");
    office.ann = ann;
    office.certs(&[1]).unwrap();
}

#[test]
fn requests_end_with_their_user_and_are_nothing_to_the_next_of_that_name() {
    let mut office = Office::new(0);
    let rob = office.rob;
    office.ask(1);
    office.ask(2);
    office.review(rob, 1, true).unwrap();
    office.certs(&[1]).unwrap();
    office.world.admin(|tx, context| crate::user::delete(tx, context, &name("ann"))).unwrap();
    office.ann = office.world.user_with("ann", "asker", Traits::new());
    assert_denied(office.certs(&[1]), "not an approved one of yours");
    let gone = office.review(rob, 2, true);
    assert!(matches!(gone, Err(CoreError::NotFound { .. })), "{gone:?}");
    assert_eq!(office.world.rows(UserRequestKey::front(&name("ann"))), 0);
}

#[test]
fn a_role_that_is_deleted_takes_along_what_was_issued_by_requests_for_it() {
    let mut office = Office::new(0);
    let rob = office.rob;
    office.ask(1);
    office.review(rob, 1, true).unwrap();
    office.certs(&[1]).unwrap();
    office.world.admin(|tx, context| crate::role::delete(tx, context, &role_name("dba"))).unwrap();
    assert_eq!(office.world.run(|tx, _| crate::revocation::serials(tx)).unwrap(), [5]);
    assert_denied(office.certs(&[1]), "no login");
}

#[test]
fn the_strictest_options_of_all_roles_count() {
    let mut office = Office::new(0);
    let rob = office.rob;
    let options = Some(RoleOptionsRow { permit_pty: Some(false), ..RoleOptionsRow::default() });
    office.world.add_role("no-terminal", &RoleRow { options, ..RoleRow::default() });
    let grants = crate::testing::grants(&["asker", "no-terminal"]);
    office.world.admin(|tx, context| crate::user::update(tx, context, &name("ann"), 0, &grants)).unwrap();
    office.ask(1);
    office.review(rob, 1, true).unwrap();
    assert!(!office.certs(&[1]).unwrap().ssh[0].extensions.pty);
}

#[test]
fn every_step_is_audited_and_lists_are_filtered_by_state() {
    let mut office = Office::new(2);
    let (ann, rob, ron) = (office.ann, office.rob, office.ron);
    let before = office.world.audit().len();
    for number in 1..=3 {
        office.ask(number);
    }
    office.review(rob, 1, true).unwrap();
    office.review(ron, 1, true).unwrap();
    office.review(rob, 2, false).unwrap();
    office.cancel(ann, 3).unwrap();
    let expected = ["create", "create", "create", "review", "approve", "deny", "cancel"];
    let expected: Vec<_> = expected.iter().map(|step| format!("access_request.{step}")).collect();
    assert_eq!(office.world.events(before), expected);
    let mut found = |state| {
        let page = PageRequest::new(0, None);
        let list = office.world.call(rob, |tx, context| list(tx, context, state, &page)).unwrap();
        list.items.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(found(None), [id(1), id(2), id(3)]);
    assert_eq!(found(Some(RequestState::Approved)), [id(1)]);
    assert_eq!(found(Some(RequestState::Denied)), [id(2)]);
    assert!(found(Some(RequestState::Pending)).is_empty());
}
