//! Names and ids, parsed once at the edge. A value of one of these types is canonical; what it names may not exist.

use std::fmt;

use unicode_normalization::UnicodeNormalization;

use crate::CoreError;

/// Longest canonical name, in bytes.
pub const MAX_NAME: usize = 63;

/// Longest spelling of a name that is looked at, in bytes: what NFKC makes of more cannot be in bounds.
const MAX_SPELLING: usize = 1024;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The canonical text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

name_type!(
    /// The canonical name of a user: NFKC, lower case, 1 to 63 bytes of `[a-z0-9._@-]`, the first a letter or digit.
    UserName
);
name_type!(
    /// The canonical name of a role: as a user's.
    RoleName
);
name_type!(
    /// The canonical name of a connector: as a user's.
    ConnectorName
);
name_type!(
    /// The canonical name of an agent identity: as a user's, and in a space of its own. Where both kinds of names can be, it has
    /// `bot:` in front, which no name of a user has.
    IdentityName
);
name_type!(
    /// The name of a cluster: 1 to 63 bytes of `[a-z0-9.-]`, and a front of DNS names.
    ClusterName
);
name_type!(
    /// The public name of a join token: 1 to 63 bytes of `[a-z0-9-]`.
    TokenName
);
name_type!(
    /// The id of an agent: a UUID in lower case with hyphens.
    AgentId
);
name_type!(
    /// The public handle of a session: 32 hexadecimal digits. It names the session and is no credential.
    SessionHandle
);

name_type!(
    /// The id of a lock: 32 hexadecimal digits.
    LockId
);
name_type!(
    /// The id of an access request: 32 hexadecimal digits.
    RequestId
);
name_type!(
    /// The id of a WebAuthn device: 32 hexadecimal digits.
    DeviceId
);

/// Makes an id of 16 random bytes, in hexadecimal digits.
macro_rules! hex_id {
    ($($name:ident),+) => {$(
        impl $name {
            /// Makes one of 16 random bytes.
            pub fn from_random(random: [u8; 16]) -> Self {
                Self(hex::encode(random))
            }

            /// Reads one; only the canonical form. `None`: it is not one.
            pub fn parse(text: &str) -> Option<Self> {
                let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                (text.len() == 32 && text.bytes().all(digit)).then(|| Self(text.to_owned()))
            }
        }
    )+};
}
hex_id!(SessionHandle, LockId, RequestId, DeviceId);

/// The canonical form of a spelling: NFKC, then lower case.
fn canonical(spelling: &str) -> Option<String> {
    if spelling.len() > MAX_SPELLING {
        return None;
    }
    let lower = spelling.nfkc().collect::<String>().to_lowercase();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let allowed = |c: char| plain(c) || "._@-".contains(c);
    // A name of a path or an option is no name of somebody.
    let good = lower.len() <= MAX_NAME && lower.starts_with(plain) && lower.chars().all(allowed);
    good.then_some(lower)
}

impl UserName {
    /// Reads any spelling of a user's name.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field` when it has no canonical form.
    pub fn parse(field: &str, spelling: &str) -> Result<Self, CoreError> {
        canonical(spelling).map(Self).ok_or_else(|| named(field))
    }

    /// The name here of this user of another cluster: `ann@other`. `None`: it is longer than a name can be.
    pub fn at(&self, cluster: &ClusterName) -> Option<Self> {
        canonical(&format!("{self}@{cluster}")).map(Self)
    }
}

impl RoleName {
    /// The role whose holders administer the cluster.
    pub const ADMIN: &'static str = "admin";
    /// The role that reads what was done.
    pub const AUDITOR: &'static str = "auditor";
    /// The role that logs in on every node, with the logins of the user's traits.
    pub const ACCESS: &'static str = "access";

    /// Reads any spelling of a role's name.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field` when it has no canonical form.
    pub fn parse(field: &str, spelling: &str) -> Result<Self, CoreError> {
        canonical(spelling).map(Self).ok_or_else(|| named(field))
    }

    /// The name of the role of administrators.
    pub fn admin() -> Self {
        Self(Self::ADMIN.to_owned())
    }

    /// The name of the role that reads what was done.
    pub fn auditor() -> Self {
        Self(Self::AUDITOR.to_owned())
    }

    /// The name of the role that logs in on every node.
    pub fn access() -> Self {
        Self(Self::ACCESS.to_owned())
    }

    /// Whether it is the role of administrators.
    pub fn is_admin(&self) -> bool {
        self.0 == Self::ADMIN
    }
}

impl IdentityName {
    /// What stands in front of the name of an agent identity where a user's could be.
    pub const FRONT: &'static str = "bot:";

    /// Reads any spelling of an agent identity's name.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field` when it has no canonical form.
    pub fn parse(field: &str, spelling: &str) -> Result<Self, CoreError> {
        canonical(spelling).map(Self).ok_or_else(|| named(field))
    }

