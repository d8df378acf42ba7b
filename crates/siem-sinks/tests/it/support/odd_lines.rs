//! Lines that no client should write: each must arrive with its bytes, or be reported.

/// Returns lines without their line ending. One is 2 MB long.
pub(crate) fn odd_lines() -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = ODD.iter().map(|line| line.to_vec()).collect();
    lines.push([b"[".repeat(300), b"]".repeat(300)].concat());
    lines.push((0..=0x1f).filter(|byte| *byte != b'\n').collect());
    lines.push((0..=0xff).filter(|byte| *byte != b'\n').collect());
    lines.push(format!(r#"{{"long":"{}"}}"#, long_text(2_000_000)).into_bytes());
    lines.push(b"\xfe".repeat(70_000));
    lines
}

/// Returns text of about `length` bytes with characters of each length, quotes, and escapes.
pub(crate) fn long_text(length: usize) -> String {
    let piece = "plain text, \\\"quoted\\\", \u{e4}\u{20ac}\u{1f980}, \\\\ \\n \\u0000 ";
    piece.repeat(length.div_ceil(piece.len()))
}

const ODD: [&[u8]; 47] = [
    // Not JSON.
    b"",
    b" ",
    b"\t \r",
    b"\0",
    b"\0\0\0\0{\"type\":\"user\"}",
    b"{\"text\":\"a\0b\"}",
    b"{\"type\":\"user\"",
    b"}",
    b"{\"a\":1}{\"b\":2}",
    b"{\"a\":1},",
    b"{\"a\":1}\r",
    b" {\"a\":1} ",
    b"{\"number\":NaN}",
    b"[Infinity,-Infinity]",
    b"a line of text",
    b"'single' \"double\" \\back\\slash\\",
    b"\\",
    b"\"",
    b"<34>1 2026-11-21T20:00:00Z host app - - - looks like syslog",
    b"{\"create\":{}}",
    b"{\"event\":\"x\",\"unknown\":1}",
    b"\x1b[31mred\x1b[0m",
    // JSON that is rare.
    b"null",
    b"true",
    b"false",
    b"0",
    b"-0.0e-7",
    b"1e999999",
    b"12345678901234567890123456789012345678901234567890.000000000000000000000000001",
    b"\"\"",
    b"\" \"",
    b"[]",
    b"{}",
    b"{\"a\":1,\"a\":2}",
    b"{\"\":\"\",\"\":null}",
    b"{\"text\":\"\\ud800\"}",
    b"{\"text\":\"\\ude00\\ud83d\"}",
    b"{\"text\":\"\\u0000\\u001f\\/\"}",
    // Unusual characters.
    b"\xef\xbb\xbf{\"a\":1}",
    b"{\"text\":\"\xe2\x80\xa8\xe2\x80\xa9\xc2\x85\x7f\"}",
    b"{\"text\":\"\xef\xbf\xbf\xef\xbf\xbe\xf4\x8f\xbf\xbf\"}",
    b"\xc2\xa0\xe3\x80\x80",
    // Not UTF-8.
    b"\xff",
    b"{\"text\":\"\xe4\"}",
    b"{\"text\":\"\xed\xa0\x80\"}",
    b"{\"text\":\"\xf0\x9f\x98\"}",
    b"\xc0\x80",
];
