//! Reasons of failed requests, with a remedy.

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError, Error as Tls};

use super::causes;

/// Reason why a request got no response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Reason and, if a person must act, the remedy. Contains no secret.
    pub(super) reason: String,
    /// True if a person must act: waiting alone will not help.
    pub(super) needs_person: bool,
    /// True if no response came in time on an established connection.
    pub(super) timed_out: bool,
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        let timed_out = error.is_timeout() && !error.is_connect();
        let is_plain = error.url().is_some_and(|url| url.scheme() == "http");
        let error = error.without_url();
        let reason = causes(&error);
        // The prefix adds no information.
        let reason = reason.strip_prefix("error sending request: ").unwrap_or(&reason).to_owned();
        match remedy(&error).or_else(|| is_plain.then(|| of_plain(&error)).flatten()) {
            Some(remedy) => {
                Self { reason: format!("{reason}: {remedy}"), needs_person: true, timed_out: false }
            }
            None => Self { reason, needs_person: false, timed_out },
        }
    }
}

/// Returns the remedy; `None` if waiting may be enough.
pub(crate) fn remedy(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(remedy) = tls(error).and_then(of_tls) {
            return Some(remedy);
        }
        // The library's type for this error is not public.
        if error.to_string().ends_with("proxy authorization required") {
            return Some(
                "the proxy requires (other) credentials: set `proxy_user` and \
                 `proxy_password_file`, or put them into the proxy's URL in the environment",
            );
        }
        next = error.source();
    }
    None
}

/// Returns the remedy for a plain request that a server for TLS has answered with an alert.
fn of_plain(error: &reqwest::Error) -> Option<&'static str> {
    let found = causes(error);
    // The library has no public type for this reason.
    let is_no_http = found.ends_with("invalid HTTP version parsed");
    is_no_http.then_some("the response is not HTTP: does `endpoint` need https://?")
}

/// Returns the TLS error in `error`. `source` of an I/O error skips the error that it contains.
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
            "the receiver's certificate is signed by an unknown authority: if it is the company's \
             own, set `ca_file` to the certificate of that authority",
        ),
        Tls::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => Some(
            "the receiver's certificate has expired: renew it, or check the clock of this machine",
        ),
        Tls::InvalidCertificate(
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. },
        ) => Some("the receiver's certificate is not valid yet: check the clock of this machine"),
        Tls::InvalidCertificate(
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
        ) => Some("the receiver's certificate is for another name: check `endpoint`"),
        Tls::InvalidCertificate(Certificate::Revoked) => {
            Some("the receiver's certificate was revoked: replace it")
        }
        // No trust setting allows this. The library's type for this error is not public.
        Tls::InvalidCertificate(Certificate::Other(other))
            if format!("{other:?}").contains("CaUsedAsEndEntity") =>
        {
            Some(
                "the receiver uses a CA certificate, as `openssl req -x509` creates it, as its own: give \
                 it a certificate issued by that authority (CA:FALSE), and set `ca_file` to the \
                 authority's certificate",
            )
        }
        Tls::InvalidCertificate(_) => Some(
            "the receiver's certificate is not trusted: use one from an authority that this system or \
             `ca_file` trusts",
        ),
        Tls::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
        ) => Some(
            "the receiver requires a client certificate: set `client_certificate_file` and \
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
            "the receiver refused this agent's client certificate: check \
             `client_certificate_file`",
        ),
        Tls::InvalidMessage(_) => Some("the response is not TLS: does `endpoint` need http://?"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        thread,
    };

    use super::*;

    /// The most likely mistake after the receiver was changed to TLS.
    #[tokio::test]
    async fn plain_request_to_a_port_for_tls_needs_a_person() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert_ne!(stream.read(&mut [0; 1024]).unwrap(), 0);
            // A fatal alert: decode_error.
            stream.write_all(&[21, 3, 3, 0, 2, 2, 50]).unwrap();
        });
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let failure = Failure::from(client.get(url).send().await.unwrap_err());
        assert!(failure.needs_person, "{failure:?}");
        assert!(failure.reason.contains("`endpoint`"), "{failure:?}");
        server.join().unwrap();
    }
}
