//! Account that Claude Code uses, according to its files and the environment.
//!
//! The file is undocumented, and the client rewrites it many times in a session, not always
//! atomically: content that cannot be understood means that the account is unknown, never a
//! violation. Only the names of environment variables are reported, never their values.

use std::{
    fmt, io,
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};
use siem_protocol::names::source;

use crate::platform::{Environment, file};

/// Maximum number of bytes that are searched for the account.
const MOST: u64 = 32 << 20;
/// Maximum length of a name, id or path; a longer one is ignored.
const LONGEST: usize = 4096;
/// Maximum length of an account object.
const LARGEST: usize = 256 << 10;
/// File that contains the account.
const FILE: &str = ".claude.json";
/// Member that contains the account.
const ACCOUNT: &str = "oauthAccount";

/// Keys that the client uses instead of an account.
const KEYS: [&str; 3] = ["ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"];
/// Cloud providers that the client uses instead of an account if they are enabled. They take
/// precedence.
const PROVIDERS: [&str; 5] = [
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_USE_ANTHROPIC_AWS",
    "CLAUDE_CODE_USE_MANTLE",
];

/// Account that one program uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Program: one of [`siem_protocol::names::source`].
    pub source: &'static str,
    /// File that contains the account.
    pub path: PathBuf,
    /// State of the sign-in.
    pub state: SignInState,
}

/// State of a program's sign-in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignInState {
    /// Signed in with an account.
    SignedIn(SignedInAccount),
    /// A key or a cloud provider is used instead of an account; contains the name of the variable.
    Key(String),
    /// Unknown, with the reason.
    Unknown(String),
}

/// Account, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedInAccount {
    /// E-mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Organisation id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Account id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}

impl Account {
    /// Returns the account of Claude Code under `home`, for a process with `environment`; `read`
    /// reads the state from a file.
    #[must_use]
    pub fn of_claude_code_with(
        home: &Path,
        environment: &Environment,
        read: impl FnOnce(&Path) -> SignInState,
    ) -> Self {
        let path = claude_code_file(home, environment);
        let state = match replacement_of_account(environment) {
            Some(name) => SignInState::Key(name.to_owned()),
            None => read(&path),
        };
        Self { source: source::CLAUDE_CODE, path, state }
    }

    /// Returns the account of a Claude Code that stores it in the file at `path`.
    #[must_use]
    pub fn of_claude_code_in(path: &Path) -> Self {
        let state = read_sign_in_state(path);
        Self { source: source::CLAUDE_CODE, path: path.to_owned(), state }
    }
}

/// Returns the account files other than [`claude_code_file`], for sessions with one of
/// `client_dirs` as `CLAUDE_CONFIG_DIR`.
#[must_use]
pub fn other_claude_code_files(
    home: &Path,
    environment: &Environment,
    client_dirs: &[PathBuf],
) -> Vec<PathBuf> {
    let own = claude_code_file(home, environment);
    // The default directory `~/.claude` has its account file beside it.
    let beside = |dir| if dir == home.join(".claude") { home.to_owned() } else { dir };
    let files = client_dirs.iter().map(|dir| beside(dir.clone()).join(FILE));
    let mut files: Vec<_> = files.filter(|file| *file != own).collect();
    files.sort();
    files.dedup();
    files
}

/// Returns the path of Claude Code's account file.
#[must_use]
pub fn claude_code_file(home: &Path, environment: &Environment) -> PathBuf {
    let folder = environment.get("CLAUDE_CONFIG_DIR").map_or(home, Path::new);
    folder.join(FILE)
}

/// Returns the variable that sets a key or a provider, which the client prefers to any account.
fn replacement_of_account(environment: &Environment) -> Option<&'static str> {
    let is_on = |name: &&str| {
        let value = environment.get(name).map(|value| value.to_string_lossy().to_lowercase());
        value.is_some_and(|value| !["0", "false", "no", "off"].contains(&value.trim()))
    };
    let provider = PROVIDERS.into_iter().find(is_on);
    provider.or_else(|| KEYS.into_iter().find(|name| environment.get(name).is_some()))
}

