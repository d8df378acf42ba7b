//! `cargo xtask public-api`: the committed listings of the public items of library crates.
//!
//! A change of a crate's surface shows in review as a change of its listing. The items come from
//! rustdoc's JSON, which is unstable: it is read member by member, and a listing is compared only
//! with a toolchain that writes the same version of the format.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use clap::Args;
use serde_json::Value;

use crate::{Failure, sh};

/// Compare the public items of library crates with their committed listings.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Rewrite the listings
    #[arg(long)]
    store: bool,
}

/// A library crate whose surface is listed in `crates/NAME/public-api.txt`.
struct Library {
    name: &'static str,
    /// Largest number of public items, for a crate that must stay small.
    max_items: Option<usize>,
}

/// A stage is written with `ai-agent-stage`, which its author has to learn: it stays small, methods of
/// types included. The limit may be lowered, but never raised.
const LIBRARIES: [Library; 2] = [
    Library { name: "ai-agent-stage", max_items: Some(120) },
    Library { name: "siem-protocol", max_items: None },
];

/// Set for the process that replaces rustdoc, see [`rustdoc_wrapper`].
const WRAPPER: &str = "AI_AGENT_XTASK_RUSTDOC";

/// Result of a comparison that found no difference.
pub(crate) enum Compared {
    /// All listings are up to date. Contains the number of items.
    Equal(String),
    /// The toolchain writes another version of rustdoc's JSON than the listing was made from.
    OtherFormat(String),
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        if self.store {
            for library in &LIBRARIES {
                let surface = Surface::of(library.name)?;
                fs::write(listing_path(library.name), surface.listing(library.name))?;
                println!("{}: {} items", library.name, surface.items);
            }
            return Ok(ExitCode::SUCCESS);
        }
        match check()? {
            Compared::Equal(summary) | Compared::OtherFormat(summary) => println!("{summary}"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Compares the listings with the crates.
pub(crate) fn check() -> Result<Compared, Failure> {
    let mut counts = Vec::new();
    for library in &LIBRARIES {
        let surface = Surface::of(library.name)?;
        let path = listing_path(library.name);
        let stored = fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?
            .replace("\r\n", "\n");
        if format_of(&stored) != Some(surface.format) {
            return Ok(Compared::OtherFormat(format!(
                "{} was made from another version of rustdoc's JSON than {}, which this toolchain writes",
                path.display(),
                surface.format,
            )));
        }
        let changes = changes(&stored, &surface.listing(library.name));
        if !changes.is_empty() {
            return Err(format!(
                "public items of {} changed; if intended, run `cargo xtask public-api --store`:\n{changes}",
                library.name
            )
            .into());
        }
        if let Some(max) = library.max_items.filter(|max| surface.items > *max) {
            let (name, items) = (library.name, surface.items);
            return Err(format!("{name} has {items} public items, more than {max}").into());
        }
        counts.push(format!("{} {}", library.name, surface.items));
    }
    Ok(Compared::Equal(format!("items: {}", counts.join(", "))))
}

fn listing_path(name: &str) -> PathBuf {
    sh::workspace().join("crates").join(name).join("public-api.txt")
}

/// Runs rustdoc with unstable options enabled, if this process was started in place of rustdoc.
///
/// `RUSTC_BOOTSTRAP` enables them. Set for all of cargo it would rebuild the dependencies, so that
/// cargo runs this program as rustdoc, which sets the variable.
pub(crate) fn rustdoc_wrapper() -> Option<ExitCode> {
    env::var_os(WRAPPER)?;
    let status =
        Command::new("rustdoc").args(env::args_os().skip(1)).env("RUSTC_BOOTSTRAP", "1").status();
    Some(match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: cannot run rustdoc: {error}");
            ExitCode::FAILURE
        }
    })
}

/// The public items of a crate.
struct Surface {
    /// Version of rustdoc's JSON.
    format: u64,
    /// Number of modules, types, traits, functions, methods, constants, macros and re-exports.
    items: usize,
    /// One line for each of them, for each field, variant, member of a trait and implementation of
    /// a trait.
    lines: BTreeSet<String>,
}

impl Surface {
    fn of(name: &str) -> Result<Self, Failure> {
        let mut cargo = sh::cargo(["rustdoc", "--quiet", "--lib", "--all-features"]);
        cargo.args(["--package", name, "--", "-Z", "unstable-options"]);
        cargo.args(["--output-format", "json", "--document-hidden-items", "--cap-lints", "allow"]);
        cargo.env("RUSTDOC", env::current_exe()?).env(WRAPPER, "1").stdin(Stdio::null());
        if !cargo.status()?.success() {
            return Err(format!("rustdoc failed for {name}").into());
        }
        let json = format!("doc/{}.json", name.replace('-', "_"));
        let json = fs::read(sh::target_directory()?.join(json))?;
        Self::from_json(&serde_json::from_slice(&json)?, &sh::workspace())
    }

