//! Managed configurations that no administrator should write.

use fastrand::Rng;
use serde_json::{Value, json};

/// Just below the maximum size of a managed configuration.
const FULL: usize = (4 << 20) - 1000;

/// A kind of configuration.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Writes a configuration with choices from a generator.
    pub(crate) write: fn(&mut Rng) -> Vec<u8>,
}

const fn kind(name: &'static str, write: fn(&mut Rng) -> Vec<u8>) -> Kind {
    Kind { name, write }
}

/// All kinds.
pub(crate) const KINDS: &[Kind] = &[
    kind("random bytes", |random| {
        let length = random.usize(..100_000);
        (0..length).map(|_| random.u8(..)).collect()
    }),
    kind("invalid UTF-8", |random| spoiled(random, b"\xff\xfe\xed\xa0\x80")),
    kind("NUL", |random| spoiled(random, b"\0")),
    kind("flipped bits", |random| {
        let mut bytes = valid().to_string().into_bytes();
        for _ in 0..random.usize(1..10) {
            let at = random.usize(..bytes.len());
            bytes[at] ^= 1 << random.u8(..8);
        }
        bytes
    }),
    kind("truncated", |random| {
        let mut bytes = valid().to_string().into_bytes();
        bytes.truncate(random.usize(..bytes.len()));
        bytes
    }),
    kind("other format", |random| {
        let formats: [&[u8]; 8] = [
            b"",
            b"version = 1\n",
            b"<html>please sign in</html>",
            b"\xef\xbb\xbf{\"version\":1}",
            b"{\0\"\0v\0",
            b"{\"version\":1}{\"version\":1}",
            b"[{\"version\":1}]",
            b"// a comment\n{\"version\":1,}",
        ];
        pick(random, &formats).to_vec()
    }),
    kind("deep nesting", |random| {
        let depth = random.usize(50..500_000);
        let (open, close) = *pick(random, &[("[", "]"), ("{\"a\":", "}")]);
        let member = *pick(random, &["x", "tests", "stages", "filters", "audience", "version"]);
        let (open, close) = (open.repeat(depth), close.repeat(depth));
        within(format!("{{\"version\":1,\"{member}\":{open}1{close}}}"))
    }),
    kind("many small values", |random| {
        let value =
            *pick(random, &["[],", "{},", "0,", "\"\",", "null,", "[[]],", "{\"\":0},", "1.5,"]);
        let member = *pick(
            random,
            &[
                "\"x\":[",
                "\"tests\":[",
                "\"filters\":{\"ignore_types\":[",
                "\"stages\":{\"filter\":{\"path\":{\"drop_cwd\":[",
                "\"audience\":{\"machines\":[",
                "\"compliance\":{\"permitted_email_domains\":[",
            ],
        );
        let start = format!("{{\"version\":1,{member}");
        let values = value.repeat((FULL - start.len() - 40) / value.len());
        let end: String = start
            .chars()
            .filter(|c| "{[".contains(*c))
            .map(|c| if c == '{' { '}' } else { ']' })
            .rev()
            .collect();
        within(format!("{start}{}{end}", values.trim_end_matches(',')))
    }),
    kind("many members", |random| {
        let place =
            *pick(random, &["", "\"filters\":{", "\"stages\":{\"filter\":{", "\"stages\":{"]);
        let value = *pick(random, &["0", "{}", "[]", "{\"type\":\"meta\"}", "{\"enabled\":false}"]);
        let mut text = format!("{{\"version\":1,{place}");
        let mut number = 0;
        while text.len() < FULL - 60 {
            text.push_str(&format!("\"m{number}\":{value},"));
            number += 1;
        }
        text.pop();
        text.push_str(&"}".repeat(1 + place.matches('{').count()));
        within(text)
    }),
    kind("duplicate members", |random| {
        let members = [
            "\"version\":1",
            "\"revision\":\"a\"",
            "\"filters\":{\"drop_meta\":true}",
            "\"tests\":[]",
        ];
        let count = random.usize(2..1000);
        let list: Vec<_> = (0..count).map(|_| *pick(random, &members)).collect();
        format!("{{\"version\":1,{}}}", list.join(",")).into_bytes()
    }),
    kind("values of other types", |random| {
        let mut config = valid();
        for _ in 0..random.usize(1..4) {
            let value = any_value(random);
            replace(&mut config, value, random);
        }
        config.to_string().into_bytes()
    }),
    kind("extreme numbers", |random| {
        let numbers = [
            "-1",
            "18446744073709551615",
            "18446744073709551616",
            "1e308",
            "1e999",
            "0.5",
            "-0.0",
            "0",
        ];
        let number = *pick(random, &numbers);
        let places = [
            "\"version\":N",
            "\"version\":1,\"serial\":N",
            "\"version\":1,\"shipping\":{\"batch_size\":N}",
            "\"version\":1,\"shipping\":{\"flush_interval_seconds\":N}",
            "\"version\":1,\"audience\":{\"percentage\":N}",
            "\"version\":1,\"compliance\":{\"transcript_within_seconds\":N}",
            "\"version\":1,\"stages\":{\"filter\":{\"tool-call\":{\"x\":N}}}",
        ];
        format!("{{{}}}", pick(random, &places).replace('N', number)).into_bytes()
    }),
    kind("long text", |random| {
        let text = ["x", "\\u0000", "\\u001b[2J", "\\n", "\\ud83d\\udca3", "\u{202e}", "`"]
            [random.usize(..7)];
        let text = text.repeat(random.usize(1..2 << 20) / text.len());
        let places = [
            "\"revision\":\"T\"",
            "\"issued\":\"T\"",
            "\"expires\":\"T\"",
            "\"T\":1",
            "\"compliance\":{\"banner\":\"T\"}",
            "\"compliance\":{\"violation_message\":\"T\",\"action\":\"block\"}",
            "\"compliance\":{\"permitted_email_domains\":[\"T\"]}",
            "\"filters\":{\"ignore_types\":[\"T\"]}",
            "\"stages\":{\"filter\":{\"T\":{\"type\":\"meta\"}}}",
            "\"stages\":{\"enricher\":{\"labels\":{\"T\":\"T\"}}}",
            "\"tests\":[{\"name\":\"T\",\"lines\":[]}]",
            "\"audience\":{\"users\":[\"T\"]}",
        ];
        let place = pick(random, &places).replace('T', &text);
        within(format!("{{\"version\":1,{place}}}"))
    }),
    kind("many stages", |random| {
        let kind = *pick(
            random,
            &["meta", "mask", "path", "expression", "ignore-types", "dedupe", "nothing"],
        );
        let count = random.usize(10..5000);
        let stages: serde_json::Map<_, _> =
            (0..count).map(|n| (format!("s{n}"), json!({ "type": kind }))).collect();
        json!({ "version": 1, "stages": { "filter": stages } }).to_string().into_bytes()
    }),
    kind("globs", |random| {
        let parts = [
            "**/",
            "*",
            "{a,b,",
            "}",
            "[a-z]",
            "[!",
            "?",
            "\\",
            "/",
            "x",
            "{",
            "\u{1f4a3}",
            "{1..9}",
        ];
        let count = random.usize(1..2000);
        let glob = |random: &mut Rng| -> String {
            let length = random.usize(1..200);
            let parts: String = (0..length).map(|_| *pick(random, &parts)).collect();
            format!("/{parts}")
        };
        let globs: Vec<_> = (0..count).map(|_| glob(random)).collect();
        filter("path", &json!({ "drop_cwd": globs }))
    }),
    kind("large globs", |random| {
        let globs = [
            "/{a,b}".repeat(10_000),
            "/**".repeat(20_000),
            "/".to_owned() + &"?".repeat(60_000),
            "/".to_owned() + &"[a-z]*".repeat(5000),
            "/".to_owned() + &"{a,".repeat(15),
            "/".to_owned() + &"{a,b}".repeat(16),
        ];
        let glob = pick(random, &globs).clone();
        filter("path", &json!({ "drop_files": vec![glob; random.usize(1..20)] }))
    }),
    kind("regular expressions", |random| {
        let patterns = [
            "((a{1000}){1000}){1000}",
            "(a*)*b",
            "(?:a?){500}a{500}",
            r"\p{L}{400}",
            "(",
            "[",
            r"(a)\1",
            "(?i)\u{df}{999}",
            r"(?:\w+\s?){64}",
            ".{0,9999}",
            "^$",
            "",
            r"[\x{0}-\x{10ffff}]{300}",
            "(?x) # \n",
        ];
        let count = random.usize(1..300);
        let own: serde_json::Map<_, _> =
            (0..count).map(|n| (format!("p{n}"), json!(pick(random, &patterns)))).collect();
        filter("mask", &json!({ "own": own }))
    }),
    kind("expressions", |random| {
        let depth = random.usize(1..30_000);
        let expressions = [
            "(".repeat(depth) + "true" + &")".repeat(depth),
            "!".repeat(depth) + "true",
            "[".repeat(depth) + &"]".repeat(depth),
            "true".to_owned() + &" && true".repeat(depth),
            "record.a".to_owned() + &".a".repeat(depth),
            "[1,2,3].all(x, ".repeat(depth.min(60)) + "true" + &")".repeat(depth.min(60)),
            "record.type.matches('".to_owned() + &"(a{100}){100}".repeat(9) + "')",
            "'x' * 1000000 == record".to_owned(),
            "9223372036854775807 + 1 == 0".to_owned(),
            "1 / 0 == 1".to_owned(),
            "\0".to_owned(),
            "\"".to_owned() + &"x".repeat(depth),
        ];
        filter("expression", &json!({ "drop_when": pick(random, &expressions) }))
    }),
    kind("tests", |random| {
        let input = ["{}", "\0", "x", "{\"a\":", "\u{feff}"][random.usize(..5)]
            .repeat(random.usize(1..100_000));
        let lines = vec![
            json!({ "input": input, "expect": *pick(random, &["keep", "drop", "edit", ""]) });
            random.usize(1..10)
        ];
        let tests = vec![json!({ "name": "t", "lines": lines }); random.usize(1..4)];
        within(json!({ "version": 1, "tests": tests }).to_string())
    }),
    kind("stages that a server may not set", |random| {
        let kinds = [
            json!({ "sink": { "siem": { "endpoint": "http://127.0.0.1:1" } } }),
            json!({ "sink": { "x": { "type": "file", "path": "/root/written-by-the-server" } } }),
            json!({ "source": { "claude-sessions": { "roots": ["/"] } } }),
            json!({ "filter": { "claude-sessions": { "roots": ["/"] } } }),
            json!({ "filter": { "siem": { "type": "http-siem" } } }),
            json!({ "filter": { "dedupe": { "enabled": false }, "compact": { "enabled": false } } }),
            json!({ "agent": { "state_dir": "/root" } }),
            json!({ "filter": { "../../x": { "type": "meta" }, "a.b": { "type": "meta" }, "": {} } }),
        ];
        let stages = pick(random, &kinds);
        json!({ "version": 1, "stages": stages }).to_string().into_bytes()
    }),
    kind("nothing is shipped any more", |random| {
        let shipping = json!({
            "batch_size": *pick(random, &[1, 10_000]), "flush_interval_seconds": *pick(random, &[0, 86_400]),
        });
        let filters = json!({
            "ignore_types": ["user", "assistant", "live"], "drop_meta": true, "drop_sidechain": true,
            "drop_tool_calls": true,
        });
        let stages =
            json!({ "filter": { "nothing": { "type": "expression", "drop_when": "true" } } });
        json!({ "version": 1, "shipping": shipping, "filters": filters, "stages": stages })
            .to_string()
            .into_bytes()
    }),
    kind("strict policy", |random| {
        let domain = |random: &mut Rng| -> String {
            (0..random.usize(1..60))
                .map(|_| *pick(random, &['*', '.', 'a', '@', '\u{e4}', '\0', '-']))
                .collect()
        };
        let domains: Vec<_> = (0..random.usize(1..20_000)).map(|_| domain(random)).collect();
        let policy = json!({
            "permitted_email_domains": domains, "permitted_org_ids": ["", "x"], "action": "block",
            "require_account": true, "on_error": "block", "on_unknown": "block",
            "transcript_within_seconds": *pick(random, &[0_u64, 1, u64::MAX]),
        });
        within(json!({ "version": 1, "compliance": policy }).to_string())
    }),
    kind("audience", |random| {
        let many: Vec<_> = (0..random.usize(1..100_000)).map(|n| format!("m{n}")).collect();
        let audience = [
            json!({ "machines": many }),
            json!({ "groups": many }),
            json!({ "percentage": 0 }),
            json!({ "users": [""], "os": ["*"] }),
            json!({}),
        ][random.usize(..5)]
        .clone();
        within(
            json!({ "version": 1, "audience": audience, "filters": { "drop_meta": true } })
                .to_string(),
        )
    }),
];

