//! `siem-server line`: lines as they were in their files.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use siem_protocol::{
    Content, Cut, Digest, LineDigests, NulRun,
    entry::{ALTERED, PartLine, PathText, RecordLine},
    nul_runs::{Folded, LineHasher, Segment},
};

fn run(data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_siem-server"));
    command.arg("line").arg("--data").arg(data).args(arguments);
    command.stdin(Stdio::null()).output().unwrap()
}

fn part(number: u32, bytes: &[u8], runs: &[NulRun], whole: Option<LineDigests>) -> String {
    let part = PartLine {
        source: "claude-sessions",
        path: &PathText::new(Path::new("/p")),
        generation: "g",
        offset: 7,
        part: number,
        read_at: "2026-11-21T20:00:01.000Z",
        enriched: "",
        whole,
        incomplete: false,
        nul_runs: runs,
        bytes,
    };
    written(|line| part.write(number.into(), line))
}

fn record(bytes: &[u8], runs: &[NulRun], cut: &[Cut]) -> String {
    enriched_record(bytes, runs, cut, "")
}

fn enriched_record(bytes: &[u8], runs: &[NulRun], cut: &[Cut], enriched: &str) -> String {
    let digests = LineDigests::of(bytes, runs).unwrap();
    let record = RecordLine {
        source: "claude-sessions",
        path: &PathText::new(Path::new("/p")),
        generation: "g",
        offset: 7,
        length: digests.length,
        read_at: "2026-11-21T20:00:01.000Z",
        enriched,
        cut,
        masked: &[],
        sha256: None,
        folded: Some(Folded { runs, digests }),
        incomplete: false,
        content: Content::Bytes(bytes),
    };
    written(|line| record.write(1, line))
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut line = Vec::new();
    write(&mut line);
    String::from_utf8(line).unwrap() + "\n"
}

/// Creates a data directory with entries in two epochs.
fn data(epochs: [&str; 2]) -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    let machine = data.path().join("machines/m");
    fs::create_dir_all(&machine).unwrap();
    for (name, lines) in ["b", "a"].into_iter().zip(epochs) {
        fs::write(machine.join(name).with_extension("ndjson"), lines).unwrap();
    }
    data
}

#[test]
fn parts_are_joined_with_their_runs() {
    let run_of = |offset, length| NulRun { offset, length };
    let (runs, more) = ([run_of(1, 5000)], [run_of(0, 4096), run_of(4097, 10 << 20)]);
    let mut hasher = LineHasher::default();
    let mut line = Vec::new();
    for (data, nuls) in [("a", 5000), ("b", 4096), ("c", 10 << 20), ("d", 0)] {
        hasher.update(Segment::Data(data.as_bytes()));
        hasher.update(Segment::Nuls(nuls));
        line.extend_from_slice(data.as_bytes());
        line.resize(line.len() + nuls as usize, 0);
    }
    let digests = hasher.finish();
    assert_eq!(digests.sha256, Some(Digest::of(&line)));
    let first = part(1, b"ab", &runs, None);
    let last = part(2, b"cd", &more, Some(digests));
    let data_directory = data([&first, &last]);
    let output = run(data_directory.path(), &["g", "7"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout.len(), line.len());
    assert!(output.stdout == line);

    let file = data_directory.path().join("line");
    let name = file.to_str().unwrap();
    let output = run(data_directory.path(), &["g", "7", "--output", name]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(&file).unwrap() == line);
    assert_eq!(run(data_directory.path(), &["g", "7", "--output", name]).status.code(), Some(1));
}

#[test]
fn altered_line_is_not_the_original() {
    let runs = [NulRun { offset: 0, length: 4096 }];
    let altered = enriched_record(b"b", &runs, &[], ALTERED);
    // The entries of the second argument are read first.
    let output = run(data([&record(b"a", &runs, &[]), &altered]).path(), &["g", "7"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && text.contains("altered"), "{text}");
    assert_eq!(output.stdout.last(), Some(&b'a'));
    let output = run(data([&altered, ""]).path(), &["g", "7"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: all entries"), "{text}");
    assert!(output.stdout.is_empty());
}

#[test]
fn line_that_cannot_be_restored_is_an_error() {
    let whole = LineDigests { length: 2, sha256: Some(Digest::of(b"xy")), folded_sha256: None };
    let cut = [Cut { by: "tool-call".into(), bytes: 3 }];
    let runs = [NulRun { offset: 0, length: 4096 }];
    for (entries, error) in [
        (part(1, b"a", &[], None), "the last part"),
        (part(2, b"a", &[], Some(whole)), "part 1"),
        (part(1, b"a", &[], None) + &part(2, b"b", &[], Some(whole)), "sha256"),
        (part(1, b"a", &[], Some(whole)), "length"),
        (record(b"a", &runs, &cut), "edited"),
        (record(b"a", &runs, &[]).replace("\"YQ==\"", "\"Yg==\""), "sha256"),
        (record(b"a", &runs, &[]).replace("4096]]", "4095]]"), "invalid runs"),
        (String::new(), "no entry"),
    ] {
        let output = run(data([&entries, "not an entry\n"]).path(), &["g", "7"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(error), "{text}");
    }
    let directory = data([&record(b"a", &runs, &[]), ""]);
    assert!(run(directory.path(), &["g", "7"]).status.success());
    assert_eq!(run(&directory.path().join("absent"), &["g", "7"]).status.code(), Some(2));
}
