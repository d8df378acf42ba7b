//! A receiver for tests and small fleets: `demo-server --token … --hmac-secret …`.

mod args;

use std::{error::Error, io::Write as _, process::ExitCode, sync::Arc};

use args::{Args, SecretError};
use clap::Parser as _;
use siem_protocol::statement::TrustLevel;
use siem_server::{
    DataFormat, FileStore, FileStoreOptions, FormatError, Keys, OpenError, Receiver, ServeOptions,
    configs::FolderOptions,
    not_found, raise_open_files, serve,
    trust::{Registry, RegistryError, RegistryOptions},
};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

/// Reason why the server does not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("the system has no random bytes for a key")]
    NoRandomBytes,
    #[error("cannot listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start")]
    Start(#[source] std::io::Error),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // An error about an unwritable log, printed to the same stream, would panic.
        .log_internal_errors(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let keys = match args.keys() {
        Ok(keys) => keys,
        Err(error) => return fail(&error, 2),
    };
    match run(&args, keys) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &dyn Error, code: u8) -> ExitCode {
    let mut text = format!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!("\n  caused by: {error}"));
        cause = error.source();
    }
    eprintln!("{text}");
    ExitCode::from(code)
}

#[tokio::main]
async fn run(args: &Args, keys: Keys) -> Result<(), StartError> {
    let registry = Arc::new(open_registry(args)?);
    let options = FileStoreOptions::default();
    let store = FileStore::open_with_registry(&args.data, options, registry.clone())?;
    let receiver = Receiver::new(keys, Arc::new(store))
        .with_registry(registry)
        .with_config_folder(FolderOptions {
            folder: Some(args.config_folder()),
            ..FolderOptions::of_data(&args.data)
        })
        .with_config_file(args.config_file());
    let address = args.listen;
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let shutdown = shutdown_signal().map_err(StartError::Start)?;
    writeln!(std::io::stdout(), "listening on http://{bound}").map_err(StartError::Start)?;
    let router = receiver.router().fallback(not_found);
    let mut options = ServeOptions::default();
    options.connections = options.connections.min(raise_open_files());
    serve(listener, router, options, shutdown).await;
    tracing::info!("stopped");
    Ok(())
}

/// Opens the registry, and makes a receiver key where the arguments ask for it.
fn open_registry(args: &Args) -> Result<Registry, StartError> {
    let format = DataFormat::ensure(&args.data)?;
    let open = |level| Registry::open(&args.data.join("trust"), RegistryOptions::new(level));
    if let Some(level) = args.trust {
        format.remember_level(&args.data, level)?;
    }
    let level = match args.trust.or(format.level()) {
        Some(level) => level,
        // The machines of release 0.1 have no keys.
        None if format.is_migrated() => TrustLevel::Shared,
        None if open(TrustLevel::Shared)?.receiver_key().is_some() => TrustLevel::FirstUse,
        None => TrustLevel::Shared,
    };
    let registry = open(level)?;
    if args.trust.is_some() && registry.receiver_key().is_none() {
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| StartError::NoRandomBytes)?;
        registry.create_receiver_key(&args.receiver_name, seed)?;
    }
    let receiver = registry.receiver_name();
    tracing::info!(level = level.as_str(), receiver, "opened the registry of devices");
    Ok(registry)
}

/// Returns a future that completes when the process receives SIGINT or SIGTERM.
#[cfg(unix)]
fn shutdown_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Returns a future that completes when the process receives Ctrl-C.
#[cfg(not(unix))]
fn shutdown_signal() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
