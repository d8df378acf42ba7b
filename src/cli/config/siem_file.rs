//! Configuration files for SIEMs, which `config init --for` writes.

use std::path::Path;

use clap::ValueEnum;

/// Directory of secrets and certificates in the files.
const DIRECTORY: &str = "/etc/ai-agent";

/// SIEM, or protocol, that a configuration file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Siem {
    /// Splunk, through its HTTP Event Collector
    Splunk,
    /// Elasticsearch or OpenSearch
    Elastic,
    /// OpenTelemetry collector or backend
    Otel,
    /// Syslog server, over TLS
    Syslog,
}

impl Siem {
    /// Returns the text of the file. Secrets are in the directory of the machine's file.
    pub(super) fn text(self, machine_config: &Path) -> String {
        let text = match self {
            Self::Splunk => include_str!("../../../config/siem/splunk.toml"),
            Self::Elastic => include_str!("../../../config/siem/elastic.toml"),
            Self::Otel => include_str!("../../../config/siem/otel.toml"),
            Self::Syslog => include_str!("../../../config/siem/syslog.toml"),
        };
        match machine_config.parent().and_then(Path::to_str) {
            Some(directory) => text.replace(DIRECTORY, directory),
            None => text.to_owned(),
        }
    }

    /// Returns the remaining steps, for the output.
    pub(super) fn steps(self) -> &'static str {
        match self {
            Self::Splunk => "set `endpoint`, and write the token to `token_file`",
            Self::Elastic => "set `endpoint`, and write the API key to `api_key_file`",
            Self::Otel => "set `endpoint`",
            Self::Syslog => "set `address`",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_beside_the_machine_file() {
        let text =
            Siem::Splunk.text(Path::new("/Library/Application Support/ai-agent/config.toml"));
        let expected = "\ntoken_file = '/Library/Application Support/ai-agent/splunk-token'\n";
        assert!(text.contains(expected) && !text.contains(DIRECTORY), "{text}");
    }
}
