//! The table: what can happen to a file, and what must come of it, whatever the watcher says.

use super::{
    case_table::{Life, Outcome, Step, check, life, life_from},
    *,
};

use Step::{Copy, Cut, Delete, FailCommit, Jump, Link, Pass, Read, Rename, Restart, Touch};

const A: &str = "a.jsonl";
const B: &str = "b.jsonl";
const TEN_MINUTES: Step = Pass(Duration::from_secs(700));

fn write(name: &'static str, bytes: impl AsRef<[u8]>) -> Step {
    Step::Write(name, bytes.as_ref().to_vec())
}

fn append(name: &'static str, bytes: impl AsRef<[u8]>) -> Step {
    Step::Append(name, bytes.as_ref().to_vec())
}

fn replace(name: &'static str, bytes: impl AsRef<[u8]>) -> Step {
    Step::Replace(name, bytes.as_ref().to_vec())
}

/// Nothing but lines came.
fn plain(lives: &[Life]) -> Outcome {
    Outcome { lives: lives.to_vec(), ..Outcome::default() }
}

/// Lines came, and events.
fn with(lives: &[Life], events: &[&'static str]) -> Outcome {
    Outcome { events: events.to_vec(), ..plain(lives) }
}

/// Bytes were lost unread, with these events.
fn lost(lives: &[Life], events: &[&'static str], unread: u64) -> Outcome {
    Outcome { unread, ..with(lives, events) }
}

#[test]
fn appended() {
    let steps = [write(A, "one\n"), Read, append(A, "two\nthree\n"), Read, append(A, "4\n"), Read];
    check("appended", &steps, &plain(&[life(A, 16, &["one", "two", "three", "4"])]));
}

#[test]
fn a_partial_line_for_long() {
    let steps = [write(A, "one\ntw"), Read, TEN_MINUTES, Read, TEN_MINUTES, Read];
    check("still partial", &steps, &plain(&[life(A, 4, &["one"])]));
    let steps = [&steps[..], &[append(A, "o\n"), Read]].concat();
    check("completed", &steps, &plain(&[life(A, 8, &["one", "two"])]));
}

#[test]
fn renamed() {
    let steps = [write(A, "one\ntw"), Read, Rename(A, B), append(B, "o\n"), Read];
    check("renamed", &steps, &plain(&[life("a.jsonl > b.jsonl", 8, &["one", "two"])]));
    let steps = [
        write(A, "one\n"),
        Read,
        Rename(A, "p/q/a.jsonl"),
        Read,
        append("p/q/a.jsonl", "two\n"),
        Read,
    ];
    let expected = plain(&[life("a.jsonl > p/q/a.jsonl", 8, &["one", "two"])]);
    check("moved between folders", &steps, &expected);
    let steps =
        [write(A, "one\n"), Read, Rename(A, B), write(A, "new\n"), append(B, "two\n"), Read];
    let expected = plain(&[life(A, 4, &["new"]), life("a.jsonl > b.jsonl", 8, &["one", "two"])]);
    check("renamed, and another file in its place", &steps, &expected);
}

#[test]
fn deleted_with_bytes_unread() {
    let open = [
        write(A, "one\n"),
        Read,
        append(A, "two\n"),
        Read,
        append(A, "three\nfour\n"),
        Delete(A),
        Read,
    ];
    let expected = plain(&[life(A, 19, &["one", "two", "three", "four"])]);
    check("read from the open handle", &open, &expected);
    let closed = [write(A, "one\ntwo"), Read, Restart, Delete(A), Read];
    let expected = lost(&[life(A, 4, &["one"])], &[event::FILE_DELETED_UNREAD], 3);
    check("no handle is open", &closed, &expected);
}

#[test_requires::requires(not_wine)]
#[test]
fn deleted_with_an_incomplete_last_line() {
    let open = [write(A, "one\n"), Read, append(A, "tw"), Read, Delete(A), Read];
    check("from the open handle", &open, &plain(&[life(A, 6, &["one", "tw…"])]));
    let kept = [write(A, "one\ntw"), Read, TEN_MINUTES, Read, Restart, Delete(A), Read];
    check("from the row", &kept, &plain(&[life(A, 6, &["one", "tw…"])]));
    let kept = [write(A, "one\ntw"), Read, TEN_MINUTES, Read];
    let end = [TEN_MINUTES, Read, Restart, Delete(A), Read];
    let grown = [&kept[..], &[append(A, "oo"), Read], &end].concat();
    check("grown since", &grown, &plain(&[life(A, 8, &["one", "twoo…"])]));
    let done = [&kept[..], &[append(A, "o\nthree\n"), Read], &end].concat();
    check("completed since", &done, &plain(&[life(A, 14, &["one", "two", "three"])]));
}

#[test]
fn deleted_and_made_anew() {
    let steps = [write(A, "one\n"), Read, Delete(A), write(A, "new\n"), Read];
    let lives = [life(A, 4, &["one"]), life(A, 4, &["new"])];
    check("between two looks", &steps, &with(&lives, &[event::FILE_REWRITTEN]));
    let steps = [write(A, "one\n"), Read, Delete(A), Read, write(A, "new\n"), Read];
    check("after it was found gone", &steps, &plain(&lives));
    let steps = [write(A, "one\n"), Read, Delete(A), write(A, "one\ntwo\n"), Read];
    check("with the same bytes", &steps, &plain(&[life(A, 8, &["one", "two"])]));
}

/// A file whose id is used again is, to all that can be seen, the old one with other bytes.
#[test]
fn deleted_and_its_id_used_again() {
    let steps = [write(A, "one\ntwo\n"), Read, write(A, "new\nnew\n"), Read];
    let lives = [life(A, 8, &["one", "two"]), life(A, 8, &["new", "new"])];
    check("under the same name", &steps, &with(&lives, &[event::FILE_REWRITTEN]));
    for (name, content) in [("shorter", "new\n"), ("longer", "new one\nnew two\nnew three\n")] {
        let steps = [write(A, "one\ntwo\n"), Read, Rename(A, B), write(B, content), Read];
        let new: Vec<_> = content.lines().collect();
        let lives = [life(A, 8, &["one", "two"]), life(B, content.len() as u64, &new)];
        check(name, &steps, &plain(&lives));
    }
}

#[test]
fn truncated_to_zero() {
    let steps = [write(A, "one\ntwo\n"), Read, Cut(A, 0), Read, append(A, "new\n"), Read];
    let lives = [life(A, 8, &["one", "two"]), life(A, 4, &["new"])];
    check("seen empty", &steps, &with(&lives, &[event::FILE_REWRITTEN]));
    let steps = [write(A, "one\ntwo\n"), Read, Cut(A, 0), append(A, "new\n"), Read];
    check("seen with new lines", &steps, &with(&lives, &[event::FILE_REWRITTEN]));
    let steps = [write(A, "one\ntwo\n"), Read, Cut(A, 0), append(A, "one\ntwo\nnew\n"), Read];
    let lives = [life(A, 12, &["one", "two", "new"])];
    check("written again with the same bytes", &steps, &plain(&lives));
}

/// The client cuts off what it could not complete, and goes on.
#[test]
fn its_last_lines_cut_off() {
    let cut = [write(A, "one\ntwo\nthree\n"), Read, Cut(A, 8), append(A, "other\nmore\n"), Read];
    let lives = [life(A, 14, &["one", "two", "three"]), life_from(A, 8, 11, &["other", "more"])];
    check("at a border", &cut, &with(&lives, &[event::FILE_TRIMMED]));
    let seen = [write(A, "one\ntwo\nthree\n"), Read, Cut(A, 8), Read, append(A, "other\n"), Read];
    let lives = [life(A, 14, &["one", "two", "three"]), life_from(A, 8, 6, &["other"])];
    check("seen short", &seen, &with(&lives, &[event::FILE_TRIMMED]));
    let inside = [write(A, "one\ntwo\nthree\n"), Read, Cut(A, 6), append(A, "ice\nx\n"), Read];
    let lives = [life(A, 14, &["one", "two", "three"]), life_from(A, 4, 8, &["twice", "x"])];
    check("within a line", &inside, &with(&lives, &[event::FILE_TRIMMED]));
    let same = [write(A, "one\ntwo\nthree\n"), Read, Cut(A, 8), append(A, "three\nfour\n"), Read];
    let lives = [life(A, 19, &["one", "two", "three", "four"])];
    check("and written again", &same, &plain(&lives));
}

#[test]
fn rewritten() {
    let steps = [write(A, "one\ntwo\n"), Read, write(A, "ONE\nTWO\n"), Read];
    let lives = [life(A, 8, &["one", "two"]), life(A, 8, &["ONE", "TWO"])];
    check("with the same length", &steps, &with(&lives, &[event::FILE_REWRITTEN]));

    let head = "x".repeat(1023) + "\n";
    let (old, new) = (format!("{head}one\ntwo\n"), format!("{head}ONE\nTWO\nthree\n"));
    let steps = [write(A, &old), Read, write(A, &new), Read];
    let first = head.trim_end();
    let lives =
        [life(A, 1032, &[first, "one", "two"]), life_from(A, 1024, 14, &["ONE", "TWO", "three"])];
    check(
        "with the same first kilobyte, a few lines",
        &steps,
        &with(&lives, &[event::FILE_TRIMMED]),
    );

    let many = |word: &str| (0..100).map(|n| format!("{word}{n:03}\n")).collect::<String>();
    let (old, new) = (head.clone() + &many("old"), head.clone() + &many("new"));
    let steps = [write(A, &old), Read, write(A, &new), Read];
    let lines = |text: &'static str| text.lines().collect::<Vec<_>>();
    let (old, new): (&str, &str) = (old.leak(), new.leak());
    let lives = [life(A, old.len() as u64, &lines(old)), life(A, new.len() as u64, &lines(new))];
    check(
        "with the same first kilobyte, many lines",
        &steps,
        &with(&lives, &[event::FILE_REWRITTEN]),
    );

    let many: String = (0..300).map(|n| format!("{{\"the same line\":{n}}}\n")).collect();
    let [old, new]: [&str; 2] = ["old\n", "new\n"].map(|first| &*(first.to_owned() + &many).leak());
    let steps = [write(A, old), Read, write(A, new), Read];
    let lives = [old, new].map(|text| life(A, text.len() as u64, &lines(text)));
    check("with the same end", &steps, &with(&lives, &[event::FILE_REWRITTEN]));
}

/// As log rotation does: a copy is made, and the file is emptied. The copy is a file of its own,
/// so what was read before comes from both, and what was not comes from the copy alone.
#[test]
fn copied_and_truncated() {
    let old = (0..150).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>();
    let (read, unread) = old.split_at(old.find("{\"n\":115}").unwrap());
    let lines = |text: &'static str| text.lines().collect::<Vec<_>>();
    let (all, read, unread) = (&*old.clone().leak(), &*read.to_owned().leak(), unread.to_owned());

    let steps = [write(A, all), Read, Copy(A, B), Cut(A, 0), append(A, "new\n"), Read];
    let [whole, copy] = [A, B].map(|name| life(name, all.len() as u64, &lines(all)));
    let expected = with(&[whole, life(A, 4, &["new"]), copy.clone()], &[event::FILE_REWRITTEN]);
    check("all was read", &steps, &expected);

    let steps =
        [write(A, read), Read, append(A, unread), Copy(A, B), Cut(A, 0), append(A, "new\n"), Read];
    let first = life(A, read.len() as u64, &lines(read));
    assert_eq!((first.lines.len(), copy.lines.len()), (115, 150));
    let expected = with(&[first, life(A, 4, &["new"]), copy], &[event::FILE_REWRITTEN]);
    check("the agent was slow", &steps, &expected);
}

#[test]
fn replaced() {
    let steps = [write(A, "one\ntwo\n"), Read, replace(A, "one\ntwo\nthree\n"), Read];
    check("by a longer copy", &steps, &plain(&[life(A, 14, &["one", "two", "three"])]));
    let steps = [write(A, "one\ntwo\n"), Read, replace(A, "ONE\ntwo\nthree\n"), Read];
    let lives = [life(A, 8, &["one", "two"]), life(A, 14, &["ONE", "two", "three"])];
    check("by other bytes", &steps, &with(&lives, &[event::FILE_REWRITTEN]));
    let steps =
        [write(A, "one\ntwo\n"), Read, replace(A, "one\ntwo\n"), Read, append(A, "3\n"), Read];
    check("by the same, under another id", &steps, &plain(&[life(A, 10, &["one", "two", "3"])]));
    let steps = [write(A, "one\n"), Read, Restart, replace(A, "one\n"), append(A, "two\n"), Read];
    check("while the agent was stopped", &steps, &plain(&[life(A, 8, &["one", "two"])]));
}

/// One identity under two live paths: nothing is known of which one will go on, so both are read.
#[test_requires::requires(not_wine)]
#[test]
fn linked_twice() {
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
    let lives = [A, B].map(|name| life(name, 10, &["one", "two", "3"]));
    check("while it is read", &steps, &with(&lives, &[event::FILE_LINKED]));
    let steps = [write(A, "one\n"), Link(A, B), Read, Restart, Read];
    let lives = [A, B].map(|name| life(name, 4, &["one"]));
    check("from the start", &steps, &with(&lives, &[event::FILE_LINKED]));
    let steps = [write(A, "one\n"), Read, Link(A, B), Delete(A), append(B, "two\n"), Read];
    check(
        "a rename in two steps",
        &steps,
        &plain(&[life("a.jsonl > b.jsonl", 8, &["one", "two"])]),
    );
    let steps =
        [write(A, "one\n"), Read, Link(A, B), Read, Delete(A), Read, append(B, "two\n"), Read];
    let lives = [life(A, 4, &["one"]), life(B, 8, &["one", "two"])];
    check("one of them goes", &steps, &with(&lives, &[event::FILE_LINKED]));
}

/// What was not read of the file before is had from its handle, and comes first.
#[test_requires::requires(not_wine)]
#[test]
fn replaced_with_bytes_unread() {
    let open = [
        write(A, "one\n"),
        Read,
        append(A, "two\n"),
        Read,
        append(A, "three\nfo"),
        replace(A, "new\n"),
        Read,
    ];
    let lives = [life(A, 16, &["one", "two", "three", "fo…"]), life(A, 4, &["new"])];
    check("by other bytes", &open, &with(&lives, &[event::FILE_REWRITTEN]));
    let open = [
        write(A, "one\n"),
        Read,
        append(A, "two\n"),
        Read,
        append(A, "three\nfo"),
        replace(A, "one\ntwo\nthree\nfour\n"),
        Read,
    ];
    let expected = plain(&[life(A, 19, &["one", "two", "three", "four"])]);
    check("by the same bytes and more", &open, &expected);
    let closed = [write(A, "one\ntwo"), Read, Restart, replace(A, "new\n"), Read];
    let lives = [life(A, 4, &["one"]), life(A, 4, &["new"])];
    let events = [event::FILE_DELETED_UNREAD, event::FILE_REWRITTEN];
    check("no handle is open", &closed, &lost(&lives, &events, 3));
    let kept = [write(A, "one\ntwo"), Read, TEN_MINUTES, Read, Restart, replace(A, "new\n"), Read];
    let lives = [life(A, 7, &["one", "two…"]), life(A, 4, &["new"])];
    check("the row has it", &kept, &with(&lives, &[event::FILE_REWRITTEN]));
    let written_over = [write(A, "one\ntwo"), Read, write(A, "new\n"), Read];
    let lives = [life(A, 4, &["one"]), life(A, 4, &["new"])];
    check("in place", &written_over, &lost(&lives, &events, 3));
}

/// What it was rewritten with before it went is had from the handle too.
#[test_requires::requires(not_wine)]
#[test]
fn rewritten_and_then_gone() {
    let start = [write(A, "one\n"), Read, append(A, "two\nthr"), Read];
    let first = life(A, 8, &["one", "two"]);
    let events = [event::FILE_DELETED_UNREAD, event::FILE_REWRITTEN];
    for content in ["NEW\n", "NEW ONE\nNEW TWO\n"] {
        let lines: Vec<_> = content.lines().collect();
        let second = life(A, content.len() as u64, &lines);
        let deleted = [&start[..], &[write(A, content), Delete(A), Read]].concat();
        let lives = [first.clone(), second.clone()];
        check("deleted", &deleted, &lost(&lives, &events, 3));
        let replaced = [&start[..], &[write(A, content), replace(A, "3\n"), Read]].concat();
        let lives = [first.clone(), second, life(A, 2, &["3"])];
        let events = [&events[..], &[event::FILE_REWRITTEN]].concat();
        check("replaced", &replaced, &lost(&lives, &events, 3));
    }
    let emptied = [&start[..], &[Cut(A, 0), Delete(A), Read]].concat();
    check("emptied", &emptied, &lost(&[first], &events, 3));
}

#[test]
fn touched() {
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
        check(name, &steps, &plain(&[life(A, 8, &["one", "two"])]));
    }
}

#[test]
fn odd_lines() {
    let steps = [write(A, "one\r\ntwo\n\r\n\nthree\r"), Read, append(A, "\nfo\rur\n"), Read];
    let expected = plain(&[life(A, 25, &["one", "two", "", "", "three", "fo\rur"])]);
    check("mixed endings", &steps, &expected);
    let nul = [&[0; 5000][..], b"{\"n\":1}\n", &[0; 3], b"\n"].concat();
    let steps = [write(A, "one\n"), Read, append(A, &nul), Read];
    let line = "\0".repeat(5000) + "{\"n\":1}";
    check("runs of NUL", &steps, &plain(&[life(A, 5016, &["one", &line, "\0\0\0"])]));
    let two = r#"{"n":1}{"n":2}"#;
    let steps = [write(A, format!("{two}\n")), Read];
    check("two records on one line", &steps, &plain(&[life(A, 15, &[two])]));
    let torn = "{\"n\":1,\"te{\"n\":2}";
    let steps = [write(A, "{\"n\":1,\"te"), Read, append(A, "{\"n\":2}\n{\"n\":3}\n"), Read];
    check("torn in the middle", &steps, &plain(&[life(A, 26, &[torn, "{\"n\":3}"])]));
}

#[test]
fn tiny() {
    let steps = [write(A, ""), Read, append(A, "x"), Read, append(A, "\n"), Read];
    check("from no bytes", &steps, &plain(&[life(A, 2, &["x"])]));
    check("one byte", &[write(A, "\n"), Read], &plain(&[life(A, 1, &[""])]));
    check("no bytes", &[write(A, ""), Read, Delete(A), Read], &plain(&[]));
    let steps = [write(A, "x"), Read, Rename(A, B), append(B, "\n"), Read];
    check("one byte, renamed", &steps, &plain(&[life(B, 2, &["x"])]));
    let steps = [write(A, "1\n"), Read, write(A, "2\n"), Read];
    let lives = [life(A, 2, &["1"]), life(A, 2, &["2"])];
    check("two bytes, rewritten", &steps, &with(&lives, &[event::FILE_REWRITTEN]));
}

const YEAR: i64 = 365 * 24 * 3600;

#[test]
fn the_clock_jumps() {
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
        let lives = [life(A, 11, &["one", "two", "thr…"]), life(B, 4, &["new"])];
        check(name, &steps, &plain(&lives));
    }
}

