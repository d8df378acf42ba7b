//! Output of commands.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::failure::Failure;

/// Space between two columns of a table.
const GAP: &str = "  ";

/// Writes a line to standard output.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(Failure::failed)
}

/// Writes a line for people to standard error, in addition to the output. If that is closed or full, the line
/// is lost: the command did its work all the same.
pub(crate) fn note(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// Writes a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string_pretty(value).map_err(Failure::failed)?)
}

/// Writes a table with aligned columns; nothing without rows.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Result<(), Failure> {
    Table::new(head, rows).write()
}

/// Writes a table like [`table`]. In a terminal that is too narrow for it, `steps` are taken until it fits.
pub(crate) fn table_in_terminal<const N: usize>(
    head: [&str; N],
    rows: &[[String; N]],
    steps: &[Narrowing],
) -> Result<(), Failure> {
    let mut table = Table::new(head, rows);
    let is_whole = terminal_columns().is_none_or(|columns| table.narrow(steps, columns));
    table.write()?;
    if !is_whole && !rows.is_empty() {
        note("not all is shown in this terminal: `--json` and a pipe have everything");
    }
    Ok(())
}

/// Step that makes a table narrower.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Narrowing {
    /// Leaves a column out.
    Drop(&'static str),
    /// Shortens the cells of a column, to this number of columns of the terminal at least.
    Shorten(&'static str, usize),
}

/// Rows of a table, the head first, each with all cells.
struct Table(Vec<Vec<String>>);

impl Table {
    /// Creates a table; without rows it is empty.
    fn new<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Self {
        if rows.is_empty() {
            return Self(Vec::new());
        }
        let head = head.map(str::to_owned);
        let rows = std::iter::once(&head).chain(rows);
        Self(rows.map(|row| row.iter().map(|cell| plain(cell)).collect()).collect())
    }

    fn widths(&self) -> Vec<usize> {
        let count = self.0.first().map_or(0, Vec::len);
        let widest = |column: usize| self.0.iter().map(|row| width(&row[column])).max();
        (0..count).map(|column| widest(column).unwrap_or_default()).collect()
    }

    /// Takes steps until the table fits. Returns true if none was needed.
    fn narrow(&mut self, steps: &[Narrowing], columns: usize) -> bool {
        for (taken, step) in steps.iter().enumerate() {
            let widths = self.widths();
            let total = widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1);
            let Some(excess) = total.checked_sub(columns).filter(|excess| *excess > 0) else {
                return taken == 0;
            };
            let (Narrowing::Drop(name) | Narrowing::Shorten(name, _)) = step;
            let Some(at) = self.0[0].iter().position(|head| head == name) else { continue };
            match step {
                Narrowing::Drop(_) => self.0.iter_mut().for_each(|row| drop(row.remove(at))),
                Narrowing::Shorten(_, least) => {
                    let longest = widths[at].saturating_sub(excess).max(*least).max(width(name));
                    self.0.iter_mut().for_each(|row| row[at] = clipped(&row[at], longest));
                }
            }
        }
        false
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        let widths = self.widths();
        self.0.iter().map(move |row| {
            let cells = row.iter().zip(&widths).map(|(cell, widest)| padded(cell, *widest));
            cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
        })
    }

    fn write(&self) -> Result<(), Failure> {
        self.lines().try_for_each(|text| line(&text))
    }
}

/// Returns the number of columns of the terminal; `None` if the output goes elsewhere.
fn terminal_columns() -> Option<usize> {
    #[cfg(unix)]
    {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
        (size.ws_col > 0).then_some(size.ws_col.into())
    }
    #[cfg(not(unix))]
    None
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

/// Escapes the same in a message of several lines, but no spaces.
pub(crate) fn plain_lines(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && is_deceptive(c) {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
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
    // A width of `format!` has 16 bits.
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
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

/// Shortens a text to a number of columns of a terminal.
fn clipped(text: &str, longest: usize) -> String {
    if width(text) <= longest {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        if width(&kept) + columns(c) >= longest {
            break;
        }
        kept.push(c);
    }
    kept + "…"
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

    #[test]
    fn narrow_terminal_gets_shorter_and_fewer_columns() {
        let row = |name: &str| [name.to_owned(), "v1".to_owned(), "quiet behind".to_owned()];
        let rows = [row("9d6e0bb1c5f64c2ea0e3f1d2b3a49586"), row("宽宽宽宽宽宽宽宽宽")];
        let steps = [
            Narrowing::Drop("VERSION"),
            Narrowing::Drop("NONE"),
            Narrowing::Shorten("MACHINE", 12),
            Narrowing::Shorten("PROBLEMS", 4),
        ];
        let narrowed = |columns| {
            let mut table = Table::new(["MACHINE", "VERSION", "PROBLEMS"], &rows);
            let is_whole = table.narrow(&steps, columns);
            (is_whole, table.lines().collect::<Vec<_>>())
        };
        let (is_whole, whole) = narrowed(55);
        assert!(is_whole && whole[0].contains("VERSION"));
        let (is_whole, lines) = narrowed(54);
        assert!(!is_whole && lines[1] == "9d6e0bb1c5f64c2ea0e3f1d2b3a49586  quiet behind");
        let (_, lines) = narrowed(30);
        assert_eq!(lines[1], "9d6e0bb1c5f64c2…  quiet behind");
        assert_eq!(lines[2], "宽宽宽宽宽宽宽…   quiet behind");
        let (_, lines) = narrowed(1);
        assert_eq!(lines[1], "9d6e0bb1c5f…  quiet b…");
        for columns in 24..60 {
            let (_, lines) = narrowed(columns);
            assert!(lines.iter().all(|line| width(line) <= columns), "{columns}: {lines:?}");
        }
    }
}
