//! Editing of the hooks in Claude Code's settings: a pure function from the text of a file to the
//! new text.
//!
//! The file belongs to the user or the administrator: everything else stays unchanged, byte for
//! byte. The result is checked against the intended change before it is returned.

use std::path::Path;

use jsonc_parser::{
    ParseOptions,
    cst::{CstArray, CstInputValue, CstNode, CstObject, CstObjectProp, CstRootNode},
    json,
};
use serde_json::Value;

use super::hook_response::Hook;

/// Seconds that the client waits for a response before the prompt continues. The hook needs
/// milliseconds.
const TIMEOUT: u32 = 10;
/// File names of this program.
const NAMES: [&str; 2] = ["ai-agent", "ai-agent.exe"];
/// Member that contains all hooks.
const HOOKS: &str = "hooks";

/// Settings that concern hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookSettings {
    /// Hooks that call this program.
    pub ours: Vec<AgentHook>,
    /// True if the file disables hooks: all hooks in managed settings, otherwise those of lower
    /// settings.
    pub disables_all: bool,
    /// True if only managed hooks run.
    pub managed_only: bool,
    /// Number of days without a change after which the client deletes a session.
    pub cleanup_period_days: Option<u64>,
}

/// Hook that calls this program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentHook {
    /// Event of the hook.
    pub hook: Hook,
    /// Command as written in the file.
    pub command: String,
    /// Matcher; sessions that start in another way do not call the hook.
    pub matcher: Option<String>,
}

/// Reason why a settings file is not edited.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file is not valid JSON, and the client ignores all of it.
    #[error("not valid JSON ({0}): fix the file first, Claude Code ignores it")]
    Json(serde_json::Error),
    /// A member has an unexpected type.
    #[error("`{0}` is not {1}: fix the file first")]
    Type(String, &'static str),
    /// The file has a duplicate member, or other content that cannot be edited safely.
    #[error("cannot edit only the hooks: check the file for duplicate members")]
    Odd,
}

/// Returns the text of a settings file with the hooks of this program, or the same text if it
/// contains them. `program` is the command to run, quoted for a shell.
///
/// # Errors
/// [`SettingsError`]: the file must not be written.
pub fn install(text: &str, program: &str) -> Result<String, SettingsError> {
    let before = read(text)?;
    let root = parse(text)?;
    let settings = root.object_value_or_set();
    let hooks = object(&settings, HOOKS)?;
    for hook in Hook::ALL {
        let command = format!("{program} check --hook {}", hook.name());
        let groups = array(&hooks, hook)?;
        let mut known = entries(&groups).into_iter().filter(|entry| is_ours(entry, hook));
        match known.next() {
            Some(entry) => {
                // A command with separate arguments is run without a shell: its author knows the
                // path of the program.
                if arguments_of(&entry).is_empty()
                    && text_of(&entry, "command").as_deref() != Some(&*command)
                    && let Some(property) = entry.get("command")
                {
                    property.set_value(CstInputValue::String(command));
                }
            }
            None => {
                groups.append(json!({
                    "hooks": [{ "type": "command", "command": command, "timeout": TIMEOUT }]
                }));
            }
        }
    }
    checked(&before, root.to_string(), |ours| Hook::ALL.iter().all(|hook| ours.contains(hook)))
}

/// Returns the text of a settings file without the hooks of this program, or the same text if it
/// contains none.
///
/// # Errors
/// [`SettingsError`]: the file must not be written.
pub fn uninstall(text: &str) -> Result<String, SettingsError> {
    let before = read(text)?;
    let root = parse(text)?;
    let hooks = root.object_value().and_then(|settings| settings.object_value(HOOKS));
    let Some(hooks) = hooks else { return Ok(text.to_owned()) };
    let mut has_removed = false;
    for hook in Hook::ALL {
        let Some(groups) = hooks.array_value(hook.name()) else { continue };
        for group in groups.elements().iter().filter_map(CstNode::as_object) {
            let Some(entries) = group.array_value(HOOKS) else { continue };
            let ours = entries.elements().into_iter().filter_map(|entry| entry.as_object());
            let ours: Vec<CstObject> = ours.filter(|entry| is_ours(entry, hook)).collect();
            let is_all = ours.len() == entries.elements().len();
            has_removed |= !ours.is_empty();
            match (ours.is_empty(), is_all) {
                (true, _) => {}
                // A group that contains only hooks of this program is removed too.
                (false, true) => group.remove(),
                (false, false) => ours.into_iter().for_each(CstObject::remove),
            }
        }
        if has_removed && groups.elements().is_empty() {
            hooks.get(hook.name()).into_iter().for_each(CstObjectProp::remove);
        }
    }
    if !has_removed {
        return Ok(text.to_owned());
    }
    if hooks.properties().is_empty() {
        root.object_value()
            .and_then(|it| it.get(HOOKS))
            .into_iter()
            .for_each(CstObjectProp::remove);
    }
    checked(&before, root.to_string(), <[Hook]>::is_empty)
}

