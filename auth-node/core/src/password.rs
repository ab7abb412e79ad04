//! What a password may be. By NIST SP 800-63B and OWASP: it is long, it is not what is guessed first, and nothing is asked of the
//! kinds of its characters. It is taken in its NFKC form, as every keyboard and system spells it.

use std::collections::BTreeSet;

use unicode_normalization::UnicodeNormalization as _;
use zeroize::Zeroizing;

use crate::CoreError;

/// Fewest characters of a new password.
const LEAST_CHARS: usize = 12;
/// Longest password, in bytes.
const MOST_BYTES: usize = 1024;
/// A password of fewer different characters is a repetition.
const LEAST_DIFFERENT: usize = 5;
/// Beside names and words that are tried first, this many letters must be left.
const LEAST_OWN: usize = 3;
/// A shorter name, or part of one, is in many words by chance.
const LEAST_NAME: usize = 3;

/// What the most common long passwords are made of: lower case, letters and digits.
const WORDS: &[&str] = &[
    "password",
    "passwort",
    "passwd",
    "passphrase",
    "letmein",
    "welcome",
    "changeme",
    "default",
    "secret",
    "administrator",
    "admin",
    "root",
    "login",
    "guest",
    "test",
    "user",
    "mezite",
    "master",
    "trustno1",
    "iloveyou",
    "sunshine",
    "princess",
    "football",
    "baseball",
    "superman",
    "batman",
    "dragon",
    "monkey",
    "whatever",
    "freedom",
    "shadow",
    "charlie",
    "summer",
    "winter",
    "spring",
    "autumn",
    "hello",
    "love",
    "qwertyuiop",
    "qwertzuiop",
    "azertyuiop",
    "qwerty",
    "qwertz",
    "azerty",
    "asdfghjkl",
    "asdfgh",
    "asdf",
    "yxcvbnm",
    "zxcvbnm",
    "1q2w3e4r5t",
    "1q2w3e4r",
    "q1w2e3r4",
    "1qaz2wsx",
    "qazwsx",
    "abcdefghijkl",
    "abcdefgh",
    "abcdef",
    "abc123",
    "abcd",
    "0123456789",
    "1234567890",
    "123456789",
    "12345678",
    "1234567",
    "123456",
    "12345",
    "1234",
    "9876543210",
    "987654321",
    "654321",
    "123123",
    "112233",
    "121212",
];

/// Of a character's bytes, the most that its NFKC form can have: U+FDFA comes to 33 from 3. By Unicode Standard Annex #15,
/// "Maximum Expansion Factors".
const NFKC_FACTOR: usize = 11;
/// Of a character's bytes, the most that it can have in lower case: U+0130 comes to 3 from 2.
const LOWER_FACTOR: usize = 2;

/// The form in which a password is hashed: at most eleven times as long.
pub fn normalized(password: &str) -> Zeroizing<String> {
    collected(NFKC_FACTOR.saturating_mul(password.len()), password.nfkc())
}

/// Characters that have at most so many bytes. There is room for all of them at once: a string that grows would leave copies
/// of a secret.
fn collected(most_bytes: usize, chars: impl Iterator<Item = char>) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(most_bytes));
    for char in chars {
        text.push(char);
    }
    text
}

/// Checks a new password: 12 characters or more, at most 1024 bytes, at least 5 different characters, and more than `names`, of
/// its user and cluster, and the words that are tried first.
///
/// # Errors
/// [`CoreError::Invalid`] for `field`.
pub fn check_new(field: &str, password: &str, names: &[&str]) -> Result<(), CoreError> {
    let refused = |reason: String| Err(CoreError::invalid(field, reason));
    check_given(field, password)?;
    let form = normalized(password);
    if form.chars().count() < LEAST_CHARS || form.len() > MOST_BYTES {
        return refused(format!(
            "a password has at least {LEAST_CHARS} characters, and at most {MOST_BYTES} bytes"
        ));
    }
    // Each where it is first: a set of them would be left in memory.
    let firsts = form.char_indices().filter(|(at, char)| form.find(*char) == Some(*at));
    if firsts.take(LEAST_DIFFERENT).count() < LEAST_DIFFERENT {
        return refused(format!("a password has at least {LEAST_DIFFERENT} different characters"));
    }
    if is_guessed_first(&form, names) {
        return refused(
            "this is little more than the user's or the cluster's name, or what everybody tries first: \
             take another, such as several words that have nothing to do with each other"
                .into(),
        );
    }
    Ok(())
}

/// Checks the length of a password that is to be verified: at most 1024 bytes.
///
/// # Errors
/// [`CoreError::Invalid`] for `field`.
pub fn check_given(field: &str, password: &str) -> Result<(), CoreError> {
    if password.len() <= MOST_BYTES {
        return Ok(());
    }
    Err(CoreError::invalid(field, format!("a password has at most {MOST_BYTES} bytes")))
}

/// Whether a password is made of names and common words, with hardly a letter of its own.
fn is_guessed_first(password: &str, names: &[&str]) -> bool {
    let mut words: BTreeSet<String> = WORDS.iter().map(|&word| word.to_owned()).collect();
    for name in names {
        let parts = name.split(|c: char| !c.is_alphanumeric());
        let parts = parts.chain([*name]).map(|part| plain(part).as_str().to_owned());
        words.extend(parts.filter(|part| part.chars().count() >= LEAST_NAME));
    }
    let mut words: Vec<_> = words.into_iter().collect();
    // What holds another goes first.
    words.sort_by_key(|word| std::cmp::Reverse(word.len()));
    let whole = plain(password);
    let mut rest = whole.clone();
    for word in &words {
        // The blank keeps what is left from becoming another word.
        rest = without(&rest, word);
    }
    *rest != *whole && rest.chars().filter(|c| c.is_alphabetic()).count() < LEAST_OWN
}

