//! Token and HMAC secret of the fleet, from files, systemd credentials or variables.

use std::{
    env::{self, VarError},
    path::PathBuf,
};

use crate::{
    config::{ConfigProblem, Loaded, Origin},
    error_text::causes,
    secret_file::SecretKind,
    secrets::{Keys, Secret},
};

const TOKEN: Source = Source {
    key: "secrets.token_file",
    credential: "token",
    variable: "CLAUDE_SIEM_TOKEN",
    kind: SecretKind {
        name: "token",
        hint: "set `secrets.token_file`, pass the systemd credential `token`, or set CLAUDE_SIEM_TOKEN",
    },
};
const SECRET: Source = Source {
    key: "secrets.hmac_secret_file",
    credential: "hmac-secret",
    variable: "CLAUDE_SIEM_HMAC_SECRET",
    kind: SecretKind {
        name: "HMAC secret",
        hint: "set `secrets.hmac_secret_file`, pass the systemd credential `hmac-secret`, or set \
               CLAUDE_SIEM_HMAC_SECRET",
    },
};

/// All places of a secret; the first one that has it counts.
struct Source {
    key: &'static str,
    credential: &'static str,
    variable: &'static str,
    kind: SecretKind,
}

/// Reads token and secret.
pub(super) fn read(loaded: &Loaded) -> Result<Keys, Vec<ConfigProblem>> {
    let secrets = &loaded.settings.secrets;
    let token = TOKEN.read(loaded, secrets.token_file.clone());
    let secret = SECRET.read(loaded, secrets.hmac_secret_file.clone());
    let ((token, second_token), (secret, second_secret)) = match (token, secret) {
        (Ok(token), Ok(secret)) => (token, secret),
        (token, secret) => return Err([token.err(), secret.err()].into_iter().flatten().collect()),
    };
    let mut keys = Keys::new(token, secret);
    if let Some(token) = second_token {
        keys = keys.with_second_token(token);
    }
    if let Some(secret) = second_secret {
        keys = keys.with_second_secret(secret);
    }
    Ok(keys)
}

impl Source {
    fn read(
        &self,
        loaded: &Loaded,
        file: Option<PathBuf>,
    ) -> Result<(Secret, Option<Secret>), ConfigProblem> {
        let is_set = file.is_some();
        let file = file.or_else(|| self.credential());
        let values = match env::var(self.variable) {
            Ok(value) if !value.is_empty() => vec![value],
            // A file takes its place.
            Err(VarError::NotUnicode(_)) if file.is_none() => {
                let message =
                    format!("the environment variable `{}` is not valid UTF-8", self.variable);
                let location = Some(Origin::Variable(self.variable.to_owned()).into());
                let key = Some(self.key.to_owned());
                return Err(ConfigProblem { code: "variable_unreadable", key, location, message });
            }
            _ => Vec::new(),
        };
        self.kind.pair(file.as_deref(), &values).map_err(|error| {
            let text = causes(&error);
            if is_set {
                return loaded.problem(
                    "file_unusable",
                    self.key,
                    &format!("cannot be used: {text}"),
                );
            }
            let key = Some(self.key.to_owned());
            ConfigProblem { code: "secret_unusable", key, location: None, message: text }
        })
    }

    /// Returns the file with the systemd credential, if it was passed.
    fn credential(&self) -> Option<PathBuf> {
        let path = PathBuf::from(env::var_os("CREDENTIALS_DIRECTORY")?).join(self.credential);
        path.try_exists().unwrap_or(true).then_some(path)
    }
}