    /// As sshd and the audit log tell it from a user of the same name: `bot:ci`.
    pub fn principal(&self) -> String {
        format!("{}{self}", Self::FRONT)
    }
}

impl ConnectorName {
    /// Reads any spelling of a connector's name.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field` when it has no canonical form.
    pub fn parse(field: &str, spelling: &str) -> Result<Self, CoreError> {
        canonical(spelling).map(Self).ok_or_else(|| named(field))
    }
}

fn named(field: &str) -> CoreError {
    CoreError::invalid(
        field,
        "a name has 1 to 63 characters: letters without accents and digits, and after the first also . _ @ -",
    )
}

impl ClusterName {
    /// Reads a cluster's name; only the canonical form.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self, CoreError> {
        let label = |label: &str| {
            let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !label.is_empty()
                && label.bytes().all(allowed)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() <= MAX_NAME && text.split('.').all(label) {
            return Ok(Self(text.to_owned()));
        }
        let reason =
            "a cluster's name has 1 to 63 characters: lower-case letters, digits, - and ., as in a DNS name";
        Err(CoreError::invalid(field, reason))
    }
}

impl TokenName {
    /// Reads a token's name.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self, CoreError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if (1..=MAX_NAME).contains(&text.len()) && text.chars().all(allowed) {
            return Ok(Self(text.to_owned()));
        }
        Err(CoreError::invalid(
            field,
            "a token's name has 1 to 63 characters: lower-case letters, digits and -",
        ))
    }
}

impl AgentId {
    /// Makes an id (UUID version 4) of 16 random bytes.
    pub fn from_random(random: [u8; 16]) -> Self {
        let mut bytes = random;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let digits = hex::encode(bytes);
        let mut text = String::with_capacity(36);
        for (index, digit) in digits.chars().enumerate() {
            if matches!(index, 8 | 12 | 16 | 20) {
                text.push('-');
            }
            text.push(digit);
        }
        Self(text)
    }

    /// Reads an id; only the canonical form.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self, CoreError> {
        let good = text.len() == 36
            && text.bytes().enumerate().all(|(index, byte)| match index {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            });
        if good {
            return Ok(Self(text.to_owned()));
        }
        Err(CoreError::invalid(field, "an agent's id is a UUID in lower case with hyphens"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_name_are_one_name() {
        for spelling in ["Ann@Example.com", "ann@example.com", "ＡＮＮ@example.com", "ANN@EXAMPLE.COM"] {
            assert_eq!(UserName::parse("name", spelling).unwrap().as_str(), "ann@example.com", "{spelling}");
        }
    }

    #[test]
    fn what_has_no_canonical_form_is_refused() {
        let long = "a".repeat(64);
        for bad in [
            "",
            " ",
            "ann b",
            "ann\n",
            ".",
            "..",
            "-rf",
            "@",
            "änn",
            "аnn",
            "a/b",
            "a:b",
            "../a",
            "a\0",
            &long,
            &"x".repeat(5000),
        ] {
            assert!(UserName::parse("name", bad).is_err(), "{bad:?}");
            assert!(RoleName::parse("name", bad).is_err(), "{bad:?}");
        }
        assert!(UserName::parse("name", &"a".repeat(63)).is_ok());
    }

    #[test]
    fn the_names_of_built_in_roles_are_canonical() {
        for name in [RoleName::admin(), RoleName::auditor(), RoleName::access()] {
            assert_eq!(RoleName::parse("name", name.as_str()), Ok(name));
        }
    }

    #[test]
    fn cluster_names_are_fronts_of_dns_names() {
        for good in ["prod", "eu-1.prod.example", "1", &"a".repeat(63)] {
            assert!(ClusterName::parse("name", good).is_ok(), "{good}");
        }
        for bad in ["", "Prod", "a..b", ".a", "a.", "-a", "a-", "a.-b", "a_b", "a b", "a/b", &"a".repeat(64)]
        {
            assert!(ClusterName::parse("name", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn token_names_are_not_folded() {
        assert!(TokenName::parse("name", "ci-1").is_ok());
        for bad in ["", "CI", "a_b", "a.b", "a b"] {
            assert!(TokenName::parse("name", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn agent_ids_are_version_4_uuids_and_come_back() {
        let id = AgentId::from_random([0xff; 16]);
        assert_eq!(id.as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(AgentId::parse("id", id.as_str()).unwrap(), id);
        for bad in [
            "",
            "FFFFFFFF-FFFF-4FFF-BFFF-FFFFFFFFFFFF",
            "ffffffffffff4fffbfffffffffffffff",
            "../../etc/passwd",
        ] {
            assert!(AgentId::parse("id", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn handles_are_hexadecimal() {
        let handle = SessionHandle::from_random([7; 16]);
        assert_eq!(SessionHandle::parse(handle.as_str()), Some(handle));
        assert!(SessionHandle::parse("x").is_none() && SessionHandle::parse(&"A".repeat(32)).is_none());
    }
}
