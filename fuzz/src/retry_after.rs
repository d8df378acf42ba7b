//! The header `Retry-After` with any value.
//!
//! Four bytes are the time, in seconds since 1970; the rest is the value.

use std::time::{Duration, UNIX_EPOCH};

use siem_sinks::http::retry_after;

const HOUR: Duration = Duration::from_secs(3600);

/// Fails if the wait is zero, longer than an hour, or differs from the value.
pub fn run(data: &[u8]) {
    let Some((seconds, value)) = data.split_first_chunk() else { return };
    let now = UNIX_EPOCH + Duration::from_secs(u32::from_be_bytes(*seconds).into());
    let Ok(value) = std::str::from_utf8(value) else { return };
    let wait = retry_after(value, now);
    assert!(wait.is_none_or(|wait| !wait.is_zero() && wait <= HOUR), "{wait:?}");
    let value = value.trim();
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let requested = match httpdate::parse_http_date(value) {
        _ if digits => {
            // Any number of digits.
            let add = |sum: u64, digit| sum.saturating_mul(10).saturating_add(u64::from(digit));
            value.bytes().map(|byte| byte - b'0').fold(0, add)
        }
        Ok(date) => date.duration_since(now).unwrap_or_default().as_secs(),
        Err(_) => 0,
    };
    let requested = Duration::from_secs(requested).min(HOUR);
    assert_eq!(wait, (!requested.is_zero()).then_some(requested), "of {value:?}");
}
