//! Errors name layer, line and key, and the accepted values.

use super::*;

const FILE: &str = "the user's file `DIR/home/config.toml`";
const LINE_1: &str = "the user's file `DIR/home/config.toml:1`";

/// Each invalid file, and the error about it; `FILE` is replaced with the path of the file.
#[test]
fn error_names_layer_key_and_accepted_value() {
    let cases = [
        (
            "shipping.bach_size = 1",
            "unknown key `shipping.bach_size` in FILE: did you mean `batch_size`?",
        ),
        (
            "agent.colour = 1",
            "unknown key `agent.colour` in FILE: expected `state_dir`, `poll_interval`, `log_format` or `require_tls`",
        ),
        (
            "metrics.listen = \"0.0.0.0:9464\"",
            "`metrics.listen` in FILE is \"0.0.0.0:9464\", must be a loopback address such as \
                 `127.0.0.1:9464`: metrics are not served to other machines",
        ),
        (
            "metrics.listen = \"9464\"",
            "`metrics.listen` in FILE is \"9464\", must be a loopback address such as \
                 `127.0.0.1:9464`, or `unix:` and an absolute path",
        ),
        ("[filtr.x]", "unknown key `filtr` in FILE: did you mean `filter`?"),
        (
            "[ignore-types]",
            "unknown key `ignore-types` in FILE: expected `locked`, `agent`, `shipping`, \
                 `outbox`, `metrics`, `managed`, `update`, `compliance`, `pipeline`, `test`, `source`, \
                 `filter`, `enricher` or `sink`",
        ),
        (
            "shipping.batch_size = \"many\"",
            "`shipping.batch_size` in FILE is the string \"many\", expected a whole number, 0 or \
                 more",
        ),
        (
            "shipping.batch_size = -1",
            "`shipping.batch_size` in FILE is the number -1, expected a whole number, 0 or \
                 more",
        ),
        ("shipping.batch_size = 0", "`shipping.batch_size` in FILE is 0, must be from 1 to 10000"),
        (
            "shipping.batch_size = 10001",
            "`shipping.batch_size` in FILE is 10001, must be from 1 to 10000",
        ),
        (
            "shipping.max_batch_bytes = \"1 KiB\"",
            "`shipping.max_batch_bytes` in FILE is 1.0 KiB, must be from 64 KiB to 32 MiB",
        ),
        (
            "shipping.max_batch_bytes = \"33 MiB\"",
            "`shipping.max_batch_bytes` in FILE is 33.0 MiB, must be from 64 KiB to 32 MiB",
        ),
        (
            "shipping.flush_interval = \"soon\"",
            "`shipping.flush_interval` in FILE is invalid: `soon` is not a duration \
                 such as \"300s\"",
        ),
        (
            "shipping.flush_interval = 5",
            "`shipping.flush_interval` in FILE is the number 5, expected a duration with its unit, such \
                 as \"300s\"",
        ),
        (
            "shipping.flush_interval = \"5\"",
            "`shipping.flush_interval` in FILE is invalid: `5` is not a duration such as \"300s\"",
        ),
        (
            "shipping.flush_interval = \"86401s\"",
            "`shipping.flush_interval` in FILE is 1day 1s, must be at most 86400s",
        ),
        (
            "outbox.max_bytes = \"1 MiB\"",
            "`outbox.max_bytes` in FILE is 1.0 MiB, must be at least 32 MiB",
        ),
        (
            "outbox.max_dead_letter_bytes = \"1 KiB\"",
            "`outbox.max_dead_letter_bytes` in FILE is 1.0 KiB, must be at least 1 MiB",
        ),
        (
            "agent.poll_interval = \"59s\"",
            "`agent.poll_interval` in FILE is 59s, must be at least 60s",
        ),
        (
            "agent.poll_interval = \"2days\"",
            "`agent.poll_interval` in FILE is 2days, must be at most 86400s",
        ),
        (
            "agent.state_dir = \"here\"",
            "`agent.state_dir` in FILE is `here`, must be an absolute path or start with `~/`",
        ),
        (
            "agent.state_dir = 1",
            "`agent.state_dir` in FILE is the number 1, expected a path in quotes",
        ),
        ("agent = true", "`agent` in FILE is `true`, expected a table"),
        ("filter = []", "`filter` in FILE is a list, expected a table"),
        ("outbox = ['900 MiB', '64 MiB']", "`outbox` in FILE is a list, expected a table"),
        ("agent.state_dir = \"/a\\u0000b\"", "`agent.state_dir` in FILE contains a NUL character"),
        (
            "sink.siem.ca_file = \"/a\\u0000b\"",
            "`sink.siem.ca_file` in FILE contains a NUL character",
        ),
        ("filter.meta = true", "`filter.meta` in FILE must be a table, `[filter.meta]`"),
        (
            "filter.meta.enabled = \"yes\"",
            "`filter.meta.enabled` in FILE must be `true` or `false`",
        ),
        (
            "filter.meta.type = 1",
            "`filter.meta.type` in FILE must be a stage type such as `\"ignore-types\"`: `ai-agent stages` lists them",
        ),
        (
            "pipeline.sinks = \"siem\"",
            "`pipeline.sinks` in FILE is the string \"siem\", expected a list in brackets",
        ),
        (
            "pipeline.sinks = [\"siem\", 1]",
            "`pipeline.sinks[1]` in FILE is the number 1, expected a string in quotes",
        ),
        (
            "pipeline.sinks = []",
            "`pipeline.sinks` in FILE contains no enabled sink: at least one is required",
        ),
        (
            "pipeline.sources = []",
            "`pipeline.sources` in FILE contains no enabled source: at least one is required",
        ),
        (
            "pipeline.filters = [\"meta\", \"x\", \"meta\"]",
            "`pipeline.filters` in FILE contains `meta` twice: give the second one another name, and set `type = \"meta\"` in its table",
        ),
        (
            "pipeline.filters = [\"My_Filter\"]",
            "`pipeline.filters[0]` in FILE is \"My_Filter\", must be lower-case words with hyphens, such as `my-stage`",
        ),
        (
            "[filter.My_Filter]",
            "`filter.My_Filter` in FILE is named \"My_Filter\", must be lower-case words with hyphens, such as `my-stage`",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(user(text).error(), expected.replace("FILE", LINE_1), "{text}");
    }
}

/// The directory of the socket is one that the agent may write to.
#[cfg(unix)]
#[test]
fn socket_of_metrics_has_a_directory_of_its_own() {
    let listen = |socket: &str| {
        let machine = Machine::new();
        let socket = machine.paths.home.join(socket);
        machine.user(&format!("metrics.listen = \"unix:{}\"", socket.display()))
    };
    for socket in ["/agent", "/./agent", "agent", "../agent", "run/../agent"] {
        let error = listen(socket).error();
        assert!(error.contains("must be in a directory of its own"), "{socket}: {error}");
    }
    for socket in ["/none/agent", "run/agent"] {
        assert!(listen(socket).settings().metrics_listen.is_some(), "{socket}");
    }
}

#[test]
fn error_names_every_kind_of_layer() {
    let wrong = "shipping.batch_size = 0";
    let says = |machine: Machine| machine.error();
    let expected =
        |layer: &str| format!("`shipping.batch_size` in {layer} is 0, must be from 1 to 10000");
    let error = says(Machine::new().machine(wrong));
    assert_eq!(error, expected("the machine's file `DIR/etc/config.toml:1`"));
    let error = says(Machine::new().write("etc/config.d/50-x.toml", wrong));
    assert_eq!(error, expected("the machine's file `DIR/etc/config.d/50-x.toml:1`"));
    let error = says(Machine::new().explicit(wrong));
    assert_eq!(error, expected("the file `DIR/explicit.toml:1` given with --config"));
    let shipping = ManagedShipping { batch_size: Some(0), flush_interval_seconds: None };
    let managed = ManagedConfig { version: 1, shipping: Some(shipping), ..Default::default() };
    let error = says(Machine::new().managed(managed));
    assert_eq!(error, expected("the server's managed configuration"));
}

/// The error names the layer of the value, not the last layer that contains the table.
#[test]
fn error_names_the_layer_of_the_value() {
    let machine = Machine::new()
        .machine("[shipping]\nbatch_size = 0")
        .user("[shipping]\nflush_interval = \"1s\"");
    assert!(machine.error().contains("the machine's file `DIR/etc/config.toml:2` is 0"));
}

#[test]
fn error_names_the_variable() {
    let error = Machine::new().variable("CLAUDE_SIEM_POLL_INTERVAL", "30s").error();
    assert_eq!(
        error,
        "`agent.poll_interval` in the environment variable `CLAUDE_SIEM_POLL_INTERVAL` is 30s, \
             must be at least 60s"
    );
    let error = Machine::new().variable("CLAUDE_SIEM_POLL_INTERVAL", "often").error();
    assert_eq!(
        error,
        "`agent.poll_interval` in the environment variable `CLAUDE_SIEM_POLL_INTERVAL` is invalid: `often` is not a duration such as \"300s\""
    );
}

#[cfg(unix)]
#[test]
fn variable_that_is_not_utf_8_is_an_error() {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

    let machine = Machine::new();
    let value = OsString::from_vec(vec![0xff]);
    let environment = Environment::from_iter([("CLAUDE_SIEM_TOKEN", value)]);
    let inputs = ConfigInputs {
        paths: &machine.paths,
        environment: &environment,
        explicit: None,
        managed: None,
    };
    assert_eq!(
        load(&inputs).unwrap_err().to_string(),
        "`sink.siem.token` in the environment variable `CLAUDE_SIEM_TOKEN` is not valid UTF-8"
    );
}

#[test]
fn invalid_toml_is_an_error_with_its_position() {
    let error = user("# ü\n[agent]\npoll_interval = = 3").error();
    let start = format!("{FILE} is not valid TOML: line 3, column 17: ");
    assert!(error.starts_with(&start), "{error}");
}

#[test]
fn missing_explicit_file_is_an_error() {
    let mut machine = Machine::new();
    machine.explicit = Some(machine.path("none.toml"));
    assert_eq!(machine.error(), "cannot read the file `DIR/none.toml` given with --config");
}

#[test]
fn unreadable_file_is_an_error() {
    let machine = Machine::new();
    fs::create_dir(machine.path("etc/config.d/x.toml")).unwrap();
    assert_eq!(machine.error(), "cannot read the machine's file `DIR/etc/config.d/x.toml`");
    let machine = Machine::new().write("home/config.toml", b"a = \"\xff\"");
    assert_eq!(machine.error(), format!("cannot read {FILE}"));
}

#[test]
fn byte_order_mark_is_accepted() {
    let settings = user("\u{feff}shipping.batch_size = 3").settings();
    assert_eq!(settings.shipping.batch_size, 3);
}

/// A list of any length was accepted, and each stage costs memory and time.
#[test]
fn more_stages_than_the_limit_are_refused() {
    let filters = |count: usize| {
        let names = (0..count).map(|n| format!("\"f{n}\"")).collect::<Vec<_>>();
        let tables = (0..count).map(|n| format!("[filter.f{n}]\ntype = \"meta\"\n"));
        format!("pipeline.filters = [{}]\n{}", names.join(","), tables.collect::<String>())
    };
    let loaded = user(&filters(200)).load().unwrap();
    assert!(loaded.settings.pipeline.filters.len() >= 200);
    let error = user(&filters(300)).error();
    let expected = "`pipeline.filters` in FILE ends with stage 302 of the pipeline, at most 256 stages \
                    are allowed in all lists";
    assert_eq!(error, expected.replace("FILE", LINE_1));
}
