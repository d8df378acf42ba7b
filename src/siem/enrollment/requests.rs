//! Requests to the receiver for its keys and for an enrollment, and what their responses change.

use std::time::Duration;

use siem_protocol::{
    EnrollAnswer, EnrollRequest, KeysAnswer,
    agent_event::{TrustState, UntrustedAnswer},
    delivery::Delivery,
    note::{NoteSigner, VerifierKey},
    statement::{Device as DeviceStatement, DeviceState, Enroll, Statement as _},
};
use siem_sinks::http::Answer;
use tracing::{info, warn};

use super::{
    super::{device::DeviceKeys, receipts},
    ENROLL, Enrollment, EnrollmentSettings, LIMITED, NotReady, REVOKED, key_list,
};
use crate::text::causes;

/// Shortest time between two enrollments that the receiver requests.
const MIN_ENROLL_INTERVAL: Duration = Duration::from_secs(5);

/// Failed requests for the keys of a receiver, of which none is known, after which batches are sent all
/// the same: a receiver that knows `/ingest` only may answer other paths in any way.
const UNANSWERED: u32 = 3;

/// Last requests to the receiver.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// Key of the device.
    device: VerifierKey,
    /// Time since the start.
    at: Duration,
    /// True if the receiver has answered an enrollment with this key.
    is_enrolled: bool,
}

/// Requests that are due before the next batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// The list of keys: the receiver may have announced or replaced one.
    Keys,
    /// The list of keys and an enrollment.
    Enrollment,
}

impl Enrollment {
    /// Returns the requests that are due before the next batch.
    pub(super) fn due(&self, current: &VerifierKey) -> Due {
        let Some(asked) = self.asked.as_ref().filter(|asked| asked.device == *current) else {
            return Due::Enrollment;
        };
        let age = self.settings.clock.uptime().saturating_sub(asked.at);
        let is_confirmed = self.pins().trust.state == TrustState::Confirmed && asked.is_enrolled;
        match age >= self.settings.poll_interval {
            _ if self.is_requested && age >= MIN_ENROLL_INTERVAL => Due::Enrollment,
            true if is_confirmed => Due::Keys,
            true => Due::Enrollment,
            false => Due::Nothing,
        }
    }

    /// Makes the requests that are due. A device that the receiver knows already sends its batches
    /// also while the receiver cannot answer them.
    pub(super) async fn ask(&mut self, keys: &DeviceKeys, due: Due) -> Result<(), NotReady> {
        let was_enrolled = self.asked.take().is_some_and(|asked| asked.is_enrolled);
        let answered = self.request_due(keys, due).await;
        self.failures = if answered.is_ok() { 0 } else { self.failures.saturating_add(1) };
        let is_optional =
            self.is_known(keys) || (self.failures >= UNANSWERED && self.is_without_keys());
        let is_answered = match answered {
            Ok(()) => true,
            Err(NotReady { delivery: Delivery::Retry { reason, .. }, .. }) if is_optional => {
                let sink = &self.pins().sink;
                warn!(code = "enrollment_postponed", sink, reason, "cannot enroll the device now");
                false
            }
            Err(error) => return Err(error),
        };
        let is_enrolled = if due == Due::Enrollment { is_answered } else { was_enrolled };
        let (device, at) = (keys.current.key().clone(), self.settings.clock.uptime());
        self.asked = Some(Asked { device, at, is_enrolled });
        self.is_requested &= !is_enrolled || due == Due::Keys;
        self.settle_rotation().await;
        Ok(())
    }

    async fn request_due(&mut self, keys: &DeviceKeys, due: Due) -> Result<(), NotReady> {
        let answer = self.settings.connection.keys(self.settings.timeout).await?;
        let has_keys = self.learn_keys(&answer)?;
        if self.must_store() {
            self.save().await?;
        }
        if has_keys && due == Due::Enrollment {
            self.enroll(keys).await?;
        }
        Ok(())
    }

