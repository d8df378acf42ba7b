//! How much waits for delivery, and notifications of acknowledgements.

use super::{Outbox, SinkBacklog};

impl Outbox {
    /// Returns how much waits for each registered sink; sinks whose cursor cannot be read are left
    /// out.
    pub fn backlog_of_sinks(&self) -> Vec<SinkBacklog> {
        let mut sinks = Vec::new();
        for registration in self.registrations().clone() {
            let name = registration.name;
            let known = self.backlog().acknowledged(&name);
            let known = known.or_else(|| {
                let cursor = self.cursor(&name).ok()?;
                let (epoch, seq) = (&cursor.epoch, cursor.acknowledged.seq);
                self.backlog().acknowledge(&name, epoch, seq);
                Some(seq)
            });
            sinks.extend(known.map(|seq| (name, seq)));
        }
        self.backlog().of_sinks(sinks)
    }

    /// Bytes that were appended since the store was opened.
    pub fn appended_bytes(&self) -> u64 {
        self.backlog().appended()
    }

    /// Records that `sink` has acknowledged everything up to `seq` of `epoch`, or was sent it and will
    /// count it as delivered later: it does not delay what follows. Notifies of it.
    pub fn count_sent(&self, sink: &str, epoch: &str, seq: u64) {
        self.backlog().acknowledge(sink, epoch, seq);
        if let Some(notify) = self.acknowledged.get() {
            notify();
        }
    }

    /// Calls `notify` after each acknowledgement. Only the first call has an effect.
    pub fn on_acknowledged(&self, notify: Box<dyn Fn() + Send + Sync>) {
        // The first one stays.
        self.acknowledged.set(notify).ok();
    }
}
