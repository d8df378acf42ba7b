//! A receiver as a process: starts from [`Settings`], reloads at SIGHUP, and drains at SIGTERM.

mod fleet_keys;
mod signals;

use std::{
    collections::BTreeSet,
    future,
    io::{self, Write as _},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use siem_protocol::statement::TrustLevel;
use signals::{Signal, Signals};
use tokio::net::TcpListener;
use tracing::{error, info, warn};

use crate::{
    config::{ConfigProblem, Loaded, Settings},
    configs::FolderOptions,
    error_text::causes,
    http::{Receiver, not_found},
    metrics::{BindError, Metrics, MetricsListener, MetricsServer, serve_metrics},
    notify,
    open_files::{make_room_for_files, open_epochs, raise_open_files},
    proxies::TrustedProxies,
    readiness::{Readiness, probe_router},
    secrets::Keys,
    serve::{ServeOptions, Transport, listen, serve, serve_with},
    store::{DataFormat, FileStore, FileStoreOptions, FormatError, OpenError, StoreLock},
    tls::{ServerTls, TlsFiles, log_reload},
    trust::{Registry, RegistryError, RegistryOptions},
    updates::ReleaseFolder,
};

/// Connections of the listener for probes.
const PROBE_CONNECTIONS: usize = 64;
/// Time that calls of a file system may take at the end.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// Reason why a receiver does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The registry of devices cannot be opened.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There are no random bytes for a key.
    #[error("the system has no random bytes for a key")]
    NoRandomBytes,
    /// An address cannot be used.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
    /// Metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] BindError),
    /// The process cannot be set up.
    #[error("cannot start")]
    Start(#[source] io::Error),
}

/// Reads the configuration again.
type Reread = Box<dyn Fn() -> Result<Loaded, Vec<ConfigProblem>> + Send + Sync>;

/// A receiver that has all that it needs from files, and can start.
pub struct Process {
    settings: Settings,
    keys: Keys,
    tls: Option<Arc<ServerTls>>,
    reload: Option<Arc<Reload>>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Process {
    /// Creates a receiver without TLS, whose configuration is not read again.
    #[must_use]
    pub fn new(settings: Settings, keys: Keys) -> Self {
        Self { settings, keys, tls: None, reload: None }
    }

    /// Reads the secrets and certificates that a configuration names.
    ///
    /// # Errors
    /// All problems with them.
    pub fn prepare(loaded: &Loaded) -> Result<Self, Vec<ConfigProblem>> {
        let mut problems = Vec::new();
        let keys = fleet_keys::read(loaded).map_err(|found| problems.extend(found));
        let tls = tls_files(&loaded.settings).map(|files| {
            ServerTls::open(files.clone()).map_err(|error| {
                let key = format!("tls.{}", error.option(&files));
                let problem = format!("cannot be used: {}", causes(&error));
                problems.push(loaded.problem("file_unusable", &key, &problem));
            })
        });
        let settings = loaded.settings.clone();
        match (keys, tls.transpose()) {
            (Ok(keys), Ok(tls)) => Ok(Self { settings, keys, tls, reload: None }),
            _ => Err(problems),
        }
    }

    /// Reads the configuration again by `reread` at SIGHUP, and from it the secrets and certificates.
    #[must_use]
    pub fn with_reload(
        mut self,
        current: Loaded,
        reread: impl Fn() -> Result<Loaded, Vec<ConfigProblem>> + Send + Sync + 'static,
    ) -> Self {
        let (keys, tls) = (self.keys.clone(), self.tls.clone());
        let reread: Reread = Box::new(reread);
        let values = values_in_use(&current);
        let reload = Reload { reread, values, keys, tls, running: Mutex::new(()) };
        self.reload = Some(Arc::new(reload));
        self
    }

    /// Serves until SIGTERM or SIGINT, then drains.
    ///
    /// # Errors
    /// [`RunError`] if it cannot start.
    pub fn run(self) -> Result<(), RunError> {
        let connections = serve_options(&self.settings).connections;
        // Before there are other threads.
        make_room_for_files(connections, open_epochs(raise_open_files(), connections));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(RunError::Start)?;
        let result = runtime.block_on(self.serve());
        // A call of a file system may never return: a check of the disk, or a reload.
        runtime.shutdown_timeout(LAST_CALLS);
        result
    }

    async fn serve(self) -> Result<(), RunError> {
        let Self { settings, keys, tls, reload } = self;
        let readiness = Readiness::new(&settings.store.directory, settings.store.min_free.0);
        let directory = &settings.store.directory;
        // Before the registry: a second receiver must not change it.
        let lock = StoreLock::take(directory)?;
        let registry = Arc::new(open_registry(&settings)?);
        let retention = settings.retention.policy();
        let connections = serve_options(&settings).connections;
        let open_epochs = open_epochs(raise_open_files(), connections);
        let options = FileStoreOptions { retention, open_epochs, ..FileStoreOptions::default() };
        let store = FileStore::open_locked(lock, options, registry.clone())?;
        let metrics = Arc::new(Metrics::of_store(&store, directory));
        let receiver = Receiver::new(keys, Arc::new(store))
            .with_metrics(metrics.clone())
            .with_quotas(settings.quotas.limits())
            .with_limits(settings.limits.limits())
            .with_registry(registry)
            .with_readiness(readiness.clone())
            .with_fleet(settings.fleet.thresholds())
            .with_config_folder(managed_configurations(&settings))
            .with_releases(release_folder(&settings));
        // A probe during the first check would have no result to show.
        drop(readiness.reasons().await);
        let (listener, bound) = bind(settings.http.listen)?;
        let _metrics = start_metrics(&settings, metrics.clone()).await?;
        if let Some(address) = settings.probe.listen {
            serve_probes(address, readiness.clone()).await?;
        }
        if let Some(tls) = &tls {
            tokio::spawn(tls.clone().follow());
        }
        let signals = Signals::new(reload.is_some()).map_err(RunError::Start)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        writeln!(io::stdout(), "listening on {scheme}://{bound}").map_err(RunError::Start)?;
        notify::ready();
        let shutdown = run_until_drained(signals, reload, readiness, &settings);
        let options = serve_options(&settings);
        let transport = transport(&settings, tls, metrics);
        serve_with(listener, receiver.router().fallback(not_found), options, transport, shutdown)
            .await;
        info!("stopped");
        Ok(())
    }
}

/// Handles signals until the receiver may stop to accept connections.
async fn run_until_drained(
    mut signals: Signals,
    reload: Option<Arc<Reload>>,
    readiness: Arc<Readiness>,
    settings: &Settings,
) {
    while signals.next().await == Signal::Reload {
        if let Some(reload) = reload.clone() {
            // Not waited for: a file system that does not answer must not delay the end.
            tokio::task::spawn_blocking(move || reload.run());
        }
    }
    readiness.drain();
    notify::stopping();
    let delay = settings.shutdown.delay.0;
    info!(code = "draining", ?delay, "stops: not ready, and no new connections after the delay");
    let stop = async { while signals.next().await == Signal::Reload {} };
    // A second signal ends the delay.
    drop(tokio::time::timeout(delay, stop).await);
}

fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), RunError> {
    let failed = |source| RunError::Listen { address, source };
    let listener = listen(address).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Serves probes until the process ends, also while the receiver drains.
async fn serve_probes(address: SocketAddr, readiness: Arc<Readiness>) -> Result<(), RunError> {
    let (listener, bound) = bind(address)?;
    info!(address = %bound, "serves probes");
    let options = ServeOptions { connections: PROBE_CONNECTIONS, ..ServeOptions::default() };
    let router = probe_router(readiness).fallback(not_found);
    tokio::spawn(serve(listener, router, options, future::pending()));
    Ok(())
}

/// Serves metrics until the result is dropped, if the configuration has an address for them.
async fn start_metrics(
    settings: &Settings,
    metrics: Arc<Metrics>,
) -> Result<Option<MetricsServer>, RunError> {
    let Some(address) = &settings.metrics.listen else { return Ok(None) };
    let listener = MetricsListener::bind(address).await?;
    let address = listener.address().map_err(RunError::Start)?;
    info!(code = "metrics_served", %address, "serves metrics at `/metrics`");
    Ok(Some(serve_metrics(listener, metrics)))
}

fn serve_options(settings: &Settings) -> ServeOptions {
    let http = &settings.http;
    ServeOptions {
        connections: http.connections.min(raise_open_files()),
        header_timeout: http.header_timeout.0,
        write_timeout: http.write_timeout.0,
        header_bytes: http.header_size.as_usize(),
        grace: settings.shutdown.grace.0,
    }
}

fn transport(settings: &Settings, tls: Option<Arc<ServerTls>>, metrics: Arc<Metrics>) -> Transport {
    let http = &settings.http;
    let proxies = http.behind_tls_proxy.then(|| {
        Arc::new(TrustedProxies::new(http.trusted_proxies.clone(), http.forwarded_header))
    });
    Transport { tls, proxies, metrics: Some(metrics) }
}

/// Returns the places of the configurations that agents receive.
#[must_use]
pub fn managed_configurations(settings: &Settings) -> FolderOptions {
    let mut options = FolderOptions::of_data(&settings.store.directory);
    options.folder = settings.managed.folder.clone().or(options.folder);
    options.fallback = settings.managed.config_file.clone().or(options.fallback);
    options
}

/// Returns the place of the releases that agents receive.
#[must_use]
pub fn release_folder(settings: &Settings) -> ReleaseFolder {
    let dist = settings.update.dist.clone().map(ReleaseFolder::new);
    dist.unwrap_or_else(|| ReleaseFolder::of_data(&settings.store.directory))
}

fn tls_files(settings: &Settings) -> Option<TlsFiles> {
    let tls = &settings.tls;
    let (certificate, key) = (tls.certificate.clone()?, tls.key.clone()?);
    Some(TlsFiles { certificate, key, client_ca: tls.client_ca.clone() })
}

/// Opens the registry, and makes a receiver key if the configuration has a level of trust.
fn open_registry(settings: &Settings) -> Result<Registry, RunError> {
    let (data, chosen) = (&settings.store.directory, settings.trust.level);
    let format = DataFormat::ensure(data)?;
    if let Some(level) = chosen {
        format.remember_level(data, level)?;
    }
    let registry = Registry::open(&data.join("trust"), RegistryOptions::new(TrustLevel::Shared))?;
    let level = match chosen.or(format.level()) {
        Some(level) => level,
        // The machines of release 0.1 have no keys.
        None if format.is_migrated() => TrustLevel::Shared,
        None if registry.receiver_key().is_some() => TrustLevel::FirstUse,
        None => TrustLevel::Shared,
    };
    let registry = registry.with_level(level);
    if chosen.is_some() && registry.receiver_key().is_none() {
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| RunError::NoRandomBytes)?;
        registry.create_receiver_key(&settings.trust.receiver_name, seed)?;
    }
    let receiver = registry.receiver_name();
    info!(level = level.as_str(), receiver, "opened the registry of devices");
    Ok(registry)
}

/// State that a reload replaces.
struct Reload {
    reread: Reread,
    /// Keys and values that are in use until the next start.
    values: BTreeSet<(String, String)>,
    keys: Keys,
    tls: Option<Arc<ServerTls>>,
    running: Mutex<()>,
}

impl Reload {
    fn run(&self) {
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        notify::reloading();
        if let Some(tls) = &self.tls {
            log_reload(tls.reload());
        }
        self.reread();
        notify::ready();
    }

    fn reread(&self) {
        let failed = |problems: &[ConfigProblem]| {
            for problem in problems {
                error!(
                    code = "config_reload_failed",
                    %problem,
                    "cannot use the new configuration: the one before stays in use"
                );
            }
        };
        let loaded = match (self.reread)() {
            Ok(loaded) => loaded,
            Err(problems) => return failed(&problems),
        };
        match fleet_keys::read(&loaded) {
            Ok(keys) => self.keys.replace(&keys),
            Err(problems) => return failed(&problems),
        }
        info!(code = "config_reloaded", "read the configuration and the secrets again");
        let values = values_in_use(&loaded);
        let changed = self.values.symmetric_difference(&values).map(|(key, _)| key.as_str());
        let changed: BTreeSet<&str> = changed.collect();
        if !changed.is_empty() {
            let keys = changed.into_iter().collect::<Vec<_>>().join(", ");
            warn!(code = "restart_needed", keys, "changes of these keys count after a restart");
        }
    }
}

/// Returns the keys that are read only at the start, with their values.
fn values_in_use(loaded: &Loaded) -> BTreeSet<(String, String)> {
    let values = loaded.values().into_iter().map(|(key, value, _)| (key, value));
    values.filter(|(key, _)| !key.starts_with("secrets.")).collect()
}
