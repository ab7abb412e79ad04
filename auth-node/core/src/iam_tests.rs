use proptest::prelude::*;

use super::*;
use crate::{
    audit::AuditRow,
    tables::{NodeKind, TokenSecretKey},
    testing::assert_invalid,
    token::NewToken,
    world::{Host, World, assert_denied, labels, new_token, report, secret, token_name},
};
use store_txn::ReadExt as _;

const ACCOUNT: &str = "123456789012";
const ROLE: &str = "arn:aws:sts::123456789012:assumed-role/web/i-0abc";
const USER: &str = "arn:aws:iam::123456789012:user/team/ann";

fn rule(account: &str, arn: &str) -> IamRuleRow {
    IamRuleRow { account: account.into(), arn: arn.into(), partition: String::new() }
}

fn identity(arn: &str) -> AwsIdentity {
    AwsIdentity::new(ACCOUNT, arn).unwrap()
}

/// Whether a rule, as it is kept, allows an identity.
fn allows(account: &str, arn: &str, identity: &AwsIdentity) -> bool {
    let kept = checked(JoinMethod::Iam, &[rule(account, arn)]).unwrap();
    kept[0].allows(identity)
}

#[test]
fn an_account_is_required_in_every_rule_and_is_the_identitys() {
    let check = |rules: &[IamRuleRow]| checked(JoinMethod::Iam, rules);
    assert_invalid(check(&[]), "iam_rules");
    for account in ["", "*", "12345678901", "1234567890123", "12345678901a", "١٢٣٤٥٦٧٨٩٠١٢"] {
        assert_invalid(check(&[rule(ACCOUNT, ""), rule(account, ROLE)]), "iam_rules[1].account");
    }
    assert_invalid(check(&vec![rule(ACCOUNT, ""); 65]), "iam_rules");
    assert!(check(&vec![rule(ACCOUNT, ""); 64]).is_ok());
    for method in [JoinMethod::Token, JoinMethod::Exchange] {
        assert_invalid(checked(method, &[rule(ACCOUNT, "")]), "iam_rules");
    }
    assert!(allows(ACCOUNT, "", &identity(ROLE)) && allows(ACCOUNT, "", &identity(USER)));
    assert!(!allows("210987654321", "", &identity(ROLE)));
    // A row that has none, by whoever wrote it, lets nobody in.
    assert!(!IamRuleRow { partition: "aws".into(), ..IamRuleRow::default() }.allows(&identity(ROLE)));
}

#[test]
fn an_account_is_one_of_its_partition() {
    let chinese = AwsIdentity::new(ACCOUNT, "arn:aws-cn:sts::123456789012:assumed-role/web/i-0abc").unwrap();
    assert!(!allows(ACCOUNT, "", &chinese));
    let in_china = IamRuleRow { partition: "aws-cn".into(), ..rule(ACCOUNT, "") };
    let kept = checked(JoinMethod::Iam, &[in_china]).unwrap();
    assert!(kept[0].allows(&chinese) && !kept[0].allows(&identity(ROLE)));
    let by_arn = "arn:aws-cn:sts::123456789012:assumed-role/web/*";
    assert!(allows(ACCOUNT, by_arn, &chinese) && !allows(ACCOUNT, by_arn, &identity(ROLE)));
    let torn = IamRuleRow { partition: "aws".into(), ..rule(ACCOUNT, by_arn) };
    assert_invalid(checked(JoinMethod::Iam, &[torn]), "iam_rules[0].arn");
    let odd = IamRuleRow { partition: "AWS *".into(), ..rule(ACCOUNT, "") };
    assert_invalid(checked(JoinMethod::Iam, &[odd]), "iam_rules[0].partition");
}

