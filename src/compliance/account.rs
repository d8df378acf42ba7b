//! SignedInAccount is signed in to Claude Code, as far as its files and the environment say.
//!
//! The file is the client's own, undocumented, rewritten many times in a session and not always at
//! once: whatever does not make sense in it is not known, and never a violation. Of the environment
//! only names are read out, never a value.

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

/// How far a file is searched for its account.
const MOST: u64 = 32 << 20;
/// The longest name, id or path; a longer one is none.
const LONGEST: usize = 4096;
/// What is larger is no account.
const LARGEST: usize = 256 << 10;
/// The file that it lies in.
const FILE: &str = ".claude.json";
/// The member that names the account.
const ACCOUNT: &str = "oauthAccount";

/// Keys that the client uses in place of an account.
const KEYS: [&str; 3] = ["ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"];
/// Cloud providers that it uses in place of an account, when they are switched on. They go first.
const PROVIDERS: [&str; 5] = [
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_USE_ANTHROPIC_AWS",
    "CLAUDE_CODE_USE_MANTLE",
];

/// SignedInAccount is signed in to one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The program: one of [`siem_protocol::names::source`].
    pub source: &'static str,
    /// The file, or the folder, that says so.
    pub place: PathBuf,
    /// What it says.
    pub standing: SignInState,
}

/// What is known of who is signed in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignInState {
    /// An account.
    SignedIn(SignedInAccount),
    /// A key or a cloud provider in place of an account: the variable that says so.
    Key(String),
    /// Nobody knows: why.
    Unknown(String),
}

/// An account, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedInAccount {
    /// Its e-mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Its organisation's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Its own id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}

impl Account {
    /// SignedInAccount is signed in to Claude Code under `home`, for a process with `environment`, where `look`
    /// says what stands in a file.
    #[must_use]
    pub fn of_claude_code_with(
        home: &Path,
        environment: &Environment,
        look: impl FnOnce(&Path) -> SignInState,
    ) -> Self {
        let place = claude_code_file(home, environment);
        let standing = match in_place_of_an_account(environment) {
            Some(name) => SignInState::Key(name.to_owned()),
            None => look(&place),
        };
        Self { source: source::CLAUDE_CODE, place, standing }
    }

    /// SignedInAccount is signed in to a Claude Code that keeps its account in the file at `place`.
    #[must_use]
    pub fn of_claude_code_in(place: &Path) -> Self {
        let standing = read_sign_in_state(place);
        Self { source: source::CLAUDE_CODE, place: place.to_owned(), standing }
    }
}

/// The files in which Claude Code keeps an account besides [`claude_code_file`], for sessions that
/// run with one of `client_dirs` as their `CLAUDE_CONFIG_DIR`.
#[must_use]
pub fn other_claude_code_files(
    home: &Path,
    environment: &Environment,
    client_dirs: &[PathBuf],
) -> Vec<PathBuf> {
    let own = claude_code_file(home, environment);
    // What lies in the home directory has its account beside it.
    let beside = |dir| if dir == home.join(".claude") { home.to_owned() } else { dir };
    let files = client_dirs.iter().map(|dir| beside(dir.clone()).join(FILE));
    let mut files: Vec<_> = files.filter(|file| *file != own).collect();
    files.sort();
    files.dedup();
    files
}

/// Where Claude Code keeps its account.
#[must_use]
pub fn claude_code_file(home: &Path, environment: &Environment) -> PathBuf {
    let folder = environment.get("CLAUDE_CONFIG_DIR").map_or(home, Path::new);
    folder.join(FILE)
}

/// The variable that names a key or a provider, which the client prefers to any account.
fn in_place_of_an_account(environment: &Environment) -> Option<&'static str> {
    let is_on = |name: &&str| {
        let value = environment.get(name).map(|value| value.to_string_lossy().to_lowercase());
        value.is_some_and(|value| !["0", "false", "no", "off"].contains(&value.trim()))
    };
    let provider = PROVIDERS.into_iter().find(is_on);
    provider.or_else(|| KEYS.into_iter().find(|name| environment.get(name).is_some()))
}

