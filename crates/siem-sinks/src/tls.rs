//! TLS for protocols other than HTTP.

use std::{error::Error, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use rustls_platform_verifier::Verifier;

/// Certificates of a client. Files are read by the caller.
#[derive(Clone, Default)]
pub struct TlsSettings {
    /// Certificates of authorities to trust, in PEM.
    pub authorities: Vec<u8>,
    /// True if the authorities of the operating system are trusted too.
    pub trusts_system: bool,
    /// Client certificate.
    pub identity: Option<ClientIdentity>,
}

/// A client certificate in PEM. It has no `Debug`, because the key is a secret.
#[derive(Clone)]
pub struct ClientIdentity {
    /// The certificate, with its intermediate certificates.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

impl TlsSettings {
    /// Creates the configuration of a client.
    ///
    /// # Errors
    /// An error if a certificate or the key is not valid PEM, or if nothing is trusted.
    pub fn client_config(&self) -> Result<ClientConfig, Box<dyn Error + Send + Sync>> {
        let provider: Arc<CryptoProvider> = aws_lc_rs::default_provider().into();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let authorities =
            CertificateDer::pem_slice_iter(&self.authorities).collect::<Result<Vec<_>, _>>()?;
        let builder = if self.trusts_system {
            let verifier = Verifier::new_with_extra_roots(authorities, provider)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        } else {
            let mut roots = RootCertStore::empty();
            for authority in authorities {
                roots.add(authority)?;
            }
            builder.with_root_certificates(roots)
        };
        let Some(ClientIdentity { certificate, key }) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
        Ok(builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?)
    }
}
