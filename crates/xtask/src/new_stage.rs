//! `cargo xtask new`: a new built-in stage from a template.
//!
//! The templates are Rust files with the name `example-KIND`, which `ai-agent-stage` compiles and
//! tests. A new stage is its template with another name.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};

use crate::{Failure, sh};

/// Write a new stage from a template, and register its file.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Kind of the stage
    kind: Kind,
    /// Type of the stage in kebab-case, such as `drop-drafts`
    name: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Source,
    Filter,
    Enricher,
    Sink,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Filter => "filter",
            Self::Enricher => "enricher",
            Self::Sink => "sink",
        }
    }

    fn template(self) -> &'static str {
        match self {
            Self::Source => include_str!("../templates/source.rs"),
            Self::Filter => include_str!("../templates/filter.rs"),
            Self::Enricher => include_str!("../templates/enricher.rs"),
            Self::Sink => include_str!("../templates/sink.rs"),
        }
    }
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let file = generate(&sh::workspace(), self.kind, &self.name)?;
        println!("{} written, with its line in mod.rs and its row in README.md", file.display());
        let tests = self.name.replace('-', "_");
        println!("next: describe it where the file says TODO, then run `just only {tests}`");
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes the stage's file, its `mod` line and its row in the README; returns the path of the file.
fn generate(workspace: &Path, kind: Kind, name: &str) -> Result<PathBuf, Failure> {
    check_name(name)?;
    let snake = name.replace('-', "_");
    let folder = workspace.join("src/stages").join(kind.name());
    let file = folder.join(format!("{snake}.rs"));
    if file.try_exists()? || folder.join(&snake).try_exists()? {
        return Err(format!("`{}` exists already", file.display()).into());
    }
    let modules = folder.join("mod.rs");
    let readme = workspace.join("README.md");
    let text = render(kind, name);
    let with_module = add_module(&fs::read_to_string(&modules)?, &snake)
        .ok_or_else(|| format!("`{}` declares no module", modules.display()))?;
    let with_row = add_row(&fs::read_to_string(&readme)?, kind, name, summary(&text))
        .ok_or("README.md has no table of stages")?;
    fs::write(&file, text)?;
    fs::write(modules, with_module)?;
    fs::write(readme, with_row)?;
    Ok(file)
}

/// Accepts lower-case words and numbers, separated by single hyphens.
fn check_name(name: &str) -> Result<(), Failure> {
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit())
    };
    let starts_with_letter = name.starts_with(|it: char| it.is_ascii_lowercase());
    if starts_with_letter && name.split('-').all(is_word) {
        Ok(())
    } else {
        Err(format!("`{name}` is not a name in kebab-case, such as `drop-drafts`").into())
    }
}

/// Returns the template with the name of the stage.
fn render(kind: Kind, name: &str) -> String {
    let (example, snake) = (format!("example-{}", kind.name()), name.replace('-', "_"));
    kind.template()
        .replace(&example, name)
        .replace(&example.replace('-', "_"), &snake)
        .replace(&camel_case(&example), &camel_case(name))
}

fn camel_case(name: &str) -> String {
    let words = name.split('-').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_uppercase() + rest
    });
    words.collect()
}

/// Returns the one-line description in the stage's registration.
fn summary(text: &str) -> &str {
    let registration = text.split_once("Plugin::").map_or("", |(_, rest)| rest);
    registration.split('"').nth(3).unwrap_or_default()
}

/// Adds `mod name;` among the modules, in alphabetical order.
fn add_module(text: &str, name: &str) -> Option<String> {
    let module = |line: &str| {
        let line = line.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        line.strip_prefix("mod ")?.strip_suffix(';').map(str::to_owned)
    };
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let modules = lines.iter().enumerate().filter_map(|(at, line)| Some((at, module(line)?)));
    let modules: Vec<_> = modules.collect();
    let after = modules.iter().rev().find(|(_, other)| other.as_str() < name);
    let at = after.map_or(modules.first()?.0, |(at, _)| at + 1);
    lines.insert(at, format!("mod {name};"));
    Some(lines.join("\n") + "\n")
}

/// Adds a row to the README's table of stages, behind the last one of its kind.
fn add_row(text: &str, kind: Kind, name: &str, summary: &str) -> Option<String> {
    let start = format!("| {} |", kind.name());
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let last = lines.iter().rposition(|line| line.starts_with(&start))?;
    lines.insert(last + 1, format!("{start} `{name}` | {summary} |"));
    Some(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies the files that the generator changes to `folder`.
    fn copy_workspace(folder: &Path) {
        let workspace = sh::workspace();
        for kind in Kind::value_variants() {
            let modules = format!("src/stages/{}/mod.rs", kind.name());
            fs::create_dir_all(folder.join(&modules).parent().unwrap()).unwrap();
            fs::copy(workspace.join(&modules), folder.join(&modules)).unwrap();
        }
        fs::copy(workspace.join("README.md"), folder.join("README.md")).unwrap();
    }

    #[test]
    fn generated_stage_has_file_module_and_row() {
        let folder = sh::target_directory().unwrap().join("xtask-new-stage");
        drop(fs::remove_dir_all(&folder));
        copy_workspace(&folder);
        for kind in Kind::value_variants() {
            let name = format!("zero-{}", kind.name());
            let file = generate(&folder, *kind, &name).unwrap();
            let text = fs::read_to_string(file).unwrap();
            assert!(text.contains(&format!("\"{name}\"")), "{text}");
            assert!(!text.contains("xample-") && !text.contains("Example"), "{text}");
            let snake = name.replace('-', "_");
            let modules = folder.join(format!("src/stages/{}/mod.rs", kind.name()));
            let modules = fs::read_to_string(modules).unwrap();
            assert!(modules.contains(&format!("\nmod {snake};\n")), "{modules}");
            let readme = fs::read_to_string(folder.join("README.md")).unwrap();
            let row = format!("| {} | `{name}` | {} |\n", kind.name(), summary(&text));
            assert!(readme.contains(&row), "{row}");
            assert!(generate(&folder, *kind, &name).is_err(), "it exists already");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    /// `ai-agent-stage` compiles and tests the templates; another name keeps their code.
    #[test]
    fn rendered_stage_differs_from_its_template_in_names_only() {
        for kind in Kind::value_variants() {
            let rendered = render(*kind, "zero-stage");
            let example = format!("example-{}", kind.name());
            let back = rendered
                .replace("zero-stage", &example)
                .replace("zero_stage", &example.replace('-', "_"))
                .replace("ZeroStage", &camel_case(&example));
            assert_eq!(back, kind.template());
        }
    }

    #[test]
    fn modules_stay_in_order() {
        let text = "//! Doc.\n\nmod b;\npub(crate) mod d;\n\nuse x;\n";
        for (name, line) in [("a", 2), ("c", 3), ("e", 4)] {
            let added = add_module(text, name).unwrap();
            assert_eq!(added.lines().nth(line), Some(&*format!("mod {name};")), "{added}");
        }
        assert_eq!(add_module("use x;\n", "a"), None);
    }

    #[test]
    fn names_are_kebab_case() {
        for name in ["a", "drop-drafts", "a1-2b"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "-a", "a-", "a--b", "A", "a_b", "1a", "../a", "a.rs"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
