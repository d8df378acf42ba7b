//! Output of commands.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::failure::Failure;

/// Writes a line to standard output.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(Failure::failed)
}

/// Writes a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string_pretty(value).map_err(Failure::failed)?)
}

/// Writes a table with aligned columns; nothing without rows.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let head = head.map(str::to_owned);
    let rows: Vec<[String; N]> = std::iter::once(&head)
        .chain(rows)
        .map(|row| row.each_ref().map(|cell| plain(cell)))
        .collect();
    let widest = |column: usize| rows.iter().map(|row| width(&row[column])).max();
    let widths: [usize; N] = std::array::from_fn(|column| widest(column).unwrap_or_default());
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, widest)| padded(cell, widest));
        line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// Writes names and values as two columns.
pub(crate) fn fields(fields: &[(&str, String)]) -> Result<(), Failure> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    fields.iter().try_for_each(|(name, value)| line(&format!("{name:width$}  {}", plain(value))))
}

/// Escapes control characters, those that are invisible or change the order of a text, and spaces at
/// its ends: names come from senders, who could otherwise control the terminal or pass for others.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let inner = text.len() - text.trim_start_matches(' ').len()..text.trim_end_matches(' ').len();
    for (at, c) in text.char_indices() {
        match c {
            ' ' if !inner.contains(&at) => plain.extend(c.escape_unicode()),
            c if is_deceptive(c) => plain.extend(c.escape_default()),
            c => plain.push(c),
        }
    }
    if plain.is_empty() { "-".to_owned() } else { plain }
}

fn is_deceptive(c: char) -> bool {
    c.is_control()
        || c.is_whitespace() && c != ' '
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}' | '\u{ffa0}' | '\u{e0000}'..='\u{e0fff}')
}

fn padded(text: &str, columns: usize) -> String {
    format!("{text}{:1$}", "", columns.saturating_sub(width(text)))
}

/// Number of columns that a text takes in a terminal.
fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// Number of columns of a character: none for marks that are written over the one before, two for the scripts of
/// East Asia and for pictures, as in Unicode Standard Annex 11.
fn columns(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}' => 0,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1f64f}'
        | '\u{1f900}'..='\u{1f9ff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

/// Shortens a text to `longest` characters.
pub(crate) fn shortened(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        None => text.to_owned(),
        Some(_) => text.chars().take(longest - 1).chain(['…']).collect(),
    }
}

/// Formats a number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "B");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(plain("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(plain(" a b  "), "\\u{20}a b\\u{20}\\u{20}");
        assert_eq!(plain("a\u{a0}b\u{3164}"), "a\\u{a0}b\\u{3164}");
        assert_eq!(plain(" "), "\\u{20}");
        assert_eq!(plain("a\u{202e}b\u{200b}"), "a\\u{202e}b\\u{200b}");
        assert_eq!(plain("büro"), "büro");
        assert_eq!(plain(""), "-");
    }

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!(["büro", "bu\u{308}ro", "宽字", "한글", "😀a"].map(width), [4, 4, 4, 4, 3]);
        assert_eq!([padded("宽", 4), padded("abc", 2)], ["宽  ", "abc"]);
    }

    #[test]
    fn long_names_are_shortened_and_sizes_have_units() {
        assert_eq!(shortened("büro", 4), "büro");
        assert_eq!(shortened("büros", 4), "bür…");
        assert_eq!([0, 1023, 1024, 1 << 40].map(size), ["0 B", "1023 B", "1.0 KiB", "1.0 TiB"]);
    }
}