#[test]
fn a_group_lost_at_any_place() {
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
    check("appended", &steps, &plain(&[life(A, 14, &["one", "two", "three"])]));
    let steps = [write(A, "one\n"), Read, Rename(A, B), append(B, "two\n"), FailCommit, Read];
    check("renamed", &steps, &plain(&[life("a.jsonl > b.jsonl", 8, &["one", "two"])]));
    let steps = [write(A, "one\ntwo\n"), Read, write(A, "new\nnew\n"), FailCommit, Read];
    let lives = [life(A, 8, &["one", "two"]), life(A, 8, &["new", "new"])];
    check("rewritten", &steps, &with(&lives, &[event::FILE_REWRITTEN]));
    let steps = [write(A, "one\ntwo\n"), Read, Cut(A, 4), append(A, "new\n"), FailCommit, Read];
    let lives = [life(A, 8, &["one", "two"]), life_from(A, 4, 4, &["new"])];
    check("trimmed", &steps, &with(&lives, &[event::FILE_TRIMMED]));
}

/// Deleted while the store fails: only the handle still has the bytes.
#[test_requires::requires(not_wine)]
#[test]
fn deleted_before_the_store_failed() {
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
    check("deleted", &steps, &plain(&[life(A, 18, &["one", "two", "three", "four…"])]));
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
    let lives = [life(A, 18, &["one", "two", "three", "four…"]), life(A, 4, &["new"])];
    check("replaced", &steps, &with(&lives, &[event::FILE_REWRITTEN]));
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
    check("never stored", &steps, &plain(&[life(A, 4, &["one"]), life(B, 2, &["b"])]));
    let steps = [
        write(B, "b\n"),
        Read,
        // By now what the system has just written would seem old.
        Jump(-500),
        write(A, "one\n"),
        FailCommit,
        Rename(A, "c.jsonl"),
        Read,
        append("c.jsonl", "two\n"),
        Read,
    ];
    let lives = [life(B, 2, &["b"]), life("c.jsonl", 8, &["one", "two"])];
    check("never stored, and moved", &steps, &plain(&lives));
}

#[cfg(unix)]
#[test]
fn no_regular_file() {
    use super::case_table::Odd::{Directory, Fifo, Socket, Symlink};
    for odd in [Fifo, Socket, Symlink, Directory] {
        let steps = [
            Step::Odd(A, odd),
            write(B, "one\n"),
            Read,
            Step::Odd("c.jsonl", odd),
            append(B, "two\n"),
            Read,
        ];
        check(&format!("{odd:?}"), &steps, &plain(&[life(B, 8, &["one", "two"])]));
        let steps = [write(A, "one\n"), Read, Delete(A), Step::Odd(A, odd), Read];
        check(&format!("{odd:?} in place of a file"), &steps, &plain(&[life(A, 4, &["one"])]));
    }
}
