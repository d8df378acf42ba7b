//! Program for any Linux on this processor architecture, and its packages.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Dist, check, copy, package, reproducible::Folders};
use crate::{Failure, sh};

/// Target of the static program. It is linked with glibc, since the allocator of musl costs twice
/// the CPU; the parts of glibc that resolve names are linked in too.
pub(crate) const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};
/// Flags of the compiler. Compact relocations take 20 KB in place of 750: the glibc linked in can read
/// them. With the default thresholds for inlining, 225 and 325, the program is a tenth larger. With one
/// of 30, SHA-256 is compiled to calls, and catching up takes 13 % more CPU.
const FLAGS: &str = "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs \
    -C llvm-args=-inline-threshold=85 -C llvm-args=-inlinehint-threshold=55";
/// Flags of the compiler for the receiver, whose size does not matter.
const RECEIVER_FLAGS: &str = "-C target-feature=+crt-static";
/// Flags of the C compiler: the strategies of zstd for levels above 3, which are not used.
const C_FLAGS: &str = "-DZSTD_EXCLUDE_GREEDY_BLOCK_COMPRESSOR \
    -DZSTD_EXCLUDE_LAZY_BLOCK_COMPRESSOR -DZSTD_EXCLUDE_LAZY2_BLOCK_COMPRESSOR \
    -DZSTD_EXCLUDE_BTLAZY2_BLOCK_COMPRESSOR -DZSTD_EXCLUDE_BTOPT_BLOCK_COMPRESSOR \
    -DZSTD_EXCLUDE_BTULTRA_BLOCK_COMPRESSOR";
/// Largest size of the program, in bytes.
pub(crate) const MAX_BYTES: u64 = 17 << 20;

/// Builds the static program.
pub(crate) fn program() -> Result<PathBuf, Failure> {
    program_in(&Folders::here()?)
}

/// Builds the static program from the sources in another folder.
pub(super) fn program_in(folders: &Folders) -> Result<PathBuf, Failure> {
    sh::succeed(&mut folders.build("ai-agent", FLAGS, C_FLAGS)?)?;
    Ok(folders.target.join(TARGET).join("release/ai-agent"))
}

/// Builds the static program of the receiver.
pub(super) fn receiver() -> Result<PathBuf, Failure> {
    let folders = Folders::here()?;
    sh::succeed(&mut folders.build("siem-server", RECEIVER_FLAGS, "")?)?;
    Ok(folders.target.join(TARGET).join("release/siem-server"))
}

/// Fails if the program is larger than [`MAX_BYTES`].
pub(crate) fn check_size(program: &Path) -> Result<(), Failure> {
    let (size, mebibyte) = (fs::metadata(program)?.len(), f64::from(1 << 20));
    let text = format!("{:.1} MiB", size as f64 / mebibyte);
    println!("static binary: {text}");
    if size <= MAX_BYTES {
        return Ok(());
    }
    let most = MAX_BYTES as f64 / mebibyte;
    Err(format!("the static binary has {text}, more than {most:.0} MiB").into())
}

pub(super) fn build(dist: &mut Dist, manual: &Path) -> Result<(), Failure> {
    println!("── the static Linux program");
    let program = program()?;
    check::is_static(&program)?;
    check_size(&program)?;
    Folders::here()?.check(&program)?;
    check::names_and_tls(dist, &program)?;

    let tree = dist.parts.join("tree");
    if tree.try_exists()? {
        fs::remove_dir_all(&tree)?;
    }
    lay_out(&tree, &program, manual)?;
    let version = dist.version.clone();
    let archive = dist.file(&format!("ai-agent-{version}-{}-linux.tar.gz", env::consts::ARCH));
    package::tar(&tree, "usr", &archive)?;
    if let Some(deb) = dist.deb(&package::AGENT, &tree)? {
        check::deb(dist, package::AGENT.name, &deb, &tree, check::agent)?;
    }
    if sh::has_program("rpmbuild") || (sh::apt_install(&["rpm"]) && sh::has_program("rpmbuild")) {
        println!("── .rpm");
        let rpm = package::rpm(&tree, &dist.parts, &version, package::Compression::Small)?;
        let name = rpm.file_name().ok_or("an rpm without a name")?;
        fs::copy(&rpm, dist.folder.join(name))?;
        let mut list = Command::new("rpm");
        sh::succeed(list.args(["--query", "--list", "--package"]).arg(&rpm))?;
    } else {
        dist.skip(".rpm", "rpmbuild is not installed (Debian: rpm)");
    }
    Ok(())
}

/// Copies all files of a package to their paths.
pub(super) fn lay_out(tree: &Path, program: &Path, manual: &Path) -> Result<(), Failure> {
    let (source, usr) = (sh::workspace(), tree.join("usr"));
    copy(program, &usr.join("bin/ai-agent"), 0o755)?;
    // The same unit as for manual installation, with the path of packaged programs.
    let unit = fs::read_to_string(source.join("config/mdm/ai-agent.service"))?;
    let (machine_path, package_path) = ("/usr/local/bin/ai-agent", "/usr/bin/ai-agent");
    if !unit.contains(machine_path) {
        return Err(format!("config/mdm/ai-agent.service does not contain `{machine_path}`").into());
    }
    let unit = unit.replace(machine_path, package_path);
    let unit = unit.replace("/etc/systemd/user/ai-agent", "/usr/lib/systemd/user/ai-agent");
    let place = usr.join("lib/systemd/user/ai-agent.service");
    fs::create_dir_all(place.parent().ok_or("a unit without a folder")?)?;
    fs::write(&place, unit)?;
    super::set_mode(&place, 0o644)?;
    let documents = usr.join("share/doc/ai-agent");
    copy(&source.join("LICENSE"), &documents.join("copyright"), 0o644)?;
    copy(&source.join("CHANGELOG.md"), &documents.join("CHANGELOG.md"), 0o644)?;
    copy(&source.join("config/default.toml"), &documents.join("examples/default.toml"), 0o644)?;
    for sample in fs::read_dir(source.join("config/mdm"))? {
        let sample = sample?;
        copy(&sample.path(), &documents.join("examples/mdm").join(sample.file_name()), 0o644)?;
    }
    for page in fs::read_dir(manual.join("man"))? {
        let page = page?;
        copy(&page.path(), &usr.join("share/man/man1").join(page.file_name()), 0o644)?;
    }
    for (shell, place) in [
        ("ai-agent.bash", "share/bash-completion/completions/ai-agent"),
        ("_ai-agent", "share/zsh/vendor-completions/_ai-agent"),
        ("ai-agent.fish", "share/fish/vendor_completions.d/ai-agent.fish"),
    ] {
        copy(&manual.join("completions").join(shell), &usr.join(place), 0o644)?;
    }
    Ok(())
}
