use proptest::prelude::*;

use super::*;

const LEVELS: [TrustLevel; 3] = [TrustLevel::Shared, TrustLevel::FirstUse, TrustLevel::Enrolled];
const EPOCHS: [EpochState; 9] = [
    EpochState::Unknown,
    EpochState::Keyless(Reach::Below),
    EpochState::Keyless(Reach::Head),
    EpochState::Keyless(Reach::HeadOfLater),
    EpochState::Keyless(Reach::OfOther),
    EpochState::Own,
    EpochState::Foreign,
    EpochState::ForeignUnconfirmed,
    EpochState::ForeignLetters,
];

fn seals() -> Vec<SealState> {
    let mut seals = vec![SealState::None, SealState::Invalid];
    for standing in [Standing::Unconfirmed, Standing::Confirmed, Standing::Revoked] {
        for (cloned, is_second) in [(false, false), (false, true), (true, false), (true, true)] {
            seals.push(SealState::Valid(Sealer { standing, cloned, is_second }));
        }
    }
    seals
}

/// Every combination of facts.
fn all() -> Vec<Facts> {
    let mut all = Vec::new();
    for level in LEVELS {
        for (shared_allowed, ratcheted) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            for seal in seals() {
                for epoch in EPOCHS {
                    all.push(Facts { level, shared_allowed, ratcheted, seal, epoch });
                }
            }
        }
    }
    all
}

fn stores(decision: Decision) -> bool {
    !matches!(decision, Decision::Refuse { .. })
}

fn facts(level: TrustLevel, seal: SealState, epoch: EpochState) -> Facts {
    Facts { level, shared_allowed: false, ratcheted: false, seal, epoch }
}

fn sealed(standing: Standing) -> SealState {
    SealState::Valid(Sealer { standing, cloned: false, is_second: false })
}

