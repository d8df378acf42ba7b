//! Identity of the sender, carried by every request.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use crate::names::header;

/// Characters that are not encoded in an identity header: the unreserved ones of RFC 3986.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'@');

/// Machine, user and agent that sent a batch: percent-encoded in the headers of a request, and
/// signed in the header line of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Identity {
    /// Stable id of the machine.
    pub machine_id: String,
    /// Name of the machine.
    pub hostname: String,
    /// Name of the user whose sessions are read.
    pub user: String,
    /// `linux`, `macos` or `windows`.
    pub os: String,
    /// Processor architecture, such as `x86_64` or `aarch64`.
    pub arch: String,
    /// Semantic version of the agent.
    pub agent_version: String,
}

impl Identity {
    /// Returns the names and encoded values of the identity headers of a request.
    #[must_use]
    pub fn headers(&self) -> [(&'static str, String); 6] {
        let encoded = |value: &str| utf8_percent_encode(value, ENCODED).to_string();
        [
            (header::MACHINE_ID, encoded(&self.machine_id)),
            (header::HOSTNAME, encoded(&self.hostname)),
            (header::USER, encoded(&self.user)),
            (header::OS, encoded(&self.os)),
            (header::ARCH, encoded(&self.arch)),
            (header::AGENT_VERSION, encoded(&self.agent_version)),
        ]
    }

    /// Returns the encoded value of [`header::GROUPS`].
    #[must_use]
    pub fn groups_header(groups: &[String]) -> String {
        let encoded = groups.iter().map(|name| utf8_percent_encode(name, ENCODED).to_string());
        encoded.collect::<Vec<_>>().join(",")
    }

    /// Returns the name of the first identity header that contradicts this identity. An absent
    /// header contradicts nothing. `header` returns a request's value for a name.
    pub fn contradicted_by<'a>(
        &self,
        header: impl Fn(&'static str) -> Option<&'a str>,
    ) -> Option<&'static str> {
        let values = [
            &self.machine_id,
            &self.hostname,
            &self.user,
            &self.os,
            &self.arch,
            &self.agent_version,
        ];
        let names = self.headers().map(|(name, _)| name);
        names.into_iter().zip(values).find_map(|(name, value)| {
            let sent = header(name)?;
            let decoded = percent_decode_str(sent).decode_utf8().ok();
            (decoded.as_deref() != Some(value.as_str())).then_some(name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            machine_id: "m-1".into(),
            hostname: "büro 7%".into(),
            user: "u".into(),
            os: "linux".into(),
            arch: "x86_64".into(),
            agent_version: "0.1.0".into(),
        }
    }

    #[test]
    fn own_headers_do_not_contradict() {
        let headers = identity().headers();
        let sent = |name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str());
        assert_eq!(identity().contradicted_by(sent), None);
        assert_eq!(headers[1].1, "b%C3%BCro%207%25");
    }

    #[test]
    fn other_hostname_contradicts() {
        let sent = |name| (name == header::HOSTNAME).then_some("other");
        assert_eq!(identity().contradicted_by(sent), Some(header::HOSTNAME));
    }
}
