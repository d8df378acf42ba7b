//! Drops records by their origin: the session file, or the working directory of the client.
//!
//! The client keeps the sessions of a project in one directory, and most records contain their working
//! directory as `cwd`. A record without `cwd` is never dropped because of it.
//!
//! Globs come from the server too, so their number, length, nesting and compiled size are limited before
//! anything is built.

use ai_agent_stage::{BuildError, Filter, FilterOptions, Plugin, Record, Verdict};
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use schemars::JsonSchema;
use serde::Deserialize;

use super::pattern;
use config_text::Size;

inventory::submit! {
    Plugin::filter::<Options>(
        "path",
        "Drops records by globs on the session's file and on the record's `cwd`.",
        r#"
## Drop records whose `cwd` matches one of these globs or is below a match. A glob starts with `/`,
## `**/` or a drive, and uses `/` between names: `*` matches any part of one name, `**/` any
## directories, `{a,b}` one of two. All options together may have 1,000 globs of 64 KiB.
drop_cwd = ["**/secret-project"]
## Drop records whose `cwd` does not match; records without `cwd` are kept.
keep_only_cwd = []
## Drop records whose session file matches or is below a match.
drop_files = ["**/projects/*-secret-project"]
## Drop records of all other session files.
keep_only_files = []
"#,
    )
}

/// Options of the filter.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Drop records whose `cwd` matches one of these globs or is below a match. All options
    /// together: at most 1,000 globs of 64 KiB, 16 nested braces, and 4 MiB when compiled.
    #[serde(default)]
    #[schemars(length(max = 1000), inner(length(max = 65536)))]
    drop_cwd: Vec<String>,
    /// Drop records whose `cwd` does not match; records without `cwd` are kept. All options
    /// together: at most 1,000 globs of 64 KiB, 16 nested braces, and 4 MiB when compiled.
    #[serde(default)]
    #[schemars(length(max = 1000), inner(length(max = 65536)))]
    keep_only_cwd: Vec<String>,
    /// Drop records whose session file matches or is below a match. All options
    /// together: at most 1,000 globs of 64 KiB, 16 nested braces, and 4 MiB when compiled.
    #[serde(default)]
    #[schemars(length(max = 1000), inner(length(max = 65536)))]
    drop_files: Vec<String>,
    /// Drop records of all other session files. All options
    /// together: at most 1,000 globs of 64 KiB, 16 nested braces, and 4 MiB when compiled.
    #[serde(default)]
    #[schemars(length(max = 1000), inner(length(max = 65536)))]
    keep_only_files: Vec<String>,
}

/// The filter.
struct PathFilter {
    cwd: PathRules,
    files: PathRules,
}

/// Rules for one kind of path.
struct PathRules {
    drop: Globs,
    keep_only: Option<Globs>,
}

/// Globs for paths of any operating system.
struct Globs {
    /// For paths that start with `/`.
    exact: GlobSet,
    /// For paths of Windows, which are compared without regard to case.
    folded: GlobSet,
}

/// Maximum number of globs in one filter.
const MAX_GLOBS: usize = 1000;
/// Maximum length of all globs in one filter in bytes.
const MAX_BYTES: usize = 64 << 10;
/// Maximum number of braces around a part of a glob: the parser calls itself for each.
const MAX_BRACES: usize = 16;

impl FilterOptions for Options {
    type Filter = PathFilter;

    fn build(self) -> Result<PathFilter, BuildError> {
        self.check_limits()?;
        let rules = |(drop, drops): (_, Vec<_>), (keep, keeps): (_, Vec<_>)| {
            let keep_only = (!keeps.is_empty()).then(|| Globs::new(keep, &keeps)).transpose()?;
            Ok::<_, BuildError>(PathRules { drop: Globs::new(drop, &drops)?, keep_only })
        };
        Ok(PathFilter {
            cwd: rules(("drop_cwd", self.drop_cwd), ("keep_only_cwd", self.keep_only_cwd))?,
            files: rules(
                ("drop_files", self.drop_files),
                ("keep_only_files", self.keep_only_files),
            )?,
        })
    }
}

