//! Handles requests about the device's key.

use siem_protocol::{AgentEvent, agent_event::TrustState};

use super::{
    device_status::DeviceStatus,
    error::RequestError,
    outbox_requests::Respond,
    protocol::{DeviceRequest, Response},
    store::Store,
};
use crate::{
    pipeline::outbox::EpochDevice,
    siem::{
        device::{RotateError, Rotated},
        stored_trust,
    },
};

/// Handles one request, with the outbox that the device's key belongs to.
///
/// # Errors
/// [`RequestError`].
pub(super) fn handle(
    store: &Store,
    request: &DeviceRequest,
    respond: Respond<'_>,
) -> Result<(), RequestError> {
    match request {
        DeviceRequest::Show => {
            let status = DeviceStatus::of_agent(&store.context.device, &store.context.trust);
            let status =
                status.ok_or_else(|| RequestError::failed("a dry run has no device key"))?;
            Ok(respond(Response::Device(Box::new(status)))?)
        }
        DeviceRequest::Rotate => {
            let Rotated { previous, keys } = rotate(store)?;
            Ok(respond(Response::DeviceRotated { previous, key: keys.public() })?)
        }
    }
}

/// Replaces the key, and reports that with the change of the outbox.
fn rotate(store: &Store) -> Result<Rotated, RequestError> {
    let device = &store.context.device;
    refuse_if_revoked(store)?;
    if store.pipeline().is_some() {
        // A receiver without keys never confirms one.
        device.settle_rotation(&store.context.trust);
    } else if let Some(file) = device.file() {
        let keys = file.load().map_err(RequestError::because)?;
        device.set(Ok(keys));
    }
    let rotated = device.rotate(store.context.clock.now()).map_err(|error| match error {
        RotateError::Unconfirmed => RequestError::invalid(error.to_string()),
        error => RequestError::because(error),
    })?;
    report(store, &rotated).map_err(|error| {
        RequestError::failed(format!(
            "the key was rotated, and the next start of the agent reports it: {error}"
        ))
    })?;
    Ok(rotated)
}

/// Refuses to rotate a key that a receiver has revoked: the receiver would refuse its successor, too.
fn refuse_if_revoked(store: &Store) -> Result<(), RequestError> {
    let context = &store.context;
    let stored = context.state_dir.as_deref().map(stored_trust).unwrap_or_default();
    let mut known = context.trust.all().into_iter().chain(stored);
    let Some(revoked) = known.find(|trust| trust.state == TrustState::Revoked) else {
        return Ok(());
    };
    Err(RequestError::invalid(format!(
        "the receiver at {} has revoked the key, and refuses every key that replaces it by a \
         rotation: delete `device.key` in the state directory and restart the agent, which makes \
         another key in a new epoch",
        revoked.endpoint
    )))
}

fn report(store: &Store, rotated: &Rotated) -> Result<(), RequestError> {
    let owner = store.outbox.epoch_device();
    // The next start decides about an epoch that does not belong to the key.
    let Some(owner) = owner.filter(|owner| owner.key == rotated.previous) else { return Ok(()) };
    let event = AgentEvent::DeviceKeyCreated {
        key: rotated.keys.public(),
        reason: rotated.keys.reason,
        previous: Some(rotated.previous.clone()),
    };
    let device = EpochDevice { key: rotated.keys.public(), since: owner.since };
    store.change_with_event(event.into(), move |outbox, group| {
        outbox.assign_epoch_with(device, group)
    })?;
    let device = &store.context.device;
    device.set_owner(&rotated.keys.public());
    if store.pipeline().is_some() {
        // The receivers may have enrolled the key before the owner was set.
        device.settle_rotation(&store.context.trust);
    }
    Ok(())
}