/// Returns whether `before` contains no hook of this program, and everything that `text` contains
/// besides them.
#[must_use]
pub fn is_without_ours(before: &str, text: &str) -> bool {
    match (read(before), read(text)) {
        (Ok(before), Ok(text)) => {
            let same = without_ours(before.clone()) == without_ours(text);
            same && inspect_value(&before).ours.is_empty()
        }
        _ => false,
    }
}

/// Returns whether a text is what [`install`] makes of a file that does not exist.
#[must_use]
pub fn is_only_ours(text: &str) -> bool {
    let ours = inspect(text).map(|settings| settings.ours).unwrap_or_default();
    let command = ours.first().and_then(|it| it.command.split(" check --hook").next());
    command.is_some_and(|program| install("", program).is_ok_and(|made| made == text))
}

/// Parses the settings that concern hooks.
///
/// # Errors
/// [`SettingsError::Json`].
pub fn inspect(text: &str) -> Result<HookSettings, SettingsError> {
    read(text).map(|settings| inspect_value(&settings))
}

fn inspect_value(settings: &Value) -> HookSettings {
    let mut ours = Vec::new();
    for hook in Hook::ALL {
        let groups = settings[HOOKS][hook.name()].as_array();
        for group in groups.into_iter().flatten() {
            let matcher = group["matcher"].as_str().filter(|it| !it.is_empty() && *it != "*");
            for entry in group[HOOKS].as_array().into_iter().flatten() {
                let command = command_of(entry);
                if is_our_command(&command, hook) {
                    let matcher = matcher.map(str::to_owned);
                    ours.push(AgentHook { hook, command, matcher });
                }
            }
        }
    }
    // The client treats an invalid value as true.
    let managed_only =
        settings.get("allowManagedHooksOnly").is_some_and(|it| *it != Value::Bool(false));
    let disables_all = settings["disableAllHooks"] == Value::Bool(true);
    let cleanup_period_days = settings["cleanupPeriodDays"].as_u64();
    HookSettings { ours, disables_all, managed_only, cleanup_period_days }
}

/// Returns the program that the command of a hook runs, without quotes.
#[must_use]
pub fn program_of(command: &str) -> &str {
    let program = command.split(" check --hook").next().unwrap_or(command).trim();
    program.trim_matches('"')
}

fn read(text: &str) -> Result<Value, SettingsError> {
    if text.trim().is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let value: Value = serde_json::from_str(text).map_err(SettingsError::Json)?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(SettingsError::Type("the top level".into(), "an object"))
    }
}

fn parse(text: &str) -> Result<CstRootNode, SettingsError> {
    CstRootNode::parse(text, &ParseOptions::default()).map_err(|_| SettingsError::Odd)
}

fn object(settings: &CstObject, name: &str) -> Result<CstObject, SettingsError> {
    let wrong = || SettingsError::Type(name.to_owned(), "an object");
    settings.object_value_or_create(name).ok_or_else(wrong)
}

fn array(hooks: &CstObject, hook: Hook) -> Result<CstArray, SettingsError> {
    let wrong = || SettingsError::Type(format!("{HOOKS}.{}", hook.name()), "a list");
    hooks.array_value_or_create(hook.name()).ok_or_else(wrong)
}

/// Returns the hooks in all groups.
fn entries(groups: &CstArray) -> Vec<CstObject> {
    let groups = groups.elements();
    let lists = groups.iter().filter_map(|group| group.as_object()?.array_value(HOOKS));
    lists.flat_map(|list| list.elements()).filter_map(|entry| entry.as_object()).collect()
}

fn text_of(entry: &CstObject, name: &str) -> Option<String> {
    entry.get(name)?.value()?.as_string_lit()?.decoded_value().ok()
}

fn is_ours(entry: &CstObject, hook: Hook) -> bool {
    let command = text_of(entry, "command");
    let words = command.into_iter().chain(arguments_of(entry)).collect::<Vec<_>>();
    is_our_command(&words.join(" "), hook)
}

