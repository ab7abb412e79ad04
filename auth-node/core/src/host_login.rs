//! Logins on hosts, as roles name them: literally, or by a template that stands for the values of a user's trait.

/// Longest login, in bytes: a principal `login@agent_id` must stay within the 255 bytes of a certificate's.
const MAX_LOGIN: usize = 128;
/// Longest name of a trait, in bytes.
const MAX_TRAIT_NAME: usize = 63;

/// One entry of a role's list of logins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostLogin<'a> {
    /// This login.
    Literal(&'a str),
    /// Every value of this trait that is a login.
    Trait(&'a str),
}

impl<'a> HostLogin<'a> {
    /// Reads an entry: a login, or exactly `{{internal.NAME}}` or `{{external.NAME}}`. Both stand for the trait of that
    /// name; the words tell readers whether an admin or an identity provider sets it. `None`: it is neither.
    pub fn parse(text: &'a str) -> Option<Self> {
        let Some(template) = text.strip_prefix("{{") else {
            return is_login(text).then_some(Self::Literal(text));
        };
        let path = template.strip_suffix("}}")?;
        let name = path.strip_prefix("internal.").or_else(|| path.strip_prefix("external."))?;
        is_trait_name(name).then_some(Self::Trait(name))
    }
}

/// Whether a text can be a login: 1 to 128 visible ASCII characters, none of `,*?!"'\@{}`, which have a meaning where
/// principals are listed, matched or made, and no `-` in front, which would make it an option.
pub fn is_login(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b",*?!\"'\\@{}".contains(&byte);
    (1..=MAX_LOGIN).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-')
}

/// Whether a text can be the name of a trait: 1 to 63 bytes of `[a-zA-Z0-9._-]`.
pub fn is_trait_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_TRAIT_NAME).contains(&text.len()) && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_logins_or_whole_templates() {
        for login in ["root", "svc_$x", "a.b-c+d", "ann:x", &"x".repeat(128)] {
            assert_eq!(HostLogin::parse(login), Some(HostLogin::Literal(login)));
        }
        assert_eq!(HostLogin::parse("{{internal.logins}}"), Some(HostLogin::Trait("logins")));
        assert_eq!(HostLogin::parse("{{external.unix-name_1.x}}"), Some(HostLogin::Trait("unix-name_1.x")));
    }

    #[test]
    fn whatever_a_list_a_pattern_or_a_template_could_read_otherwise_is_refused() {
        let (long, long_name) = ("x".repeat(129), format!("{{{{internal.{}}}}}", "n".repeat(64)));
        let bad = [
            "",
            " ",
            "a b",
            "a\n",
            "ä",
            "a,root",
            "*",
            "r?ot",
            "!root",
            "a\"",
            "a'b",
            "a\\b",
            "root@host",
            "-oProxy",
            "{a}",
            "a{{internal.logins}}",
            "{{internal.logins}}b",
            "{{internal.logins}",
            "{{ internal.logins }}",
            "{{internal.}}",
            "{{internal}}",
            "{{logins}}",
            "{{env.logins}}",
            "{{internal.a b}}",
            "{{}}",
            "{{",
            "{{internal.logins}}{{internal.logins}}",
            &long,
            &long_name,
        ];
        for text in bad {
            assert_eq!(HostLogin::parse(text), None, "{text:?}");
        }
    }
}
