//! Who is signed in to Claude Code, as far as its files and the environment say.
//!
//! The file is the client's own, undocumented, rewritten many times in a session and not always at
//! once: whatever does not make sense in it is not known, and never a violation. Of the environment
//! only names are read out, never a value.

use std::{
    fmt, io,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use siem_protocol::names::source;

use crate::platform::{Environment, file};

/// How far a file is searched for its account.
const MOST: u64 = 32 << 20;
/// The longest name, id or path; a longer one is none.
const LONGEST: usize = 4096;
/// The member that names the account.
const ACCOUNT: &str = "oauthAccount";

/// Keys that the client uses in place of an account.
const KEYS: [&str; 2] = ["ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY"];
/// Cloud providers that it uses in place of an account, when they are switched on. They go first.
const PROVIDERS: [&str; 3] =
    ["CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY"];

/// Who is signed in to one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The program: one of [`siem_protocol::names::source`].
    pub source: &'static str,
    /// The file, or the folder, that says so.
    pub place: PathBuf,
    /// What it says.
    pub standing: Standing,
}

/// What is known of who is signed in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// An account.
    SignedIn(Who),
    /// A key or a cloud provider in place of an account: the variable that says so.
    Key(String),
    /// Nobody knows: why.
    Unknown(String),
}

/// An account, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
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
    /// Who is signed in to Claude Code under `home`, for a process with `environment`.
    #[must_use]
    pub fn of_claude_code(home: &Path, environment: &Environment) -> Self {
        Self::of_claude_code_with(home, environment, look_into)
    }

    /// The same, where `look` says what stands in the file.
    #[must_use]
    pub fn of_claude_code_with(
        home: &Path,
        environment: &Environment,
        look: impl FnOnce(&Path) -> Standing,
    ) -> Self {
        let place = claude_code_file(home, environment);
        let standing = match in_place_of_an_account(environment) {
            Some(name) => Standing::Key(name.to_owned()),
            None => look(&place),
        };
        Self { source: source::CLAUDE_CODE, place, standing }
    }
}

/// Where Claude Code keeps its account.
#[must_use]
pub fn claude_code_file(home: &Path, environment: &Environment) -> PathBuf {
    let folder = environment.get("CLAUDE_CONFIG_DIR").map_or(home, Path::new);
    folder.join(".claude.json")
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
pub fn look_into(path: &Path) -> Standing {
    let unknown = |why: &dyn fmt::Display| Standing::Unknown(format!("`{}` {why}", path.display()));
    // Those who keep their files elsewhere have a symlink here.
    match path.canonicalize().and_then(|path| file::open_regular(&path)) {
        Ok(Some((file, _))) => read(file).unwrap_or_else(|why| unknown(&why)),
        Ok(None) => unknown(&"is no file"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => unknown(&"does not exist"),
        Err(error) => unknown(&format_args!("cannot be opened: {error}")),
    }
}

/// Finds the account in what the client wrote; reads no further.
fn read(file: impl Read) -> Result<Standing, String> {
    let mut file = file.take(MOST);
    let mut found = None;
    let mut from = serde_json::Deserializer::from_reader(BufReader::with_capacity(
        64 << 10,
        SkipMark::new(&mut file),
    ));
    let whole = Search(&mut found).deserialize(&mut from).and_then(|()| from.end());
    match (found, whole) {
        // The rest of the file is not looked at, and says nothing about the account.
        (Some(Member::Account(who)), _) if who != Who::default() => Ok(Standing::SignedIn(who)),
        (Some(Member::Account(_)), _) => Err("names an account without a name".to_owned()),
        (Some(Member::Null), _) => Err("says that nobody is signed in".to_owned()),
        (Some(Member::Other), _) => {
            Err(format!("has something else than an account in `{ACCOUNT}`"))
        }
        (None, Ok(())) => Err("names no account: nobody is signed in".to_owned()),
        (None, Err(_)) if file.limit() == 0 => {
            Err(format!("has no account in its first {} MiB", MOST >> 20))
        }
        (None, Err(error)) if error.is_io() => Err(format!("cannot be read: {error}")),
        (None, Err(error)) if error.is_eof() => Err("ends before its account does".to_owned()),
        (None, Err(_)) => Err("is no JSON object".to_owned()),
    }
}

/// Leaves out a byte order mark.
struct SkipMark<R> {
    file: R,
    is_begun: bool,
}

impl<R> SkipMark<R> {
    fn new(file: R) -> Self {
        Self { file, is_begun: false }
    }
}

impl<R: Read> Read for SkipMark<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        const MARK: &[u8] = b"\xef\xbb\xbf";

        let count = self.file.read(bytes)?;
        if !std::mem::replace(&mut self.is_begun, true) && bytes[..count].starts_with(MARK) {
            bytes.copy_within(MARK.len()..count, 0);
            return if count > MARK.len() { Ok(count - MARK.len()) } else { self.file.read(bytes) };
        }
        Ok(count)
    }
}

