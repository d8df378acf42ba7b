//! The command line of `demo-server`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use siem_protocol::statement::TrustLevel;
use siem_server::{
    Keys, SecretError, SecretKind,
    config::{ConfigProblem, Inputs, Settings, Time, load},
};

/// Receive session records from ai-agent and store them in files.
///
/// For tests and to try it out: `siem-server serve` has a configuration file, TLS, and reloads.
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
    listen: SocketAddr,
    /// Directory for the received records
    #[arg(long, value_name = "DIR", default_value = "siem-data")]
    data: PathBuf,
    /// Managed configuration to serve [default: `config.json` in the data directory]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder with managed configurations for parts of the fleet [default: `configs` in the data
    /// directory]
    #[arg(long, value_name = "DIR")]
    configs: Option<PathBuf>,
    /// Folder with releases of the agent, as `cargo xtask dist` writes it [default: `dist` in the data
    /// directory, else beside it]
    #[arg(long, value_name = "DIR")]
    dist: Option<PathBuf>,
    /// Lowest level of trust in senders to accept: `shared` (the token and the secret of the
    /// fleet), `first-use` (and device keys), or `enrolled` (confirmed device keys only). With this
    /// option, a key of the receiver is made if there is none [default: the level chosen last, else
    /// first-use where there is a key and release 0.1 did not make the data directory, else shared]
    #[arg(long, value_name = "LEVEL", value_parser = trust_level)]
    trust: Option<TrustLevel>,
    /// Name of the receiver in a key that --trust makes
    #[arg(long, value_name = "NAME", default_value = "demo-server", requires = "trust")]
    receiver_name: String,
}

fn trust_level(text: &str) -> Result<TrustLevel, UnknownLevel> {
    let mut levels = TrustLevel::ALL.iter().copied();
    levels.find(|level| level.as_str() == text).ok_or(UnknownLevel)
}

/// Error of a level of trust that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("expected shared, first-use or enrolled")]
struct UnknownLevel;

const TOKEN: SecretKind = SecretKind {
    name: "token",
    hint: "give it in CLAUDE_SIEM_TOKEN, by --token-file FILE, or by --token VALUE",
};
const SECRET: SecretKind = SecretKind {
    name: "HMAC secret",
    hint: "give it in CLAUDE_SIEM_HMAC_SECRET, by --hmac-secret-file FILE, or by --hmac-secret VALUE",
};

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

    /// Returns the settings: the defaults, and what the options change. Connections without TLS are accepted
    /// on every address.
    pub(crate) fn settings(&self) -> Result<Settings, Vec<ConfigProblem>> {
        let mut settings = load(&Inputs::default())?.settings;
        settings.http.listen = self.listen;
        settings.store.directory.clone_from(&self.data);
        settings.managed.config_file.clone_from(&self.config);
        settings.managed.folder.clone_from(&self.configs);
        settings.update.dist.clone_from(&self.dist);
        settings.trust.level = self.trust;
        settings.trust.receiver_name.clone_from(&self.receiver_name);
        settings.shutdown.delay = Time(Duration::ZERO);
        settings.shutdown.grace = Time(Duration::from_secs(10));
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }
}
