//! Regular expressions of bounded size; the time of a search grows only with the text.

use regex_automata::{
    meta::{BuildError, Config, Regex},
    nfa::thompson::NFA,
    util::syntax,
};

/// Maximum size of the compiled patterns of one filter: nested repetitions are short to write and
/// huge to compile.
pub(super) const MAX_SIZE: usize = 4 << 20;

/// Compiles patterns that are searched together. Returns the index of the first invalid one, and
/// the reason.
pub(super) fn compile<P: AsRef<str>>(patterns: &[P]) -> Result<Regex, (usize, String)> {
    let config = Config::new().nfa_size_limit(Some(MAX_SIZE)).onepass(false);
    let built = Regex::builder().configure(config).build_many(patterns);
    built.map_err(|error| {
        let index = error.pattern().map_or(0, |pattern| pattern.as_usize());
        (index, describe(&error))
    })
}

/// Returns true if the patterns of a matcher of bytes, compiled together, exceed the maximum size.
pub(super) fn is_too_large<P: AsRef<str>>(patterns: &[P]) -> bool {
    let compiled = NFA::compiler()
        .syntax(syntax::Config::new().utf8(false).dot_matches_new_line(true))
        .configure(NFA::config().utf8(false).nfa_size_limit(Some(MAX_SIZE)))
        .build_many(patterns);
    compiled.is_err_and(|error| error.size_limit().is_some())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_described_in_one_line() {
        let wrong = |pattern: &str| compile(&["a", pattern]).unwrap_err();
        assert_eq!(wrong("(x"), (1, "unclosed group".to_owned()));
        assert_eq!(wrong("((a{500}){500}){500}").1, "it is too large: repeat less");
        assert!(wrong(r"(a)\1").1.contains("backreferences are not supported"));
    }
}
