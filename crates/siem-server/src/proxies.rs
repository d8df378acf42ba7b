//! Proxies before the receiver, and the address of the client that they name.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use hyper::HeaderMap;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de::Error as _};

/// Network in CIDR notation, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

/// Error of a text that is neither a network nor an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address or a network such as \"10.0.0.0/8\"")]
pub struct NotANetwork;

impl Network {
    /// Returns whether the network contains an address. IPv4 addresses that are mapped to IPv6 are
    /// compared as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let text = text.trim();
        let network = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address.to_canonical()),
            Err(_) => canonical(text.parse().map_err(|_| NotANetwork)?),
        };
        Ok(Self(network))
    }
}

/// Returns a network of IPv4 addresses that are mapped to IPv6 as one of IPv4.
fn canonical(network: IpNet) -> IpNet {
    let mapped = match (network.addr(), network.prefix_len().checked_sub(96)) {
        (IpAddr::V6(address), Some(length)) => address.to_ipv4_mapped().zip(Some(length)),
        _ => None,
    };
    let mapped = mapped.and_then(|(address, length)| IpNet::new(address.into(), length).ok());
    mapped.unwrap_or(network)
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| {
            let expected = "an address or a network such as \"10.0.0.0/8\"";
            D::Error::invalid_value(serde::de::Unexpected::Str(&text), &expected)
        })
    }
}

/// Header in which a proxy names the client. A proxy replaces or extends only one of the two, and passes
/// the other one as the client has sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, of most proxies.
    #[default]
    XForwardedFor,
    /// `Forwarded` of RFC 7239.
    Forwarded,
}

/// Proxies whose header names the client.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    networks: Vec<Network>,
    header: ForwardedHeader,
}

impl TrustedProxies {
    /// Trusts `header` in requests from `networks`.
    #[must_use]
    pub fn new(networks: Vec<Network>, header: ForwardedHeader) -> Self {
        Self { networks, header }
    }

    /// Returns whether a connection without TLS is accepted from `peer`: a proxy, or this machine.
    #[must_use]
    pub fn admit(&self, peer: IpAddr) -> bool {
        peer.to_canonical().is_loopback() || self.is_trusted(peer)
    }

    /// Returns the address of the client: that of `peer`, or if it is a proxy, the last address in its
    /// header that is not a proxy. What is left of that address is what the client claims, and is ignored.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer;
        if !self.is_trusted(peer) {
            return client;
        }
        for named in self.named(headers).into_iter().rev() {
            // An unreadable address: the proxy that wrote it is the best that is known.
            let Some(address) = named else { break };
            client = address;
            if !self.is_trusted(address) {
                break;
            }
        }
        client
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }

    /// Returns the addresses in the header, from the client to the last proxy; `None` for one that is
    /// unreadable.
    fn named(&self, headers: &HeaderMap) -> Vec<Option<IpAddr>> {
        let name = match self.header {
            ForwardedHeader::XForwardedFor => "x-forwarded-for",
            ForwardedHeader::Forwarded => "forwarded",
        };
        let lines = headers.get_all(name).into_iter();
        lines
            .flat_map(|line| {
                // A client may send other bytes than text, before what the proxies add.
                let line = String::from_utf8_lossy(line.as_bytes());
                self.parts(&line).into_iter().map(|part| self.node(part)).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Splits a line of the header into what each proxy added.
    fn parts<'a>(&self, line: &'a str) -> Vec<&'a str> {
        match self.header {
            ForwardedHeader::XForwardedFor => line.split(',').collect(),
            ForwardedHeader::Forwarded => split(line, ','),
        }
    }

    fn node(&self, part: &str) -> Option<IpAddr> {
        match self.header {
            ForwardedHeader::XForwardedFor => node_address(part.trim()),
            // An escaped quote would end the text in quotes too early.
            ForwardedHeader::Forwarded if part.contains('\\') => None,
            ForwardedHeader::Forwarded => {
                let pairs = split(part, ';');
                let mut pairs = pairs.iter().filter_map(|pair| pair.split_once('='));
                let (_, node) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
                node_address(node.trim().trim_matches('"'))
            }
        }
    }
}

/// Splits a header outside of quotes, and searches for these from its end: a client may send a quote that is
/// not closed, before what the proxies add.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut end, mut is_quoted) = (Vec::new(), text.len(), false);
    for (at, letter) in text.char_indices().rev() {
        is_quoted ^= letter == '"';
        if letter == separator && !is_quoted {
            parts.push(&text[at + letter.len_utf8()..end]);
            end = at;
        }
    }
    parts.push(&text[..end]);
    parts.reverse();
    parts
}

