//! The content of a managed configuration with another serial.

use siem_protocol::{ManagedConfig, ManagedError, json, managed::WrongValue};

/// Reason why a configuration cannot be given another serial.
#[derive(Debug, thiserror::Error)]
pub enum RevertError {
    /// It is not valid.
    #[error("the managed configuration is invalid")]
    Content(#[from] ManagedError),
    /// Agents would refuse it because of a value.
    #[error("the managed configuration is invalid")]
    Value(#[source] WrongValue),
    /// It is not UTF-8.
    #[error("the managed configuration is not UTF-8")]
    Encoding(#[from] std::str::Utf8Error),
}

/// Returns a configuration with another `serial` and `issued`, all other bytes unchanged.
///
/// # Errors
/// [`RevertError`].
///
/// ```
/// use siem_server::configs::with_serial;
/// let old = br#"{"version":1, "serial": 5,"issued":"2026-01-01T00:00:00Z","filters":{}}"#;
/// let new = with_serial(old, 8, "2026-02-01T00:00:00Z")?;
/// let expected = r#"{"version":1, "serial": 8,"issued":"2026-02-01T00:00:00Z","filters":{}}"#;
/// assert_eq!(String::from_utf8(new).unwrap(), expected);
/// # Ok::<(), siem_server::configs::RevertError>(())
/// ```
pub fn with_serial(body: &[u8], serial: u64, issued: &str) -> Result<Vec<u8>, RevertError> {
    let config = ManagedConfig::parse(body)?;
    if let Some(wrong) = config.wrong_values().into_iter().next() {
        return Err(RevertError::Value(wrong));
    }
    let mut text = std::str::from_utf8(body)?.to_owned();
    for (name, value) in [("issued", format!("\"{issued}\"")), ("serial", serial.to_string())] {
        text = with_member(&text, name, &value);
    }
    ManagedConfig::parse(text.as_bytes())?;
    Ok(text.into_bytes())
}

/// Replaces the value of a member of an object, or adds the member at its start.
fn with_member(text: &str, name: &str, value: &str) -> String {
    let mut found = None;
    json::members(text, |member| {
        if member.is(name) {
            let start = member.value.as_ptr() as usize - text.as_ptr() as usize;
            found = Some(start..start + member.value.len());
        }
    });
    let mut edited = text.to_owned();
    match found {
        Some(range) => edited.replace_range(range, value),
        None => {
            // A valid configuration has a member `version`, so that a comma is needed.
            let at = text.find('{').map_or(0, |at| at + 1);
            edited.insert_str(at, &format!("\"{name}\":{value},"));
        }
    }
    edited
}
