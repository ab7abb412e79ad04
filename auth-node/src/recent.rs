//! What was looked up a moment ago, told to all who ask meanwhile: for what anybody may ask as often as they like.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use tokio::{sync::Mutex, time::Instant};

/// The last look at something.
pub(crate) struct Recent<T> {
    life: Duration,
    seen: ArcSwapOption<(Instant, T)>,
    looking: Mutex<()>,
}

impl<T: Clone> Recent<T> {
    /// A look that is told for so long.
    pub(crate) fn new(life: Duration) -> Self {
        Self { life, seen: ArcSwapOption::empty(), looking: Mutex::new(()) }
    }

    /// What was seen, or else what `look` sees: one of those who ask looks, and the others wait for it.
    ///
    /// # Errors
    /// Of `look`; the next who asks looks again.
    pub(crate) async fn get<E>(&self, look: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let _one = self.looking.lock().await;
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let seen = look.await?;
        self.seen.store(Some(Arc::new((Instant::now(), seen.clone()))));
        Ok(seen)
    }

    fn known(&self) -> Option<T> {
        let seen = self.seen.load();
        seen.as_deref().filter(|(at, _)| at.elapsed() < self.life).map(|(_, seen)| seen.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicU32, Ordering},
    };

    use futures::future::join_all;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn one_looks_and_all_are_told_until_it_is_old() {
        let (recent, looks) = (Recent::new(SECOND), AtomicU32::new(0));
        let get = || {
            recent.get(async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok::<_, Infallible>(looks.fetch_add(1, Ordering::Relaxed))
            })
        };
        assert_eq!(join_all((0..5).map(|_| get())).await, vec![Ok(0); 5]);
        tokio::time::advance(SECOND / 2).await;
        assert_eq!(get().await, Ok(0));
        tokio::time::advance(SECOND / 2).await;
        assert_eq!(get().await, Ok(1));
    }

    #[tokio::test]
    async fn what_failed_is_not_kept() {
        let recent = Recent::new(SECOND);
        assert_eq!(recent.get(async { Err::<u32, _>("no") }).await, Err("no"));
        assert_eq!(recent.get(async { Ok::<_, &str>(7) }).await, Ok(7));
        assert_eq!(recent.get(async { Err("not asked") }).await, Ok(7));
    }
}