/// What stands in Claude Code's file at `path`.
#[must_use]
pub fn read_sign_in_state(path: &Path) -> SignInState {
    let unknown =
        |why: &dyn fmt::Display| SignInState::Unknown(format!("`{}` {why}", path.display()));
    // Those who keep their files elsewhere have a symlink here.
    match path.canonicalize().and_then(|path| file::open_regular(&path)) {
        Ok(Some((file, _))) => read(file).unwrap_or_else(|why| unknown(&why)),
        Ok(None) => unknown(&"is no file"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => unknown(&"does not exist"),
        Err(error) => unknown(&format_args!("cannot be opened: {error}")),
    }
}

/// Finds the account in what the client wrote; reads no further.
fn read(file: impl Read) -> Result<SignInState, String> {
    const MARK: &[u8] = b"\xef\xbb\xbf";

    let mut file = BufReader::with_capacity(64 << 10, file.take(MOST));
    // What the system has against it shows again below.
    if file.fill_buf().is_ok_and(|bytes| bytes.starts_with(MARK)) {
        file.consume(MARK.len());
    }
    let mut found = None;
    let mut from = serde_json::Deserializer::from_reader(&mut file);
    let whole = Search(&mut found).deserialize(&mut from).and_then(|()| from.end());
    // The rest of the file is not looked at, and says nothing about the account.
    if let Some(found) = found {
        return who(&found).map(SignInState::SignedIn);
    }
    match whole {
        Ok(()) => Err("names no account: nobody is signed in".to_owned()),
        Err(_) if file.get_ref().limit() == 0 => {
            Err(format!("has no account in its first {} MiB", MOST >> 20))
        }
        Err(error) if error.is_io() => Err(format!("cannot be read: {error}")),
        Err(error) if error.is_eof() => Err("ends before its account does".to_owned()),
        Err(_) => Err("is no JSON object".to_owned()),
    }
}

/// SignedInAccount an account is.
fn who(account: &RawValue) -> Result<SignedInAccount, String> {
    let other = || format!("has something else than an account in `{ACCOUNT}`");
    let account = Some(account.get()).filter(|text| text.len() <= LARGEST).ok_or_else(other)?;
    match serde_json::from_str(account).map_err(|_| other())? {
        Value::Null => Err("says that nobody is signed in".to_owned()),
        account @ Value::Object(_) => {
            let who = SignedInAccount {
                email: text(&account["emailAddress"]),
                organization: text(&account["organizationUuid"]),
                account: text(&account["accountUuid"]),
            };
            let is_named = who != SignedInAccount::default();
            is_named.then_some(who).ok_or_else(|| "names an account without a name".to_owned())
        }
        _ => Err(other()),
    }
}

/// A string of a sensible length that is not blank; anything else is taken for absent.
pub(super) fn text(value: &Value) -> Option<String> {
    let text = value.as_str().map(str::trim).filter(|text| !text.is_empty());
    text.filter(|text| text.len() <= LONGEST).map(str::to_owned)
}

/// Goes through the members of an object until that of the account is found.
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

    fn standing(text: impl AsRef<[u8]>) -> SignInState {
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
    fn an_account_is_found_wherever_it_stands() {
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
            assert_eq!(standing(text), signed_in(email, organization), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_not_known_and_says_why() {
        let table: [(&[u8], &str); 16] = [
            (b"", "ends before its account does"),
            (b"   ", "ends before its account does"),
            (b"{", "ends before its account does"),
            (br#"{"oauthAccount":{"emailAddress":"a@b.c""#, "ends before its account does"),
            (br#"{"numStartups":12,"his"#, "ends before its account does"),
            (b"{}", "names no account: nobody is signed in"),
            (br#"{"numStartups":12}"#, "names no account: nobody is signed in"),
            (br#"{"oauthAccount":null}"#, "says that nobody is signed in"),
            (br#"{"oauthAccount":{}}"#, "names an account without a name"),
            (
                br#"{"oauthAccount":{"emailAddress":"","accountUuid":null}}"#,
                "names an account without a name",
            ),
            (
                br#"{"oauthAccount":"a@b.c"}"#,
                "has something else than an account in `oauthAccount`",
            ),
            (
                br#"{"oauthAccount":["a@b.c",{}]}"#,
                "has something else than an account in `oauthAccount`",
            ),
            (br#"["oauthAccount"]"#, "is no JSON object"),
            (b"null", "is no JSON object"),
            (b"<html>", "is no JSON object"),
            (b"\0\0\0\0", "is no JSON object"),
        ];
        for (text, why) in table {
            let text = String::from_utf8_lossy(text);
            assert_eq!(standing(text.as_bytes()), SignInState::Unknown(why.into()), "{text}");
        }
        let long = format!(r#"{{"oauthAccount":{{"emailAddress":"{}"}}}}"#, "a".repeat(5000));
        assert!(matches!(standing(long), SignInState::Unknown(_)));
    }

    /// A file of some megabytes is normal; one without end must not be read for ever.
    #[test]
    fn a_file_without_end_is_left_at_32_mib() {
        let head: &[u8] = br#"{"history":""#;
        let endless = head.chain(io::repeat(b'x'));
        let why = read(endless).unwrap_err();
        assert_eq!(why, "has no account in its first 32 MiB");
        let deep: &[u8] = br#"{"history":"#;
        assert_eq!(read(deep.chain(io::repeat(b'['))).unwrap_err(), why);
    }

    #[cfg(unix)]
    #[test]
    fn a_symlink_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join(".claude.json"));
        std::fs::write(&real, r#"{"oauthAccount":{"emailAddress":"a@b.c"}}"#).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(read_sign_in_state(&link), signed_in(Some("a@b.c"), None));
    }

    #[test]
    fn what_is_no_file_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let why = |path: &Path| match read_sign_in_state(path) {
            SignInState::Unknown(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(folder.path()).ends_with("` is no file"));
        assert!(why(&folder.path().join("none")).ends_with("` does not exist"));
    }

    #[test]
    fn a_key_or_a_provider_goes_before_the_account_and_only_its_name_is_read_out() {
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
            assert_eq!(account.standing, expected);
        }
    }

    #[test]
    fn each_directory_of_the_client_has_an_account_of_its_own() {
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