#[test]
fn patterns_of_arns_are_anchored_and_cross_no_separator() {
    for good in [
        ROLE,
        "arn:aws:sts::123456789012:assumed-role/web/*",
        "arn:aws:sts::123456789012:assumed-role/web/i-*",
        "arn:aws:sts::123456789012:assumed-role/w?b/i-0???",
        "arn:aws:sts::123456789012:assumed-role/*/*",
        "arn:aws:sts::123456789012:*/web/*a*c",
    ] {
        assert!(allows(ACCOUNT, good, &identity(ROLE)), "{good}");
    }
    for bad in [
        "arn:aws:sts::123456789012:*",
        "arn:aws:sts::123456789012:assumed*",
        "arn:aws:sts::123456789012:a*/*c",
        "arn:aws:sts::123456789012:assumed-role/web/i-0ab",
        "arn:aws:sts::123456789012:assumed-role/web/-0abc",
        "arn:aws:sts::123456789012:assumed-role/web/i-0abc?",
        "arn:aws:sts::123456789012:assumed-role/we/*",
        "arn:aws:sts::123456789012:assumed-role/Web/*",
        "arn:aws:iam::123456789012:assumed-roles/web/*",
    ] {
        assert!(!allows(ACCOUNT, bad, &identity(ROLE)), "{bad}");
    }
    assert!(allows(ACCOUNT, "arn:aws:iam::123456789012:user/team/*", &identity(USER)));
    assert!(!allows(ACCOUNT, "arn:aws:iam::123456789012:user/*", &identity(USER)));
}

#[test]
fn a_pattern_that_no_answer_of_aws_can_match_is_refused() {
    for bad in [
        "*",
        "arn:*",
        "arn:aws:sts::*:assumed-role/web/*",
        "arn:aws:sts::210987654321:assumed-role/web/*",
        "arn:aws:*::123456789012:assumed-role/web/*",
        "arn:aws:s3::123456789012:bucket",
        "arn:aws:sts:us-east-1:123456789012:assumed-role/web/*",
        "arn:aws:sts::123456789012:",
        "arn:aws:iam::123456789012:role/web",
        "arn:aws:sts::123456789012:assumed-role/web",
        "arn:aws:sts::123456789012:assumed-role/path/web/*",
        "arn:aws:iam::123456789012:assumed-role/web/*",
        "arn:aws:sts::123456789012:assumed-role/web/ *",
    ] {
        assert_invalid(checked(JoinMethod::Iam, &[rule(ACCOUNT, bad)]), "iam_rules[0].arn");
    }
    let long = format!("arn:aws:iam::123456789012:user/{}", "a".repeat(512));
    assert_invalid(checked(JoinMethod::Iam, &[rule(ACCOUNT, &long)]), "iam_rules[0].arn");
}

#[test]
fn an_identity_is_of_its_account_and_has_the_form_of_one() {
    assert_eq!((identity(USER).arn(), identity(USER).partition()), (USER, "aws"));
    assert!(AwsIdentity::new(ACCOUNT, "arn:aws:iam::123456789012:root").is_some());
    let long = format!("arn:aws:iam::123456789012:user/{}", "a".repeat(2048));
    for (account, arn) in [
        ("210987654321", ROLE),
        ("", "arn:aws:sts:::assumed-role/web/i"),
        (ACCOUNT, ""),
        (ACCOUNT, "arn:aws:sts::123456789012"),
        (ACCOUNT, "arn:aws:s3::123456789012:x"),
        (ACCOUNT, "arn:aws:sts::123456789012:assumed-role/web/i\n"),
        (ACCOUNT, &long),
    ] {
        assert!(AwsIdentity::new(account, arn).is_none(), "{account} {arn}");
    }
}