/// Reads the state of the sign-in from Claude Code's file at `path`.
#[must_use]
pub fn read_sign_in_state(path: &Path) -> SignInState {
    let unknown =
        |why: &dyn fmt::Display| SignInState::Unknown(format!("`{}` {why}", path.display()));
    // Users who store their files elsewhere have a symlink here.
    match path.canonicalize().and_then(|path| file::open_regular(&path)) {
        Ok(Some((file, _))) => read(file).unwrap_or_else(|why| unknown(&why)),
        Ok(None) => unknown(&"is not a regular file"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => unknown(&"does not exist"),
        Err(error) => unknown(&format_args!("cannot be opened: {error}")),
    }
}

/// Reads up to the end of the account.
fn read(file: impl Read) -> Result<SignInState, String> {
    const MARK: &[u8] = b"\xef\xbb\xbf";

    let mut file = BufReader::with_capacity(64 << 10, file.take(MOST));
    // An I/O error shows again below.
    if file.fill_buf().is_ok_and(|bytes| bytes.starts_with(MARK)) {
        file.consume(MARK.len());
    }
    let mut found = None;
    let mut from = serde_json::Deserializer::from_reader(&mut file);
    let whole = Search(&mut found).deserialize(&mut from).and_then(|()| from.end());
    // The rest of the file does not matter.
    if let Some(found) = found {
        return who(&found).map(SignInState::SignedIn);
    }
    match whole {
        Ok(()) => Err("contains no account: not signed in".to_owned()),
        Err(_) if file.get_ref().limit() == 0 => {
            Err(format!("has no account in its first {} MiB", MOST >> 20))
        }
        Err(error) if error.is_io() => Err(format!("cannot be read: {error}")),
        Err(error) if error.is_eof() => {
            Err("is truncated before the end of its account".to_owned())
        }
        Err(_) => Err("is not a JSON object".to_owned()),
    }
}

/// Parses an account object.
fn who(account: &RawValue) -> Result<SignedInAccount, String> {
    let other = || format!("has an unexpected value in `{ACCOUNT}`");
    let account = Some(account.get()).filter(|text| text.len() <= LARGEST).ok_or_else(other)?;
    match serde_json::from_str(account).map_err(|_| other())? {
        Value::Null => Err("has a null account: not signed in".to_owned()),
        account @ Value::Object(_) => {
            let who = SignedInAccount {
                email: text(&account["emailAddress"]),
                organization: text(&account["organizationUuid"]),
                account: text(&account["accountUuid"]),
            };
            let is_named = who != SignedInAccount::default();
            is_named
                .then_some(who)
                .ok_or_else(|| "has an account without address and ids".to_owned())
        }
        _ => Err(other()),
    }
}

/// Returns a string that is not blank and not too long; other values count as absent.
pub(super) fn text(value: &Value) -> Option<String> {
    let text = value.as_str().map(str::trim).filter(|text| !text.is_empty());
    text.filter(|text| text.len() <= LONGEST).map(str::to_owned)
}

/// Visits the members of an object until the account is found.
struct Search<'a>(&'a mut Option<Box<RawValue>>);

impl<'de> DeserializeSeed<'de> for Search<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Search<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(name) = members.next_key::<String>()? {
            if name == ACCOUNT {
                *self.0 = Some(members.next_value()?);
                return Err(A::Error::custom("found"));
            }
            members.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(text: impl AsRef<[u8]>) -> SignInState {
        read(text.as_ref()).unwrap_or_else(SignInState::Unknown)
    }

    fn signed_in(email: Option<&str>, organization: Option<&str>) -> SignInState {
        let own = |text: Option<&str>| text.map(str::to_owned);
        SignInState::SignedIn(SignedInAccount {
            email: own(email),
            organization: own(organization),
            account: None,
        })
    }

