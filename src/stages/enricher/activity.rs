//! Says what happened in a record, in fields that rules can match.
//!
//! The raw record of a client changes with each release. This enricher reads it once, without a tree,
//! and adds a small flat object with names of OpenTelemetry's GenAI conventions and of ECS.
//! `docs/activity.md` lists the fields. Text of the conversation is not copied: of a prompt only the
//! length. Records that are not understood get fewer fields or none.

mod cursor;
mod memory;
mod output;
mod reading;
#[cfg(test)]
mod tests;
mod tools;

use std::{borrow::Cow, time::SystemTime};

use ai_agent_stage::{BuildError, Context, FileKey};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;
use siem_protocol::Content as LineContent;

use self::{
    cursor::plain,
    memory::{KnownCall, Memory, TurnRecord},
    output::{Field, Output},
    reading::{Attachment, Content, Members, ToolResult},
    tools::Kind,
};
use super::{Enricher, EnricherOptions, Plugin, Record};

inventory::submit! {
    Plugin::enricher::<Options>(
        "activity",
        "Says what happened: actor, model, tokens, tool, command, path, URL, outcome.",
        "",
    )
}

/// The enricher has no options.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {}

impl EnricherOptions for Options {
    type Enricher = Activity;

    fn build(self, _context: &Context) -> Result<Activity, BuildError> {
        Ok(Activity::default())
    }
}

/// Reads records and remembers calls and turns.
#[derive(Default)]
struct Activity {
    memory: Memory,
    output: Output,
}

const SESSION: Field = Field::new("gen_ai.conversation.id", 128);
const AGENT_VERSION: Field = Field::new("gen_ai.agent.version", 64);
const AGENT_ID: Field = Field::new("gen_ai.agent.id", 128);
const PERMISSION_MODE: Field = Field::new("ai_agent.permission_mode", 64);
const WORKING_DIRECTORY: Field = Field::new("process.working_directory", 1024);
const BRANCH: Field = Field::new("vcs.ref.head.name", 256);
const MODEL: Field = Field::new("gen_ai.response.model", 128);
const RESPONSE_ID: Field = Field::new("gen_ai.response.id", 128);
const TOOL_NAME: Field = Field::new("gen_ai.tool.name", 128);
const CALL_ID: Field = Field::new("gen_ai.tool.call.id", 128);
const TOOL_KIND: Field = Field::new("ai_agent.tool.kind", 16);
const COMMAND_LINE: Field = Field::command("process.command_line", 8192);
const FILE_PATH: Field = Field::new("file.path", 1024);
const URL: Field = Field::new("url.full", 2048);
const DOMAIN: Field = Field::new("url.domain", 256);
const MCP_SERVER: Field = Field::new("ai_agent.mcp.server", 128);
const OUTCOME: Field = Field::new("event.outcome", 16);
const DECISION: Field = Field::new("ai_agent.tool.decision", 64);
const DECISION_SOURCE: Field = Field::new("ai_agent.tool.decision_source", 64);

/// Model in messages that the client wrote itself.
const NO_MODEL: &str = "<synthetic>";

impl Enricher for Activity {
    fn enrich(&mut self, record: &Record<'_>) -> Option<&RawValue> {
        serde_json::from_str(self.read(record)?).ok()
    }

    fn append(&mut self, record: &Record<'_>, json: &mut String) -> bool {
        let object = self.read(record);
        json.push_str(object.unwrap_or_default());
        object.is_some()
    }

    fn commit(&mut self) {
        self.memory.commit();
    }

    fn forget(&mut self, file: FileKey) {
        self.memory.forget(file);
    }
}

