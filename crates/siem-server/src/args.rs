//! The command line of `demo-server`.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Parser;
use siem_server::{EmptySecret, Keys, Secret};

/// Takes session records from ai-agent and keeps them in files. To try things out, and for small
/// fleets behind a proxy that speaks TLS.
#[derive(Parser)]
#[command(name = "demo-server", version)]
pub(crate) struct Args {
    /// The fleet's token; given twice, both are accepted. Visible to other users of this machine:
    /// prefer the file or the environment.
    #[arg(long, env = "CLAUDE_SIEM_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Vec<String>,
    /// A file with the token, and in a second line one more that is accepted. Goes before --token.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The fleet's HMAC secret; given twice, both are accepted, and answers are signed with the
    /// first. Visible to other users of this machine: prefer the file or the environment.
    #[arg(long, env = "CLAUDE_SIEM_HMAC_SECRET", hide_env_values = true, value_name = "SECRET")]
    hmac_secret: Vec<String>,
    /// A file with the HMAC secret, and in a second line one more. Goes before --hmac-secret.
    #[arg(long, value_name = "FILE")]
    hmac_secret_file: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Where to keep what is received.
    #[arg(long, value_name = "DIR", default_value = "siem-data")]
    pub(crate) data: PathBuf,
    /// The managed configuration to serve; by default `config.json` in the data directory.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What is wrong with a token or secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("no {what}: give it in {variable}, by {flag}-file FILE, or by {flag} VALUE")]
    Missing { what: &'static str, variable: &'static str, flag: &'static str },
    #[error("a {what} is empty")]
    Empty {
        what: &'static str,
        #[source]
        source: EmptySecret,
    },
    #[error("more than two of the {what} are given")]
    TooMany { what: &'static str },
    #[error("cannot read the {what} from `{path}`")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` with the {what} is readable by everyone; chmod it to 600")]
    Open { what: &'static str, path: PathBuf },
}

/// A kind of secret, for messages.
struct What {
    what: &'static str,
    variable: &'static str,
    flag: &'static str,
}

const TOKEN: What = What { what: "token", variable: "CLAUDE_SIEM_TOKEN", flag: "--token" };
const SECRET: What =
    What { what: "HMAC secret", variable: "CLAUDE_SIEM_HMAC_SECRET", flag: "--hmac-secret" };

impl Args {
    /// The tokens and secrets to accept.
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

    /// The file with the managed configuration.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| self.data.join("config.json"))
    }
}

impl What {
    fn pair(
        &self,
        file: Option<&Path>,
        values: &[String],
    ) -> Result<(Secret, Option<Secret>), SecretError> {
        let what = self.what;
        let values = match file {
            Some(path) => self.lines(path)?,
            // As the agent does: a newline at the end is an accident.
            None => values.iter().map(|value| value.trim().to_owned()).collect(),
        };
        let mut secrets = values.into_iter().map(|value| {
            let secret = Secret::new(value);
            secret.map_err(|source| SecretError::Empty { what, source })
        });
        let Some(first) = secrets.next().transpose()? else {
            let (variable, flag) = (self.variable, self.flag);
            return Err(SecretError::Missing { what, variable, flag });
        };
        let second = secrets.next().transpose()?;
        if secrets.next().is_some() {
            return Err(SecretError::TooMany { what });
        }
        for secret in [Some(&first), second.as_ref()].into_iter().flatten() {
            if secret.is_short() {
                tracing::warn!(
                    code = "secret_short",
                    least = Secret::SHORT,
                    "the {what} has fewer bytes than advised"
                );
            }
        }
        Ok((first, second))
    }

    fn lines(&self, path: &Path) -> Result<Vec<String>, SecretError> {
        let what = self.what;
        let failed = |source| SecretError::File { what, path: path.to_owned(), source };
        if is_open(&fs::metadata(path).map_err(failed)?) {
            return Err(SecretError::Open { what, path: path.to_owned() });
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
    fn takes_one_or_two_and_says_what_is_wrong_with_others() {
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
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }
}
