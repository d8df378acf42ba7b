use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::stages::filter::from_toml;

/// One made-up secret of each known format.
const SECRETS: [(&str, &str); 12] = [
    ("anthropic-key", "sk-ant-api03-AAAAbbbbCCCCdddd_0-9"),
    ("openai-key", "sk-proj-AAAAbbbbCCCCddddEEEEffff"),
    ("openai-key", "sk-AAAAbbbbCCCCddddEEEEffffGGGGhhhh"),
    ("aws-access-key", "AKIAIOSFODNN7EXAMPLE"),
    ("aws-secret-key", r#"SecretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"#),
    ("aws-secret-key", "MY_AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    ("github-token", "ghp_AAAAbbbbCCCCddddEEEEffffGGGGhhhhIIII"),
    ("github-token", "github_pat_AAAAbbbbCCCCddddEEEE_ffff"),
    ("slack-token", "xoxb-123456789012-AAAAbbbb"),
    ("slack-token", "hooks.slack.com/services/T0000/B0000/AAAAbbbb"),
    (
        "private-key",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIB\r\n-----END RSA PRIVATE KEY-----",
    ),
    ("jwt", "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxMjM0In0.AAAAbbbbCCCC"),
];

fn filter(options: &str) -> Mask {
    from_toml::<Options>(options).unwrap()
}

/// Returns the line after the filter, and the matches.
fn masked(filter: &mut Mask, line: &[u8]) -> (Vec<u8>, Vec<String>) {
    match filter.check(&Record::from_line(line)) {
        Verdict::Keep => (line.to_vec(), Vec::new()),
        Verdict::Mask(found) => {
            assert!(!found.is_empty());
            let mut edited = line.to_vec();
            for Match { change, .. } in found.iter().rev() {
                edited.splice(change.range.clone(), change.with.iter().copied());
            }
            (edited, found.iter().map(|it| it.pattern.to_string()).collect())
        }
        verdict => panic!("{verdict:?}"),
    }
}

fn text_after(options: &str, line: &str) -> String {
    String::from_utf8(masked(&mut filter(options), line.as_bytes()).0).unwrap()
}

#[test]
fn only_known_secrets_are_masked() {
    for (name, secret) in SECRETS {
        let line = |text: &str| json!({ "a": format!("before {text}\nafter") }).to_string();
        let expected = line(&mark(name)).replace("SecretAccessKey", "");
        assert_eq!(text_after("", &line(secret)), expected, "{secret}");
        assert_eq!(text_after(&format!("patterns = ['{name}']"), &line(secret)), expected);
        assert_eq!(text_after("patterns = []", &line(secret)), line(secret));
    }
    assert_eq!(KnownSecret::ALL.len(), KnownSecret::all().len());
    for known in KnownSecret::ALL {
        assert!(SECRETS.iter().any(|(name, _)| *name == known.name()), "{known:?}");
        assert_eq!(serde_json::from_value::<KnownSecret>(json!(known.name())).unwrap(), known);
    }
}

#[test]
fn text_that_resembles_a_secret_stays() {
    for text in [
        "sk-fading-circle-of-dots-that-is-long",
        "task-AAAAbbbbCCCCddddEEEEffffGGGGhhhh1234",
        "AKIAIOSFODNN7EXAMPLE1",
        "XAKIAIOSFODNN7EXAMPLE",
        "the secret_access_key is kept elsewhere",
        "grep -r '-----BEGIN RSA PRIVATE KEY-----' . | wc -l",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "eyJhbGciOiJub25lIn0.only.two",
        "ghp_short",
        "[masked:jwt]",
    ] {
        let line = json!({ "a": text }).to_string();
        assert_eq!(text_after("", &line), line);
    }
}

#[test]
fn private_key_without_an_end_is_masked_to_the_end_of_text() {
    let line = r#"{"a":"x -----BEGIN PRIVATE KEY-----\nMIIB\nMII","b":"y"}"#;
    assert_eq!(text_after("", line), r#"{"a":"x [masked:private-key]","b":"y"}"#);
}

#[test]
fn secret_written_with_escapes_is_masked() {
    for (line, expected) in [
        (r#"{"a":"x\u0041KIAIOSFODNN7EXAMPLE"}"#, r#"{"a":"x\u0041KIAIOSFODNN7EXAMPLE"}"#),
        (r#"{"a":"\/\u0041KIAIOSFODNN7EXAMPL\u0045\n"}"#, r#"{"a":"\/[masked:aws-access-key]\n"}"#),
        (
            r#"{"a":"\ud83d\ude00AKIAIOSFODNN7EXAMPLE\ud83d\ude00"}"#,
            r#"{"a":"\ud83d\ude00[masked:aws-access-key]\ud83d\ude00"}"#,
        ),
        (
            r#"{"a":"\ud800 AKIAIOSFODNN7EXAMPLE\ud800"}"#,
            r#"{"a":"\ud800 [masked:aws-access-key]\ud800"}"#,
        ),
        (r#"{"a":"\\AKIAIOSFODNN7EXAMPLE\\"}"#, r#"{"a":"\\[masked:aws-access-key]\\"}"#),
        (r#"{"a":"ä\"AKIAIOSFODNN7EXAMPLE\"ä"}"#, r#"{"a":"ä\"[masked:aws-access-key]\"ä"}"#),
    ] {
        assert_eq!(text_after("", line), expected);
    }
}

#[test]
fn member_names_and_other_bytes_stay() {
    let line = r#" { "AKIAIOSFODNN7EXAMPLE" : 1.0e2 ,"AKIAIOSFODNN7EXAMPLE":["AKIAIOSFODNN7EXAMPLE" , {"a" :"x: \"AKIAIOSFODNN7EXAMPLE\""}] } "#;
    let expected = r#" { "AKIAIOSFODNN7EXAMPLE" : 1.0e2 ,"AKIAIOSFODNN7EXAMPLE":["[masked:aws-access-key]" , {"a" :"x: \"[masked:aws-access-key]\""}] } "#;
    assert_eq!(text_after("", line), expected);
}

#[test]
fn line_that_is_not_an_object_is_masked_as_a_whole() {
    for (line, expected) in [
        (&b"{\"a\":\"AKIAIOSFODNN7EXAMPLE\""[..], &b"{\"a\":\"[masked:aws-access-key]\""[..]),
        (b"\xff AKIAIOSFODNN7EXAMPLE \xff", b"\xff [masked:aws-access-key] \xff"),
        (b"[\"AKIAIOSFODNN7EXAMPLE\"]", b"[\"[masked:aws-access-key]\"]"),
        (b"\xe2\x82 -----BEGIN PRIVATE KEY-----\\nMIIB\xff I", b"\xe2\x82 [masked:private-key]"),
    ] {
        assert_eq!(masked(&mut filter(""), line).0, expected);
    }
}

#[test]
fn own_patterns_are_counted_by_name() {
    let options = r"own = { ticket = 'T-\d+', employee-2 = '(?i)emp [0-9]{3}' }";
    let line = r#"{"a":"T-123 and EMP 007, \u0054-4","b":"AKIAIOSFODNN7EXAMPLE"}"#;
    let expected = r#"{"a":"[masked:ticket] and [masked:employee-2], [masked:ticket]","b":"[masked:aws-access-key]"}"#;
    assert_eq!(text_after(options, line), expected);
}

#[test]
fn invalid_pattern_is_refused_by_name() {
    let refused = |own: &str| {
        let error = from_toml::<Options>(&format!("own = {{ {own} }}")).err();
        error.unwrap_or_else(|| panic!("{own}")).to_string()
    };
    let syntax = "`own` has the pattern `t`, which is wrong: unclosed group";
    assert_eq!(refused("a = 'a{9}', t = '(x'"), syntax);
    let words = "expected lower-case letters, digits and `-`";
    assert_eq!(refused("T = 'x{9}'"), format!("`own` names a pattern `T`, {words}"));
    assert_eq!(
        refused("jwt = 'x{9}'"),
        "`own` names a pattern `jwt`, which is the name of a known secret"
    );
    for much in [".*", "", "a?", "[a-z]+", "$", "x|"] {
        let error = refused(&format!("t = '{much}'"));
        assert!(error.contains("the pattern `t`, which matches too much"), "{much}: {error}");
    }
    let error = from_toml::<Options>("patterns = ['aws']").err().unwrap().to_string();
    assert!(error.contains("aws-access-key"), "{error}");
}

#[test]
fn oversized_record_is_kept_or_dropped_by_the_option() {
    let origin = Record::from_line(b"").origin();
    let part = Record::first_part(origin, 0, br#"{"a":"AKIAIOSFODNN7EXAMPLE""#);
    assert_eq!(filter("").check(&part), Verdict::Keep);
    assert_eq!(filter("on_oversize = 'drop'").check(&part), Verdict::Drop("oversized"));
}

#[test]
fn text_with_too_many_matches_is_masked_to_its_end() {
    let line = |count| json!({ "a": "AKIAIOSFODNN7EXAMPLE ".repeat(count), "b": "c" }).to_string();
    let marks = |count| "[masked:aws-access-key] ".repeat(count);
    assert_eq!(text_after("", &line(255)), json!({ "a": marks(255), "b": "c" }).to_string());
    let expected = json!({ "a": marks(256).trim_end(), "b": "c" }).to_string();
    assert_eq!(text_after("", &line(1000)), expected);
}

/// Generates texts, some with secrets.
fn text() -> impl Strategy<Value = String> {
    let secret = prop::sample::select(SECRETS.to_vec()).prop_map(|(_, secret)| secret.to_owned());
    let part = prop_oneof![2 => secret, 2 => "[ -~\n\"\\\\äß😀]{0,6}", 1 => "[_ ,.]"];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        text().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        Just(Value::Null)
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(text(), inner, 0..4)
                .prop_map(|map| Value::from_iter(map.into_iter())),
        ]
    })
}

/// Masks a value in the simplest way, on the tree.
fn mask_tree(filter: &Mask, value: &mut Value) {
    match value {
        Value::String(text) => {
            let mut after = String::new();
            let mut at = 0;
            for it in filter.regex.find_iter(text.as_str()) {
                after += &text[at..it.start()];
                after += &mark(&filter.names[it.pattern().as_usize()]);
                at = it.end();
            }
            *text = after + &text[at..];
        }
        Value::Array(values) => values.iter_mut().for_each(|value| mask_tree(filter, value)),
        Value::Object(values) => values.values_mut().for_each(|value| mask_tree(filter, value)),
        _ => {}
    }
}

/// Writes strings with unnecessary escapes.
fn escaped(value: &Value) -> String {
    let text = |text: &str| -> String {
        let units = text.encode_utf16().map(|unit| match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii_lowercase() || byte == b'-' => char::from(byte).to_string(),
            _ => format!("\\u{unit:04X}"),
        });
        format!("\"{}\"", units.collect::<String>())
    };
    match value {
        Value::String(string) => text(string),
        Value::Array(values) => {
            format!("[ {} ]", values.iter().map(escaped).collect::<Vec<_>>().join(" ,"))
        }
        Value::Object(values) => {
            let member =
                |(key, value): (&String, &Value)| format!("{}\t: {}", text(key), escaped(value));
            format!("{{{}}}", values.iter().map(member).collect::<Vec<_>>().join(", "))
        }
        value => value.to_string(),
    }
}

proptest! {
    #[test]
    fn result_equals_the_values_with_masked_secrets(value in value()) {
        let mut filter = filter("");
        let record = json!({ "a": value });
        let mut expected = record.clone();
        mask_tree(&filter, &mut expected);
        for line in [record.to_string(), serde_json::to_string_pretty(&record).unwrap(), escaped(&record)] {
            let (after, found) = masked(&mut filter, line.as_bytes());
            prop_assert_eq!(&serde_json::from_slice::<Value>(&after).unwrap(), &expected, "{}", line);
            prop_assert_eq!(found.is_empty(), record == expected);
            let (again, found) = masked(&mut filter, &after);
            prop_assert!(again == after && found.is_empty(), "{}", String::from_utf8_lossy(&after));
            // Every byte outside of a mark is one of the line's, in its order.
            let mut rest = line.as_str();
            for (index, part) in str::from_utf8(&after).unwrap().split("[masked:").enumerate() {
                let part = if index == 0 { part } else { part.split_once(']').unwrap().1 };
                let at = rest.find(part);
                prop_assert!(at.is_some(), "{} in {}", part, line);
                rest = &rest[at.unwrap() + part.len()..];
            }
        }
    }
}
