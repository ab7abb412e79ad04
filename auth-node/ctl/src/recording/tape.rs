//! What was recorded and is not on the agent's disk yet: a bounded buffer between the terminal, which never waits, and
//! the agent.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, watch};

use super::wire::MAX_DATA;

/// Most bytes that wait for the agent: minutes of a busy terminal.
pub(crate) const CAPACITY: usize = 4 << 20;

/// Lines on their way.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    state: Mutex<State>,
    changed: Notify,
    /// A line did not fit, and is not there: the recording is not whole, and takes nothing more.
    torn: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// Lines that are not saved yet.
    lines: VecDeque<Bytes>,
    /// Offset of the first of them in the payload.
    begin: u64,
    /// Their bytes.
    length: usize,
    /// No more lines will come.
    closed: bool,
}

/// What there is to send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Lines, from an offset on.
    Lines(u64, Bytes),
    /// There are no lines, and there will be none.
    End,
}

impl Tape {
    /// Adds a line. It never waits: one that does not fit tears the tape.
    pub(crate) fn push(&self, line: Bytes) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        if state.length + line.len() > CAPACITY {
            state.closed = true;
            self.torn.send_replace(true);
        } else {
            state.length += line.len();
            state.lines.push_back(line);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// Everything before `offset` is saved.
    pub(crate) fn saved(&self, offset: u64) {
        let mut state = self.state();
        while let Some(line) = state.lines.front() {
            let end = state.begin + line.len() as u64;
            if end > offset {
                break;
            }
            state.length -= line.len();
            state.begin = end;
            state.lines.pop_front();
        }
    }

    /// Whether the agent, who has the bytes before `offset`, can be given all others.
    pub(crate) fn has(&self, offset: u64) -> bool {
        let state = self.state();
        let mut at = state.begin;
        at == offset
            || state.lines.iter().any(|line| {
                at += line.len() as u64;
                at == offset
            })
    }

    /// Waits for lines from `offset` on, which is where one begins; as many as a frame takes.
    pub(crate) async fn next(&self, offset: u64) -> Next {
        loop {
            if let Some(next) = self.state().from(offset) {
                return next;
            }
            self.changed.notified().await;
        }
    }

    /// Resolves when a line did not fit.
    pub(crate) async fn torn(&self) {
        let mut torn = self.torn.subscribe();
        // The sender lives as long as this.
        let _ = torn.wait_for(|torn| *torn).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn from(&self, offset: u64) -> Option<Next> {
        let (mut at, mut lines) = (self.begin, BytesMut::new());
        for line in &self.lines {
            if at >= offset {
                if lines.len() + line.len() > MAX_DATA && !lines.is_empty() {
                    break;
                }
                lines.extend_from_slice(line);
            }
            at += line.len() as u64;
        }
        match lines.is_empty() {
            false => Some(Next::Lines(offset, lines.freeze())),
            true => self.closed.then_some(Next::End),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn line(length: usize) -> Bytes {
        let mut line = vec![b'x'; length - 1];
        line.push(b'\n');
        line.into()
    }

    #[test]
    fn lines_are_sent_again_until_they_are_saved() {
        let tape = Tape::default();
        assert_eq!(tape.next(0).now_or_never(), None);
        for length in [10, 20, 30] {
            tape.push(line(length));
        }
        let sent = |offset| match tape.next(offset).now_or_never() {
            Some(Next::Lines(at, lines)) => Some((at, lines.len())),
            _ => None,
        };
        assert_eq!(sent(0), Some((0, 60)));
        assert_eq!(sent(0), Some((0, 60)));
        assert_eq!(sent(30), Some((30, 30)));
        // In the middle of a line: what is before it is saved, the line is not.
        tape.saved(15);
        assert_eq!(
            [0, 10, 15, 30, 60, 61].map(|offset| tape.has(offset)),
            [false, true, false, true, true, false]
        );
        tape.saved(30);
        assert_eq!(sent(30), Some((30, 30)));
        tape.close();
        assert_eq!(sent(30), Some((30, 30)));
        tape.saved(60);
        assert_eq!(tape.next(60).now_or_never(), Some(Next::End));
        tape.push(line(5));
        assert_eq!(tape.next(60).now_or_never(), Some(Next::End));
    }

    #[test]
    fn frames_are_of_whole_lines_and_bounded() {
        let tape = Tape::default();
        for _ in 0..3 {
            tape.push(line(MAX_DATA / 2 - 1));
        }
        let Some(Next::Lines(0, lines)) = tape.next(0).now_or_never() else { panic!("there are lines") };
        assert_eq!(lines.len(), MAX_DATA - 2);
    }

    #[test]
    fn a_tape_that_is_full_is_torn_for_good_and_never_waits() {
        let tape = Tape::default();
        for _ in 0..CAPACITY / 1024 {
            tape.push(line(1024));
        }
        assert_eq!(tape.torn().now_or_never(), None);
        tape.push(line(2));
        assert_eq!(tape.torn().now_or_never(), Some(()));
        // What fitted is still there, and what comes after the hole is not.
        assert!(matches!(tape.next(0).now_or_never(), Some(Next::Lines(..))));
        tape.saved(CAPACITY as u64);
        tape.push(line(2));
        assert_eq!(tape.next(CAPACITY as u64).now_or_never(), Some(Next::End));
    }
}
