//! `[[test]]` tables.

use super::*;

const GOOD: &str = "[[test]]\nname = \"a\"\nlines = [{ input = '{}', expect = \"keep\" }]";

#[test]
fn tests_of_all_layers_are_kept_with_their_location() {
    let managed = br#"{"version":1,"tests":[{"name":"m","lines":[{"input":"","expect":"keep"}]}]}"#;
    let machine = Machine::new()
        .machine(&format!("{GOOD}\n{GOOD}"))
        .user(&format!("\n{GOOD}"))
        .managed(ManagedSettings::read(managed, None).unwrap());
    let tests = machine.load().unwrap().tests;
    let places: Vec<_> =
        tests.iter().map(|test| machine.plain(&test.location.to_string())).collect();
    assert_eq!(
        places,
        [
            "the machine's file `DIR/etc/config.toml:1`",
            "the machine's file `DIR/etc/config.toml:4`",
            "the user's file `DIR/home/config.toml:2`",
            "the server's managed configuration",
        ]
    );
}

#[test]
fn invalid_test_is_an_error_with_its_key() {
    let cases = [
        ("test = 1", "`test` in FILE:1` must be a list of tables, `[[test]]`"),
        ("\n[[test]]\nlines = []", "`test[0].name` is missing: add it under `[test[0]]`"),
        (
            "\n[[test]]\nname = \"a\"\nlines = []",
            "`test[0]` in FILE:2` has no `lines`: at least one is required",
        ),
        (
            "[[test]]\nname = \"a\"\nlines = [\n{ input = '', expct = \"keep\" }]",
            "unknown key `test[0].lines[0].expct` in FILE:4`: did you mean `expect`?",
        ),
        (
            "[[test]]\nname = \"a\"\nlines = [{ input = '', expect = \"keep\", by = \"x\" }]",
            "`test[0].lines[0].by` in FILE:3` has no effect here: a line that is kept has no deciding filter",
        ),
        (
            "[[test]]\nname = \"a\"\nlines = [{ input = '', expect = \"edit\", reason = \"x\" }]",
            "`test[0].lines[0].reason` in FILE:3` has no effect here: only `drop` has a reason",
        ),
        (
            "[[test]]\nname = \"a\"\nlines = [{ input = '', expect = \"drop\", output = \"x\" }]",
            "`test[0].lines[0].output` in FILE:3` has no effect here: only `edit` has an output",
        ),
    ];
    for (text, expected) in cases {
        let expected = expected.replace("FILE", "the user's file `DIR/home/config.toml");
        assert_eq!(user(text).error(), expected, "{text}");
    }
}

/// Tests do not affect how records are filtered.
#[test]
fn tests_are_not_part_of_the_hash() {
    assert_eq!(user(GOOD).settings().config_hash(), user("").settings().config_hash());
}
