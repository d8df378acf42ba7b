//! Steps of installing and uninstalling. Each can be previewed, executed and repeated.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    cli::{failure::Failure, output::print},
    platform::{file, own_program, program, secure_file, service::ManagerCommand},
    text::causes,
    update::ProgramFiles,
};

/// One step.
pub(super) enum Step {
    /// Copies the program.
    Program { from: PathBuf, to: PathBuf },
    /// Writes the variables of the service, for their owner only.
    Variables { path: PathBuf, names: Vec<String>, text: String },
    /// Writes the definition of the service.
    Definition { path: PathBuf, bytes: Vec<u8> },
    /// Runs a command of the service manager.
    ManagerCommand(ManagerCommand),
    /// Removes a file.
    Remove(PathBuf),
    /// Removes the program.
    RemoveProgram(PathBuf),
    /// Removes a directory of the agent if it is empty.
    RemoveFolder(PathBuf),
}

/// Outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Changed,
    Unchanged,
}

impl Step {
    /// Returns true if the step would change nothing. Commands of the service manager are always
    /// run.
    pub(super) fn is_done(&self) -> bool {
        let holds = |path: &Path, bytes: &[u8]| {
            file::read_bounded(path, file::MAX_WRITTEN_BY_HAND).is_ok_and(|known| known == bytes)
        };
        match self {
            Self::Program { from, to } => {
                program::is_same(from, to).unwrap_or(false) && secure_file::is_executable(to)
            }
            Self::Variables { path, text, .. } => {
                secure_file::read(path).is_ok_and(|known| *known == *text)
            }
            Self::Definition { path, bytes } => holds(path, bytes),
            Self::ManagerCommand(_) => false,
            Self::Remove(path) | Self::RemoveProgram(path) => {
                matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
            }
            Self::RemoveFolder(path) => {
                fs::read_dir(path).map_or(true, |mut entries| entries.next().is_some())
            }
        }
    }

    /// Executes the step, and prints its result.
    pub(super) fn execute(&self) -> Result<(), Failure> {
        if self.is_done() {
            return Ok(());
        }
        match self.run() {
            Ok(Done::Changed) => print(format_args!("{}", self.describe(Tense::Past))),
            Ok(Done::Unchanged) => Ok(()),
            Err(error) => Err(Failure::failed(format!(
                "could not {}: {}",
                self.describe(Tense::Infinitive),
                causes(&*error)
            ))),
        }
    }

    /// Prints the step without executing it.
    pub(super) fn preview(&self) -> Result<(), Failure> {
        if self.is_done() {
            return Ok(());
        }
        print(format_args!("would {}", self.describe(Tense::Infinitive)))
    }

    fn run(&self) -> Result<Done, Box<dyn std::error::Error>> {
        match self {
            Self::Program { from, to } => program::install(from, to)?,
            Self::Variables { path, text, .. } => {
                make_folder(path)?;
                secure_file::replace(path, text.as_bytes())?;
            }
            Self::Definition { path, bytes } => {
                make_folder(path)?;
                secure_file::replace_preserving_mode(path, bytes)?;
            }
            Self::ManagerCommand(call) => match call.run() {
                Ok(_) => {}
                Err(error) if call.is_required => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(%error, "optional command of the service manager failed");
                    return Ok(Done::Unchanged);
                }
            },
            Self::Remove(path) => fs::remove_file(path)?,
            Self::RemoveProgram(path) => {
                let files = ProgramFiles::of(path);
                // The supervisor of an update would put a program into the empty place.
                files.remove_record()?;
                // Its process has just ended.
                own_program::retry_busy(|| program::remove(path))?;
                files.remove_all_but_program()?;
            }
            Self::RemoveFolder(path) => {
                return Ok(if fs::remove_dir(path).is_ok() {
                    Done::Changed
                } else {
                    Done::Unchanged
                });
            }
        }
        Ok(Done::Changed)
    }

    fn describe(&self, tense: Tense) -> String {
        match self {
            Self::Program { from, to } => {
                let copy = tense.of("copy", "copied");
                format!("{copy} the program `{}` to `{}`", from.display(), to.display())
            }
            Self::Variables { path, names, .. } => {
                let write = tense.of("write", "wrote");
                let names = names.join(", ");
                format!("{write} `{}`, which only you can read, with {names}", path.display())
            }
            Self::Definition { path, .. } => {
                format!("{} `{}`", tense.of("write", "wrote"), path.display())
            }
            Self::ManagerCommand(call) => format!("{} `{call}`", tense.of("run", "ran")),
            Self::Remove(path) | Self::RemoveProgram(path) | Self::RemoveFolder(path) => {
                format!("{} `{}`", tense.of("remove", "removed"), path.display())
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Tense {
    Infinitive,
    Past,
}

impl Tense {
    fn of(self, infinitive: &'static str, past: &'static str) -> &'static str {
        match self {
            Self::Infinitive => infinitive,
            Self::Past => past,
        }
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}
