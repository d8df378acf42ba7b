//! The Windows installer, and its life under wine: installed, upgraded, not downgraded, removed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Failure, cross, sh};

/// Wine for 64-bit programs, as `../shared/tools/cross` installs it.
const WINE: &str = "/usr/lib/wine/wine64";
const WINE_SERVER: &str = "/usr/lib/wine/wineserver64";
/// Files that the installer contains.
const FILES: [&str; 2] = ["ai-agent.exe", "LICENSE.txt"];

/// Reports whether installers can be made, after an attempt to install the program that makes them.
pub(super) fn can_make() -> bool {
    sh::has_program("wixl") || (sh::apt_install(&["wixl"]) && sh::has_program("wixl"))
}

/// Makes an installer from the files in `folder`.
pub(super) fn make(folder: &Path, version: &str, to: &Path) -> Result<(), Failure> {
    // Windows Installer compares only numbers.
    let number = version.split(['-', '+']).next().unwrap_or_default();
    let mut make = Command::new("wixl");
    make.current_dir(folder).args(["--arch", "x64", "--define", &format!("Version={number}")]);
    make.arg("--output").arg(to);
    sh::succeed(make.arg(sh::workspace().join("crates/xtask/src/dist/ai-agent.wxs")))
}

/// Installs, upgrades and removes the program under wine. Returns why that is not possible, if so.
pub(crate) fn check(program: &Path, version: &str) -> Result<Option<&'static str>, Failure> {
    if !Path::new(WINE).is_file() {
        return Ok(Some("wine is not installed"));
    }
    if !can_make() {
        return Ok(Some("wixl is not installed"));
    }
    let folder = sh::target_directory()?.join("msi-test");
    if folder.try_exists()? {
        fs::remove_dir_all(&folder)?;
    }
    let windows = Wine { folder: folder.clone() };
    let old = windows.installer("old", version, program, b"")?;
    let new = windows.installer("new", "9999.0.0", program, b"newer")?;
    let program_size = fs::metadata(program)?.len();
    let installed = || fs::metadata(windows.installed("ai-agent.exe")).map_or(0, |file| file.len());

    windows.msiexec("/i", &old)?;
    ensure(installed() == program_size, "the program is not installed")?;
    ensure(windows.installed("LICENSE.txt").is_file(), "the licence is not installed")?;
    cross::lend_random_bytes(&windows.folder.join("prefix/drive_c/windows/system32"))?;
    windows.run_installed()?;
    windows.msiexec("/i", &new)?;
    ensure(installed() == program_size + 5, "the upgrade has not replaced the program")?;
    windows.run_installed()?;
    ensure(windows.msiexec("/i", &old).is_err(), "a downgrade is not refused")?;
    ensure(installed() == program_size + 5, "a downgrade has replaced the program")?;
    windows.msiexec("/x", &new)?;
    let left = FILES.iter().map(|name| windows.installed(name)).find(|file| file.is_file());
    ensure(left.is_none(), &format!("the removal leaves {left:?} behind"))?;
    drop(windows);
    fs::remove_dir_all(folder)?;
    Ok(None)
}

fn ensure(holds: bool, what: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(format!(".msi: {what}").into()) }
}

/// A Windows of its own.
struct Wine {
    folder: PathBuf,
}

impl Wine {
    fn installer(
        &self,
        name: &str,
        version: &str,
        program: &Path,
        more: &[u8],
    ) -> Result<PathBuf, Failure> {
        let files = self.folder.join(name);
        fs::create_dir_all(&files)?;
        let bytes = [&fs::read(program)?, more].concat();
        fs::write(files.join("ai-agent.exe"), bytes)?;
        fs::copy(sh::workspace().join("LICENSE"), files.join("LICENSE.txt"))?;
        let installer = self.folder.join(name).with_extension("msi");
        make(&files, version, &installer)?;
        Ok(installer)
    }

    fn command(&self, program: &Path) -> Command {
        let mut wine = Command::new("timeout");
        wine.args(["--signal=KILL", "120"]).arg(WINE).arg(program);
        wine.env("WINEPREFIX", self.folder.join("prefix")).env("WINEDEBUG", "-all");
        wine
    }

    fn msiexec(&self, verb: &str, installer: &Path) -> Result<(), Failure> {
        // Wine shows the root directory as the drive Z.
        let installer = format!("Z:{}", installer.display().to_string().replace('/', "\\"));
        sh::succeed(self.command(Path::new("msiexec")).args([verb, &installer, "/qn"]))
    }

    fn run_installed(&self) -> Result<(), Failure> {
        sh::succeed(self.command(&self.installed("ai-agent.exe")).arg("--version"))
    }

    fn installed(&self, name: &str) -> PathBuf {
        self.folder.join("prefix/drive_c/Program Files/ai-agent").join(name)
    }
}

impl Drop for Wine {
    fn drop(&mut self) {
        let mut stop = Command::new(WINE_SERVER);
        stop.arg("--kill").env("WINEPREFIX", self.folder.join("prefix"));
        // Also ends when no server runs any more.
        sh::works(&mut stop);
    }
}
