//! The modules of the agent import each other in one direction only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Modules of the crate from top to bottom: a module imports from its own layer and those below.
const LAYERS: [&[&str]; 8] = [
    &["cli", "internals"],
    &["control"],
    &["agent"],
    &["update"],
    &["pipeline"],
    &["stages"],
    &["compliance", "config", "frame", "logging", "siem", "tail"],
    &["event", "platform", "text", "version"],
];

/// Prefix of modules whose files implement the methods of one type, so that they import each other.
const ONE_TYPE: &str = "tail::";

/// Largest number of re-exports between an import and the definition.
const REEXPORTS: usize = 4;

/// Path of a module or an item from the root of the crate.
type ItemPath = Vec<String>;

/// Code of each module, without comments and tests.
type Modules = BTreeMap<ItemPath, String>;

#[test]
fn modules_import_downwards_and_never_in_a_circle() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = Modules::new();
    read_module(&source.join("lib.rs"), &source, ItemPath::new(), &mut modules);
    assert!(modules.len() > 100, "only {} modules were found", modules.len());
    let mut edges = sibling_edges(&modules);
    let layer = |module: &str| {
        let layer = LAYERS.iter().position(|layer| layer.contains(&module));
        layer.unwrap_or_else(|| panic!("`{module}` belongs to no layer"))
    };
    let is_upwards = |from: &str, to: &str| !from.contains("::") && layer(to) < layer(from);
    let upwards: Vec<_> = edges.iter().filter(|(from, to)| is_upwards(from, to)).collect();
    assert!(upwards.is_empty(), "modules import from a higher layer: {upwards:#?}");
    // Only circles remain when modules that import nothing, or that none imports, are removed
    // repeatedly.
    edges.retain(|(from, _)| !from.starts_with(ONE_TYPE));
    let mut count = 0;
    while count != edges.len() {
        count = edges.len();
        let (importing, imported): (BTreeSet<_>, BTreeSet<_>) = edges.iter().cloned().unzip();
        edges.retain(|(from, to)| importing.contains(to) && imported.contains(from));
    }
    assert!(edges.is_empty(), "modules import each other in a circle: {edges:#?}");
}

/// Returns the imports between modules with the same parent. A module is one unit with the modules
/// in it, and a re-exported item belongs to the module that defines it.
fn sibling_edges(modules: &Modules) -> BTreeSet<(String, String)> {
    let (mut names, mut imports) = (BTreeMap::new(), Vec::new());
    for (module, code) in modules {
        for (name, path) in paths(code) {
            let Some(path) = resolve(&path, module, modules) else { continue };
            names.extend(name.map(|name| ([&module[..], &[name]].concat(), path.clone())));
            imports.push((module, path));
        }
    }
    let mut edges = BTreeSet::new();
    for (module, mut path) in imports {
        for _ in 0..REEXPORTS {
            if let Some(at) = (1..=path.len()).find(|at| names.contains_key(&path[..*at])) {
                path = [&names[&path[..at]], &path[at..]].concat();
            }
        }
        let shared = module.iter().zip(&path).take_while(|(one, other)| one == other).count();
        if let (Some(from), Some(to)) = (module.get(..=shared), path.get(..=shared))
            && modules.contains_key(to)
        {
            edges.insert((from.join("::"), to.join("::")));
        }
    }
    edges
}

/// Reads `file`, which is `module`, and the modules in `folder`, except those of tests.
fn read_module(file: &Path, folder: &Path, module: ItemPath, modules: &mut Modules) {
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().map(|line| line.split("//").next().unwrap().to_owned() + "\n");
    let code = lines.collect::<String>();
    let mut items = code.split("#[cfg(test)]\n");
    let mut code = items.next().unwrap().to_owned();
    let items = items.take_while(|item| !item.starts_with("mod tests {"));
    code.extend(items.filter_map(|item| item.split_once('\n')).map(|(_, rest)| rest));
    let declarations = code.lines().filter_map(|line| line.strip_suffix(';')?.split_once("mod "));
    for (_, name) in declarations.filter(|(before, _)| !before.starts_with(' ')) {
        let inner = folder.join(name);
        let files = [inner.with_extension("rs"), inner.join("mod.rs")];
        let file = files.iter().find(|file| file.is_file());
        let file = file.unwrap_or_else(|| panic!("`{name}` in {module:?} has no file"));
        read_module(file, &inner, [&module[..], &[name.to_owned()]].concat(), modules);
    }
    modules.insert(module, code);
}

/// Returns the paths of `use` items with the names that they have in the module, and all paths that
/// start with `crate` or `super`.
fn paths(code: &str) -> Vec<(Option<String>, String)> {
    let code = &code.replace(" as ", "=");
    let mut paths = Vec::new();
    let starts = ["use ", "crate::", "super::"].into_iter().flat_map(|it| code.match_indices(it));
    for (at, start) in starts.filter(|(at, _)| !code[..*at].ends_with("::")) {
        let (mut path, mut open) = (String::new(), Vec::new());
        for char in code[at..].trim_start_matches("use ").chars() {
            match char {
                '{' => open.push(path.clone()),
                ',' | '}' if !open.is_empty() => {
                    let prefix = if char == '}' { open.pop() } else { open.last().cloned() };
                    paths.push((start, std::mem::replace(&mut path, prefix.unwrap_or_default())));
                }
                _ if char.is_alphanumeric() || "_:=".contains(char) => path.push(char),
                _ if open.is_empty() => break,
                _ => {}
            }
        }
        paths.push((start, path));
    }
    paths.retain(|(_, path)| !path.is_empty() && !path.ends_with("::"));
    let named = |(start, path): (&str, String)| {
        let (path, alias) = path.split_once('=').unwrap_or((&path, ""));
        let path = path.strip_suffix("::self").unwrap_or(path);
        let name = if alias.is_empty() { path.rsplit("::").next() } else { Some(alias) };
        (name.filter(|_| start == "use ").map(str::to_owned), path.to_owned())
    };
    paths.into_iter().map(named).collect()
}

/// Returns the path from the root of the crate; `None` for an item of another crate.
fn resolve(path: &str, module: &[String], modules: &Modules) -> Option<ItemPath> {
    let parts: ItemPath = path.split("::").map(str::to_owned).collect();
    let supers = parts.iter().take_while(|part| *part == "super").count();
    let base = &module[..module.len().checked_sub(supers)?];
    let absolute = [base, &parts[supers..]].concat();
    match &*parts[0] {
        "crate" => Some(parts[1..].to_vec()),
        "super" => Some(absolute),
        _ => Some(absolute).filter(|path| modules.contains_key(&path[..=base.len()])),
    }
}
