//! Evaluation of an account by the organisation's policy: a pure function.
//!
//! An empty or absent list restricts nothing; every other list must be satisfied. Unknown facts
//! violate no rule.

use serde::{Deserialize, Serialize};
use siem_protocol::{managed::Compliance, names::violation};

use super::account::{SignInState, SignedInAccount};

/// Result of evaluating an account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evaluation {
    /// Rules that the account violates.
    pub violations: Vec<PolicyFinding>,
    /// Findings that are reported without an action: a key instead of an account where no account
    /// is required.
    pub remarks: Vec<PolicyFinding>,
    /// Rules that cannot be evaluated, with the reason.
    pub unknown: Vec<UndecidedRule>,
}

/// Rule that an account violates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFinding {
    /// Rule: one of [`siem_protocol::names::violation`].
    #[serde(rename = "violation")]
    pub rule: String,
    /// Value that was found.
    pub found: String,
    /// Permitted values.
    pub permitted: Vec<String>,
}

/// Rule that cannot be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndecidedRule {
    /// Rule: one of [`siem_protocol::names::violation`].
    pub rule: String,
    /// Reason.
    pub why: String,
}

impl Evaluation {
    /// Returns whether any rule is violated.
    #[must_use]
    pub fn is_violation(&self) -> bool {
        !self.violations.is_empty()
    }
}

/// Evaluates an account.
#[must_use]
pub fn evaluate(state: &SignInState, policy: &Compliance) -> Evaluation {
    let domains = Rule::new(violation::EMAIL_DOMAIN, policy.permitted_email_domains.as_ref());
    let organizations = Rule::new(violation::ORG_ID, policy.permitted_org_ids.as_ref());
    let rules = [domains, organizations].into_iter().flatten();
    let mut evaluation = Evaluation::default();
    match state {
        SignInState::SignedIn(who) => rules.for_each(|rule| rule.evaluate(who, &mut evaluation)),
        SignInState::Unknown(why) => {
            evaluation.unknown.extend(rules.map(|rule| rule.unknown(why.clone())));
            if policy.require_account == Some(true) {
                let (rule, why) = (violation::NO_ACCOUNT.to_owned(), why.clone());
                evaluation.unknown.push(UndecidedRule { rule, why });
            }
        }
        SignInState::Key(name) => {
            let finding = PolicyFinding {
                rule: violation::NO_ACCOUNT.to_owned(),
                found: name.clone(),
                permitted: Vec::new(),
            };
            let is_required = policy.require_account == Some(true);
            let findings =
                if is_required { &mut evaluation.violations } else { &mut evaluation.remarks };
            findings.push(finding);
        }
    }
    evaluation
}

/// Rule with at least one permitted value.
struct Rule<'a> {
    name: &'static str,
    permitted: &'a [String],
}

impl<'a> Rule<'a> {
    fn new(name: &'static str, permitted: Option<&'a Vec<String>>) -> Option<Self> {
        permitted.filter(|list| !list.is_empty()).map(|permitted| Self { name, permitted })
    }

    fn evaluate(&self, who: &SignedInAccount, evaluation: &mut Evaluation) {
        let (found, is_met) = if self.name == violation::EMAIL_DOMAIN {
            let Some(email) = &who.email else {
                return evaluation
                    .unknown
                    .push(self.unknown("the e-mail address is unknown".into()));
            };
            let Some(domain) = domain_of(email) else {
                let why = format!("`{email}` is not an e-mail address");
                return evaluation.unknown.push(self.unknown(why));
            };
            (email, self.permitted.iter().any(|permitted| is_within(&domain, permitted)))
        } else {
            let Some(id) = &who.organization else {
                return evaluation.unknown.push(self.unknown("the organisation is unknown".into()));
            };
            let is_same = |permitted: &String| permitted.trim().eq_ignore_ascii_case(id.trim());
            (id, self.permitted.iter().any(is_same))
        };
        if !is_met {
            evaluation.violations.push(PolicyFinding {
                rule: self.name.to_owned(),
                found: found.clone(),
                permitted: self.permitted.to_vec(),
            });
        }
    }

    fn unknown(&self, why: String) -> UndecidedRule {
        UndecidedRule { rule: self.name.to_owned(), why }
    }
}

/// Returns the normalized domain of an address. The mailbox before the last `@` may contain an `@`
/// in quotes.
fn domain_of(email: &str) -> Option<String> {
    let (mailbox, domain) = email.trim().rsplit_once('@')?;
    let domain = comparable(domain);
    (!mailbox.is_empty() && !domain.is_empty()).then_some(domain)
}

/// Returns whether `permitted` matches a domain: the domain itself, or its subdomains with `*.`.
fn is_within(domain: &str, permitted: &str) -> bool {
    let permitted = permitted.trim();
    let permitted = permitted.strip_prefix('@').unwrap_or(permitted);
    match permitted.strip_prefix("*.") {
        None => domain == comparable(permitted),
        Some(apex) => {
            let apex = comparable(apex);
            let below = domain.strip_suffix(&apex).and_then(|rest| rest.strip_suffix('.'));
            !apex.is_empty() && below.is_some_and(|below| !below.is_empty())
        }
    }
}

