//! The agent's clock for the sinks of `siem-sinks`.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::platform::Clock;

/// Time of the agent's clock, and waits of the runtime.
pub(super) struct SinkClock(pub(super) Arc<dyn Clock>);

impl siem_sinks::clock::Clock for SinkClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.now().0)
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(duration))
    }
}
