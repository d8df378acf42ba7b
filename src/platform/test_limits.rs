//! Time limits that tests can shorten.

use std::time::Duration;

/// Returns `production`. In a debug build, returns the milliseconds in `variable` if they are fewer.
pub fn limit(variable: &str, production: Duration) -> Duration {
    let shorter = cfg!(debug_assertions)
        .then(|| std::env::var(variable).ok()?.parse().ok())
        .flatten()
        .map_or(production, Duration::from_millis);
    production.min(shorter)
}
