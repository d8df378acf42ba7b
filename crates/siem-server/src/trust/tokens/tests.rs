use std::time::Duration;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + DAY * 20_000
}

fn text(seed: u8) -> TokenText {
    TokenText::from_random(&[seed; 32])
}

fn scopes(scopes: &[Scope]) -> NewToken {
    NewToken { scopes: scopes.iter().copied().collect(), ..NewToken::default() }
}

fn single_use() -> NewToken {
    NewToken { single_use: true, ..scopes(&[Scope::Enroll]) }
}

impl Tokens {
    fn make(&mut self, seed: u8, new: NewToken) -> Result<TokenId, TokenError> {
        let line = self.decide_new(new, text(seed).hash(), now())?;
        self.apply(line);
        Ok(text(seed).id())
    }

    fn spend(&mut self, id: &TokenId, device: u8) -> Result<(), TokenError> {
        let device = DeviceKey::from_bytes([device; 32]);
        if let Some(line) = self.decide_use(id, device, now())? {
            self.apply(line);
        }
        Ok(())
    }

    fn accepts(&self, seed: u8, at: SystemTime) -> bool {
        self.grant(text(seed).reveal().as_bytes(), at).is_some()
    }
}

#[test]
fn token_has_its_scopes_only() {
    let mut tokens = Tokens::default();
    tokens.make(1, scopes(&[Scope::Read, Scope::Ingest])).unwrap();
    let grant = tokens.grant(text(1).reveal().as_bytes(), now()).unwrap();
    for scope in Scope::ALL {
        let expected = matches!(scope, Scope::Read | Scope::Ingest);
        assert_eq!(grant.has_any(&[scope]), expected, "{scope}");
    }
    assert!(grant.has_any(&[Scope::Admin, Scope::Read]) && grant.confirms_since().is_none());
    assert!(!tokens.accepts(2, now()));
    for wrong in ["", "siem_", text(1).hash().to_string().as_str()] {
        assert_eq!(tokens.grant(wrong.as_bytes(), now()), None, "{wrong}");
    }
}

#[test]
fn expired_token_is_refused() {
    let mut tokens = Tokens::default();
    let new = NewToken { expires: Some(now() + DAY), ..scopes(&[Scope::Ingest]) };
    tokens.make(1, new).unwrap();
    assert!(tokens.accepts(1, now()));
    assert!(!tokens.accepts(1, now() + DAY));
    assert_eq!(tokens.views(now() + DAY)[0].state, TokenState::Expired);
}

#[test]
fn revoked_token_is_refused() {
    let mut tokens = Tokens::default();
    let id = tokens.make(1, scopes(&[Scope::Ingest])).unwrap();
    let line = tokens.decide_revoke(&id, now()).unwrap().unwrap();
    tokens.apply(line);
    assert!(!tokens.accepts(1, now()));
    assert_eq!(tokens.decide_revoke(&id, now()), Ok(None));
    assert_eq!(tokens.decide_revoke(&text(2).id(), now()), Err(TokenError::Unknown));
}

#[test]
fn single_use_token_enrolls_one_key() {
    let mut tokens = Tokens::default();
    let id = tokens.make(1, single_use()).unwrap();
    assert!(tokens.grant(text(1).reveal().as_bytes(), now()).unwrap().confirms_since().is_some());
    tokens.spend(&id, 1).unwrap();
    tokens.spend(&id, 1).unwrap();
    assert_eq!(tokens.spend(&id, 2), Err(TokenError::Used));
    let view = &tokens.views(now())[0];
    assert_eq!(view.state, TokenState::Used);
    assert_eq!(view.used_by, Some(DeviceKey::from_bytes([1; 32])));
}

#[test]
fn reusable_token_does_not_confirm_but_machine_bound_one_does() {
    let mut tokens = Tokens::default();
    let reusable = NewToken { expires: Some(now() + DAY), ..scopes(&[Scope::Enroll]) };
    tokens.make(1, reusable).unwrap();
    let bound = NewToken { machine: Some("m-1".into()), ..scopes(&[Scope::Enroll]) };
    tokens.make(2, bound).unwrap();
    let bound_ingest = NewToken { machine: Some("m-1".into()), ..scopes(&[Scope::Ingest]) };
    tokens.make(3, bound_ingest).unwrap();
    let grant = |seed| tokens.grant(text(seed).reveal().as_bytes(), now()).unwrap();
    assert!(grant(1).confirms_since().is_none());
    assert!(grant(2).confirms_since().is_some());
    assert_eq!(grant(2).machine(), Some("m-1"));
    assert!(grant(3).confirms_since().is_none());
    assert!(Grant::all().confirms_since().is_none());
}

#[test]
fn two_tokens_of_a_name_are_valid_at_once() {
    let mut tokens = Tokens::default();
    let named = || NewToken { name: Some("fleet".into()), ..scopes(&[Scope::Ingest]) };
    let first = tokens.make(1, named()).unwrap();
    tokens.make(2, named()).unwrap();
    let refused = tokens.make(3, named()).unwrap_err();
    assert_eq!(refused, TokenError::TwoValid { name: "fleet".into() });
    let line = tokens.decide_revoke(&first, now()).unwrap().unwrap();
    tokens.apply(line);
    tokens.make(3, named()).unwrap();
    assert!(!tokens.accepts(1, now()) && tokens.accepts(2, now()) && tokens.accepts(3, now()));
    for seed in 10..20 {
        tokens.make(seed, single_use()).unwrap();
    }
}

#[test]
fn senseless_tokens_are_refused() {
    let mut tokens = Tokens::default();
    assert_eq!(tokens.make(1, NewToken::default()), Err(TokenError::NoScope));
    let single = NewToken { single_use: true, ..scopes(&[Scope::Enroll, Scope::Ingest]) };
    assert_eq!(tokens.make(1, single), Err(TokenError::SingleUse));
    assert_eq!(tokens.make(1, scopes(&[Scope::Enroll])), Err(TokenError::NeverExpires));
}

#[test]
fn text_of_a_token_is_in_no_line_and_no_debug_output() {
    let mut tokens = Tokens::default();
    tokens.make(1, single_use()).unwrap();
    let line = tokens.decide_new(single_use(), text(1).hash(), now()).unwrap();
    let token = text(1);
    assert!(token.reveal().starts_with("siem_") && token.reveal().len() == 48);
    let grant = tokens.grant(token.reveal().as_bytes(), now());
    let shown = [
        serde_json::to_string(&line).unwrap(),
        serde_json::to_string(&tokens.views(now())).unwrap(),
        format!("{token:?} {tokens:?} {grant:?}"),
    ];
    for shown in shown {
        assert!(!shown.contains(&token.reveal()[5..]), "{shown}");
    }
}

#[test]
fn line_is_the_same_after_a_round_trip() {
    let tokens = Tokens::default();
    let new = NewToken {
        name: Some("fleet".into()),
        expires: Some(now() + DAY),
        machine: Some("m-1".into()),
        ..scopes(&[Scope::Ingest, Scope::Enroll])
    };
    let line = tokens.decide_new(new, text(1).hash(), now()).unwrap();
    let json = serde_json::to_string(&line).unwrap();
    assert_eq!(serde_json::from_str::<TokenLine>(&json).unwrap(), line);
}
