//! Time in which the certificate of the receiver is valid. Agents refuse it before and after that.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::{
    CertificateError, Error, RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::{CertificateDer, UnixTime},
    server::ParsedCertificate,
};

use crate::clock;

/// Longest time before the end of a certificate in which it is reported.
const NOTICE: Duration = Duration::from_secs(14 * 24 * 3600);
/// Part of the whole time of a certificate in which its end is reported, if that is shorter.
const NOTICE_PART: u32 = 10;

/// First and last time at which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    from: SystemTime,
    until: SystemTime,
}

/// What the time says about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    NotYetValid,
    Valid,
    /// It ends soon.
    Expires,
    Expired,
}

impl Validity {
    /// Returns the validity of a certificate, or `None` if it cannot be parsed.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        let error_at = |seconds| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let roots = RootCertStore::empty();
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, &[]).err()
        };
        // rustls has no other access to these times. It checks them before it looks for an authority.
        let from = match error_at(0)? {
            Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before, ..
            }) => not_before.as_secs(),
            _ => 0,
        };
        let until = match error_at(u64::MAX)? {
            Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
                not_after.as_secs()
            }
            _ => return None,
        };
        let time = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        Some(Self { from: time(from)?, until: time(until)? })
    }

    pub(super) fn state(&self, now: SystemTime) -> State {
        let whole = self.until.duration_since(self.from).unwrap_or_default();
        let notice = NOTICE.min(whole / NOTICE_PART);
        match self.until.duration_since(now) {
            _ if now < self.from => State::NotYetValid,
            Err(_) => State::Expired,
            Ok(left) if left < notice => State::Expires,
            Ok(_) => State::Valid,
        }
    }

    /// Logs a state other than valid.
    pub(super) fn log(&self, state: State) {
        let (from, until) = (clock::text(self.from), clock::text(self.until));
        match state {
            State::Valid => {}
            State::Expires => tracing::warn!(
                code = "tls_certificate_expires",
                until,
                "the certificate expires soon: replace it, or agents cannot connect"
            ),
            State::Expired | State::NotYetValid => tracing::error!(
                code = "tls_certificate_not_valid",
                from,
                until,
                "the certificate has expired or is not valid yet, and agents refuse it: replace it"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn validity(is_authority: bool) -> Validity {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) =
            (date_time_ymd(2026, 1, 1), date_time_ymd(2026, 4, 1));
        if is_authority {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Validity::of(certificate.der()).unwrap()
    }

    #[test]
    fn certificate_is_reported_before_and_after_its_time() {
        let validity = validity(false);
        for (now, expected) in [
            ("2025-12-31T23:59:59Z", State::NotYetValid),
            ("2026-01-01T00:00:00Z", State::Valid),
            ("2026-03-22T00:00:00Z", State::Valid),
            ("2026-03-23T12:00:00Z", State::Expires),
            ("2026-04-01T00:00:00Z", State::Expires),
            ("2026-04-01T00:00:01Z", State::Expired),
        ] {
            assert_eq!(validity.state(clock::parse(now).unwrap()), expected, "{now}");
        }
    }

    #[test]
    fn self_signed_authority_has_the_same_times() {
        assert_eq!(validity(true), validity(false));
    }
}
