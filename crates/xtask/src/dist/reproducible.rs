//! The Linux program is the same bytes in whatever folder it is built.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::linux;
use crate::{Failure, sh};

/// Folders of this machine whose paths compilers write into programs: Rust into messages of panics, C into
/// those of failures.
pub(super) struct Folders {
    pub(super) workspace: PathBuf,
    pub(super) target: PathBuf,
    cargo_home: PathBuf,
}

impl Folders {
    /// Returns the folders of a build in this workspace.
    pub(super) fn here() -> Result<Self, Failure> {
        let home = env::var_os("HOME").map(PathBuf::from);
        let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let cargo_home = cargo_home.or_else(|| Some(home?.join(".cargo")));
        Ok(Self {
            workspace: sh::workspace(),
            target: sh::target_directory()?,
            cargo_home: cargo_home.ok_or("neither CARGO_HOME nor HOME is set")?,
        })
    }

    /// Returns each folder with the path that replaces it. Later ones may be inside of earlier ones, and
    /// take precedence in the compilers too.
    fn replacements(&self) -> Vec<(PathBuf, &'static str)> {
        let own =
            [(self.workspace.clone(), "/ai-agent"), (self.target.clone(), "/ai-agent/target")];
        own.into_iter().chain(self.registries()).collect()
    }

    /// Returns the folders with the sources of dependencies, and their replacement. They exist, since xtask
    /// has dependencies. The one of each registry is replaced as a whole: paths are part of the program.
    fn registries(&self) -> Vec<(PathBuf, &'static str)> {
        let sources = self.cargo_home.join("registry/src");
        let entries = fs::read_dir(&sources).into_iter().flatten().flatten();
        let folders = entries.map(|entry| entry.path());
        [sources].into_iter().chain(folders).map(|folder| (folder, "/cargo")).collect()
    }

    /// Returns a build of the static program `name` of a package, with flags of the Rust and the C compiler.
    pub(super) fn build(&self, name: &str, flags: &str, c_flags: &str) -> Result<Command, Failure> {
        let mut rust: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
        let (sources, virtual_sources) = standard_library()?;
        rust.push(format!("--remap-path-prefix={sources}={virtual_sources}"));
        for (folder, replacement) in self.replacements() {
            rust.push(format!("--remap-path-prefix={}={replacement}", folder.display()));
        }
        // All C code is that of dependencies.
        let mut c = c_flags.to_owned();
        for (folder, replacement) in self.registries() {
            write!(c, " -ffile-prefix-map={}={replacement}", folder.display())?;
        }
        let mut build = sh::cargo(["build", "--release", "--locked", "--package", name, "--bin"]);
        build.arg(name).args(["--target", linux::TARGET]).arg("--target-dir").arg(&self.target);
        build.current_dir(&self.workspace).env("CARGO_HOME", &self.cargo_home);
        // Flags are separated by this character, so that paths may contain spaces.
        build.env("CARGO_ENCODED_RUSTFLAGS", rust.join("\x1f")).env("CFLAGS", c);
        Ok(build)
    }

    /// Fails if a program contains a path of this machine.
    pub(super) fn check(&self, program: &Path) -> Result<(), Failure> {
        let bytes = fs::read(program)?;
        for (folder, _) in self.replacements() {
            if contains(&bytes, folder.as_os_str().as_encoded_bytes()) {
                let (program, folder) = (program.display(), folder.display());
                return Err(format!("`{program}` contains the path `{folder}`").into());
            }
        }
        Ok(())
    }
}

/// Returns the folder of the standard library's sources, which a machine may have or not, and the path that
/// the compiler uses without it.
fn standard_library() -> Result<(String, String), Failure> {
    let rustc = |arguments: &[&str]| -> Result<String, Failure> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut rustc = Command::new(rustc);
        rustc.current_dir(sh::workspace()).args(arguments).stdin(Stdio::null());
        Ok(String::from_utf8(rustc.output()?.stdout)?)
    };
    let sysroot = rustc(&["--print", "sysroot"])?;
    let version = rustc(&["--version", "--verbose"])?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: "));
    let commit = commit.ok_or("`rustc --version --verbose` does not print a commit")?;
    Ok((format!("{}/lib/rustlib/src/rust", sysroot.trim()), format!("/rustc/{commit}")))
}