impl Activity {
    /// Returns the object for a record.
    fn read(&mut self, record: &Record<'_>) -> Option<&str> {
        let line = readable(record)?;
        let kind = record.kind().or_else(|| role(record, line))?;
        self.output.start();
        let file = record.origin().file;
        match &*kind {
            "user" => self.user(file, &Members::read(line), record.offset()),
            "assistant" => self.assistant(file, &Members::read(line), record.offset()),
            "system" => self.system(file, &Members::read(line), record.offset()),
            "attachment" => self.attachment(file, &Members::read(line), record.offset()),
            "permission-mode" => {
                let members = Members::read(line);
                self.begin("permission_mode", Actor::System);
                self.base(file, &members, record.offset());
            }
            // Records of the client about itself, half of all bytes: only their session is read.
            _ => self.bookkeeping(line)?,
        }
        self.output.finish()
    }
}

/// Returns the line of a record that is a JSON object, or the text at the start of a longer one.
fn readable<'a>(record: &Record<'a>) -> Option<&'a str> {
    if record.is_partial() {
        return record.line().utf8_chunks().next().map(|chunk| chunk.valid());
    }
    if !record.is_object() {
        return None;
    }
    match record.content() {
        // The text was checked when the record was scanned.
        LineContent::Json(text) => Some(text),
        _ => std::str::from_utf8(record.line()).ok(),
    }
}

/// Returns the role of the message, which is the type of the record, if the type comes after the end
/// of the first part: the client writes it after the message of the model.
fn role<'a>(record: &Record<'_>, line: &'a str) -> Option<Cow<'a, str>> {
    record.is_partial().then(|| Members::read(line).message.role.map(plain))?
}

/// Who did something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Actor {
    User,
    Assistant,
    Tool,
    System,
}

impl Activity {
    fn begin(&mut self, action: &'static str, actor: Actor) {
        self.output.word("event.action", action);
        let actor = match actor {
            Actor::User => "user",
            Actor::Assistant => "assistant",
            Actor::Tool => "tool",
            Actor::System => "system",
        };
        self.output.word("ai_agent.actor", actor);
    }

    /// Adds the fields that any record may have.
    fn base(&mut self, file: FileKey, members: &Members<'_>, offset: u64) {
        let turn = self.turn(file, members, offset, false);
        self.base_in(turn, members);
    }

    fn base_in(&mut self, turn: Option<u64>, members: &Members<'_>) {
        let output = &mut self.output;
        output.text(SESSION, members.session);
        if members.version.is_some() {
            output.word("gen_ai.agent.name", "claude-code");
        }
        output.text(AGENT_VERSION, members.version);
        output.text(AGENT_ID, members.agent_id);
        if let Some(turn) = turn {
            output.integer("ai_agent.turn", turn);
        }
        output.text(PERMISSION_MODE, members.permission_mode);
        output.text(WORKING_DIRECTORY, members.cwd);
        output.text(BRANCH, members.branch);
    }

    /// Returns the turn of a record, which a prompt starts. Sub-agents have none.
    fn turn(
        &mut self,
        file: FileKey,
        members: &Members<'_>,
        offset: u64,
        is_prompt: bool,
    ) -> Option<u64> {
        if members.is_sidechain {
            return None;
        }
        let record = TurnRecord {
            offset,
            is_first: members.is_root || offset == 0,
            stated: members.turn_index,
            is_prompt,
        };
        self.memory.turn(file, record)
    }

    /// A prompt, the results of tools, or text that the client puts into the conversation.
    fn user(&mut self, file: FileKey, members: &Members<'_>, offset: u64) {
        let content = &members.message.content;
        if !content.results.is_empty() {
            self.begin("tool_result", Actor::Tool);
            self.base(file, members, offset);
            return self.results(file, members, offset);
        }
        let said = Said::by_user(members);
        let actor = match said {
            Said::Notice | Said::Compaction => Actor::System,
            _ if members.is_sidechain => Actor::Assistant,
            _ => Actor::User,
        };
        self.begin(said.action(), actor);
        let turn = self.turn(file, members, offset, said.starts_turn());
        self.base_in(turn, members);
        match said {
            Said::Prompt => {
                let length = content.texts.iter().map(|text| output::characters(text)).sum();
                self.output.integer("ai_agent.prompt.length", length);
            }
            Said::Shell(command) => self.output.text(COMMAND_LINE, Some(command)),
            Said::Command(_) | Said::Interrupt | Said::Notice | Said::Compaction => {}
        }
    }

