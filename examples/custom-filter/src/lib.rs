//! Drops the records of private projects.
//!
//! Claude Code keeps the sessions of a project in one directory, named after the project's directory
//! with `-` in place of everything but letters and digits: `/home/dev/diary` becomes
//! `-home-dev-diary`. This filter drops all records below such a directory before they reach the
//! outbox.
//!
//! This file is the whole stage: options, registration, behaviour, tests. `examples/custom-agent` is
//! the binary that contains it.

use std::collections::BTreeSet;

use ai_agent_stage::{
    BuildError, Filter, FilterOptions, Plugin, Record, Verdict, inventory,
    schemars::{self, JsonSchema},
    serde::{self, Deserialize},
};

inventory::submit! {
    Plugin::filter::<SkipProject>(
        "skip-project",
        "Drops records of the projects in a list.",
        r#"
## Names of directories below `~/.claude/projects`. Compared exactly, case matters.
projects = ["-home-dev-diary"]
"#,
    )
}

/// Drops a record if its file is below a listed directory.
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
            return Err(BuildError::invalid("projects", problem));
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
    use ai_agent_stage::testing::{FilterTest, Filtered};

    // The lines of the harness come from a session of the project `-work`.
    fn check(options: &str) -> Filtered {
        FilterTest::new("skip-project", options).unwrap().line(r#"{"type":"user"}"#)
    }

    #[test]
    fn listed_project_is_dropped() {
        assert_eq!(check(r#"projects = ["-work"]"#), Filtered::Dropped("skipped_project"));
    }

    #[test]
    fn other_project_is_kept() {
        assert_eq!(check(r#"projects = ["-work-too", "-Work"]"#), Filtered::Kept);
    }

    #[test]
    fn file_name_is_not_a_project() {
        assert_eq!(check(r#"projects = ["session.jsonl"]"#), Filtered::Kept);
    }

    #[test]
    fn path_is_refused() {
        let refused = FilterTest::new("skip-project", r#"projects = ["/home/dev/diary"]"#);
        let message = refused.err().unwrap().to_string();
        assert_eq!(
            message,
            "`projects` holds `/home/dev/diary`, expected the name of a directory, not a path"
        );
    }
}
