//! Whether the caller of a reply that is streamed may still have it. A stream outlives what let it begin: a session that is
//! revoked, has expired or is not used, a user that is locked or deleted, a role that is taken away. All of them are seen
//! by asking again what every call is asked, so that is done, often enough, for as long as the stream lasts.

use std::{sync::Arc, time::Duration};

use auth_core::{Context, CoreError};
use tokio::time::{sleep, timeout};

use crate::{authn::Call, error::ApiError, service::Service};

/// From one answer to the next question: with the time that it takes, within a second.
const INTERVAL: Duration = Duration::from_millis(500);
/// A node that cannot confirm within this that it is current ends what it streams.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);

const NOT_CURRENT: ApiError = ApiError::Unavailable("this node cannot confirm that it is current");

/// Waits until the caller of a call that goes on may not have made it any more, or that cannot be told; answers why. `may`
/// is what the method asks beside its access rule.
pub(crate) async fn lost<F>(service: Arc<Service>, call: Call, may: F) -> ApiError
where
    F: Fn(&Context) -> Result<(), CoreError> + Clone + Send + 'static,
{
    loop {
        sleep(INTERVAL).await;
        let admitted = timeout(CONFIRM_TIMEOUT, service.readmit(&call, may.clone())).await;
        if let Err(error) = admitted.unwrap_or(Err(NOT_CURRENT)) {
            return error;
        }
    }
}
