//! Walking a list that the server answers in pages.

use crate::ClientError;

/// Entries asked for at once: the most that the server gives.
pub const PAGE_SIZE: u32 = 1000;

/// Collects all pages. `page` is given the token of the page to fetch and answers its entries and the next token.
///
/// # Errors
/// What `page` fails with; [`ClientError::Protocol`] when the server answers the same token twice, which would never
/// end.
pub async fn all_pages<T, F, Fut>(mut page: F) -> Result<Vec<T>, ClientError>
where
    F: FnMut(String) -> Fut,
    Fut: Future<Output = Result<(Vec<T>, String), ClientError>>,
{
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let (entries, next) = page(token.clone()).await?;
        all.extend(entries);
        if next.is_empty() {
            return Ok(all);
        }
        if next == token {
            return Err(ClientError::Protocol("a page of the list names itself as the next".into()));
        }
        token = next;
    }
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
    async fn a_page_that_names_itself_is_refused() {
        let looped = all_pages(|_| async { Ok((vec![1], "same".to_owned())) }).await;
        assert!(matches!(looped, Err(ClientError::Protocol(_))));
    }
}
