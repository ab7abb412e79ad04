//! `recordings play`: a recorded session as it was seen, in the terminal of whoever asks.
//!
//! `tape` brings the events, `player` knows where in them one is, `terminal` shows them and reads keys. What an output may do
//! to the terminal is decided by [`Sanitizer`]. Where standard output is no terminal, what was shown is printed as text.

mod player;
mod tape;
mod terminal;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use recording_format::{
    RecordingId,
    asciicast::{Header, Sanitizer},
};
use tokio::time::{Instant, sleep};

use self::{
    player::{Coming, Pace, Player},
    tape::{Payload, Tape},
    terminal::{Command, Terminal, Typed, command, typed},
};
use super::{range, tell_missing};
use crate::{args::human_duration, context::Context, exit::Usage, keys::Ends, output};

/// Longest pause, where neither the caller nor the recording says another.
const IDLE_LIMIT: Duration = Duration::from_secs(2);
/// How far the arrow keys go.
const JUMP: Duration = Duration::from_secs(5);
/// How often it is looked whether a session that is followed has gone on.
const FOLLOW_POLL: Duration = Duration::from_secs(1);
/// By how much `+` and `-` change the speed.
const SPEED_STEP: f64 = 2.0;

const PLAY_EXAMPLES: &str = "\
Examples:
  mezctl recordings play 0190a1b2-0000-4000-8000-000000000001
  mezctl recordings play 0190a1b2-0000-4000-8000-000000000001 --follow    while the session goes on
  mezctl recordings play session.cast --speed 4 --from 2m
  mezctl recordings play ./session.cast | grep sudo                       as text, without the timing

Keys: space pauses, the arrows go 5 s back and forth, + and - double and halve the speed, / searches for what is shown next,
n for it again, G goes to the end, q quits.
What a session did outside of its screen (titles, clipboard, links, questions to the terminal) is not played.";

/// Arguments of `recordings play`.
#[derive(Debug, Args)]
#[command(after_help = PLAY_EXAMPLES)]
pub(crate) struct Play {
    /// UUID of the recording, or a file with its payload: asciicast, version 2 or 3
    #[arg(value_name = "ID|FILE")]
    what: String,
    /// Go on with a session that is in progress, as it goes on
    #[arg(long)]
    follow: bool,
    /// So many times as fast
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = factor)]
    speed: f64,
    /// Longest pause, before the speed counts [default: what the recording says, or 2s]
    #[arg(long, value_name = "DURATION", value_parser = human_duration)]
    idle_limit: Option<Duration>,
    /// Begin so long after the session began
    #[arg(long, value_name = "DURATION", value_parser = human_duration)]
    from: Option<Duration>,
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor > 0.0 && factor.is_finite() => Ok(factor),
        _ => Err("must be a number above zero, such as `0.5` or `4`".into()),
    }
}

pub(super) async fn play(context: &Context, args: Play) -> Result<()> {
    let payload = match args.what.parse::<RecordingId>() {
        Ok(id) => {
            let client = context.user().await?;
            tell_missing(&client, &range(&client, id, 0, 0).await?.0).await?;
            Payload::of_cluster(client, id)?
        }
        Err(_) if args.follow => {
            return Err(Usage("--follow needs the UUID of a recording: a file does not go on".into()).into());
        }
        Err(_) if Path::new(&args.what).exists() => Payload::file(Path::new(&args.what))?,
        Err(_) => {
            return Err(Usage(format!("{} is neither a recording's UUID nor a file", args.what)).into());
        }
    };
    let mut tape = Tape::new(payload);
    let advice = || format!("{} cannot be played: see `mezctl recordings get`, which has --out", args.what);
    let Some(header) = begun(&mut tape, args.follow).await.with_context(advice)? else {
        output::say("The session has shown nothing yet. --follow waits for it.");
        return Ok(());
    };
    let idle_limit = args.idle_limit.or(header.idle_limit).unwrap_or(IDLE_LIMIT);
    let pace = Pace::new(args.speed, idle_limit);
    let from = args.from.unwrap_or_default();
    let goes_on = match io::stdout().is_terminal() {
        true => show(Player::new(tape, pace, Sanitizer::screen()), &header, from, args.follow).await?,
        false => print(Player::new(tape, pace, Sanitizer::plain()), from, args.follow).await?,
    };
    if goes_on {
        output::say("The session goes on: --follow plays it as it does.");
    }
    Ok(())
}

/// The header, once it is there; `None` where it is not waited for.
async fn begun(tape: &mut Tape, follow: bool) -> Result<Option<Header>> {
    loop {
        let header = tape.header().await?;
        if header.is_some() || !follow {
            return Ok(header);
        }
        sleep(FOLLOW_POLL).await;
    }
}

/// Prints what was shown, as text. Answers whether the session goes on.
async fn print(mut player: Player, from: Duration, follow: bool) -> Result<bool> {
    output::say("Standard output is no terminal: what was shown is printed as text, without its timing.");
    loop {
        match player.coming().await? {
            Coming::In(_) => {
                let mut text = String::new();
                player.take(&mut text);
                if player.at() < from {
                    continue;
                }
                match io::stdout().lock().write_all(text.as_bytes()) {
                    // Whoever read it has seen enough.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                    written => written?,
                }
            }
            Coming::NotYet if follow => {
                io::stdout().lock().flush()?;
                sleep(FOLLOW_POLL).await;
            }
            Coming::NotYet => return Ok(true),
            Coming::End => return Ok(false),
        }
    }
}

