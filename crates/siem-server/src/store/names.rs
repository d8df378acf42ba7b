//! File names made from ids received over the network.

use siem_protocol::Digest;

/// Maximum length of an id that is used unchanged.
const PLAIN: usize = 80;
/// Number of characters of any other id that are kept for the reader.
const KEPT: usize = 40;

/// Returns a file name for `id`: the id itself if it is safe on every system, otherwise its
/// beginning and a hash. Different ids get different names, also on case-insensitive file systems.
pub(super) fn safe(id: &str) -> String {
    if is_plain(id) {
        return id.to_owned();
    }
    let kept: String = id
        .chars()
        .take(KEPT)
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c.to_ascii_lowercase() } else { '_' })
        .collect();
    let hash = Digest::of(id.as_bytes()).to_string();
    // No unchanged id contains a tilde.
    format!("{kept}~{}", &hash[..32])
}

fn is_plain(id: &str) -> bool {
    let characters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    // Windows reserves names such as `con` and `com1` for devices; all are shorter than five
    // characters.
    (5..=PLAIN).contains(&id.len()) && id.bytes().all(characters)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_of_agents_are_kept() {
        for id in ["01930000-0000-7000-8000-000000000001", "9d6e0bb1c5f64c2ea0e3f1d2b3a49586"] {
            assert_eq!(safe(id), id);
        }
    }

    #[test]
    fn paths_and_device_names_are_replaced() {
        let ids = [
            "../../etc/passwd",
            "/etc",
            "..",
            ".",
            "a/b",
            "a\\b",
            "con",
            "nul",
            "a\0b",
            "",
            "x:y",
            "a.",
        ];
        for id in ids {
            let name = safe(id);
            assert!(
                name.contains('~') && !name.contains(['/', '\\', '.', '\0', ':']),
                "{id}: {name}"
            );
        }
        assert_ne!(safe("ABCDE"), safe("abcde"));
        assert!(safe(&"x".repeat(10_000)).len() < 100);
    }

    proptest! {
        #[test]
        fn different_ids_get_different_names(a in ".{0,90}", b in ".{0,90}") {
            let (name_a, name_b) = (safe(&a), safe(&b));
            prop_assert_eq!(a == b, name_a.eq_ignore_ascii_case(&name_b));
            prop_assert!(name_a.len() < 100);
        }
    }
}
