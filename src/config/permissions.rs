//! Who may change a key: the user, and the server.

use siem_protocol::managed::STAGE_KINDS;

use super::{
    key::key_path,
    loaded::LoadedConfig,
    managed::ManagedAllowlist,
    origin::LayerOrigin,
    pipeline::{ALWAYS_ON, BUILT_IN_FILTERS},
};

/// Keys that the server may always set, with everything below them.
pub(super) const SERVERS: [&str; 7] = [
    "filter.ignore-types.types",
    "filter.sidechain.enabled",
    "filter.meta.enabled",
    "filter.tool-call.enabled",
    "shipping.batch_size",
    "shipping.flush_interval",
    "compliance",
];

/// Right to change a key and everything below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// All of it.
    Full,
    /// A part of it, which the text names.
    Partial(String),
    /// None, for the reason in the text.
    None(String),
}

impl Permission {
    fn none(why: impl Into<String>) -> Self {
        Self::None(why.into())
    }

    /// All but the keys in `locked`.
    fn all_but(locked: &[String]) -> Self {
        match locked {
            [] => Self::Full,
            locked => Self::Partial(format!("all but {}, which is locked", quoted(locked))),
        }
    }
}

impl LoadedConfig {
    /// Returns whether a file of the user may set the key at `path`.
    pub(super) fn user_permission(&self, path: &[String]) -> Permission {
        let origin = LayerOrigin::User("".into());
        if let Some(why) = self.refusal(&origin, path) {
            return Permission::none(why);
        }
        if let Some(why) = fixed(path) {
            return Permission::none(why);
        }
        Permission::all_but(&self.locks.below(path))
    }

    /// Returns whether a managed configuration may set the key at `path`.
    pub(super) fn server_permission(&self, path: &[String]) -> Permission {
        if !self.has_server() {
            return Permission::none(
                "no sink of type `http-siem` asks a server for a configuration",
            );
        }
        let origin = LayerOrigin::Managed(None);
        if let Some(why) = self.refusal(&origin, path) {
            return Permission::none(why);
        }
        if let Some(why) = fixed(path) {
            return Permission::none(why);
        }
        let key = path.join(".");
        let allowed = ManagedAllowlist::read(&self.merged.layers);
        let is_below_own = SERVERS.iter().any(|own| is_below(&key, own));
        if is_below_own || matches!(path, [kind, name, ..] if allowed.allows(kind, name)) {
            return Permission::all_but(&self.locks.below(path));
        }
        let adds_to = |kind: &&str| allowed.of_kind(kind).next().is_some();
        match path {
            [table] if table == "pipeline" && STAGE_KINDS.iter().any(adds_to) => adds_stages(),
            [table, list] if table == "pipeline" => {
                let kind = list.strip_suffix('s').unwrap_or(list);
                match STAGE_KINDS.contains(&kind) && adds_to(&kind) {
                    true => adds_stages(),
                    false => out_of_reach(path),
                }
            }
            path => self.parts_for_server(path, &key, &allowed),
        }
    }

    /// Returns the permission for a table of which the server may at most set a part.
    fn parts_for_server(
        &self,
        path: &[String],
        key: &str,
        allowed: &ManagedAllowlist,
    ) -> Permission {
        let own = SERVERS.iter().filter(|own| is_below(own, key)).map(|own| (*own).to_owned());
        let patterns = match path {
            [kind] => allowed.of_kind(kind).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        let parts: Vec<String> = own.chain(patterns).collect();
        if parts.is_empty() {
            return out_of_reach(path);
        }
        let may_set =
            |part: &String| self.refusal(&LayerOrigin::Managed(None), &key_path(part)).is_none();
        let free: Vec<String> = parts.into_iter().filter(may_set).collect();
        match free.as_slice() {
            [] => Permission::none("the machine's file locks all that the server could set in it"),
            free => Permission::Partial(format!("only {}", quoted(free))),
        }
    }

    fn refusal(&self, origin: &LayerOrigin, path: &[String]) -> Option<&'static str> {
        (1..=path.len()).find_map(|length| self.locks.refusal(origin, &path[..length]))
    }
}

fn adds_stages() -> Permission {
    let how = "only by adding stages that `managed.allow` names and no list does: they run last";
    Permission::Partial(how.to_owned())
}

/// Returns the reason why the server may not set a key that no rule mentions.
fn out_of_reach(path: &[String]) -> Permission {
    Permission::none(match path {
        [kind, name, ..] if STAGE_KINDS.contains(&&**kind) => {
            format!("`managed.allow` contains neither `{kind}.{name}` nor `{kind}.*`")
        }
        [kind] if STAGE_KINDS.contains(&&**kind) => {
            format!("`managed.allow` contains no table of `{kind}`")
        }
        _ => {
            "it may only set filters, enrichers, `shipping.batch_size`, `shipping.flush_interval` \
              and `compliance`"
                .to_owned()
        }
    })
}

/// Returns why no layer may change a key.
fn fixed(path: &[String]) -> Option<String> {
    match path {
        [kind, name, option] if kind == "filter" && BUILT_IN_FILTERS.contains(&&**name) => {
            match &**option {
                "type" => Some(format!("`{name}` is built in and keeps its type")),
                "enabled" if ALWAYS_ON.contains(&&**name) => Some(format!("`{name}` is always on")),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Returns whether `key` is `table` or a key below it.
fn is_below(key: &str, table: &str) -> bool {
    key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn quoted(keys: &[String]) -> String {
    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
}
