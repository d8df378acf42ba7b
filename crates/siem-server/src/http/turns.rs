//! Turns of bodies that are not small. Their number is limited, for all senders and for each.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hash, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::http::{HeaderMap, header::AUTHORIZATION};
use siem_protocol::names::header;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Turns of one machine: an agent sends one batch at a time, and enrolls meanwhile.
const OF_A_MACHINE: usize = 4;

/// Sender of a request, as far as it is known before the body is read. The machine is what the request
/// claims; the device key is known only from the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sender {
    origin: Origin,
    machine: u64,
}

/// Address and token of a sender. IPv6 addresses count by network, since a host has many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Origin {
    address: Option<IpAddr>,
    token: u64,
}

/// Limits the turns of all bodies together, of those of an address and token, and of a machine.
#[derive(Debug)]
pub(super) struct Turns {
    all: Arc<Semaphore>,
    origins: Shares<Origin>,
    machines: Shares<Sender>,
    hasher: RandomState,
    waiting: AtomicUsize,
    patience: Duration,
}

/// Right to send a body that is not small, returned on drop.
#[derive(Debug)]
pub(super) struct Turn {
    _permits: [OwnedSemaphorePermit; 3],
}

impl Turns {
    /// Creates `total` turns, for which a body waits at most `patience`. One address and token has three
    /// quarters of them.
    pub(super) fn new(total: usize, patience: Duration) -> Self {
        let total = total.max(1);
        Self {
            all: Arc::new(Semaphore::new(total)),
            origins: Shares::new((total * 3 / 4).max(1)),
            machines: Shares::new(OF_A_MACHINE),
            hasher: RandomState::new(),
            waiting: AtomicUsize::new(0),
            patience,
        }
    }

    /// Returns the sender of a request from `address`.
    pub(super) fn sender(&self, headers: &HeaderMap, address: Option<IpAddr>) -> Sender {
        let hash =
            |name: &str| self.hasher.hash_one(headers.get(name).map(|value| value.as_bytes()));
        let origin = Origin { address: address.map(network), token: hash(AUTHORIZATION.as_str()) };
        Sender { origin, machine: hash(header::MACHINE_ID) }
    }

    /// Waits for a turn; returns `None` if it does not come in time.
    pub(super) async fn take(&self, sender: Sender) -> Option<Turn> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let taking = tokio::time::timeout(self.patience, self.take_all(sender)).await;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        taking.ok().flatten()
    }

    /// Number of bodies that wait for a turn.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    async fn take_all(&self, sender: Sender) -> Option<Turn> {
        // A turn of all is taken last: a sender that waits for its own share takes none from others.
        let machine = self.machines.of(sender).acquire_owned().await.ok()?;
        let origin = self.origins.of(sender.origin).acquire_owned().await.ok()?;
        let all = self.all.clone().acquire_owned().await.ok()?;
        Some(Turn { _permits: [machine, origin, all] })
    }
}

/// Turns of each sender. Those without turns and without waiting bodies are forgotten.
#[derive(Debug)]
struct Shares<K> {
    each: usize,
    shares: Mutex<HashMap<K, Arc<Semaphore>>>,
}

impl<K: Hash + Eq> Shares<K> {
    fn new(each: usize) -> Self {
        Self { each, shares: Mutex::default() }
    }

    fn of(&self, sender: K) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if shares.len() == shares.capacity() {
            shares.retain(|_, share| Arc::strong_count(share) > 1);
        }
        shares.entry(sender).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
    }
}

/// Returns an address, or its network of 64 bits if it is one of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_none() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64))
        }
        address => address.to_canonical(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(address: u8, machine: u64) -> Sender {
        let address = Some(IpAddr::from([10, 0, 0, address]));
        Sender { origin: Origin { address, token: 1 }, machine }
    }

    #[tokio::test]
    async fn one_sender_does_not_take_all_turns() {
        let turns = Turns::new(8, Duration::from_millis(1));
        let mut held = Vec::new();
        for _ in 0..OF_A_MACHINE {
            held.push(turns.take(sender(1, 1)).await.unwrap());
        }
        assert!(turns.take(sender(1, 1)).await.is_none());
        for _ in 0..2 {
            held.push(turns.take(sender(1, 2)).await.unwrap());
        }
        assert!(
            turns.take(sender(1, 3)).await.is_none(),
            "six of eight is the share of an address"
        );
        for _ in 0..2 {
            held.push(turns.take(sender(2, 1)).await.unwrap());
        }
        assert!(turns.take(sender(3, 1)).await.is_none());
        drop(held);
        assert!(turns.take(sender(1, 1)).await.is_some());
        assert_eq!(turns.waiting(), 0);
    }

    #[test]
    fn senders_without_turns_are_forgotten() {
        let shares = Shares::new(1);
        for sender in 0..100_000 {
            drop(shares.of(sender));
        }
        assert!(shares.shares.lock().unwrap().len() < 100);
    }

    #[test]
    fn addresses_of_ipv6_count_by_network() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
