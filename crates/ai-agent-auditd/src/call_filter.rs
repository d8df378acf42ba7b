//! Selects events: docker commands that stop, remove or pause certain containers.
//!
//! The audit rules of the kernel cannot compare arguments, so this filter does.

use std::collections::BTreeSet;

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::{KEY, NAMES, PROGRAMS, VERBS, facts::Facts};

/// Selects events. An empty list selects any value.
#[derive(Clone, Debug)]
pub struct CallFilter {
    key: String,
    programs: BTreeSet<String>,
    verbs: BTreeSet<String>,
    names: Option<GlobSet>,
}

/// Error returned for an invalid glob.
#[derive(Debug, thiserror::Error)]
#[error("has the pattern `{pattern}`, which is wrong: {source}")]
pub struct BadPattern {
    pattern: String,
    source: globset::Error,
}

/// A parsed command line of docker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DockerCall<'a> {
    /// Command: the first word that is neither an option nor `container`.
    pub verb: Option<&'a str>,
    /// Arguments: the words after the command that are neither options nor values of options.
    pub names: Vec<&'a str>,
}

impl CallFilter {
    /// Selects events of rules with `key`, by `programs`, that do one of `verbs` to a container whose
    /// name matches one of `names`.
    ///
    /// # Errors
    /// [`BadPattern`] for the first name that is not a glob.
    pub fn new(
        key: &str,
        programs: impl IntoIterator<Item = String>,
        verbs: impl IntoIterator<Item = String>,
        names: &[String],
    ) -> Result<Self, BadPattern> {
        let mut globs = GlobSetBuilder::new();
        for pattern in names {
            let bad = |source| BadPattern { pattern: pattern.clone(), source };
            globs.add(Glob::new(pattern).map_err(bad)?);
        }
        let bad = |source| BadPattern { pattern: names.join(" "), source };
        let globs = globs.build().map_err(bad)?;
        let names = (!names.is_empty()).then_some(globs);
        let (programs, verbs) = (programs.into_iter().collect(), verbs.into_iter().collect());
        Ok(Self { key: key.to_owned(), programs, verbs, names })
    }

    /// Selects every event of the rules that `audit install` installs.
    #[must_use]
    pub fn every_call() -> Self {
        Self { key: KEY.to_owned(), programs: BTreeSet::new(), verbs: BTreeSet::new(), names: None }
    }

    /// Returns true if an event is selected. An event with lost lines or arguments is selected if it
    /// may match.
    #[must_use]
    pub fn matches(&self, facts: &Facts) -> bool {
        if !self.key.is_empty() && !facts.keys.contains(&self.key) {
            return false;
        }
        if self.programs.is_empty() && self.verbs.is_empty() && self.names.is_none() {
            return true;
        }
        let (argv, is_incomplete) = match (&facts.argv, &facts.proctitle) {
            (Some(argv), _) => (argv.as_slice(), facts.argv_incomplete),
            // The call failed, so the title is that of the calling process.
            _ if facts.success == Some(false) => (&[][..], false),
            (None, Some(title)) => (title.as_slice(), true),
            (None, None) => (&[][..], true),
        };
        let Some(arguments) = self.arguments(facts, argv) else {
            return is_incomplete && argv.is_empty();
        };
        let call = DockerCall::of(arguments);
        let is_verb = match call.verb {
            _ if self.verbs.is_empty() => true,
            Some(verb) => self.verbs.contains(verb),
            None => is_incomplete,
        };
        let is_name = |name: &&str| {
            let name = name.strip_prefix('/').unwrap_or(name);
            self.names.as_ref().is_none_or(|names| names.is_match(name))
        };
        is_verb && (self.names.is_none() || is_incomplete || call.names.iter().any(is_name))
    }

    /// Returns the arguments after the name of the program; `None` if it is another program. The name
    /// of a script follows its interpreter.
    fn arguments<'a>(&self, facts: &Facts, argv: &'a [String]) -> Option<&'a [String]> {
        /// Number of words searched for the program: an interpreter, its option, the script.
        const SEARCHED: usize = 3;
        let is_selected = |path: &str| self.programs.contains(file_name(path));
        let is_first = self.programs.is_empty() || facts.exe.as_deref().is_some_and(is_selected);
        let place = if is_first && !argv.is_empty() {
            Some(0)
        } else {
            argv.iter().take(SEARCHED).position(|argument| is_selected(argument))
        };
        place.map(|place| &argv[place + 1..])
    }
}

impl Default for CallFilter {
    fn default() -> Self {
        let owned = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        Self::new(KEY, owned(&PROGRAMS), owned(&VERBS), &owned(&NAMES))
            .expect("the built-in names are globs")
    }
}

/// Options before the command whose value is the next word, unless it is in the same word:
/// <https://docs.docker.com/reference/cli/docker/>.
const GLOBAL: [&str; 7] =
    ["--config", "--context", "--host", "--log-level", "--tlscacert", "--tlscert", "--tlskey"];
const GLOBAL_SHORT: &str = "cHl";
/// Options after the command whose value is the next word.
const LOCAL: [&str; 3] = ["--signal", "--time", "--timeout"];
const LOCAL_SHORT: &str = "st";

