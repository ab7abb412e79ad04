//! Joining by an AWS identity: whom a token lets in, and the join itself, which is certificates and registration in one.
//! How AWS is asked who somebody is, is not known here.
//!
//! An identity is the ARN that `sts:GetCallerIdentity` answers, and rules are written for that one: a role is known by
//! `arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION`, without the path that the role may have. A rule that no answer can
//! match, such as one of `arn:aws:iam::ACCOUNT:role/ROLE`, is refused when it is made. A rule always names the account,
//! and with it the partition of AWS: `aws-cn` may have an account of the same number, of somebody else. The region is
//! nothing to allow or deny: it is the endpoint that the joiner chose, and tells nothing of where it runs.

use store_txn::Transaction;

use crate::{
    Context, CoreError,
    audit::EventType,
    join::{self, HostCertRequest, HostCerts},
    names::{AgentId, TokenName},
    presence::Report,
    registration::{self, Registered},
    tables::{IamRuleRow, JoinMethod},
    token,
    verdict::{Stop, Verdict, audited},
};

/// Most rules of a token.
const MAX_RULES: usize = 64;
/// Longest pattern of ARNs, in bytes.
const MAX_PATTERN: usize = 512;
/// Longest ARN that is taken, in bytes: a user's has a path of 512 and a name of 64.
const MAX_ARN: usize = 2048;
/// Longest name of a partition, in bytes.
const MAX_PARTITION: usize = 32;
/// The partition of a rule that names none.
const USUAL_PARTITION: &str = "aws";

/// The parts of an ARN: `arn:partition:service:region:account:resource`.
struct Arn<'a> {
    partition: &'a str,
    service: &'a str,
    account: &'a str,
    resource: &'a str,
}

impl<'a> Arn<'a> {
    /// Reads one of an identity, or a pattern of such: those have no region.
    fn parse(text: &'a str) -> Option<Self> {
        let fields: Vec<_> = text.splitn(6, ':').collect();
        let ["arn", partition, service, "", account, resource] = *fields.as_slice() else { return None };
        let is_good = matches!(service, "iam" | "sts") && is_account(account) && !resource.is_empty();
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic()) && is_partition(partition);
        (is_good && is_plain).then_some(Self { partition, service, account, resource })
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_partition(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_PARTITION).contains(&text.len()) && text.bytes().all(plain)
}

/// Somebody of AWS, as `sts:GetCallerIdentity` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsIdentity {
    account: String,
    arn: String,
    partition: String,
}

impl AwsIdentity {
    /// Of the answer's account and ARN. `None`: they are not of one identity, or have no such form.
    pub fn new(account: &str, arn: &str) -> Option<Self> {
        let parts = Arn::parse(arn).filter(|parts| parts.account == account && arn.len() <= MAX_ARN)?;
        let partition = parts.partition.to_owned();
        Some(Self { account: account.to_owned(), arn: arn.to_owned(), partition })
    }

    /// Partition of AWS that it is one of.
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// Its ARN.
    pub fn arn(&self) -> &str {
        &self.arn
    }
}

impl IamRuleRow {
    /// Whether it lets an identity in.
    pub fn allows(&self, identity: &AwsIdentity) -> bool {
        self.account == identity.account
            && self.partition == identity.partition
            && (self.arn.is_empty() || matches(&self.arn, &identity.arn))
    }
}

/// What no wildcard stands for.
const SEPARATORS: [char; 2] = ['/', ':'];

/// Whether a pattern is all of a text, where `*` stands for any run of characters but `/` and `:`, and `?` for any one of
/// them.
fn matches(pattern: &str, text: &str) -> bool {
    // Wildcards stand for no separator: hence those of both must be the same, and what is between matches by itself.
    let mut parts = pattern.split(SEPARATORS).zip(text.split(SEPARATORS));
    pattern.matches(SEPARATORS).eq(text.matches(SEPARATORS))
        && parts.all(|(pattern, part)| part_matches(pattern.as_bytes(), part.as_bytes()))
}

