//! How far long work has come: a bar on standard error, where that is a terminal that can show one, and nothing anywhere else.
//! It is gone when this is dropped, whatever the work came to.

use std::{
    fmt::Write,
    fs::File,
    io::{Read, Seek},
    time::{Duration, Instant},
};

use indicatif::{
    BinaryBytes, HumanDuration, ProgressBar, ProgressBarIter, ProgressState, ProgressStyle,
    style::ProgressTracker,
};

/// Of bytes, of which it is known how many there are.
const BYTES: &str = "{msg} {bar:30} {binary_bytes}/{binary_total_bytes}, {pace}";
/// Of other things.
const THINGS: &str = "{msg} {bar:30} {pos}/{len}, {eta} left";
/// Of things of which nobody knows how many there are.
const SOME: &str = "{spinner} {msg} {human_pos}";
/// How often it is seen that work goes on that cannot be measured.
const TICK: Duration = Duration::from_millis(200);

/// How long nothing goes on before that is said, in place of how fast it goes.
const STILL: Duration = Duration::from_secs(3);

/// How fast bytes go, and when they will have gone; or that they do not.
#[derive(Debug, Clone)]
struct Pace {
    position: u64,
    since: Instant,
    is_still: bool,
}

impl Pace {
    fn new() -> Self {
        Self { position: 0, since: Instant::now(), is_still: false }
    }

    fn see(&mut self, position: u64, now: Instant) {
        if position != self.position {
            (self.position, self.since) = (position, now);
        }
        self.is_still = now.saturating_duration_since(self.since) >= STILL;
    }
}

impl ProgressTracker for Pace {
    fn clone_box(&self) -> Box<dyn ProgressTracker> {
        Box::new(self.clone())
    }

    fn tick(&mut self, state: &ProgressState, now: Instant) {
        self.see(state.pos(), now);
    }

    fn reset(&mut self, _: &ProgressState, now: Instant) {
        *self = Self { since: now, ..Self::new() };
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is shown in large units")]
    fn write(&self, state: &ProgressState, text: &mut dyn Write) {
        // A bar has nobody to tell that it cannot be written.
        let _ = match self.is_still {
            true => write!(text, "waiting"),
            false => {
                let (speed, left) = (BinaryBytes(state.per_sec() as u64), HumanDuration(state.eta()));
                write!(text, "{speed}/s, {left:#} left")
            }
        };
    }
}

/// A bar.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Of so many bytes.
    pub(crate) fn bytes(what: &'static str, total: u64) -> Self {
        let bar = Self::new(ProgressBar::new(total), what, BYTES);
        bar.0.enable_steady_tick(TICK);
        bar
    }

    /// Of so many things.
    pub(crate) fn things(what: &'static str, total: usize) -> Self {
        Self::new(ProgressBar::new(total as u64), what, THINGS)
    }

    /// Of things that are only counted.
    pub(crate) fn count(what: &'static str) -> Self {
        let bar = Self::new(ProgressBar::new_spinner(), what, SOME);
        bar.0.enable_steady_tick(TICK);
        bar
    }

    /// Of nobody's concern.
    pub(crate) fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    fn new(bar: ProgressBar, what: &'static str, template: &str) -> Self {
        // A template that could not be read would be seen as the usual bar.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(bar.with_style(style.with_key("pace", Pace::new())).with_message(what))
    }

    /// So much more is done.
    pub(crate) fn advance(&self, by: u64) {
        self.0.inc(by);
    }

    /// Says what is done now, of as much.
    pub(crate) fn now(&self, what: &'static str) {
        self.0.set_message(what);
        self.0.set_position(0);
    }

    /// Does something that prints, with the bar out of the way.
    pub(crate) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }

    /// A source, of which is seen how far it is read.
    pub(crate) fn read<S: Read + Seek>(&self, source: S) -> ProgressBarIter<S> {
        self.0.wrap_read(source)
    }

    /// As [`Progress::read`].
    pub(crate) fn read_async(&self, source: tokio::fs::File) -> ProgressBarIter<tokio::fs::File> {
        self.0.wrap_async_read(source)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Bytes of a file; 0 where that cannot be told.
pub(crate) fn length(file: &File) -> u64 {
    file.metadata().map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn templates_can_be_read() {
        for template in [BYTES, THINGS, SOME] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn what_is_read_is_counted_also_after_it_is_read_again() {
        let bar = Progress::bytes("reading", 100);
        let mut source = bar.read(io::Cursor::new(vec![0; 100]));
        io::copy(&mut source, &mut io::sink()).unwrap();
        assert_eq!(bar.0.position(), 100);
        bar.now("sending");
        assert_eq!(bar.0.position(), 0);
        bar.advance(7);
        assert_eq!((bar.aside(|| "printed"), bar.0.position()), ("printed", 7));
    }
    #[test]
    fn what_stands_still_has_no_speed() {
        let mut pace = Pace::new();
        let start = pace.since;
        for (position, after, is_still) in
            [(0, 1, false), (0, 3, true), (5, 4, false), (5, 6, false), (5, 7, true)]
        {
            pace.see(position, start + Duration::from_secs(after));
            assert_eq!(pace.is_still, is_still, "{position} after {after} s");
        }
    }
}
