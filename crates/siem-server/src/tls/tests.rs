use rcgen::{CertificateParams, KeyPair};

use super::*;

/// Files in a directory, as an operator has them.
struct Installed(tempfile::TempDir);

impl Installed {
    fn files(&self) -> TlsFiles {
        let path = |name: &str| self.0.path().join(name);
        TlsFiles { certificate: path("tls.crt"), key: path("tls.key"), client_ca: None }
    }

    fn write(&self, certificate: &str, key: &str) {
        let files = self.files();
        fs::write(&files.certificate, certificate).unwrap();
        fs::write(&files.key, key).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

fn pair() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn current(tls: &ServerTls) -> *const ServerConfig {
    Arc::as_ptr(&tls.current().config)
}

#[test]
fn changed_files_are_used_when_they_no_longer_change() {
    let installed = Installed(tempfile::tempdir().unwrap());
    let (certificate, key) = pair();
    installed.write(&certificate, &key);
    let tls = ServerTls::open(installed.files()).unwrap();
    let first = current(&tls);
    assert!(tls.reload_changed().is_none());
    let (certificate, key) = pair();
    fs::write(installed.files().certificate, &certificate).unwrap();
    assert!(tls.reload_changed().is_none(), "the key may follow");
    installed.write(&certificate, &key);
    assert!(tls.reload_changed().is_none());
    assert_eq!(current(&tls), first);
    assert!(tls.reload_changed().unwrap().is_ok());
    assert_ne!(current(&tls), first);
    assert!(tls.reload_changed().is_none());
}

#[test]
fn unusable_files_are_reported_once_and_change_nothing() {
    let installed = Installed(tempfile::tempdir().unwrap());
    let (certificate, key) = pair();
    installed.write(&certificate, &key);
    let tls = ServerTls::open(installed.files()).unwrap();
    let first = current(&tls);
    installed.write(&pair().0, &key);
    assert!(matches!(tls.reload(), Err(TlsError::Pair { .. })));
    let intermediate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    installed.write(&(certificate + intermediate), &key);
    assert!(matches!(tls.reload(), Err(TlsError::Damaged(_))));
    assert!(tls.reload_changed().is_none(), "the reload has reported it");
    installed.write("no certificate", &key);
    tls.reload_changed();
    assert!(matches!(tls.reload_changed(), Some(Err(TlsError::Pem { .. }))));
    assert!(tls.reload_changed().is_none());
    fs::remove_file(installed.files().certificate).unwrap();
    assert!(matches!(tls.reload_changed(), Some(Err(TlsError::Read { .. }))));
    assert!(tls.reload_changed().is_none());
    assert_eq!(current(&tls), first);
}

/// After a file was missing, no other reason was reported why the files cannot be read.
#[cfg(unix)]
#[test]
fn each_reason_why_files_cannot_be_read_is_reported_once() {
    use std::os::unix::fs::PermissionsExt as _;
    let installed = Installed(tempfile::tempdir().unwrap());
    let (certificate, key) = pair();
    installed.write(&certificate, &key);
    let files = installed.files();
    let tls = ServerTls::open(files.clone()).unwrap();
    fs::remove_file(&files.certificate).unwrap();
    assert!(matches!(tls.reload_changed(), Some(Err(TlsError::Read { .. }))));
    assert!(tls.reload_changed().is_none());
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(tls.reload_changed(), Some(Err(TlsError::Open(_)))));
    assert!(tls.reload_changed().is_none());
    fs::remove_file(&files.key).unwrap();
    assert!(matches!(tls.reload(), Err(TlsError::Read { .. })));
    assert!(tls.reload_changed().is_none(), "the reload has reported it");
}

#[cfg(unix)]
#[test]
fn key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let installed = Installed(tempfile::tempdir().unwrap());
    let (certificate, key) = pair();
    installed.write(&certificate, &key);
    let files = installed.files();
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = ServerTls::open(files.clone()).unwrap_err();
    assert!(matches!(error, TlsError::Open(_)));
    assert_eq!(error.option(&files), "key");
}