/// Reports whether `bytes` contains `part`.
fn contains(bytes: &[u8], part: &[u8]) -> bool {
    let Some((first, rest)) = part.split_first() else { return true };
    let mut from = bytes;
    while let Some(at) = from.iter().position(|byte| byte == first) {
        from = &from[at + 1..];
        if from.starts_with(rest) {
            return true;
        }
    }
    false
}

/// Builds the agent here and from a copy of the sources in another folder, with another path of cargo's
/// folder; fails if the programs differ.
pub(super) fn check() -> Result<(), Failure> {
    let here = Folders::here()?;
    // Longer paths than here, since lengths matter too.
    let folder = here.target.join("reproducible/a-folder-with-another-name");
    if folder.try_exists()? {
        fs::remove_dir_all(&folder)?;
    }
    let there = Folders {
        workspace: folder.join("workspace"),
        target: folder.join("target"),
        cargo_home: folder.join("cargo"),
    };
    copy_sources(&here.workspace, &there.workspace)?;
    link_entries(&here.cargo_home, &there.cargo_home)?;
    println!("── the program, built here");
    let first = linux::program()?;
    here.check(&first)?;
    println!("── the program, built in `{}`", folder.display());
    let second = linux::program_in(&there)?;
    there.check(&second)?;
    compare(&fs::read(&first)?, &fs::read(&second)?).map_err(|difference| {
        format!("`{}` and `{}`: {difference}", first.display(), second.display())
    })?;
    println!("identical: {} B in both folders", fs::metadata(&first)?.len());
    Ok(fs::remove_dir_all(folder)?)
}

/// Copies the files that git tracks or would add.
fn copy_sources(from: &Path, to: &Path) -> Result<(), Failure> {
    let mut list = sh::git(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let output = list.output()?;
    if !output.status.success() {
        return Err("`git ls-files` failed: only a clone can be copied".into());
    }
    for name in String::from_utf8(output.stdout)?.split_terminator('\0') {
        let (source, copy) = (from.join(name), to.join(name));
        if let Some(parent) = copy.parent() {
            fs::create_dir_all(parent)?;
        }
        // A file that was deleted is still in git's index.
        if source.is_file() {
            fs::copy(source, copy)?;
        }
    }
    Ok(())
}

/// Makes a folder with links to all entries of another.
#[cfg(unix)]
fn link_entries(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        std::os::unix::fs::symlink(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn link_entries(_: &Path, _: &Path) -> Result<(), Failure> {
    Err("the check of reproducible builds runs on Linux only".into())
}

/// Returns how two programs differ.
fn compare(first: &[u8], second: &[u8]) -> Result<(), String> {
    if first == second {
        return Ok(());
    }
    let at = first.iter().zip(second).position(|(a, b)| a != b);
    let different = first.iter().zip(second).filter(|(a, b)| a != b).count();
    Err(format!(
        "{} B and {} B, {different} bytes differ, the first at {}",
        first.len(),
        second.len(),
        at.unwrap_or(first.len().min(second.len()))
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends there")]

    use super::*;

    #[test]
    fn path_inside_of_a_program_is_found() {
        assert!(contains(b"xx/home/hom/home/dev/src", b"/home/dev"));
        assert!(!contains(b"xx/home/hom/home/de", b"/home/dev"));
    }

    #[test]
    fn difference_of_programs_names_its_place() {
        assert_eq!(compare(b"abc", b"abc"), Ok(()));
        let difference = compare(b"abc", b"axcd").unwrap_err();
        assert_eq!(difference, "3 B and 4 B, 1 bytes differ, the first at 1");
    }

    #[test]
    fn build_replaces_the_paths_of_this_machine() {
        let folders = Folders {
            workspace: "/home/dev/a b".into(),
            target: "/home/dev/a b/target".into(),
            cargo_home: "/home/dev/.cargo".into(),
        };
        let build = folders.build("ai-agent", "-C a=b", "-DX").unwrap();
        let variable = |name: &str| {
            let value = build.get_envs().find(|(variable, _)| *variable == name);
            value.unwrap().1.unwrap().to_str().unwrap().to_owned()
        };
        let rust = variable("CARGO_ENCODED_RUSTFLAGS");
        let rust: Vec<_> = rust.split('\x1f').collect();
        assert_eq!(rust[..2], ["-C", "a=b"]);
        let workspace = "--remap-path-prefix=/home/dev/a b=/ai-agent";
        assert!(rust.contains(&workspace), "{rust:?}");
        assert!(
            variable("CFLAGS")
                .ends_with("-DX -ffile-prefix-map=/home/dev/.cargo/registry/src=/cargo")
        );
    }
}
