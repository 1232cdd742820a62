//! Many requests, several at a time, and perhaps for as long as there is time for them.
//!
//! Each is made when its turn comes: a request that is under way takes some ten kilobytes, and there may be thousands.

use std::time::Duration;

use futures_util::{
    StreamExt as _,
    future::BoxFuture,
    stream::{FuturesUnordered, iter},
};
use tokio::time::Instant;

pub type Requests<'a, T> = Box<dyn Iterator<Item = BoxFuture<'a, T>> + Send + 'a>;

/// All of them, so many at a time; outcomes are in the order of their coming.
pub async fn all<T>(requests: Requests<'_, T>, at_a_time: usize) -> Vec<T> {
    iter(requests).buffer_unordered(at_a_time).collect().await
}

/// The same until the limit is over: then none is begun, and those that have begun are waited for. Fewer outcomes than
/// requests: there was no time for all.
pub async fn for_a_while<T>(mut requests: Requests<'_, T>, at_a_time: usize, limit: Duration) -> Vec<T> {
    let end = Instant::now() + limit;
    let (mut running, mut outcomes) = (FuturesUnordered::new(), Vec::new());
    loop {
        let room = at_a_time.saturating_sub(running.len());
        if Instant::now() < end {
            running.extend(requests.by_ref().take(room));
        }
        match running.next().await {
            Some(outcome) => outcomes.push(outcome),
            None => return outcomes,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_there_is_no_time_for_is_not_begun_and_what_has_begun_ends() {
        for (seconds, at_a_time, done) in [(&[1; 5][..], 2, 5), (&[1; 9], 2, 6), (&[9], 1, 1), (&[], 1, 0)] {
            let requests = || seconds.iter().map(|seconds| sleep(Duration::from_secs(*seconds)).boxed());
            let outcomes = for_a_while(Box::new(requests()), at_a_time, Duration::from_millis(2_500)).await;
            assert_eq!(outcomes.len(), done, "{seconds:?}, {at_a_time} at a time");
            assert_eq!(all(Box::new(requests()), at_a_time).await.len(), seconds.len());
        }
    }
}
