//! Names, types and meanings of all fields.
//!
//! `docs/siem/fields.md` is written from this table. ECS names are those of the
//! [field reference](https://www.elastic.co/docs/reference/ecs/ecs-field-reference), OpenTelemetry
//! names those of the [attribute registry](https://opentelemetry.io/docs/specs/semconv/registry/attributes/);
//! what neither of them names starts with `ai_agent.`.

/// Type of a field's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A string to compare as a whole.
    Keyword,
    /// A string that is not indexed.
    Text,
    /// A non-negative integer.
    Number,
    /// True or false.
    Bool,
    /// A time, RFC 3339 in UTC with milliseconds; nanoseconds since 1970 in OpenTelemetry.
    Time,
    /// A JSON object or array; in OpenTelemetry its text.
    Json,
}

/// A field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name in ECS; `None` if it is not sent with these names.
    pub ecs: Option<&'static str>,
    /// Name in OpenTelemetry; `None` if it is not sent with these names.
    pub otel: Option<&'static str>,
    /// Type of the values.
    pub kind: Type,
    /// Meaning, for the documentation.
    pub meaning: &'static str,
    /// Example, for the documentation.
    pub example: &'static str,
}

macro_rules! fields {
    ($($name:ident: $ecs:expr, $otel:expr, $kind:ident, $meaning:literal, $example:literal;)*) => {
        $(
            pub(super) const $name: Field = Field {
                ecs: $ecs,
                otel: $otel,
                kind: Type::$kind,
                meaning: $meaning,
                example: $example,
            };
        )*

        /// All fields, in the order of the documentation.
        pub const ALL: &[Field] = &[$($name),*];
    };
}

