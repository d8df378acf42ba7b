//! The receiver as a static program, its Debian package, and the context of its container image.

use std::{env, fs, path::Path};

use super::{Dist, check, copy, linux, package, reproducible::Folders};
use crate::{Failure, sh};

/// Files of the package besides the program: source below `config` or `docs`, and place below `usr`.
const FILES: [(&str, &str); 6] = [
    ("config/receiver/siem-server.service", "lib/systemd/system/siem-server.service"),
    ("config/receiver/sysusers.conf", "lib/sysusers.d/siem-server.conf"),
    ("config/siem-server.toml", "share/doc/siem-server/examples/config.toml"),
    ("config/receiver/Containerfile", "share/doc/siem-server/examples/Containerfile"),
    ("docs/receiver.md", "share/doc/siem-server/receiver.md"),
    ("LICENSE", "share/doc/siem-server/copyright"),
];

pub(super) fn build(dist: &mut Dist) -> Result<(), Failure> {
    println!("── the static receiver");
    let program = linux::receiver()?;
    check::is_static(&program)?;
    Folders::here()?.check(&program)?;
    // Also the context of the container image.
    let tree = dist.parts.join("receiver");
    if tree.try_exists()? {
        fs::remove_dir_all(&tree)?;
    }
    lay_out(&tree, &program)?;
    let version = dist.version.clone();
    let archive = dist.file(&format!("siem-server-{version}-{}-linux.tar.gz", env::consts::ARCH));
    package::tar(&tree, "usr", &archive)?;
    if let Some(deb) = dist.deb(&package::RECEIVER, &tree)? {
        if sh::has_program("systemd-sysusers") {
            check::deb(dist, package::RECEIVER.name, &deb, &tree, check::receiver)?;
        } else {
            dist.skip("the .deb of the receiver installed", "systemd-sysusers is not installed");
        }
    }
    Ok(())
}

pub(super) fn lay_out(tree: &Path, program: &Path) -> Result<(), Failure> {
    let (source, usr) = (sh::workspace(), tree.join("usr"));
    copy(program, &usr.join("bin/siem-server"), 0o755)?;
    for (file, place) in FILES {
        copy(&source.join(file), &usr.join(place), 0o644)?;
    }
    // Configuration and secrets are the operator's.
    fs::create_dir_all(tree.join("etc/siem-server"))?;
    Ok(())
}
