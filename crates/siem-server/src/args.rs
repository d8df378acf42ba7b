//! The command line of `demo-server`.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Parser;
use siem_protocol::statement::TrustLevel;
use siem_server::{EmptySecret, Keys, Secret};

/// Receive session records from ai-agent and store them in files.
///
/// For tests, and for small fleets behind a proxy that terminates TLS.
#[derive(Parser)]
#[command(name = "demo-server", version)]
pub(crate) struct Args {
    /// Token of the fleet; may be given twice to accept two. Visible to other users of this machine:
    /// prefer the file or the environment
    #[arg(long, env = "CLAUDE_SIEM_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Vec<String>,
    /// File with the token, and optionally a second one in another line; overrides --token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// HMAC secret of the fleet; may be given twice to accept two, responses are signed with the
    /// first. Visible to other users of this machine: prefer the file or the environment
    #[arg(long, env = "CLAUDE_SIEM_HMAC_SECRET", hide_env_values = true, value_name = "SECRET")]
    hmac_secret: Vec<String>,
    /// File with the HMAC secret, and optionally a second one in another line; overrides
    /// --hmac-secret
    #[arg(long, value_name = "FILE")]
    hmac_secret_file: Option<PathBuf>,
    /// Address to listen on; port 0 selects a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Directory for the received records
    #[arg(long, value_name = "DIR", default_value = "siem-data")]
    pub(crate) data: PathBuf,
    /// Managed configuration to serve [default: `config.json` in the data directory]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder with managed configurations for parts of the fleet [default: `configs` in the data
    /// directory]
    #[arg(long, value_name = "DIR")]
    configs: Option<PathBuf>,
    /// Lowest level of trust in senders to accept: `shared` (the token and the secret of the
    /// fleet), `first-use` (and device keys), or `enrolled` (confirmed device keys only). With this
    /// option, a key of the receiver is made if there is none [default: the level chosen last, else
    /// first-use where there is a key and release 0.1 did not make the data directory, else shared]
    #[arg(long, value_name = "LEVEL", value_parser = trust_level)]
    pub(crate) trust: Option<TrustLevel>,
    /// Name of the receiver in a key that --trust makes
    #[arg(long, value_name = "NAME", default_value = "demo-server", requires = "trust")]
    pub(crate) receiver_name: String,
}

fn trust_level(text: &str) -> Result<TrustLevel, UnknownLevel> {
    let mut levels = TrustLevel::ALL.iter().copied();
    levels.find(|level| level.as_str() == text).ok_or(UnknownLevel)
}

/// Error of a level of trust that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("expected shared, first-use or enrolled")]
struct UnknownLevel;

/// Error in the options for a token or secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("no {name}: give it in {variable}, by {flag}-file FILE, or by {flag} VALUE")]
    Missing { name: &'static str, variable: &'static str, flag: &'static str },
    #[error("a {name} is empty")]
    Empty {
        name: &'static str,
        #[source]
        source: EmptySecret,
    },
    #[error("more than two values of the {name} are given")]
    TooMany { name: &'static str },
    #[error("cannot read the {name} from `{path}`")]
    File {
        name: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` with the {name} is readable by everyone; chmod it to 600")]
    Open { name: &'static str, path: PathBuf },
}

/// A kind of secret, with its option and variable.
struct SecretKind {
    name: &'static str,
    variable: &'static str,
    flag: &'static str,
}

const TOKEN: SecretKind =
    SecretKind { name: "token", variable: "CLAUDE_SIEM_TOKEN", flag: "--token" };
const SECRET: SecretKind =
    SecretKind { name: "HMAC secret", variable: "CLAUDE_SIEM_HMAC_SECRET", flag: "--hmac-secret" };

impl Args {
    /// Reads the tokens and secrets to accept.
    pub(crate) fn keys(&self) -> Result<Keys, SecretError> {
        let (token, second_token) = TOKEN.pair(self.token_file.as_deref(), &self.token)?;
        let (secret, second_secret) =
            SECRET.pair(self.hmac_secret_file.as_deref(), &self.hmac_secret)?;
        let mut keys = Keys::new(token, secret);
        if let Some(token) = second_token {
            keys = keys.with_second_token(token);
        }
        if let Some(secret) = second_secret {
            keys = keys.with_second_secret(secret);
        }
        Ok(keys)
    }

    /// Returns the path of the managed configuration.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| self.data.join("config.json"))
    }

    /// Returns the path of the folder with managed configurations.
    pub(crate) fn config_folder(&self) -> PathBuf {
        self.configs.clone().unwrap_or_else(|| self.data.join("configs"))
    }
}

impl SecretKind {
    fn pair(
        &self,
        file: Option<&Path>,
        values: &[String],
    ) -> Result<(Secret, Option<Secret>), SecretError> {
        let name = self.name;
        let values = match file {
            Some(path) => self.lines(path)?,
            // As in the agent: a trailing newline is accidental.
            None => values.iter().map(|value| value.trim().to_owned()).collect(),
        };
        let mut secrets = values.into_iter().map(|value| {
            let secret = Secret::new(value);
            secret.map_err(|source| SecretError::Empty { name, source })
        });
        let Some(first) = secrets.next().transpose()? else {
            let (variable, flag) = (self.variable, self.flag);
            return Err(SecretError::Missing { name, variable, flag });
        };
        let second = secrets.next().transpose()?;
        if secrets.next().is_some() {
            return Err(SecretError::TooMany { name });
        }
        for secret in [Some(&first), second.as_ref()].into_iter().flatten() {
            if secret.is_short() {
                tracing::warn!(
                    code = "secret_short",
                    least = Secret::SHORT,
                    "the {name} is shorter than recommended"
                );
            }
        }
        Ok((first, second))
    }

    fn lines(&self, path: &Path) -> Result<Vec<String>, SecretError> {
        let name = self.name;
        let failed = |source| SecretError::File { name, path: path.to_owned(), source };
        if is_open(&fs::metadata(path).map_err(failed)?) {
            return Err(SecretError::Open { name, path: path.to_owned() });
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let lines = text.lines().map(|line| line.trim().to_owned());
        Ok(lines.filter(|line| !line.is_empty()).collect())
    }
}

#[cfg(unix)]
fn is_open(file: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.permissions().mode() & 0o007 != 0
}

#[cfg(not(unix))]
fn is_open(_: &fs::Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(values: &[&str]) -> Result<(Secret, Option<Secret>), SecretError> {
        let values: Vec<_> = values.iter().map(ToString::to_string).collect();
        TOKEN.pair(None, &values)
    }

    #[test]
    fn one_or_two_values_are_accepted() {
        assert_eq!(pair(&["a"]).unwrap(), (Secret::new("a").unwrap(), None));
        assert!(pair(&["a", "b"]).unwrap().1.is_some());
        assert!(matches!(pair(&["a", "b", "c"]), Err(SecretError::TooMany { .. })));
        assert!(matches!(pair(&["a", ""]), Err(SecretError::Empty { .. })));
        assert_eq!(
            pair(&[]).unwrap_err().to_string(),
            "no token: give it in CLAUDE_SIEM_TOKEN, by --token-file FILE, or by --token VALUE"
        );
    }

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }
}
