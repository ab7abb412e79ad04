//! Join tokens.

use auth_core::{
    CoreError,
    names::TokenName,
    secret::{SecretDigest, SecretKind},
    tables::{AuthJoinTokenRow, IamRuleRow, JoinMethod, NodeKind, TokenRow},
    token::{self, Found, NewToken},
    trust,
};
use mezite_proto::v1;
use store_txn::Versioned;

use super::convert;
use crate::{authn::Call, error::ApiError, once::Once, service::Service};

/// Creates a join token. Its secret, if it has one, is in the reply and nowhere else.
pub(crate) async fn create(
    service: &Service,
    call: &Call,
    request: v1::CreateTokenRequest,
) -> Result<v1::CreateTokenResponse, ApiError> {
    let once = Once::of(call, &request);
    let secret = convert::secret();
    let new = parse(request, SecretDigest::of(SecretKind::JoinToken, &secret));
    let create = service.write_once(call, once, move |tx, context| {
        let new = new.clone()?;
        let name = new.name.clone();
        let row = token::create(tx, context, new)?;
        let secret = match row.method() {
            // The other cluster must know this one before it shows the token.
            JoinMethod::Exchange => format!("{}.{}", secret.as_str(), trust::tls_pin(tx)?),
            // It has none: nobody is told what its digest is of.
            JoinMethod::Iam => String::new(),
            JoinMethod::Token | JoinMethod::Unspecified => secret.as_str().to_owned(),
        };
        let token = reply((name, Found::Join(Versioned { revision: 0, row })));
        Ok(v1::CreateTokenResponse { token: Some(token), secret })
    });
    create.await
}

/// Answers one join token, without its secret.
pub(crate) async fn get(
    service: &Service,
    call: &Call,
    request: v1::GetTokenRequest,
) -> Result<v1::GetTokenResponse, ApiError> {
    let name = TokenName::parse("name", &request.name);
    let found = service.read(call, move |view, _| {
        let name = name?;
        let found = token::find_any(view, &name)?;
        Ok((name, found))
    });
    Ok(v1::GetTokenResponse { token: Some(reply(found.await?)) })
}

/// Lists join tokens, ordered by name.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListTokensRequest,
) -> Result<v1::ListTokensResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token);
    let page = service.read(call, move |view, _| token::list(view, &page?)).await?.map(reply);
    Ok(v1::ListTokensResponse { tokens: page.items, next_page_token: convert::page_token(page.next) })
}

/// Deletes a join token. Agents that joined with it stay.
pub(crate) async fn delete(
    service: &Service,
    call: &Call,
    request: v1::DeleteTokenRequest,
) -> Result<v1::DeleteTokenResponse, ApiError> {
    let name = TokenName::parse("name", &request.name);
    service
        .write(call, move |tx, context| token::delete(tx, context, name.as_ref().map_err(Clone::clone)?))
        .await?;
    Ok(v1::DeleteTokenResponse {})
}

fn parse(request: v1::CreateTokenRequest, secret: SecretDigest) -> Result<NewToken, CoreError> {
    let name = match request.name.as_str() {
        "" => format!("token-{}", hex::encode(rand::random::<[u8; 6]>())),
        given => given.to_owned(),
    };
    let is_exchange = request.kind() == v1::TokenKind::TrustedCluster;
    Ok(NewToken {
        name: TokenName::parse("name", &name)?,
        kind: match v1::TokenKind::try_from(request.kind) {
            Ok(v1::TokenKind::Node) => NodeKind::Ssh,
            Ok(v1::TokenKind::Ingest) => NodeKind::Ingest,
            Ok(v1::TokenKind::Unspecified | v1::TokenKind::TrustedCluster | v1::TokenKind::AuthNode)
            | Err(_) => NodeKind::Unspecified,
        },
        method: match v1::JoinMethod::try_from(request.method) {
            Ok(v1::JoinMethod::Unspecified | v1::JoinMethod::Token) if is_exchange => JoinMethod::Exchange,
            Ok(v1::JoinMethod::Unspecified | v1::JoinMethod::Token) => JoinMethod::Token,
            Ok(v1::JoinMethod::Iam) => JoinMethod::Iam,
            Err(_) => JoinMethod::Unspecified,
        },
        ttl: request.ttl.map(|ttl| convert::duration_in("ttl", ttl)).transpose()?,
        max_uses: request.max_uses,
        labels: request.labels,
        allowed_principals: request.allowed_principals,
        secret,
        iam_rules: request.iam_rules.into_iter().map(rule_in).collect(),
    })
}

fn rule_in(rule: v1::IamRule) -> IamRuleRow {
    let v1::IamRule { account, arn, partition } = rule;
    IamRuleRow { account, arn, partition }
}

fn rule_out(rule: IamRuleRow) -> v1::IamRule {
    let IamRuleRow { account, arn, partition } = rule;
    v1::IamRule { account, arn, partition }
}

