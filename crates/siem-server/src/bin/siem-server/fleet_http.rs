//! Requests of `siem-server fleet` to a running receiver.

use std::{
    env::{self, VarError},
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use siem_protocol::Problem;
use siem_server::stats::Stats;

use crate::failure::Failure;

/// Variable with the token, if no file is named.
const TOKEN: &str = "CLAUDE_SIEM_TOKEN";
/// Time for which a connection or a response may make no progress.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest response that is read, in bytes.
const LARGEST: u64 = 1 << 30;

/// URL of a receiver.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Host, and port if it is not 80.
    authority: String,
    path: String,
}

/// Error of a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(
        "`{0}` is not an http URL such as http://127.0.0.1:8080 (if the receiver has TLS, use --data on \
         its machine)"
    )]
    Url(String),
    #[error("give a token with --token-file FILE or in {TOKEN}")]
    NoToken,
    #[error("cannot read the token in `{path}`")]
    TokenFile { path: PathBuf, source: io::Error },
    #[error("the token in the file or in {TOKEN} has characters that no token has")]
    Token,
    #[error("cannot ask the receiver at `{authority}`")]
    Network { authority: String, source: io::Error },
    #[error("the receiver responded with status {status}: {title}")]
    Refused { status: u16, title: String },
    #[error("the receiver's response is not one of a receiver of this release")]
    Response(#[source] serde_json::Error),
    #[error("the response is not HTTP, or truncated")]
    Truncated,
}

impl FromStr for Endpoint {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        let rest = text.strip_prefix("http://").unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.is_empty() || authority.contains('@') || path.contains(['?', '#']) || !is_plain
        {
            return Err(RequestError::Url(text.to_owned()));
        }
        let path = path.trim_end_matches('/').to_owned();
        Ok(Self { authority: authority.to_owned(), path })
    }
}

/// Reads the token from the first line of a file, or else from the environment.
pub(crate) fn token(file: Option<&Path>) -> Result<String, Failure> {
    let text = match file {
        Some(path) => fs::read_to_string(path).map_err(|source| {
            Failure::usage(RequestError::TokenFile { path: path.to_owned(), source })
        })?,
        None => env::var(TOKEN).map_err(|error| {
            Failure::usage(match error {
                VarError::NotPresent => RequestError::NoToken,
                VarError::NotUnicode(_) => RequestError::Token,
            })
        })?,
    };
    let token = text.lines().next().unwrap_or_default().trim();
    let is_valid = !token.is_empty() && token.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if is_valid { Ok(token.to_owned()) } else { Err(Failure::usage(RequestError::Token)) }
}

impl Endpoint {
    /// Asks for a page of rows.
    pub(crate) fn stats(
        &self,
        token: &str,
        conditions: &[(&str, Option<&str>)],
        cursor: Option<&str>,
    ) -> Result<Stats, Failure> {
        let mut query = Vec::new();
        for (name, value) in conditions.iter().chain(&[("cursor", cursor)]) {
            if let Some(value) = value {
                query.push(format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
            }
        }
        let target = format!("{}/stats?{}", self.path, query.join("&"));
        let response = self.get(&target, token).map_err(|source| {
            Failure::failed(RequestError::Network { authority: self.authority.clone(), source })
        })?;
        read(&response).map_err(Failure::failed)
    }

    /// Returns head and body of the response.
    fn get(&self, target: &str, token: &str) -> io::Result<Vec<u8>> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // With HTTP/1.0 the response comes in one piece and ends with the connection.
        let request = format!(
            "GET {target} HTTP/1.0\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\r\n",
            self.authority
        );
        stream.write_all(request.as_bytes())?;
        let mut response = Vec::new();
        stream.take(LARGEST).read_to_end(&mut response)?;
        Ok(response)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let has_port = self.authority.rsplit_once(':').is_some_and(|(_, port)| {
            !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
        });
        let address = match has_port {
            true => self.authority.clone(),
            false => format!("{}:80", self.authority),
        };
        let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

/// Parses a response, head and body.
fn read(response: &[u8]) -> Result<Stats, RequestError> {
    let end = memchr::memmem::find(response, b"\r\n\r\n").ok_or(RequestError::Truncated)?;
    let (head, body) = (String::from_utf8_lossy(&response[..end]), &response[end + 4..]);
    let status = head.split_ascii_whitespace().nth(1).and_then(|status| status.parse().ok());
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    match status {
        _ if length.is_some_and(|length| body.len() < length) => Err(RequestError::Truncated),
        None => Err(RequestError::Truncated),
        Some(200) => serde_json::from_slice(body).map_err(RequestError::Response),
        Some(status) => {
            let problem: Option<Problem> = serde_json::from_slice(body).ok();
            let title = problem.map(|problem| problem.detail.unwrap_or(problem.title));
            let title = crate::output::plain(&title.unwrap_or_default());
            Err(RequestError::Refused { status, title })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_a_host_and_may_have_a_path() {
        let endpoint: Endpoint = "http://[::1]:8080/siem/".parse().unwrap();
        assert_eq!((endpoint.authority.as_str(), endpoint.path.as_str()), ("[::1]:8080", "/siem"));
        let wrong = [
            "",
            "127.0.0.1",
            "https://x",
            "http://",
            "http:///x",
            "http://a@b",
            "http://a/?x",
            "http://a b",
            "http://a\r\nb",
        ];
        for text in wrong {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn other_responses_are_errors() {
        let error = |text: &str| read(text.as_bytes()).unwrap_err().to_string();
        let refused = "HTTP/1.0 401 Unauthorized\r\n\r\n{}";
        assert_eq!(error(refused), "the receiver responded with status 401: -");
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}";
        assert_eq!(error(cut), "the response is not HTTP, or truncated");
        assert!(error("HTTP/1.1 200 OK\r\n\r\n[]").contains("not one of a receiver"));
        assert!(read(b"HTTP/1.1 200 OK\r\n\r\n{\"machines\":[]}").is_ok());
    }
}
