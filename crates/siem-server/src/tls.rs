//! TLS of the listener for agents. Certificates are replaced while the receiver runs.

mod validity;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    CertificateError, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier},
};
use siem_protocol::Digest;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use self::validity::{State, Validity};
use crate::{
    clock::{Clock as _, SystemClock},
    error_text::causes,
    regular_file::read_regular_file,
    secret_file::is_open_to_others,
};

/// Largest file with certificates or a key, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Time between two checks of the files for changes.
const POLL: Duration = Duration::from_secs(5);

/// Files with certificates and their key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate, with its intermediate certificates.
    pub certificate: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
    /// Authorities, one of which must have issued the certificate of a client.
    pub client_ca: Option<PathBuf>,
}

/// Reason why a set of certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read `{}`", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
    /// The key file can be read by all users.
    #[error("`{}` with the private key is readable by everyone; chmod it to 600", .0.display())]
    Open(PathBuf),
    /// A file is not PEM, or has nothing of the expected kind.
    #[error("`{}` has no {expected} in PEM", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Expected kind of object.
        expected: &'static str,
        /// Reason.
        #[source]
        source: pem::Error,
    },
    /// A certificate in a file is not one: its content is damaged.
    #[error("`{}` has a damaged certificate", .0.display())]
    Damaged(PathBuf),
    /// The certificate cannot be used, or the key belongs to another certificate.
    #[error("cannot use the certificate `{}` with the key `{}`", .certificate.display(), .key.display())]
    Pair {
        /// Certificate.
        certificate: PathBuf,
        /// Key.
        key: PathBuf,
        /// Reason.
        #[source]
        source: rustls::Error,
    },
    /// An authority cannot be used.
    #[error("cannot use the authorities in `{}`", .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl TlsError {
    /// Returns the name of the option that names the file.
    #[must_use]
    pub fn option(&self, files: &TlsFiles) -> &'static str {
        let of = |path: &Path| match path {
            path if path == files.certificate => "certificate",
            path if path == files.key => "key",
            _ => "client_ca",
        };
        match self {
            Self::Read { path, .. } | Self::Pem { path, .. } => of(path),
            Self::Open(_) => "key",
            Self::Damaged(_) | Self::Pair { .. } => "certificate",
            Self::Authority { .. } => "client_ca",
        }
    }
}

/// TLS with certificates that can be replaced.
#[derive(Debug)]
pub struct ServerTls {
    files: TlsFiles,
    current: RwLock<Current>,
    seen: Mutex<Seen>,
}

/// What new connections use.
#[derive(Clone, Debug)]
struct Current {
    config: Arc<ServerConfig>,
    validity: Option<Validity>,
}

/// What the files contained, or why they could not be read.
#[derive(Debug)]
struct Seen {
    /// Digest of what was tried last.
    tried: Digest,
    /// Digest at the last check, if it differs from that: they may still be changing.
    changing: Option<Digest>,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] if they cannot be used.
    pub fn open(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let contents = Contents::read(&files)?;
        let current = RwLock::new(contents.config(&files)?);
        let seen = Mutex::new(Seen { tried: contents.digest(), changing: None });
        Ok(Arc::new(Self { files, current, seen }))
    }

    /// Reads the files again. New connections use what they contain.
    ///
    /// # Errors
    /// [`TlsError`] if they cannot be used: new connections use the certificates before.
    pub fn reload(&self) -> Result<(), TlsError> {
        let read = Contents::read(&self.files);
        let mut seen = self.seen();
        (seen.tried, seen.changing) = (digest(&read), None);
        self.replace(&read?)
    }

    /// Reads the files again if they have changed since the last attempt, and not since the last call: they
    /// are not replaced in one step. Returns `None` if there is nothing to do.
    fn reload_changed(&self) -> Option<Result<(), TlsError>> {
        let read = Contents::read(&self.files);
        let digest = digest(&read);
        let mut seen = self.seen();
        if digest == seen.tried {
            seen.changing = None;
            return None;
        }
        if read.is_ok() && seen.changing != Some(digest) {
            seen.changing = Some(digest);
            return None;
        }
        (seen.tried, seen.changing) = (digest, None);
        Some(read.and_then(|contents| self.replace(&contents)))
    }

    fn replace(&self, contents: &Contents) -> Result<(), TlsError> {
        let current = contents.config(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns an acceptor with the current certificates.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.current().config.into()
    }

    /// Logs that the current certificate expires or is not valid, unless `reported` says the same.
    fn report_validity(&self, reported: &mut Option<(Validity, State)>) {
        let state = |validity: Validity| (validity, validity.state(SystemClock.now()));
        let now = self.current().validity.map(state);
        if *reported != now
            && let Some((validity, state)) = now
        {
            validity.log(state);
        }
        *reported = now;
    }

    /// Reads the files again whenever they change, until it is dropped.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut reported = None;
        loop {
            self.report_validity(&mut reported);
            tokio::time::sleep(POLL).await;
            let this = self.clone();
            let reload = tokio::task::spawn_blocking(move || this.reload_changed());
            if let Ok(Some(result)) = reload.await {
                log_reload(result);
            }
        }
    }
}

