//! Drops records by where they come from: the session's file, or the directory that the client
//! worked in.
//!
//! The client keeps a project's sessions in one directory, and most records name the directory
//! they were written in as `cwd`. A record without one is not dropped for it: nothing is known.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, FilterOptions, FilterPlugin, Record, Verdict};
use crate::stages::BuildError;

inventory::submit! {
    FilterPlugin::new::<Options>(
        "path",
        "Drops records by globs on the session's file and on the record's `cwd`.",
        r#"
## Records with such a `cwd` are dropped. A directory counts with all that is in it. A glob begins
## with `/`, `**/` or a drive, with `/` between names: `*` is any part of one name, `**/` any
## directories, `{a,b}` one or the other.
drop_cwd = ["**/secret-project"]
## Records with a `cwd` that is none of these are dropped; those without `cwd` stay.
keep_only_cwd = []
## Records whose session file is one of these, or lies in one, are dropped.
drop_files = ["**/projects/*-secret-project"]
## Records of all other session files are dropped.
keep_only_files = []
"#,
    )
}

/// Drops records by globs on the session's file and on `cwd`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Records with such a `cwd` are dropped. A directory counts with all that is in it.
    #[serde(default)]
    drop_cwd: Vec<String>,
    /// Records with a `cwd` that is none of these are dropped; those without `cwd` stay.
    #[serde(default)]
    keep_only_cwd: Vec<String>,
    /// Records whose session file is one of these, or lies in one, are dropped.
    #[serde(default)]
    drop_files: Vec<String>,
    /// Records of all other session files are dropped.
    #[serde(default)]
    keep_only_files: Vec<String>,
}

/// Decides by two paths.
struct ByPath {
    cwd: Choice,
    files: Choice,
}

/// Which paths are dropped.
struct Choice {
    drop: Globs,
    keep_only: Option<Globs>,
}

/// Globs on paths of one system or another.
struct Globs {
    /// For paths that begin with `/`.
    exact: GlobSet,
    /// For paths of Windows, whose case does not matter.
    folded: GlobSet,
}

impl FilterOptions for Options {
    type Filter = ByPath;

    fn build(self) -> Result<ByPath, BuildError> {
        let choice = |(drop, drops): (_, Vec<_>), (keep, keeps): (_, Vec<_>)| {
            let keep_only = (!keeps.is_empty()).then(|| Globs::new(keep, &keeps)).transpose()?;
            Ok::<_, BuildError>(Choice { drop: Globs::new(drop, &drops)?, keep_only })
        };
        Ok(ByPath {
            cwd: choice(("drop_cwd", self.drop_cwd), ("keep_only_cwd", self.keep_only_cwd))?,
            files: choice(
                ("drop_files", self.drop_files),
                ("keep_only_files", self.keep_only_files),
            )?,
        })
    }
}

impl Filter for ByPath {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        if self.files.is_set() && self.files.drops(&record.origin().path.to_string_lossy()) {
            return Verdict::Drop("file");
        }
        if self.cwd.is_set() && record.cwd().is_some_and(|cwd| self.cwd.drops(&cwd)) {
            return Verdict::Drop("cwd");
        }
        Verdict::Keep
    }
}

impl Choice {
    fn is_set(&self) -> bool {
        !self.drop.exact.is_empty() || self.keep_only.is_some()
    }

    fn drops(&self, path: &str) -> bool {
        self.drop.hold(path) || self.keep_only.as_ref().is_some_and(|only| !only.hold(path))
    }
}

impl Globs {
    fn new(option: &'static str, globs: &[String]) -> Result<Self, BuildError> {
        let sets = |fold| {
            let mut set = GlobSetBuilder::new();
            for glob in globs {
                add(&mut set, glob, fold).map_err(|problem| wrong(option, problem))?;
            }
            set.build().map_err(|error| wrong(option, format!("holds {error}")))
        };
        Ok(Self { exact: sets(false)?, folded: sets(true)? })
    }

    fn hold(&self, path: &str) -> bool {
        if path.starts_with('/') {
            self.exact.is_match(path)
        } else {
            self.folded.is_match(path.replace('\\', "/"))
        }
    }
}