/// The lines of the specification, in its order.
#[test]
fn decisions_are_those_of_the_specification() {
    use EpochState as E;
    use TrustLevel as L;
    let none = SealState::None;
    let (unconfirmed, confirmed) = (sealed(Standing::Unconfirmed), sealed(Standing::Confirmed));
    let store = |mark, strict| Decision::Store { mark, strict, alarm: None };
    let ratcheted = |facts: Facts| Facts { ratcheted: true, ..facts };
    let allowed = |facts: Facts| Facts { shared_allowed: true, ..facts };
    let head = E::Keyless(Reach::Head);
    let confirming = Decision::Adopt { mark: Mark::Confirmed, confirms: true, alarm: None };
    let rows = [
        // An epoch belongs to the device whose sealed batch began it.
        (facts(L::Shared, unconfirmed, E::Unknown), store(Mark::Unconfirmed, false)),
        (facts(L::FirstUse, confirmed, E::Unknown), store(Mark::Confirmed, false)),
        (facts(L::Enrolled, confirmed, E::Own), store(Mark::Confirmed, false)),
        (facts(L::Shared, none, E::Foreign), Decision::repel(Denial::EpochOwned)),
        (facts(L::Enrolled, none, E::Foreign), Decision::repel(Denial::EpochOwned)),
        (facts(L::FirstUse, unconfirmed, E::Foreign), Decision::repel(Denial::EpochOwned)),
        (facts(L::FirstUse, confirmed, E::Foreign), Decision::repel(Denial::Renumber)),
        (facts(L::Enrolled, confirmed, E::Foreign), Decision::repel(Denial::Renumber)),
        (facts(L::Shared, none, E::ForeignUnconfirmed), Decision::repel(Denial::EpochOwned)),
        (
            facts(L::FirstUse, unconfirmed, E::ForeignUnconfirmed),
            Decision::repel(Denial::EpochOwned),
        ),
        (facts(L::FirstUse, confirmed, E::ForeignUnconfirmed), Decision::refuse(Denial::Renumber)),
        (facts(L::Enrolled, confirmed, E::ForeignUnconfirmed), Decision::refuse(Denial::Renumber)),
        // Continuity.
        (facts(L::Shared, unconfirmed, head), confirming),
        (facts(L::FirstUse, unconfirmed, head), confirming),
        (facts(L::Enrolled, unconfirmed, head), confirming),
        (
            ratcheted(facts(L::FirstUse, confirmed, head)),
            Decision::Adopt { mark: Mark::Confirmed, confirms: false, alarm: None },
        ),
        (
            ratcheted(facts(L::FirstUse, unconfirmed, head)),
            Decision::Adopt { mark: Mark::Unconfirmed, confirms: false, alarm: None },
        ),
        (ratcheted(facts(L::Enrolled, unconfirmed, head)), Decision::refuse(Denial::NotEnrolled)),
        (
            facts(L::Shared, confirmed, E::Keyless(Reach::OfOther)),
            Decision::refuse(Denial::Renumber),
        ),
        (facts(L::Shared, none, E::Keyless(Reach::OfOther)), Decision::refuse(Denial::Renumber)),
        // Dead letters of an agent that lost its key.
        (facts(L::FirstUse, unconfirmed, E::ForeignLetters), store(Mark::Unconfirmed, true)),
        (facts(L::Enrolled, confirmed, E::ForeignLetters), store(Mark::Confirmed, true)),
        (facts(L::Enrolled, unconfirmed, E::ForeignLetters), Decision::refuse(Denial::NotEnrolled)),
        (facts(L::FirstUse, none, E::ForeignLetters), Decision::repel(Denial::EpochOwned)),
        (
            facts(L::FirstUse, unconfirmed, E::Keyless(Reach::HeadOfLater)),
            Decision::Adopt { mark: Mark::Unconfirmed, confirms: false, alarm: None },
        ),
        // Ratchet.
        (ratcheted(facts(L::Shared, none, E::Unknown)), Decision::repel(Denial::Impersonation)),
        (ratcheted(facts(L::FirstUse, none, head)), Decision::repel(Denial::Impersonation)),
        (ratcheted(facts(L::Enrolled, none, head)), Decision::repel(Denial::Impersonation)),
        (ratcheted(facts(L::FirstUse, unconfirmed, E::Unknown)), store(Mark::Unconfirmed, false)),
        // Keyless epochs.
        (facts(L::Shared, none, E::Unknown), store(Mark::Shared, true)),
        (facts(L::FirstUse, none, head), store(Mark::Shared, true)),
        // Levels.
        (facts(L::Enrolled, none, E::Unknown), Decision::refuse(Denial::NotEnrolled)),
        (facts(L::Enrolled, none, head), Decision::refuse(Denial::NotEnrolled)),
        (facts(L::Enrolled, unconfirmed, E::Unknown), Decision::refuse(Denial::NotEnrolled)),
        (facts(L::Enrolled, unconfirmed, E::Own), Decision::refuse(Denial::NotEnrolled)),
        // A rollback.
        (allowed(facts(L::Enrolled, none, E::Unknown)), store(Mark::Shared, true)),
        (allowed(ratcheted(facts(L::FirstUse, none, E::Unknown))), store(Mark::Shared, true)),
        (
            allowed(ratcheted(facts(L::FirstUse, none, E::Foreign))),
            Decision::refuse(Denial::Renumber),
        ),
        (
            allowed(ratcheted(facts(L::Enrolled, unconfirmed, head))),
            Decision::Adopt { mark: Mark::Unconfirmed, confirms: false, alarm: None },
        ),
        // Keys.
        (
            facts(L::Shared, sealed(Standing::Revoked), E::Own),
            Decision::refuse(Denial::DeviceRevoked),
        ),
        (facts(L::Shared, SealState::Invalid, E::Own), Decision::repel(Denial::Seal)),
    ];
    for (facts, expected) in rows {
        assert_eq!(decide(&facts), expected, "{facts:?}");
    }
}

