//! Characters that a reader does not see, and that change what is seen: those that steer a terminal, that turn the direction
//! of the text, and that have no width. What others wrote is printed without them, or, for programs, with them escaped.

/// Whether a terminal shows something else in place of this character, or nothing: control and format characters, and those
/// that Unicode says are ignored where they are not known (`Default_Ignorable_Code_Point`). A line break is not among them.
pub(crate) fn is_hidden(c: char) -> bool {
    match c {
        '\n' => false,
        // The soft hyphen, and a joiner without a width.
        '\u{ad}' | '\u{34f}'
        // Marks of directions, and signs that enclose numbers.
        | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
        // Fillers, and vowels and separators that are not seen.
        | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{3164}' | '\u{ffa0}'
        // Without a width; separators of lines; embeddings, overrides and isolates of directions; operators.
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        // Selectors of variants, the byte order mark, annotations.
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}'
        // Signs of single scripts, shorthand, music.
        | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        // Tags, and further selectors.
        | '\u{e0000}'..='\u{e0fff}' => true,
        _ => c.is_control(),
    }
}

/// Replaces hidden characters, so that what a host or a user wrote cannot steer the terminal of who reads it, nor look like
/// something else.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) { '\u{fffd}' } else { c }).collect()
}

/// How a format writes a character that is not to be seen.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Escape {
    /// `\uXXXX` for each half of a character's UTF-16.
    Json,
    /// `\UXXXXXXXX`.
    Yaml,
}

/// Escapes hidden characters in JSON, which has them in its strings alone.
pub(crate) fn escaped(json: &str, escape: Escape) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match escape {
            _ if !is_hidden(c) => text.push(c),
            Escape::Json => {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|half| text += &format!("\\u{half:04x}"));
            }
            Escape::Yaml => text += &format!("\\U{:08x}", u32::from(c)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each class, and its neighbours that are seen.
    #[test]
    fn what_is_not_seen_is_shown() {
        for hidden in [
            '\x00',
            '\t',
            '\x1b',
            '\x7f',
            '\u{85}',
            '\u{9b}',
            '\u{ad}',
            '\u{61c}',
            '\u{180e}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{fff9}',
            '\u{e0001}',
            '\u{e0041}',
            '\u{e007f}',
        ] {
            assert!(is_hidden(hidden), "{hidden:?}");
            assert_eq!(printable(&format!("a{hidden}b")), "a\u{fffd}b");
        }
        let seen = "line\nÄß日本語עברית العربية\u{a0}\u{2010}\u{2026}\u{2030}\u{2070}🦀\u{fffd}";
        assert_eq!(printable(seen), seen);
    }

    #[test]
    fn programs_read_what_was_written() {
        let written = "a\u{202e}b\u{e0041}c\x7f\u{9b}\n\"";
        let json = serde_json::to_string(written).unwrap();
        for (escape, astral) in [(Escape::Json, "\\udb40\\udc41"), (Escape::Yaml, "\\U000e0041")] {
            let text = escaped(&json, escape);
            assert!(text.contains(astral) && !text.chars().any(is_hidden), "{text}");
            let read: String = match escape {
                Escape::Json => serde_json::from_str(&text).unwrap(),
                Escape::Yaml => serde_norway::from_str(&text).unwrap(),
            };
            assert_eq!(read, written);
        }
    }
}
