//! `[tls]`: certificates of the listener for agents.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Findings;

/// Certificates.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsTable {
    /// Certificate in PEM, with its intermediate certificates.
    pub certificate: Option<PathBuf>,
    /// Private key of the certificate, in PEM.
    pub key: Option<PathBuf>,
    /// Certificates of authorities in PEM: with it, clients must present a certificate of one of them.
    pub client_ca: Option<PathBuf>,
}

impl TlsTable {
    /// Returns whether the listener speaks TLS.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.certificate.is_some() && self.key.is_some()
    }

    pub(in super::super) fn check(&self, findings: &mut Findings<'_>) {
        let (certificate, key) = ("tls.certificate", "tls.key");
        match (&self.certificate, &self.key) {
            (Some(_), None) => findings.add(&[certificate, key], "needs its key: set `tls.key`"),
            (None, Some(_)) => {
                findings.add(&[key, certificate], "needs a certificate: set `tls.certificate`");
            }
            (None, None) if self.client_ca.is_some() => findings.add(
                &["tls.client_ca", certificate, key],
                "has no effect without TLS: set `tls.certificate` and `tls.key`",
            ),
            _ => {}
        }
    }
}
