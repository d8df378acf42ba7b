//! Values of a layer that have no effect.

use figment::value::Value;

use super::{
    key::key_text,
    loaded::LoadedConfig,
    merged::step,
    origin::{LayerOrigin, Location},
    redact::{OpenPaths, without_secrets},
    sink::SECRETS,
};

/// Value of a layer that has no effect.
#[derive(Clone, Debug, PartialEq)]
pub struct HiddenValue {
    /// Dotted key.
    pub key: String,
    /// Layer and line of the value.
    pub location: Location,
    /// Reason, without secrets.
    pub reason: String,
}

impl LoadedConfig {
    /// Returns the values of the layers for which `is_wanted` is true that have no effect: a higher
    /// layer sets another value, or the machine's file locks the key.
    #[must_use]
    pub fn hidden_values(&self, is_wanted: impl Fn(&LayerOrigin) -> bool) -> Vec<HiddenValue> {
        let locked = self.locked_overrides.iter().map(|attempt| HiddenValue {
            key: attempt.key.clone(),
            location: attempt.location.clone(),
            reason: attempt.why.to_owned(),
        });
        let mut hidden: Vec<HiddenValue> = locked.collect();
        let retyped = self.retyped.iter().map(|(path, location)| {
            let kind = [path.as_slice(), &["type".to_owned()]].concat();
            let by = self.merged.location(&kind, self.merged.nearest(&kind));
            let reason = format!("{by} sets another type");
            HiddenValue { key: key_text(path), location: location.clone(), reason }
        });
        hidden.extend(retyped);
        for (rank, layer) in self.merged.layers.iter().enumerate() {
            if is_wanted(&layer.origin) {
                let values = Value::from(layer.values.clone());
                self.collect_hidden(rank, &mut Vec::new(), &values, &mut hidden);
            }
        }
        hidden.retain(|hidden| is_wanted(&hidden.location.origin));
        hidden
    }

    /// Collects the values below `path` that layers above the one with the index `rank` hide.
    fn collect_hidden(
        &self,
        rank: usize,
        path: &mut Vec<String>,
        value: &Value,
        hidden: &mut Vec<HiddenValue>,
    ) {
        if let Value::Dict(_, table) = value {
            for (key, value) in table {
                path.push(key.clone());
                self.collect_hidden(rank, path, value, hidden);
                path.pop();
            }
            return;
        }
        if let Some(reason) = self.reason_for_hiding(rank, path, value) {
            let location = self.merged.layers[rank].location(path);
            hidden.push(HiddenValue { key: key_text(path), location, reason });
        }
    }

    fn reason_for_hiding(&self, rank: usize, path: &[String], value: &Value) -> Option<String> {
        let found = |path: &[String]| {
            let found = path.iter().try_fold(&self.merged.root, |value, part| step(value, part))?;
            (self.merged.rank(found) > rank).then_some(found)
        };
        if let Some(higher) = found(path) {
            let location = self.merged.location(path, higher);
            // The server appends to the list of this machine.
            let is_extended = match (value, higher) {
                (Value::Array(_, own), Value::Array(_, all)) => all.starts_with(own),
                _ => false,
            };
            let is_same = higher == value || is_extended && path[0] == "pipeline";
            let open = OpenPaths::of(&self.merged.layers);
            let shown = toml::Value::try_from(without_secrets(path, higher, &open));
            let shown = shown.map_or_else(|_| "another value".to_owned(), |it| format!("`{it}`"));
            return (!is_same).then(|| format!("{location} sets {shown}"));
        }
        // A secret is set by its value or by a file, whichever layer is higher.
        let [kind, name, option] = path else { return None };
        let pairs = SECRETS.iter().map(|secret| [secret.value, secret.file]);
        let other = pairs.into_iter().find_map(|[value, file]| match option {
            option if option == value => Some(file),
            option if option == file => Some(value),
            _ => None,
        })?;
        let path = [kind.clone(), name.clone(), other.to_owned()];
        let location = self.merged.location(&path, found(&path)?);
        (kind == "sink").then(|| format!("{location} sets `{other}`"))
    }
}
