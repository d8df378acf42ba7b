//! Lists of the organisation's public keys.

use siem_protocol::minisign::{MinisignError, OrganisationKey};

use super::{error::ConfigError, merged::Merged};

/// Parses a list of public keys of minisign, which is the value of `list`.
pub(super) fn parse_keys(
    list: &str,
    keys: &[String],
    merged: &Merged,
) -> Result<Vec<OrganisationKey>, ConfigError> {
    let key = |(index, text): (usize, &String)| {
        text.parse().map_err(|error: MinisignError| {
            let problem = format!(
                "is not a key: {error}; it must be the second line of the file that `minisign -G` \
                 writes, such as \"RWQf6LRC…\""
            );
            merged.value_error(&format!("{list}.{index}"), problem)
        })
    };
    keys.iter().enumerate().map(key).collect()
}
