//! Time from outside, so that tests can move it.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime},
};

/// Time of day, and waits.
pub trait Clock: Send + Sync {
    /// Returns the time of day.
    fn now(&self) -> SystemTime;

    /// Waits.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}