/// A configuration with every member.
fn valid() -> Value {
    json!({
        "version": 1,
        "revision": "r1",
        "serial": 7,
        "issued": "2026-01-31T00:00:00Z",
        "expires": "2099-01-31T00:00:00Z",
        "audience": { "percentage": 100 },
        "filters": { "ignore_types": ["progress"], "drop_sidechain": false, "drop_meta": true, "drop_tool_calls": false },
        "shipping": { "batch_size": 100, "flush_interval_seconds": 1 },
        "compliance": {
            "permitted_email_domains": ["*.company.com"], "permitted_org_ids": ["o"], "banner": "b", "action": "warn",
            "violation_message": "m", "require_account": false, "on_error": "allow", "on_unknown": "allow",
            "transcript_within_seconds": 600,
        },
        "stages": { "filter": {
            "globs": { "type": "path", "drop_cwd": ["**/secret"] },
            "mask": { "own": { "n": "[0-9]{9}" } },
            "cel": { "type": "expression", "drop_when": "record.type == 'x'", "on_error": "keep" },
        }, "enricher": { "labels": { "team": "a" } } },
        "tests": [{ "name": "t", "lines": [{ "input": "{}", "expect": "keep" }] }],
    })
}

/// A valid configuration with these bytes somewhere.
fn spoiled(random: &mut Rng, bytes: &[u8]) -> Vec<u8> {
    let mut config = valid().to_string().into_bytes();
    let at = random.usize(..config.len());
    config.splice(at..at, bytes.iter().copied());
    config
}