    fn from_json(document: &Value, workspace: &Path) -> Result<Self, Failure> {
        let index = document["index"].as_object().ok_or("rustdoc's JSON has no index")?;
        let format = document["format_version"].as_u64().unwrap_or_default();
        let root = id(&document["root"]).ok_or("rustdoc's JSON has no root")?;
        let mut walk = Walk {
            index,
            sources: Sources::new(workspace),
            paths: BTreeMap::new(),
            lines: BTreeSet::new(),
            items: 0,
        };
        let name =
            walk.item(&root).and_then(|it| it["name"].as_str()).unwrap_or_default().to_owned();
        walk.collect(&root, name);
        walk.write();
        Ok(Self { format, items: walk.items, lines: walk.lines })
    }

    fn listing(&self, name: &str) -> String {
        let mut text = format!(
            "# Public items of {name}, hidden ones and re-exports included: {}\n\
             # Fields, variants, members of traits and implementations of traits are not counted.\n\
             # `cargo xtask public-api --store` rewrites this file.\n\
             # rustdoc JSON format {}\n\n",
            self.items, self.format
        );
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

fn format_of(listing: &str) -> Option<u64> {
    let line = listing.lines().find_map(|line| line.strip_prefix("# rustdoc JSON format "))?;
    line.trim().parse().ok()
}

/// Returns the lines that only one of two listings has.
fn changes(stored: &str, current: &str) -> String {
    let [before, after] = [stored, current].map(|text| text.lines().collect::<BTreeSet<_>>());
    let removed = before.difference(&after).map(|line| format!("- {line}\n"));
    let added = after.difference(&before).map(|line| format!("+ {line}\n"));
    removed.chain(added).collect()
}

/// Visits all public items, from the root of the crate.
struct Walk<'a> {
    index: &'a serde_json::Map<String, Value>,
    sources: Sources,
    /// All public paths of each item.
    paths: BTreeMap<String, BTreeSet<String>>,
    lines: BTreeSet<String>,
    items: usize,
}

impl<'a> Walk<'a> {
    fn item(&self, id: &str) -> Option<&'a Value> {
        self.index.get(id)
    }

    /// Collects the paths of the item `id`, which is public at `path`, and of those in it.
    fn collect(&mut self, id: &str, path: String) {
        if !self.paths.entry(id.to_owned()).or_default().insert(path.clone()) {
            return;
        }
        let Some(item) = self.item(id) else { return };
        for child in ids(&item["inner"]["module"]["items"]) {
            self.collect_child(&child, &path);
        }
    }

    fn collect_child(&mut self, id: &str, parent: &str) {
        let Some(item) = self.item(id).filter(|item| item["visibility"] == "public") else {
            return;
        };
        let Some(reexport) = item["inner"].get("use") else {
            // A macro has no visibility of its own, but is public if it is in the index.
            let name = item["name"].as_str().unwrap_or_default();
            return self.collect(id, format!("{parent}::{name}"));
        };
        let target = self::id(&reexport["id"]).filter(|target| self.item(target).is_some());
        match target {
            Some(target) if reexport["is_glob"] == true => {
                let Some(target) = self.item(&target) else { return };
                for child in ids(&target["inner"]["module"]["items"]) {
                    self.collect_child(&child, parent);
                }
            }
            Some(target) => {
                let name = reexport["name"].as_str().unwrap_or_default();
                self.collect(&target, format!("{parent}::{name}"));
            }
            // An item of another crate.
            None => {
                let name = reexport["name"].as_str().unwrap_or_default();
                let source = reexport["source"].as_str().unwrap_or_default();
                let glob = if reexport["is_glob"] == true { "::*" } else { "" };
                self.add(&format!("{parent}::{name}"), &format!("pub use {source}{glob}"));
            }
        }
    }

