//! `ai-agent outbox`: what waits for delivery.

use std::path::Path;

use clap::{Args, Subcommand};

use super::{Failure, print, setup::Surroundings, store::Store};
use crate::{
    config::{Shipping, did_you_mean},
    frame::Codec,
    pipeline::{group::Filling, outbox::Removed, removed},
    units::Size,
};

/// What waits for delivery. The agent must not run meanwhile.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Takes away the place of a sink that is not configured any more: what only it has not taken
    /// is deleted, and the SIEM is told so. Its dead letters stay.
    ForgetSink {
        /// The sink's name: that of its table, as `siem` in `[sink.siem]`.
        #[arg(value_name = "NAME")]
        name: String,
    },
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let Action::ForgetSink { name } = &self.action;
        let surroundings = Surroundings::look()?;
        let loaded = surroundings.load(explicit)?;
        if loaded.settings.pipeline.sinks.iter().any(|sink| sink.name == *name) {
            return Err(Failure::usage(format!(
                "the sink `{name}` is configured: take it out of `pipeline.sinks` first, or it \
                 would begin anew as its `start` says"
            )));
        }
        Store::open(&surroundings, loaded, "a sink can be forgotten")?.forget(name)
    }
}

impl Store {
    fn forget(&self, name: &str) -> Result<(), Failure> {
        let places = self.outbox.removed_sinks().map_err(Failure::failed)?;
        let Some(sink) = places.iter().find(|place| place.name == name) else {
            return Err(Failure::usage(unknown(name, &places)));
        };
        let config = self.loaded.settings.config_hash();
        let now = self.context.clock.now();
        let mut filling = Filling::new(self.outbox.end(), config, Shipping::default(), Codec::Zstd);
        filling.event(&removed::told(sink, true), now);
        let before = self.outbox.stored();
        self.outbox.forget_sink(name, &filling.take(now)).map_err(Failure::failed)?;
        let freed = Size(before.saturating_sub(self.outbox.stored()));
        let Removed { acknowledged, undelivered, .. } = sink;
        print(format_args!(
            "sink `{name}` is forgotten: it had taken the entries up to {acknowledged}, and \
             {undelivered} not; {freed} of the outbox are free"
        ))?;
        let letters = self.outbox.dead_letters().map_err(Failure::failed)?;
        match letters.iter().filter(|(id, _)| id.sink == name).count() {
            0 => Ok(()),
            count => print(format_args!(
                "{count} dead letters of it are still here: `ai-agent deadletter export --all \
                 --sink {name}` shows them, `purge` deletes them"
            )),
        }
    }
}

/// Says who has a place instead.
fn unknown(name: &str, places: &[Removed]) -> String {
    let known: Vec<&str> = places.iter().map(|place| &*place.name).collect();
    let hint = match (did_you_mean(name, &known), known.as_slice()) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, []) => "no sink has one".to_owned(),
        (None, known) => format!("there are {}", known.join(", ")),
    };
    format!("no sink `{name}` has a place in the outbox: {hint}")
}
