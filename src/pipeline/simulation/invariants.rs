//! Invariants that must hold after every simulation.

use siem_protocol::Totals;

use super::*;

/// Epoch and number of each line at the receiver, by the bytes of the line.
type Arrivals = BTreeMap<Vec<u8>, Vec<(String, u64)>>;

impl Simulation {
    /// Checks that every line is at the receiver once and byte for byte, or accounted for.
    pub(super) fn check_every_line(&mut self) -> Result<(), String> {
        let received = self.received.lock().unwrap();
        if let Some(wrong) = &received.wrong {
            return Err(wrong.clone());
        }
        let agent = self.agent.as_ref().unwrap();
        let letters = agent.outbox.dead_letters().map_err(|error| causes(&error))?;
        let dead: BTreeSet<Vec<u8>> =
            letters.iter().map(|(_, letter)| receiver::content(&letter.line().unwrap())).collect();
        let mut arrived = self.arrived_lines(&received)?;
        let (mut filtered, mut perhaps) = (0_u64, 0_u64);
        for line in &self.script.lines {
            let places = arrived.remove(&line.bytes).unwrap_or_default();
            match self.check_line(line, &places, dead.contains(&line.bytes))? {
                Absence::None | Absence::Unread => {}
                Absence::Filtered => filtered += 1,
                Absence::FilteredOrUnread => perhaps += 1,
            }
        }
        if let Some((bytes, _)) = arrived.first_key_value() {
            return Err(format!("{:?} was never written", text(bytes)));
        }
        let ended = ended_epochs(&received);
        let filtered_before: u64 = ended.values().map(|totals| totals.all_filtered().lines).sum();
        let counted = filtered_before + agent.outbox.end().totals.all_filtered().lines;
        if !self.is_restored && !(filtered..=filtered + perhaps).contains(&counted) {
            return Err(format!(
                "{filtered} to {} lines were filtered, the totals say {counted}",
                filtered + perhaps
            ));
        }
        let (conflicts, refusals, duplicates) =
            (received.conflicts, received.refusals, received.duplicates);
        let (repelled, apart, displaced) = (received.repelled, received.apart, received.displaced);
        let claims = check_claims(
            &received,
            &letters.iter().map(|(id, _)| (id.epoch.clone(), id.seq)).collect(),
            self.is_restored,
        )?;
        // An old store does not have later accounts, and they count from the start of the epoch.
        if !self.is_restored && ended.is_empty() {
            check_accounts(&agent.outbox)?;
        }
        drop(received);
        for (what, count) in [
            ("new epoch after a conflict", conflicts),
            ("batch refused", refusals),
            ("batch refused as impersonation", repelled),
            ("batch of an attacker stored apart", apart),
            ("epoch that an attacker began first", displaced),
            ("entry sent again", duplicates),
            ("claim of a heartbeat checked", claims),
            ("line filtered", counted),
            ("dead letter", dead.len() as u64),
        ] {
            *self.tally.entry(what).or_default() += count;
        }
        Ok(())
    }

    /// Returns epoch and number of each complete line at the receiver.
    fn arrived_lines(&self, received: &ReceiverState) -> Result<Arrivals, String> {
        let mut arrived = Arrivals::new();
        for record in records(&received.epochs) {
            if !record.is_incomplete {
                arrived.entry(record.bytes).or_default().push((record.epoch, record.seq));
                continue;
            }
            let is_begun = |half: &Vec<u8>| half.starts_with(&record.bytes);
            if !self.script.halves.iter().any(is_begun) {
                return Err(format!("{:?} was never written", text(&record.bytes)));
            }
        }
        Ok(arrived)
    }

    /// Checks a line that is at `places` of the receiver. Returns why it is at none.
    fn check_line(
        &self,
        line: &Line,
        places: &[(String, u64)],
        is_dead: bool,
    ) -> Result<Absence, String> {
        let text = text(&line.bytes);
        let epochs: BTreeSet<_> = places.iter().map(|(epoch, _)| epoch).collect();
        // An old store may recognize a file neither by its path nor by its bytes.
        if epochs.len() < places.len() && !self.is_restored {
            return Err(format!("{text:?} arrived twice: {places:?}"));
        }
        if epochs.len() > 1 && !self.is_restored {
            return Err(format!("{text:?} arrived in two epochs: {places:?}"));
        }
        let has_arrived = !places.is_empty();
        let may_be_filtered = match line.kind {
            LineKind::Ignored if has_arrived => return Err(format!("{text:?} was not filtered")),
            LineKind::Poison if has_arrived => return Err("a refused line arrived".into()),
            LineKind::Ignored | LineKind::Sidechain | LineKind::Repeated => true,
            LineKind::Plain | LineKind::NotJson | LineKind::Long | LineKind::Poison => false,
        };
        match (may_be_filtered, line.is_safe) {
            _ if has_arrived || is_dead => Ok(Absence::None),
            (true, true) => Ok(Absence::Filtered),
            (true, false) => Ok(Absence::FilteredOrUnread),
            (false, false) if !line.is_there => Ok(Absence::Unread),
            (false, _) => Err(format!("{text:?} is lost, still in its file: {}", line.is_there)),
        }
    }
}

