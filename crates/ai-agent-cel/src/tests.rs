use proptest::prelude::*;
use serde_json::json;

use super::*;
use ai_agent_stage::StageOptions;

fn from_toml<O: FilterOptions>(text: &str) -> Result<O::Filter, BuildError> {
    text.parse::<StageOptions>()?.parse::<O>()?.build()
}

const DROPPED: Verdict = Verdict::Drop("drop_when");
const ERROR: Verdict = Verdict::Drop("expression_error");

/// Returns a filter that drops records if `expression` matches or cannot be evaluated.
fn filter(expression: &str) -> Expression {
    let options = json!({ "drop_when": expression, "on_error": "drop" });
    from_toml::<Options>(&toml::to_string(&options).unwrap()).unwrap()
}

fn check(expression: &str, line: &str) -> Verdict {
    filter(expression).check(&Record::from_line(line.as_bytes()))
}

fn refused(expression: &str) -> String {
    Program::compile(expression).err().unwrap_or_else(|| panic!("compiled: {expression}"))
}

#[test]
fn matching_record_is_dropped() {
    let expression = r#"record.type == "user" && record.cwd.startsWith("/secret")"#;
    assert_eq!(check(expression, r#"{"type":"user","cwd":"/secret/a"}"#), DROPPED);
    assert_eq!(check(expression, r#"{"type":"\u0075ser","cwd":"\/secret"}"#), DROPPED);
    assert_eq!(check(expression, r#"{"type":"user","cwd":"/home"}"#), Verdict::Keep);
    assert_eq!(check(expression, r#"{"type":"summary"}"#), Verdict::Keep);
}

#[test]
fn supported_language_features_work() {
    let line = r#"{"n":7,"big":18446744073709551615,"half":0.5,"no":null,"yes":true,"twice":1,
        "cwd":"/home/ä","list":["a","b"],"message":{"content":[{"type":"text","text":"x 42"},
        {"type":"image"}]},"twice":2}"#;
    for expression in [
        "record.n == 7 && record.n > 6 && record.n + 1 <= 8 && record.n % 2 == 1",
        "record.big > 9223372036854775807 && record.half < 1.0 && double(record.n) * 2.0 == 14.0",
        "record.no == null && record.yes && !has(record.other) && has(record.no)",
        "record.twice == 2",
        "size(record.cwd) == 7 && record.cwd.endsWith('/ä') && record.cwd.contains('home')",
        "'b' in record.list && record.list[0] == 'a' && record['list'][1] == 'b'",
        r"record.cwd.matches('^/[a-z]+/') && matches(record.cwd, r'\w$')",
        "record.message.content.exists(part, part.type == 'text' && part.text.matches('[0-9]'))",
        "record.message.content.all(part, has(part.type))",
        "record.message.content.exists_one(part, has(part.text))",
        "size(record.message.content.filter(part, part.type == 'image')) == 1",
        "record.n in [1, 7] ? string(record.n) == '7' : false",
        "int('7') == record.n && path.endsWith('.jsonl')",
    ] {
        assert_eq!(check(expression, line), DROPPED, "{expression}");
        assert_eq!(check(&format!("!({expression})"), line), Verdict::Keep, "{expression}");
    }
}

#[test]
fn record_that_fails_keep_when_is_dropped() {
    let options = "keep_when = 'record.n > 1'\ndrop_when = 'record.n > 2'";
    let mut filter = from_toml::<Options>(options).unwrap();
    let mut check = |line: &str| filter.check(&Record::from_line(line.as_bytes()));
    assert_eq!(check(r#"{"n":1}"#), Verdict::Drop("keep_when"));
    assert_eq!(check(r#"{"n":2}"#), Verdict::Keep);
    assert_eq!(check(r#"{"n":3}"#), DROPPED);
    assert_eq!(check("{}"), Verdict::Keep, "neither can be evaluated");
}

#[test]
fn failed_evaluation_is_handled_by_on_error() {
    for (expression, line) in [
        ("record.cwd == 'a'", "{}"),
        ("record.cwd.startsWith('a')", r#"{"cwd":5}"#),
        ("record.n", r#"{"n":1}"#),
        ("record.n / 0 == 1 || record.n % 0 == 1", r#"{"n":1}"#),
        ("-record.n > 0", r#"{"n":-9223372036854775808}"#),
        ("record.n * record.n > 0 || record.n + 1 > 0", r#"{"n":9223372036854775807}"#),
        ("record.n - 1 > 0", r#"{"n":-9223372036854775808}"#),
        ("record.n / -1 > 0 || record.n % -1 == 0", r#"{"n":-9223372036854775808}"#),
        ("int(record.n) > 0", r#"{"n":1e300}"#),
        ("int(record.n) > 0", r#"{"n":"x"}"#),
        ("record.n > 0", r#"{"n":1e999}"#),
        ("record.n == 'a'", r#"{"n":"\ud800"}"#),
        ("record.list[5] == 1 || record.list[-1] == 1", r#"{"list":[1]}"#),
        ("record.list['a'] == 1", r#"{"list":[1]}"#),
        ("record.list.all(x, x)", r#"{"list":{"a":1}}"#),
        ("record.n.exists(x, true)", r#"{"n":1}"#),
    ] {
        assert_eq!(check(expression, line), ERROR, "{expression} of {line}");
        let options = toml::to_string(&json!({ "drop_when": expression })).unwrap();
        let mut kept = from_toml::<Options>(&options).unwrap();
        assert_eq!(kept.check(&Record::from_line(line.as_bytes())), Verdict::Keep, "{expression}");
    }
}

#[test]
fn unnamed_members_are_not_read() {
    let deep = "[".repeat(500) + &"]".repeat(500);
    for odd in [r#""\ud800""#, "1e999", &deep] {
        let line = format!(r#"{{"odd":{odd},"n":1}}"#);
        assert_eq!(check("record.n == 1", &line), DROPPED, "{odd}");
        assert_eq!(check("has(record.n)", &line), DROPPED, "{odd}");
        assert_eq!(check("record['n'] == 1", &line), ERROR, "{odd}");
    }
}

#[test]
fn line_that_is_not_an_object_is_kept() {
    for line in ["", "x", "[1]", "5", r#"{"n":1"#, r#"{"n":1}}"#] {
        assert_eq!(check("true", line), Verdict::Keep, "{line}");
        assert_eq!(check("record.n == 1", line), Verdict::Keep, "{line}");
    }
}

#[test]
fn oversized_record_is_handled_by_on_oversize() {
    let part = Record::first_part(Record::from_line(b"").origin(), 0, br#"{"n":1,"#);
    assert_eq!(filter("record.n == 1").check(&part), Verdict::Keep);
    let mut drops = from_toml::<Options>("on_oversize = 'drop'").unwrap();
    assert_eq!(drops.check(&part), Verdict::Drop("oversized"));
}

/// A short expression over one long list kept a machine busy for hours.
#[test]
fn loop_iterations_are_limited() {
    let line = |length: usize| json!({ "a": vec![1; length] }).to_string();
    let once = "record.a.all(x, x == 1)";
    let twice = "record.a.all(x, record.a.all(y, x == y))";
    assert_eq!(check(once, &line(80_000)), DROPPED);
    assert_eq!(check(twice, &line(300)), DROPPED);
    for expression in [
        twice,
        "record.a.exists(x, record.a.exists(y, record.a.exists(z, x + y + z == 0)))",
        "size(record.a.filter(x, record.a.exists_one(y, x == y))) == 0",
        "record.a.exists(x, record.a.filter(y, y == 2) == [1]) || true",
    ] {
        assert_eq!(check(expression, &line(50_000)), ERROR, "{expression}");
    }
}

#[test]
fn record_with_too_many_values_is_not_read() {
    let line = json!({ "a": vec![1; 100_001], "n": 1 }).to_string();
    assert_eq!(check("record.a[0] == 1", &line), ERROR);
    assert_eq!(check("record.n == 1", &line), DROPPED);
}

#[test]
fn mistake_is_reported_with_position_and_fix() {
    let cases = [
        ("", "line 1, column 1: it ends too early"),
        ("record.type = 'x'", "line 1, column 13: expected `==`"),
        ("record.type ==", "line 1, column 15: it ends too early"),
        ("\n recrod.a", "line 2, column 2: there is no `recrod`, did you mean `record`?"),
        (
            "record.a == 'ä' && user",
            "line 1, column 20: there is no `user`, there are `record` and `path`; text stands in \
             quotes",
        ),
        (
            "record.a.startswith('x')",
            "line 1, column 20: there is no function `startswith`, did you mean `startsWith`?",
        ),
        (
            "type(record)",
            "line 1, column 5: there is no function `type`, there are size, contains, startsWith, \
             endsWith, matches, string, int, double, all, exists, exists_one, filter, has",
        ),
        ("record.a.matches('(x')", "line 1, column 18: the pattern is wrong: unclosed group"),
        (
            "record.a.matches('((a{500}){500}){500}')",
            "line 1, column 18: the pattern is wrong: it is too large: repeat less",
        ),
        (
            "record.a.matches(record.b)",
            "line 1, column 24: expected the pattern of `matches` in quotes",
        ),
        ("record.a.exists(x)", "line 1, column 16: `exists` takes other arguments"),
        (
            "record.a.map(x, x + 1) == []",
            "line 1, column 13: expected a list of constants (there is no `map`)",
        ),
        (
            "record.a.all(path, true)",
            "line 1, column 13: a loop has a variable `path`, which has a meaning",
        ),
        ("{'a': 1} == record", "line 1, column 1: expected no `{`: objects can't be made"),
    ];
    for (expression, expected) in cases {
        assert_eq!(refused(expression), format!("is wrong in {expected}"), "{expression}");
    }
    let error = from_toml::<Options>("keep_when = 'a'").err().unwrap().to_string();
    assert!(error.starts_with("`keep_when` is wrong in line 1, column 1: there is no `a`"));
}

/// A stack overflow aborts the process; it cannot be caught.
#[test]
fn recursion_is_limited() {
    for (part, end) in [
        ("(", ""),
        ("[", ""),
        ("{", ""),
        ("!", "true"),
        ("-", "1"),
        ("size(", ""),
        ("true?", ""),
        ("true?true:", "true"),
        ("1-", "1"),
        ("1==", "1"),
        ("true||", "true"),
        ("(true)&&", "true"),
        ("'a'+", "'a'"),
        ("record.a.exists(x,", ""),
    ] {
        let text = part.repeat((8100 - end.len()) / part.len()) + end;
        drop(Program::compile(&text));
    }
    for (start, part) in [("record", ".a"), ("record", "[0]"), ("record", ".a()"), ("1", "-1")] {
        refused(&(start.to_owned() + &part.repeat(8100 / part.len())));
        let program = Program::compile(&(start.to_owned() + &part.repeat(99)));
        if let Ok(program) = program {
            assert_eq!(program.matches(&Record::from_line(b"{}")), None);
        }
    }
    let nested = |depth: usize| {
        let start: String = (0..depth).map(|n| format!("record.a.exists(x{n}, ")).collect();
        format!("{start}true{}", ")".repeat(depth))
    };
    let deepest = (1..48).rev().find(|depth| Program::compile(&nested(*depth)).is_ok()).unwrap();
    assert!(deepest > 10);
    assert_eq!(check(&nested(deepest), r#"{"a":[1]}"#), DROPPED);
    assert!(refused(&" ".repeat(9000)).starts_with("is 9000 bytes long"));
}

/// Generates parts of expressions, joined at random.
fn parts() -> impl Strategy<Value = String> {
    let parts = [
        "record",
        "path",
        ".a",
        ".n",
        "[0]",
        "['a']",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "1",
        "-1",
        "2.5",
        "'x'",
        "b'\\xff'",
        "null",
        "true",
        "9223372036854775807",
        "18446744073709551615u",
        " == ",
        " < ",
        " + ",
        " - ",
        " * ",
        " / ",
        " % ",
        " && ",
        " || ",
        " in ",
        "!",
        "-",
        " ? ",
        " : ",
        ",",
        "size(",
        "int(",
        "double(",
        "string(",
        ".contains('",
        ".matches('a",
        "')",
        ".exists(x, ",
        ".all(x, ",
        ".filter(y, ",
        "x",
        "y",
        "has(record.a)",
        "\n",
        "//",
        "ä",
        "\\",
        "\"",
        "'",
        "`",
        "@",
    ];
    prop::collection::vec(prop::sample::select(parts.to_vec()), 0..14)
        .prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn random_expressions_fail_only_with_short_errors(
        left in parts(), right in parts(), operator in prop::sample::select(vec![" == ", " && ", " + ", " < ", " in ", "", " ? true : "])
    ) {
        for text in [format!("{left}{operator}{right}"), format!("record.a{operator}{right}")] {
            match Program::compile(&text) {
                Err(problem) => prop_assert!(
                    problem.starts_with("is ") && !problem.contains('\n') && problem.len() < 300,
                    "{}: {}", text, problem
                ),
                Ok(program) => for line in [
                    "{}", r#"{"a":[1,"x",{"a":-9223372036854775808}],"n":18446744073709551615}"#,
                    r#"{"a":{"x":1.5,"":[]},"n":-0.0}"#, r#"{"a":"äx","n":null}"#,
                ] {
                    program.matches(&Record::from_line(line.as_bytes()));
                }
            }
        }
    }
}
