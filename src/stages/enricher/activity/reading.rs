//! The members of a record that the enricher uses, read in one pass and borrowed from the line.
//!
//! If a member occurs twice, the last one counts, as for every filter. A member of another type is
//! absent. Texts are the inside of JSON strings, with their escapes.

use super::{
    cursor::{Cursor, plain},
    output::MAX_VALUES,
};

/// Members of a record of the types `user`, `assistant`, `system`, `attachment` and
/// `permission-mode`.
#[derive(Default)]
pub(super) struct Members<'a> {
    pub(super) session: Option<&'a str>,
    pub(super) version: Option<&'a str>,
    pub(super) agent_id: Option<&'a str>,
    pub(super) permission_mode: Option<&'a str>,
    pub(super) cwd: Option<&'a str>,
    pub(super) branch: Option<&'a str>,
    pub(super) timestamp: Option<&'a str>,
    pub(super) subtype: Option<&'a str>,
    /// Text of a `system` record.
    pub(super) content: Option<&'a str>,
    pub(super) duration_ms: Option<u64>,
    pub(super) turn_index: Option<u64>,
    pub(super) is_sidechain: bool,
    pub(super) is_meta: bool,
    pub(super) is_compact_summary: bool,
    pub(super) is_api_error: bool,
    /// True for the first record of a conversation: `parentUuid` is null, and the record continues no
    /// other one.
    pub(super) is_root: bool,
    has_logical_parent: bool,
    pub(super) hook_commands: Vec<&'a str>,
    pub(super) decision: Decision<'a>,
    /// Text of `toolUseResult`, which is an object unless the tool failed.
    pub(super) result_text: Option<&'a str>,
    pub(super) message: Message<'a>,
    pub(super) attachment: Attachment<'a>,
}

/// `permissionDecision` and `toolDenialKind`.
#[derive(Default)]
pub(super) struct Decision<'a> {
    pub(super) decision: Option<&'a str>,
    pub(super) source: Option<&'a str>,
    pub(super) reason: Option<&'a str>,
    pub(super) is_denial: bool,
}

/// `message`.
#[derive(Default)]
pub(super) struct Message<'a> {
    pub(super) role: Option<&'a str>,
    pub(super) id: Option<&'a str>,
    pub(super) model: Option<&'a str>,
    pub(super) usage: Option<Usage>,
    pub(super) content: Content<'a>,
}

/// `message.usage`, in tokens.
#[derive(Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) input: Option<u64>,
    pub(super) cache_read: Option<u64>,
    pub(super) cache_creation: Option<u64>,
    pub(super) output: Option<u64>,
}

/// `message.content`: a text, or blocks.
#[derive(Default)]
pub(super) struct Content<'a> {
    /// The texts, which are more than one only in rare records.
    pub(super) texts: Vec<&'a str>,
    pub(super) has_thinking: bool,
    pub(super) calls: Vec<Call<'a>>,
    pub(super) results: Vec<ToolResult<'a>>,
    /// True if there are more calls or results than are kept.
    pub(super) has_more: bool,
}

/// A call of a tool.
#[derive(Default)]
pub(super) struct Call<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) name: Option<&'a str>,
    pub(super) server: Option<&'a str>,
    pub(super) command: Option<&'a str>,
    pub(super) paths: [Option<&'a str>; 3],
    pub(super) urls: [Option<&'a str>; 2],
}

/// The result of a call.
#[derive(Default)]
pub(super) struct ToolResult<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) is_error: bool,
    /// The output, or the first text of it.
    pub(super) text: Option<&'a str>,
}

/// `attachment`.
#[derive(Default)]
pub(super) struct Attachment<'a> {
    pub(super) kind: Option<&'a str>,
    pub(super) file: Option<&'a str>,
    pub(super) command: Option<&'a str>,
    pub(super) prompt: Option<&'a str>,
    pub(super) duration_ms: Option<u64>,
    pub(super) names: Vec<&'a str>,
}