    /// A block of a response, or several.
    fn assistant(&mut self, file: FileKey, members: &Members<'_>, offset: u64) {
        let message = &members.message;
        let content = &message.content;
        let is_synthetic = message.model == Some(NO_MODEL);
        let (action, actor) = if members.is_api_error {
            ("api_error", Actor::System)
        } else if is_synthetic {
            ("notice", Actor::System)
        } else if !content.calls.is_empty() {
            ("tool_call", Actor::Assistant)
        } else if !content.results.is_empty() {
            ("tool_result", Actor::Tool)
        } else if content.texts.is_empty() && content.has_thinking {
            ("thinking", Actor::Assistant)
        } else {
            ("response", Actor::Assistant)
        };
        self.begin(action, actor);
        self.base(file, members, offset);
        if members.is_api_error {
            self.output.word("event.outcome", "failure");
        }
        if is_synthetic {
            return;
        }
        self.output.text(MODEL, message.model);
        self.output.text(RESPONSE_ID, message.id);
        if let Some(usage) = message.usage {
            let tokens = [
                ("gen_ai.usage.input_tokens", usage.all_input()),
                ("gen_ai.usage.cache_read.input_tokens", usage.cache_read),
                ("gen_ai.usage.cache_creation.input_tokens", usage.cache_creation),
                ("gen_ai.usage.output_tokens", usage.output),
            ];
            for (name, tokens) in tokens {
                if let Some(tokens) = tokens {
                    self.output.integer(name, tokens);
                }
            }
        }
        if content.calls.is_empty() {
            self.results(file, members, offset);
        } else {
            self.calls(file, members, offset);
        }
    }

    fn calls(&mut self, file: FileKey, members: &Members<'_>, offset: u64) {
        let Content { calls, has_more, .. } = &members.message.content;
        let at = time(members);
        for call in calls {
            if let (Some(id), Some(name)) = (call.id, call.name) {
                let call = KnownCall { offset, name: name.into(), kind: Kind::of(name), at };
                self.memory.call(file, id, call);
            }
        }
        let output = &mut self.output;
        let names = || calls.iter().filter_map(|call| call.name);
        output.texts(TOOL_NAME, names());
        output.texts(CALL_ID, calls.iter().filter_map(|call| call.id));
        output.texts(TOOL_KIND, names().map(|name| Kind::of(name).word()));
        output.texts(COMMAND_LINE, calls.iter().filter_map(|call| call.command));
        output.texts(FILE_PATH, calls.iter().flat_map(|call| call.paths).flatten());
        let urls = || calls.iter().flat_map(|call| call.urls).flatten();
        output.texts(URL, urls());
        let hosts: Vec<String> = urls().filter_map(tools::host).collect();
        output.texts(DOMAIN, hosts.iter().map(String::as_str));
        let servers =
            calls.iter().filter_map(|call| call.server.or(call.name.and_then(tools::mcp_server)));
        output.texts(MCP_SERVER, servers);
        if *has_more {
            output.mark("gen_ai.tool.name");
        }
    }

