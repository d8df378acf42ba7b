//! Trust between this device and the receiver of one sink: which keys of the receiver count, and
//! what the receiver makes of the device's key.

mod key_list;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use siem_protocol::{
    BatchHeader, ChainPoint, EnrollAnswer, EnrollRequest, Identity, KeysAnswer,
    agent_event::{DeviceKeyReason, TrustState, UntrustedAnswer},
    delivery::Delivery,
    minisign::OrganisationKey,
    note::{NoteSigner, VerifierKey},
    statement::{Device as DeviceStatement, DeviceState, Enroll, Seal, Statement as _, digest},
};
use siem_sinks::http::{Answer, NoAnswer};
use tracing::{info, warn};

use super::{
    Connection, Device, TrustEntry, TrustStates,
    device::{DeviceKeys, Replacement},
    pins::Pins,
    receipts::{self, DeviceVerdict},
};
use crate::{
    config::Secret,
    platform::Clock,
    text::{causes, summary},
};

/// Shortest time between two enrollments that the receiver requests.
const MIN_ENROLL_INTERVAL: Duration = Duration::from_secs(5);

/// Services and settings of an [`Enrollment`].
pub struct EnrollmentSettings {
    /// Connection to the receiver.
    pub connection: Connection,
    /// Token for enrollments; `None` for the one of the connection.
    pub token: Option<Secret>,
    /// Configured keys of the receiver, which override pinned ones.
    pub receiver_keys: Vec<VerifierKey>,
    /// Keys that may replace the receiver's after a loss.
    pub organisation_keys: Vec<OrganisationKey>,
    /// Identity of the agent.
    pub identity: Identity,
    /// Key of this device.
    pub device: Device,
    /// State of this device at its receivers.
    pub states: TrustStates,
    /// State directory; `None` if nothing is stored.
    pub state_dir: Option<PathBuf>,
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Time after which the keys and the state of the device are requested again.
    pub poll_interval: Duration,
    /// Maximum time of a request.
    pub timeout: Duration,
}

/// Trust between this device and the receiver of one sink.
pub struct Enrollment {
    settings: EnrollmentSettings,
    entry: TrustEntry,
    /// `None` before the first batch.
    pins: Option<Pins>,
    /// Pins as they are in the file, or new ones if they are not in it.
    stored: Option<Pins>,
    /// `None` before the first request.
    asked: Option<Asked>,
    /// True if the receiver asks for an enrollment, or signs with a key that is not known.
    is_requested: bool,
    /// True if the receiver has refused a batch of this device while the device waits for approval.
    is_refused: bool,
    /// Requests in a row that failed.
    failures: u32,
}

/// Failed requests for the keys of a receiver, of which none is known, after which batches are sent all
/// the same: a receiver that knows `/ingest` only may answer other paths in any way.
const UNANSWERED: u32 = 3;

/// Last requests to the receiver.
#[derive(Clone, Debug)]
struct Asked {
    /// Key of the device.
    device: VerifierKey,
    /// Time since the start.
    at: Duration,
    /// True if the receiver has answered an enrollment with this key.
    is_enrolled: bool,
}

/// Requests that are due before the next batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// The list of keys: the receiver may have announced or replaced one.
    Keys,
    /// The list of keys and an enrollment.
    Enrollment,
}

/// Receiver whose keys are pinned.
#[derive(Clone, Copy, Debug)]
pub struct PinnedReceiver<'a> {
    /// Name of the receiver.
    pub receiver: &'a str,
    /// Keys whose statements count.
    pub keys: &'a [VerifierKey],
}

/// Reason why a batch is not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// Result for the batch.
    pub delivery: Delivery,
    /// HTTP status of a response that must not be believed, and what is wrong with it.
    pub untrusted: Option<(u16, UntrustedAnswer)>,
}

impl NotReady {
    /// Holds delivery for a reason.
    #[must_use]
    pub fn hold(reason: impl Into<String>) -> Self {
        let delivery = Delivery::Hold { after: None, reason: reason.into() };
        Self { delivery, untrusted: None }
    }

