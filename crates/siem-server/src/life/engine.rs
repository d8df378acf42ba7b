//! Execution of requests by the process that has the store open.

mod erase;
mod repeat;
mod retain;

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tracing::error;

use super::{
    AccessAction, AccessLog, LifeRequest, LifeResponse, Reason, RetentionClock, RetentionPolicy,
    mailbox::{self, Letter},
    subject::Subject,
};
use crate::{Clock as _, SystemClock, store::StoreHandle, trust::Registry};

/// Time after which a request that stays is executed again: each attempt reads all entries.
const RETRY: Duration = Duration::from_secs(60);

/// Executes the requests of a data directory with its open store.
#[derive(Debug)]
pub(crate) struct Engine {
    data: PathBuf,
    store: StoreHandle,
    registry: Option<Arc<Registry>>,
    /// Requests that stay, since they are not completed or could not be answered.
    postponed: RefCell<HashMap<String, Postponed>>,
}

/// A request that stays.
#[derive(Clone, Copy, Debug)]
struct Postponed {
    /// Time of the last attempt.
    since: Instant,
    /// The command got its response, and waits no longer.
    is_answered: bool,
}

/// Reason why a request is not executed.
enum Stop {
    /// The answer for the command.
    Refuse(String),
    /// To try again later.
    Io(io::Error),
    /// Entries were erased, and the erasure is not listed: its request stays, and completes it.
    Incomplete(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Engine {
    pub(crate) fn new(data: PathBuf, store: StoreHandle, registry: Option<Arc<Registry>>) -> Self {
        Self { data, store, registry, postponed: RefCell::default() }
    }

    /// Reports whether the store signs what it erases.
    pub(crate) fn has_registry(&self) -> bool {
        self.registry.is_some()
    }

    /// Returns the data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Executes all requests that are there.
    pub(crate) fn poll(&self) {
        let waiting = mailbox::waiting(&self.data);
        for id in waiting.unwrap_or_default() {
            if self.postponed(&id).is_some_and(|it| it.since.elapsed() < RETRY) {
                continue;
            }
            if let Err(error) = self.execute(&id) {
                if mailbox::waiting(&self.data).is_ok_and(|waiting| waiting.contains(&id)) {
                    self.postpone(&id, false);
                }
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
        if let Err(Stop::Io(error) | Stop::Incomplete(error)) = removed {
            error!(code = "retention_failed", %error, "cannot remove epochs by the retention, trying again in an hour");
        }
    }

    /// Erases what arrived since of the subjects of completed erasures.
    pub(crate) fn repeat_erasures(&self) {
        let error = match self.repeat(SystemClock.now()) {
            Ok(_) => return,
            Err(Stop::Io(error) | Stop::Incomplete(error)) => error.to_string(),
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
                // No command waits for the response.
                if is_own || self.postponed(id).is_some_and(|it| it.is_answered) {
                    return self.finish(id, response).map(drop).map_err(Stop::into_error);
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
            Err(Stop::Incomplete(error)) => {
                error!(code = "life_request_failed", request = id, %error, "cannot complete an erasure, trying again in a minute");
                let why = format!(
                    "the server failed: {error}; entries were erased, and erasure {id} is completed and listed \
                     when that is possible: the receiver or its next start tries again"
                );
                mailbox::answer(&self.data, id, &LifeResponse::Refused(why))?;
                self.postpone(id, true);
                return Ok(());
            }
        };
        mailbox::respond(&self.data, id, &response)
    }

    /// Removes the request of an erasure, unless it is incomplete.
    fn finish(&self, id: &str, response: Result<LifeResponse, Stop>) -> Result<LifeResponse, Stop> {
        if let Err(Stop::Incomplete(_)) = &response {
            self.postpone(id, true);
        } else {
            self.postponed.borrow_mut().remove(id);
            mailbox::remove(&self.data, id)?;
        }
        response
    }

    fn postponed(&self, id: &str) -> Option<Postponed> {
        self.postponed.borrow().get(id).copied()
    }

    fn postpone(&self, id: &str, is_answered: bool) {
        let is_answered = is_answered || self.postponed(id).is_some_and(|it| it.is_answered);
        let postponed = Postponed { since: Instant::now(), is_answered };
        self.postponed.borrow_mut().insert(id.to_owned(), postponed);
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
            Self::Io(error) | Self::Incomplete(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use siem_protocol::statement::TrustLevel;

    use super::*;
    use crate::{life::Selector, store::FileStore, trust::RegistryOptions};

    /// On a full disk this read all entries, and wrote a line of the access log, four times in a second.
    #[test]
    fn request_that_cannot_be_answered_is_postponed() {
        let root = tempfile::tempdir().unwrap();
        let options = RegistryOptions::new(TrustLevel::Shared);
        let registry = Registry::open(&root.path().join("trust"), options).unwrap();
        registry.create_receiver_key("siem.example.com", [9; 32]).unwrap();
        // Without a registry the store executes no requests itself.
        let store = FileStore::open(root.path()).unwrap();
        let engine = Engine::new(root.path().to_owned(), store.handle(), Some(Arc::new(registry)));
        let reason = Reason { who: "operator".into(), why: "asked for".into() };
        let letter = Letter { request: LifeRequest::Erase(Selector::User("u".into())), reason };
        mailbox::write(root.path(), "01", &letter).unwrap();
        fs::create_dir_all(root.path().join("life/responses/01.json")).unwrap();
        for _ in 0..3 {
            engine.poll();
        }
        assert_eq!(AccessLog::new(root.path()).verify().unwrap().len(), 1);
        assert_eq!(mailbox::waiting(root.path()).unwrap(), ["01"]);
    }
}