#[test]
fn keyless_batch_never_enters_an_owned_epoch() {
    for facts in all() {
        let foreign = matches!(facts.epoch, EpochState::Foreign | EpochState::ForeignUnconfirmed);
        let owned = foreign || matches!(facts.epoch, EpochState::Own | EpochState::ForeignLetters);
        if owned && facts.seal == SealState::None {
            assert!(!stores(decide(&facts)), "{facts:?}");
        }
        if foreign || facts.seal == SealState::Invalid {
            assert!(!stores(decide(&facts)), "{facts:?}");
        }
    }
}

/// Only an owner can make gaps and breaks.
#[test]
fn loose_batches_are_sealed_and_in_an_own_or_new_epoch() {
    for facts in all() {
        if let Decision::Store { strict: false, .. } = decide(&facts) {
            assert!(matches!(facts.seal, SealState::Valid(_)), "{facts:?}");
            assert!(matches!(facts.epoch, EpochState::Own | EpochState::Unknown), "{facts:?}");
        }
    }
}

#[test]
fn marks_never_exceed_what_is_proven() {
    for facts in all() {
        let (mark, confirms) = match decide(&facts) {
            Decision::Store { mark, .. } => (mark, false),
            Decision::Adopt { mark, confirms, .. } => (mark, confirms),
            Decision::Refuse { .. } => continue,
        };
        let expected = match facts.seal {
            SealState::Valid(sealer) if sealer.standing == Standing::Confirmed => Mark::Confirmed,
            SealState::Valid(_) if confirms => Mark::Confirmed,
            SealState::Valid(_) => Mark::Unconfirmed,
            _ => Mark::Shared,
        };
        assert_eq!(mark, expected, "{facts:?}");
        if confirms {
            assert!(facts.epoch == EpochState::Keyless(Reach::Head));
            assert!(!facts.ratcheted, "{facts:?}");
        }
    }
}

/// Below level `enrolled`, the first batch of a device is stored whatever others did before.
#[test]
fn new_epoch_of_an_unconfirmed_device_is_stored_below_enrolled() {
    for facts in all() {
        let SealState::Valid(sealer) = facts.seal else { continue };
        let able = sealer.standing != Standing::Revoked && !sealer.cloned;
        let own = matches!(facts.epoch, EpochState::Unknown | EpochState::Own);
        if able && own && facts.level < TrustLevel::Enrolled {
            assert!(stores(decide(&facts)), "{facts:?}");
        }
    }
}

#[test]
fn allow_shared_lets_keyless_batches_into_new_epochs() {
    for facts in all() {
        let keyless = matches!(facts.epoch, EpochState::Unknown | EpochState::Keyless(_));
        if facts.shared_allowed && facts.seal == SealState::None {
            let keyless = keyless && facts.epoch != EpochState::Keyless(Reach::OfOther);
            let renumber = Decision::refuse(Denial::Renumber);
            let stored = Decision::Store { mark: Mark::Shared, strict: true, alarm: None };
            assert_eq!(decide(&facts), if keyless { stored } else { renumber }, "{facts:?}");
        }
    }
}

#[test]
fn refusals_for_a_missing_seal_have_an_event() {
    for facts in all() {
        let Decision::Refuse { denial, alarm } = decide(&facts) else { continue };
        let attack = match denial {
            Denial::Seal | Denial::EpochOwned | Denial::Impersonation => true,
            Denial::Renumber => facts.epoch == EpochState::Foreign && facts.seal != SealState::None,
            _ => false,
        };
        assert_eq!(alarm.is_some(), attack, "{facts:?}");
    }
}

/// A receiver with one machine and user: devices by number, rotated keys share a lineage.
#[derive(Default)]
struct World {
    level: Option<TrustLevel>,
    confirmed: Vec<usize>,
    /// Owner and held entries of each epoch.
    epochs: std::collections::BTreeMap<u8, (Option<usize>, Vec<Mark>)>,
    lineages: Vec<usize>,
    /// Epoch that was held first.
    first: Option<u8>,
}

