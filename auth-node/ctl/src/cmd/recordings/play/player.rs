//! Where a recording is, how fast it goes on, and how one gets elsewhere in it. What is shown is written to whoever asks.

use std::time::Duration;

use anyhow::Result;
use recording_format::asciicast::{Event, EventKind, RESET, Sanitizer};

use super::tape::{Next, Place, Tape};

/// Bytes that are shown at once on the way to another place.
const BATCH: usize = 64 << 10;
/// Slowest and fastest.
const SPEEDS: (f64, f64) = (1.0 / 64.0, 1024.0);

/// How fast a recording is played.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pace {
    speed: f64,
    idle_limit: Duration,
}

impl Pace {
    /// So much faster than it was recorded, and with no pause longer than this, before that.
    pub(super) fn new(speed: f64, idle_limit: Duration) -> Self {
        Self { speed: speed.clamp(SPEEDS.0, SPEEDS.1), idle_limit }
    }

    /// By this factor faster.
    pub(super) fn faster(self, factor: f64) -> Self {
        Self::new(self.speed * factor, self.idle_limit)
    }

    /// How long to wait for something that was so much later, when so much of it is over.
    fn wait(self, gap: Duration, over: Duration) -> Duration {
        gap.min(self.idle_limit).saturating_sub(over).div_f64(self.speed)
    }

    /// How much of a recording passes in this time.
    fn passes(self, waited: Duration) -> Duration {
        waited.mul_f64(self.speed)
    }
}

/// What comes next, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coming {
    /// After so long.
    In(Duration),
    /// When the session goes on.
    NotYet,
    /// Nothing.
    End,
}

/// A recording that is being played.
pub(super) struct Player {
    tape: Tape,
    pub(super) pace: Pace,
    sanitizer: Sanitizer,
    /// Time of what was shown last.
    at: Duration,
    /// What was read, and is not shown yet.
    pending: Option<Event>,
    /// How much of the pause before it is over, in the recording's time.
    over: Duration,
}

impl Player {
    /// At the beginning.
    pub(super) fn new(tape: Tape, pace: Pace, sanitizer: Sanitizer) -> Self {
        Self { tape, pace, sanitizer, at: Duration::ZERO, pending: None, over: Duration::ZERO }
    }

    /// Time of what was shown last.
    pub(super) fn at(&self) -> Duration {
        self.at
    }

    /// Looks at what is next.
    ///
    /// # Errors
    /// When it is not what it must be, or cannot be fetched.
    pub(super) async fn coming(&mut self) -> Result<Coming> {
        let event = match self.pending.take() {
            Some(event) => event,
            None => match self.tape.next().await? {
                Next::Event(event) => event,
                Next::NotYet => return Ok(Coming::NotYet),
                Next::End => return Ok(Coming::End),
            },
        };
        let wait = self.pace.wait(event.at.saturating_sub(self.at), self.over);
        self.pending = Some(event);
        Ok(Coming::In(wait))
    }

    /// Takes note that so much of the time until what comes next was waited for.
    pub(super) fn waited(&mut self, time: Duration) {
        self.over = self.over.saturating_add(self.pace.passes(time));
    }

    /// What to show of what comes next, which is past then.
    pub(super) fn take(&mut self, out: &mut String) {
        let Some(event) = self.pending.take() else { return };
        (self.at, self.over) = (event.at, Duration::ZERO);
        if let EventKind::Output(text) = event.kind {
            self.sanitizer.feed(&text, out);
        }
    }

    /// Goes to a time, by showing all that was before it; back to one, from the beginning on, on an empty screen.
    ///
    /// # Errors
    /// As [`Self::coming`], and when it cannot be shown.
    pub(super) async fn seek(
        &mut self,
        time: Duration,
        mut show: impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        if time < self.at {
            self.tape.go_to(Place::default());
            (self.at, self.pending, self.sanitizer) = (Duration::ZERO, None, Sanitizer::screen());
            show(RESET)?;
        }
        self.over = Duration::ZERO;
        let mut batch = String::new();
        while let Coming::In(_) = self.coming().await? {
            if self.pending.as_ref().is_none_or(|event| event.at > time) {
                break;
            }
            self.take(&mut batch);
            if batch.len() >= BATCH {
                show(&batch)?;
                batch.clear();
            }
        }
        self.at = self.at.max(time.min(self.pending.as_ref().map_or(self.at, |event| event.at)));
        show(&batch)
    }

    /// Shows again what is shown, on an empty screen.
    ///
    /// # Errors
    /// As [`Self::seek`].
    pub(super) async fn redraw(&mut self, show: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let (time, over) = (self.at, self.over);
        // Whatever the time is: from the beginning on.
        self.at = Duration::MAX;
        self.seek(time, show).await?;
        self.over = over;
        Ok(())
    }