impl Options {
    /// Returns the globs of each option.
    fn globs(&self) -> [(&'static str, &[String]); 4] {
        [
            ("drop_cwd", &self.drop_cwd),
            ("keep_only_cwd", &self.keep_only_cwd),
            ("drop_files", &self.drop_files),
            ("keep_only_files", &self.keep_only_files),
        ]
    }

    /// Checks the globs of all options against the limits. Parses them only if they are few and short.
    fn check_limits(&self) -> Result<(), BuildError> {
        let (mut count, mut bytes) = (0, 0);
        for (option, globs) in self.globs() {
            count += globs.len();
            if count > MAX_GLOBS {
                let problem =
                    format!("is the last of {count} globs, at most {MAX_GLOBS} are allowed");
                return Err(wrong(option, problem));
            }
            bytes += globs.iter().map(String::len).sum::<usize>();
            if bytes > MAX_BYTES {
                let limit = Size(MAX_BYTES as u64);
                let problem =
                    format!("is the last of {bytes} bytes of globs, at most {limit} are allowed");
                return Err(wrong(option, problem));
            }
            if let Some(glob) = globs.iter().find(|glob| nested_braces(glob) > MAX_BRACES) {
                let shown: String = glob.chars().take(40).collect();
                let problem = format!(
                    "contains `{shown}…` with {} nested braces, at most {MAX_BRACES} are allowed",
                    nested_braces(glob)
                );
                return Err(wrong(option, problem));
            }
        }
        self.check_compiled_size()
    }

    /// Compiles the globs of all options together, without those for Windows, which are at most a few
    /// times larger.
    fn check_compiled_size(&self) -> Result<(), BuildError> {
        let mut patterns = Vec::new();
        for (option, globs) in self.globs() {
            for glob in globs {
                let parsed = parse(glob, false).map_err(|problem| wrong(option, problem))?;
                patterns.extend(parsed.iter().map(|glob| glob.regex().to_owned()));
            }
            if pattern::is_too_large(&patterns) {
                let limit = Size(pattern::MAX_SIZE as u64);
                let problem = format!(
                    "is too large: compiled, all globs of the filter may take {limit}; use fewer \
                     `*`, `?`, `[…]` and `{{…}}`"
                );
                return Err(wrong(option, problem));
            }
        }
        Ok(())
    }
}

/// Returns how deeply braces are nested at most. Braces in a class such as `[{}]` are ordinary characters.
fn nested_braces(glob: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = glob.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' => skip_class(&mut bytes),
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Skips the rest of a class as the parser of globs does: after an optional `!` or `^`, the first
/// character does not end it.
fn skip_class(bytes: &mut std::str::Bytes<'_>) {
    if matches!(bytes.next(), Some(b'!' | b'^')) {
        bytes.next();
    }
    bytes.find(|byte| *byte == b']');
}

impl Filter for PathFilter {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        if self.files.is_configured() && self.files.drops(&record.origin().path.to_string_lossy()) {
            return Verdict::Drop("file");
        }
        if self.cwd.is_configured() && record.cwd().is_some_and(|cwd| self.cwd.drops(&cwd)) {
            return Verdict::Drop("cwd");
        }
        Verdict::Keep
    }
}

impl PathRules {
    fn is_configured(&self) -> bool {
        !self.drop.exact.is_empty() || self.keep_only.is_some()
    }

    fn drops(&self, path: &str) -> bool {
        self.drop.matches(path) || self.keep_only.as_ref().is_some_and(|only| !only.matches(path))
    }
}

impl Globs {
    fn new(option: &'static str, globs: &[String]) -> Result<Self, BuildError> {
        let sets = |fold| {
            let mut set = GlobSetBuilder::new();
            for glob in globs {
                for glob in parse(glob, fold).map_err(|problem| wrong(option, problem))? {
                    set.add(glob);
                }
            }
            set.build().map_err(|error| wrong(option, format!("contains {error}")))
        };
        Ok(Self { exact: sets(false)?, folded: sets(true)? })
    }