    fn retry(reason: String) -> Self {
        Self { delivery: Delivery::Retry { after: None, reason }, untrusted: None }
    }
}

impl From<NoAnswer> for NotReady {
    fn from(NoAnswer { reason, needs_person, .. }: NoAnswer) -> Self {
        if needs_person { Self::hold(reason) } else { Self::retry(reason) }
    }
}

impl Enrollment {
    /// Creates the state of a sink that has sent nothing yet.
    #[must_use]
    pub fn new(settings: EnrollmentSettings) -> Self {
        let entry = settings.states.entry(settings.connection.base());
        let (pins, stored, asked) = (None, None, None);
        Self {
            settings,
            entry,
            pins,
            stored,
            asked,
            is_requested: false,
            is_refused: false,
            failures: 0,
        }
    }

    /// Asks the receiver for its keys and enrolls the device, if that is due.
    ///
    /// # Errors
    /// [`NotReady`]: the batch is not sent now.
    pub async fn prepare(&mut self, sink: &str) -> Result<(), NotReady> {
        self.load(sink)?;
        if self.settings.device.file().is_none() {
            return Ok(());
        }
        let keys = match self.settings.device.keys() {
            Ok(keys) => keys,
            // A receiver without keys takes batches without a seal.
            Err(_) if self.is_without_keys() => return Ok(()),
            Err(unavailable) => return Err(NotReady::hold(unavailable.to_string())),
        };
        match self.due(keys.current.key()) {
            Due::Nothing => {}
            due => self.ask(&keys, due).await?,
        }
        if self.must_store() {
            self.save().await?;
        }
        let trust = &self.pins().trust;
        let problem = || trust.problem.clone().unwrap_or_default();
        match trust.state {
            // The first batch may confirm the key: it continues what the receiver holds.
            TrustState::Pending if self.is_refused => Err(NotReady::hold(problem())),
            TrustState::Revoked if self.pins().is_stopped => Err(NotReady::hold(problem())),
            _ => Ok(()),
        }
    }

    /// Stores what the response to a batch has changed. If that fails for the keys of the receiver,
    /// the next batch is not sent.
    pub async fn finish(&mut self) {
        if self.settings.device.file().is_some()
            && self.pins != self.stored
            && let Err(NotReady { delivery: Delivery::Hold { reason, .. }, .. }) = self.save().await
        {
            warn!(code = "trust_write_failed", cause = reason, "cannot store the receiver's state");
        }
    }