impl<'a> Members<'a> {
    /// Reads the members of `line`, which may be the first part of a longer one.
    pub(super) fn read(line: &'a str) -> Self {
        let mut members = Self::default();
        Cursor::new(line).object(|cursor, key| members.member(cursor, key));
        members.is_root &= !members.has_logical_parent;
        members
    }

    fn member(&mut self, cursor: &mut Cursor<'a>, key: &str) {
        match key {
            "sessionId" => self.session = cursor.string(),
            "version" => self.version = cursor.string(),
            "agentId" => self.agent_id = cursor.string(),
            "permissionMode" => self.permission_mode = cursor.string(),
            "cwd" => self.cwd = cursor.string(),
            "gitBranch" => self.branch = cursor.string(),
            "timestamp" => self.timestamp = cursor.string(),
            "subtype" => self.subtype = cursor.string(),
            "content" => self.content = cursor.string(),
            "durationMs" => self.duration_ms = cursor.integer(),
            "isSidechain" => self.is_sidechain = cursor.is_true(),
            "isMeta" => self.is_meta = cursor.is_true(),
            "isCompactSummary" => self.is_compact_summary = cursor.is_true(),
            "isApiErrorMessage" => self.is_api_error = cursor.is_true(),
            "parentUuid" => self.is_root = cursor.is_null(),
            "logicalParentUuid" => self.has_logical_parent = !cursor.is_null(),
            "turnPosition" => self.turn_index = turn_index(cursor),
            "hookInfos" => self.hook_commands = hook_commands(cursor),
            "permissionDecision" => self.decision.read(cursor),
            "toolDenialKind" => self.decision.is_denial = cursor.string().is_some(),
            "toolUseResult" => self.result_text = cursor.string(),
            "message" => self.message = Message::read(cursor),
            "attachment" => self.attachment = Attachment::read(cursor),
            _ => cursor.skip(),
        }
    }
}

/// Reads the session of a record of any type.
pub(super) fn session(line: &str) -> Option<&str> {
    let mut session = None;
    Cursor::new(line).object(|cursor, key| match key {
        "sessionId" => session = cursor.string(),
        _ => cursor.skip(),
    });
    session
}

fn turn_index(cursor: &mut Cursor<'_>) -> Option<u64> {
    let mut index = None;
    cursor.object(|cursor, key| match key {
        "turnIndex" => index = cursor.integer(),
        _ => cursor.skip(),
    });
    index
}

fn hook_commands<'a>(cursor: &mut Cursor<'a>) -> Vec<&'a str> {
    let mut commands = Vec::new();
    cursor.array(|cursor| {
        let mut command = None;
        cursor.object(|cursor, key| match key {
            "command" => command = cursor.string(),
            _ => cursor.skip(),
        });
        push(&mut commands, command);
    });
    commands
}

/// Adds a value. One more than the limit is kept, so that the output sees that there are too many.
fn push<'a>(values: &mut Vec<&'a str>, value: Option<&'a str>) {
    if values.len() <= MAX_VALUES {
        values.extend(value);
    }
}

impl<'a> Decision<'a> {
    fn read(&mut self, cursor: &mut Cursor<'a>) {
        *self = Self { is_denial: self.is_denial, ..Self::default() };
        cursor.object(|cursor, key| match key {
            "decision" => self.decision = cursor.string(),
            "source" => self.source = cursor.string(),
            "reasonType" => self.reason = cursor.string(),
            _ => cursor.skip(),
        });
    }
}

impl<'a> Message<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Self {
        let mut message = Self::default();
        cursor.object(|cursor, key| match key {
            "role" => message.role = cursor.string(),
            "id" => message.id = cursor.string(),
            "model" => message.model = cursor.string(),
            "usage" => message.usage = Usage::read(cursor),
            "content" => message.content = Content::read(cursor),
            _ => cursor.skip(),
        });
        message
    }
}

