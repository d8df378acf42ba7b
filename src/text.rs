//! Formatting of text for people.

pub(crate) use siem_sinks::http::causes;

/// Formats a count with the singular or plural of a noun.
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Shortens a text of a receiver to 200 characters, without control characters.
pub(crate) fn summary(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

/// Shortens a text to about `limit` characters by leaving out its middle.
pub(crate) fn shortened_in_the_middle(text: &str, limit: usize) -> String {
    let count = text.chars().count();
    if count <= limit {
        return text.to_owned();
    }
    let half = limit / 2;
    let start: String = text.chars().take(half).collect();
    let end: String = text.chars().skip(count - half).collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_uses_the_singular_for_one() {
        assert_eq!(counted(1, "entry", "entries"), "1 entry");
        assert_eq!(counted(0, "entry", "entries"), "0 entries");
    }

    #[test]
    fn long_text_is_shortened_in_the_middle() {
        assert_eq!(shortened_in_the_middle("/a/bc/d", 7), "/a/bc/d");
        assert_eq!(shortened_in_the_middle("/a/é/bc/d", 6), "/a/…c/d");
    }
}
