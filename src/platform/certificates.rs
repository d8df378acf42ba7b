//! Certificates of the authorities that the operating system trusts.

use std::{fs, io};

/// Files with all certificates, of common distributions of Linux and BSD.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Returns the certificates in PEM, regardless of `SSL_CERT_FILE` and `SSL_CERT_DIR`; `None` where these
/// variables have no effect, since the system itself verifies certificates.
///
/// # Errors
/// The error of the system about the first file that exists, or that none exists.
pub fn system_certificates() -> io::Result<Option<Vec<u8>>> {
    if cfg!(any(target_os = "macos", windows)) {
        return Ok(None);
    }
    for bundle in BUNDLES {
        match fs::read(bundle) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read => return read.map(Some),
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the system has no file with certificates"))
}
