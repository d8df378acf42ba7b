//! Tokens with scopes, of which only the hash is stored.
//!
//! [`Tokens`] is a pure fold of the lines of `tokens.ndjson`.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    str::FromStr,
    time::SystemTime,
};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use siem_protocol::Digest;
use subtle::ConstantTimeEq as _;

use super::{devices::DeviceKey, journal::Fold};

/// Start of every token made here, by which scanners for leaked secrets recognize it.
const PREFIX: &str = "siem_";
/// Number of valid tokens with one name: the current one and, during a rotation, the next one.
const OF_NAME: usize = 2;

/// Right that a token gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All paths that agents use.
    Ingest,
    /// Only the paths for the enrollment of a device.
    Enroll,
    /// Statistics, without the content of records.
    Read,
    /// Content of records.
    Content,
    /// Administration.
    Admin,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 5] = [Self::Ingest, Self::Enroll, Self::Read, Self::Content, Self::Admin];

    /// Returns the name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Enroll => "enroll",
            Self::Read => "read",
            Self::Content => "content",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let mut all = Self::ALL.into_iter();
        all.find(|scope| scope.as_str() == text).ok_or_else(|| UnknownScope(text.to_owned()))
    }
}

/// A scope that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown scope `{0}`, expected ingest, enroll, read, content or admin")]
pub struct UnknownScope(String);

/// Id of a token: the first 8 bytes of its hash, in hex. It is shown, and reveals nothing usable.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(String);

impl TokenId {
    fn of(hash: &Digest) -> Self {
        Self(HEXLOWER.encode(&hash.as_bytes()[..8]))
    }

    /// Returns the hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({})", self.0)
    }
}

/// The text of a new token. Its `Debug` output hides it.
pub struct TokenText(String);

impl TokenText {
    /// Makes a token of 32 random bytes.
    #[must_use]
    pub fn from_random(bytes: &[u8; 32]) -> Self {
        Self(format!("{PREFIX}{}", BASE64URL_NOPAD.encode(bytes)))
    }

    /// Returns the text, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub(super) fn id(&self) -> TokenId {
        TokenId::of(&self.hash())
    }

    pub(super) fn hash(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenText(***)")
    }
}

/// Properties of a token to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewToken {
    /// Name for people, which tokens of a rotation share.
    pub name: Option<String>,
    /// Its scopes.
    pub scopes: BTreeSet<Scope>,
    /// Time from which it is invalid.
    pub expires: Option<SystemTime>,
    /// True for an enrollment token that enrolls one key.
    pub single_use: bool,
    /// Machine for which alone it is valid.
    pub machine: Option<String>,
}

/// A line of `tokens.ndjson`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum TokenLine {
    /// A token was made.
    Add(AddedToken),
    /// A token was revoked.
    Revoke { at: String, id: TokenId },
    /// A single-use token enrolled a key.
    Use { at: String, id: TokenId, device: DeviceKey },
}

/// A token as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AddedToken {
    pub(super) at: String,
    pub(super) hash: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) scopes: BTreeSet<Scope>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_time")]
    pub(super) expires: Option<SystemTime>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) single_use: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) machine: Option<String>,
}

/// A time as RFC 3339.
mod optional_time {
    use std::time::SystemTime;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<SystemTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => serializer.serialize_str(&crate::clock::text(*time)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        humantime::parse_rfc3339(&text).map(Some).map_err(D::Error::custom)
    }
}

/// A token as shown by `siem-server tokens list`: without its text, which is not stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenView {
    /// Its id.
    pub id: TokenId,
    /// Name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its scopes.
    pub scopes: BTreeSet<Scope>,
    /// Time at which it was made, RFC 3339.
    pub created_at: String,
    /// Time from which it is invalid, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// True if it enrolls one key.
    pub single_use: bool,
    /// Machine for which alone it is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// State at the time of the query.
    pub state: TokenState,
    /// Key that it enrolled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_by: Option<DeviceKey>,
}