/// Adds what a glob names, and all that is in it.
fn add(set: &mut GlobSetBuilder, glob: &str, fold: bool) -> Result<(), String> {
    if glob.contains('\\') {
        return Err(format!("holds `{glob}`, expected `/` between names, on Windows too"));
    }
    let drive = glob.chars().nth(1) == Some(':');
    if !drive && !["/", "**/", "{", "["].iter().any(|start| glob.starts_with(start)) {
        return Err(format!(
            "holds `{glob}`, which no absolute path matches, expected a glob that begins with `/`, \
             `**/` or a drive: `**/{}`",
            glob.trim_start_matches("~/").trim_start_matches('*')
        ));
    }
    let itself = glob.strip_suffix("/**").unwrap_or(glob);
    let itself = itself.strip_suffix('/').unwrap_or(itself);
    for glob in [itself, &format!("{itself}/**")] {
        if !glob.is_empty() {
            let mut glob = GlobBuilder::new(glob);
            let glob = glob.literal_separator(true).backslash_escape(false).case_insensitive(fold);
            set.add(glob.build().map_err(|error| format!("holds {}", explain(&error)))?);
        }
    }
    Ok(())
}

fn explain(error: &globset::Error) -> String {
    format!("`{}`: {}", error.glob().unwrap_or_default(), error.kind())
}

fn wrong(option: &'static str, problem: String) -> BuildError {
    BuildError::Invalid { option, problem }
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
    fn a_star_stays_within_one_name() {
        assert_eq!(check("drop_cwd = ['/a/*/c']", &at("/a/b/c")), CWD);
        assert_eq!(check("drop_cwd = ['/a/*/c']", &at("/a/b/b/c")), Verdict::Keep);
    }

    #[test]
    fn everything_else_is_dropped_when_only_some_is_kept() {
        let options = "keep_only_cwd = ['/work']\ndrop_cwd = ['/work/private']";
        assert_eq!(check(options, &at("/work/a")), Verdict::Keep);
        assert_eq!(check(options, &at("/work/private/a")), CWD);
        assert_eq!(check(options, &at("/home/a")), CWD);
    }

    #[test]
    fn what_has_no_cwd_stays() {
        let options = "keep_only_cwd = ['/work']\ndrop_cwd = ['/**']";
        for line in ["{}", r#"{"cwd":5}"#, r#"{"message":{"cwd":"/a"}}"#, "{\"cwd\":\"/a\"", "x"] {
            assert_eq!(check(options, line), Verdict::Keep, "{line}");
        }
        assert_eq!(check(options, r#"{"cwd":"\/\u0061"}"#), CWD, "escapes are read");
    }

    #[test]
    fn a_path_of_windows_is_read_with_either_sign_and_in_any_case() {
        for glob in ["**/Secret", "C:/users/*/secret", "[cd]:/**/secret"] {
            let options = format!("drop_cwd = ['{glob}']");
            assert_eq!(check(&options, &at(r"c:\Users\a\SECRET\b")), CWD, "{glob}");
            assert_eq!(check(&options, &at("C:/Users/a/secret")), CWD, "{glob}");
            assert_eq!(check(&options, &at(r"c:\Users\a\b")), Verdict::Keep, "{glob}");
        }
    }

    #[test]
    fn the_sessions_file_decides_for_lines_of_any_kind() {
        let session = "drop_files = ['**/projects/-work']";
        let other = "keep_only_files = ['**/projects/-home']";
        for line in ["{}", "no JSON", r#"{"cwd":"/a"}"#] {
            assert_eq!(check(session, line), FILE, "{line}");
            assert_eq!(check(other, line), FILE, "{line}");
            assert_eq!(check("drop_files = ['**/*.log']", line), Verdict::Keep, "{line}");
        }
    }

    #[test]
    fn a_glob_that_cannot_match_or_be_read_is_refused() {
        let refused = |glob: &str| {
            let options = format!("drop_cwd = ['{glob}']");
            from_toml::<Options>(&options).err().unwrap().to_string()
        };
        let relative = "which no absolute path matches, expected a glob that begins with `/`, `**/` \
                        or a drive: `**/secret`";
        assert_eq!(refused("secret"), format!("`drop_cwd` holds `secret`, {relative}"));
        assert_eq!(refused("~/secret"), format!("`drop_cwd` holds `~/secret`, {relative}"));
        assert_eq!(
            refused(r"C:\secret"),
            r"`drop_cwd` holds `C:\secret`, expected `/` between names, on Windows too"
        );
        assert!(refused("/a/{b").starts_with("`drop_cwd` holds `/a/{b`: "), "{}", refused("/a/{b"));
        assert!(refused("").contains("expected a glob"));
    }
}
