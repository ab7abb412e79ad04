//! What of a recorded output reaches the terminal of whoever watches it.
//!
//! A session can write anything, and who plays it may be an admin. So what is let through is what draws on the screen: text,
//! colours, the cursor, what erases and scrolls. All else is dropped, known or not: what sets titles, clipboard, colours of the
//! terminal itself or links (OSC), draws images, reads files or programs keys (DCS, APC, PM, SOS); what has the terminal
//! answer, for the answer would be typed into the watcher's shell; what makes it report the mouse, the focus or keys in another
//! way; what changes its window, its printer or what it remembers of before.

/// Brings a terminal back to how it was before it was played to, in whatever state the recording left it: the usual screen,
/// colours, character set, margins and cursor, at the beginning of the last line.
pub const RESTORE: &str = "\x1b[?2026l\x1b[?47l\x1b[!p\x1b[?5l\x1b[?69l\x1b[?7h\x1b[?25h\x1b[0 q\x1b[r\x1b(B\x0f\x1b[0m\x1b[9999;1H";

/// Makes a screen as new, and empty. In place of a reset of the terminal, which would forget what it showed before.
pub const RESET: &str = "\x1b[?47l\x1b[!p\x1b[?7h\x1b[?25h\x1b(B\x0f\x1b[0m\x1b[2J\x1b[H";

/// Longest sequence that is let through, in bytes between its introducer and its end. One that sets a dozen colours is far
/// shorter.
const MAX_SEQUENCE: usize = 256;

/// Largest number in a sequence: no screen is larger, and a repetition that often is none.
const MAX_NUMBER: u32 = 9_999;

/// DEC's modes of the screen: reversed, origin, wrapping, the cursor's blinking and presence, the other screen, margins, and
/// updates that are shown at once.
const SCREEN_MODES: [u32; 11] = [5, 6, 7, 12, 25, 47, 69, 1047, 1048, 1049, 2026];

/// Modes of ANSI: insertion.
const ANSI_MODES: [u32; 1] = [4];

/// Where in a sequence the output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Ground,
    /// After ESC.
    Escape,
    /// After ESC and something that does not end the sequence.
    Intermediate,
    /// After CSI.
    Control,
    /// In a text for the terminal itself, until ST; until BEL too, where it is an OSC.
    Text { bell: bool },
    /// In such a text, after ESC.
    TextEscape,
}

/// Lets through what draws on the screen. What it has seen it remembers: a sequence may come in several outputs.
#[derive(Debug, Clone, Default)]
pub struct Sanitizer {
    state: State,
    pending: String,
    plain: bool,
}

impl Sanitizer {
    /// For a terminal.
    #[must_use]
    pub fn screen() -> Self {
        Self::default()
    }

    /// For what is no terminal: nothing but text, tabs and ends of lines.
    #[must_use]
    pub fn plain() -> Self {
        Self { plain: true, ..Self::default() }
    }

    /// Adds to `out` what of the next output is let through.
    pub fn feed(&mut self, output: &str, out: &mut String) {
        for c in output.chars() {
            match u8::try_from(c) {
                // One character of Latin-1 for ESC and another (ECMA-48, 5.3).
                Ok(byte @ 0x80..=0x9f) => {
                    self.step('\x1b', out);
                    self.step(char::from(byte - 0x40), out);
                }
                _ => self.step(c, out),
            }
        }
    }

    fn step(&mut self, c: char, out: &mut String) {
        if matches!(c, '\x18' | '\x1a') {
            self.state = State::Ground;
            return;
        }
        self.state = match (self.state, c) {
            (State::Text { .. }, '\x1b') => State::TextEscape,
            (State::Text { bell: true }, '\x07') | (State::TextEscape, '\\') => State::Ground,
            (text @ State::Text { .. }, _) => text,
            (_, '\x1b') => {
                self.pending.clear();
                State::Escape
            }
            (state @ (State::Ground | State::Control), '\0'..'\x20' | '\x7f') => {
                self.control(c, out);
                state
            }
            (State::Ground, _) => {
                out.push(c);
                State::Ground
            }
            (State::Escape | State::TextEscape, _) => self.escape(c, out),
            (State::Intermediate, _) => self.intermediate(c, out),
            (State::Control, _) => self.sequence(c, out),
        };
    }

    /// A character that moves the cursor or chooses a set of characters, and the bell.
    fn control(&self, c: char, out: &mut String) {
        let kept = if self.plain { matches!(c, '\t' | '\n') } else { matches!(c, '\x07'..='\x0f') };
        if kept {
            out.push(c);
        }
    }

