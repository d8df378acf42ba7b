//! Conversion of a managed configuration into a layer: a pure function of the server's JSON and of
//! what the machine's layers allow.

use figment::value::{Dict, Value};
use siem_protocol::{ManagedConfig, ManagedError, managed::STAGE_KINDS};

use super::{
    error::{ConfigError, did_you_mean},
    key::key_text,
    layer::{Layer, insert},
    on_error::OnError,
    origin::{LayerOrigin, Location},
    warning::ConfigWarning,
};

/// Managed configuration that was parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct ManagedSettings {
    /// Parsed content.
    pub config: ManagedConfig,
    /// Revision that identifies the content: its own, or the `ETag` of the response.
    pub revision: Option<String>,
    /// Warnings about unknown members.
    pub warnings: Vec<ConfigWarning>,
}

impl ManagedSettings {
    /// Parses the body of a response that came with `etag`.
    ///
    /// # Errors
    /// [`ManagedError`]: the caller refuses the whole configuration and keeps the one in force.
    ///
    /// ```
    /// use ai_agent::internals::config::ManagedSettings;
    /// let managed = ManagedSettings::read(br#"{"version":1,"filtrs":{}}"#, Some("\"e1\""))?;
    /// assert_eq!(managed.revision.as_deref(), Some("\"e1\""));
    /// assert!(managed.warnings[0].to_string().ends_with("did you mean `filters`?"));
    /// # Ok::<(), ai_agent::internals::protocol::ManagedError>(())
    /// ```
    pub fn read(body: &[u8], etag: Option<&str>) -> Result<Self, ManagedError> {
        let config = ManagedConfig::parse(body)?;
        let revision = config.revision.clone().or_else(|| etag.map(str::to_owned));
        let value = serde_json::from_slice(body).unwrap_or_default();
        let location = LayerOrigin::Managed(revision.clone()).into();
        let warnings = unknown_members(&value, &location);
        Ok(Self { config, revision, warnings })
    }

    /// Converts the configuration into a layer; stages and tests with errors are left out.
    pub(super) fn layer(
        &self,
        allowed: &ManagedAllowlist,
        on_error: &mut OnError<'_>,
    ) -> Result<Layer, ConfigError> {
        let origin = LayerOrigin::Managed(self.revision.clone());
        let mut values = Dict::new();
        for (key, value) in self.pairs() {
            insert(&mut values, key, value);
        }
        if let Some(stages) = &self.config.stages {
            self.add_stages(stages, allowed, &mut values, on_error)?;
        }
        if let Some(tests) = &self.config.tests {
            let tests = self.value(tests, &mut vec!["tests".to_owned()]);
            let tests = on_error.handle(tests)?;
            values.extend(tests.map(|tests| ("test".to_owned(), tests)));
        }
        Ok(Layer::new(origin, values))
    }

    /// Returns the members that every machine accepts, with the keys that they set.
    fn pairs(&self) -> Vec<(&'static str, Value)> {
        let ManagedConfig { filters, shipping, compliance, .. } = self.config.clone();
        let (filters, shipping) = (filters.unwrap_or_default(), shipping.unwrap_or_default());
        let seconds = |seconds: u64| Value::from(format!("{seconds}s"));
        let compliance = compliance.map(|policy| Value::serialize(policy).expect("plain values"));
        let pairs = [
            ("filter.ignore-types.types", filters.ignore_types.map(Value::from)),
            ("filter.sidechain.enabled", filters.drop_sidechain.map(Value::from)),
            ("filter.meta.enabled", filters.drop_meta.map(Value::from)),
            ("filter.tool-call.enabled", filters.drop_tool_calls.map(Value::from)),
            ("shipping.batch_size", shipping.batch_size.map(Value::from)),
            ("shipping.flush_interval", shipping.flush_interval_seconds.map(seconds)),
            ("compliance", compliance),
        ];
        pairs.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// Adds the tables of `{"filter": {"NAME": {…}}, "enricher": {…}}` if the machine allows each
    /// of them.
    fn add_stages(
        &self,
        stages: &serde_json::Value,
        allowed: &ManagedAllowlist,
        values: &mut Dict,
        on_error: &mut OnError<'_>,
    ) -> Result<(), ConfigError> {
        let Some(kinds) = on_error.handle(self.object(stages, "stages"))? else { return Ok(()) };
        for (kind, named) in kinds {
            let key = key_text(&["stages", kind]);
            if !STAGE_KINDS.contains(&&**kind) {
                let problem =
                    "cannot be set by the server: only tables of `filter` and `enricher` can";
                on_error.handle::<()>(Err(self.value_error(&key, problem)))?;
                continue;
            }
            let Some(named) = on_error.handle(self.object(named, &key))? else { continue };
            for (name, options) in named {
                let options = self.stage(kind, name, options, allowed);
                // Values that `filters` sets for a built-in filter are kept unless the table
                // overrides them.
                let table = table_at(values, kind.clone());
                let table = table.and_then(|stages| table_at(stages, name.clone()));
                if let (Some(table), Some(options)) = (table, on_error.handle(options)?) {
                    table.extend(options);
                }
            }
        }
        Ok(())
    }

    /// Converts the table of one stage.
    fn stage(
        &self,
        kind: &str,
        name: &str,
        options: &serde_json::Value,
        allowed: &ManagedAllowlist,
    ) -> Result<Dict, ConfigError> {
        let key = key_text(&["stages", kind, name]);
        self.object(options, &key)?;
        if !allowed.allows(kind, name) {
            let problem = format!(
                "is not allowed on this machine: the machine's file must contain \
                 `managed.allow = [\"{kind}.{name}\"]`"
            );
            return Err(self.value_error(&key, problem));
        }
        let path = &mut vec!["stages".to_owned(), kind.to_owned(), name.to_owned()];
        match self.value(options, path)? {
            Value::Dict(_, options) => Ok(options),
            _ => Ok(Dict::new()),
        }
    }

    fn object<'a>(
        &self,
        value: &'a serde_json::Value,
        key: &str,
    ) -> Result<&'a serde_json::Map<String, serde_json::Value>, ConfigError> {
        value.as_object().ok_or_else(|| self.value_error(key, "must be an object"))
    }

    /// Converts JSON into values as TOML has them; TOML has no null.
    fn value(
        &self,
        json: &serde_json::Value,
        path: &mut Vec<String>,
    ) -> Result<Value, ConfigError> {
        use serde_json::Value as Json;
        Ok(match json {
            Json::Null => {
                return Err(self.value_error(&key_text(path), "is null: omit it instead"));
            }
            Json::Bool(boolean) => (*boolean).into(),
            Json::String(text) => text.clone().into(),
            Json::Number(number) => {
                let as_float = || number.as_f64().unwrap_or(f64::MAX).into();
                let unsigned = || number.as_u64().map_or_else(as_float, Value::from);
                number.as_i64().map_or_else(unsigned, Value::from)
            }
            Json::Array(items) => {
                let mut values = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    path.push(index.to_string());
                    values.push(self.value(item, path)?);
                    path.pop();
                }
                values.into()
            }
            Json::Object(members) => {
                let mut dict = Dict::new();
                for (name, member) in members {
                    path.push(name.clone());
                    dict.insert(name.clone(), self.value(member, path)?);
                    path.pop();
                }
                dict.into()
            }
        })
    }

    fn value_error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let location = LayerOrigin::Managed(self.revision.clone()).into();
        ConfigError::Value { key: key.to_owned(), location, problem: problem.into() }
    }
}

