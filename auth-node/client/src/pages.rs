//! Walking a list that the server answers in pages.

use std::ops::ControlFlow;

use crate::ClientError;

/// Entries asked for at once: the most that the server gives.
pub const PAGE_SIZE: u32 = 1000;

/// Walks all pages. `page` is given the token of the page to fetch and answers its entries and the next token; `visit` takes
/// the entries, and breaks when it wants no more of them.
///
/// # Errors
/// What `page` and `visit` fail with; [`ClientError::Protocol`] when the server answers the same token twice, which would
/// never end.
pub async fn each_page<T, E, F, Fut>(
    mut page: F,
    mut visit: impl FnMut(Vec<T>) -> Result<ControlFlow<()>, E>,
) -> Result<(), E>
where
    E: From<ClientError>,
    F: FnMut(String) -> Fut,
    Fut: Future<Output = Result<(Vec<T>, String), ClientError>>,
{
    let mut token = String::new();
    loop {
        let (entries, next) = page(token.clone()).await?;
        if visit(entries)?.is_break() || next.is_empty() {
            return Ok(());
        }
        if next == token {
            return Err(ClientError::Protocol("a page of the list names itself as the next".into()).into());
        }
        token = next;
    }
}

/// Collects all pages, as [`each_page`] walks them.
///
/// # Errors
/// As of [`each_page`].
pub async fn all_pages<T, F, Fut>(page: F) -> Result<Vec<T>, ClientError>
where
    F: FnMut(String) -> Fut,
    Fut: Future<Output = Result<(Vec<T>, String), ClientError>>,
{
    let mut all = Vec::new();
    let collect = |entries: Vec<T>| {
        all.extend(entries);
        Ok::<_, ClientError>(ControlFlow::Continue(()))
    };
    each_page(page, collect).await?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_are_walked_to_the_end() {
        let all = all_pages(|token| async move {
            Ok(match token.as_str() {
                "" => (vec![1, 2], "a".to_owned()),
                // A page may be empty although there are more.
                "a" => (vec![], "b".to_owned()),
                _ => (vec![3], String::new()),
            })
        });
        assert_eq!(all.await.unwrap(), [1, 2, 3]);
    }

    #[tokio::test]
    async fn whoever_has_seen_enough_fetches_no_further_page() {
        let mut fetched = 0;
        let page = |token: String| {
            fetched += 1;
            let number = fetched;
            async move { Ok((vec![number], format!("{token}."))) }
        };
        let visit = |entries: Vec<i32>| {
            let enough = entries == [2];
            Ok::<_, ClientError>(if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        each_page(page, visit).await.unwrap();
        assert_eq!(fetched, 2);
    }

    #[tokio::test]
    async fn a_page_that_names_itself_is_refused() {
        let looped = all_pages(|_| async { Ok((vec![1], "same".to_owned())) }).await;
        assert!(matches!(looped, Err(ClientError::Protocol(_))));
    }
}
