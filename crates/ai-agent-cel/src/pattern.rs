//! Regular expressions of bounded size; the time of a search grows only with the text.

use regex_automata::meta::{BuildError, Config, Regex};

/// Maximum size of a compiled expression: nested repetitions are short to write and huge to compile.
const MAX_SIZE: usize = 4 << 20;

/// Compiles `pattern`, or returns the error in one line.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    let config = Config::new().nfa_size_limit(Some(MAX_SIZE)).onepass(false);
    Regex::builder().configure(config).build(pattern).map_err(|error| describe(&error))
}

fn describe(error: &BuildError) -> String {
    if error.size_limit().is_some() {
        return "it is too large: repeat less".to_owned();
    }
    // The pattern with a mark below it comes first, the error in the last line.
    let text = error.syntax_error().map_or_else(|| error.to_string(), ToString::to_string);
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}
