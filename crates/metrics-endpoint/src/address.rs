//! Address at which metrics are served.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

/// Prefix of the path of a Unix socket.
const UNIX: &str = "unix:";
/// Maximum length of a socket's path in bytes: macOS permits 104 with the final zero. The temporary name has
/// four more.
const LONGEST: usize = 99;

/// Address at which metrics are served: on this machine only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A loopback address and port. All users of the machine can connect.
    Loopback(SocketAddr),
    /// Absolute path of a Unix socket, to which only its owner and root can connect.
    Unix(PathBuf),
}

/// Reason why a text is not an address for metrics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The text is neither an address nor a path.
    #[error("must be a loopback address such as `127.0.0.1:9464`, or `unix:` and an absolute path")]
    Malformed,
    /// Other machines could connect.
    #[error(
        "must be a loopback address such as `127.0.0.1:9464`: metrics are not served to other machines"
    )]
    NotLoopback,
    /// The path is too long for a socket.
    #[error("must have a path of at most {LONGEST} bytes")]
    TooLong,
    /// The system has no Unix sockets.
    #[error("must be a loopback address such as `127.0.0.1:9464`: this system has no Unix sockets")]
    NoUnixSockets,
}

impl FromStr for MetricsAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some(path) = text.strip_prefix(UNIX) else {
            let address: SocketAddr = text.parse().map_err(|_| AddressError::Malformed)?;
            let is_loopback = address.ip().to_canonical().is_loopback();
            return if is_loopback {
                Ok(Self::Loopback(address))
            } else {
                Err(AddressError::NotLoopback)
            };
        };
        if cfg!(not(unix)) {
            return Err(AddressError::NoUnixSockets);
        }
        let path = PathBuf::from(path);
        if !path.is_absolute() || path.file_name().is_none() {
            return Err(AddressError::Malformed);
        }
        if path.as_os_str().len() > LONGEST {
            return Err(AddressError::TooLong);
        }
        Ok(Self::Unix(path))
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<String, AddressError> {
        text.parse::<MetricsAddress>().map(|address| address.to_string())
    }

    #[test]
    fn loopback_addresses_are_accepted() {
        for text in ["127.0.0.1:9464", "127.3.2.1:0", "[::1]:9464", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(parsed(text), Ok(text.to_owned()));
        }
    }

    #[test]
    fn addresses_that_other_machines_reach_are_refused() {
        for text in ["0.0.0.0:9464", "[::]:9464", "10.0.0.1:80", "[2001:db8::1]:80"] {
            assert_eq!(parsed(text), Err(AddressError::NotLoopback), "{text}");
        }
        // A name may have other addresses tomorrow.
        for text in ["localhost:9464", ":9464", "9464", "127.0.0.1", "", "http://127.0.0.1:1"] {
            assert_eq!(parsed(text), Err(AddressError::Malformed), "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn paths_of_sockets_are_absolute_and_short() {
        assert_eq!(parsed("unix:/run/agent.metrics"), Ok("unix:/run/agent.metrics".to_owned()));
        for text in ["unix:agent.metrics", "unix:", "unix:/", "/run/agent.metrics"] {
            assert_eq!(parsed(text), Err(AddressError::Malformed), "{text}");
        }
        let long = format!("unix:/{}", "x".repeat(99));
        assert_eq!(parsed(&long), Err(AddressError::TooLong));
        assert!(parsed(&long[..long.len() - 1]).is_ok());
    }

    #[cfg(not(unix))]
    #[test]
    fn unix_sockets_are_refused() {
        assert_eq!(parsed(r"unix:C:\agent"), Err(AddressError::NoUnixSockets));
    }
}