    /// When the text is next shown, of what was not shown yet; `None`: not any more. Where the recording is, is as before.
    ///
    /// # Errors
    /// As [`Self::coming`].
    pub(super) async fn find(&mut self, text: &str) -> Result<Option<Duration>> {
        let before = (self.tape.place(), self.pending.clone());
        let (mut plain, mut seen) = (Sanitizer::plain(), String::new());
        let mut next = match self.pending.clone() {
            Some(event) => Next::Event(event),
            None => self.tape.next().await?,
        };
        let found = loop {
            let Next::Event(event) = next else { break None };
            if let EventKind::Output(output) = &event.kind {
                plain.feed(output, &mut seen);
                if seen.contains(text) {
                    break Some(event.at);
                }
                // It may be cut into several outputs.
                let kept = seen.char_indices().rev().nth(text.chars().count()).map_or(0, |(at, _)| at);
                seen.drain(..kept);
            }
            next = self.tape.next().await?;
        };
        self.tape.go_to(before.0);
        self.pending = before.1;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::{super::tape::Payload, *};

    const SECOND: Duration = Duration::from_secs(1);

    fn player(events: &str) -> Player {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "{{\"version\":3,\"term\":{{\"cols\":80,\"rows\":24}}}}\n{events}").unwrap();
        let tape = Tape::new(Payload::file(file.path()).unwrap());
        Player::new(tape, Pace::new(1.0, 2 * SECOND), Sanitizer::screen())
    }

    const EVENTS: &str = "[1,\"o\",\"one \"]\n[1,\"o\",\"t\"]\n[0,\"i\",\"x\"]\n[0.5,\"o\",\"\\u001b[1mwo \"]\n[60,\"o\",\"three\"]\n";

    async fn sought(player: &mut Player, time: Duration) -> String {
        let mut shown = String::new();
        let show = |text: &str| {
            shown.push_str(text);
            Ok(())
        };
        player.seek(time, show).await.unwrap();
        shown
    }

    #[test]
    fn pauses_are_bounded_and_divided_by_the_speed() {
        let pace = Pace::new(2.0, 4 * SECOND);
        assert_eq!(pace.wait(SECOND, Duration::ZERO), SECOND / 2);
        assert_eq!(pace.wait(60 * SECOND, Duration::ZERO), 2 * SECOND);
        assert_eq!(pace.wait(60 * SECOND, SECOND), 3 * SECOND / 2);
        assert_eq!(pace.wait(SECOND, 2 * SECOND), Duration::ZERO);
        assert_eq!(pace.faster(1e9).wait(1024 * SECOND, Duration::ZERO), 4 * SECOND / 1024);
        assert_eq!(pace.faster(0.0).wait(SECOND, Duration::ZERO), 64 * SECOND);
    }

    #[tokio::test]
    async fn it_is_played_event_by_event() {
        let mut player = player(EVENTS);
        let (mut shown, mut waits) = (String::new(), Vec::new());
        while let Coming::In(wait) = player.coming().await.unwrap() {
            waits.push(wait.as_millis());
            player.take(&mut shown);
        }
        assert_eq!(waits, [1000, 1000, 0, 500, 2000]);
        assert_eq!((shown.as_str(), player.at()), ("one t\u{1b}[1mwo three", 62 * SECOND + SECOND / 2));
        assert_eq!(player.coming().await.unwrap(), Coming::End);
    }

    #[tokio::test]
    async fn what_was_waited_for_is_not_waited_for_again_at_whatever_speed() {
        let mut player = player(EVENTS);
        assert_eq!(player.coming().await.unwrap(), Coming::In(SECOND));
        player.waited(SECOND / 4);
        assert_eq!(player.coming().await.unwrap(), Coming::In(3 * SECOND / 4));
        player.pace = player.pace.faster(3.0);
        assert_eq!(player.coming().await.unwrap(), Coming::In(SECOND / 4));
    }

    #[tokio::test]
    async fn one_gets_on_and_back() {
        let mut player = player(EVENTS);
        assert_eq!(sought(&mut player, SECOND).await, "one ");
        assert_eq!(sought(&mut player, 3 * SECOND).await, "t\u{1b}[1mwo ");
        assert_eq!(player.coming().await.unwrap(), Coming::In(2 * SECOND));
        assert_eq!(sought(&mut player, 2 * SECOND).await, format!("{RESET}one t"));
        let mut shown = String::new();
        let show = |text: &str| {
            shown.push_str(text);
            Ok(())
        };
        player.redraw(show).await.unwrap();
        assert_eq!((shown, player.at()), (format!("{RESET}one t"), 2 * SECOND));
        assert_eq!(sought(&mut player, Duration::MAX).await, "\u{1b}[1mwo three");
        assert_eq!(player.coming().await.unwrap(), Coming::End);
        assert_eq!(sought(&mut player, Duration::ZERO).await, RESET);
        assert_eq!(player.coming().await.unwrap(), Coming::In(SECOND));
    }

    #[tokio::test]
    async fn a_text_is_found_though_it_is_coloured_or_cut_and_nothing_moves() {
        let mut player = player(EVENTS);
        assert_eq!(player.find("two").await.unwrap(), Some(5 * SECOND / 2));
        assert_eq!(player.find("one t").await.unwrap(), Some(2 * SECOND));
        assert_eq!(player.find("[1m").await.unwrap(), None);
        assert_eq!(sought(&mut player, SECOND).await, "one ");
        player.coming().await.unwrap();
        // What was shown is not found again.
        assert_eq!(player.find("one").await.unwrap(), None);
        assert_eq!(player.find("three").await.unwrap(), Some(125 * SECOND / 2));
        assert_eq!(sought(&mut player, 2 * SECOND).await, "t");
    }
}
