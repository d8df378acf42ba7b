//! Trust between this device and the receiver of one sink: which keys of the receiver count, and
//! what the receiver makes of the device's key.

mod key_list;
mod not_ready;
mod requests;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use siem_protocol::{
    BatchHeader, ChainPoint, Identity,
    agent_event::{DeviceKeyReason, TrustState, UntrustedAnswer},
    delivery::Delivery,
    minisign::OrganisationKey,
    note::{NoteSigner, VerifierKey},
    statement::{Seal, Statement as _, digest},
};
use tracing::warn;

pub use self::not_ready::NotReady;
use self::requests::{Asked, Due};
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
    /// True if the receiver refused the last enrollment because there were too many.
    is_limited: bool,
    /// Requests in a row that failed.
    failures: u32,
}

/// Receiver whose keys are pinned.
#[derive(Clone, Copy, Debug)]
pub struct PinnedReceiver<'a> {
    /// Name of the receiver.
    pub receiver: &'a str,
    /// Keys whose statements count.
    pub keys: &'a [VerifierKey],
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
            is_limited: false,
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
        let receiver = self.pins.as_ref().and_then(|pins| pins.receiver.clone());
        let seal = Seal::of(header, receiver, point, receipt.map(digest));
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
                let remedy = if self.is_limited { LIMITED } else { ENROLL };
                let reason =
                    format!("the receiver has not enrolled the device key{detail}{remedy}");
                self.set_state(TrustState::NotEnrolled, Some(reason.clone()));
                reason
            }
            DeviceVerdict::EpochOwned => format!(
                "the epoch belongs to another device key{detail}: the outbox or the device key was \
                 copied or restored from another installation, or the receiver was restored from a \
                 backup; ask the receiver's operator to check the event `impersonation`, and to \
                 approve this key (`siem-server devices approve`): another epoch begins then"
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

/// Remedy for a device whose enrollment the receiver refused because there were too many.
const LIMITED: &str = ": it limits the number of enrollments, and the agent tries again by itself; if that lasts, ask \
                       the receiver's operator to look for a flood of enrollments";
