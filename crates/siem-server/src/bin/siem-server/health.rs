//! `siem-server health`.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use clap::Args;
use serde_json::Value;

use crate::{
    config::{ConfigSource, Problems},
    failure::Failure,
    output,
};

/// Time for each step of the request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest response that is read, in bytes.
const MAX_RESPONSE: u64 = 64 << 10;

/// Check that the receiver on this machine is ready
///
/// Requests `/readyz` at `probe.listen`, or without TLS at `http.listen`. The exit code is 1 if the receiver is
/// not ready or does not respond.
#[derive(Args)]
pub(crate) struct Health {
    #[command(flatten)]
    source: ConfigSource,
}

#[derive(Debug, thiserror::Error)]
enum HealthError {
    #[error("cannot check a listener with TLS: set `probe.listen`, such as \"127.0.0.1:8081\"")]
    Tls,
    #[error("cannot request `http://{address}/readyz`")]
    Request {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("not ready: {0}")]
    NotReady(String),
}

impl Health {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        let loaded = self.source.load().map_err(|found| Failure::usage(Problems(found)))?;
        let settings = loaded.settings;
        let address = match settings.probe.listen {
            Some(address) => address,
            None if settings.tls.is_on() => return Err(Failure::usage(HealthError::Tls)),
            None => settings.http.listen,
        };
        let address = reachable(address);
        let response = request(address)
            .map_err(|source| Failure::failed(HealthError::Request { address, source }))?;
        if response.starts_with("HTTP/1.1 200 ") {
            return output::line("ready");
        }
        Err(Failure::failed(HealthError::NotReady(reasons(&response))))
    }
}

/// Returns the address of this machine for an address that stands for all of its addresses.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn request(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut response = String::new();
    stream.take(MAX_RESPONSE).read_to_string(&mut response)?;
    Ok(response)
}

/// Returns the reasons in a response, or its status line.
fn reasons(response: &str) -> String {
    let status = response.lines().next().unwrap_or_default();
    let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    let messages = body["reasons"].as_array().into_iter().flatten();
    let messages: Vec<_> = messages.filter_map(|reason| reason["message"].as_str()).collect();
    let text = if messages.is_empty() { status.to_owned() } else { messages.join("; ") };
    output::plain(text.trim())
}
