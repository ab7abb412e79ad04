//! What is shown in the terminal and kept up to date: by `top`, and by any command with `--watch`. It has a screen of its own;
//! when it ends, however that is, the terminal is as it was.

use std::{
    io::{self, Write as _},
    panic,
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

/// Where the terminal does not say how large it is.
const USUAL_SIZE: (u16, u16) = (80, 24);

/// Shows what `round` answers, every so often, until somebody presses `q` or Ctrl-C, or a signal ends it. What a round could not
/// find out because the cluster is unavailable is told beside what it answered, or what the one before did.
///
/// # Errors
/// What else a round fails by.
pub(crate) async fn show(
    every: Duration,
    mut round: impl AsyncFnMut() -> (String, Result<()>),
) -> Result<()> {
    let mut ends = Ends::new()?;
    let mut screen = Screen::take()?;
    let mut last = String::new();
    loop {
        let (text, outcome) = tokio::select! {
            biased;
            () = ends.one() => return Ok(()),
            () = screen.quit() => return Ok(()),
            done = round() => done,
        };
        if !text.is_empty() {
            last = text;
        }
        let trouble = match outcome {
            Ok(()) => None,
            Err(error) if is_unavailable(&error) => Some(printable(&format!("{error:#}"))),
            Err(error) => return Err(error),
        };
        screen.show(&last, every, trouble.as_deref())?;
        tokio::select! {
            () = ends.one() => return Ok(()),
            () = screen.quit() => return Ok(()),
            () = tokio::time::sleep(every) => (),
        }
    }
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

    /// Shows a text, as much of it as there is room for, and below it what belongs to all of them.
    fn show(&mut self, text: &str, every: Duration, trouble: Option<&str>) -> Result<()> {
        let (columns, rows) = room();
        let lines = cut(text, columns, rows);
        let now = humantime::format_rfc3339_seconds(clock::now());
        let every = humantime::format_duration(every);
        let below =
            trouble.map_or_else(|| format!("{now}, every {every}; q quits"), |why| format!("{now} {why}"));
        let below: String = below.replace('\n', " ").chars().take(columns).collect();
        let colours = has_colours(&io::stdout());
        let mut stdout = io::stdout().lock();
        queue!(stdout, BeginSynchronizedUpdate)?;
        for (row, line) in lines.iter().enumerate().take(rows) {
            let line = if colours { paint(line) } else { line.clone() };
            let row = u16::try_from(row).unwrap_or(u16::MAX);
            queue!(stdout, MoveTo(0, row), Print(line), Clear(ClearType::UntilNewLine))?;
        }
        let end = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        let bottom = u16::try_from(rows).unwrap_or(u16::MAX);
        queue!(stdout, MoveTo(0, end), Clear(ClearType::FromCursorDown))?;
        queue!(stdout, MoveTo(0, bottom), Print(below), EndSynchronizedUpdate)?;
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
}
