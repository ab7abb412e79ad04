//! The terminal that a recording is played in, and the keys that are pressed there meanwhile.

use std::io::{self, Write as _};

use anyhow::Result;
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use recording_format::asciicast::RESTORE;

use crate::keys::{Keys, is_interrupt};

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Pause,
    Back,
    Forward,
    Faster,
    Slower,
    /// To the first output from here that has a text.
    Search,
    /// To the next one that has the text that was searched for last.
    SearchAgain,
    /// To what is there last.
    End,
    Quit,
}

/// What a key asks for, while nothing is typed.
pub(super) fn command(key: KeyEvent) -> Option<Command> {
    match key.code {
        _ if is_interrupt(key) => Some(Command::Quit),
        KeyCode::Char(' ') => Some(Command::Pause),
        KeyCode::Left => Some(Command::Back),
        KeyCode::Right => Some(Command::Forward),
        KeyCode::Char('+' | '=') => Some(Command::Faster),
        KeyCode::Char('-' | '_') => Some(Command::Slower),
        KeyCode::Char('/') => Some(Command::Search),
        KeyCode::Char('n') => Some(Command::SearchAgain),
        KeyCode::Char('G') | KeyCode::End => Some(Command::End),
        KeyCode::Char('q') => Some(Command::Quit),
        _ => None,
    }
}

/// A text that is being typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Typed {
    /// So far.
    More,
    Done,
    Cancelled,
}

/// Adds a key to what is typed.
pub(super) fn typed(text: &mut String, key: KeyEvent) -> Typed {
    match key.code {
        KeyCode::Esc => Typed::Cancelled,
        _ if is_interrupt(key) => Typed::Cancelled,
        KeyCode::Enter => Typed::Done,
        KeyCode::Backspace => {
            if text.pop().is_none() {
                return Typed::Cancelled;
            }
            Typed::More
        }
        KeyCode::Char(c) if !key.modifiers.contains(KeyModifiers::CONTROL) => {
            text.push(c);
            Typed::More
        }
        _ => Typed::More,
    }
}

/// The terminal, taken over until this is dropped.
pub(super) struct Terminal {
    keys: Option<Keys>,
}

impl Terminal {
    /// Takes it over. Without `keys`, none is read: they are not typed there.
    ///
    /// # Errors
    /// When it cannot be brought to hand over keys one by one.
    pub(super) fn take(keys: bool) -> Result<Self> {
        Ok(Self { keys: if keys { Some(Keys::take()?) } else { None } })
    }

    /// The next key. Never resolves where there are none.
    pub(super) async fn key(&mut self) -> KeyEvent {
        match &mut self.keys {
            Some(keys) => keys.next().await,
            None => std::future::pending().await,
        }
    }

    /// Shows something, as it is.
    ///
    /// # Errors
    /// When the terminal has gone.
    pub(super) fn show(&mut self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// Shows a text of one's own in the last line.
    ///
    /// # Errors
    /// When the terminal has gone.
    pub(super) fn show_below(&mut self, text: &str) -> Result<()> {
        self.show(&format!("\x1b7\x1b[r\x1b[9999;1H\x1b[0;7m{}\x1b[K\x1b[0m", crate::output::printable(text)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut stdout = io::stdout().lock();
        // A terminal that has gone needs nothing any more.
        let _ = stdout.write_all(RESTORE.as_bytes()).and_then(|()| stdout.write_all(b"\r\n"));
        let _ = stdout.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    #[test]
    fn keys_ask_for_what_is_told_of_them() {
        for (code, wanted) in [
            (KeyCode::Char(' '), Some(Command::Pause)),
            (KeyCode::Left, Some(Command::Back)),
            (KeyCode::Right, Some(Command::Forward)),
            (KeyCode::Char('+'), Some(Command::Faster)),
            (KeyCode::Char('-'), Some(Command::Slower)),
            (KeyCode::Char('/'), Some(Command::Search)),
            (KeyCode::Char('n'), Some(Command::SearchAgain)),
            (KeyCode::End, Some(Command::End)),
            (KeyCode::Char('q'), Some(Command::Quit)),
            (KeyCode::Char('c'), None),
            (KeyCode::Enter, None),
        ] {
            assert_eq!(command(key(code)), wanted);
        }
        assert_eq!(command(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Some(Command::Quit));
    }

    #[test]
    fn a_text_is_typed_until_it_is_sent_or_given_up() {
        let mut text = String::new();
        for c in "qa/".chars() {
            assert_eq!(typed(&mut text, key(KeyCode::Char(c))), Typed::More);
        }
        assert_eq!(typed(&mut text, key(KeyCode::Backspace)), Typed::More);
        assert_eq!(typed(&mut text, KeyEvent::new(KeyCode::Char('a'), KeyModifiers::CONTROL)), Typed::More);
        assert_eq!((typed(&mut text, key(KeyCode::Enter)), text.as_str()), (Typed::Done, "qa"));
        assert_eq!(typed(&mut text, key(KeyCode::Esc)), Typed::Cancelled);
        assert_eq!(
            typed(&mut text, KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)),
            Typed::Cancelled
        );
        assert_eq!(typed(&mut String::new(), key(KeyCode::Backspace)), Typed::Cancelled);
    }
}