    fn results(&mut self, file: FileKey, members: &Members<'_>, offset: u64) {
        let Content { results, has_more, .. } = &members.message.content;
        if results.is_empty() {
            return;
        }
        let at = time(members);
        let (mut names, mut kinds, mut servers) = (Vec::new(), Vec::new(), Vec::new());
        let mut duration = None;
        let mut has_approved_plan = false;
        for result in results {
            let Some(call) = result.id.and_then(|id| self.memory.call_of(file, id, offset)) else {
                continue;
            };
            duration = at.zip(call.at).and_then(|(end, start)| end.duration_since(start).ok());
            has_approved_plan |= result.approves_plan(&call.name);
            kinds.push(call.kind.word());
            servers.extend(tools::mcp_server(&call.name).map(str::to_owned));
            names.push(call.name.clone());
        }
        let output = &mut self.output;
        output.texts(TOOL_NAME, names.iter().map(|name| &**name));
        output.texts(CALL_ID, results.iter().filter_map(|result| result.id));
        output.texts(TOOL_KIND, kinds.into_iter());
        output.texts(MCP_SERVER, servers.iter().map(String::as_str));
        if let (Some(duration), [_]) = (duration, &results[..]) {
            let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            output.integer("event.duration", nanos);
        }
        let outcome = |result: &ToolResult<'_>| if result.is_error { "failure" } else { "success" };
        output.texts(OUTCOME, results.iter().map(outcome));
        if *has_more {
            output.mark("gen_ai.tool.call.id");
        }
        self.decision(members, has_approved_plan);
    }

    /// Adds who decided that the tool may run, as far as the record says it.
    fn decision(&mut self, members: &Members<'_>, has_approved_plan: bool) {
        let decision = &members.decision;
        let refusal = members.message.content.results.iter().find_map(|result| {
            let texts = [result.text, members.result_text];
            texts.into_iter().flatten().filter(|_| result.is_error).find_map(refusal)
        });
        let (word, source) = match (decision.decision, refusal) {
            (Some(word), _) => (word, decision.source),
            (None, Some(source)) => ("reject", Some(source)),
            (None, None) if decision.is_denial => ("reject", None),
            (None, None) if has_approved_plan => ("accept", None),
            (None, None) => return,
        };
        self.output.text(DECISION, Some(word));
        self.output.text(DECISION_SOURCE, source);
        let was_approved = match (word, source) {
            ("accept", _) if has_approved_plan => true,
            ("accept", Some("user_temporary")) => true,
            // A rule that the user once saved, or one that the user saves with this answer.
            ("accept", Some("user_permanent")) => decision.reason != Some("rule"),
            ("accept", None) => return,
            _ => false,
        };
        self.output.flag("ai_agent.tool.person_approved", was_approved);
    }

    /// A message of the client.
    fn system(&mut self, file: FileKey, members: &Members<'_>, offset: u64) {
        let is_command = members.content.is_some_and(|text| text.starts_with("<command-name>"));
        let subtype = members.subtype.map(plain);
        let (action, actor) = match subtype.as_deref() {
            Some("compact_boundary" | "microcompact_boundary") => ("compaction", Actor::System),
            Some("api_error") => ("api_error", Actor::System),
            Some("stop_hook_summary") => ("hook", Actor::System),
            Some("local_command") if is_command => ("command", Actor::User),
            Some("local_command") => ("notice", Actor::System),
            _ => ("system", Actor::System),
        };
        self.begin(action, actor);
        self.base(file, members, offset);
        self.output.texts(COMMAND_LINE, members.hook_commands.iter().copied());
        if let Some(millis) = members.duration_ms {
            self.output.integer("event.duration", nanos(millis));
        }
        if action == "api_error" {
            self.output.word("event.outcome", "failure");
        }
    }

