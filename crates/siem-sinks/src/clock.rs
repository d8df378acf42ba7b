//! Time from outside, so that tests can move it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Returns the time of day; for sinks that never wait.
pub type Now = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Time of day, and waits.
pub trait Clock: Send + Sync {
    /// Returns the time of day.
    fn now(&self) -> SystemTime;

    /// Waits.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}