/// What the member for the account holds.
enum Member {
    Account(Who),
    Null,
    Other,
}

/// Goes through the members of an object until that of the account is found.
struct Search<'a>(&'a mut Option<Member>);

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
        while let Some(Text(name)) = members.next_key()? {
            if name.as_deref() == Some(ACCOUNT) {
                *self.0 = Some(members.next_value()?);
                return Err(A::Error::custom("found"));
            }
            members.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(MemberVisitor)
    }
}

struct MemberVisitor;

impl<'de> Visitor<'de> for MemberVisitor {
    type Value = Member;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an account")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Member, A::Error> {
        let mut who = Who::default();
        while let Some(Text(name)) = members.next_key()? {
            let place = match name.as_deref() {
                Some("emailAddress") => &mut who.email,
                Some("organizationUuid") => &mut who.organization,
                Some("accountUuid") => &mut who.account,
                _ => {
                    members.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let Text(text) = members.next_value()?;
            *place = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        }
        Ok(Member::Account(who))
    }

    fn visit_unit<E>(self) -> Result<Member, E> {
        Ok(Member::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Member, E> {
        Ok(Member::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Member, E> {
        Ok(Member::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Member, E> {
        Ok(Member::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Member, E> {
        Ok(Member::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Member, E> {
        Ok(Member::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Member, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Member::Other)
    }
}

/// A string of a sensible length; anything else is taken for absent.
pub(super) struct Text(pub(super) Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text((text.len() <= LONGEST).then(|| text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Text, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Text, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Text(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(text: impl AsRef<[u8]>) -> Standing {
        read(text.as_ref()).unwrap_or_else(Standing::Unknown)
    }

    fn signed_in(email: Option<&str>, organization: Option<&str>) -> Standing {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Standing::SignedIn(Who {
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
            assert_eq!(standing(text.as_bytes()), Standing::Unknown(why.into()), "{text}");
        }
        let long = format!(r#"{{"oauthAccount":{{"emailAddress":"{}"}}}}"#, "a".repeat(5000));
        assert!(matches!(standing(long), Standing::Unknown(_)));
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
        assert_eq!(look_into(&link), signed_in(Some("a@b.c"), None));
    }

    #[test]
    fn what_is_no_file_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let why = |path: &Path| match look_into(path) {
            Standing::Unknown(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(folder.path()).ends_with("` is no file"));
        assert!(why(&folder.path().join("none")).ends_with("` does not exist"));
    }

    #[test]
    fn a_key_or_a_provider_goes_before_the_account_and_only_its_name_is_read_out() {
        type Variables = [(&'static str, &'static str)];
        let table: [(&Variables, Option<&str>); 7] = [
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
        ];
        for (variables, name) in table {
            let environment: Environment = variables.iter().copied().collect();
            let account = Account::of_claude_code_with(Path::new("/h"), &environment, |path| {
                Standing::Unknown(path.display().to_string())
            });
            assert!(!format!("{account:?}").contains("secret"));
            let expected = match name {
                Some(name) => Standing::Key(name.to_owned()),
                None => Standing::Unknown("/h/.claude.json".to_owned()),
            };
            assert_eq!(account.standing, expected);
        }
        let moved = Environment::from_iter([("CLAUDE_CONFIG_DIR", "/c")]);
        assert_eq!(claude_code_file(Path::new("/h"), &moved), Path::new("/c/.claude.json"));
    }
}