impl From<ManagedConfig> for ManagedSettings {
    fn from(config: ManagedConfig) -> Self {
        let revision = config.revision.clone();
        Self { config, revision, warnings: Vec::new() }
    }
}

/// Returns the table at `key`, which is created if it does not exist.
fn table_at(values: &mut Dict, key: String) -> Option<&mut Dict> {
    match values.entry(key).or_insert_with(|| Dict::new().into()) {
        Value::Dict(_, table) => Some(table),
        _ => None,
    }
}

/// Tables of stages that the server may set on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ManagedAllowlist(Vec<String>);

impl ManagedAllowlist {
    /// Reads `managed.allow` of the last layer that sets it. A list of another type is reported
    /// elsewhere.
    pub(super) fn read(layers: &[Layer]) -> Self {
        let list = layers.iter().rev().find_map(|layer| {
            layer.values.get("managed")?.as_dict()?.get("allow")?.as_array().map(<[Value]>::to_vec)
        });
        let texts = list.into_iter().flatten();
        Self(texts.filter_map(|text| text.as_str().map(str::to_owned)).collect())
    }

    pub(super) fn allows(&self, kind: &str, name: &str) -> bool {
        let is_it = |allowed: &String| match allowed.split_once('.') {
            Some((allowed_kind, allowed)) => {
                allowed_kind == kind && (allowed == "*" || allowed == name)
            }
            None => false,
        };
        self.0.iter().any(is_it)
    }

    /// Returns the items for tables of `kind`.
    pub(super) fn of_kind(&self, kind: &str) -> impl Iterator<Item = &str> {
        let is_of = move |item: &&String| item.split_once('.').is_some_and(|(it, _)| it == kind);
        self.0.iter().filter(is_of).map(String::as_str)
    }

    /// Returns whether an item of `managed.allow` can match any table.
    pub(super) fn is_pattern(text: &str) -> bool {
        let named = |(kind, name): (&str, &str)| {
            STAGE_KINDS.contains(&kind) && !name.is_empty() && !name.contains('.')
        };
        text.split_once('.').is_some_and(named)
    }
}

/// Returns a warning for each member that is unknown to this version, for example one of a newer
/// server.
fn unknown_members(body: &serde_json::Value, location: &Location) -> Vec<ConfigWarning> {
    let schema = schemars::schema_for!(ManagedConfig).to_value();
    let names = |schema: &serde_json::Value| -> Vec<String> {
        schema["properties"].as_object().into_iter().flat_map(|it| it.keys().cloned()).collect()
    };
    let mut unknown = Vec::new();
    let mut look = |value: &serde_json::Value, known: &[String], table: &str| {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let members = value.as_object().into_iter().flat_map(|members| members.keys());
        for member in members.filter(|member| !known.contains(&member.as_str())) {
            let hint = did_you_mean(member, &known)
                .map_or(String::new(), |near| format!(": did you mean `{near}`?"));
            let key = format!("{table}{member}");
            let message =
                format!("`{key}` in the managed configuration is unknown and has no effect{hint}");
            let warning = ConfigWarning::new("managed_member_unknown", message);
            unknown.push(warning.about(key, location.clone()));
        }
    };
    look(body, &names(&schema), "");
    for (section, definition) in
        [("filters", "Filters"), ("shipping", "Shipping"), ("compliance", "Compliance")]
    {
        look(&body[section], &names(&schema["$defs"][definition]), &format!("{section}."));
    }
    unknown
}
