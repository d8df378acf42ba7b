//! Responses whose body is read in pieces, since it is too long for the memory.

use std::time::Duration;

use reqwest::{RequestBuilder, Response, Url, header::HeaderMap};
use tokio::time::timeout;

use super::{HttpClient, NoAnswer, no_answer};

/// A response whose body is read in pieces.
#[derive(Debug)]
pub struct Streamed {
    response: Response,
    base: Url,
    within: Duration,
}

/// Sends a request of `client` to `base` and waits for the head of the response; the whole response must
/// arrive `within` a time.
///
/// # Errors
/// [`NoAnswer`] if no status came.
pub async fn open(
    client: &HttpClient,
    base: &Url,
    request: RequestBuilder,
    within: Duration,
) -> Result<Streamed, NoAnswer> {
    let sent = client.send(request, within).await;
    let response = sent.map_err(|error| no_answer(base, error, within))?;
    Ok(Streamed { response, base: base.clone(), within })
}

impl Streamed {
    /// Returns the HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Returns the headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Returns the next piece of the body, which must start to arrive within `patience`; `None` at its
    /// end.
    ///
    /// # Errors
    /// [`NoAnswer`] if the body ends early, or does not arrive in time.
    pub async fn piece(&mut self, patience: Duration) -> Result<Option<Vec<u8>>, NoAnswer> {
        let Self { response, base, within } = self;
        match timeout(patience, response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece.map(Into::into)),
            Ok(Err(error)) => Err(no_answer(base, error, *within)),
            Err(_) => {
                let to = base.origin().ascii_serialization();
                let time = humantime::format_duration(patience);
                let reason = format!("response from `{to}` stalled for {time}");
                Err(NoAnswer { reason, needs_person: false, waited: Some(patience) })
            }
        }
    }
}