    fn matches(&self, path: &str) -> bool {
        if path.starts_with('/') {
            self.exact.is_match(path)
        } else {
            self.folded.is_match(path.replace('\\', "/"))
        }
    }
}

/// Returns a glob, and one for everything below its matches.
fn parse(glob: &str, fold: bool) -> Result<Vec<Glob>, String> {
    if glob.contains('\\') {
        return Err(format!("contains `{glob}`, expected `/` between names, on Windows too"));
    }
    let drive = glob.chars().nth(1) == Some(':');
    if !drive && !["/", "**/", "{", "["].iter().any(|start| glob.starts_with(start)) {
        return Err(format!(
            "contains `{glob}`, which no absolute path matches, expected a glob that starts with `/`, \
             `**/` or a drive: `**/{}`",
            glob.trim_start_matches("~/").trim_start_matches('*')
        ));
    }
    let itself = glob.strip_suffix("/**").unwrap_or(glob);
    let itself = itself.strip_suffix('/').unwrap_or(itself);
    let globs = [itself.to_owned(), format!("{itself}/**")].into_iter().filter(|it| !it.is_empty());
    let parsed = globs.map(|glob| {
        let mut glob = GlobBuilder::new(&glob);
        let glob = glob.literal_separator(true).backslash_escape(false).case_insensitive(fold);
        glob.build().map_err(|error| format!("contains {}", describe(&error)))
    });
    parsed.collect()
}

fn describe(error: &globset::Error) -> String {
    format!("`{}`: {}", error.glob().unwrap_or_default(), error.kind())
}

fn wrong(option: &'static str, problem: String) -> BuildError {
    BuildError::invalid(option, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::filter::from_toml;

    const CWD: Verdict = Verdict::Drop("cwd");
    const FILE: Verdict = Verdict::Drop("file");

    fn check(options: &str, line: &str) -> Verdict {
        from_toml::<Options>(options).unwrap().check(&Record::from_line(line.as_bytes()))
    }

    fn at(cwd: &str) -> String {
        serde_json::json!({ "cwd": cwd }).to_string()
    }

    #[test]
    fn directory_includes_its_content_in_every_notation() {
        for glob in
            ["**/secret", "**/secret/", "**/secret/**", "/home/*/secret", "{/home/a}/secret"]
        {
            let options = format!("drop_cwd = ['{glob}']");
            for (cwd, expected) in [
                ("/home/a/secret", CWD),
                ("/home/a/secret/", CWD),
                ("/home/a/secret/deep/er", CWD),
                ("/home/a/secrets", Verdict::Keep),
                ("/home/a/top-secret", Verdict::Keep),
                ("/home/a/Secret", Verdict::Keep),
                ("/home/a", Verdict::Keep),
            ] {
                assert_eq!(check(&options, &at(cwd)), expected, "{glob} on {cwd}");
            }
        }
    }

    #[test]
    fn star_matches_within_one_name() {
        assert_eq!(check("drop_cwd = ['/a/*/c']", &at("/a/b/c")), CWD);
        assert_eq!(check("drop_cwd = ['/a/*/c']", &at("/a/b/b/c")), Verdict::Keep);
    }

    #[test]
    fn keep_only_drops_everything_else() {
        let options = "keep_only_cwd = ['/work']\ndrop_cwd = ['/work/private']";
        assert_eq!(check(options, &at("/work/a")), Verdict::Keep);
        assert_eq!(check(options, &at("/work/private/a")), CWD);
        assert_eq!(check(options, &at("/home/a")), CWD);
    }

    #[test]
    fn record_without_cwd_is_kept() {
        let options = "keep_only_cwd = ['/work']\ndrop_cwd = ['/**']";
        for line in ["{}", r#"{"cwd":5}"#, r#"{"message":{"cwd":"/a"}}"#, "{\"cwd\":\"/a\"", "x"] {
            assert_eq!(check(options, line), Verdict::Keep, "{line}");
        }
        assert_eq!(check(options, r#"{"cwd":"\/\u0061"}"#), CWD, "escapes are read");
    }

    #[test]
    fn windows_path_matches_any_separator_and_case() {
        for glob in ["**/Secret", "C:/users/*/secret", "[cd]:/**/secret"] {
            let options = format!("drop_cwd = ['{glob}']");
            assert_eq!(check(&options, &at(r"c:\Users\a\SECRET\b")), CWD, "{glob}");
            assert_eq!(check(&options, &at("C:/Users/a/secret")), CWD, "{glob}");
            assert_eq!(check(&options, &at(r"c:\Users\a\b")), Verdict::Keep, "{glob}");
        }
    }

    #[test]
    fn session_file_decides_for_any_line() {
        let session = "drop_files = ['**/projects/-work']";
        let other = "keep_only_files = ['**/projects/-home']";
        for line in ["{}", "no JSON", r#"{"cwd":"/a"}"#] {
            assert_eq!(check(session, line), FILE, "{line}");
            assert_eq!(check(other, line), FILE, "{line}");
            assert_eq!(check("drop_files = ['**/*.log']", line), Verdict::Keep, "{line}");
        }
    }

    #[test]
    fn invalid_or_relative_glob_is_refused() {
        let refused = |glob: &str| {
            let options = format!("drop_cwd = ['{glob}']");
            from_toml::<Options>(&options).err().unwrap().to_string()
        };
        let relative = "which no absolute path matches, expected a glob that starts with `/`, `**/` \
                        or a drive: `**/secret`";
        assert_eq!(refused("secret"), format!("`drop_cwd` contains `secret`, {relative}"));
        assert_eq!(refused("~/secret"), format!("`drop_cwd` contains `~/secret`, {relative}"));
        assert_eq!(
            refused(r"C:\secret"),
            r"`drop_cwd` contains `C:\secret`, expected `/` between names, on Windows too"
        );
        assert!(
            refused("/a/{b").starts_with("`drop_cwd` contains `/a/{b`: "),
            "{}",
            refused("/a/{b")
        );
        assert!(refused("").contains("expected a glob"));
    }

    fn refused(options: &str) -> String {
        from_toml::<Options>(options).err().expect("the options are refused").to_string()
    }

    #[test]
    fn globs_over_a_limit_are_refused_with_the_limit() {
        let list = |globs: &[String]| serde_json::to_string(globs).unwrap();
        let numbered = |count| (0..count).map(|n| format!("/a/{n}")).collect::<Vec<_>>();
        let error = refused(&format!(
            "drop_cwd = {}\nkeep_only_files = {}",
            list(&numbered(600)),
            list(&numbered(401))
        ));
        assert!(error.contains("`keep_only_files`") && error.contains("1000"), "{error}");
        let all = format!("drop_cwd = {}", list(&numbered(1000)));
        assert_eq!(check(&all, &at("/a/999/b")), CWD);

        let error = refused(&format!("drop_cwd = ['/{}']", "a".repeat(64 << 10)));
        assert!(error.contains("64.0 KiB"), "{error}");
        let long = format!("/{}", "a".repeat(60_000));
        assert_eq!(check(&format!("drop_cwd = ['{long}']"), &at(&long)), CWD);
    }

    /// Two gigabytes were used before such globs were refused.
    #[test]
    fn globs_with_a_large_automaton_are_refused() {
        for part in ["?", "?*"] {
            let glob = format!("/{}", part.repeat((60 << 10) / part.len()));
            let error = refused(&format!("drop_cwd = ['{glob}']"));
            assert!(error.contains("4.0 MiB"), "{part}: {error}");
        }
    }

    /// The parser called itself for each brace until the stack overflowed, which ended the agent.
    #[test]
    fn deeply_nested_braces_are_refused() {
        let nested = |depth| format!("drop_cwd = ['/{}a{}']", "{".repeat(depth), "}".repeat(depth));
        assert_eq!(check(&nested(16), &at("/a")), CWD);
        for depth in [17, 30_000] {
            let error = refused(&nested(depth));
            assert!(error.contains("at most 16"), "{error}");
        }
    }

    /// A `}` in a class ended a brace for this filter, but not for the parser of globs.
    #[test]
    fn braces_in_a_class_do_not_count() {
        for class in ["[}]", "[!}]", "[^}]", "[]}]", "[!]}]", "[^]}]", "[}!]", "[é}]"] {
            let glob =
                |depth| format!("/{}a{}", format!("{{{class}").repeat(depth), "}".repeat(depth));
            assert_eq!(nested_braces(&glob(16)), 16, "{class}");
            let error = refused(&format!("drop_cwd = ['{}']", glob(9000)));
            assert!(error.contains("at most 16"), "{class}: {error}");
        }
        let classes = format!("drop_cwd = ['/{}']", "[{]".repeat(17));
        assert_eq!(check(&classes, &at(&format!("/{}", "{".repeat(17)))), CWD);
    }
}
