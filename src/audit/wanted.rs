//! Which events are meant: calls of docker that end certain containers.
//!
//! The kernel's rules can't compare arguments, so this is where the narrowing happens.

use std::collections::BTreeSet;

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::{KEY, NAMES, PROGRAMS, VERBS, facts::Facts};

/// Which events are meant. What is empty is not asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    key: String,
    programs: BTreeSet<String>,
    verbs: BTreeSet<String>,
    names: Option<GlobSet>,
}

/// A glob that is none.
#[derive(Debug, thiserror::Error)]
#[error("has the pattern `{pattern}`, which is wrong: {source}")]
pub struct BadPattern {
    pattern: String,
    source: globset::Error,
}

/// What a command line of docker asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call<'a> {
    /// What is to be done: the first word that is no option, and not `container`.
    pub verb: Option<&'a str>,
    /// With what: the words after it that are no options and no values of options.
    pub names: Vec<&'a str>,
}

impl Wanted {
    /// Events of rules with `key`, by `programs`, that do one of `verbs` to a container whose name
    /// matches one of `names`.
    ///
    /// # Errors
    /// [`BadPattern`] for the first name that is no glob.
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

    /// What `audit install` lets the kernel tell, with nothing left out.
    #[must_use]
    pub fn every_call() -> Self {
        Self { key: KEY.to_owned(), programs: BTreeSet::new(), verbs: BTreeSet::new(), names: None }
    }

    /// Whether an event is meant. One that may be, as far as the log tells, is: where lines or
    /// arguments were lost.
    #[must_use]
    pub fn takes(&self, facts: &Facts) -> bool {
        if !self.key.is_empty() && !facts.keys.contains(&self.key) {
            return false;
        }
        if self.programs.is_empty() && self.verbs.is_empty() && self.names.is_none() {
            return true;
        }
        let (argv, is_incomplete) = match (&facts.argv, &facts.proctitle) {
            (Some(argv), _) => (argv.as_slice(), facts.argv_incomplete),
            // It was not executed: the title is that of whoever tried.
            _ if facts.success == Some(false) => (&[][..], false),
            (None, Some(title)) => (title.as_slice(), true),
            (None, None) => (&[][..], true),
        };
        let Some(arguments) = self.arguments(facts, argv) else {
            return is_incomplete && argv.is_empty();
        };
        let call = Call::of(arguments);
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

    /// The arguments behind the program's name; `None` when it is another program. A script stands
    /// behind its interpreter.
    fn arguments<'a>(&self, facts: &Facts, argv: &'a [String]) -> Option<&'a [String]> {
        /// An interpreter, its option, the script.
        const BEFORE: usize = 3;
        let is_meant = |path: &str| self.programs.contains(file_name(path));
        let is_first = self.programs.is_empty() || facts.exe.as_deref().is_some_and(is_meant);
        let place = if is_first && !argv.is_empty() {
            Some(0)
        } else {
            argv.iter().take(BEFORE).position(|argument| is_meant(argument))
        };
        place.map(|place| &argv[place + 1..])
    }
}

impl Default for Wanted {
    fn default() -> Self {
        let owned = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        Self::new(KEY, owned(&PROGRAMS), owned(&VERBS), &owned(&NAMES))
            .expect("the built-in names are globs")
    }
}

/// Options before the verb that take the next word as their value, unless it is in the same one:
/// <https://docs.docker.com/reference/cli/docker/>.
const GLOBAL: [&str; 7] =
    ["--config", "--context", "--host", "--log-level", "--tlscacert", "--tlscert", "--tlskey"];
const GLOBAL_SHORT: &str = "cHl";
/// The same behind verbs that end containers: `--signal`, `--time`.
const LOCAL: [&str; 3] = ["--signal", "--time", "--timeout"];
const LOCAL_SHORT: &str = "st";

impl<'a> Call<'a> {
    /// Reads the arguments behind the program's name.
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

/// Whether an option's value is the next word: `-t 5`, `-ft 5`, `--time 5`, and not `-t5`, `--time=5`.
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
    fn a_call_that_ends_one_of_the_containers_is_meant() {
        let wanted = Wanted::default();
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
            assert_eq!(wanted.takes(&called(command)), expected, "{command}");
        }
    }

    #[test]
    fn a_program_is_found_behind_its_interpreter_and_under_another_name() {
        let wanted = Wanted::default();
        let by = |exe: &str, command: &str| {
            let facts = Facts { exe: Some(exe.into()), ..called(command) };
            wanted.takes(&facts)
        };
        assert!(by("/usr/bin/dash", "/bin/sh -e /usr/local/bin/docker stop claude-hooks-1"));
        assert!(by("/usr/bin/docker", "renamed stop claude-hooks-1"));
        assert!(!by("/usr/bin/podman", "podman stop claude-hooks-1"));
        assert!(by("/usr/libexec/docker-25", "docker stop claude-hooks-1"));
    }

    #[test]
    fn what_may_be_meant_is() {
        let wanted = Wanted::default();
        let known = called("docker stop");
        let lost = Facts { argv: None, ..known.clone() };
        assert!(wanted.takes(&lost), "nothing is known of the call");
        assert!(!wanted.takes(&Facts { success: Some(false), ..lost.clone() }), "none was made");
        assert!(wanted.takes(&Facts { argv_incomplete: true, ..known }));
        let title = |text: &str| {
            let words = text.split(' ').map(Into::into).collect();
            wanted.takes(&Facts { proctitle: Some(words), ..lost.clone() })
        };
        assert!(title("docker stop claude"), "a title is cut off");
        assert!(!title("docker ps"));
        assert!(!wanted.takes(&Facts { keys: vec!["other".into()], ..lost.clone() }));
    }

    #[test]
    fn what_is_empty_is_not_asked_for() {
        let all = Wanted::every_call();
        assert!(all.takes(&called("docker ps")));
        assert!(!all.takes(&Facts::default()), "the key is");
        let verbs = Wanted::new("", [], ["ps".to_owned()], &[]).unwrap();
        assert!(verbs.takes(&Facts { keys: vec![], ..called("anything ps") }));
        assert!(!verbs.takes(&called("anything stop")));
        let error = Wanted::new("", [], [], &["a[".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("`a[`"), "{error}");
    }
}