impl World {
    fn lineage(&self, device: usize) -> usize {
        self.lineages[device]
    }

    fn send(&mut self, device: Option<usize>, epoch: u8, knows_head: bool) -> Decision {
        let lineage = device.map(|device| self.lineage(device));
        let ratcheted = !self.confirmed.is_empty();
        let state = match self.epochs.get(&epoch) {
            None => EpochState::Unknown,
            Some((None, _)) if self.first == Some(epoch) => EpochState::Keyless(Reach::Head),
            Some((None, _)) => EpochState::Keyless(Reach::HeadOfLater),
            Some((owner, _)) if *owner == lineage => EpochState::Own,
            Some(_) => EpochState::Foreign,
        };
        let seal = lineage.map_or(SealState::None, |lineage| {
            let confirmed = self.confirmed.contains(&lineage);
            sealed(if confirmed { Standing::Confirmed } else { Standing::Unconfirmed })
        });
        let level = self.level.unwrap_or(TrustLevel::FirstUse);
        let facts = Facts { level, shared_allowed: false, ratcheted, seal, epoch: state };
        let decision = decide(&facts);
        // A batch that does not know the chain's value is refused by the ledger.
        let continues = knows_head || !matches!(state, EpochState::Keyless(_));
        match decision {
            Decision::Store { mark, strict, .. } if !strict || continues => {
                let lineage = lineage.filter(|_| state == EpochState::Unknown);
                let epoch = self.epochs.entry(epoch).or_insert((lineage, Vec::new()));
                epoch.1.push(mark);
            }
            Decision::Adopt { mark, confirms, .. } if continues => {
                let epoch = self.epochs.entry(epoch).or_insert((lineage, Vec::new()));
                epoch.0 = lineage;
                epoch.1.push(mark);
                if confirms {
                    self.confirmed.extend(lineage);
                }
            }
            _ => return decision,
        }
        self.first.get_or_insert(epoch);
        decision
    }
}

proptest! {
    /// Device 0 and 1 are the machine's, one the rotated key of the other; 2 and 3 are others'. The
    /// machine alone knows the chain of its epochs, 0 to 2, and others know that of theirs.
    #[test]
    fn others_neither_enter_nor_lock_out_a_machine(
        level in prop::sample::select(vec![TrustLevel::Shared, TrustLevel::FirstUse]),
        upgraded in any::<bool>(),
        steps in prop::collection::vec((prop::option::of(0usize..4), 0u8..6), 0..40)
    ) {
        let mut world = World { level: Some(level), lineages: vec![0, 0, 2, 3], ..World::default() };
        // Entries by the machine before it had a key.
        if upgraded {
            world.send(None, 0, true);
        }
        let mut own = 0;
        for (device, epoch) in steps {
            let machine = device.is_some_and(|device| device < 2);
            // Others cannot guess the ids of epochs that the machine has not used.
            if (machine && epoch > 2) || (!machine && epoch <= 2 && !world.epochs.contains_key(&epoch)) {
                continue;
            }
            let before = world.epochs.get(&epoch).map(|(owner, held)| (*owner, held.len()));
            let decision = world.send(device, epoch, machine || epoch > 2);
            let after = world.epochs.get(&epoch).map(|(owner, held)| (*owner, held.len()));
            if machine {
                prop_assert!(stores(decision), "{device:?} {epoch} {decision:?}");
                own += 1;
            } else if epoch <= 2 {
                prop_assert_eq!(before, after, "{:?} {}", device, epoch);
            }
            prop_assert!(!upgraded || world.confirmed.iter().all(|lineage| *lineage == 0));
        }
        let held: usize = (0..3).filter_map(|epoch| world.epochs.get(&epoch)).map(|it| it.1.len()).sum();
        prop_assert_eq!(held, own + usize::from(upgraded));
        // A ratchet is only ever caused by a confirmed key; an unconfirmed one does not stop others.
        if world.confirmed.is_empty() {
            prop_assert!(stores(world.send(None, 99, true)));
        }
    }
}
