//! Why a request got no answer, in words that say how to mend it.

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError, Error as Tls};

use crate::text::causes;

/// Why a request got no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What happened, and what to do about it where a person must. No secret.
    pub(super) reason: String,
    /// Whether a person should know: waiting alone will not mend it.
    pub(super) alarm: bool,
    /// Whether no answer came in time, on a connection that stood.
    pub(super) timed_out: bool,
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        let timed_out = error.is_timeout() && !error.is_connect();
        let error = error.without_url();
        let reason = causes(&error);
        // That a request was sent is no news; what became of it is.
        let reason = reason.strip_prefix("error sending request: ").unwrap_or(&reason).to_owned();
        match remedy(&error) {
            Some(remedy) => {
                Self { reason: format!("{reason}: {remedy}"), alarm: true, timed_out: false }
            }
            None => Self { reason, alarm: false, timed_out },
        }
    }
}

/// What a person can do about it; `None` when waiting may be enough.
fn remedy(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(remedy) = tls(error).and_then(of_tls) {
            return Some(remedy);
        }
        // The library's own type for it is not public.
        if error.to_string().ends_with("proxy authorization required") {
            return Some(
                "the proxy wants credentials, or others: give `proxy_user` and \
                 `proxy_password_file`, or put them into the proxy's URL in the environment",
            );
        }
        next = error.source();
    }
    None
}

/// The TLS error that `error` is, or holds: an I/O error shows the cause of what it holds, not
/// what it holds.
fn tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Tls> {
    if let Some(tls) = error.downcast_ref() {
        return Some(tls);
    }
    let held: &(dyn Error + 'static) = error.downcast_ref::<io::Error>()?.get_ref()?;
    tls(held)
}

fn of_tls(error: &Tls) -> Option<&'static str> {
    use CertificateError as Certificate;

    match error {
        Tls::InvalidCertificate(Certificate::UnknownIssuer) => Some(
            "nobody that this system trusts vouches for the receiver's certificate: if it is of \
             the company's own authority, name that one's certificate with `ca_file`",
        ),
        Tls::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            Some("the receiver's certificate has expired: renew it, or put this clock right")
        }
        Tls::InvalidCertificate(
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. },
        ) => Some("the receiver's certificate is not valid yet: is this clock right?"),
        Tls::InvalidCertificate(
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
        ) => Some("the receiver's certificate is for another name: is `endpoint` right?"),
        Tls::InvalidCertificate(Certificate::Revoked) => {
            Some("the receiver's certificate was revoked: it needs a new one")
        }
        // Nobody may do so, whoever vouches for it. The library's own type for it is not public.
        Tls::InvalidCertificate(Certificate::Other(other))
            if format!("{other:?}").contains("CaUsedAsEndEntity") =>
        {
            Some(
                "the receiver shows the certificate of an authority, as `openssl req -x509` makes \
                 it, in place of one of its own: give it one that the authority has issued (CA:FALSE), \
                 and name the authority's with `ca_file`",
            )
        }
        Tls::InvalidCertificate(_) => Some(
            "the receiver's certificate cannot be trusted: it needs another one, from an authority \
             that this system or `ca_file` knows",
        ),
        Tls::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
        ) => Some(
            "the receiver wants a client certificate: give `client_certificate_file` and \
             `client_key_file`",
        ),
        Tls::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError,
        ) => Some(
            "the receiver does not take this agent's client certificate: see \
             `client_certificate_file`",
        ),
        Tls::InvalidMessage(_) => Some("that is no TLS: should `endpoint` begin with http://?"),
        _ => None,
    }
}