    fn escape(&mut self, c: char, out: &mut String) -> State {
        self.pending.clear();
        match c {
            '[' => State::Control,
            ']' => State::Text { bell: true },
            'P' | 'X' | '^' | '_' => State::Text { bell: false },
            ' '..='/' => {
                self.pending.push(c);
                State::Intermediate
            }
            // Saves and restores the cursor, moves it by a line.
            '7' | '8' | 'D' | 'E' | 'M' => {
                self.emit(&["\x1b", c.encode_utf8(&mut [0; 4])], out);
                State::Ground
            }
            'c' => {
                self.emit(&[RESET], out);
                State::Ground
            }
            _ => State::Ground,
        }
    }

    fn intermediate(&mut self, c: char, out: &mut String) -> State {
        if matches!(c, ' '..='/') {
            // None that is let through has two.
            self.pending.push_str("..");
            self.pending.truncate(2);
            return State::Intermediate;
        }
        // Sets of characters, and the pattern to adjust a screen by.
        let set =
            matches!(self.pending.as_str(), "(" | ")" | "*" | "+" | "-" | "." | "/") && c.is_ascii_graphic();
        if set || (self.pending == "#" && c == '8') {
            self.emit(&["\x1b", &self.pending, c.encode_utf8(&mut [0; 4])], out);
        }
        State::Ground
    }

    fn sequence(&mut self, c: char, out: &mut String) -> State {
        match c {
            ' '..='?' => {
                if self.pending.len() <= MAX_SEQUENCE {
                    self.pending.push(c);
                }
                State::Control
            }
            '@'..='~' => {
                if let Some(sequence) = drawn(&self.pending, c) {
                    self.emit(&["\x1b[", &sequence, c.encode_utf8(&mut [0; 4])], out);
                }
                State::Ground
            }
            _ => State::Ground,
        }
    }

    fn emit(&self, parts: &[&str], out: &mut String) {
        if !self.plain {
            parts.iter().for_each(|part| out.push_str(part));
        }
    }
}

/// What of a control sequence is let through: what is between CSI and its last character.
fn drawn(sequence: &str, last: char) -> Option<String> {
    if sequence.len() > MAX_SEQUENCE {
        return None;
    }
    let private = sequence.starts_with('?');
    let rest = sequence.strip_prefix('?').unwrap_or(sequence);
    let numbers = rest.trim_end_matches(|c: char| matches!(c, ' '..='/'));
    let intermediate = rest.get(numbers.len()..)?;
    let list: Option<Vec<u32>> = numbers
        .split([';', ':'])
        .map(|number| if number.is_empty() { Some(0) } else { digits(number) })
        .collect();
    let list = list?;
    let modes = |known: &[u32]| {
        let kept: Vec<_> = list.iter().filter(|mode| known.contains(mode)).map(u32::to_string).collect();
        (!kept.is_empty()).then(|| kept.join(";"))
    };
    let whole = Some(sequence.to_owned());
    match (private, intermediate, last) {
        // Not what the terminal remembers of before.
        (_, "", 'J') => whole.filter(|_| list.iter().all(|what| *what <= 2)),
        (true, "", 'K') => whole,
        (true, "", 'h' | 'l') => modes(&SCREEN_MODES).map(|modes| format!("?{modes}")),
        (false, "", 'h' | 'l') => modes(&ANSI_MODES),
        (
            false,
            "",
            '@' | 'A'..='I' | 'K' | 'L' | 'M' | 'P' | 'S' | 'X' | 'Z' | '`' | 'a' | 'b' | 'd'..='f',
        ) => whole,
        (false, "", 'm' | 'r' | 's' | 'u') => whole,
        // With more numbers it follows the mouse.
        (false, "", 'T') => whole.filter(|_| list.len() == 1),
        (false, " ", 'q') | (false, "!", 'p') => whole,
        _ => None,
    }
}

