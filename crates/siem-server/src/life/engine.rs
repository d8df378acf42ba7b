//! Execution of requests by the process that has the store open.

mod erase;
mod repeat;
mod retain;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use tracing::error;

use super::{
    AccessAction, AccessLog, LifeRequest, LifeResponse, Reason, RetentionClock, RetentionPolicy,
    mailbox::{self, Letter},
    subject::Subject,
};
use crate::{Clock as _, SystemClock, store::StoreHandle, trust::Registry};

/// Executes the requests of a data directory with its open store.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) data: PathBuf,
    pub(crate) store: StoreHandle,
    pub(crate) registry: Option<Arc<Registry>>,
}

/// Reason why a request is not executed.
enum Stop {
    /// The answer for the command.
    Refuse(String),
    /// To try again later.
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Engine {
    /// Executes all requests that are there.
    pub(crate) fn poll(&self) {
        let waiting = mailbox::waiting(&self.data);
        for id in waiting.unwrap_or_default() {
            if let Err(error) = self.execute(&id) {
                error!(code = "life_request_failed", request = id, %error, "cannot execute a request");
            }
        }
    }

    /// Removes what the configuration no longer keeps.
    pub(crate) fn apply_retention(&self, policy: &RetentionPolicy, clock: &mut RetentionClock) {
        let reason = Reason { who: "siem-server".into(), why: "configuration".into() };
        let now = SystemClock.now();
        let permitted = clock.permit(*policy, now, Instant::now()).map_err(Stop::Io);
        let removed = permitted.and_then(|policy| self.retain(&policy, &reason, now));
        if let Err(Stop::Io(error)) = removed {
            error!(code = "retention_failed", %error, "cannot remove epochs by the retention, trying again in an hour");
        }
    }

    /// Erases what arrived since of the subjects of completed erasures.
    pub(crate) fn repeat_erasures(&self) {
        let error = match self.repeat(SystemClock.now()) {
            Ok(_) => return,
            Err(Stop::Io(error)) => error.to_string(),
            Err(Stop::Refuse(why)) => why,
        };
        error!(
            code = "erasure_repeat_failed",
            error, "cannot erase later entries of an erased subject, trying again in an hour"
        );
    }

    fn execute(&self, id: &str) -> io::Result<()> {
        let response = match mailbox::read(&self.data, id) {
            Ok(letter) => {
                let is_own = matches!(letter.request, LifeRequest::EraseAgain { .. });
                let response = self.dispatch(id, letter);
                if is_own {
                    // No command waits for the response.
                    mailbox::remove(&self.data, id)?;
                    return response.map(drop).map_err(Stop::into_error);
                }
                response
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(Stop::Refuse(format!("cannot read the request: {error}"))),
        };
        let response = match response {
            Ok(response) => response,
            Err(Stop::Refuse(why)) => LifeResponse::Refused(why),
            Err(Stop::Io(error)) => {
                // A part may be done: the command must know, and may be run again.
                error!(code = "life_request_failed", request = id, %error, "cannot execute a request");
                LifeResponse::Refused(format!("the server failed: {error}; run the command again"))
            }
        };
        mailbox::respond(&self.data, id, &response)
    }

    fn dispatch(&self, id: &str, letter: Letter) -> Result<LifeResponse, Stop> {
        let Letter { request, reason } = letter;
        let now = SystemClock.now();
        match request {
            LifeRequest::Erase(selector) => self.erase(id, &Subject::new(selector), &reason, now),
            LifeRequest::EraseAgain { of, selector, until, epochs } => {
                let epochs = Some(epochs);
                let subject = Subject { until, of: Some(of), epochs, ..Subject::new(selector) };
                self.erase(id, &subject, &reason, now)
            }
            LifeRequest::RepeatErasures => self.repeat(now),
            LifeRequest::ApplyRetention(policy) => self.retain(&policy, &reason, now),
        }
    }

    fn log(
        &self,
        reason: &Reason,
        now: SystemTime,
        action: AccessAction,
        what: &str,
    ) -> io::Result<()> {
        let log = AccessLog::new(&self.data);
        log.append(now, &reason.who, action, what, &reason.why).map_err(io::Error::other)
    }
}

impl Stop {
    fn into_error(self) -> io::Error {
        match self {
            Self::Refuse(why) => io::Error::other(why),
            Self::Io(error) => error,
        }
    }
}
