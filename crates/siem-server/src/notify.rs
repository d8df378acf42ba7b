//! Notifications to systemd: ready, reloading, stopping.
//!
//! Each is a datagram to the socket in `NOTIFY_SOCKET`, see
//! <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>.

/// Reports that the receiver is ready.
pub(crate) fn ready() {
    send("READY=1");
}

/// Reports that the receiver reads its configuration again; [`ready`] follows.
pub(crate) fn reloading() {
    send("RELOADING=1");
}

/// Reports that the receiver stops.
pub(crate) fn stopping() {
    send("STOPPING=1");
}

#[cfg(target_os = "linux")]
fn send(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|it| !it.is_empty()) else {
        return;
    };
    if let Err(error) = send_to(&socket, state) {
        tracing::warn!(code = "notify_failed", %error, state, "cannot notify the service manager");
    }
}

#[cfg(not(target_os = "linux"))]
fn send(_: &str) {}

#[cfg(target_os = "linux")]
fn send_to(socket: &std::ffi::OsStr, state: &str) -> std::io::Result<()> {
    use std::os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    };

    let address = match socket.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}