/// With a blank wherever there was a word, which is not empty.
fn without(text: &str, word: &str) -> Zeroizing<String> {
    let mut rest = Zeroizing::new(String::with_capacity(text.len()));
    for (number, part) in text.split(word).enumerate() {
        if number > 0 {
            rest.push(' ');
        }
        rest.push_str(part);
    }
    rest
}

/// Letters and digits alone, lower case.
fn plain(text: &str) -> Zeroizing<String> {
    let lower = text.chars().flat_map(char::to_lowercase).filter(|c| c.is_alphanumeric());
    collected(LOWER_FACTOR.saturating_mul(text.len()), lower)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_invalid;

    const NAMES: [&str; 2] = ["ann.smith@example.com", "prod-eu.example"];

    fn check(password: &str) -> Result<(), CoreError> {
        check_new("password", password, &NAMES)
    }

    #[test]
    fn passwords_are_bounded_in_characters_and_bytes() {
        let varied = |length: usize| "violet ox".chars().cycle().take(length).collect::<String>();
        for good in [12, 1024] {
            assert_eq!(check(&varied(good)), Ok(()));
        }
        for bad in [0, 11, 1025] {
            assert_invalid(check(&varied(bad)), "password");
        }
        // Characters are counted, not the bytes that they take.
        assert_invalid(check("äöüéèñß"), "password");
        assert_eq!(check("äöüéèñßøåæþð"), Ok(()));
        // One sign may come to eighteen: what is hashed is bounded too.
        assert_invalid(check(&format!("violet ox {}", "\u{fdfa}".repeat(300))), "password");
        assert!(check_given("password", "").is_ok() && check_given("password", &varied(1024)).is_ok());
        assert_invalid(check_given("password", &varied(1025)), "password");
    }

    #[test]
    fn one_password_is_one_however_it_is_spelt() {
        for spelling in ["pässwörd", "pa\u{308}sswo\u{308}rd", "ｐässwörd"] {
            assert_eq!(normalized(spelling).as_str(), "pässwörd");
        }
        // Case and blanks are the user's.
        assert_eq!(normalized(" Ab c").as_str(), " Ab c");
    }

    #[test]
    fn no_form_of_a_password_outgrows_the_room_that_was_made_for_it() {
        use unicode_normalization::char::compose;
        let bytes = |chars: &[char]| chars.iter().map(|c| c.len_utf8()).sum::<usize>();
        let (mut nfkd, mut lower) = (0, 0);
        for c in (0..=u32::from(char::MAX)).filter_map(char::from_u32) {
            let text = c.to_string();
            // The composed form is made of the decomposed one, and never longer.
            let decomposed: Vec<_> = text.nfkd().collect();
            assert!(bytes(&decomposed) <= NFKC_FACTOR * c.len_utf8(), "{c:?}");
            nfkd = nfkd.max(bytes(&decomposed).div_ceil(c.len_utf8()));
            if let [first, second] = text.nfd().collect::<Vec<_>>()[..] {
                let composed = compose(first, second).map_or(0, char::len_utf8);
                assert!(composed <= bytes(&[first, second]), "{c:?}");
            }
            let in_lower: Vec<_> = c.to_lowercase().collect();
            assert!(bytes(&in_lower) <= LOWER_FACTOR * c.len_utf8(), "{c:?}");
            lower = lower.max(bytes(&in_lower).div_ceil(c.len_utf8()));
        }
        assert_eq!((nfkd, lower), (NFKC_FACTOR, LOWER_FACTOR), "neither is more than is needed");

        for sign in
            ["\u{fdfa}", "\u{fdfb}", "\u{3300}", "\u{1e9b}\u{323}", "\u{ac01}", "a\u{308}", "\u{130}", "x"]
        {
            let given = sign.repeat(MOST_BYTES / sign.len());
            let form = normalized(&given);
            assert_eq!(form.as_str(), given.nfkc().collect::<String>());
            // A string that has grown has more room than was asked for.
            assert_eq!(form.capacity(), NFKC_FACTOR * given.len(), "{sign:?}");
            let plain = plain(&form);
            assert_eq!(plain.capacity(), LOWER_FACTOR * form.len(), "{sign:?}");
            assert_eq!(without(&plain, "x").as_str(), plain.replace('x', " "));
            assert_eq!(without(&plain, "x").capacity(), plain.len());
        }
    }

    #[test]
    fn what_is_tried_first_is_refused() {
        for bad in [
            "passwordpassword",
            "Password1234!",
            "P a s s w o r d 2026",
            "123456789012",
            "qwertyuiop12",
            "ann.smith2026",
            "ANN-SMITH-ANN-SMITH",
            "annsmithexamplecom",
            "prod-eu.example",
            "prodeuexample1",
            "welcome-ann-1",
            "ａｎｎ.ｓｍｉｔｈ1234",
            "aaaaaaaaaaaa",
            "abababababab",
            "!!!!!!!!!!!!",
            "iloveyou!iloveyou!",
        ] {
            assert_invalid(check(bad), "password");
        }
        let short = check_new("password", "bobobobobo12x", &["bo", "x"]);
        assert_eq!(short, Ok(()), "a short name is in many words");
    }

    #[test]
    fn nothing_is_asked_of_the_kinds_of_characters() {
        for good in [
            "correct horse battery staple",
            "a password of ann",
            "smith and wesson",
            "83920174650238471029",
            "violetoxpaperlamp",
            "+-*/=.,:;#!?",
            "сложный пароль",
            "パスワードはここにあるよ",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn the_words_are_in_the_form_that_they_are_looked_for_in() {
        for word in WORDS {
            assert_eq!(plain(word).as_str(), *word);
        }
    }
}