/// Normalizes a domain: lower case, ASCII, without trailing dot.
fn comparable(domain: &str) -> String {
    let domain = domain.trim().trim_end_matches('.');
    // An invalid domain is compared as it is.
    idna::domain_to_ascii(domain).unwrap_or_else(|_| domain.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> Option<Vec<String>> {
        Some(entries.iter().map(|entry| (*entry).to_owned()).collect())
    }

    fn who(email: &str, organization: &str) -> SignInState {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (email, organization) = (given(email), given(organization));
        SignInState::SignedIn(SignedInAccount { email, organization, account: None })
    }

    fn broken(state: &SignInState, policy: &Compliance) -> Vec<String> {
        evaluate(state, policy).violations.into_iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn domain_rule_compares_normalized_domains() {
        let table = [
            ("a@company.com", "company.com", true),
            ("a@Company.COM", "company.com", true),
            ("a@company.com", "COMPANY.com", true),
            ("a@company.com", "@company.com", true),
            ("a@company.com", " company.com ", true),
            ("a@company.com.", "company.com", true),
            ("a@company.com", "company.com.", true),
            (" a@company.com ", "company.com", true),
            ("a@mail.company.com", "company.com", false),
            ("a@mail.company.com", "*.company.com", true),
            ("a@x.mail.Company.com", "*.company.com", true),
            ("a@company.com", "*.company.com", false),
            ("a@evilcompany.com", "company.com", false),
            ("a@evilcompany.com", "*.company.com", false),
            ("a@company.com.evil.org", "company.com", false),
            ("a@company.com.evil.org", "*.company.com", false),
            ("a@.company.com", "*.company.com", false),
            ("\"a@company.com\"@evil.org", "company.com", false),
            ("a@evil.org@company.com", "company.com", true),
            ("a@evil.org", "*", false),
            ("a@evil.org", "*.", false),
            ("a@evil.org", "", false),
            ("a@bücher.example", "xn--bcher-kva.example", true),
            ("a@xn--bcher-kva.example", "BÜCHER.example", true),
            ("a@post.bücher.example", "*.xn--bcher-kva.example", true),
            ("a@bucher.example", "bücher.example", false),
            // A letter of another script that looks the same.
            ("a@соmpany.com", "company.com", false),
            ("a@exa mple", "company.com", false),
        ];
        for (email, permitted, is_met) in table {
            let policy =
                Compliance { permitted_email_domains: list(&[permitted]), ..Compliance::default() };
            let broken = broken(&who(email, ""), &policy);
            assert_eq!(broken.is_empty(), is_met, "{email} with {permitted}");
        }
    }

    #[test]
    fn every_list_must_be_satisfied() {
        let policy = |domains: &[&str], organizations: &[&str]| Compliance {
            permitted_email_domains: list(domains),
            permitted_org_ids: list(organizations),
            ..Compliance::default()
        };
        let both = policy(&["a.com", "b.com"], &["o1", "O2"]);
        assert_eq!(broken(&who("x@b.com", "o2"), &both), [""; 0]);
        assert_eq!(broken(&who("x@c.com", "o1"), &both), ["email_domain"]);
        assert_eq!(broken(&who("x@a.com", "o3"), &both), ["org_id"]);
        assert_eq!(broken(&who("x@c.com", "o3"), &both), ["email_domain", "org_id"]);
        // A personal account has an organisation too.
        assert_eq!(broken(&who("me@gmail.com", "o1"), &both), ["email_domain"]);
        for none in [policy(&[], &[]), Compliance::default()] {
            assert_eq!(evaluate(&who("x@c.com", "o3"), &none), Evaluation::default());
        }
        assert_eq!(broken(&who("x@c.com", "o1"), &policy(&[], &["o1"])), [""; 0]);
    }

    #[test]
    fn unknown_facts_violate_no_rule() {
        let policy = Compliance {
            permitted_email_domains: list(&["a.com"]),
            permitted_org_ids: list(&["o1"]),
            ..Compliance::default()
        };
        let rules = |state: &SignInState| {
            let evaluation = evaluate(state, &policy);
            let unknown = evaluation.unknown.into_iter().map(|unknown| unknown.rule);
            (evaluation.violations.len(), unknown.collect::<Vec<_>>())
        };
        assert_eq!(rules(&who("", "o1")), (0, vec!["email_domain".into()]));
        assert_eq!(rules(&who("x@a.com", "")), (0, vec!["org_id".into()]));
        assert_eq!(rules(&who("", "o9")), (1, vec!["email_domain".into()]));
        for odd in ["nobody", "@a.com", "x@", "x@."] {
            assert_eq!(rules(&who(odd, "o1")), (0, vec!["email_domain".into()]), "{odd}");
        }
        let nothing = SignInState::Unknown("it is half written".into());
        assert_eq!(rules(&nothing), (0, vec!["email_domain".into(), "org_id".into()]));
        assert_eq!(evaluate(&nothing, &policy).unknown[0].why, "it is half written");
        let required = Compliance { require_account: Some(true), ..Compliance::default() };
        let evaluation = evaluate(&nothing, &required);
        assert_eq!((evaluation.violations.len(), evaluation.unknown.len()), (0, 1));
        assert_eq!(evaluation.unknown[0].rule, "no_account");
    }

    #[test]
    fn key_instead_of_account_violates_only_if_account_required() {
        let key = SignInState::Key("ANTHROPIC_API_KEY".into());
        let lists =
            Compliance { permitted_email_domains: list(&["a.com"]), ..Compliance::default() };
        for (required, violations, remarks) in
            [(None, 0, 1), (Some(false), 0, 1), (Some(true), 1, 0)]
        {
            let evaluation =
                evaluate(&key, &Compliance { require_account: required, ..lists.clone() });
            let found =
                (evaluation.violations.len(), evaluation.remarks.len(), evaluation.unknown.len());
            assert_eq!(found, (violations, remarks, 0), "{required:?}");
        }
        let evaluation =
            evaluate(&key, &Compliance { require_account: Some(true), ..Compliance::default() });
        assert_eq!(evaluation.violations[0].found, "ANTHROPIC_API_KEY");
    }
}
