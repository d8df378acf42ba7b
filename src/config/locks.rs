//! Locked keys: settings that only the machine's administrator may change.

use figment::value::{Dict, Value};

use super::{
    key::{key_part, key_path, key_text},
    layer::Layer,
    origin::{LayerOrigin, Location},
    pipeline::KINDS,
    warning::ConfigWarning,
};

/// Tables that decide which layers may change which keys. The server can never set them; if there is a machine's
/// file, only that file can.
const MACHINE_ONLY: [&str; 2] = ["managed", "update"];
/// Single keys with the same rule.
const MACHINE_ONLY_KEYS: [[&str; 2]; 1] = [["agent", "require_tls"]];

/// Value that was ignored because its key is locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockedOverride {
    /// Dotted key.
    pub key: String,
    /// Layer and line of the value.
    pub location: Location,
    pub(super) why: &'static str,
}

impl std::fmt::Display for LockedOverride {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` in {} has no effect: {}", self.key, self.location, self.why)
    }
}

impl LockedOverride {
    /// Returns the warning about it.
    pub(super) fn warning(&self) -> ConfigWarning {
        ConfigWarning::new("key_locked", self.to_string())
            .about(self.key.clone(), self.location.clone())
    }
}

/// Locked keys of this machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Locks {
    /// Keys of the file, followed by keys derived from them.
    locked: Vec<KeyPattern>,
    written: usize,
    has_machine: bool,
}

impl Locks {
    /// Reads the locked keys from the machine's layers. A list of another type is reported
    /// elsewhere.
    pub(super) fn read(layers: &[Layer]) -> Self {
        let machine =
            || layers.iter().filter(|layer| matches!(layer.origin, LayerOrigin::Machine(_)));
        let list = machine().filter_map(|layer| layer.values.get("locked")?.as_array()).next_back();
        let keys = list.into_iter().flatten().filter_map(Value::as_str);
        let mut locked: Vec<KeyPattern> = keys.map(KeyPattern::new).collect();
        // Another type would remove the locked options from a stage, so the type is locked too.
        let types = locked.iter().filter_map(KeyPattern::type_of_its_stage).collect::<Vec<_>>();
        let written = locked.len();
        locked.extend(types);
        Self { locked, written, has_machine: machine().next().is_some() }
    }

    /// Returns the keys as written in the file.
    pub(super) fn written(&self) -> impl Iterator<Item = &KeyPattern> {
        self.locked[..self.written].iter()
    }

    /// Returns why a layer must not set the value at `path`; `None` if it may.
    pub(super) fn refusal(&self, origin: &LayerOrigin, path: &[String]) -> Option<&'static str> {
        if !is_restricted(origin) {
            return None;
        }
        let is_managed = matches!(origin, LayerOrigin::Managed(_));
        let top = path.first()?;
        if path.len() == 1 && top == "locked" {
            return Some("only the machine's file can lock keys");
        }
        let is_machine_only = path.len() == 1 && MACHINE_ONLY.contains(&&**top)
            || MACHINE_ONLY_KEYS.iter().any(|key| path == key);
        if is_machine_only && (is_managed || self.has_machine) {
            return Some("only the machine's file can set it");
        }
        self.locked
            .iter()
            .any(|pattern| pattern.is(path))
            .then_some("the machine's file locks the key")
    }

    /// Returns the locked keys below the table at `path`, as written in the file.
    pub(super) fn below(&self, path: &[String]) -> Vec<String> {
        let written = self.written().filter(|pattern| pattern.is_below(path));
        let written = written.map(ToString::to_string);
        let single = MACHINE_ONLY_KEYS.iter().filter(|key| {
            self.has_machine && key.len() > path.len() && key.iter().zip(path).all(|(a, b)| a == b)
        });
        written.chain(single.map(|key| key.join("."))).collect()
    }

    /// Returns true if a key below `path` is locked.
    fn locks_below(&self, path: &[String]) -> bool {
        self.locked.iter().any(|pattern| pattern.is_below(path)) || !self.below(path).is_empty()
    }

    /// Returns true if the machine's file locks the value at `path`, or a table around it.
    pub(super) fn covers(&self, path: &[String]) -> bool {
        let mut around = (1..=path.len()).map(|length| &path[..length]);
        around.any(|path| self.locked.iter().any(|pattern| pattern.is(path)))
    }

    /// Removes values that a layer must not set, and returns them.
    pub(super) fn enforce(&self, layer: &mut Layer) -> Vec<LockedOverride> {
        let mut out = Vec::new();
        let mut values = std::mem::take(&mut layer.values);
        self.strip(&mut values, &mut Vec::new(), layer, &mut out);
        layer.values = values;
        out
    }

    fn strip(
        &self,
        values: &mut Dict,
        path: &mut Vec<String>,
        layer: &Layer,
        out: &mut Vec<LockedOverride>,
    ) {
        values.retain(|key, value| {
            path.push(key.clone());
            let refusal = self.refusal(&layer.origin, path);
            let is_table = value.as_dict().is_some();
            // In place of a table, it would replace the locked keys in it.
            let hides = || !is_table && is_restricted(&layer.origin) && self.locks_below(path);
            let refusal =
                refusal.or_else(|| hides().then_some("the machine's file locks a part of it"));
            match (refusal, value) {
                (Some(why), _) => {
                    let location = layer.location(path);
                    out.push(LockedOverride { key: key_text(path), location, why });
                }
                (None, Value::Dict(_, below)) => self.strip(below, path, layer, out),
                (None, _) => {}
            }
            path.pop();
            refusal.is_none()
        });
    }
}

/// Returns true if locks apply to a layer. The machine's file overrides credentials anyway.
fn is_restricted(origin: &LayerOrigin) -> bool {
    match origin {
        LayerOrigin::Defaults | LayerOrigin::Credential(_) | LayerOrigin::Machine(_) => false,
        LayerOrigin::Managed(_)
        | LayerOrigin::User(_)
        | LayerOrigin::Explicit(_)
        | LayerOrigin::Environment(_)
        | LayerOrigin::ServiceVariable(..) => true,
    }
}

/// Dotted key that covers everything below it; `*` matches any single part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyPattern(Vec<String>);

impl std::fmt::Display for KeyPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |part: &String| if part == "*" { part.clone() } else { key_part(part) };
        f.write_str(&self.0.iter().map(part).collect::<Vec<_>>().join("."))
    }
}

impl KeyPattern {
    pub(super) fn new(text: &str) -> Self {
        Self(key_path(text))
    }

    /// Returns whether the pattern matches exactly the value at `path`.
    pub(super) fn is(&self, path: &[String]) -> bool {
        let same = |(own, part): (&String, &String)| own == "*" || own == part;
        self.0.len() == path.len() && self.0.iter().zip(path).all(same)
    }

    /// Returns whether the pattern matches a key below the table at `path`.
    fn is_below(&self, path: &[String]) -> bool {
        let same = |(own, part): (&String, &String)| own == "*" || own == part;
        self.0.len() > path.len() && self.0.iter().zip(path).all(same)
    }

    /// Returns the key of the stage's type, for a key below a stage's table.
    fn type_of_its_stage(&self) -> Option<Self> {
        let [kind, name, option, ..] = self.0.as_slice() else { return None };
        let is_kind = kind == "*" || KINDS.contains(&&**kind);
        // `enabled` keeps its effect when the type changes.
        (is_kind && option != "enabled")
            .then(|| Self(vec![kind.clone(), name.clone(), "type".to_owned()]))
    }
}
