//! Keys that are pressed while a program shows something in the terminal, and the signals that end it: for those who have to
//! give the terminal back as it was.

use std::{io, thread, time::Duration};

use anyhow::{Context as _, Result};
use crossterm::{
    event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    terminal,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// How often whoever waits for a key looks whether it is still asked for.
const KEY_POLL: Duration = Duration::from_millis(100);
/// Keys that wait to be looked at: more than anybody types meanwhile.
const KEYS: usize = 64;

/// Keys, one by one, until this is dropped.
#[derive(Debug)]
pub(crate) struct Keys(mpsc::Receiver<KeyEvent>);

impl Keys {
    /// Has the terminal hand them over.
    ///
    /// # Errors
    /// When it cannot be brought to.
    pub(crate) fn take() -> Result<Self> {
        let (sender, receiver) = mpsc::channel(KEYS);
        terminal::enable_raw_mode().context("the terminal cannot be asked for single keys")?;
        let taken = Self(receiver);
        thread::Builder::new().spawn(move || read_keys(&sender)).context("cannot make a thread")?;
        Ok(taken)
    }

    /// The next one. Never resolves when there are no more.
    pub(crate) async fn next(&mut self) -> KeyEvent {
        match self.0.recv().await {
            Some(key) => key,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = terminal::disable_raw_mode();
    }
}

/// What sends SIGINT where a terminal is as usual.
pub(crate) fn is_interrupt(key: KeyEvent) -> bool {
    key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL)
}

/// Reads keys until nobody wants them.
fn read_keys(sender: &mpsc::Sender<KeyEvent>) {
    while !sender.is_closed() {
        let key = match event::poll(KEY_POLL) {
            Ok(false) => continue,
            Ok(true) => event::read(),
            Err(_) => return,
        };
        match key {
            Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                // Whoever types faster than can be looked at is not waited for.
                let _ = sender.try_send(key);
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// The signals that end a program: a terminal is given back before they do.
#[derive(Debug)]
pub(crate) struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Ends {
    /// From now on they end nothing by themselves.
    ///
    /// # Errors
    /// When they cannot be caught.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them.
    pub(crate) async fn one(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
            _ = self.hangup.recv() => (),
        }
    }
}