const fn ecs(name: &'static str) -> Option<&'static str> {
    Some(name)
}

fields! {
    TIME: ecs("@timestamp"), Some("timeUnixNano"), Time,
        "Time of the event: `timestamp` of the record; the time of reading if it has none, or with `time = \"read\"`",
        "2026-11-21T20:00:00.000Z";
    ORIGINAL: ecs("event.original"), Some("body"), Text,
        "The record, byte for byte, but without its runs of NUL if there is `ai_agent.line.nul_runs`; for an event of the agent its `data`. Base64 if it is not UTF-8 (`bytesValue` in OpenTelemetry)",
        r#"{"type":"user","uuid":"1d0c…"}"#;
    ENCODING: ecs("ai_agent.encoding"), Some("ai_agent.encoding"), Keyword,
        "`base64` if the record is not UTF-8 and the protocol has no bytes; `json`, for a JSON string of it, if it is blank and the protocol refuses that (HEC); absent otherwise", "base64";
    OMITTED: ecs("ai_agent.omitted_fields"), None, Text,
        "Names of fields that are missing because they would take more than a quarter of the maximum size of an event",
        "process.command_line";
    ID: ecs("event.id"), Some("log.record.uid"), Keyword,
        "Stable id, the same whenever the entry is sent again: generation and offset of a record (and the number of its part), epoch and sequence number of an event of the agent. Events with the same id are duplicates",
        "01934f2e8a7c7d10b5e3a4c2d1f0e9b8:4096";
    HASH: ecs("event.hash"), Some("ai_agent.sha256"), Keyword,
        "SHA-256 of the record's bytes as sent, before it was cut into parts",
        "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    SEQUENCE: ecs("event.sequence"), Some("ai_agent.sequence"), Number,
        "Number of the entry in its epoch, without gaps: a missing number is a missing entry", "1042";
    CREATED: ecs("event.created"), Some("observedTimeUnixNano"), Time,
        "Time at which the agent read the record, or created the event", "2026-11-21T20:00:01.000Z";
    PROVIDER: ecs("event.provider"), Some("ai_agent.source"), Keyword,
        "Source that read the record; `agent` for events of the agent", "claude-sessions";
    DATASET: ecs("event.dataset"), Some("ai_agent.dataset"), Keyword,
        "`claude_code.session`, `ai_agent.auditd`, `ai_agent.event` (events of the agent) or `ai_agent.record` (other sources)",
        "claude_code.session";
    PART_OF: ecs("ai_agent.part.of"), Some("ai_agent.part.of"), Keyword,
        "Id of the whole event, if it was cut because the SIEM does not accept its size",
        "01934f2e8a7c7d10b5e3a4c2d1f0e9b8:4096";
    PART_INDEX: ecs("ai_agent.part.index"), Some("ai_agent.part.index"), Number,
        "Number of this part, from 1. The parts in order are the record", "2";
    PART_TOTAL: ecs("ai_agent.part.total"), Some("ai_agent.part.total"), Number,
        "Number of parts", "3";
    PATH: ecs("log.file.path"), Some("log.file.path"), Keyword,
        "Absolute path of the file when the record was read", "/home/dev/.claude/projects/-src/5f0d….jsonl";
    GENERATION: ecs("ai_agent.generation"), Some("ai_agent.generation"), Keyword,
        "Lifetime of the file: survives a rename, changes after a rewrite", "01934f2e8a7c7d10b5e3a4c2d1f0e9b8";
    OFFSET: ecs("log.offset"), Some("ai_agent.offset"), Number,
        "Offset of the line in the file, in bytes", "4096";
    LENGTH: ecs("ai_agent.line.length"), Some("ai_agent.line.length"), Number,
        "Length of the line in the file, in bytes, without its ending: the next line starts after it", "512";
    LINE_PART: ecs("ai_agent.line.part"), Some("ai_agent.line.part"), Number,
        "Number of the part, from 1, of a line longer than the source's `max_record_bytes`", "1";
    LINE_LAST: ecs("ai_agent.line.last"), Some("ai_agent.line.last"), Bool,
        "True for the last of these parts", "true";
    LINE_HASH: ecs("ai_agent.line.sha256"), Some("ai_agent.line.sha256"), Keyword,
        "SHA-256 of the line in the file, if a filter edited the record, or the line was read in parts or has runs of NUL (then up to 1 GiB)",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    LINE_FOLDED_HASH: ecs("ai_agent.line.folded_sha256"), Some("ai_agent.line.folded_sha256"), Keyword,
        "[Hash over data and runs](../events.md#runs-of-nul) of a line with runs of NUL",
        "d5c2a2b1d0b3f3e0c4a1b2f5a6e7d8c9b0a1f2e3d4c5b6a79889706152433425";
    NUL_RUNS: ecs("ai_agent.line.nul_runs"), Some("ai_agent.line.nul_runs"), Keyword,
        "Runs of 4096 and more NULs that `event.original` does not contain: the text of a JSON array with offset (in the whole content) and length of each. Absent if nothing was removed",
        "[[0,2147483648]]";
    INCOMPLETE: ecs("ai_agent.incomplete"), Some("ai_agent.incomplete"), Bool,
        "True if the line never got its newline", "true";
    ALTERED: ecs("ai_agent.altered"), Some("ai_agent.altered"), Bool,
        "True if the line was sent before, and again because bytes in or near it were altered", "true";
    CUT: ecs("ai_agent.cut"), Some("ai_agent.cut"), Json,
        "Filters that removed content, with the number of bytes", r#"[{"by":"tool-call","bytes":1200}]"#;
    MASKED: ecs("ai_agent.masked"), Some("ai_agent.masked"), Json,
        "Filters that masked content, with pattern and number of matches",
        r#"[{"by":"mask","pattern":"aws-key","count":1}]"#;
    ACTION: ecs("event.action"), Some("event.name"), Keyword,
        "Name of an event of the agent ([list](../events.md)). The enricher `activity` sets `event.action` of records",
        "file_rewritten";
    LEVEL: ecs("log.level"), Some("log.level"), Keyword,
        "Severity of an event of the agent: `info`, `warning` or `error`", "warning";
    AUDIT: ecs("ai_agent.audit"), Some("ai_agent.audit"), Json,
        "Facts that the source `auditd` read from the lines of the audit log", r#"{"exe":"/usr/bin/docker"}"#;
    LABELS: ecs("labels"), Some("ai_agent.enriched.labels"), Json,
        "Pairs that the enricher `labels` adds", r#"{"team":"platform"}"#;
    ENRICHED: ecs("ai_agent.enriched.*"), Some("ai_agent.enriched.*"), Json,
        "Object of any other enricher, under the name of its instance, such as `ai_agent.enriched.host`. Members of `activity` are [fields by themselves](../activity.md)",
        r#"{"name":"laptop-7"}"#;
    HOST_ID: ecs("host.id"), Some("host.id"), Keyword,
        "Stable id of the machine", "6d1ae0eb09ca446aa3627b167b280f7a";
    HOST_NAME: ecs("host.name"), Some("host.name"), Keyword, "Name of the machine", "laptop-7";
    OS: ecs("host.os.type"), Some("os.type"), Keyword,
        "`linux`, `macos` (`darwin` in OpenTelemetry) or `windows`", "linux";
    ARCH: ecs("host.architecture"), Some("host.arch"), Keyword,
        "Processor architecture: `x86_64`, `aarch64` (`amd64`, `arm64` in OpenTelemetry)", "x86_64";
    USER: ecs("user.name"), Some("user.name"), Keyword,
        "Name of the user whose sessions are read", "dev";
    AGENT: ecs("agent.type"), Some("service.name"), Keyword, "Always `ai-agent`", "ai-agent";
    AGENT_VERSION: ecs("agent.version"), Some("service.version"), Keyword,
        "Version of the agent", "1.4.0";
    EPOCH: ecs("ai_agent.epoch"), Some("ai_agent.epoch"), Keyword,
        "Outbox that counts `event.sequence`; a new one is reported as `epoch_started`",
        "01934f2e-8a7c-7d10-b5e3-a4c2d1f0e9b8";
    CONFIG_HASH: ecs("ai_agent.config_hash"), Some("ai_agent.config_hash"), Keyword,
        "SHA-256 of the configuration under which the entry was created",
        "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752";
    ECS_VERSION: ecs("ecs.version"), None, Keyword,
        "Version of ECS that the names are from", "8.17.0";
}

/// Name of the field for the encoding of content, which sinks add.
pub const ENCODING_NAME: &str = "ai_agent.encoding";
/// Name of the field with the names of fields that were left out, which sinks add.
pub const OMITTED_NAME: &str = "ai_agent.omitted_fields";
/// Version of ECS that the names are from.
pub(super) const VERSION: &str = ECS_VERSION.example;
