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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_uses_the_singular_for_one() {
        assert_eq!(counted(1, "entry", "entries"), "1 entry");
        assert_eq!(counted(0, "entry", "entries"), "0 entries");
    }
}
