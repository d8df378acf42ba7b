//! Benchmark data, made by the generator of `../shared/bench`: the same bytes each time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use super::Tree;
use crate::Failure;

/// Generates missing data.
pub(super) struct Data {
    generator: PathBuf,
    below: PathBuf,
}

/// Properties of a tree, as printed by the generator.
#[derive(Deserialize)]
pub(super) struct Manifest {
    pub(super) bytes: f64,
    pub(super) files: f64,
}

/// The generator with an additional size: few files as small as those of `many`.
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

    /// Returns the tree of that size.
    pub(super) fn make(&self, name: &'static str) -> Result<Tree, Failure> {
        let path = self.below.join(name);
        // This file is written last: a tree without it is incomplete.
        if !path.join("manifest.json").try_exists()? {
            println!("── generating {name}");
            if path.try_exists()? {
                fs::remove_dir_all(&path)?;
            }
            let mut python = Command::new("python3");
            python.args(["-c", GENERATE]).arg(&self.generator).arg(&path).args(["--size", name]);
            if !python.status()?.success() {
                return Err(format!("the generator failed on `{name}`").into());
            }
        }
        Ok(Tree { path, name })
    }

    /// Reads the properties of a tree; `None` if it was not generated.
    pub(super) fn manifest(&self, name: &str) -> Result<Option<Manifest>, Failure> {
        let path = self.below.join(name).join("manifest.json");
        if !path.try_exists()? {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&fs::read(path)?)?))
    }
}
