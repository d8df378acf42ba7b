//! What only the machine's administrator decides: keys that layers above the machine's may not set.

use figment::value::{Dict, Value};

use super::{KINDS, LayerOrigin, Location, layer::Layer};

/// Tables that say who may change what: never the server's, and where there is a machine's file,
/// only that file's.
const MACHINE_ONLY: [&str; 2] = ["managed", "update"];

/// A key that a layer set in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockedOverride {
    /// The key.
    pub key: String,
    /// Where it was set.
    pub location: Location,
    why: &'static str,
}

impl std::fmt::Display for LockedOverride {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` in {} has no effect: {}", self.key, self.location, self.why)
    }
}

/// What is locked on this machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Locks {
    /// Those of the file, and then what follows from them.
    locked: Vec<KeyPattern>,
    written: usize,
    has_machine: bool,
}

impl Locks {
    /// Reads them from the machine's layers. What is no list of texts is another's error.
    pub(super) fn read(layers: &[Layer]) -> Self {
        let machine =
            || layers.iter().filter(|layer| matches!(layer.origin, LayerOrigin::Machine(_)));
        let list = machine().filter_map(|layer| layer.values.get("locked")?.as_array()).next_back();
        let keys = list.into_iter().flatten().filter_map(Value::as_str);
        let mut locked: Vec<KeyPattern> = keys.map(KeyPattern::new).collect();
        // With another type a stage has none of the options that are locked.
        let types = locked.iter().filter_map(KeyPattern::type_of_its_stage).collect::<Vec<_>>();
        let written = locked.len();
        locked.extend(types);
        Self { locked, written, has_machine: machine().next().is_some() }
    }

    /// Those that stand in the file.
    pub(super) fn written(&self) -> impl Iterator<Item = &KeyPattern> {
        self.locked[..self.written].iter()
    }

    /// Why a layer may not set the value at `path`; `None` when it may.
    pub(super) fn refusal(&self, origin: &LayerOrigin, path: &[String]) -> Option<&'static str> {
        let is_managed = match origin {
            // Credentials are below the machine's file: where it says something, they count for nothing.
            LayerOrigin::Defaults | LayerOrigin::Credential(_) | LayerOrigin::Machine(_) => {
                return None;
            }
            LayerOrigin::Managed(_) => true,
            LayerOrigin::User(_)
            | LayerOrigin::Explicit(_)
            | LayerOrigin::Environment(_)
            | LayerOrigin::ServiceVariable(..) => false,
        };
        let top = path.first()?;
        if path.len() == 1 && top == "locked" {
            return Some("only the machine's file can lock keys");
        }
        if path.len() == 1 && MACHINE_ONLY.contains(&&**top) && (is_managed || self.has_machine) {
            return Some("only the machine's file can set it");
        }
        self.locked.iter().any(|pattern| pattern.is(path)).then_some("the machine's file locks it")
    }

    /// Takes out of a layer what it may not set.
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
            match (refusal, value) {
                (Some(why), _) => {
                    let location = layer.location(path);
                    out.push(LockedOverride { key: super::error::key_text(path), location, why });
                }
                (None, Value::Dict(_, below)) => self.strip(below, path, layer, out),
                (None, _) => {}
            }
            path.pop();
            refusal.is_none()
        });
    }
}

/// A dotted key; `*` stands for any one part. It means the key and all that is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyPattern(Vec<String>);

impl std::fmt::Display for KeyPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl KeyPattern {
    pub(super) fn new(text: &str) -> Self {
        Self(text.split('.').map(|part| part.trim().to_owned()).collect())
    }

    /// Whether it means exactly the value at `path`.
    pub(super) fn is(&self, path: &[String]) -> bool {
        let same = |(own, part): (&String, &String)| own == "*" || own == part;
        self.0.len() == path.len() && self.0.iter().zip(path).all(same)
    }

    /// For a key below a stage's table, the key of the stage's type.
    fn type_of_its_stage(&self) -> Option<Self> {
        let [kind, name, option, ..] = self.0.as_slice() else { return None };
        let is_kind = kind == "*" || KINDS.contains(&&**kind);
        // That one is switched off outlives a change of its type.
        (is_kind && option != "enabled")
            .then(|| Self(vec![kind.clone(), name.clone(), "type".to_owned()]))
    }
}