/// Logs the result of a reload.
pub(crate) fn log_reload(result: Result<(), TlsError>) {
    match result {
        Ok(()) => tracing::info!(code = "tls_reloaded", "certificates were replaced"),
        Err(error) => {
            let error = causes(&error);
            tracing::error!(
                code = "tls_reload_failed",
                error,
                "cannot use the new certificates: the ones before stay in use"
            );
        }
    }
}

/// Returns a digest of the files, or of the reason why they cannot be read.
fn digest(read: &Result<Contents, TlsError>) -> Digest {
    match read {
        Ok(contents) => contents.digest(),
        Err(error) => Digest::of(causes(error).as_bytes()),
    }
}

/// Contents of all files.
struct Contents {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    client_ca: Option<(PathBuf, Vec<u8>)>,
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| TlsError::Read { path, source }
        };
        let read = |path: &Path| read_regular_file(path, MAX_FILE_BYTES).map_err(failed(path));
        if is_open_to_others(&fs::metadata(&files.key).map_err(failed(&files.key))?) {
            return Err(TlsError::Open(files.key.clone()));
        }
        let client_ca = files.client_ca.as_ref();
        let client_ca = client_ca.map(|path| Ok((path.clone(), read(path)?))).transpose()?;
        let (certificate, key) = (read(&files.certificate)?, read(&files.key)?.into());
        Ok(Self { certificate, key, client_ca })
    }

    fn digest(&self) -> Digest {
        let client_ca = self.client_ca.as_ref().map(|(_, bytes)| Digest::of(bytes));
        let digests = [Some(Digest::of(&self.certificate)), Some(Digest::of(&self.key)), client_ca];
        Digest::of(format!("{digests:?}").as_bytes())
    }

    fn config(&self, files: &TlsFiles) -> Result<Current, TlsError> {
        let TlsFiles { certificate, key, .. } = files;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let pair =
            |source| TlsError::Pair { certificate: certificate.clone(), key: key.clone(), source };
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(pair)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some((path, bytes)) => {
                let roots = Arc::new(authorities(path, bytes)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let failed = |source: VerifierBuilderError| TlsError::Authority {
                    path: path.clone(),
                    source: source.into(),
                };
                builder.with_client_cert_verifier(verifier.build().map_err(failed)?)
            }
        };
        let chain = certificates(certificate, &self.certificate)?;
        if chain.iter().any(is_damaged) {
            return Err(TlsError::Damaged(certificate.clone()));
        }
        let private = PrivateKeyDer::from_pem_slice(&self.key).map_err(|source| TlsError::Pem {
            path: key.clone(),
            expected: "private key",
            source,
        })?;
        let validity = chain.first().and_then(Validity::of);
        let mut config = builder.with_single_cert(chain, private).map_err(pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Current { config: Arc::new(config), validity })
    }
}

fn authorities(path: &Path, bytes: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path, bytes)? {
        roots.add(authority).map_err(|source| TlsError::Authority {
            path: path.to_owned(),
            source: source.into(),
        })?;
    }
    Ok(roots)
}

/// Returns the certificates in a file, at least one.
fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Pem { path: path.to_owned(), expected: "certificate", source };
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(bytes).collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() { Err(failed(pem::Error::NoItemsFound)) } else { Ok(found) }
}

/// Reports whether a certificate cannot be parsed. rustls parses the first one of a chain only, and clients refuse
/// a chain with a damaged one. What else they may refuse, such as an old version, depends on them.
fn is_damaged(certificate: &CertificateDer<'_>) -> bool {
    let parsed = ParsedCertificate::try_from(certificate);
    let bad_encoding = rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
    parsed.is_err_and(|error| error == bad_encoding)
}

#[cfg(test)]
mod tests;
