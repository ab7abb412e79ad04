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
    #[should_panic(expected = "the impossible: not within 1ms: no")]
    async fn it_gives_up() {
        eventually("the impossible", Duration::from_millis(1), async || Err::<(), _>("no")).await;
    }
}
