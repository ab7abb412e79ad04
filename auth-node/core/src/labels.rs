//! Labels of nodes: bounds, and how an admin's and an agent's come together.

use std::collections::BTreeMap;

use crate::CoreError;

/// Labels.
pub type Labels = BTreeMap<String, String>;

/// Most labels of one node and one source.
const MAX_LABELS: usize = 64;
/// Longest key, in bytes.
const MAX_KEY: usize = 63;
/// Longest value, in bytes.
const MAX_VALUE: usize = 256;

/// Checks labels: at most 64; keys of 1 to 63 bytes of `[a-zA-Z0-9._/-]`, values of at most 256 bytes.
///
/// # Errors
/// [`CoreError::Invalid`] for `field`.
pub fn check(field: &str, labels: &Labels) -> Result<(), CoreError> {
    if labels.len() > MAX_LABELS {
        return Err(CoreError::invalid(field, format!("at most {MAX_LABELS} labels")));
    }
    for (key, value) in labels {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
        if !(1..=MAX_KEY).contains(&key.len()) || !key.bytes().all(allowed) {
            return Err(CoreError::invalid(
                field,
                "a label's key has 1 to 63 characters of a-z A-Z 0-9 . _ / -",
            ));
        }
        if value.len() > MAX_VALUE || value.chars().any(char::is_control) {
            let reason =
                format!("the value of label {key} has control characters or more than {MAX_VALUE} bytes");
            return Err(CoreError::invalid(field, reason));
        }
    }
    Ok(())
}

/// What a node's labels are: the agent's, and over them the admin's.
pub fn effective(agent: &Labels, admin: &Labels) -> Labels {
    let mut labels = agent.clone();
    labels.extend(admin.iter().map(|(key, value)| (key.clone(), value.clone())));
    labels
}

/// As the audit log has them: `key=value`, with commas between.
pub(crate) fn shown(labels: &Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_admin_wins_over_an_agent() {
        let both = effective(&labels(&[("env", "prod"), ("os", "linux")]), &labels(&[("env", "dev")]));
        assert_eq!(both, labels(&[("env", "dev"), ("os", "linux")]));
    }

    #[test]
    fn labels_are_bounded() {
        assert!(check("labels", &labels(&[("a/b.c-d_E9", "any text, even ä")])).is_ok());
        let (long_key, long_value) = ("k".repeat(64), "v".repeat(257));
        for bad in
            [("", "x"), ("a b", "x"), ("ä", "x"), (long_key.as_str(), "x"), ("a", &long_value), ("a", "x\ny")]
        {
            assert!(check("labels", &labels(&[bad])).is_err(), "{bad:?}");
        }
        let many: Labels = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
        assert!(check("labels", &many).is_err());
    }
}
