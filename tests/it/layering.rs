//! The modules of the agent import each other in one direction only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Modules of the crate from top to bottom: a module imports from its own layer and those below.
const LAYERS: [&[&str]; 7] = [
    &["cli"],
    &["control"],
    &["agent"],
    &["pipeline"],
    &["stages"],
    &["compliance", "config", "frame", "logging", "siem", "tail"],
    &["event", "platform", "text", "units"],
];

/// Modules whose files implement the methods of one type: their files import each other.
const ONE_TYPE: [&str; 1] = ["tail"];

type Module = Vec<String>;

/// Paths that a module imports: its `use` items, and `crate::` paths in its code.
type Imports = BTreeMap<Module, Vec<Module>>;

#[test]
fn modules_import_downwards_and_never_in_a_circle() {
    let mut imports = Imports::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    read_module(&source.join("lib.rs"), &source, Module::new(), &mut imports);
    assert!(imports.len() > 100, "only {} modules were found", imports.len());
    let edges = sibling_edges(&imports);
    let mut wrong: Vec<String> = Vec::new();
    for ((parent, from), to) in &edges {
        if parent.is_empty() {
            let upwards = to.keys().filter(|to| layer(to) < layer(from));
            wrong.extend(upwards.map(|to| {
                format!(
                    "{from} imports {to}, which is above it: {:?}",
                    edges[&(parent.clone(), from.clone())][to]
                )
            }));
        }
        if !ONE_TYPE.contains(&parent.join("::").as_str()) {
            for (to, example) in to.iter().filter(|(to, _)| reaches(&edges, parent, to, from)) {
                wrong
                    .push(format!("circle: {from} imports {to} ({example}), which imports {from}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} imports are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn layer(module: &str) -> usize {
    let layer = LAYERS.iter().position(|layer| layer.contains(&module));
    layer.unwrap_or_else(|| panic!("`{module}` belongs to no layer"))
}

/// Returns whether `from` imports `to`, directly or by way of its siblings.
fn reaches(edges: &Edges, parent: &Module, from: &str, to: &str) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(next) = open.pop() {
        if next == to {
            return true;
        }
        if seen.insert(next.clone()) {
            let next = edges.get(&(parent.clone(), next));
            open.extend(next.into_iter().flat_map(BTreeMap::keys).cloned());
        }
    }
    false
}

/// Imports between modules of one parent, with an example of each: a module and the modules in it
/// are one unit.
type Edges = BTreeMap<(Module, String), BTreeMap<String, String>>;

fn sibling_edges(imports: &Imports) -> Edges {
    let mut edges = Edges::new();
    for (module, paths) in imports {
        for path in paths {
            let shared = module.iter().zip(path).take_while(|(one, other)| one == other).count();
            let (Some(from), Some(to)) = (module.get(shared), path.get(shared)) else { continue };
            let parent = module[..shared].to_vec();
            let is_module = imports.contains_key(&path[..=shared]);
            if is_module {
                let example = format!("{} uses {}", module.join("::"), path.join("::"));
                edges.entry((parent, from.clone())).or_default().insert(to.clone(), example);
            }
        }
    }
    edges
}

/// Reads `file`, which is `module`, and the modules in it; those of tests are left out.
fn read_module(file: &Path, folder: &Path, module: Module, imports: &mut Imports) {
    let text = fs::read_to_string(file).unwrap();
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap()).collect();
    let is_test = |at: usize| at > 0 && code[at - 1].trim() == "#[cfg(test)]";
    let end = (0..code.len()).find(|at| is_test(*at) && code[*at].ends_with("mod tests {"));
    let code = &code[..end.unwrap_or(code.len())];
    for (at, line) in code.iter().enumerate() {
        let Some((_, name)) = line.trim_end_matches(';').split_once("mod ") else { continue };
        let is_declaration = line.ends_with(';') && !name.contains(' ');
        if is_declaration && !is_test(at) && !line.starts_with(' ') {
            let inner = folder.join(name);
            let file = [inner.with_extension("rs"), inner.join("mod.rs")];
            let file: Option<PathBuf> = file.into_iter().find(|file| file.is_file());
            let Some(file) = file else { panic!("{name} of {module:?} has no file") };
            read_module(&file, &inner, [module.clone(), vec![name.to_owned()]].concat(), imports);
        }
    }
    let code = code.join("\n");
    let mut paths = Vec::new();
    for item in code.split("use ").skip(1) {
        let item = item.split(';').next().unwrap().replace(char::is_whitespace, "");
        expand(&item, "", &mut paths);
    }
    for path in code.split("crate::").skip(1) {
        let end = path.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        paths.push(format!("crate::{}", &path[..end.unwrap_or(path.len())]));
    }
    let paths = paths.iter().filter_map(|path| resolve(path, &module)).collect();
    imports.insert(module, paths);
}

/// Expands the braces of a `use` item.
fn expand(item: &str, prefix: &str, paths: &mut Vec<String>) {
    let Some((before, inner)) = item.split_once('{') else {
        return paths.push(format!("{prefix}{item}"));
    };
    let prefix = format!("{prefix}{before}");
    let (mut depth, mut start) = (0, 0);
    for (at, char) in inner.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                if at > start {
                    expand(&inner[start..at], &prefix, paths);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// Makes a path of the crate absolute; `None` for one of another crate.
fn resolve(path: &str, module: &Module) -> Option<Module> {
    let mut parts: Vec<String> = path.split("::").map(str::to_owned).collect();
    if parts[0] == "crate" {
        return Some(parts.split_off(1));
    }
    let supers = parts.iter().take_while(|part| *part == "super").count();
    let base = module.len().checked_sub(supers).filter(|_| supers > 0)?;
    Some([&module[..base], &parts[supers..]].concat())
}