impl Usage {
    fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        let mut usage = Self::default();
        let is_object = cursor.first_byte() == Some(b'{');
        cursor.object(|cursor, key| match key {
            "input_tokens" => usage.input = cursor.integer(),
            "cache_read_input_tokens" => usage.cache_read = cursor.integer(),
            "cache_creation_input_tokens" => usage.cache_creation = cursor.integer(),
            "output_tokens" => usage.output = cursor.integer(),
            _ => cursor.skip(),
        });
        is_object.then_some(usage)
    }

    /// All input tokens, as the convention counts them: with those from and for the cache.
    pub(super) fn all_input(self) -> Option<u64> {
        let parts = [self.input, self.cache_read, self.cache_creation];
        parts.into_iter().flatten().reduce(u64::saturating_add)
    }
}

impl<'a> Content<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Self {
        let mut content = Self::default();
        if cursor.first_byte() == Some(b'[') {
            cursor.array(|cursor| content.add(Block::read(cursor)));
        } else {
            content.texts.extend(cursor.string());
        }
        content
    }

    fn add(&mut self, block: Block<'a>) {
        let kind = block.kind.map(plain);
        match kind.as_deref() {
            // All texts are kept: their length is that of the prompt.
            Some("text") => self.texts.extend(block.text),
            Some("thinking" | "redacted_thinking") => self.has_thinking = true,
            Some("tool_use" | "server_tool_use" | "mcp_tool_use") => {
                if self.calls.len() < MAX_VALUES {
                    self.calls.push(block.call);
                } else {
                    self.has_more = true;
                }
            }
            Some(kind) if kind.ends_with("tool_result") => {
                if self.results.len() < MAX_VALUES {
                    self.results.push(block.result);
                } else {
                    self.has_more = true;
                }
            }
            _ => {}
        }
    }
}

/// A block of `message.content`. Which of its members count is known once its type is, which may come
/// last.
#[derive(Default)]
struct Block<'a> {
    kind: Option<&'a str>,
    text: Option<&'a str>,
    call: Call<'a>,
    result: ToolResult<'a>,
}

impl<'a> Block<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Self {
        let mut block = Self::default();
        cursor.object(|cursor, key| match key {
            "type" => block.kind = cursor.string(),
            "text" => block.text = cursor.string(),
            "id" => block.call.id = cursor.string(),
            "name" => block.call.name = cursor.string(),
            "server_name" => block.call.server = cursor.string(),
            "input" => block.call.read_input(cursor),
            "tool_use_id" => block.result.id = cursor.string(),
            "is_error" => block.result.is_error = cursor.is_true(),
            "content" => block.result.text = first_text(cursor),
            _ => cursor.skip(),
        });
        block
    }
}

impl<'a> Call<'a> {
    fn read_input(&mut self, cursor: &mut Cursor<'a>) {
        let server = self.server;
        *self = Self { id: self.id, name: self.name, server, ..Self::default() };
        cursor.object(|cursor, key| match key {
            "command" => self.command = cursor.string(),
            "file_path" => self.paths[0] = cursor.string(),
            "notebook_path" => self.paths[1] = cursor.string(),
            "path" => self.paths[2] = cursor.string(),
            "url" => self.urls[0] = cursor.string(),
            "uri" => self.urls[1] = cursor.string(),
            "server" => self.server = cursor.string(),
            _ => cursor.skip(),
        });
    }
}

/// Reads a text, or the first text of an array of blocks.
fn first_text<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    if cursor.first_byte() != Some(b'[') {
        return cursor.string();
    }
    let mut first = None;
    cursor.array(|cursor| {
        let mut text = None;
        cursor.object(|cursor, key| match key {
            "text" => text = cursor.string(),
            _ => cursor.skip(),
        });
        first = first.or(text);
    });
    first
}

impl<'a> Attachment<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Self {
        let mut attachment = Self::default();
        cursor.object(|cursor, key| match key {
            "type" => attachment.kind = cursor.string(),
            "filename" | "path" => attachment.file = cursor.string(),
            "command" => attachment.command = cursor.string(),
            "prompt" => attachment.prompt = cursor.string(),
            "durationMs" => attachment.duration_ms = cursor.integer(),
            "addedNames" => {
                attachment.names.clear();
                cursor.array(|cursor| {
                    let name = cursor.string();
                    push(&mut attachment.names, name);
                });
            }
            _ => cursor.skip(),
        });
        attachment
    }
}