/// Returns the arguments in a separate list; with one, the command is run without a shell.
fn arguments_of(entry: &CstObject) -> Vec<String> {
    let arguments = entry.array_value("args").map(|list| list.elements()).unwrap_or_default();
    let texts = arguments.iter().filter_map(|it| it.as_string_lit()?.decoded_value().ok());
    texts.collect()
}

/// Returns the command of a hook followed by its separate arguments.
fn command_of(entry: &Value) -> String {
    let arguments = entry["args"].as_array().into_iter().flatten();
    let words = [&entry["command"]].into_iter().chain(arguments).filter_map(Value::as_str);
    words.collect::<Vec<_>>().join(" ")
}

/// Returns whether a command runs this program for `hook`, at any path.
fn is_our_command(command: &str, hook: Hook) -> bool {
    let Some((program, rest)) = command.split_once(" check --hook") else { return false };
    let name = program.trim().trim_matches('"').rsplit(['/', '\\']).next().unwrap_or_default();
    let event = rest.trim_start_matches([' ', '=']).split(' ').next();
    NAMES.contains(&name) && event == Some(hook.name())
}

/// Returns true if a hook that runs `program` is recognized as one of this program.
#[must_use]
pub fn is_known_name(program: &Path) -> bool {
    program.file_name().is_some_and(|name| NAMES.iter().any(|known| name == *known))
}

/// Returns the text if the hooks of this program are as intended and everything else is unchanged.
fn checked(
    before: &Value,
    text: String,
    is_meant: impl FnOnce(&[Hook]) -> bool,
) -> Result<String, SettingsError> {
    let after = read(&text).map_err(|_| SettingsError::Odd)?;
    let ours: Vec<Hook> = inspect(&text)?.ours.iter().map(|ours| ours.hook).collect();
    let is_as_meant = is_meant(&ours) && without_ours(before.clone()) == without_ours(after);
    if is_as_meant { Ok(text) } else { Err(SettingsError::Odd) }
}