/// State of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// It is accepted.
    Valid,
    /// It enrolled a key, and is accepted only for that key.
    Used,
    /// Its time is over.
    Expired,
    /// An operator revoked it.
    Revoked,
}

impl TokenState {
    /// Returns the name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Used => "used",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// Rights of the sender of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    scopes: BTreeSet<Scope>,
    machine: Option<String>,
    single_use: Option<TokenId>,
    /// Time at which the token was made; none for the one that the server was started with.
    made_at: Option<String>,
}

impl Grant {
    /// Rights of the token that the server was started with: all, for any machine.
    #[must_use]
    pub fn all() -> Self {
        Self { scopes: Scope::ALL.into(), machine: None, single_use: None, made_at: None }
    }

    /// Reports whether the token has one of `scopes`.
    #[must_use]
    pub(crate) fn has_any(&self, scopes: &[Scope]) -> bool {
        scopes.iter().any(|scope| self.scopes.contains(scope))
    }

    /// Machine for which alone the token is valid.
    #[must_use]
    pub(crate) fn machine(&self) -> Option<&str> {
        self.machine.as_deref()
    }

    /// Id of the token if it enrolls one key only.
    pub(super) fn single_use(&self) -> Option<&TokenId> {
        self.single_use.as_ref()
    }

    /// Returns the time at which the token was made, if an enrollment with it may confirm the key: with a
    /// reusable token that is not bound to a machine it does not.
    pub(super) fn confirms_since(&self) -> Option<&str> {
        let bound = self.single_use.is_some() || self.machine.is_some();
        self.made_at.as_deref().filter(|_| bound && self.scopes.contains(&Scope::Enroll))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    added: AddedToken,
    revoked: bool,
    used_by: Option<DeviceKey>,
}

/// All tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    tokens: Vec<Token>,
    /// Positions by id. An id is part of a hash, so that the time of a lookup tells nothing that
    /// helps to guess a token.
    by_id: HashMap<TokenId, Vec<usize>>,
}

impl Fold for Tokens {
    type Line = TokenLine;

    fn apply(&mut self, line: TokenLine) {
        match line {
            TokenLine::Add(added) => {
                let id = TokenId::of(&added.hash);
                self.by_id.entry(id).or_default().push(self.tokens.len());
                self.tokens.push(Token { added, revoked: false, used_by: None });
            }
            TokenLine::Revoke { id, .. } => {
                for at in self.by_id.get(&id).into_iter().flatten() {
                    self.tokens[*at].revoked = true;
                }
            }
            TokenLine::Use { id, device, .. } => {
                for at in self.by_id.get(&id).into_iter().flatten() {
                    self.tokens[*at].used_by.get_or_insert(device);
                }
            }
        }
    }
}

impl Tokens {
    /// Returns the rights of the token `presented` at `now`; none if it is unknown, expired or
    /// revoked. Compares hashes in constant time.
    pub(super) fn grant(&self, presented: &[u8], now: SystemTime) -> Option<Grant> {
        let hash = Digest::of(presented);
        let id = TokenId::of(&hash);
        let found = self.by_id.get(&id)?.iter().map(|at| &self.tokens[*at]);
        let mut matching =
            found.filter(|token| token.added.hash.as_bytes().ct_eq(hash.as_bytes()).into());
        let token = matching.next()?;
        let valid = matches!(token.state(now), TokenState::Valid | TokenState::Used);
        valid.then(|| Grant {
            scopes: token.added.scopes.clone(),
            machine: token.added.machine.clone(),
            single_use: token.added.single_use.then_some(id),
            made_at: Some(token.added.at.clone()),
        })
    }

    /// Decides the use of a single-use token for a key.
    pub(super) fn decide_use(
        &self,
        id: &TokenId,
        device: DeviceKey,
        now: SystemTime,
    ) -> Result<Option<TokenLine>, TokenError> {
        let token = self.get(id)?;
        match (token.used_by, token.state(now)) {
            (_, TokenState::Revoked | TokenState::Expired) => Err(TokenError::Unknown),
            (Some(known), _) if known == device => Ok(None),
            (Some(_), _) => Err(TokenError::Used),
            (None, _) => {
                let at = crate::clock::text(now);
                Ok(Some(TokenLine::Use { at, id: id.clone(), device }))
            }
        }
    }

