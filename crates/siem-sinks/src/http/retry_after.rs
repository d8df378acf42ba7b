//! `Retry-After` of responses.

use std::time::{Duration, SystemTime};

/// Longest delay that a receiver can request.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Parses `Retry-After` (RFC 9110, 10.2.3): seconds or a date. The result is at most an hour; `None`
/// if the value is invalid or in the past.
#[must_use]
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number can hold are still a very long time.
        value.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default()
    };
    (!wait.is_zero()).then(|| wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    /// 2026-11-21T20:00:00Z.
    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_291_200)
    }

    proptest::proptest! {
        #[test]
        fn random_retry_after_is_at_most_an_hour(value in "\\PC{0,40}|[0-9 ]{0,30}") {
            if let Some(wait) = retry_after(&value, now()) {
                assert!(!wait.is_zero() && wait <= MAX_RETRY_AFTER, "{wait:?}");
            }
        }

        #[test]
        fn retry_after_in_seconds_is_used(seconds: u64) {
            let expected = Some(Duration::from_secs(seconds.min(3600))).filter(|w| !w.is_zero());
            assert_eq!(retry_after(&seconds.to_string(), now()), expected);
        }

        #[test]
        fn retry_after_date_is_used(ahead in 1_u64..100_000_000) {
            let date = now() + Duration::from_secs(ahead);
            let expected = Duration::from_secs(ahead.min(3600));
            assert_eq!(retry_after(&httpdate::fmt_http_date(date), now()), Some(expected));
        }
    }
}