    /// Something that the client attached to a prompt or a result.
    fn attachment(&mut self, file: FileKey, members: &Members<'_>, offset: u64) {
        let Attachment { kind, file: path, command, prompt, duration_ms, names } =
            &members.attachment;
        let kind = kind.map(plain);
        let kind = kind.as_deref().unwrap_or_default();
        let queued = prompt.filter(|text| kind == "queued_command" && !is_notice(text));
        let (action, actor) = match kind {
            _ if queued.is_some() => ("prompt", Actor::User),
            "mcp_instructions_delta" => ("mcp_servers", Actor::System),
            _ if kind.starts_with("hook_") => ("hook", Actor::System),
            _ => ("attachment", Actor::System),
        };
        self.begin(action, actor);
        self.base(file, members, offset);
        if let Some(text) = queued {
            self.output.integer("ai_agent.prompt.length", output::characters(text));
        }
        self.output.text(FILE_PATH, *path);
        match action {
            "mcp_servers" => self.output.texts(MCP_SERVER, names.iter().copied()),
            "hook" => {
                self.output.text(COMMAND_LINE, *command);
                if let Some(millis) = duration_ms {
                    self.output.integer("event.duration", nanos(*millis));
                }
                match kind {
                    "hook_success" => self.output.word("event.outcome", "success"),
                    _ if kind.contains("error") || kind == "hook_cancelled" => {
                        self.output.word("event.outcome", "failure");
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// A record of the client about itself.
    fn bookkeeping(&mut self, line: &str) -> Option<()> {
        let session = reading::session(line)?;
        self.begin("bookkeeping", Actor::System);
        self.output.text(SESSION, Some(session));
        Some(())
    }
}

/// What a `user` record without results of tools says.
#[derive(Clone, Copy)]
enum Said<'a> {
    Prompt,
    /// A slash command, and whether it is a prompt that the user has under a name: the client answers
    /// the others itself.
    Command(bool),
    /// A command that the user gave to a shell.
    Shell(&'a str),
    Interrupt,
    Notice,
    Compaction,
}

impl<'a> Said<'a> {
    fn by_user(members: &Members<'a>) -> Self {
        if members.is_compact_summary {
            return Self::Compaction;
        }
        let first = members.message.content.texts.first().copied().unwrap_or_default();
        if let Some(rest) = first.strip_prefix("<bash-input>") {
            return Self::Shell(rest.split("</bash-input>").next().unwrap_or(rest));
        }
        if members.is_meta || is_notice(first) {
            Self::Notice
        } else if first.starts_with("<command-") {
            Self::Command(first.starts_with("<command-message>"))
        } else if first.starts_with("[Request interrupted by user") {
            Self::Interrupt
        } else {
            Self::Prompt
        }
    }

    fn starts_turn(self) -> bool {
        matches!(self, Self::Prompt | Self::Command(true))
    }

    fn action(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Command(_) => "command",
            Self::Shell(_) => "shell_command",
            Self::Interrupt => "interrupt",
            Self::Notice => "notice",
            Self::Compaction => "compaction",
        }
    }
}

/// Reports whether a text is one that the client puts into the conversation.
fn is_notice(text: &str) -> bool {
    const STARTS: [&str; 6] = [
        "<local-command-",
        "<bash-stdout>",
        "<bash-stderr>",
        "<task-notification>",
        "<system-reminder>",
        "Caveat: ",
    ];
    STARTS.iter().any(|start| text.starts_with(start))
}

/// Returns who refused, from the text that the client writes in place of the output.
fn refusal(text: &str) -> Option<&'static str> {
    const TEXTS: [(&str, &str); 3] = [
        ("The user doesn't want to ", "user_reject"),
        ("User rejected tool use", "user_reject"),
        ("[Request interrupted by user", "user_abort"),
    ];
    let text = text.strip_prefix("Error: ").unwrap_or(text);
    let found = TEXTS.iter().find(|(start, _)| text.starts_with(start));
    found.map(|(_, source)| *source)
}

impl ToolResult<'_> {
    /// Reports whether a person approved a plan. The client says so in the result.
    fn approves_plan(&self, tool: &str) -> bool {
        !self.is_error
            && matches!(tool, "ExitPlanMode" | "exit_plan_mode")
            && self.text.is_some_and(|text| text.starts_with("User has approved your plan"))
    }
}

/// Time of a record.
fn time(members: &Members<'_>) -> Option<SystemTime> {
    humantime::parse_rfc3339(members.timestamp?).ok()
}

fn nanos(millis: u64) -> u64 {
    millis.saturating_mul(1_000_000)
}