/// What a token lets join, as it is told.
pub(super) fn kind(row: &TokenRow) -> v1::TokenKind {
    match row.kind() {
        _ if row.method() == JoinMethod::Exchange => v1::TokenKind::TrustedCluster,
        NodeKind::Unspecified => v1::TokenKind::Unspecified,
        NodeKind::Ssh => v1::TokenKind::Node,
        NodeKind::Ingest => v1::TokenKind::Ingest,
    }
}

fn reply((name, found): (TokenName, Found)) -> v1::Token {
    let (revision, row) = match found {
        Found::Join(Versioned { revision, row }) => (revision, row),
        Found::AuthNode(token) => return reply_of_auth_node(name, token),
    };
    let method = match row.method() {
        JoinMethod::Unspecified => v1::JoinMethod::Unspecified,
        JoinMethod::Token | JoinMethod::Exchange => v1::JoinMethod::Token,
        JoinMethod::Iam => v1::JoinMethod::Iam,
    };
    v1::Token {
        name: name.into(),
        kind: kind(&row).into(),
        method: method.into(),
        expires_at: Some(convert::timestamp(row.expires_at_ms)),
        max_uses: row.max_uses,
        uses: row.uses,
        labels: row.labels,
        allowed_principals: row.allowed_principals,
        iam_rules: row.iam_rules.into_iter().map(rule_out).collect(),
        created_by: row.created_by,
        created_at: Some(convert::timestamp(row.created_at_ms)),
        revision,
    }
}

fn reply_of_auth_node(name: TokenName, token: Versioned<AuthJoinTokenRow>) -> v1::Token {
    let Versioned { revision, row } = token;
    v1::Token {
        name: name.into(),
        kind: v1::TokenKind::AuthNode.into(),
        method: v1::JoinMethod::Token.into(),
        expires_at: Some(convert::timestamp(row.expires_at_ms)),
        max_uses: 1,
        uses: u32::from(row.node_id != 0),
        created_by: row.created_by,
        revision,
        ..v1::Token::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(request: v1::CreateTokenRequest) -> Result<NewToken, CoreError> {
        parse(request, SecretDigest([0; 32]))
    }

    #[test]
    fn a_token_without_a_name_gets_one_of_its_own() {
        let request = || v1::CreateTokenRequest { kind: v1::TokenKind::Node.into(), ..Default::default() };
        let (one, other) = (parsed(request()).unwrap(), parsed(request()).unwrap());
        assert_ne!(one.name, other.name);
        assert_eq!(
            (one.kind, one.method, one.ttl, one.max_uses),
            (NodeKind::Ssh, JoinMethod::Token, None, 0)
        );
        let named = parsed(v1::CreateTokenRequest { name: "web".into(), ..request() }).unwrap();
        assert_eq!(named.name.as_str(), "web");
        assert!(parsed(v1::CreateTokenRequest { name: "a b".into(), ..request() }).is_err());
    }

    #[test]
    fn numbers_that_this_release_does_not_know_are_not_taken_for_others() {
        let unknown = v1::CreateTokenRequest { kind: 9, method: 9, ..Default::default() };
        let new = parsed(unknown).unwrap();
        assert_eq!((new.kind, new.method), (NodeKind::Unspecified, JoinMethod::Unspecified));
        let ttl = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        assert!(parsed(v1::CreateTokenRequest { ttl, ..Default::default() }).is_err());
    }

    #[test]
    fn rules_of_aws_identities_are_taken_and_told_as_they_are() {
        let rule = v1::IamRule { account: "1".into(), arn: "a".into(), partition: "p".into() };
        let request = v1::CreateTokenRequest {
            method: v1::JoinMethod::Iam.into(),
            iam_rules: vec![rule.clone()],
            ..Default::default()
        };
        let new = parsed(request).unwrap();
        assert_eq!(new.method, JoinMethod::Iam);
        let row = TokenRow { method: new.method.into(), iam_rules: new.iam_rules, ..TokenRow::default() };
        let reply = reply((new.name, Found::Join(Versioned { revision: 3, row })));
        assert_eq!((reply.method(), reply.iam_rules), (v1::JoinMethod::Iam, vec![rule]));
    }

    #[test]
    fn a_secret_or_its_digest_is_never_told_again() {
        let row =
            TokenRow { secret_digest: b"digest".to_vec(), kind: NodeKind::Ssh.into(), ..TokenRow::default() };
        let name = TokenName::parse("name", "web").unwrap();
        let reply = reply((name, Found::Join(Versioned { revision: 3, row })));
        assert_eq!((reply.name.as_str(), reply.kind(), reply.revision), ("web", v1::TokenKind::Node, 3));
        assert!(!format!("{reply:?}").contains("digest"));
    }
}
