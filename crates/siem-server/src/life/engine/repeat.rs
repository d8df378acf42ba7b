//! Erasure of entries that arrived after their subject was erased.

use std::{collections::BTreeMap, io, time::SystemTime};

use tracing::warn;

use super::{Engine, Stop};
use crate::{
    EpochKey,
    life::{
        Holds, LifeRequest, LifeResponse, Reason,
        long_lines::LongLines,
        mailbox::{self, Letter},
        subject::{Standing, Swept, standing},
    },
    store::EpochLines,
};

/// What is found of a subject in an epoch.
#[derive(Clone, Default)]
struct Finding {
    selected: bool,
    held: bool,
    /// Lines of which a part is selected.
    long_lines: LongLines,
}

impl Engine {
    /// Compares what was stored since the last time, and the files that recoveries left, with the erasures
    /// that stay in force, and erases what they cover. Entries that a hold covers stay, and are compared again the next time.
    pub(super) fn repeat(&self, now: SystemTime) -> Result<LifeResponse, Stop> {
        let mut standing = standing(&self.data)?;
        if standing.is_empty() {
            return Ok(LifeResponse::Repeated { erasures: Vec::new(), entries: 0, held: 0 });
        }
        self.store.settle()?;
        let holds = Holds::read(&self.data)?;
        let before = Swept::read(&self.data);
        let mut swept = before.clone();
        let mut found: Vec<Vec<EpochKey>> = vec![Vec::new(); standing.len()];
        let mut is_longer = vec![false; standing.len()];
        let mut held = 0;
        for epoch in self.store.grown(|name| before.position(name))? {
            let epoch = epoch?;
            let findings = find(&epoch, &standing, &holds)?;
            if findings.iter().any(|it| it.held) {
                held += 1;
            } else {
                swept.set(epoch.name(), epoch.index_end());
            }
            for (at, finding) in findings.iter().enumerate() {
                found[at].extend(epoch.key().filter(|_| finding.selected && !finding.held));
                is_longer[at] |= standing[at].long_lines.extend(&finding.long_lines);
            }
        }
        for (at, one) in standing.iter().enumerate().filter(|(at, _)| is_longer[*at]) {
            self.find_parts(one, &holds, &mut found[at])?;
        }
        let mut in_remains = vec![false; standing.len()];
        held += self.find_in_remains(&standing, &holds, &mut swept, &mut in_remains)?;
        let (mut erasures, mut total, mut refused) = (Vec::new(), 0, None);
        let subjects = standing.iter().zip(found).zip(in_remains);
        for ((one, epochs), _) in subjects.filter(|((_, epochs), it)| !epochs.is_empty() || *it) {
            match self.erase_again(one, epochs, now) {
                Ok(LifeResponse::Erased { id, entries, .. }) => {
                    erasures.push(id);
                    total += entries;
                }
                Ok(_) => {}
                // A hold that stops one subject must not stop the others.
                Err(Stop::Refuse(why)) => refused = Some(why),
                Err(error) => return Err(error),
            }
        }
        if held > 0 {
            warn!(
                code = "erasure_repeat_held",
                places = held,
                "a hold covers later entries of an erased subject: they stay"
            );
        }
        if let Some(why) = refused {
            // Without the new positions the subject is compared again the next time.
            return Err(Stop::Refuse(why));
        }
        if swept != before {
            swept.write(&self.data)?;
        }
        Ok(LifeResponse::Repeated { erasures, entries: total, held })
    }

    /// Adds the epochs with other parts of lines that were found just now: those may have arrived long ago.
    fn find_parts(
        &self,
        standing: &Standing,
        holds: &Holds,
        found: &mut Vec<EpochKey>,
    ) -> io::Result<()> {
        for epoch in self.store.epochs(None)? {
            let epoch = epoch?;
            let findings = find(&epoch, std::slice::from_ref(standing), holds)?;
            let is_free = findings.iter().any(|it| it.selected && !it.held);
            found.extend(epoch.key().filter(|key| is_free && !found.contains(key)));
        }
        Ok(())
    }

    /// Searches the files of recoveries that changed since the last time, and sets `found` for the subjects of
    /// which they have lines. Returns the number of files with such lines that a hold covers.
    fn find_in_remains(
        &self,
        standing: &[Standing],
        holds: &Holds,
        swept: &mut Swept,
        found: &mut [bool],
    ) -> io::Result<u64> {
        let (mut compared, mut held) = (BTreeMap::new(), 0);
        for remains in self.remains()? {
            let remains = remains?;
            let (path, version) = (remains.path().display().to_string(), remains.version()?);
            let Some(version) = version else { continue };
            if swept.has_remains(&path, version) {
                compared.insert(path, version);
                continue;
            }
            let (mut is_clean, mut is_held) = (true, false);
            for (one, found) in standing.iter().zip(&mut *found) {
                let (subject, mut finding) = (one.subject(Vec::new()), Finding::default());
                remains.each(|piece| {
                    if piece.is_selected(&subject)? {
                        finding.selected = true;
                        finding.held |= piece.hold(holds)?.is_some();
                    }
                    Ok(!finding.held)
                })?;
                is_clean &= !finding.selected;
                is_held |= finding.held;
                *found |= finding.selected && !finding.held;
            }
            held += u64::from(is_held);
            if is_clean {
                compared.insert(path, version);
            }
        }
        swept.set_remains(compared);
        Ok(held)
    }

    /// Erases the later entries of one subject. If the process ends in the middle, the next start
    /// completes it.
    fn erase_again(
        &self,
        standing: &Standing,
        epochs: Vec<EpochKey>,
        now: SystemTime,
    ) -> Result<LifeResponse, Stop> {
        let id = format!("{}-{}", standing.id, standing.repeats + 2);
        if self.postponed(&id).is_some() {
            // Its request names the epochs whose entries are erased already.
            return Err(Stop::Refuse(format!("erasure {id} is not completed yet")));
        }
        let why = format!("erasure {} stays in force: {}", standing.id, standing.reason);
        let reason = Reason { who: "siem-server".into(), why };
        let subject = standing.subject(epochs.clone());
        let request = LifeRequest::EraseAgain {
            of: standing.id.clone(),
            selector: standing.selector.clone(),
            until: standing.until,
            epochs,
        };
        mailbox::write(&self.data, &id, &Letter { request, reason: reason.clone() })?;
        let erased = self.erase(&id, &subject, &reason, now);
        self.finish(&id, erased)
    }
}

/// Returns what is found of each subject.
fn find(epoch: &EpochLines, standing: &[Standing], holds: &Holds) -> io::Result<Vec<Finding>> {
    let mut findings = vec![Finding::default(); standing.len()];
    let Some(key) = epoch.key() else { return Ok(findings) };
    let subjects: Vec<_> = standing.iter().map(|one| one.subject(Vec::new())).collect();
    epoch.each_line(|line| {
        for (subject, finding) in subjects.iter().zip(&mut findings) {
            if subject.selects(&key.machine, line.user, line.text) {
                finding.selected = true;
                finding.held |= subject.hold(holds, &key.machine, line.user, line.text).is_some();
                if subject.has_long_lines() {
                    finding.long_lines.add_line_of(&key.machine, line.user, line.text);
                }
            }
        }
        Ok::<_, io::Error>(())
    })?;
    Ok(findings)
}
