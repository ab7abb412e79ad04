//! What is shown in the terminal and kept up to date: by `top`, and by any command with `--watch`. It has a screen of its own;
//! when it ends, however that is, the terminal is as it was.

use std::{
    io::{self, Write as _},
    panic,
    pin::pin,
    sync::Once,
    time::Duration,
};

use anyhow::Result;
use crossterm::{
    cursor::{Hide, MoveTo, Show},
    event::KeyCode,
    queue,
    style::Print,
    terminal::{
        self, BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap,
        EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    },
};
use mezite_daemon::clock;

use crate::{
    exit::is_unavailable,
    keys::{Ends, Keys, is_interrupt},
    look::{has_colours, paint},
    output::printable,
};

/// How long a round may take before it is said that it takes long.
const PATIENCE: Duration = Duration::from_secs(2);
/// Where the terminal does not say how large it is.
const USUAL_SIZE: (u16, u16) = (80, 24);

/// Shows what `round` answers, every so often, until somebody presses `q` or Ctrl-C, or a signal ends it. That a round takes
/// long, and what it could not find out because the cluster is unavailable, is told beside what it answered; or beside what
/// the one before did, of which is said how old it is.
///
/// # Errors
/// What else a round fails by.
pub(crate) async fn show(
    every: Duration,
    mut round: impl AsyncFnMut() -> (String, Result<()>),
) -> Result<()> {
    let mut ends = Ends::new()?;
    let mut screen = Screen::take()?;
    let mut last = Seen::default();
    screen.show("", "connecting…; q quits")?;
    loop {
        let mut asked = pin!(round());
        let (text, outcome) = loop {
            tokio::select! {
                biased;
                () = ends.one() => return Ok(()),
                () = screen.quit() => return Ok(()),
                done = &mut asked => break done,
                () = tokio::time::sleep(PATIENCE) => {
                    screen.show(&last.old(), &format!("{}, no answer yet; q quits", now()))?;
                }
            }
        };
        let is_new = !text.is_empty();
        if is_new {
            last = Seen { text, at: now() };
        }
        match outcome {
            Ok(()) => {
                let every = humantime::format_duration(every);
                screen.show(&last.text, &format!("{}, every {every}; q quits", now()))?;
            }
            Err(error) if is_unavailable(&error) => {
                let shown = if is_new { last.text.clone() } else { last.old() };
                let trouble = printable(&format!("{error:#}")).replace('\n', " ");
                screen.show(&shown, &format!("{} {trouble}; q quits", now()))?;
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = ends.one() => return Ok(()),
            () = screen.quit() => return Ok(()),
            () = tokio::time::sleep(every) => (),
        }
    }
}

/// What a round answered, and when.
#[derive(Default)]
struct Seen {
    text: String,
    at: String,
}

impl Seen {
    /// As what may not be so any more.
    fn old(&self) -> String {
        if self.text.is_empty() { String::new() } else { as_it_was(&self.at, &self.text) }
    }
}

/// A text that is of some time ago.
pub(crate) fn as_it_was(at: &str, text: &str) -> String {
    format!("OLD: as it was at {at}\n{text}")
}

/// This time, as it is shown.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_seconds(clock::now()).to_string()
}

/// Columns and rows that there are for what is shown.
pub(crate) fn room() -> (usize, usize) {
    let (columns, rows) = terminal::size().unwrap_or(USUAL_SIZE);
    (usize::from(columns), usize::from(rows).saturating_sub(1))
}

/// The terminal, taken over until this is dropped.
struct Screen {
    /// Without a keyboard a signal ends it.
    keys: Option<Keys>,
}

impl Screen {
    fn take() -> Result<Self> {
        give_back_before_a_panic_is_told();
        let keys = if io::IsTerminal::is_terminal(&io::stdin()) { Some(Keys::take()?) } else { None };
        let screen = Self { keys };
        let mut stdout = io::stdout().lock();
        queue!(stdout, EnterAlternateScreen, Hide, DisableLineWrap)?;
        stdout.flush()?;
        Ok(screen)
    }

