//! Waiting for a condition. Nothing else here waits.

use std::{fmt::Display, time::Duration};

use tokio::time::{Instant, sleep};

/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// Asks `probe` until it answers, and panics with its last excuse when `within` has passed.
///
/// # Panics
/// See above.
pub async fn eventually<T, E, F>(what: &str, within: Duration, mut probe: F) -> T
where
    E: Display,
    F: AsyncFnMut() -> Result<T, E>,
{
    let deadline = Instant::now() + within;
    loop {
        match probe().await {
            Ok(found) => return found,
            Err(excuse) if Instant::now() >= deadline => panic!("{what}: not within {within:?}: {excuse}"),
            Err(_) => sleep(POLL).await,
        }
    }
}

/// Time as it passes for a process that gets to run: a look that comes late counts as one in time. On a machine that
/// is too busy, nothing is late that had no chance to be in time.
#[derive(Debug)]
pub(crate) struct Ticks {
    left: u128,
    /// The longest that one look was late.
    pub(crate) latest: Duration,
}

impl Ticks {
    /// So much time.
    pub(crate) fn new(time: Duration) -> Self {
        Self { left: time.as_millis() / POLL.as_millis(), latest: Duration::ZERO }
    }

    /// Waits for the next look. `false`: the time is over.
    pub(crate) async fn next(&mut self) -> bool {
        let due = Instant::now() + POLL;
        sleep(POLL).await;
        self.latest = self.latest.max(due.elapsed());
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_asks_again() {
        let mut asked = 0;
        let count = eventually("a third time", Duration::from_secs(5), async || {
            asked += 1;
            if asked == 3 { Ok(asked) } else { Err("not yet") }
        });
        assert_eq!(count.await, 3);
    }

    #[tokio::test]
    async fn ticks_end() {
        let (mut ticks, mut count) = (Ticks::new(POLL * 5), 1);
        while ticks.next().await {
            count += 1;
        }
        assert_eq!(count, 5);
    }

    #[tokio::test]
    #[should_panic(expected = "the impossible: not within 1ms: no")]
    async fn it_gives_up() {
        eventually("the impossible", Duration::from_millis(1), async || Err::<(), _>("no")).await;
    }
}
