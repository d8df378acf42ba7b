//! Colours, and wrapping of text at the terminal's width.

use std::io::{self, IsTerminal as _};

/// Width that lines are wrapped at where it is not known.
const DEFAULT_WIDTH: usize = 100;
/// Lines are not made narrower than this.
const MIN_WIDTH: usize = 40;

/// Colours of the output, if there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    Shown,
    None,
}

impl Colours {
    /// Colours for standard output: shown on a terminal unless `NO_COLOR` is set
    /// (<https://no-color.org>).
    pub(super) fn of_stdout() -> Self {
        let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match io::stdout().is_terminal() && !is_unwanted && !is_dumb {
            true => Self::Shown,
            false => Self::None,
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Shown => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::None => text.to_owned(),
        }
    }

    pub(super) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(super) fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(super) fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(super) fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// Width to wrap standard output at; `None` when it is not a terminal.
pub(super) fn stdout_width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let size = console::Term::stdout().size_checked();
    Some(size.map_or(DEFAULT_WIDTH, |(_, columns)| usize::from(columns)))
}

/// Breaks text at spaces into lines of at most `width` characters, and keeps the indentation. A longer
/// word stays whole, so that paths and commands can be copied.
pub(super) fn wrap(text: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else { return text.lines().map(str::to_owned).collect() };
    text.lines().flat_map(|line| wrap_line(line, width.max(MIN_WIDTH))).collect()
}

fn wrap_line(line: &str, width: usize) -> Vec<String> {
    let text = line.trim_start_matches(' ');
    let indent = " ".repeat(line.len() - text.len());
    let (mut lines, mut current) = (Vec::new(), indent.clone());
    for (at, word) in text.split(' ').enumerate() {
        let is_first = at == 0 || current == indent;
        if !is_first && current.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut current, indent.clone()));
        } else if !is_first {
            current.push(' ');
        }
        current.push_str(word);
    }
    lines.push(current);
    lines
}

/// Replaces control characters with spaces: a receiver's response or the name of a file must not move
/// the cursor.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { ' ' } else { it }).collect()
}

/// Returns the first 12 digits of a hash, which are enough to compare by eye.
pub(super) fn short_hash(hash: impl std::fmt::Display) -> String {
    hash.to_string().chars().take(12).collect()
}

/// Formats a span of time in two units.
pub(super) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    let parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds % 60, "s")];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(parts.len() - 1);
    let shown = parts[first..].iter().take(2).enumerate();
    let shown = shown.filter(|(at, (count, _))| *at == 0 || *count > 0);
    shown.map(|(_, (count, unit))| format!("{count} {unit}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_two_units() {
        let table = [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (90, "1 min 30 s"),
            (3600, "1 h"),
            (3661, "1 h 1 min"),
            (7215, "2 h"),
            (90_000, "1 d 1 h"),
        ];
        for (seconds, text) in table {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn text_is_wrapped_at_spaces_and_words_stay_whole() {
        let text = "one two three four five six seven eight nine ten eleven";
        let lines = wrap(text, Some(40));
        assert_eq!(lines, ["one two three four five six seven eight", "nine ten eleven"]);
        let path = "/a/very/long/path/that/does/not/fit/into/forty/characters";
        assert_eq!(wrap(&format!("in {path}"), Some(40)), ["in", path]);
        assert_eq!(wrap("a\nb", None), ["a", "b"]);
        let indented = wrap("error\n  the token is missing, set a variable or a file", Some(40));
        assert_eq!(indented, ["error", "  the token is missing, set a variable", "  or a file"]);
    }
}
