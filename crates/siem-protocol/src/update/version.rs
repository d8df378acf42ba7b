//! Versions of the agent.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Maximum length of a version, in bytes.
const MAX_LEN: usize = 64;

/// A version of the agent, ordered as [Semantic Versioning 2.0.0](https://semver.org) says.
///
/// Build metadata (`+…`) is refused: two versions that differ only in it have the same precedence, so
/// that neither would be an update of the other.
///
/// ```
/// use siem_protocol::update::Version;
/// let [old, candidate, new]: [Version; 3] =
///     ["0.9.0", "0.10.0-rc.1", "0.10.0"].map(|text| text.parse().unwrap());
/// assert!(old < candidate && candidate < new);
/// assert!("1.0".parse::<Version>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    major: u64,
    minor: u64,
    patch: u64,
    pre: Vec<Identifier>,
}

/// Part of a pre-release. Numbers are less than words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Identifier {
    Number(u64),
    Word(String),
}

/// Error of a text that is not a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a version such as 1.2.3 or 1.2.3-rc.1")]
pub struct VersionError;

impl Version {
    /// Reports whether this is a version before the release of its number, such as `1.2.3-rc.1`.
    #[must_use]
    pub fn is_prerelease(&self) -> bool {
        !self.pre.is_empty()
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        if text.len() > MAX_LEN {
            return Err(VersionError);
        }
        let (numbers, pre) = match text.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre)),
            None => (text, None),
        };
        let mut parts = numbers.split('.').map(number);
        let mut next = || parts.next().flatten().ok_or(VersionError);
        let (major, minor, patch) = (next()?, next()?, next()?);
        if parts.next().is_some() {
            return Err(VersionError);
        }
        let pre = pre.map(|pre| pre.split('.').map(identifier).collect::<Option<_>>());
        let pre = pre.unwrap_or(Some(Vec::new())).ok_or(VersionError)?;
        Ok(Self { major, minor, patch, pre })
    }
}

/// Parses a number without leading zeros.
fn number(text: &str) -> Option<u64> {
    let is_canonical = text == "0" || !text.starts_with('0');
    let is_number = is_canonical && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

fn identifier(text: &str) -> Option<Identifier> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        number(text).map(Identifier::Number)
    } else {
        text.bytes().all(is_word).then(|| Identifier::Word(text.to_owned()))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let numbers = |it: &Self| (it.major, it.minor, it.patch);
        // A release comes after its pre-releases.
        let is_release = |it: &Self| !it.is_prerelease();
        (numbers(self), is_release(self), &self.pre).cmp(&(
            numbers(other),
            is_release(other),
            &other.pre,
        ))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)?;
        for (at, identifier) in self.pre.iter().enumerate() {
            f.write_str(if at == 0 { "-" } else { "." })?;
            match identifier {
                Identifier::Number(number) => write!(f, "{number}")?,
                Identifier::Word(word) => f.write_str(word)?,
            }
        }
        Ok(())
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(feature = "schemars")]
impl schemars::JsonSchema for Version {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Version".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": r"^\d+\.\d+\.\d+(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$",
            "maxLength": MAX_LEN,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    /// The order of the specification, section 11.
    #[test]
    fn versions_are_ordered_as_specified() {
        let ordered = [
            "0.0.9",
            "0.2.0",
            "0.10.0",
            "1.0.0-0",
            "1.0.0-1",
            "1.0.0-10",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.0.1-a-b",
            "2.0.0",
        ];
        for pair in ordered.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn text_that_is_not_a_version_is_refused() {
        let long = format!("1.0.0-{}", "a".repeat(MAX_LEN));
        for text in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "v1.2.3",
            "01.2.3",
            "1.2.03",
            "1.2.3-",
            "1.2.3-a..b",
            "1.2.3-01",
            "1.2.3+build",
            "1.2.3-a+b",
            " 1.2.3",
            "1.2.3\n",
            "1.2.-3",
            "+1.2.3",
            "1.2.3-é",
            "1.2.3-a b",
            "18446744073709551616.0.0",
            "1.2.3-18446744073709551616",
            &long,
        ] {
            assert_eq!(text.parse::<Version>(), Err(VersionError), "{text:?}");
        }
    }

    prop_compose! {
        fn any_version()(
            numbers in any::<[u8; 3]>(),
            pre in prop::option::of("(0|[1-9][0-9]?|[a-z-]{1,2})(\\.(0|[1-9][0-9]?|[a-z-]{1,2})){0,2}"),
        ) -> String {
            let [a, b, c] = numbers.map(|it| it % 3);
            pre.map_or(format!("{a}.{b}.{c}"), |pre| format!("{a}.{b}.{c}-{pre}"))
        }
    }

    proptest! {
        #[test]
        fn version_is_printed_as_it_was_read(text in any_version()) {
            prop_assert_eq!(version(&text).to_string(), text);
        }

        #[test]
        fn order_is_total(a in any_version(), b in any_version(), c in any_version()) {
            let [va, vb, vc] = [version(&a), version(&b), version(&c)];
            prop_assert_eq!(va.cmp(&vb), vb.cmp(&va).reverse());
            prop_assert_eq!(va == vb, a == b);
            if va <= vb && vb <= vc {
                prop_assert!(va <= vc);
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            if let Ok(version) = text.parse::<Version>() {
                prop_assert_eq!(version.to_string(), text);
            }
        }
    }
}
