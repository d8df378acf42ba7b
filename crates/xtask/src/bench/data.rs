//! The data, made by the generator of `../shared/bench`: the same bytes each time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use super::Tree;
use crate::Failure;

/// Makes what is not there yet.
pub(super) struct Data {
    generator: PathBuf,
    below: PathBuf,
}

/// What the generator says of a tree.
#[derive(Deserialize)]
pub(super) struct Manifest {
    pub(super) bytes: f64,
    pub(super) files: f64,
}

/// The generator as it is, with one size more: few files as small as those of `many`.
const GENERATE: &str = "\
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv.pop(1))
import gen
gen.SIZES['many100'] = (10, 100, 0, 900, 0.9, 0.0)
gen.main()
";

impl Data {
    pub(super) fn new(shared: &Path, bench: &Path) -> Self {
        Self { generator: shared.to_owned(), below: bench.join("data") }
    }

    /// The tree of that size.
    pub(super) fn make(&self, name: &'static str) -> Result<Tree, Failure> {
        let path = self.below.join(name);
        // It is written last: a tree without it is not whole.
        if !path.join("manifest.json").try_exists()? {
            println!("── generating {name}");
            if path.try_exists()? {
                fs::remove_dir_all(&path)?;
            }
            let mut python = Command::new("python3");
            python.args(["-c", GENERATE]).arg(&self.generator).arg(&path).args(["--size", name]);
            if !python.status()?.success() {
                return Err(format!("the generator could not make `{name}`").into());
            }
        }
        Ok(Tree { path, name })
    }

    /// What the generator says of it; none when it was not made.
    pub(super) fn manifest(&self, name: &str) -> Result<Option<Manifest>, Failure> {
        let path = self.below.join(name).join("manifest.json");
        if !path.try_exists()? {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&fs::read(path)?)?))
    }
}
