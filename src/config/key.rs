//! Dotted keys: the parts of a path as one text, and back.

/// Formats a path as a key: `filter.ignore-types.types[1]`. A part that is a bare key of TOML stands as
/// it is, others are quoted, so that each key is the text of one path only and cannot control a terminal.
#[must_use]
pub fn key_text(path: &[impl AsRef<str>]) -> String {
    let mut text = String::new();
    for part in path.iter().map(AsRef::as_ref) {
        if is_index(part) && !text.is_empty() {
            text += &format!("[{part}]");
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            text += &key_part(part);
        }
    }
    text
}

/// Formats one part of a key as TOML writes it.
#[must_use]
pub fn key_part(part: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !part.is_empty() && part.chars().all(is_bare) {
        return part.to_owned();
    }
    let mut text = String::from("\"");
    for c in part.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric() => text.push(c),
            c => text += &format!("\\U{:08X}", u32::from(c)),
        }
    }
    text + "\""
}

/// Parses a key, as [`key_text`] formats it or as a person writes it. A part with an error in its
/// quoting is taken as it is: no value has this key.
#[must_use]
pub fn key_path(key: &str) -> Vec<String> {
    let (mut path, mut rest) = (Vec::new(), key);
    loop {
        let (part, after) = first_part(rest.trim_start());
        path.push(part);
        let mut after = after.trim_start();
        while let Some((index, behind)) =
            after.strip_prefix('[').and_then(|after| after.split_once(']'))
        {
            path.push(index.trim().to_owned());
            after = behind.trim_start();
        }
        match (after.strip_prefix('.'), path.last_mut()) {
            (Some(next), _) => rest = next,
            (None, Some(last)) => {
                last.push_str(after);
                return path;
            }
            (None, None) => return path,
        }
    }
}

/// Returns the first part of a key, and the text behind it.
fn first_part(text: &str) -> (String, &str) {
    if let Some(length) = quoted_length(text) {
        let (quoted, rest) = text.split_at(length);
        let table = format!("{quoted} = 0").parse::<toml::Table>();
        if let Some((part, _)) = table.ok().and_then(|table| table.into_iter().next()) {
            return (part, rest);
        }
    }
    let (part, rest) = text.split_at(text.find(['.', '[']).unwrap_or(text.len()));
    (part.trim_end().to_owned(), rest)
}

/// Returns the length of the quoted part at the start of `text`, with its quotes.
fn quoted_length(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = quote == '"',
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn is_index(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_text_writes_list_items_with_brackets() {
        assert_eq!(key_text(&["filter", "x", "types", "1"]), "filter.x.types[1]");
        assert_eq!(key_text(&["a"]), "a");
    }

    /// An error about the key `".."` named an empty key, and one about `"a.b"` the key `b` of a table `a`.
    #[test]
    fn key_with_dots_quotes_and_controls_keeps_its_parts() {
        for (path, text) in [
            (&["a.b", "c"][..], r#""a.b".c"#),
            (&["..", ""], "\"..\".\"\""),
            (&["", "1", "x y"], r#"""[1]."x y""#),
            (&["a", "0", "1", "[2]"], r#"a[0][1]."[2]""#),
            (&[r#"a"b\"#, "'"], r#""a\"b\\"."'""#),
            (&["é", "\u{1b}[2J\n\u{202e}"], r#""é"."\U0000001B[2J\U0000000A\U0000202E""#),
        ] {
            assert_eq!(key_text(path), text);
            assert_eq!(key_path(text), path, "{text}");
        }
    }

    #[test]
    fn key_written_by_a_person_is_parsed() {
        assert_eq!(key_path(" a . 'b.c' [ 1 ] "), ["a", "b.c", "1"]);
        assert_eq!(key_path("filter.*"), ["filter", "*"]);
        assert_eq!(key_path("a..b."), ["a", "", "b", ""]);
        assert_eq!(key_path(r#"a."b.c"#), ["a", "\"b", "c"]);
        assert_eq!(key_path(r#"a[.b"#), ["a[.b"]);
        assert_eq!(key_path(""), [""]);
    }
}