    /// Returns the receiver, if its keys are pinned.
    #[must_use]
    pub fn pinned(&self) -> Option<PinnedReceiver<'_>> {
        let pins = self.pins.as_ref()?;
        let receiver = pins.receiver.as_deref()?;
        (!pins.keys.is_empty()).then_some(PinnedReceiver { receiver, keys: &pins.keys })
    }

    /// Returns the note of a seal for a batch: at `point`, and naming the last `receipt` of the
    /// epoch. `None` if this run has no device key at all, as a dry run.
    ///
    /// # Errors
    /// [`NotReady`]: the batch is not sent now.
    pub fn seal(
        &self,
        header: &BatchHeader,
        point: ChainPoint,
        receipt: Option<&str>,
    ) -> Result<Option<String>, NotReady> {
        if self.settings.device.file().is_none() {
            return Ok(None);
        }
        let keys = match self.settings.device.keys() {
            Ok(keys) => keys,
            Err(_) if self.is_without_keys() => return Ok(None),
            Err(unavailable) => return Err(NotReady::hold(unavailable.to_string())),
        };
        let signer = self.signer(&keys);
        let seal = Seal {
            receiver: self.pins.as_ref().and_then(|pins| pins.receiver.clone()),
            machine: header.machine_id.clone(),
            user: header.user.clone(),
            epoch: header.epoch.clone(),
            last_seq: point.seq,
            chain: point.hash,
            config: header.config_hash,
            receipt: receipt.map(digest),
            instance: header.instance.clone(),
        };
        let note = seal.sign(&[&*signer]);
        note.map(Some).map_err(|error| NotReady::hold(format!("cannot sign: {}", causes(&error))))
    }

    /// Returns the random name of this run.
    #[must_use]
    pub fn instance(&self) -> Option<String> {
        let device = &self.settings.device;
        device.file().is_some().then(|| device.instance().to_owned())
    }

    /// Requests another enrollment before one of the next batches.
    pub fn request(&mut self) {
        self.is_requested = true;
    }

    /// Reports that a response was valid: an earlier problem is solved.
    pub fn trusted(&mut self) {
        let pins = self.pins();
        if pins.trust.state == TrustState::ReceiptUntrusted
            && let Some(state) = pins.enrolled_state
        {
            self.set_state(state, None);
        }
    }

    /// Stores that a response must not be believed. Returns the reason to hold delivery.
    fn distrust(&mut self, status: u16, problem: UntrustedAnswer) -> String {
        // The receiver's key may have been replaced: its list of keys shows that.
        self.is_requested = true;
        let reason = format!(
            "the response {status} {}, so the entries are kept: check whether another server \
             responds in place of the receiver, or whether its key was replaced",
            receipts::describe(problem)
        );
        self.set_state(TrustState::ReceiptUntrusted, Some(reason.clone()));
        reason
    }

    /// Acts on a signed verdict about the device. Returns the reason to hold delivery.
    pub fn refuse(&mut self, verdict: DeviceVerdict, detail: Option<String>) -> String {
        let detail = detail.map(|detail| format!(" ({})", summary(&detail))).unwrap_or_default();
        match verdict {
            DeviceVerdict::Revoked => {
                let reason = format!("the receiver has revoked the device key{detail}{REVOKED}");
                self.set_state(TrustState::Revoked, Some(reason.clone()));
                self.change(|pins| pins.is_stopped = true);
                reason
            }
            DeviceVerdict::Cloned => self.replace_key(&detail),
            DeviceVerdict::NotEnrolled if self.pins().trust.state == TrustState::Pending => {
                self.is_refused = true;
                self.pins().trust.problem.clone().unwrap_or_default()
            }
            DeviceVerdict::NotEnrolled => {
                self.is_requested = true;
                let reason =
                    format!("the receiver has not enrolled the device key{detail}{ENROLL}");
                self.set_state(TrustState::NotEnrolled, Some(reason.clone()));
                reason
            }
            DeviceVerdict::EpochOwned => format!(
                "the epoch belongs to another device key{detail}: the outbox or the device key was \
                 copied or restored from another installation; ask the receiver's operator to check \
                 the event `impersonation`"
            ),
            DeviceVerdict::Impersonation => format!(
                "another device key is confirmed for this machine and user{detail}: ask the \
                 receiver's operator to check the event `impersonation`, and to approve this key \
                 (`siem-server devices approve`)"
            ),
        }
    }

    fn replace_key(&self, detail: &str) -> String {
        let cloned = format!("two installations use the same device key{detail}");
        let now = self.settings.clock.now();
        match self.settings.device.replace(DeviceKeyReason::Cloned, now) {
            Replacement::Requested => format!("{cloned}: this one makes another key"),
            Replacement::TooSoon { until } => {
                format!(
                    "{cloned}: this one makes another key at {until}, since the last one is new"
                )
            }
        }
    }

    /// Loads the pins before the first batch.
    fn load(&mut self, sink: &str) -> Result<(), NotReady> {
        if self.pins.is_some() {
            return Ok(());
        }
        let endpoint = self.settings.connection.base();
        let stored = match &self.settings.state_dir {
            Some(dir) => Pins::load(dir, sink, endpoint),
            None => Ok(None),
        };
        let stored = stored.map_err(|error| NotReady::hold(error.to_string()))?;
        let pins = stored.unwrap_or_else(|| Pins::new(sink, endpoint));
        self.stored = Some(pins.clone());
        let pins = pins.with_configured(&self.settings.receiver_keys);
        // Known before the receiver answers, and also when it never does.
        if !pins.keys.is_empty() {
            self.entry.set(pins.trust.clone());
        }
        self.pins = Some(pins);
        Ok(())
    }

    /// Returns true if no key of the receiver is known, and the receiver knows none of this device.
    fn is_without_keys(&self) -> bool {
        let is_unknown = |pins: &Pins| pins.keys.is_empty() && pins.trust.device_key.is_none();
        self.pins.as_ref().is_none_or(is_unknown)
    }

    fn pins(&self) -> &Pins {
        self.pins.as_ref().expect("pins are loaded before they are used")
    }

    /// Returns the requests that are due before the next batch.
    fn due(&self, current: &VerifierKey) -> Due {
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
    async fn ask(&mut self, keys: &DeviceKeys, due: Due) -> Result<(), NotReady> {
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
        match status {
            200 => self.enrolled(&answer, keys.current.key()),
            408 | 425 | 500..=599 => Err(NotReady::retry(format!(
                "the receiver responded with {status} to the enrollment"
            ))),
            _ => {
                self.refused(&answer, keys.current.key());
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
    fn refused(&mut self, answer: &Answer, current: &VerifierKey) {
        let status = answer.status;
        let (sink, pins) = (self.pins().sink.clone(), self.pins());
        warn!(code = "enrollment_refused", sink, status, "the receiver refused the enrollment");
        let is_known = pins.trust.device_key == Some(current.to_string());
        if !is_known {
            let reason = format!("the receiver refused the enrollment with {status}{ENROLL}");
            self.set_enrolled(TrustState::NotEnrolled, Some(reason));
        }
    }

    /// Reports that a response must not be believed.
    pub fn untrusted(&mut self, status: u16, problem: UntrustedAnswer) -> NotReady {
        let reason = self.distrust(status, problem);
        NotReady { untrusted: Some((status, problem)), ..NotReady::hold(reason) }
    }

    /// Returns the key that seals: the one before a rotation until the receiver knows the new one.
    fn signer(&self, keys: &DeviceKeys) -> Arc<dyn NoteSigner> {
        let enrolled = self.pins.as_ref().and_then(|pins| pins.trust.device_key.as_ref());
        let previous = keys.previous.as_ref();
        let previous = previous.filter(|key| Some(&key.key().to_string()) == enrolled);
        Arc::clone(previous.unwrap_or(&keys.current))
    }

    /// Sets the state that an enrollment has.
    fn set_enrolled(&mut self, state: TrustState, problem: Option<String>) {
        self.change(|pins| pins.enrolled_state = Some(state));
        self.set_state(state, problem);
    }

    fn set_state(&mut self, state: TrustState, problem: Option<String>) {
        self.change(|pins| (pins.trust.state, pins.trust.problem) = (state, problem));
    }

    fn change(&mut self, change: impl FnOnce(&mut Pins)) {
        let Some(mut pins) = self.pins.clone() else { return };
        change(&mut pins);
        self.put(pins);
    }

    /// Publishes what is known. [`save`](Self::save) stores it.
    fn put(&mut self, mut pins: Pins) {
        if self.pins.as_ref() != Some(&pins) {
            pins.asked_at = Some(self.settings.clock.now().to_string());
        }
        self.entry.set(pins.trust.clone());
        self.pins = Some(pins);
    }

    /// Returns true if nothing may rely on the pins before they are stored.
    fn must_store(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| self.pins().binds_more_than(stored))
    }

    /// Stores what is known.
    async fn save(&mut self) -> Result<(), NotReady> {
        let pins = self.pins().clone();
        if let Some(dir) = self.settings.state_dir.clone() {
            let pins = pins.clone();
            let saved = tokio::task::spawn_blocking(move || pins.save(&dir)).await;
            let saved = saved.map_err(|error| NotReady::hold(error.to_string()))?;
            saved.map_err(|error| NotReady::hold(error.to_string()))?;
        }
        self.stored = Some(pins);
        Ok(())
    }
}

/// Remedy for a device whose key was revoked, which is final.
const REVOKED: &str = ": to admit the machine again, delete `device.key` in the state directory, restart \
                       the agent, and ask the receiver's operator to approve the new key";

/// Remedy for a device that is not enrolled.
const ENROLL: &str = ": set a valid token with `enroll_token_file`, or ask the receiver's operator to \
                      approve the key (`siem-server devices approve`)";

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
