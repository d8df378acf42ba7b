//! Our parser of audit lines compared with `linux-audit-parser` on lines that a kernel may write.

use std::{fs, path::Path};

use ai_agent_auditd::line::Line;
use linux_audit_parser::{Key, Number, Value, parse};
use proptest::prelude::*;

/// A field as both parsers report it: its name, and its bytes as text.
type Field = (String, Option<Vec<u8>>);

/// Fields found by the other parser. Those that it parses as numbers are returned as written.
fn theirs(line: &[u8]) -> (u64, u64, Vec<(Field, bool)>) {
    let whole = [line, b"\n"].concat();
    let message = parse(&whole, false).unwrap_or_else(|error| panic!("{error}"));
    let field = |(key, value): (Key, Value<'_>)| {
        let (bytes, is_number) = match &value {
            Value::Empty => (None, false),
            Value::Number(Number::Hex(number)) => (Some(format!("{number:x}").into_bytes()), true),
            Value::Number(Number::Oct(number)) => (Some(format!("{number:o}").into_bytes()), true),
            Value::Number(Number::Dec(number)) => (Some(number.to_string().into_bytes()), true),
            other => (Some(other.clone().try_into().unwrap()), false),
        };
        ((key.to_string(), bytes), is_number)
    };
    let id = message.id;
    (id.timestamp, id.sequence.into(), message.body.into_iter().map(field).collect())
}

fn compare(line: &[u8]) -> Result<(), TestCaseError> {
    let (millis, serial, expected) = theirs(line);
    let ours = Line::parse(line).unwrap();
    prop_assert_eq!((ours.id.millis, ours.id.serial), (millis, serial));
    let fields: Vec<_> = ours.fields().collect();
    prop_assert_eq!(fields.len(), expected.len(), "{}", line.escape_ascii());
    for ((key, value), ((their_key, their_value), is_number)) in fields.into_iter().zip(expected) {
        prop_assert_eq!(&String::from_utf8_lossy(key), &their_key);
        if is_number {
            // The number may have leading zeros.
            let word = String::from_utf8_lossy(value.word()).into_owned();
            let plain = word.trim_start_matches('0');
            let theirs = String::from_utf8(their_value.unwrap()).unwrap();
            prop_assert_eq!(plain, theirs.trim_start_matches('0'), "{}", their_key);
        } else if their_value.as_deref() != Some(value.word()) {
            let decoded = value.decoded().map(|it| it.into_owned());
            prop_assert_eq!(decoded, their_value, "{} in {}", their_key, line.escape_ascii());
        }
    }
    Ok(())
}

#[test]
fn recorded_audit_lines_parse_like_linux_audit_parser() {
    let log = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/auditd/real/audit.log");
    let bytes = fs::read(log).unwrap();
    let mut count = 0;
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        compare(line).unwrap();
        count += 1;
    }
    assert!(count > 50, "{count}");
}

/// A string as the kernel writes it: quoted, or in hex if it contains a space, a quote or a byte
/// that is not visible ASCII.
fn written(bytes: &[u8]) -> String {
    let is_plain = bytes.iter().all(|byte| matches!(byte, b'!' | b'#'..=b'~'));
    if is_plain {
        format!("\"{}\"", String::from_utf8_lossy(bytes))
    } else {
        bytes.iter().map(|byte| format!("{byte:02X}")).collect()
    }
}

proptest! {
    #[test]
    fn random_arguments_parse_like_linux_audit_parser(
        arguments in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..8),
        plain in proptest::collection::vec("[!#-~]{0,12}", 1..5),
        seconds in 0..2_000_000_000_u64,
        millis in 0..1000_u32,
        serial in any::<u32>(),
        cuts in 0..3_usize,
    ) {
        let mut line = format!("type=EXECVE msg=audit({seconds}.{millis:03}:{serial}): argc=9");
        let all = plain.iter().map(|it| it.as_bytes()).chain(arguments.iter().map(Vec::as_slice));
        for (index, argument) in all.enumerate() {
            if index == cuts {
                line += &format!(" a{index}_len=100 a{index}[0]={}", written(argument));
            } else {
                line += &format!(" a{index}={}", written(argument));
            }
        }
        compare(line.as_bytes())?;
    }

    #[test]
    fn random_calls_parse_like_linux_audit_parser(
        comm in proptest::collection::vec(any::<u8>(), 1..16),
        key in prop_oneof![Just("(null)".to_owned()), "[!#-~]{1,12}".prop_map(|it| format!("\"{it}\""))],
        pid in any::<u16>(),
        name in "[a-z]{1,8}",
        is_enriched in any::<bool>(),
    ) {
        let mut line = format!(
            "type=SYSCALL msg=audit(1.000:7): arch=c000003e syscall=59 success=yes exit=-13 a0=0 \
             a1=ffffffff items=2 ppid=1 pid={pid} auid=4294967295 tty=(none) comm={} key={key}",
            written(&comm)
        );
        if is_enriched {
            line += &format!("\u{1d}ARCH=x86_64 SYSCALL=execve AUID=\"unset\" UID=\"{name}\"");
        }
        compare(line.as_bytes())?;
    }
}
