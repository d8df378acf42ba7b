//! Tokens of the registry.

use super::{
    super::{
        devices::DeviceKey,
        journal::Durability,
        tokens::{Grant, NewToken, TokenId, TokenText, TokenView},
    },
    EnrollError, Registry, RegistryError,
};

impl Registry {
    /// Returns the rights of a token; none if it is unknown, expired or revoked.
    #[must_use]
    pub fn grant(&self, presented: &[u8]) -> Option<Grant> {
        let now = self.clock.now();
        self.tokens.read(|tokens| tokens.grant(presented, now))
    }

    /// Uses up a single-use token for a key. It stays valid for that key.
    pub(super) fn use_token(&self, token: &TokenId, key: DeviceKey) -> Result<(), EnrollError> {
        let now = self.clock.now();
        self.tokens.transact(Durability::Synced, |tokens| {
            let line = tokens.decide_use(token, key, now).map_err(EnrollError::Token)?;
            Ok((line, ()))
        })
    }

    /// Returns all tokens in the order in which they were made.
    #[must_use]
    pub fn tokens(&self) -> Vec<TokenView> {
        let now = self.clock.now();
        self.tokens.read(|tokens| tokens.views(now))
    }

    /// Stores the hash of a new token, which was made with [`TokenText::from_random`].
    ///
    /// # Errors
    /// [`TokenError`](crate::trust::TokenError) for a combination of properties that makes no sense, or if two tokens with
    /// the name are valid.
    pub fn add_token(&self, new: NewToken, text: &TokenText) -> Result<TokenId, RegistryError> {
        let now = self.clock.now();
        let hash = text.hash();
        self.tokens.transact(Durability::Synced, |tokens| {
            let line = tokens.decide_new(new, hash, now)?;
            Ok::<_, RegistryError>((Some(line), ()))
        })?;
        Ok(text.id())
    }

    /// Revokes a token. Returns false if it was revoked.
    ///
    /// # Errors
    /// [`TokenError::Unknown`](crate::trust::TokenError::Unknown) if there is no such token.
    pub fn revoke_token(&self, id: &TokenId) -> Result<bool, RegistryError> {
        let now = self.clock.now();
        self.tokens.transact(Durability::Synced, |tokens| {
            let line = tokens.decide_revoke(id, now)?;
            let changed = line.is_some();
            Ok((line, changed))
        })
    }
}