    /// Writes the lines of all items under their shortest path; under another they are re-exports.
    fn write(&mut self) {
        for (id, paths) in std::mem::take(&mut self.paths) {
            let Some(item) = self.item(&id) else { continue };
            let mut paths: Vec<_> = paths.into_iter().collect();
            paths.sort_by_key(|path| path.matches("::").count());
            let Some((first, others)) = paths.split_first() else { continue };
            self.define(item, first);
            for other in others {
                self.add(other, &format!("pub use {first}"));
            }
        }
    }

    /// Writes the lines of an item and of its members.
    fn define(&mut self, item: &Value, path: &str) {
        let signature = self.sources.signature(item);
        self.add(path, &signature);
        let Some((_, inner)) = item["inner"].as_object().and_then(|it| it.iter().next()) else {
            return;
        };
        self.fields(&inner["kind"], path);
        for variant in ids(&inner["variants"]) {
            let Some(variant) = self.item(&variant) else { continue };
            let path = format!("{path}::{}", variant["name"].as_str().unwrap_or_default());
            self.lines.insert(format!("{path} = variant"));
            self.fields(&variant["inner"]["variant"]["kind"], &path);
        }
        if item["inner"].get("trait").is_some() {
            // They are a part of the trait.
            let items = self.items;
            self.members(&inner["items"], path);
            self.items = items;
        }
        for implementation in ids(&inner["impls"]) {
            self.implementation(&implementation, path);
        }
    }

    fn fields(&mut self, kind: &Value, path: &str) {
        let Some((_, kind)) = kind.as_object().and_then(|it| it.iter().next()) else { return };
        for field in ids(&kind["fields"]).into_iter().chain(ids(kind)) {
            let Some(field) = self.item(&field) else { continue };
            let name = field["name"].as_str().unwrap_or_default();
            let declaration = self.sources.signature(field);
            let field_type = declaration.split_once(": ").map_or(&*declaration, |it| it.1);
            self.lines.insert(format!("{path}.{name}: {field_type}"));
        }
    }

    fn members(&mut self, items: &Value, path: &str) {
        for member in ids(items) {
            let Some(member) = self.item(&member) else { continue };
            let name = member["name"].as_str().unwrap_or_default();
            let signature = self.sources.signature(member);
            self.add(&format!("{path}::{name}"), &signature);
        }
    }

    fn implementation(&mut self, id: &str, path: &str) {
        let Some(item) = self.item(id) else { return };
        let inner = &item["inner"]["impl"];
        if inner["is_synthetic"] == true || !inner["blanket_impl"].is_null() {
            return;
        }
        let Some(name) = inner["trait"]["path"].as_str() else {
            return self.members(&inner["items"], path);
        };
        // Derives add these; they are of no use to a user of the crate.
        if ["StructuralPartialEq", "TrivialClone"].contains(&name) {
            return;
        }
        let written = self.sources.signature(item);
        let line = match written.starts_with("impl") {
            true => written,
            false => format!("impl {name}"),
        };
        self.lines.insert(format!("{path}: {line}"));
    }

    fn add(&mut self, path: &str, signature: &str) {
        if self.lines.insert(format!("{path} = {signature}")) {
            self.items += 1;
        }
    }
}

/// Source files, from which the declarations of items are read.
struct Sources {
    workspace: PathBuf,
    files: HashMap<PathBuf, Vec<String>>,
}

impl Sources {
    fn new(workspace: &Path) -> Self {
        Self { workspace: workspace.to_owned(), files: HashMap::new() }
    }

    /// Returns the declaration of an item in one line, without its body; only the kind of the item
    /// where a macro has made it.
    fn signature(&mut self, item: &Value) -> String {
        let kind = item["inner"].as_object().and_then(|it| it.keys().next().cloned());
        let kind = kind.unwrap_or_default();
        let mut signature = match kind.as_str() {
            "module" => "pub mod".to_owned(),
            _ => self.declaration(item, &kind).unwrap_or(kind),
        };
        let attributes = item["attrs"].to_string();
        if attributes.contains("non_exhaustive") {
            signature.insert_str(0, "#[non_exhaustive] ");
        }
        if attributes.contains("doc(hidden)") {
            signature.insert_str(0, "#[doc(hidden)] ");
        }
        signature
    }