/// Removes the hooks of this program, and groups that are empty afterwards.
fn without_ours(mut settings: Value) -> Value {
    let Some(hooks) = settings.get_mut(HOOKS).and_then(Value::as_object_mut) else {
        return settings;
    };
    for hook in Hook::ALL {
        let Some(groups) = hooks.get_mut(hook.name()).and_then(Value::as_array_mut) else {
            continue;
        };
        let is_ours = |entry: &Value| is_our_command(&command_of(entry), hook);
        groups.retain_mut(|group| {
            let Some(list) = group.get_mut(HOOKS).and_then(Value::as_array_mut) else {
                return true;
            };
            let had_some = !list.is_empty();
            list.retain(|entry| !is_ours(entry));
            !(had_some && list.is_empty())
        });
        if groups.is_empty() {
            hooks.remove(hook.name());
        }
    }
    if hooks.is_empty()
        && let Some(settings) = settings.as_object_mut()
    {
        settings.remove(HOOKS);
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "$HOME/.local/bin/ai-agent";

    /// Settings of a user with other hooks and an unusual order and formatting.
    const OWN: &str = r#"{
    "model" : "opus",
    "hooks": {
        "UserPromptSubmit": [
            { "hooks": [ { "type": "command", "command": "notes check" } ] }
        ],
        "Stop": []
    },
    "env": { "A": "1", "B": 1.50e3 }
}
"#;

    #[test]
    fn install_adds_hooks_and_changes_nothing_else() {
        let with = install(OWN, PROGRAM).unwrap();
        let settings = inspect(&with).unwrap();
        let names: Vec<_> = settings.ours.iter().map(|ours| ours.hook.name()).collect();
        assert_eq!(names, ["SessionStart", "UserPromptSubmit"]);
        assert_eq!(settings.ours[0].command, "$HOME/.local/bin/ai-agent check --hook SessionStart");
        assert_eq!(settings.ours[0].matcher, None, "a matcher would miss forks");
        for own in ["\"model\" : \"opus\"", "notes check", "1.50e3", "\"Stop\": []"] {
            assert!(with.contains(own), "{own}: {with}");
        }
        assert!(with.contains("\"timeout\": 10"));
        assert_eq!(install(&with, PROGRAM).unwrap(), with, "a second time changes nothing");
        assert_eq!(uninstall(&with).unwrap(), OWN);
        assert_eq!(uninstall(OWN).unwrap(), OWN);
    }

    #[test]
    fn install_fills_empty_files_and_updates_a_moved_program() {
        for empty in ["", " \n", "{}", "{\n}\n"] {
            let with = install(empty, PROGRAM).unwrap();
            assert_eq!(inspect(&with).unwrap().ours.len(), 2, "{empty:?}: {with}");
            let moved = install(&with, "\"/opt/my tools/ai-agent\"").unwrap();
            let settings = inspect(&moved).unwrap();
            assert_eq!(settings.ours.len(), 2);
            assert_eq!(program_of(&settings.ours[1].command), "/opt/my tools/ai-agent");
            let remaining: Value = serde_json::from_str(&uninstall(&moved).unwrap()).unwrap();
            assert_eq!(remaining, serde_json::json!({}));
        }
    }

    #[test]
    fn uninstall_leaves_the_text_that_install_found() {
        for own in [
            "{}",
            "{}\n",
            "{\n\t\"a\": 1\n}\n",
            "{\n    \"a\": 1\n}",
            "{\r\n  \"a\": 1,\r\n  \"b\": [\r\n  ]\r\n}\r\n",
        ] {
            let with = install(own, PROGRAM).unwrap();
            assert!(is_without_ours(own, &with) && !is_without_ours(&with, &with), "{own:?}");
            assert_eq!(uninstall(&with).unwrap(), own, "{own:?}");
        }
        let made = install("", PROGRAM).unwrap();
        assert!(is_only_ours(&made) && !is_only_ours("{}"));
        assert!(!is_only_ours(&install("{\"a\":1}", PROGRAM).unwrap()));
    }

    #[test]
    fn uninstall_keeps_other_hooks_of_a_shared_group() {
        let shared = r#"{"hooks":{"SessionStart":[{"matcher":"startup","hooks":[{"type":"command","command":"a"},{"type":"command","command":"C:\\x\\ai-agent.exe check --hook SessionStart"}]}]}}"#;
        let settings = inspect(shared).unwrap();
        assert_eq!(settings.ours[0].matcher.as_deref(), Some("startup"));
        let without: Value = serde_json::from_str(&uninstall(shared).unwrap()).unwrap();
        let expected = serde_json::json!({"hooks":{"SessionStart":[
            {"matcher":"startup","hooks":[{"type":"command","command":"a"}]}]}});
        assert_eq!(without, expected);
    }

    #[test]
    fn hook_with_separate_arguments_is_recognized() {
        let text = r#"{"hooks":{"UserPromptSubmit":[{"hooks":[{"type":"command","command":"C:\\P F\\ai-agent.exe","args":["check","--hook","UserPromptSubmit"]}]}]}}"#;
        let settings = inspect(text).unwrap();
        assert_eq!(program_of(&settings.ours[0].command), r"C:\P F\ai-agent.exe");
        let with = inspect(&install(text, PROGRAM).unwrap()).unwrap();
        let commands: Vec<_> = with.ours.iter().map(|ours| ours.command.as_str()).collect();
        let own = r"C:\P F\ai-agent.exe check --hook UserPromptSubmit";
        assert_eq!(commands, ["$HOME/.local/bin/ai-agent check --hook SessionStart", own]);
        let without: Value = serde_json::from_str(&uninstall(text).unwrap()).unwrap();
        assert_eq!(without, serde_json::json!({}));
    }

    #[test]
    fn files_that_cannot_be_edited_safely_are_refused() {
        for (text, words) in [
            ("{", "not valid JSON"),
            ("{\"a\":1,}", "not valid JSON"),
            ("// note\n{}", "not valid JSON"),
            ("[]", "`the top level` is not an object"),
            (r#"{"hooks":[]}"#, "`hooks` is not an object"),
            (r#"{"hooks":{"SessionStart":{}}}"#, "`hooks.SessionStart` is not a list"),
            (r#"{"hooks":{"Stop":[1]},"hooks":{}}"#, "cannot edit only"),
        ] {
            let error = install(text, PROGRAM).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn settings_that_disable_hooks_are_found() {
        let settings = |text| inspect(text).unwrap();
        assert!(settings(r#"{"disableAllHooks":true}"#).disables_all);
        assert!(!settings(r#"{"disableAllHooks":"yes"}"#).disables_all);
        assert!(settings(r#"{"allowManagedHooksOnly":true}"#).managed_only);
        assert!(settings(r#"{"allowManagedHooksOnly":"odd"}"#).managed_only);
        assert!(!settings(r#"{"allowManagedHooksOnly":false}"#).managed_only);
        assert_eq!(settings("{}"), HookSettings::default());
        let other = r#"{"hooks":{"SessionStart":[{"hooks":[{"command":"not-ai-agent check --hook SessionStart"}]}]}}"#;
        assert_eq!(settings(other), HookSettings::default());
    }
}
