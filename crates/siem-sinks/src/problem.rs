//! Texts for people: of servers, and of results.

use siem_protocol::delivery::Rest;

/// Maximum number of characters of a text.
const MAX_CHARACTERS: usize = 300;

/// Returns the start of a text without control characters, on one line; `None` if nothing is left.
pub(crate) fn summary(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * MAX_CHARACTERS)]);
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let short: String = printable.take(MAX_CHARACTERS).collect();
    let words: Vec<&str> = short.split_whitespace().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// Returns the text of a result without entries, such as of a probe.
pub(crate) fn reason(rest: Rest) -> String {
    match rest {
        Rest::Retry { reason, .. } | Rest::Slow { reason, .. } | Rest::Hold { reason, .. } => {
            reason
        }
        Rest::Refused { status, answer } => format!("response {status}: {answer}"),
        Rest::Unprocessed | Rest::InTransit { .. } => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_is_short_and_printable() {
        assert_eq!(summary(b" a\r\n\x1b[31mb\xff "), Some("a [31mb\u{fffd}".to_owned()));
        assert_eq!(summary(b" \n\0"), None);
        assert_eq!(summary(&b"x".repeat(10_000)).map(|text| text.len()), Some(MAX_CHARACTERS));
    }
}