/// A configuration with one filter.
fn filter(kind: &str, options: &Value) -> Vec<u8> {
    let mut options = options.clone();
    options["type"] = kind.into();
    within(json!({ "version": 1, "stages": { "filter": { "hostile": options } } }).to_string())
}

/// Returns the configuration, or the start of one that is too large.
fn within(text: String) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    bytes.truncate(FULL);
    bytes
}

fn any_value(random: &mut Rng) -> Value {
    let values = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(0.5),
        json!(""),
        json!("\0"),
        json!([]),
        json!({}),
        json!([[]]),
        json!({ "type": "x" }),
        json!("x".repeat(1000)),
    ];
    pick(random, &values).clone()
}

/// Replaces a value at a random place.
fn replace(config: &mut Value, with: Value, random: &mut Rng) {
    let inner: Option<&mut Value> = match config {
        Value::Object(members) if !members.is_empty() => {
            let at = random.usize(..members.len());
            members.values_mut().nth(at)
        }
        Value::Array(items) if !items.is_empty() => {
            let at = random.usize(..items.len());
            items.get_mut(at)
        }
        _ => None,
    };
    match inner {
        Some(inner) if random.u8(..4) > 0 => replace(inner, with, random),
        Some(inner) => *inner = with,
        None => *config = with,
    }
}

fn pick<'a, T>(random: &mut Rng, from: &'a [T]) -> &'a T {
    &from[random.usize(..from.len())]
}