    #[test]
    fn account_is_found_at_any_position_in_the_file() {
        let table = [
            (
                r#"{"oauthAccount":{"emailAddress":"a@b.c","organizationUuid":"o"}}"#,
                Some("a@b.c"),
                Some("o"),
            ),
            (
                r#"{"x":[{"oauthAccount":{}}],"oauthAccount":{"emailAddress":" a@b.c "},"y":"#,
                Some("a@b.c"),
                None,
            ),
            ("\u{feff}{\"oauthAccount\":{\"organizationUuid\":\"o\"}}", None, Some("o")),
            (r#"{"oauthAccount":{"organizationUuid":"o"}}"#, None, Some("o")),
            (
                r#"{"oauthAccount":{"emailAddress":7,"organizationUuid":"o","x":{"y":[1]}}}"#,
                None,
                Some("o"),
            ),
        ];
        for (text, email, organization) in table {
            assert_eq!(state(text), signed_in(email, organization), "{text}");
        }
    }

    #[test]
    fn unusable_file_gives_unknown_state_with_a_reason() {
        let table: [(&[u8], &str); 16] = [
            (b"", "is truncated before the end of its account"),
            (b"   ", "is truncated before the end of its account"),
            (b"{", "is truncated before the end of its account"),
            (
                br#"{"oauthAccount":{"emailAddress":"a@b.c""#,
                "is truncated before the end of its account",
            ),
            (br#"{"numStartups":12,"his"#, "is truncated before the end of its account"),
            (b"{}", "contains no account: not signed in"),
            (br#"{"numStartups":12}"#, "contains no account: not signed in"),
            (br#"{"oauthAccount":null}"#, "has a null account: not signed in"),
            (br#"{"oauthAccount":{}}"#, "has an account without address and ids"),
            (
                br#"{"oauthAccount":{"emailAddress":"","accountUuid":null}}"#,
                "has an account without address and ids",
            ),
            (br#"{"oauthAccount":"a@b.c"}"#, "has an unexpected value in `oauthAccount`"),
            (br#"{"oauthAccount":["a@b.c",{}]}"#, "has an unexpected value in `oauthAccount`"),
            (br#"["oauthAccount"]"#, "is not a JSON object"),
            (b"null", "is not a JSON object"),
            (b"<html>", "is not a JSON object"),
            (b"\0\0\0\0", "is not a JSON object"),
        ];
        for (text, why) in table {
            let text = String::from_utf8_lossy(text);
            assert_eq!(state(text.as_bytes()), SignInState::Unknown(why.into()), "{text}");
        }
        let long = format!(r#"{{"oauthAccount":{{"emailAddress":"{}"}}}}"#, "a".repeat(5000));
        assert!(matches!(state(long), SignInState::Unknown(_)));
    }

    /// A file of some megabytes is normal; one without end must not be read forever.
    #[test]
    fn endless_file_is_read_up_to_32_mib() {
        let head: &[u8] = br#"{"history":""#;
        let endless = head.chain(io::repeat(b'x'));
        let why = read(endless).unwrap_err();
        assert_eq!(why, "has no account in its first 32 MiB");
        let deep: &[u8] = br#"{"history":"#;
        assert_eq!(read(deep.chain(io::repeat(b'['))).unwrap_err(), why);
    }

    #[cfg(unix)]
    #[test]
    fn symlink_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join(".claude.json"));
        std::fs::write(&real, r#"{"oauthAccount":{"emailAddress":"a@b.c"}}"#).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(read_sign_in_state(&link), signed_in(Some("a@b.c"), None));
    }

    #[test]
    fn directory_or_missing_file_gives_unknown_state() {
        let folder = tempfile::tempdir().unwrap();
        let why = |path: &Path| match read_sign_in_state(path) {
            SignInState::Unknown(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(folder.path()).ends_with("` is not a regular file"));
        assert!(why(&folder.path().join("none")).ends_with("` does not exist"));
    }

    #[test]
    fn key_or_provider_overrides_account_and_hides_its_value() {
        type Variables = [(&'static str, &'static str)];
        let table: [(&Variables, Option<&str>); 8] = [
            (&[], None),
            (&[("ANTHROPIC_API_KEY", "sk-secret")], Some("ANTHROPIC_API_KEY")),
            (&[("ANTHROPIC_API_KEY", "")], None),
            (&[("CLAUDE_CODE_USE_BEDROCK", "0")], None),
            (&[("CLAUDE_CODE_USE_BEDROCK", "False")], None),
            (
                &[("ANTHROPIC_API_KEY", "sk-secret"), ("CLAUDE_CODE_USE_VERTEX", "1")],
                Some("CLAUDE_CODE_USE_VERTEX"),
            ),
            (
                &[("ANTHROPIC_API_KEY", "sk-secret"), ("ANTHROPIC_AUTH_TOKEN", "t-secret")],
                Some("ANTHROPIC_AUTH_TOKEN"),
            ),
            (&[("CLAUDE_CODE_OAUTH_TOKEN", "t-secret")], Some("CLAUDE_CODE_OAUTH_TOKEN")),
        ];
        for (variables, name) in table {
            let environment: Environment = variables.iter().copied().collect();
            let account = Account::of_claude_code_with(Path::new("/h"), &environment, |path| {
                SignInState::Unknown(path.display().to_string())
            });
            assert!(!format!("{account:?}").contains("secret"));
            let expected = match name {
                Some(name) => SignInState::Key(name.to_owned()),
                None => SignInState::Unknown(Path::new("/h").join(FILE).display().to_string()),
            };
            assert_eq!(account.state, expected);
        }
    }

    #[test]
    fn each_client_directory_has_its_own_account_file() {
        let home = Path::new("/h");
        let dirs = ["/w", "/h/.claude", "/c", "/w"].map(PathBuf::from);
        let others = |environment: &Environment| other_claude_code_files(home, environment, &dirs);
        let files =
            |dirs: &[&str]| dirs.iter().map(|dir| Path::new(dir).join(FILE)).collect::<Vec<_>>();
        let plain = Environment::from_iter([("HOME", "/h")]);
        assert_eq!(claude_code_file(home, &plain), Path::new("/h/.claude.json"));
        assert_eq!(others(&plain), files(&["/c", "/w"]));
        let moved = Environment::from_iter([("CLAUDE_CONFIG_DIR", "/c")]);
        assert_eq!(claude_code_file(home, &moved), Path::new("/c/.claude.json"));
        assert_eq!(others(&moved), files(&["/h", "/w"]));
    }
}