/// Parses an address with or without a port: `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`.
fn node_address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok();
    let address = address.or_else(|| text.parse::<SocketAddr>().ok().map(|it| it.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn client(header: ForwardedHeader, peer: &str, lines: &[&str]) -> String {
        let networks = ["10.0.0.0/8", "2001:db8:1::/48", "192.0.2.7"];
        let networks = networks.iter().map(|it| it.parse().unwrap()).collect();
        let proxies = TrustedProxies::new(networks, header);
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(name.parse::<HeaderName>().unwrap(), value);
        }
        proxies.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn last_untrusted_address_is_the_client() {
        let of = |peer, line: &str| client(ForwardedHeader::XForwardedFor, peer, &[line]);
        for (line, expected) in [
            ("x-forwarded-for: 203.0.113.9", "203.0.113.9"),
            ("x-forwarded-for: 1.2.3.4, 203.0.113.9", "203.0.113.9"),
            ("x-forwarded-for: 1.2.3.4, 203.0.113.9, 10.2.2.2", "203.0.113.9"),
            ("x-forwarded-for: 203.0.113.9:4711,192.0.2.7", "203.0.113.9"),
            ("x-forwarded-for: [2001:db8:2::1]:443", "2001:db8:2::1"),
            ("x-forwarded-for: 2001:db8:2::1, 2001:db8:1::1", "2001:db8:2::1"),
            ("x-forwarded-for: 10.3.3.3, 10.2.2.2", "10.3.3.3"),
            ("x-forwarded-for: 1.2.3.4, unknown", "10.1.1.1"),
            ("x-forwarded-for: 1.2.3.4, , 10.2.2.2", "10.2.2.2"),
            ("x-forwarded-for: ::ffff:203.0.113.9", "203.0.113.9"),
            ("x-forwarded-for: \", 203.0.113.9", "203.0.113.9"),
            ("x-forwarded-for: \u{fc}, 203.0.113.9", "203.0.113.9"),
            ("x-forwarded-for: 1.2.3.4, \u{fc}", "10.1.1.1"),
            ("forwarded: for=1.2.3.4", "10.1.1.1"),
        ] {
            assert_eq!(of("10.1.1.1", line), expected, "{line}");
        }
        assert_eq!(of("::ffff:10.1.1.1", "x-forwarded-for: 203.0.113.9"), "203.0.113.9");
        let lines = ["x-forwarded-for: 1.2.3.4", "x-forwarded-for: 203.0.113.9, 10.0.0.1"];
        assert_eq!(client(ForwardedHeader::XForwardedFor, "10.1.1.1", &lines), "203.0.113.9");
    }

    #[test]
    fn header_of_an_untrusted_peer_is_ignored() {
        for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
            let lines = ["x-forwarded-for: 1.2.3.4", "forwarded: for=1.2.3.4"];
            assert_eq!(client(header, "203.0.113.9", &lines), "203.0.113.9");
        }
    }

    #[test]
    fn forwarded_elements_are_parsed_with_their_quotes() {
        let of = |line: &str| client(ForwardedHeader::Forwarded, "10.1.1.1", &[line]);
        for (line, expected) in [
            ("forwarded: for=1.2.3.4, For=203.0.113.9;proto=https;by=10.0.0.1", "203.0.113.9"),
            ("forwarded: for=\"[2001:db8:2::1]:4711\"", "2001:db8:2::1"),
            ("forwarded: by=\"a,for=1.2.3.4\"; for=203.0.113.9, for=10.2.2.2", "203.0.113.9"),
            ("forwarded: for=1.2.3.4, proto=https", "10.1.1.1"),
            ("forwarded: for=1.2.3.4, for=_hidden", "10.1.1.1"),
            // The client sends a quote that is not closed, or has a proxy escape one.
            ("forwarded: for=1.2.3.4;by=\", for=203.0.113.9", "203.0.113.9"),
            ("forwarded: for=1.2.3.4;by=\", for=203.0.113.9;by=\"a\"", "203.0.113.9"),
            ("forwarded: for=1.2.3.4;by=\", for=203.0.113.9;host=\"\\\"\"", "10.1.1.1"),
            ("forwarded: for=\u{fc}, for=203.0.113.9", "203.0.113.9"),
            ("x-forwarded-for: 1.2.3.4", "10.1.1.1"),
        ] {
            assert_eq!(of(line), expected, "{line}");
        }
    }

    #[test]
    fn plain_connections_are_admitted_from_proxies_and_this_machine() {
        let networks = vec!["10.0.0.0/8".parse().unwrap()];
        let proxies = TrustedProxies::new(networks, ForwardedHeader::default());
        for (peer, expected) in
            [("10.1.1.1", true), ("127.0.0.1", true), ("::1", true), ("192.0.2.1", false)]
        {
            assert_eq!(proxies.admit(peer.parse().unwrap()), expected, "{peer}");
        }
        assert!("10.0.0.0/33".parse::<Network>().is_err());
        let mapped: Network = "::ffff:10.1.0.0/112".parse().unwrap();
        let contains = |address: &str| mapped.contains(address.parse().unwrap());
        assert!(contains("10.1.2.3") && contains("::ffff:10.1.2.3") && !contains("10.2.0.1"));
    }
}