/// As [`matches`], of what has no separators.
fn part_matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where the last star is, and up to where it matches now.
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = text.get(from) {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(wanted) if wanted == byte || *wanted == b'?' => {
                at += 1;
                from += 1;
            }
            _ => match star {
                // What an earlier star could match more, this one can as well.
                Some((place, end)) => {
                    star = Some((place, end + 1));
                    at = place + 1;
                    from = end + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|rest| *rest == b'*')
}

/// The rules of a token to make, checked and complete.
pub(crate) fn checked(method: JoinMethod, rules: &[IamRuleRow]) -> Result<Vec<IamRuleRow>, CoreError> {
    match (method, rules.len()) {
        (JoinMethod::Iam, 0) => {
            let reason = "say whom the token lets in: one AWS account at least";
            Err(CoreError::invalid("iam_rules", reason))
        }
        (JoinMethod::Iam, 1..=MAX_RULES) => {
            rules.iter().enumerate().map(|(index, rule)| checked_rule(index, rule)).collect()
        }
        (JoinMethod::Iam, _) => Err(CoreError::invalid("iam_rules", format!("at most {MAX_RULES}"))),
        (_, 0) => Ok(Vec::new()),
        (_, _) => Err(CoreError::invalid("iam_rules", "for the method JOIN_METHOD_IAM alone")),
    }
}

fn checked_rule(index: usize, rule: &IamRuleRow) -> Result<IamRuleRow, CoreError> {
    let invalid =
        |field: &str, reason: &str| CoreError::invalid(format!("iam_rules[{index}].{field}"), reason);
    let IamRuleRow { account, arn, partition } = rule;
    if !is_account(account) {
        return Err(invalid("account", "the twelve digits of an AWS account: every rule needs one"));
    }
    if !partition.is_empty() && !is_partition(partition) {
        return Err(invalid("partition", "aws, aws-cn or aws-us-gov"));
    }
    if arn.is_empty() {
        let given = Some(partition.clone()).filter(|partition| !partition.is_empty());
        let partition = given.unwrap_or_else(|| USUAL_PARTITION.to_owned());
        return Ok(IamRuleRow { partition, ..rule.clone() });
    }
    if arn.len() > MAX_PATTERN {
        return Err(invalid("arn", &format!("at most {MAX_PATTERN} bytes")));
    }
    let parts = Arn::parse(arn).ok_or_else(|| {
        let form =
            "arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION or arn:aws:iam::ACCOUNT:user/NAME, with wildcards \
             in what follows the account alone";
        invalid("arn", form)
    })?;
    if parts.account != account {
        return Err(invalid("arn", "it is of another account than the rule"));
    }
    if !partition.is_empty() && parts.partition != partition {
        return Err(invalid("arn", "it is of another partition than the rule"));
    }
    if parts.resource.starts_with("role/") {
        let reason = "AWS tells of a role as arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION: allow that, with * for \
                      the session";
        return Err(invalid("arn", reason));
    }
    let is_role = parts.resource.starts_with("assumed-role/");
    if is_role && (parts.service != "sts" || parts.resource.matches('/').count() != 2) {
        let reason = "a role has the form arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION, without its path; * stands for any session";
        return Err(invalid("arn", reason));
    }
    Ok(IamRuleRow { partition: parts.partition.to_owned(), ..rule.clone() })
}

/// Rules, for the audit log.
pub(crate) fn described(rules: &[IamRuleRow]) -> String {
    let one = |rule: &IamRuleRow| match rule.arn.as_str() {
        "" => format!("{}:{}", rule.partition, rule.account),
        arn => arn.to_owned(),
    };
    rules.iter().map(one).collect::<Vec<_>>().join(",")
}

/// A join by an AWS identity.
#[derive(Debug, Clone)]
pub struct IamJoin {
    /// Name of the token.
    pub token: TokenName,
    /// Who AWS says that the joiner is; or why it does not, for the audit log.
    pub attested: Result<AwsIdentity, String>,
    /// What certificates are asked for.
    pub request: HostCertRequest,
    /// How the agent registers.
    pub report: Report,
    /// Its id, if this is a new join.
    pub fresh: AgentId,
}

/// What came of a join.
#[derive(Debug, Clone)]
pub struct IamJoined {
    /// What is to be signed.
    pub certs: HostCerts,
    /// The agent, as it is in the registry.
    pub registered: Registered,
}

/// Decides on a join by an AWS identity. By the same keys and names it is the same join again, and one use of the token. A
/// refusal is audited.
///
/// # Errors
/// [`CoreError::Invalid`] for a report without an address; [`CoreError::Storage`].
pub fn join(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    asked: &IamJoin,
) -> Result<Verdict<IamJoined>, CoreError> {
    registration::check_address(&asked.report)?;
    let decision = enter(tx, context, asked);
    audited(tx, context, EventType::AgentJoinDenied, decision)
}

fn enter(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    asked: &IamJoin,
) -> Result<IamJoined, Stop> {
    let refused =
        |reason: String| token::refused_by(JoinMethod::Iam, format!("token:{}", asked.token), reason);
    let token = token::find_iam(tx, &asked.token)?;
    let identity = asked.attested.as_ref().map_err(|reason| refused(reason.clone()))?;
    if !token.iam_rules.iter().any(|rule| rule.allows(identity)) {
        return Err(refused(format!("no rule of the token allows {}", identity.arn)));
    }
    let certs = join::join_by(tx, context, asked.token.clone(), token, &asked.request, &asked.fresh)?;
    // From here on nothing is refused: the join has been written.
    let proof = [("aws_arn", identity.arn.clone())];
    let registered = registration::complete(tx, context, &certs.agent_id, &asked.report, &proof)?;
    Ok(IamJoined { certs, registered })
}

#[cfg(test)]
#[path = "iam_tests.rs"]
mod tests;