    fn declaration(&mut self, item: &Value, kind: &str) -> Option<String> {
        let span = &item["span"];
        let file = self.workspace.join(span["filename"].as_str()?);
        let lines = self.files.entry(file).or_insert_with_key(|file| {
            let text = fs::read_to_string(file).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        });
        let [begin, end] = [&span["begin"], &span["end"]].map(position);
        let text = between(lines, begin?, end?)?;
        let text = match kind {
            "constant" | "static" | "struct_field" | "type_alias" => text.as_str(),
            "struct" if !text.contains('{') => text.as_str(),
            "macro" => text.split('{').next()?,
            _ => text.split(['{', ';']).next()?,
        };
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Some(line.trim_end_matches(',').to_owned()).filter(|line| !line.is_empty())
    }
}

/// Reads a line and a column, both from 1.
fn position(value: &Value) -> Option<(usize, usize)> {
    let number = |index: usize| usize::try_from(value.get(index)?.as_u64()?).ok();
    Some((number(0)?, number(1)?))
}

/// Returns the text from one position up to, and without, another.
fn between(lines: &[String], begin: (usize, usize), end: (usize, usize)) -> Option<String> {
    let mut text = String::new();
    for number in begin.0..=end.0 {
        let line: Vec<char> = lines.get(number.checked_sub(1)?)?.chars().collect();
        let from = if number == begin.0 { begin.1 - 1 } else { 0 };
        let to = if number == end.0 { (end.1 - 1).min(line.len()) } else { line.len() };
        text.extend(line.get(from..to)?);
        text.push('\n');
    }
    Some(text)
}

/// Reads an item's id: a number today, a string in older formats.
fn id(value: &Value) -> Option<String> {
    match value {
        Value::String(id) => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

fn ids(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(id).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item(name: &str, visibility: &str, inner: Value) -> Value {
        json!({ "name": name, "visibility": visibility, "span": null, "attrs": [], "inner": inner })
    }

    #[test]
    fn reexports_are_listed_and_private_items_are_not() {
        let document = json!({
            "root": 0, "format_version": 7, "index": {
                "0": item("it", "public", json!({ "module": { "items": [1, 2, 3, 6] } })),
                "1": item("inside", "public", json!({ "module": { "items": [4] } })),
                "2": item("", "public", json!({ "use": { "source": "inside::A", "name": "A", "id": 4, "is_glob": false } })),
                "3": item("", "public", json!({ "use": { "source": "serde", "name": "serde", "id": 9, "is_glob": false } })),
                "4": item("A", "public", json!({ "struct": { "kind": { "plain": { "fields": [5] } }, "impls": [7] } })),
                "5": item("b", "public", json!({ "struct_field": {} })),
                "6": item("hidden", "crate", json!({ "function": {} })),
                "7": item("", "default", json!({ "impl": { "trait": null, "items": [8], "is_synthetic": false, "blanket_impl": null } })),
                "8": item("new", "public", json!({ "function": {} })),
            },
        });
        let surface = Surface::from_json(&document, Path::new("/")).unwrap();
        let expected = [
            "it = pub mod",
            "it::A = struct",
            "it::A.b: struct_field",
            "it::A::new = function",
            "it::inside = pub mod",
            "it::inside::A = pub use it::A",
            "it::serde = pub use serde",
        ];
        assert_eq!(surface.lines.iter().collect::<Vec<_>>(), expected);
        assert_eq!((surface.items, surface.format), (6, 7));
        assert_eq!(format_of(&surface.listing("it")), Some(7));
    }

    #[test]
    fn a_declaration_ends_before_the_body() {
        let lines = ["    pub fn new(", "        a: u8,", "    ) -> Self { Self(a) }"];
        let lines: Vec<_> = lines.into_iter().map(str::to_owned).collect();
        let mut sources = Sources::new(Path::new("/"));
        sources.files.insert("/a.rs".into(), lines);
        let item = json!({
            "attrs": ["non_exhaustive"], "inner": { "function": {} },
            "span": { "filename": "a.rs", "begin": [1, 5], "end": [3, 28] },
        });
        assert_eq!(sources.signature(&item), "#[non_exhaustive] pub fn new( a: u8, ) -> Self");
    }

    #[test]
    fn changes_name_both_sides() {
        assert_eq!(changes("a\nb\n", "b\nc\n"), "- a\n+ c\n");
        assert_eq!(changes("a\n", "a\n"), "");
    }
}