/// Plays in the terminal, and gives it back as it was, whatever happens. Answers whether the session goes on.
async fn show(player: Player, header: &Header, from: Duration, follow: bool) -> Result<bool> {
    let Header { cols, rows, .. } = *header;
    if let Ok((here_cols, here_rows)) = crossterm::terminal::size()
        && (here_cols < cols || here_rows < rows)
    {
        output::say(&format!(
            "This terminal has {here_cols}x{here_rows} characters, and the recorded one had {cols}x{rows}."
        ));
    }
    let ends = Ends::new()?;
    let terminal = Terminal::take(io::stdin().is_terminal())?;
    let mut show = Show { player, terminal, paused: false, follow, sought: String::new() };
    if !from.is_zero() {
        show.seek(from).await?;
    }
    show.run(ends).await
}

/// A recording that is played in a terminal.
struct Show {
    player: Player,
    terminal: Terminal,
    paused: bool,
    follow: bool,
    /// What was searched for last.
    sought: String,
}

/// What became of a wait.
enum Woken {
    /// It is over.
    Due,
    Key(crossterm::event::KeyEvent),
}

impl Show {
    /// Plays to the end, or until somebody has seen enough. Answers whether the session goes on, and was not followed.
    async fn run(&mut self, mut ends: Ends) -> Result<bool> {
        tokio::select! {
            biased;
            () = ends.one() => Ok(false),
            end = self.play() => end,
        }
    }

    async fn play(&mut self) -> Result<bool> {
        loop {
            let wait = match self.player.coming().await? {
                _ if self.paused => None,
                Coming::In(wait) => Some(wait),
                Coming::NotYet if self.follow => Some(FOLLOW_POLL),
                Coming::NotYet => return Ok(true),
                Coming::End => return Ok(false),
            };
            match self.wait(wait).await {
                Woken::Due => {
                    let mut text = String::new();
                    self.player.take(&mut text);
                    self.terminal.show(&text)?;
                }
                Woken::Key(key) => match command(key) {
                    Some(Command::Quit) => return Ok(false),
                    Some(command) => self.obey(command).await?,
                    None => {}
                },
            }
        }
    }

    /// Waits so long, or for ever, unless a key is pressed.
    async fn wait(&mut self, time: Option<Duration>) -> Woken {
        let begun = Instant::now();
        let due = async {
            match time {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let woken = tokio::select! {
            () = due => Woken::Due,
            key = self.terminal.key() => Woken::Key(key),
        };
        if time.is_some() {
            self.player.waited(begun.elapsed());
        }
        woken
    }

    async fn obey(&mut self, command: Command) -> Result<()> {
        let at = self.player.at();
        match command {
            Command::Pause => self.paused = !self.paused,
            Command::Back => self.seek(at.saturating_sub(JUMP)).await?,
            Command::Forward => self.seek(at.saturating_add(JUMP)).await?,
            Command::Faster => self.player.pace = self.player.pace.faster(SPEED_STEP),
            Command::Slower => self.player.pace = self.player.pace.faster(1.0 / SPEED_STEP),
            Command::End => self.seek(Duration::MAX).await?,
            Command::Search => self.search().await?,
            Command::SearchAgain => self.find().await?,
            Command::Quit => {}
        }
        Ok(())
    }

    async fn seek(&mut self, time: Duration) -> Result<()> {
        self.player.seek(time, |text| self.terminal.show(text)).await
    }

    /// Asks for a text, and goes to where it is shown next.
    async fn search(&mut self) -> Result<()> {
        let mut text = String::new();
        loop {
            self.terminal.show_below(&format!("/{text}"))?;
            match typed(&mut text, self.terminal.key().await) {
                Typed::More => {}
                Typed::Cancelled => {
                    return self.player.redraw(|text| self.terminal.show(text)).await;
                }
                Typed::Done => break,
            }
        }
        if !text.is_empty() {
            self.sought = text;
        }
        self.find().await
    }

    /// Goes to where what was searched for is shown next, and stays there; or says that it is not, until a key is pressed.
    async fn find(&mut self) -> Result<()> {
        if self.sought.is_empty() {
            return self.player.redraw(|text| self.terminal.show(text)).await;
        }
        match self.player.find(&self.sought).await? {
            Some(time) => {
                self.paused = true;
                self.player.redraw(|text| self.terminal.show(text)).await?;
                self.seek(time).await
            }
            None => {
                let message = format!("`{}` is not shown after this: press a key", self.sought);
                self.terminal.show_below(&message)?;
                let _any = self.terminal.key().await;
                self.player.redraw(|text| self.terminal.show(text)).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_number_above_zero() {
        assert_eq!(factor("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "inf", "NaN", "fast", ""] {
            assert!(factor(wrong).is_err(), "{wrong}");
        }
    }
}
