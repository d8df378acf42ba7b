//! Everything that can happen to a file, with the expected outcome for every kind of watcher.

use super::{
    case_table::{CaseOutcome, FileStep, Generation, check, generation, generation_from},
    *,
};

use FileStep::{Copy, Cut, Delete, FailCommit, Jump, Link, Pass, Read, Rename, Restart, Touch};

const A: &str = "a.jsonl";
const B: &str = "b.jsonl";
const TEN_MINUTES: FileStep = Pass(Duration::from_secs(700));

fn write(name: &'static str, bytes: impl AsRef<[u8]>) -> FileStep {
    FileStep::Write(name, bytes.as_ref().to_vec())
}

fn append(name: &'static str, bytes: impl AsRef<[u8]>) -> FileStep {
    FileStep::Append(name, bytes.as_ref().to_vec())
}

fn replace(name: &'static str, bytes: impl AsRef<[u8]>) -> FileStep {
    FileStep::Replace(name, bytes.as_ref().to_vec())
}

/// CaseOutcome with lines only.
fn plain(generations: &[Generation]) -> CaseOutcome {
    CaseOutcome { generations: generations.to_vec(), ..CaseOutcome::default() }
}

/// CaseOutcome with lines and events.
fn with(generations: &[Generation], events: &[&'static str]) -> CaseOutcome {
    CaseOutcome { events: events.to_vec(), ..plain(generations) }
}

/// CaseOutcome with lines, events and unread bytes.
fn lost(generations: &[Generation], events: &[&'static str], unread: u64) -> CaseOutcome {
    CaseOutcome { unread, ..with(generations, events) }
}

#[test]
fn appended_lines_are_read() {
    let steps = [write(A, "one\n"), Read, append(A, "two\nthree\n"), Read, append(A, "4\n"), Read];
    check("appended", &steps, &plain(&[generation(A, 16, &["one", "two", "three", "4"])]));
}

#[test]
fn incomplete_line_waits_until_completed() {
    let steps = [write(A, "one\ntw"), Read, TEN_MINUTES, Read, TEN_MINUTES, Read];
    check("still partial", &steps, &plain(&[generation(A, 4, &["one"])]));
    let steps = [&steps[..], &[append(A, "o\n"), Read]].concat();
    check("completed", &steps, &plain(&[generation(A, 8, &["one", "two"])]));
}

#[test]
fn renamed_file_continues() {
    let steps = [write(A, "one\ntw"), Read, Rename(A, B), append(B, "o\n"), Read];
    check("renamed", &steps, &plain(&[generation("a.jsonl > b.jsonl", 8, &["one", "two"])]));
    let steps = [
        write(A, "one\n"),
        Read,
        Rename(A, "p/q/a.jsonl"),
        Read,
        append("p/q/a.jsonl", "two\n"),
        Read,
    ];
    let expected = plain(&[generation("a.jsonl > p/q/a.jsonl", 8, &["one", "two"])]);
    check("moved between folders", &steps, &expected);
    let steps =
        [write(A, "one\n"), Read, Rename(A, B), write(A, "new\n"), append(B, "two\n"), Read];
    let expected =
        plain(&[generation(A, 4, &["new"]), generation("a.jsonl > b.jsonl", 8, &["one", "two"])]);
    check("renamed, with another file in its place", &steps, &expected);
}

#[test]
fn deleted_file_with_unread_bytes() {
    let open = [
        write(A, "one\n"),
        Read,
        append(A, "two\n"),
        Read,
        append(A, "three\nfour\n"),
        Delete(A),
        Read,
    ];
    let expected = plain(&[generation(A, 19, &["one", "two", "three", "four"])]);
    check("read from the open handle", &open, &expected);
    let closed = [write(A, "one\ntwo"), Read, Restart, Delete(A), Read];
    let expected = lost(&[generation(A, 4, &["one"])], &[event::FILE_DELETED_UNREAD], 3);
    check("no handle is open", &closed, &expected);
}

#[test_requires::requires(not_wine)]
#[test]
fn deleted_file_with_an_incomplete_last_line() {
    let open = [write(A, "one\n"), Read, append(A, "tw"), Read, Delete(A), Read];
    check("from the open handle", &open, &plain(&[generation(A, 6, &["one", "tw…"])]));
    let kept = [write(A, "one\ntw"), Read, TEN_MINUTES, Read, Restart, Delete(A), Read];
    check("from the row", &kept, &plain(&[generation(A, 6, &["one", "tw…"])]));
    let kept = [write(A, "one\ntw"), Read, TEN_MINUTES, Read];
    let end = [TEN_MINUTES, Read, Restart, Delete(A), Read];
    let grown = [&kept[..], &[append(A, "oo"), Read], &end].concat();
    check("grown since", &grown, &plain(&[generation(A, 8, &["one", "twoo…"])]));
    let done = [&kept[..], &[append(A, "o\nthree\n"), Read], &end].concat();
    check("completed since", &done, &plain(&[generation(A, 14, &["one", "two", "three"])]));
}

#[test]
fn deleted_and_recreated_file() {
    let steps = [write(A, "one\n"), Read, Delete(A), write(A, "new\n"), Read];
    let generations = [generation(A, 4, &["one"]), generation(A, 4, &["new"])];
    check("between two checks", &steps, &with(&generations, &[event::FILE_REWRITTEN]));
    let steps = [write(A, "one\n"), Read, Delete(A), Read, write(A, "new\n"), Read];
    check("after the deletion was found", &steps, &plain(&generations));
    let steps = [write(A, "one\n"), Read, Delete(A), write(A, "one\ntwo\n"), Read];
    check("with the same bytes", &steps, &plain(&[generation(A, 8, &["one", "two"])]));
}

/// A file with a reused id cannot be distinguished from the old file with other bytes.
#[test]
fn deleted_file_whose_id_is_reused() {
    let steps = [write(A, "one\ntwo\n"), Read, write(A, "new\nnew\n"), Read];
    let generations = [generation(A, 8, &["one", "two"]), generation(A, 8, &["new", "new"])];
    check("under the same name", &steps, &with(&generations, &[event::FILE_REWRITTEN]));
    for (name, content) in [("shorter", "new\n"), ("longer", "new one\nnew two\nnew three\n")] {
        let steps = [write(A, "one\ntwo\n"), Read, Rename(A, B), write(B, content), Read];
        let new: Vec<_> = content.lines().collect();
        let generations =
            [generation(A, 8, &["one", "two"]), generation(B, content.len() as u64, &new)];
        check(name, &steps, &plain(&generations));
    }
}

#[test]
fn file_truncated_to_zero() {
    let steps = [write(A, "one\ntwo\n"), Read, Cut(A, 0), Read, append(A, "new\n"), Read];
    let generations = [generation(A, 8, &["one", "two"]), generation(A, 4, &["new"])];
    check("found empty", &steps, &with(&generations, &[event::FILE_REWRITTEN]));
    let steps = [write(A, "one\ntwo\n"), Read, Cut(A, 0), append(A, "new\n"), Read];
    check("found with new lines", &steps, &with(&generations, &[event::FILE_REWRITTEN]));
    let steps = [write(A, "one\ntwo\n"), Read, Cut(A, 0), append(A, "one\ntwo\nnew\n"), Read];
    let generations = [generation(A, 12, &["one", "two", "new"])];
    check("written again with the same bytes", &steps, &plain(&generations));
}

/// The client cuts off an entry that it could not complete, and continues.
#[test]
fn file_with_its_last_lines_cut_off() {
    let cut = [write(A, "one\ntwo\nthree\n"), Read, Cut(A, 8), append(A, "other\nmore\n"), Read];
    let generations = [
        generation(A, 14, &["one", "two", "three"]),
        generation_from(A, 8, 11, &["other", "more"]),
    ];
    check("at a boundary", &cut, &with(&generations, &[event::FILE_TRIMMED]));
    let seen = [write(A, "one\ntwo\nthree\n"), Read, Cut(A, 8), Read, append(A, "other\n"), Read];
    let generations =
        [generation(A, 14, &["one", "two", "three"]), generation_from(A, 8, 6, &["other"])];
    check("found short", &seen, &with(&generations, &[event::FILE_TRIMMED]));
    let inside = [write(A, "one\ntwo\nthree\n"), Read, Cut(A, 6), append(A, "ice\nx\n"), Read];
    let generations =
        [generation(A, 14, &["one", "two", "three"]), generation_from(A, 4, 8, &["twice", "x"])];
    check("within a line", &inside, &with(&generations, &[event::FILE_TRIMMED]));
    let same = [write(A, "one\ntwo\nthree\n"), Read, Cut(A, 8), append(A, "three\nfour\n"), Read];
    let generations = [generation(A, 19, &["one", "two", "three", "four"])];
    check("and written again", &same, &plain(&generations));
}

#[test]
fn rewritten_file() {
    let steps = [write(A, "one\ntwo\n"), Read, write(A, "ONE\nTWO\n"), Read];
    let generations = [generation(A, 8, &["one", "two"]), generation(A, 8, &["ONE", "TWO"])];
    check("with the same length", &steps, &with(&generations, &[event::FILE_REWRITTEN]));

    let head = "x".repeat(1023) + "\n";
    let (old, new) = (format!("{head}one\ntwo\n"), format!("{head}ONE\nTWO\nthree\n"));
    let steps = [write(A, &old), Read, write(A, &new), Read];
    let first = head.trim_end();
    let generations = [
        generation(A, 1032, &[first, "one", "two"]),
        generation_from(A, 1024, 14, &["ONE", "TWO", "three"]),
    ];
    check(
        "with the same first kilobyte, a few lines",
        &steps,
        &with(&generations, &[event::FILE_TRIMMED]),
    );

    let many = |word: &str| (0..100).map(|n| format!("{word}{n:03}\n")).collect::<String>();
    let (old, new) = (head.clone() + &many("old"), head.clone() + &many("new"));
    let steps = [write(A, &old), Read, write(A, &new), Read];
    let lines = |text: &'static str| text.lines().collect::<Vec<_>>();
    let (old, new): (&str, &str) = (old.leak(), new.leak());
    let generations = [
        generation(A, old.len() as u64, &lines(old)),
        generation(A, new.len() as u64, &lines(new)),
    ];
    check(
        "with the same first kilobyte, many lines",
        &steps,
        &with(&generations, &[event::FILE_REWRITTEN]),
    );

    let many: String = (0..300).map(|n| format!("{{\"the same line\":{n}}}\n")).collect();
    let [old, new]: [&str; 2] = ["old\n", "new\n"].map(|first| &*(first.to_owned() + &many).leak());
    let steps = [write(A, old), Read, write(A, new), Read];
    let generations = [old, new].map(|text| generation(A, text.len() as u64, &lines(text)));
    check("with the same end", &steps, &with(&generations, &[event::FILE_REWRITTEN]));
}

/// Log rotation by copying and truncating. The copy is a new file: lines that were read before are
/// read from both, and lines that were not are read from the copy.
#[test]
fn copied_and_truncated_file() {
    let old = (0..150).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>();
    let (read, unread) = old.split_at(old.find("{\"n\":115}").unwrap());
    let lines = |text: &'static str| text.lines().collect::<Vec<_>>();
    let (all, read, unread) = (&*old.clone().leak(), &*read.to_owned().leak(), unread.to_owned());

    let steps = [write(A, all), Read, Copy(A, B), Cut(A, 0), append(A, "new\n"), Read];
    let [whole, copy] = [A, B].map(|name| generation(name, all.len() as u64, &lines(all)));
    let expected =
        with(&[whole, generation(A, 4, &["new"]), copy.clone()], &[event::FILE_REWRITTEN]);
    check("all was read", &steps, &expected);

    let steps =
        [write(A, read), Read, append(A, unread), Copy(A, B), Cut(A, 0), append(A, "new\n"), Read];
    let first = generation(A, read.len() as u64, &lines(read));
    assert_eq!((first.lines.len(), copy.lines.len()), (115, 150));
    let expected = with(&[first, generation(A, 4, &["new"]), copy], &[event::FILE_REWRITTEN]);
    check("the agent was slow", &steps, &expected);
}

#[test]
fn replaced_file() {
    let steps = [write(A, "one\ntwo\n"), Read, replace(A, "one\ntwo\nthree\n"), Read];
    check("by a longer copy", &steps, &plain(&[generation(A, 14, &["one", "two", "three"])]));
    let steps = [write(A, "one\ntwo\n"), Read, replace(A, "ONE\ntwo\nthree\n"), Read];
    let generations =
        [generation(A, 8, &["one", "two"]), generation(A, 14, &["ONE", "two", "three"])];
    check("by other bytes", &steps, &with(&generations, &[event::FILE_REWRITTEN]));
    let steps =
        [write(A, "one\ntwo\n"), Read, replace(A, "one\ntwo\n"), Read, append(A, "3\n"), Read];
    check(
        "by the same, under another id",
        &steps,
        &plain(&[generation(A, 10, &["one", "two", "3"])]),
    );
    let steps = [write(A, "one\n"), Read, Restart, replace(A, "one\n"), append(A, "two\n"), Read];
    check("while the agent was stopped", &steps, &plain(&[generation(A, 8, &["one", "two"])]));
}

/// It is unknown which of two hard links will be continued, so both are read.
#[test_requires::requires(not_wine)]
#[test]
fn file_with_two_links() {
    let steps = [
        write(A, "one\n"),
        Read,
        Link(A, B),
        append(A, "two\n"),
        Read,
        Read,
        append(B, "3\n"),
        Read,
    ];
    let generations = [A, B].map(|name| generation(name, 10, &["one", "two", "3"]));
    check("while it is read", &steps, &with(&generations, &[event::FILE_LINKED]));
    let steps = [write(A, "one\n"), Link(A, B), Read, Restart, Read];
    let generations = [A, B].map(|name| generation(name, 4, &["one"]));
    check("from the start", &steps, &with(&generations, &[event::FILE_LINKED]));
    let steps = [write(A, "one\n"), Read, Link(A, B), Delete(A), append(B, "two\n"), Read];
    check(
        "a rename in two steps",
        &steps,
        &plain(&[generation("a.jsonl > b.jsonl", 8, &["one", "two"])]),
    );
    let steps =
        [write(A, "one\n"), Read, Link(A, B), Read, Delete(A), Read, append(B, "two\n"), Read];
    let generations = [generation(A, 4, &["one"]), generation(B, 8, &["one", "two"])];
    check("one of them goes", &steps, &with(&generations, &[event::FILE_LINKED]));
}

/// The unread bytes of the replaced file are read through its handle, and come first.
#[test_requires::requires(not_wine)]
#[test]
fn replaced_file_with_unread_bytes() {
    let open = [
        write(A, "one\n"),
        Read,
        append(A, "two\n"),
        Read,
        append(A, "three\nfo"),
        replace(A, "new\n"),
        Read,
    ];
    let generations =
        [generation(A, 16, &["one", "two", "three", "fo…"]), generation(A, 4, &["new"])];
    check("by other bytes", &open, &with(&generations, &[event::FILE_REWRITTEN]));
    let open = [
        write(A, "one\n"),
        Read,
        append(A, "two\n"),
        Read,
        append(A, "three\nfo"),
        replace(A, "one\ntwo\nthree\nfour\n"),
        Read,
    ];
    let expected = plain(&[generation(A, 19, &["one", "two", "three", "four"])]);
    check("by the same bytes and more", &open, &expected);
    let closed = [write(A, "one\ntwo"), Read, Restart, replace(A, "new\n"), Read];
    let generations = [generation(A, 4, &["one"]), generation(A, 4, &["new"])];
    let events = [event::FILE_DELETED_UNREAD, event::FILE_REWRITTEN];
    check("no handle is open", &closed, &lost(&generations, &events, 3));
    let kept = [write(A, "one\ntwo"), Read, TEN_MINUTES, Read, Restart, replace(A, "new\n"), Read];
    let generations = [generation(A, 7, &["one", "two…"]), generation(A, 4, &["new"])];
    check("the row has it", &kept, &with(&generations, &[event::FILE_REWRITTEN]));
    let written_over = [write(A, "one\ntwo"), Read, write(A, "new\n"), Read];
    let generations = [generation(A, 4, &["one"]), generation(A, 4, &["new"])];
    check("in place", &written_over, &lost(&generations, &events, 3));
}

/// Content written before the deletion is read through the handle too.
#[test_requires::requires(not_wine)]
#[test]
fn rewritten_and_then_deleted_file() {
    let start = [write(A, "one\n"), Read, append(A, "two\nthr"), Read];
    let first = generation(A, 8, &["one", "two"]);
    let events = [event::FILE_DELETED_UNREAD, event::FILE_REWRITTEN];
    for content in ["NEW\n", "NEW ONE\nNEW TWO\n"] {
        let lines: Vec<_> = content.lines().collect();
        let second = generation(A, content.len() as u64, &lines);
        let deleted = [&start[..], &[write(A, content), Delete(A), Read]].concat();
        let generations = [first.clone(), second.clone()];
        check("deleted", &deleted, &lost(&generations, &events, 3));
        let replaced = [&start[..], &[write(A, content), replace(A, "3\n"), Read]].concat();
        let generations = [first.clone(), second, generation(A, 2, &["3"])];
        let events = [&events[..], &[event::FILE_REWRITTEN]].concat();
        check("replaced", &replaced, &lost(&generations, &events, 3));
    }
    let emptied = [&start[..], &[Cut(A, 0), Delete(A), Read]].concat();
    check("emptied", &emptied, &lost(&[first], &events, 3));
}

#[test]
fn touched_file_is_not_read_again() {
    for (name, seconds) in [("later", 4_000_000_000), ("back", 1_000_000_000), ("to zero", 0)] {
        let steps = [
            write(A, "one\n"),
            Read,
            Touch(A, seconds),
            Read,
            append(A, "two\n"),
            Touch(A, seconds),
            Read,
        ];
        check(name, &steps, &plain(&[generation(A, 8, &["one", "two"])]));
    }
}

#[test]
fn unusual_lines_are_read_unchanged() {
    let steps = [write(A, "one\r\ntwo\n\r\n\nthree\r"), Read, append(A, "\nfo\rur\n"), Read];
    let expected = plain(&[generation(A, 25, &["one", "two", "", "", "three", "fo\rur"])]);
    check("mixed endings", &steps, &expected);
    let nul = [&[0; 5000][..], b"{\"n\":1}\n", &[0; 3], b"\n"].concat();
    let steps = [write(A, "one\n"), Read, append(A, &nul), Read];
    let line = "\0".repeat(5000) + "{\"n\":1}";
    check("runs of NUL", &steps, &plain(&[generation(A, 5016, &["one", &line, "\0\0\0"])]));
    let two = r#"{"n":1}{"n":2}"#;
    let steps = [write(A, format!("{two}\n")), Read];
    check("two records on one line", &steps, &plain(&[generation(A, 15, &[two])]));
    let torn = "{\"n\":1,\"te{\"n\":2}";
    let steps = [write(A, "{\"n\":1,\"te"), Read, append(A, "{\"n\":2}\n{\"n\":3}\n"), Read];
    check("torn in the middle", &steps, &plain(&[generation(A, 26, &[torn, "{\"n\":3}"])]));
}

#[test]
fn tiny_files() {
    let steps = [write(A, ""), Read, append(A, "x"), Read, append(A, "\n"), Read];
    check("from no bytes", &steps, &plain(&[generation(A, 2, &["x"])]));
    check("one byte", &[write(A, "\n"), Read], &plain(&[generation(A, 1, &[""])]));
    check("no bytes", &[write(A, ""), Read, Delete(A), Read], &plain(&[]));
    let steps = [write(A, "x"), Read, Rename(A, B), append(B, "\n"), Read];
    check("one byte, renamed", &steps, &plain(&[generation(B, 2, &["x"])]));
    let steps = [write(A, "1\n"), Read, write(A, "2\n"), Read];
    let generations = [generation(A, 2, &["1"]), generation(A, 2, &["2"])];
    check("two bytes, rewritten", &steps, &with(&generations, &[event::FILE_REWRITTEN]));
}

const YEAR: i64 = 365 * 24 * 3600;

#[test]
fn files_are_read_across_clock_jumps() {
    for (name, jump) in [("forward", YEAR), ("back", -YEAR)] {
        let steps = [
            write(A, "one\ntw"),
            Read,
            Jump(jump),
            append(A, "o\nthr"),
            write(B, "new\n"),
            Read,
            TEN_MINUTES,
            Read,
            Jump(-jump),
            Rename(B, "c.jsonl"),
            Read,
            Restart,
            Delete(A),
            Read,
        ];
        let generations = [generation(A, 11, &["one", "two", "thr…"]), generation(B, 4, &["new"])];
        check(name, &steps, &plain(&generations));
    }
}

#[test]
fn group_lost_at_any_step_is_read_again() {
    let steps = [
        write(A, "one\n"),
        FailCommit,
        Read,
        append(A, "two\nth"),
        FailCommit,
        FailCommit,
        Read,
        append(A, "ree\n"),
        FailCommit,
        Read,
    ];
    check("appended", &steps, &plain(&[generation(A, 14, &["one", "two", "three"])]));
    let steps = [write(A, "one\n"), Read, Rename(A, B), append(B, "two\n"), FailCommit, Read];
    check("renamed", &steps, &plain(&[generation("a.jsonl > b.jsonl", 8, &["one", "two"])]));
    let steps = [write(A, "one\ntwo\n"), Read, write(A, "new\nnew\n"), FailCommit, Read];
    let generations = [generation(A, 8, &["one", "two"]), generation(A, 8, &["new", "new"])];
    check("rewritten", &steps, &with(&generations, &[event::FILE_REWRITTEN]));
    let steps = [write(A, "one\ntwo\n"), Read, Cut(A, 4), append(A, "new\n"), FailCommit, Read];
    let generations = [generation(A, 8, &["one", "two"]), generation_from(A, 4, 4, &["new"])];
    check("trimmed", &steps, &with(&generations, &[event::FILE_TRIMMED]));
}

/// A file that is deleted while the store fails is readable only through its handle.
#[test_requires::requires(not_wine)]
#[test]
fn file_deleted_before_the_store_failed() {
    let steps = [
        write(A, "one\n"),
        Read,
        append(A, "two\n"),
        Read,
        append(A, "three\nfour"),
        Delete(A),
        FailCommit,
        FailCommit,
        Read,
    ];
    check("deleted", &steps, &plain(&[generation(A, 18, &["one", "two", "three", "four…"])]));
    let steps = [
        write(A, "one\n"),
        Read,
        append(A, "two\n"),
        Read,
        append(A, "three\nfour"),
        replace(A, "new\n"),
        FailCommit,
        FailCommit,
        Read,
    ];
    let generations =
        [generation(A, 18, &["one", "two", "three", "four…"]), generation(A, 4, &["new"])];
    check("replaced", &steps, &with(&generations, &[event::FILE_REWRITTEN]));
    let steps = [
        write(B, "b\n"),
        Read,
        Jump(-500),
        write(A, "one\n"),
        FailCommit,
        Delete(A),
        FailCommit,
        Read,
    ];
    check("never stored", &steps, &plain(&[generation(A, 4, &["one"]), generation(B, 2, &["b"])]));
    let steps = [
        write(B, "b\n"),
        Read,
        // With this clock, a file that was just written seems old.
        Jump(-500),
        write(A, "one\n"),
        FailCommit,
        Rename(A, "c.jsonl"),
        Read,
        append("c.jsonl", "two\n"),
        Read,
    ];
    let generations = [generation(B, 2, &["b"]), generation("c.jsonl", 8, &["one", "two"])];
    check("never stored, and moved", &steps, &plain(&generations));
}

#[cfg(unix)]
#[test]
fn special_files_are_ignored() {
    use super::case_table::SpecialFile::{Directory, Fifo, Socket};
    for special in [Fifo, Socket, Directory] {
        let steps = [
            FileStep::Special(A, special),
            write(B, "one\n"),
            Read,
            FileStep::Special("c.jsonl", special),
            append(B, "two\n"),
            Read,
        ];
        check(&format!("{special:?}"), &steps, &plain(&[generation(B, 8, &["one", "two"])]));
        let steps = [write(A, "one\n"), Read, Delete(A), FileStep::Special(A, special), Read];
        check(
            &format!("{special:?} in place of a file"),
            &steps,
            &plain(&[generation(A, 4, &["one"])]),
        );
    }
}
