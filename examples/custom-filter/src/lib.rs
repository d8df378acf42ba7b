//! Drops the records of projects that are nobody's business.
//!
//! Claude Code keeps a project's sessions in one directory, named after the project's own with `-`
//! for everything but letters and digits: `/home/dev/diary` is `-home-dev-diary`. This filter drops
//! what lies in such a directory, at any depth, before it reaches the outbox.
//!
//! The file is the whole stage: options, registration, behaviour, tests. `main.rs` makes an agent
//! that has it.

use std::collections::BTreeSet;

use ai_agent::{
    inventory,
    schemars::{self, JsonSchema},
    serde::{self, Deserialize},
    stages::{
        BuildError,
        filter::{Filter, FilterOptions, FilterPlugin, Record, Verdict},
    },
};

inventory::submit! {
    FilterPlugin::new::<SkipProject>(
        "skip-project",
        "Drops records of the projects in a list.",
        r#"
## Names of directories below `~/.claude/projects`. Compared exactly, case matters.
projects = ["-home-dev-diary"]
"#,
    )
}

/// Drops a record when its file lies in a directory that is listed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(crate = "serde", deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct SkipProject {
    /// Names of directories below `~/.claude/projects`. Compared exactly, case matters.
    projects: BTreeSet<String>,
}

impl FilterOptions for SkipProject {
    type Filter = Self;

    fn build(self) -> Result<Self, BuildError> {
        if let Some(path) = self.projects.iter().find(|name| name.contains(['/', '\\'])) {
            let problem = format!("holds `{path}`, expected the name of a directory, not a path");
            return Err(BuildError::Invalid { option: "projects", problem });
        }
        Ok(self)
    }
}

impl Filter for SkipProject {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        let mut directories = record.origin().path.ancestors().skip(1);
        let skipped = directories.any(|directory| {
            let name = directory.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| self.projects.contains(name))
        });
        if skipped { Verdict::Drop("skipped_project") } else { Verdict::Keep }
    }
}

#[cfg(test)]
mod tests {
    use ai_agent::testing::{FilterTest, Seen};

    // The harness reads its lines from a session in the project `-work`.
    fn check(options: &str) -> Seen {
        FilterTest::new("skip-project", options).unwrap().line(r#"{"type":"user"}"#)
    }

    #[test]
    fn drops_a_record_of_a_listed_project() {
        assert_eq!(check(r#"projects = ["-work"]"#), Seen::Dropped("skipped_project"));
    }

    #[test]
    fn keeps_a_record_of_another_project() {
        assert_eq!(check(r#"projects = ["-work-too", "-Work"]"#), Seen::Kept);
    }

    #[test]
    fn the_name_of_the_file_itself_is_no_project() {
        assert_eq!(check(r#"projects = ["session.jsonl"]"#), Seen::Kept);
    }

    #[test]
    fn refuses_a_path() {
        let refused = FilterTest::new("skip-project", r#"projects = ["/home/dev/diary"]"#);
        let message = refused.err().unwrap().to_string();
        assert_eq!(
            message,
            "`projects` holds `/home/dev/diary`, expected the name of a directory, not a path"
        );
    }
}