fn digits(text: &str) -> Option<u32> {
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number.filter(|number| *number <= MAX_NUMBER)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn through(mut sanitizer: Sanitizer, outputs: &[&str]) -> String {
        let mut out = String::new();
        outputs.iter().for_each(|output| sanitizer.feed(output, &mut out));
        out
    }

    fn screen(output: &str) -> String {
        through(Sanitizer::screen(), &[output])
    }

    #[test]
    fn what_draws_is_let_through_as_it_is() {
        for drawn in [
            "text, Umläute, 日本語 🦀\r\n\t\x08\x07",
            "\x1b[1;31mred\x1b[0m \x1b[38:2::255:0:0mtrue\x1b[48;5;17m\x1b[m",
            "\x1b[H\x1b[2J\x1b[10;20H\x1b[K\x1b[1K\x1b[?2J\x1b[3A\x1b[s\x1b[u\x1b7\x1b8\x1bM",
            "\x1b[?1049h\x1b[?25l\x1b[1;24r\x1b[?7l\x1b[4h\x1b[?1049l\x1b[?25h",
            "\x1b(0lqqk\x1b(B\x0e\x0f\x1b#8",
            "\x1b[2 q\x1b[!p\x1b[5X\x1b[5@\x1b[5P\x1b[2L\x1b[2M\x1b[2S\x1b[2T\x1b[80b",
        ] {
            assert_eq!(screen(drawn), drawn);
        }
    }

    #[test]
    fn what_acts_outside_the_screen_or_is_answered_is_dropped() {
        for acts in [
            // Titles, clipboard, notifications, links, colours of the terminal, files.
            "\x1b]0;title\x07",
            "\x1b]2;title\x1b\\",
            "\x1b]52;c;ZXZpbA==\x07",
            "\x1b]8;;https://evil.example\x1b\\",
            "\x1b]9;note\x07",
            "\x1b]10;?\x07",
            "\x1b]1337;File=inline=1:AAAA\x07",
            "\u{9d}52;c;ZXZpbA==\u{9c}",
            "\x1bP$q\"p\x1b\\",
            "\x1bPtmux;\x1b\x1b]52;c;ZXZpbA==\x07\x1b\\",
            "\x1b_Gf=100,t=f;L2V0Yy9wYXNzd2Q=\x1b\\",
            "\x1b^private\x1b\\",
            "\x1bXstring\x1b\\",
            // What is answered.
            "\x1b[c",
            "\x1b[>c",
            "\x1b[=c",
            "\x1b[6n",
            "\x1b[?6n",
            "\x1b[5n",
            "\x1b[x",
            "\x1b[?1$p",
            "\x1b[18t",
            "\x1b[21t",
            "\x1b[>q",
            "\x1b[?u",
            "\x1bZ",
            "\x05",
            "\u{9b}6n",
            // The mouse, the focus, pasting, keys; windows, printers, what was there before.
            "\x1b[?1000h",
            "\x1b[?1000;1006h",
            "\x1b[?1004h",
            "\x1b[?2004h",
            "\x1b[?1h",
            "\x1b[>4;2m",
            "\x1b[>1u",
            "\x1b=",
            "\x1b[1;2;3;4;5T",
            "\x1b[?3h",
            "\x1b[8;10;10t",
            "\x1b[5i",
            "\x1b[?5i",
            "\x1b[3J",
            "\x1b[2h",
            // Tabulators, and what Return sends: no reset undoes them.
            "\x1bH",
            "\x1b[3g",
            "\x1b[20h",
            "\x1b[99999b",
            "\x1bn",
            "\x1b%G",
            "\x1b[1\u{e9}",
            "\x1b[1\x18",
        ] {
            assert_eq!(screen(&format!("a{acts}b")), "ab", "{acts:?}");
            // However it is cut into outputs.
            for (at, _) in acts.char_indices() {
                let (head, tail) = acts.split_at(at);
                assert_eq!(through(Sanitizer::screen(), &["a", head, tail, "b"]), "ab", "{acts:?} at {at}");
            }
        }
        assert_eq!(screen(&format!("a\x1b[{}mb", "1;".repeat(200))), "ab");
        // Of several modes those of the screen are left, and a reset forgets nothing.
        assert_eq!(screen("\x1b[?1000;25;2004l\x1b[2;4h"), "\x1b[?25l\x1b[4h");
        assert_eq!(screen("\x1bc"), RESET);
        assert_eq!(screen("\x1b]0;never ended"), "");
    }

    #[test]
    fn without_a_terminal_there_is_text_alone() {
        let drawn = "\x1b[1mbold\x1b[0m\r\n\x1b]0;title\x07\x1b(0\tend\x07\x1bc\u{9b}1m!\n";
        assert_eq!(through(Sanitizer::plain(), &[drawn]), "bold\n\tend!\n");
    }

    #[test]
    fn what_restores_a_terminal_draws() {
        assert_eq!(screen(RESTORE), RESTORE);
        assert_eq!(screen(RESET), RESET);
    }

    proptest! {
        #[test]
        fn what_came_through_comes_through_again_and_pieces_are_as_the_whole(
            output in "(\\x1b[\\[\\]P_(#?!]?|[0-9;:?>!$ hlmcnJKTqptu]|\\x07|\\\\|[\u{80}-\u{9f}]|.){0,60}",
            at in 0_usize..60,
        ) {
            let once = screen(&output);
            prop_assert_eq!(&screen(&once), &once);
            let at = output.char_indices().nth(at).map_or(output.len(), |(at, _)| at);
            prop_assert_eq!(through(Sanitizer::screen(), &[&output[..at], &output[at..]]), once);
            let plain = through(Sanitizer::plain(), &[&output]);
            prop_assert!(!plain.contains(|c: char| c.is_control() && c != '\n' && c != '\t'), "{plain:?}");
        }
    }
}
