//! The agent as another release, for tests of updates: its version and its fault are at the end of the
//! program's file, so that a test makes releases by copying it.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

/// Length of the end of the file: `\n#release VERSION FAULT`, filled up with spaces.
const END: i64 = 64;

fn main() -> ExitCode {
    let program = std::env::current_exe().expect("the program has a path");
    let end = end_of(&program);
    let mut words = end.trim_start_matches("\n#release ").split_whitespace();
    let version: &str = words.next().unwrap_or("0.1.0").to_owned().leak();
    let arguments: Vec<String> = std::env::args().collect();
    let is = |first: &str| arguments.get(1).is_some_and(|argument| argument == first);
    // A download has another name than the installed program.
    let is_in_place = program.file_stem().is_some_and(|name| name == "ai-agent");
    match words.next().unwrap_or("none") {
        "abort" if is("run") => std::process::abort(),
        // Before it is confirmed, which takes three seconds. A process whose guard has put the previous
        // program back does not abort: on Windows it waits for that one.
        "abort-later" if is("run") => drop(thread::spawn(|| {
            while !ai_agent::internals::is_unconfirmed_program() {
                thread::sleep(Duration::from_millis(10));
            }
            thread::sleep(Duration::from_secs(1));
            std::process::abort();
        })),
        "hang" if is("run") => loop {
            thread::sleep(Duration::from_secs(60));
        },
        // It hangs behind its guard.
        "stuck" if is("run") => {
            if let Some(exit) = ai_agent::internals::enter_update_guard(version) {
                return exit;
            }
            loop {
                thread::park();
            }
        }
        // It refuses what the release before accepts.
        "refuse" if is("run") => {
            return ai_agent::internals::enter_update_guard(version).unwrap_or_else(|| {
                ai_agent::internals::ask_previous_program();
                ExitCode::from(2)
            });
        }
        "self-test" if is("--self-test") => return ExitCode::from(7),
        "in-place" if is_in_place => std::process::abort(),
        _ => {}
    }
    if let ["test-install", program, staged, from, to] =
        arguments.iter().skip(1).map(String::as_str).collect::<Vec<_>>()[..]
    {
        let (program, staged) = (Path::new(program), Path::new(staged));
        return match ai_agent::internals::install_update(program, staged, from, to) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    ai_agent::main_of(version)
}

fn end_of(program: &Path) -> String {
    let read = || {
        let mut file = File::open(program)?;
        file.seek(SeekFrom::End(-END))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        std::io::Result::Ok(end)
    };
    let end = read().ok().and_then(|end| String::from_utf8(end).ok());
    end.filter(|end| end.starts_with("\n#release ")).unwrap_or_default()
}
