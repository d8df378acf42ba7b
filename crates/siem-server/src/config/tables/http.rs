//! `[http]`: the listener for agents.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    super::{Size, Time},
    Findings, TlsTable,
};
use crate::proxies::{ForwardedHeader, Network};

/// Listener for agents.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct HttpTable {
    /// Address to listen on; port 0 selects a free port.
    #[serde(deserialize_with = "super::address")]
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// True if a proxy before the receiver terminates TLS.
    pub behind_tls_proxy: bool,
    /// Addresses of that proxy, and of those before it.
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<Network>,
    /// Header in which the proxy names the client.
    pub forwarded_header: ForwardedHeader,
    /// Number of open connections, at least 16.
    pub connections: usize,
    /// Time for a TLS handshake and the headers of a request; 1s to 5m.
    pub header_timeout: Time,
    /// Time that a response may wait for the client to read; 1s to 1h.
    pub write_timeout: Time,
    /// Size of the headers of a request; 8 KiB to 1 MiB.
    pub header_size: Size,
}

impl HttpTable {
    pub(in super::super) fn check(&self, tls: &TlsTable, findings: &mut Findings<'_>) {
        let has_proxies = !self.trusted_proxies.is_empty();
        if self.behind_tls_proxy && !has_proxies {
            findings.add(
                &["http.behind_tls_proxy", "http.trusted_proxies"],
                "needs the addresses of the proxy: set `http.trusted_proxies`",
            );
        } else if !self.behind_tls_proxy && has_proxies {
            findings.add(
                &["http.trusted_proxies", "http.behind_tls_proxy"],
                "has no effect without `http.behind_tls_proxy = true`: set that too, or remove this key",
            );
        }
        if !self.listen.ip().is_loopback() && !tls.is_on() && !self.behind_tls_proxy {
            let listen = self.listen;
            let keys = ["http.listen", "tls.certificate", "tls.key", "http.behind_tls_proxy"];
            let problem = format!(
                "is {listen}, where other machines would send tokens and records unencrypted: set \
                 `tls.certificate` and `tls.key`; or, if a proxy terminates TLS, \
                 `http.behind_tls_proxy = true` and `http.trusted_proxies`; or listen on a loopback \
                 address such as \"127.0.0.1:{}\"",
                listen.port()
            );
            findings.add(&keys, &problem);
        }
        findings.expect("http.connections", self.connections >= 16, "16 or more");
        let header_timeout = self.header_timeout.0.as_secs();
        findings.expect("http.header_timeout", (1..=300).contains(&header_timeout), "1s to 5m");
        let write_timeout = self.write_timeout.0.as_secs();
        findings.expect("http.write_timeout", (1..=3600).contains(&write_timeout), "1s to 1h");
        let header_size = self.header_size.0;
        let is_valid = (8 << 10..=1 << 20).contains(&header_size);
        findings.expect("http.header_size", is_valid, "8 KiB to 1 MiB");
    }
}
