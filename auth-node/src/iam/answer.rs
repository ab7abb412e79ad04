//! What STS says to `GetCallerIdentity`. Pure. An error's text is its own, and goes nowhere: of it, the code alone is for
//! the audit log.

use auth_core::iam::AwsIdentity;
use serde::Deserialize;

/// What an answer comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Who has signed.
    Identity(AwsIdentity),
    /// AWS does not recognise the signature or its maker. Why, for the audit log.
    Refused(String),
    /// It says nothing of the signature. Why, for the log.
    Unusable(String),
}

#[derive(Deserialize)]
struct Success {
    #[serde(rename = "GetCallerIdentityResponse")]
    response: Response,
}

#[derive(Deserialize)]
struct Response {
    #[serde(rename = "GetCallerIdentityResult")]
    result: Caller,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Caller {
    account: String,
    arn: String,
    // Not looked at, but what has none is no such answer.
    #[serde(rename = "UserId")]
    _user_id: String,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(rename = "Error")]
    error: Named,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    code: String,
}

/// Longest code of an error, in bytes.
const MAX_CODE: usize = 64;

/// Reads an answer; `partition` is the one of the endpoint, if that is of one.
pub(crate) fn read(status: u16, body: &[u8], partition: Option<&str>) -> Answer {
    match status {
        200 => identity(body, partition),
        400..=499 => failure(status, body),
        _ => Answer::Unusable(format!("HTTP status {status}")),
    }
}

fn identity(body: &[u8], partition: Option<&str>) -> Answer {
    let unusable = |reason: &str| Answer::Unusable(reason.to_owned());
    let Ok(Success { response: Response { result } }) = serde_json::from_slice(body) else {
        return unusable("it is no JSON of a GetCallerIdentityResponse");
    };
    match AwsIdentity::new(&result.account, &result.arn) {
        None => unusable("its account and ARN are not of one identity"),
        Some(identity) if partition.is_some_and(|partition| partition != identity.partition()) => {
            unusable("its identity is of another partition than the region")
        }
        Some(identity) => Answer::Identity(identity),
    }
}

fn failure(status: u16, body: &[u8]) -> Answer {
    let code = serde_json::from_slice::<Failure>(body).ok().map(|failure| failure.error.code);
    let is_code = |code: &String| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.';
        (1..=MAX_CODE).contains(&code.len()) && code.bytes().all(plain)
    };
    match code.filter(is_code).as_deref() {
        // It is too busy to look.
        Some(code @ ("Throttling" | "ThrottlingException" | "RequestLimitExceeded")) => {
            Answer::Unusable(format!("AWS says {code}"))
        }
        _ if status == 429 => Answer::Unusable("AWS says that it is asked too often".into()),
        Some(code) => Answer::Refused(format!("AWS refused the signature: {code}")),
        None => Answer::Refused(format!("AWS refused the signature with HTTP status {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":"123456789012",
        "Arn":"arn:aws:sts::123456789012:assumed-role/web/i-0abc","UserId":"AROA:i-0abc"},
        "ResponseMetadata":{"RequestId":"01234567-89ab-cdef-0123-456789abcdef"}}}"#;

    fn is_unusable(answer: &Answer) -> bool {
        matches!(answer, Answer::Unusable(_))
    }

    #[test]
    fn an_identity_is_read_from_a_good_answer_alone() {
        let identity =
            AwsIdentity::new("123456789012", "arn:aws:sts::123456789012:assumed-role/web/i-0abc").unwrap();
        for partition in [None, Some("aws")] {
            assert_eq!(read(200, GOOD.as_bytes(), partition), Answer::Identity(identity.clone()));
        }
        assert!(is_unusable(&read(200, GOOD.as_bytes(), Some("aws-cn"))));
        for (good, bad) in [
            ("GetCallerIdentityResponse", "GetSessionTokenResponse"),
            ("GetCallerIdentityResult", "Result"),
            ("\"UserId\"", "\"Id\""),
            ("\"Account\":\"123456789012\"", "\"Account\":123456789012"),
            ("\"Account\":\"123456789012\"", "\"Account\":\"210987654321\""),
            ("arn:aws:sts", "arn:aws:ec2"),
            ("}}}", "}}"),
            ("}}}", "}}} x"),
            ("\"Account\"", "\"Account\":\"210987654321\",\"Account\""),
        ] {
            let changed = GOOD.replace(good, bad);
            assert_ne!(changed, GOOD);
            assert!(is_unusable(&read(200, changed.as_bytes(), None)), "{changed}");
        }
        for bad in ["", "{}", "null", "[]", "<GetCallerIdentityResponse/>", "\u{0}"] {
            assert!(is_unusable(&read(200, bad.as_bytes(), None)), "{bad:?}");
        }
        for status in [100, 201, 204, 206, 301, 302, 307, 500, 503] {
            assert!(is_unusable(&read(status, GOOD.as_bytes(), None)), "{status}");
        }
    }

    #[test]
    fn an_error_is_a_refusal_without_its_text() {
        let refused = |status, body: &str| match read(status, body.as_bytes(), None) {
            Answer::Refused(reason) => reason,
            other => panic!("{other:?}"),
        };
        let error =
            |code: &str| format!(r#"{{"Error":{{"Code":"{code}","Message":"<secret>"}},"RequestId":"r"}}"#);
        let said = refused(403, &error("SignatureDoesNotMatch"));
        assert_eq!(said, "AWS refused the signature: SignatureDoesNotMatch");
        let long = "a".repeat(65);
        for odd in ["a b", "<x>", "", &long, "ä"] {
            assert_eq!(refused(403, &error(odd)), "AWS refused the signature with HTTP status 403");
        }
        assert_eq!(refused(404, GOOD), "AWS refused the signature with HTTP status 404");
        assert_eq!(refused(403, "<ErrorResponse>x"), "AWS refused the signature with HTTP status 403");
        assert!(is_unusable(&read(400, error("Throttling").as_bytes(), None)));
        assert!(is_unusable(&read(429, b"", None)));
    }
}
