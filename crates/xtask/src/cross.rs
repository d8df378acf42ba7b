//! Other systems, from Linux: type checks for macOS, and builds for Windows that run under wine.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Failure, sh};

/// Modules of the integration tests that cover Windows and run there.
const PIPELINES: [&str; 9] = [
    "control::",
    "deadletter::",
    "files::",
    "filter_cases::",
    "hooks::",
    "odd_lines::",
    "registry::",
    "cross_platform::",
    "update_guard::",
];
/// Target that the agent is built for.
pub(crate) const TARGET: &str = "x86_64-pc-windows-gnu";

/// Runs the lints for the three systems and the tests under wine; returns how many passed.
pub(crate) fn check(cross: &Path) -> Result<String, Failure> {
    let cross = |verb: &str| {
        let mut command = Command::new(cross);
        command.current_dir(sh::workspace()).arg(verb);
        command
    };
    sh::succeed(cross("clippy").args(["--package", "ai-agent", "--", "-D", "warnings"]))?;
    let built = target()?.join(TARGET).join("debug");
    let mut receiver = cross("build-windows");
    sh::succeed(receiver.args(["--package", "siem-server", "--bins"]))?;
    let mut build = cross("test-windows");
    // Tests that fail under wine are ignored.
    build.env("AI_AGENT_WINE", "1");
    build.args(["--package", "ai-agent", "--lib", "--test", "it", "--no-run"]);
    let output = build.stdin(std::process::Stdio::null()).output()?;
    let output_text = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        eprint!("{output_text}");
        return Err("cannot build the tests for Windows".into());
    }
    lend_random_bytes(&built)?;
    // Tests of updates copy it often, and most of it is symbols.
    let mut strip = Command::new("x86_64-w64-mingw32-strip");
    sh::succeed(strip.arg(built.join("ai-agent-test-release.exe")))?;
    let windows = target()?.join("wineprefix");
    let run = |program: &Path| {
        let mut run = cross("run-windows");
        run.arg(program).env("WINEPREFIX", &windows);
        run
    };
    // The first program makes the directory of Windows.
    sh::succeed(run(&built.join("ai-agent.exe")).arg("--version"))?;
    // Tests copy programs to other directories.
    lend_random_bytes(&windows.join("drive_c/windows/system32"))?;
    let (mut passed, mut failed) = (0, Vec::new());
    for test in executables(&output_text) {
        let name = test.file_stem().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        println!("── wine: {name}");
        let filters: &[&str] = if name.starts_with("it-") { &PIPELINES } else { &[] };
        let output = run(&test).args(filters).output()?;
        let output_text = String::from_utf8_lossy(&output.stdout).into_owned();
        let of_this = output_text.lines().filter(|line| line.ends_with(" ... ok")).count();
        passed += of_this;
        println!("{of_this} passed");
        if !output.status.success() {
            print!("{output_text}{}", String::from_utf8_lossy(&output.stderr));
            failed.push(name);
        }
    }
    match failed.as_slice() {
        [] => Ok(format!("{passed} tests passed under wine")),
        failed => Err(format!("failed under wine: {}", failed.join(", ")).into()),
    }
}

/// Returns the paths of the programs in cargo's messages.
fn executables(output_text: &str) -> Vec<PathBuf> {
    let built = output_text.lines().filter(|line| line.trim_start().starts_with("Executable"));
    let path = |line: &str| {
        let (_, path) = line.rsplit_once('(')?;
        let path = sh::workspace().join(path.strip_suffix(')')?);
        Some(path)
    };
    built.filter_map(path).collect()
}

/// Copies a library that older versions of wine lack to a directory of programs, for the tests only.
pub(crate) fn lend_random_bytes(programs: &Path) -> Result<(), Failure> {
    const LIBRARY: &str = "bcryptprimitives.dll";

    let tools = env::var_os("CROSS_HOME").map(PathBuf::from).or_else(|| {
        let home = PathBuf::from(env::var_os("HOME")?);
        Some(home.join(".cache/ai-agent-cross"))
    });
    let library = tools.map(|tools| tools.join(LIBRARY)).filter(|library| library.is_file());
    if let Some(library) = library {
        fs::copy(library, programs.join(LIBRARY))?;
    }
    Ok(())
}

/// Target directory of the cross tools.
pub(crate) fn target() -> Result<PathBuf, Failure> {
    match env::var_os("CROSS_TARGET_DIR") {
        Some(given) => Ok(given.into()),
        None => Ok(sh::target_directory()?.join("cross")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_the_output() {
        let output_text =
            "   Compiling x\n  Executable unittests src/lib.rs (/t/debug/deps/a-1.exe)\n";
        assert_eq!(executables(output_text), [PathBuf::from("/t/debug/deps/a-1.exe")]);
    }
}