impl<'a> DockerCall<'a> {
    /// Parses the arguments after the name of the program.
    #[must_use]
    pub fn of(arguments: &'a [String]) -> Self {
        let mut call = Self::default();
        let mut words = arguments.iter().map(String::as_str);
        let mut is_plain = false;
        while let Some(word) = words.next() {
            let has_verb = call.verb.is_some();
            if word == "--" && !is_plain {
                is_plain = true;
            } else if !is_plain && word.len() > 1 && word.starts_with('-') {
                let takes_next = if has_verb {
                    takes_next(word, &LOCAL, LOCAL_SHORT)
                } else {
                    takes_next(word, &GLOBAL, GLOBAL_SHORT)
                };
                if takes_next {
                    words.next();
                }
            } else if has_verb {
                call.names.push(word);
            } else if word != "container" {
                call.verb = Some(word);
            }
        }
        call
    }
}

/// Returns true if the value of an option is the next word: `-t 5`, `-ft 5`, `--time 5`, but not
/// `-t5` or `--time=5`.
fn takes_next(option: &str, long: &[&str], short: &str) -> bool {
    if option.starts_with("--") {
        return long.contains(&option);
    }
    let letters = &option[1..];
    letters.find(|letter| short.contains(letter)).is_some_and(|at| at + 1 == letters.len())
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(command: &str) -> Facts {
        let argv: Vec<String> = command.split(' ').map(Into::into).collect();
        let exe = Some("/usr/bin/docker".to_owned());
        Facts { keys: vec![KEY.into()], exe, argv: Some(argv), ..Facts::default() }
    }

    #[test]
    fn calls_that_end_a_container_are_selected() {
        let filter = CallFilter::default();
        let table = [
            ("docker stop claude-hooks-1", true),
            ("docker container stop claude-hooks-1", true),
            ("/usr/bin/docker container rm -f claude-hooks-1", true),
            ("docker rm -fv web claude-hooks-1 db", true),
            ("docker --context c rm claude-hooks-1", true),
            ("docker --context=c rm claude-hooks-1", true),
            ("docker -c c -D --host tcp://h:1 -Htcp://h:1 kill -s KILL claude-hooks-1", true),
            ("docker kill --signal=KILL claude-hooks-1", true),
            ("docker restart -t 5 claude-hooks-1", true),
            ("docker restart -t5 claude-hooks-1", true),
            ("docker stop claude-hooks-1 --time 5", true),
            ("docker pause -- claude-hooks-1", true),
            ("docker stop /claude-hooks-1", true),
            ("docker stop -t claude-hooks-1 web", false),
            ("docker stop web", false),
            ("docker stop my-claude-hooks-1", false),
            ("docker stop 4f1c2d3e5a6b", false),
            ("docker stop", false),
            ("docker", false),
            ("docker start claude-hooks-1", false),
            ("docker logs claude-hooks-1", false),
            ("docker run --name claude-hooks-1 image stop", false),
            ("docker --context stop ps claude-hooks-1", false),
            ("docker image rm claude-hooks-1", false),
            ("docker ps -a --filter name=claude-hooks-1", false),
        ];
        for (command, expected) in table {
            assert_eq!(filter.matches(&called(command)), expected, "{command}");
        }
    }

    #[test]
    fn program_is_found_after_interpreter_or_by_executable() {
        let filter = CallFilter::default();
        let by = |exe: &str, command: &str| {
            let facts = Facts { exe: Some(exe.into()), ..called(command) };
            filter.matches(&facts)
        };
        assert!(by("/usr/bin/dash", "/bin/sh -e /usr/local/bin/docker stop claude-hooks-1"));
        assert!(by("/usr/bin/docker", "renamed stop claude-hooks-1"));
        assert!(!by("/usr/bin/podman", "podman stop claude-hooks-1"));
        assert!(by("/usr/libexec/docker-25", "docker stop claude-hooks-1"));
    }

    #[test]
    fn event_that_may_match_is_selected() {
        let filter = CallFilter::default();
        let known = called("docker stop");
        let lost = Facts { argv: None, ..known.clone() };
        assert!(filter.matches(&lost), "the arguments are lost");
        assert!(
            !filter.matches(&Facts { success: Some(false), ..lost.clone() }),
            "the call failed"
        );
        assert!(filter.matches(&Facts { argv_incomplete: true, ..known }));
        let title = |text: &str| {
            let words = text.split(' ').map(Into::into).collect();
            filter.matches(&Facts { proctitle: Some(words), ..lost.clone() })
        };
        assert!(title("docker stop claude"), "a title is truncated");
        assert!(!title("docker ps"));
        assert!(!filter.matches(&Facts { keys: vec!["other".into()], ..lost.clone() }));
    }

    #[test]
    fn empty_list_selects_any_value() {
        let all = CallFilter::every_call();
        assert!(all.matches(&called("docker ps")));
        assert!(!all.matches(&Facts::default()), "the key is missing");
        let verbs = CallFilter::new("", [], ["ps".to_owned()], &[]).unwrap();
        assert!(verbs.matches(&Facts { keys: vec![], ..called("anything ps") }));
        assert!(!verbs.matches(&called("anything stop")));
        let error = CallFilter::new("", [], [], &["a[".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("`a[`"), "{error}");
    }
}
