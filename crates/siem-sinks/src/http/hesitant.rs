//! Requests whose body follows their head after a pause.
//!
//! The library writes a body without reading in between, and drops a response that has arrived if the
//! connection is closed meanwhile. During the pause it only reads.

use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http_body::{Body as HttpBody, Frame, SizeHint};
use reqwest::{Body, Request};
use tokio::time::{Sleep, sleep};

/// A body that is sent after a pause.
struct HesitantBody {
    pause: Pin<Box<Sleep>>,
    body: Body,
}

/// Makes a request pause after its head, so that a response to the head is read.
pub(super) fn pause_before_body(request: &mut Request, pause: Duration) {
    if let Some(body) = request.body_mut().take() {
        let pause = Box::pin(sleep(pause));
        *request.body_mut() = Some(Body::wrap(HesitantBody { pause, body }));
    }
}

/// Returns whether the connection was closed before the body was written: the receiver has not
/// processed the request, and may have refused it.
pub(super) fn is_unwritten(error: &reqwest::Error) -> bool {
    let mut next = error.source();
    while let Some(error) = next {
        // The library's type for this error is not public.
        if error.to_string().starts_with("error writing a body to connection") {
            return true;
        }
        next = error.source();
    }
    false
}

impl HttpBody for HesitantBody {
    type Data = <Body as HttpBody>::Data;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        ready!(self.pause.as_mut().poll(context));
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