    /// Returns true if the receiver has enrolled a key of this device.
    fn is_known(&self, keys: &DeviceKeys) -> bool {
        let pins = self.pins();
        let known = [Some(&keys.current), keys.previous.as_ref()];
        !pins.keys.is_empty()
            && known
                .into_iter()
                .flatten()
                .any(|key| pins.trust.device_key == Some(key.key().to_string()))
    }

    /// Removes the key before a rotation, if every receiver has enrolled the new one.
    async fn settle_rotation(&self) {
        let (device, states) = (self.settings.device.clone(), self.settings.states.clone());
        let settled = tokio::task::spawn_blocking(move || device.settle_rotation(&states));
        if let Err(error) = settled.await {
            warn!(code = "device_key_write_failed", %error, "cannot remove the key before a rotation");
        }
    }

    /// Pins the keys in the response to `GET /keys`. Returns false if the receiver has none.
    fn learn_keys(&mut self, answer: &Answer) -> Result<bool, NotReady> {
        let status = answer.status;
        let is_pinned = !self.pins().keys.is_empty();
        let keys: Option<KeysAnswer> = match status {
            200 if answer.is_whole => serde_json::from_slice(&answer.body).ok(),
            _ => None,
        };
        let Some(keys) = keys else {
            return self.without_keys(status, is_pinned);
        };
        let learned = key_list::check(&keys, self.pins(), &self.settings.organisation_keys);
        let learned = learned.map_err(|problem| self.untrusted(status, problem))?;
        if self.pins().keys != learned.keys {
            let names: Vec<_> = learned.keys.iter().map(ToString::to_string).collect();
            let (sink, keys) = (&self.pins().sink, names.join(" "));
            info!(code = "receiver_keys_pinned", sink, keys, "pinned the receiver's keys");
            let mut pins = self.pins().clone();
            pins.replace_keys(&learned.receiver, learned.keys, learned.is_recovery);
            self.put(pins);
        }
        Ok(true)
    }

    /// Decides about a response without keys.
    fn without_keys(&mut self, status: u16, is_pinned: bool) -> Result<bool, NotReady> {
        match status {
            // Many servers respond so to a path that they do not know.
            408 | 425 | 429 | 502..=504 | 506..=599 => Err(NotReady::retry(format!(
                "the receiver responded with {status} to the request for its keys"
            ))),
            500 | 501 | 505 if is_pinned => Err(NotReady::retry(format!(
                "the receiver responded with {status} to the request for its keys"
            ))),
            401 | 403 if is_pinned => Err(NotReady::hold(format!(
                "the receiver responded with {status} to the request for its keys: check the token"
            ))),
            _ if is_pinned => Err(self.untrusted(status, UntrustedAnswer::Unsigned)),
            _ => {
                self.set_enrolled(TrustState::Shared, None);
                Ok(false)
            }
        }
    }

    async fn enroll(&mut self, keys: &DeviceKeys) -> Result<(), NotReady> {
        let body = self.enroll_request(keys)?;
        let answer = self.post_enrollment(&body).await?;
        let status = answer.status;
        self.is_limited = status == 429;
        match status {
            200 => self.enrolled(&answer, keys.current.key()),
            408 | 425 | 500..=599 => Err(NotReady::retry(format!(
                "the receiver responded with {status} to the enrollment"
            ))),
            _ => {
                self.refused(&answer, keys);
                Ok(())
            }
        }
    }

