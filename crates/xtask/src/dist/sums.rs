//! Checksums of the release files, in the format of `sha256sum --check`.

use std::{fmt::Write as _, fs, path::Path};

use sha2::{Digest as _, Sha256};

use crate::{Failure, sh};

/// Writes `SHA256SUMS`, and returns a list for people.
pub(super) fn write(folder: &Path) -> Result<String, Failure> {
    let (mut sums, mut list) = (String::new(), String::new());
    for file in sh::files_below(folder)? {
        let name = file.strip_prefix(folder)?.display().to_string();
        let bytes = fs::read(&file)?;
        let sum = Sha256::digest(&bytes);
        let sum = sum.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        writeln!(sums, "{sum}  {name}")?;
        writeln!(list, "{:>12} B  {name}", bytes.len())?;
    }
    fs::write(folder.join("SHA256SUMS"), sums)?;
    Ok(list)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends there")]

    use super::*;

    #[test]
    fn the_sums_are_those_that_sha256sum_checks() {
        let folder = std::env::temp_dir().join(format!("ai-agent-sums-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("a"), "abc").unwrap();
        assert_eq!(write(&folder).unwrap(), "           3 B  a\n");
        let sums = fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a\n";
        assert_eq!(sums, expected);
        fs::remove_dir_all(folder).unwrap();
    }
}