    /// Waits until somebody has seen enough.
    async fn quit(&mut self) {
        let Some(keys) = &mut self.keys else { return std::future::pending().await };
        loop {
            let key = keys.next().await;
            if is_interrupt(key) || key.code == KeyCode::Char('q') {
                return;
            }
        }
    }

    /// Shows a text, as much of it as there is room for, and all of what is to be said below it.
    fn show(&mut self, text: &str, below: &str) -> Result<()> {
        let (columns, rows) = room();
        let below = wrapped(below, columns);
        let rows = (rows + 1).saturating_sub(below.len());
        let lines = cut(text, columns, rows);
        let colours = has_colours(&io::stdout());
        let mut stdout = io::stdout().lock();
        queue!(stdout, BeginSynchronizedUpdate)?;
        for (row, line) in lines.iter().enumerate().take(rows) {
            let line = if colours { paint(line) } else { line.clone() };
            let row = u16::try_from(row).unwrap_or(u16::MAX);
            queue!(stdout, MoveTo(0, row), Print(line), Clear(ClearType::UntilNewLine))?;
        }
        let end = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        queue!(stdout, MoveTo(0, end), Clear(ClearType::FromCursorDown))?;
        for (row, line) in (rows..).zip(below) {
            queue!(stdout, MoveTo(0, u16::try_from(row).unwrap_or(u16::MAX)), Print(line))?;
        }
        queue!(stdout, EndSynchronizedUpdate)?;
        Ok(stdout.flush()?)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// The lines of a text that fit; the last one says how many do not.
fn cut(text: &str, columns: usize, rows: usize) -> Vec<String> {
    let all = text.lines().count();
    let lines = text.lines().map(|line| line.chars().take(columns).collect());
    match all <= rows {
        true => lines.collect(),
        false => {
            let shown = rows.saturating_sub(1);
            lines.take(shown).chain([format!("… {} more lines", all - shown)]).collect()
        }
    }
}

/// A text in lines of so many columns at most, between words where that can be.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let columns = columns.max(1);
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        while !rest.is_empty() {
            let line = lines.pop().unwrap_or_default();
            let gap = usize::from(!line.is_empty());
            let room = columns.saturating_sub(line.chars().count() + gap);
            if rest.len() > room && gap > 0 {
                lines.extend([line, String::new()]);
                continue;
            }
            let part: String = rest.drain(..room.min(rest.len())).collect();
            lines.push(if gap > 0 { format!("{line} {part}") } else { part });
        }
    }
    lines
}

/// Makes the screen what it was; a terminal that has gone needs nothing any more.
fn give_back() {
    let mut stdout = io::stdout().lock();
    let _ = queue!(stdout, EnableLineWrap, Show, LeaveAlternateScreen);
    let _ = stdout.flush();
}

/// What a panic says would be gone with the screen on which it is said.
fn give_back_before_a_panic_is_told() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            give_back();
            let _ = terminal::disable_raw_mode();
            tell(panic);
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_cut_and_counted() {
        assert_eq!(cut("one\ntwo", 80, 2), ["one", "two"]);
        assert_eq!(cut("one\ntwo\nthree", 80, 2), ["one", "… 2 more lines"]);
        assert_eq!(cut("größer", 3, 2), ["grö"]);
        assert_eq!(cut("", 3, 2), Vec::<String>::new());
        assert_eq!(cut("a\nb", 3, 0), ["… 2 more lines"]);
    }
    #[test]
    fn what_is_said_below_is_whole() {
        assert_eq!(wrapped("no node serves now", 8), ["no node", "serves", "now"]);
        assert_eq!(wrapped("a 127.0.0.1:3025 b", 8), ["a", "127.0.0.", "1:3025 b"]);
        assert_eq!(wrapped("größer ä", 80), ["größer ä"]);
        assert_eq!(wrapped("ab", 0), ["a", "b"]);
        assert_eq!(wrapped("", 8), [""]);
    }
}