/// Reason why a line is not at the receiver.
enum Absence {
    /// It is there, or a dead letter.
    None,
    Filtered,
    FilteredOrUnread,
    /// It was deleted before it was read.
    Unread,
}

/// Returns the final totals of the epochs that ended, by their names, as the events say.
fn ended_epochs(received: &ReceiverState) -> BTreeMap<String, Totals> {
    let mut ended = BTreeMap::new();
    for line in received.epochs.values().flat_map(BTreeMap::values) {
        let entry = Entry::parse(line).unwrap();
        if entry.event.as_deref() != Some("epoch_started") {
            continue;
        }
        let data: Value = serde_json::from_str(entry.data.unwrap().get()).unwrap();
        if let (Some(epoch), Some(totals)) =
            (data["previous_epoch"].as_str(), data.get("previous_totals"))
        {
            ended.insert(epoch.to_owned(), serde_json::from_value(totals.clone()).unwrap());
        }
    }
    ended
}

/// Compares the totals in heartbeats with the entries below them.
fn check_claims(
    received: &ReceiverState,
    dead: &BTreeSet<(String, u64)>,
    is_restored: bool,
) -> Result<u64, String> {
    let mut checked = 0;
    for (epoch, entries) in &received.epochs {
        let mut counts = [0_u64; 3];
        let mut first = true;
        for (seq, line) in entries {
            let entry = Entry::parse(line).unwrap();
            let claim: Option<Value> = entry
                .data
                .filter(|_| entry.event.as_deref() == Some("heartbeat"))
                .map(|data| serde_json::from_str(data.get()).unwrap());
            let own = |claim: &Value| claim["epoch"] == **epoch;
            if let Some(claim) = claim.filter(own) {
                let totals = &claim["totals"];
                let number = |value: &Value| value.as_u64().unwrap();
                let claimed = [
                    number(&totals["shipped"]["lines"]),
                    number(&totals["parts"]["parts"]),
                    number(&totals["events"]),
                ];
                let uncounted = number(&totals["uncounted"]);
                let missing = (1..*seq).filter(|seq| !entries.contains_key(seq)).count() as u64;
                let buried = dead.iter().filter(|(of, at)| of == epoch && at < seq).count() as u64;
                let sum = claimed.iter().sum::<u64>() + uncounted;
                if sum != seq - 1 || (uncounted == 0 && missing == 0 && claimed != counts) {
                    return Err(format!(
                        "heartbeat {seq} claims {claimed:?}, the receiver has {counts:?}"
                    ));
                }
                // An old store does not have later dead letters.
                if missing > buried && uncounted == 0 && !is_restored {
                    return Err(format!(
                        "{missing} numbers are missing, {buried} are dead letters"
                    ));
                }
                checked += u64::from(first || missing == 0);
                first = false;
            }
            let kind = match (entry.event.is_some(), entry.part.is_some()) {
                (true, _) => 2,
                (false, true) => 1,
                (false, false) => 0,
            };
            counts[kind] += 1;
        }
    }
    Ok(checked)
}

/// Checks that every byte of every file up to its checkpoint is accounted for.
fn check_accounts(outbox: &Outbox) -> Result<(), String> {
    let accounts = outbox.accounts().map_err(|error| causes(&error))?;
    let mut rows: BTreeMap<String, Value> = BTreeMap::new();
    let take = |all: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>| {
        rows.extend(all.map(|(key, row)| (key.0, serde_json::from_slice(&row).unwrap())));
    };
    outbox.checkpoints("sessions", take).map_err(|error| causes(&error))?;
    for (generation, share) in accounts {
        let Some(generation) = generation else { continue };
        let row = rows.get(&generation.0).ok_or("an account has no checkpoint")?;
        let read = row["offset"].as_u64().unwrap() - row["start"].as_u64().unwrap();
        if share.read().bytes != read {
            return Err(format!("{read} bytes were read, the account says {share:?}"));
        }
    }
    Ok(())
}
