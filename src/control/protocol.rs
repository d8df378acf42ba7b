//! What travels between the agent and one who asks: one line of JSON there, one or many back.
//!
//! ```text
//! → {"version":1,"ask":"status"}
//! ← {"status":{…}}
//! ← "done"
//! ```
//! The last line back is `"done"` or `{"failed":{…}}`. What is asked in another version, or is not
//! known, is refused with a word on it.

use serde::{Deserialize, Serialize};

use crate::{
    cli::{deadletter, outbox, status::Seen},
    logging::Level,
};

/// The version of all this.
pub(crate) const VERSION: u32 = 1;
/// The longest line that may be asked with.
pub(crate) const LONGEST_REQUEST: usize = 64 << 10;
/// The longest line of an answer that is read: one entry, however it is escaped.
pub(crate) const LONGEST_REPLY: u64 = 256 << 20;

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// How things stand.
    Status,
    /// To send what lies in the outbox, and to wait until it is acknowledged.
    Flush {
        /// How long.
        within_ms: u64,
    },
    /// To send a marked event, and to wait until it is acknowledged.
    Canary {
        /// How long.
        within_ms: u64,
    },
    /// To read the configuration again, and to ask the server for its part.
    Reload,
    /// To log at another level; none asks for the one at present.
    LogLevel {
        /// Which.
        level: Option<Level>,
    },
    /// About what waits for delivery.
    Outbox(outbox::Action),
    /// About what was refused for good.
    Deadletter(deadletter::Action),
}

#[derive(Serialize)]
struct Call<'a> {
    version: u32,
    ask: &'a Request,
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// A line for people, or an entry.
    Line(String),
    /// How things stand.
    Status(Box<Seen>),
    /// That was all.
    Done,
    /// It could not be done.
    Failed {
        /// Why, and what to do about it.
        error: String,
        /// Whether it was asked wrongly, and nothing was tried.
        usage: bool,
    },
}

/// Why a request is not understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Misunderstood {
    #[error("what was asked is no line of JSON that names its version")]
    NoJson(#[source] serde_json::Error),
    #[error(
        "ai-agent {} speaks version {VERSION} of the control protocol, and was asked in version \
         {asked}: ask with the `ai-agent` that runs, or restart that one after an upgrade",
        env!("CARGO_PKG_VERSION")
    )]
    OtherVersion { asked: u32 },
    #[error(
        "ai-agent {}, which runs, does not know what it was asked: restart it after an upgrade",
        env!("CARGO_PKG_VERSION")
    )]
    Unknown(#[source] serde_json::Error),
    #[error("what was asked is longer than {LONGEST_REQUEST} bytes")]
    TooLong,
}

/// The line that asks.
pub(crate) fn write(request: &Request) -> Vec<u8> {
    let call = Call { version: VERSION, ask: request };
    let mut line = serde_json::to_vec(&call).expect("requests can be written as JSON");
    line.push(b'\n');
    line
}

/// What is asked with a line.
pub(crate) fn read(line: &[u8]) -> Result<Request, Misunderstood> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    #[derive(Deserialize)]
    struct Asked {
        ask: Request,
    }
    let Versioned { version } = serde_json::from_slice(line).map_err(Misunderstood::NoJson)?;
    if version != VERSION {
        return Err(Misunderstood::OtherVersion { asked: version });
    }
    let Asked { ask } = serde_json::from_slice(line).map_err(Misunderstood::Unknown)?;
    Ok(ask)
}

impl Reply {
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("replies can be written as JSON");
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::causes;

    /// Another version of the agent asks and is asked: these lines must not change.
    #[test]
    fn the_lines_are_those_that_were_agreed_upon() {
        let line = |request: &Request| String::from_utf8(write(request)).unwrap();
        assert_eq!(line(&Request::Status), "{\"version\":1,\"ask\":\"status\"}\n");
        assert_eq!(
            line(&Request::Flush { within_ms: 500 }),
            "{\"version\":1,\"ask\":{\"flush\":{\"within_ms\":500}}}\n"
        );
        assert!(matches!(read(b"{\"version\":1,\"ask\":\"reload\"}"), Ok(Request::Reload)));
        let level = Request::LogLevel { level: Some(Level::Debug) };
        assert_eq!(line(&level), "{\"version\":1,\"ask\":{\"log-level\":{\"level\":\"debug\"}}}\n");
        assert_eq!(Reply::Done.write(), b"\"done\"\n");
        assert_eq!(Reply::Line("a".to_owned()).write(), b"{\"line\":\"a\"}\n");
        let failed = Reply::Failed { error: "no".to_owned(), usage: true };
        assert_eq!(failed.write(), b"{\"failed\":{\"error\":\"no\",\"usage\":true}}\n");
    }

    #[test]
    fn what_is_not_understood_is_refused_with_a_word_on_it() {
        let said = |line: &str| causes(&read(line.as_bytes()).unwrap_err());
        let cases = [
            ("", "no line of JSON"),
            ("[]", "no line of JSON"),
            ("{\"ask\":\"status\"}", "missing field `version`"),
            ("{\"version\":2,\"ask\":{\"new\":1}}", "was asked in version 2"),
            ("{\"version\":1,\"ask\":\"dance\"}", "unknown variant `dance`"),
            ("{\"version\":1,\"ask\":{\"flush\":{\"within_ms\":-1}}}", "invalid value"),
            // An agent that ignored it would do more than was asked.
            ("{\"version\":1,\"ask\":{\"flush\":{\"within_ms\":1,\"only\":1}}}", "unknown field"),
        ];
        for (line, words) in cases {
            assert!(said(line).contains(words), "{line}: {}", said(line));
        }
    }
}