/// What `matches` is to say, in the simplest way there is.
fn reference(pattern: &[u8], text: &[u8]) -> bool {
    let plain = |byte: &u8| *byte != b'/' && *byte != b':';
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), Some((byte, after))) => {
            reference(rest, text) || plain(byte) && reference(pattern, after)
        }
        (Some((b'*', rest)), None) => reference(rest, text),
        (Some((b'?', rest)), Some((byte, after))) => plain(byte) && reference(rest, after),
        (Some((wanted, rest)), Some((byte, after))) => wanted == byte && reference(rest, after),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn patterns_match_as_they_are_defined(pattern in "[ab/:*?]{0,9}", text in "[ab/:]{0,9}") {
        prop_assert_eq!(matches(&pattern, &text), reference(pattern.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn a_pattern_without_wildcards_matches_itself_alone(one in "[ab/:]{0,6}", other in "[ab/:]{0,6}") {
        prop_assert!(matches(&one, &one));
        prop_assert_eq!(matches(&one, &other), one == other);
    }

    #[test]
    fn no_rule_lets_in_another_account(arn in "arn:aws:iam::[0-9]{12}:[a-z/*?]{1,12}", account in "[0-9]{12}") {
        let rule = IamRuleRow { account: account.clone(), arn, partition: "aws".into() };
        let identity = identity(USER);
        prop_assert!(!rule.allows(&identity) || account == ACCOUNT);
    }
}

/// A world with a token `t`, for web's instances.
fn world() -> World {
    let mut world = World::new();
    world.add_token(iam_token("t"));
    world
}

fn iam_token(name: &str) -> NewToken {
    NewToken {
        method: JoinMethod::Iam,
        iam_rules: vec![rule(ACCOUNT, "arn:aws:sts::123456789012:assumed-role/web/*")],
        labels: labels(&[("env", "prod")]),
        ..new_token(name, NodeKind::Ssh)
    }
}

fn ask(
    world: &mut World,
    host: &mut Host,
    token: &str,
    hostname: &str,
    attested: Result<AwsIdentity, String>,
) -> Result<IamJoined, CoreError> {
    // The log has grown since the last one: so this is another.
    let fresh = AgentId::from_random([world.audit().len() as u8; 16]);
    let asked = IamJoin {
        token: token_name(token),
        attested,
        request: host.request(hostname, &[]),
        report: report(&format!("{hostname}:22"), &[("os", "linux")]),
        fresh,
    };
    let joined = world.run(|tx, context| join(tx, context, &asked)).and_then(Verdict::into_result)?;
    host.id = Some(joined.certs.agent_id.clone());
    Ok(joined)
}

fn uses(world: &mut World, token: &str) -> u32 {
    world.run(|tx, _| token::get(tx, &token_name(token))).unwrap().row.uses
}

#[test]
fn a_join_is_certificates_and_registration_and_one_use_however_often_it_is_repeated() {
    let mut world = world();
    let mut host = Host::new(NodeKind::Ssh);
    let joined = ask(&mut world, &mut host, "t", "web1", Ok(identity(ROLE))).unwrap();
    assert_eq!(joined.registered.agent_id, joined.certs.agent_id);
    assert_eq!(joined.certs.ssh.unwrap().principals, ["web1"]);
    let node = world.node(&host).unwrap();
    assert_eq!(node.labels(), labels(&[("env", "prod"), ("os", "linux")]));
    assert_eq!((node.row.token.as_str(), node.row.registered_at_ms), ("t", world.now));
    let AuditRow { event, fields, .. } = world.last_audit();
    assert_eq!((event.as_str(), fields["aws_arn"].as_str()), ("agent.join", ROLE));

    // The answer was lost: with the same keys and names it is the same join, and no second registration.
    let before = world.audit().len();
    world.now += 1000;
    let id = host.id();
    ask(&mut world, &mut host, "t", "web1", Ok(identity(ROLE))).unwrap();
    assert_eq!((host.id(), uses(&mut world, "t")), (id, 1));
    assert_eq!(world.events(before), ["cert.host.issue"]);
    // Public keys are no proof: what is reported with them of who is there already does not count.
    let asked = IamJoin {
        token: token_name("t"),
        attested: Ok(identity(ROLE)),
        request: host.request("web1", &[]),
        report: report("elsewhere:22", &[("os", "mine")]),
        fresh: AgentId::from_random([9; 16]),
    };
    world.run(|tx, context| join(tx, context, &asked)).and_then(Verdict::into_result).unwrap();
    let node = world.node(&host).unwrap();
    assert_eq!(node.labels(), labels(&[("env", "prod"), ("os", "linux")]));
    // Others, and this one for another name, are not let in by it.
    let mut other = Host::new(NodeKind::Ssh);
    assert_denied(ask(&mut world, &mut other, "t", "web2", Ok(identity(ROLE))), "not accepted");
    assert_denied(ask(&mut world, &mut host, "t", "web2", Ok(identity(ROLE))), "joined as web1");
    // And the agent renews as any.
    assert!(world.renew(&host, &host.request("web1", &[])).is_ok());
}

/// By the answer nobody learns whether there is a token of the name, or whom it lets in; the audit log tells.
#[test]
fn whatever_is_wrong_with_the_token_or_the_identity_is_answered_alike_and_audited() {
    let mut world = world();
    world.add_token(NewToken { secret: secret("u"), ..new_token("secret", NodeKind::Ssh) });
    world.add_token(iam_token("used"));
    let mut first = Host::new(NodeKind::Ssh);
    ask(&mut world, &mut first, "used", "first", Ok(identity(ROLE))).unwrap();
    let wrong_account =
        AwsIdentity::new("210987654321", "arn:aws:sts::210987654321:assumed-role/web/i").unwrap();
    let deeper = identity("arn:aws:iam::123456789012:user/assumed-role/web/i");
    for (token, attested, logged) in [
        ("unknown", Ok(identity(ROLE)), "no token of this name"),
        ("secret", Ok(identity(ROLE)), "no token of this name"),
        ("t", Ok(wrong_account), "no rule of the token allows arn:aws:sts::210987654321:"),
        ("t", Ok(identity(USER)), "no rule of the token allows"),
        ("t", Ok(deeper), "no rule of the token allows"),
        ("t", Err("AWS refused: SignatureDoesNotMatch".to_owned()), "SignatureDoesNotMatch"),
        ("used", Ok(identity(ROLE)), "used up"),
    ] {
        let mut host = Host::new(NodeKind::Ssh);
        let answer = ask(&mut world, &mut host, token, "web1", attested).unwrap_err();
        let CoreError::Denied(answer) = answer else { panic!("{answer:?}") };
        assert!(
            answer.starts_with("the join is not accepted: AWS does not know the identity, or"),
            "{answer}"
        );
        let record = world.last_audit();
        assert_eq!((record.event.as_str(), record.target), ("agent.join.denied", format!("token:{token}")));
        assert!(record.fields["reason"].contains(logged), "{:?}", record.fields);
    }
    assert_eq!((uses(&mut world, "t"), uses(&mut world, "secret")), (0, 0));
    world.now += 3_600_000;
    let mut late = Host::new(NodeKind::Ssh);
    assert_denied(ask(&mut world, &mut late, "t", "web1", Ok(identity(ROLE))), "not accepted");
}

#[test]
fn a_token_of_the_method_iam_has_no_secret_and_its_name_is_none() {
    let mut world = World::new();
    world.add_token(NewToken { secret: secret("nobody knows"), ..iam_token("t") });
    let gone = world.run(|tx, _| Ok(tx.get(&TokenSecretKey(secret("nobody knows")))?));
    assert!(gone.unwrap().is_none());
    for text in ["t", "nobody knows", ""] {
        let mut host = Host::new(NodeKind::Ssh);
        assert_denied(world.ask(&mut host, text, "web1", &[]), "not accepted");
        let valid = world.run(|tx, context| token::validate(tx, context, secret(text)));
        assert_denied(valid.and_then(Verdict::into_result), "not accepted");
    }
    let created = world.audit().into_iter().find(|row| row.event == "token.create").unwrap();
    assert_eq!(created.fields["iam_rules"], "arn:aws:sts::123456789012:assumed-role/web/*");
}

#[test]
fn a_later_token_of_the_same_name_is_another() {
    let mut world = world();
    let mut host = Host::new(NodeKind::Ssh);
    ask(&mut world, &mut host, "t", "web1", Ok(identity(ROLE))).unwrap();
    world.admin(|tx, context| token::delete(tx, context, &token_name("t"))).unwrap();
    world.add_token(NewToken { secret: secret("t2"), ..iam_token("t") });
    // The keys are not known by it: it is a new join, and the name is held by the agent that there is.
    assert_denied(ask(&mut world, &mut host, "t", "web1", Ok(identity(ROLE))), "belongs to another agent");
    assert_eq!(uses(&mut world, "t"), 0);
}

#[test]
fn an_agent_that_registers_says_where_it_is_reached() {
    let mut world = world();
    let host = Host::new(NodeKind::Ssh);
    let asked = IamJoin {
        token: token_name("t"),
        attested: Ok(identity(ROLE)),
        request: host.request("web1", &[]),
        report: report("", &[]),
        fresh: AgentId::from_random([1; 16]),
    };
    assert_invalid(world.run(|tx, context| join(tx, context, &asked)), "address");
}

#[test]
fn a_join_that_another_token_began_goes_on() {
    let mut world = world();
    world.add_token(new_token("first", NodeKind::Ssh));
    let mut host = Host::new(NodeKind::Ssh);
    world.ask(&mut host, "first", "web1", &[]).unwrap();
    let id = host.id();
    ask(&mut world, &mut host, "t", "web1", Ok(identity(ROLE))).unwrap();
    assert_eq!((host.id(), uses(&mut world, "t")), (id, 1));
    assert_eq!(world.node(&host).unwrap().row.token, "t");
}
