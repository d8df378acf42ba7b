//! Transport of the sinks, according to their options.
//!
//! A sink has no scheme of its own to ask for: its options are read as they are written, so that a
//! check needs no secret and no connection.

use std::{net::IpAddr, path::Path};

use reqwest::Url;
use siem_protocol::agent_event::Transport;

use super::settings::StageTable;
use crate::platform::{Paths, secure_file};

/// Option of sinks that leads to a proxy: requests to `https` URLs pass through it encrypted.
const PROXY: &str = "proxy";

/// Returns the transport of the least protected of the sinks.
pub(super) fn transport(sinks: &[StageTable], paths: &Paths) -> Transport {
    let transports = sinks.iter().filter_map(|sink| least_protected(sink, paths));
    transports.map(|(transport, _)| transport).min().unwrap_or(Transport::Local)
}

/// Returns the key of the option with which a sink sends unencrypted to another machine; `None` if it
/// does not.
pub(super) fn plain_option<'s>(sink: &'s StageTable, paths: &Paths) -> Option<&'s str> {
    let (transport, key) = least_protected(sink, paths)?;
    (transport == Transport::Plain).then_some(key)
}

/// Returns the least protected transport of a sink, and the key of the option that names it.
fn least_protected<'s>(sink: &'s StageTable, paths: &Paths) -> Option<(Transport, &'s str)> {
    let options = sink.options.texts();
    let value = |key: &str| options.iter().find(|(name, _)| *name == key).map(|(_, text)| *text);
    if let Some(address) = value("address") {
        return Some(match value("transport") {
            _ if is_loopback(host_of_address(address)) => (Transport::Local, "address"),
            Some("tcp") => (Transport::Plain, "transport"),
            _ => (Transport::Tls, "address"),
        });
    }
    let transports = options.iter().filter(|(key, _)| *key != PROXY).filter_map(|(key, text)| {
        let transport = match key.strip_suffix("_file") {
            // The URL may contain a secret, and is then in a file. One that cannot be read is
            // reported when the sink is built.
            Some("endpoint" | "url") => {
                of_url(secure_file::read(&paths.expand(Path::new(text))).ok()?.trim())
            }
            _ => of_url(text),
        };
        Some((transport?, *key))
    });
    transports.min()
}

/// Returns the transport to a URL; `None` for other texts.
fn of_url(text: &str) -> Option<Transport> {
    let url =
        Url::parse(text.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    let host = url.host_str()?.trim_matches(['[', ']']);
    Some(match url.scheme() {
        _ if is_loopback(host) => Transport::Local,
        "http" => Transport::Plain,
        _ => Transport::Tls,
    })
}

/// Returns the host of `host`, `host:port`, `[address]` or `[address]:port`.
fn host_of_address(address: &str) -> &str {
    let address = address.trim();
    if let Some((host, _)) = address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return host;
    }
    match address.rsplit_once(':') {
        // An IPv6 address without brackets has no port.
        Some((host, _)) if !host.contains(':') => host,
        _ => address,
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.parse::<IpAddr>();
    address.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::{super::options::OptionTable, *};
    use crate::platform::Os;

    fn of(options: &str) -> Transport {
        of_user(options, Path::new("/home/alice"))
    }

    /// Returns the transport of a sink of a user with this home directory.
    fn of_user(options: &str, home_dir: &Path) -> Transport {
        let sink = StageTable {
            name: "siem".into(),
            stage: "any".into(),
            enabled: true,
            sink_settings: super::super::sink::SinkSettings::default(),
            options: OptionTable::from_toml(options),
        };
        let variable = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
        let home = if cfg!(windows) { r"C:\\Users\\alice" } else { "/home/alice" };
        let mut paths = Paths::on(Os::CURRENT, &[(variable, home)].into_iter().collect()).unwrap();
        paths.home = home_dir.to_owned();
        transport(&[sink], &paths)
    }

    #[test]
    fn only_unencrypted_entries_that_leave_the_machine_are_plain() {
        use Transport::*;

        for (options, expected) in [
            ("endpoint = 'https://siem.example.com'", Tls),
            ("endpoint = 'http://siem.example.com'", Plain),
            ("endpoint = ' HTTP://siem.example.com:8080/x '", Plain),
            ("endpoint = 'http://10.0.0.7'", Plain),
            ("endpoint = 'http://localhost.example.com'", Plain),
            ("endpoint = 'http://127.0.0.1.example.com'", Plain),
            ("endpoint = 'http://0.0.0.0'", Plain),
            ("endpoint = 'http://127.0.0.1:8080'", Local),
            ("endpoint = 'http://127.8.0.1'", Local),
            ("endpoint = 'http://[::1]:8080'", Local),
            ("endpoint = 'http://LOCALHOST'", Local),
            ("url = 'http://siem.example.com'", Plain),
            ("endpoint = 'https://siem.example.com'\nproxy = 'http://proxy:3128'", Tls),
            ("address = 'syslog.example.com'", Tls),
            ("address = 'syslog.example.com:514'\ntransport = 'tcp'", Plain),
            ("address = 'syslog.example.com'\ntransport = 'tls'", Tls),
            ("address = '127.0.0.1:514'\ntransport = 'tcp'", Local),
            ("address = '[::1]:514'\ntransport = 'tcp'", Local),
            ("address = '::1'\ntransport = 'tcp'", Local),
            ("address = 'fe80::1'\ntransport = 'tcp'", Plain),
            ("path = '/var/tmp/out.ndjson'", Local),
            ("", Local),
        ] {
            assert_eq!(of(options), expected, "{options}");
        }
    }

    #[test]
    fn url_in_a_secret_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoint");
        secure_file::replace(&path, b"http://siem.example.com/?key=s3cr3t\n").unwrap();
        assert_eq!(of(&format!("endpoint_file = {path:?}")), Transport::Plain);
        assert_eq!(of_user("endpoint_file = '~/endpoint'", dir.path()), Transport::Plain);
    }
}