    /// Decides the creation of a token with `hash`.
    pub(super) fn decide_new(
        &self,
        new: NewToken,
        hash: Digest,
        now: SystemTime,
    ) -> Result<TokenLine, TokenError> {
        check(&new)?;
        let valid =
            |token: &&Token| token.added.name == new.name && token.state(now) == TokenState::Valid;
        if let Some(name) = &new.name
            && self.tokens.iter().filter(valid).count() >= OF_NAME
        {
            return Err(TokenError::TwoValid { name: name.clone() });
        }
        let NewToken { name, scopes, expires, single_use, machine } = new;
        let at = crate::clock::text(now);
        Ok(TokenLine::Add(AddedToken { at, hash, name, scopes, expires, single_use, machine }))
    }

    /// Decides the revocation of the tokens with this name or id.
    pub(super) fn decide_revoke(
        &self,
        id: &TokenId,
        now: SystemTime,
    ) -> Result<Option<TokenLine>, TokenError> {
        let token = self.get(id)?;
        let at = crate::clock::text(now);
        Ok((!token.revoked).then(|| TokenLine::Revoke { at, id: id.clone() }))
    }

    fn get(&self, id: &TokenId) -> Result<&Token, TokenError> {
        let positions = self.by_id.get(id).and_then(|positions| positions.first());
        positions.map(|at| &self.tokens[*at]).ok_or(TokenError::Unknown)
    }

    pub(super) fn views(&self, now: SystemTime) -> Vec<TokenView> {
        self.tokens.iter().map(|token| token.view(now)).collect()
    }
}

/// Checks the combination of properties.
fn check(new: &NewToken) -> Result<(), TokenError> {
    let bound = new.single_use || new.machine.is_some();
    if new.scopes.is_empty() {
        Err(TokenError::NoScope)
    } else if new.single_use && new.scopes != [Scope::Enroll].into() {
        Err(TokenError::SingleUse)
    } else if new.scopes.contains(&Scope::Enroll) && !bound && new.expires.is_none() {
        Err(TokenError::NeverExpires)
    } else {
        Ok(())
    }
}

impl Token {
    fn state(&self, now: SystemTime) -> TokenState {
        if self.revoked {
            TokenState::Revoked
        } else if self.added.expires.is_some_and(|expires| expires <= now) {
            TokenState::Expired
        } else if self.used_by.is_some() {
            TokenState::Used
        } else {
            TokenState::Valid
        }
    }

    fn view(&self, now: SystemTime) -> TokenView {
        let added = self.added.clone();
        TokenView {
            id: TokenId::of(&added.hash),
            name: added.name,
            scopes: added.scopes,
            created_at: added.at,
            expires: added.expires.map(crate::clock::text),
            single_use: added.single_use,
            machine: added.machine,
            state: self.state(now),
            used_by: self.used_by,
        }
    }
}

/// Error of an operation on tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is no such token, or it is no longer valid.
    #[error("there is no such token")]
    Unknown,
    /// A single-use token already enrolled another key.
    #[error("the token is used: it enrolled another device")]
    Used,
    /// Two tokens with the name are valid already.
    #[error("two tokens named `{name}` are valid already: revoke one first")]
    TwoValid {
        /// The name.
        name: String,
    },
    /// The token would have no right.
    #[error("a token needs a scope")]
    NoScope,
    /// A single-use token can only enroll.
    #[error("a single-use token has the scope `enroll` and no other")]
    SingleUse,
    /// A reusable enrollment token must expire.
    #[error(
        "an enrollment token that is neither single-use nor bound to a machine must expire: add --expires, --single-use or --machine"
    )]
    NeverExpires,
}

#[cfg(test)]
mod tests;