    fn enroll_request(&self, keys: &DeviceKeys) -> Result<Vec<u8>, NotReady> {
        let identity = &self.settings.identity;
        let enroll = Enroll {
            receiver: self.pins().receiver.clone().unwrap_or_default(),
            machine: identity.machine_id.clone(),
            user: identity.user.clone(),
            host: identity.hostname.clone(),
            os: identity.os.clone(),
            arch: identity.arch.clone(),
            version: identity.agent_version.clone(),
            key: keys.current.key().clone(),
            previous: keys.previous.as_ref().map(|key| key.key().clone()),
        };
        let signers: Vec<&dyn NoteSigner> = [Some(&keys.current), keys.previous.as_ref()]
            .into_iter()
            .flatten()
            .map(|key| &**key)
            .collect();
        let cannot_sign = |error| NotReady::hold(format!("cannot sign: {}", causes(&error)));
        let request = EnrollRequest {
            enroll: enroll.sign(&signers).map_err(cannot_sign)?,
            instance: self.settings.device.instance().to_owned(),
            sent_at: self.settings.clock.now().to_string(),
        };
        Ok(serde_json::to_vec(&request).expect("an enrollment is written as JSON"))
    }

    /// Sends an enrollment with its own token, and with that of the connection if that is refused: a
    /// token for enrollments expires, and a key that is enrolled may be enrolled with either.
    async fn post_enrollment(&self, body: &[u8]) -> Result<Answer, NotReady> {
        let EnrollmentSettings { connection, token, timeout, .. } = &self.settings;
        if let Some(token) = token {
            let answer = connection.enroll(body.to_vec(), Some(token), *timeout).await?;
            if !matches!(answer.status, 401 | 403) {
                return Ok(answer);
            }
        }
        Ok(connection.enroll(body.to_vec(), None, *timeout).await?)
    }

    /// Checks the statement about the device, and stores the state.
    fn enrolled(&mut self, answer: &Answer, current: &VerifierKey) -> Result<(), NotReady> {
        let device = self.check_device(answer, current);
        let device = device.map_err(|problem| self.untrusted(answer.status, problem))?;
        let (state, problem) = state_of(device.state);
        let mut pins = self.pins().clone();
        pins.trust.level = Some(device.level.as_str().to_owned());
        pins.trust.device_key = Some(current.to_string());
        pins.is_stopped &= device.state == DeviceState::Revoked;
        self.is_refused &= device.state == DeviceState::Pending;
        self.put(pins);
        self.set_enrolled(state, problem);
        Ok(())
    }

    fn check_device(
        &self,
        answer: &Answer,
        current: &VerifierKey,
    ) -> Result<DeviceStatement, UntrustedAnswer> {
        let answer: EnrollAnswer =
            serde_json::from_slice(&answer.body).map_err(|_| UntrustedAnswer::Unsigned)?;
        let pins = self.pins();
        let device: DeviceStatement = receipts::open(&answer.device, &pins.keys)?;
        let is_ours = Some(&device.receiver) == pins.receiver.as_ref() && device.key == *current;
        if is_ours { Ok(device) } else { Err(UntrustedAnswer::OtherSubject) }
    }

    /// Stores that the receiver refused the enrollment. That is not signed, so what was known of the
    /// key stays, and batches are sent: their answers decide.
    fn refused(&mut self, answer: &Answer, keys: &DeviceKeys) {
        let (status, sink) = (answer.status, &self.pins().sink);
        warn!(code = "enrollment_refused", sink, status, "the receiver refused the enrollment");
        if !self.is_known(keys) {
            let remedy = if self.is_limited { LIMITED } else { ENROLL };
            let reason = format!("the receiver refused the enrollment with {status}{remedy}");
            self.set_enrolled(TrustState::NotEnrolled, Some(reason));
        }
    }
}

/// Returns the state that a statement about the device means, and what to do about it.
fn state_of(state: DeviceState) -> (TrustState, Option<String>) {
    match state {
        DeviceState::Confirmed => (TrustState::Confirmed, None),
        DeviceState::Unconfirmed => (TrustState::Unconfirmed, None),
        DeviceState::Pending => {
            let problem = "the receiver's operator has not approved the device key yet: \
                           `siem-server devices approve`";
            (TrustState::Pending, Some(problem.to_owned()))
        }
        DeviceState::Revoked => {
            let problem = format!("the receiver has revoked the device key{REVOKED}");
            (TrustState::Revoked, Some(problem))
        }
    }
}
