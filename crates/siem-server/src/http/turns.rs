//! Turns of bodies that are not small. Their number is limited, for all senders and for each.

use std::{
    collections::HashMap,
    future::poll_fn,
    hash::{BuildHasher as _, Hash, RandomState},
    net::{IpAddr, Ipv6Addr},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::http::HeaderMap;
use siem_protocol::names::header;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::bearer_token;

/// Turns of one user of a machine: an agent sends one batch at a time, and enrolls meanwhile.
const OF_A_MACHINE: usize = 4;

/// Sender of a request, as far as it is known before the body is read. Machine and user are what the
/// request claims; the device key is known only from the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sender {
    origin: Origin,
    /// Hash of the machine and its user.
    machine: u64,
}

/// Address and token of a sender. IPv6 addresses count by network, since a host has many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Origin {
    address: Option<IpAddr>,
    token: u64,
}

/// Limits the turns of all bodies together, of those of an address and token, and of a
/// user of a machine.
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

impl Sender {
    /// Returns a hash of the token.
    pub(super) fn token(&self) -> u64 {
        self.origin.token
    }
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

    /// Returns a hash of a machine, device or user.
    pub(super) fn hash(&self, of: impl Hash) -> u64 {
        self.hasher.hash_one(of)
    }

    /// Returns the sender of a request from `address`.
    pub(super) fn sender(&self, headers: &HeaderMap, address: Option<IpAddr>) -> Sender {
        let value = |name: &str| headers.get(name).map(|value| value.as_bytes());
        let token = self.hasher.hash_one(bearer_token(headers));
        let machine = self.hasher.hash_one((value(header::MACHINE_ID), value(header::USER)));
        Sender { origin: Origin { address: address.map(network), token }, machine }
    }

    /// Waits for a turn; returns `None` if it does not come in time. It counts as `size` of the turns
    /// of its machine and of its address and token, or as all of them if they have fewer.
    pub(super) async fn take(&self, sender: Sender, size: usize) -> Option<Turn> {
        let taking = tokio::time::timeout(self.patience, self.take_all(sender, size));
        self.count_wait(taking).await.ok().flatten()
    }

    /// Number of bodies that wait for a turn or for memory.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Counts a body as waiting until the guard is dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.waiting)
    }

    /// Completes `future` for a body, which counts as waiting meanwhile unless it is ready at once.
    pub(super) async fn count_wait<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let first = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        match first {
            Poll::Ready(output) => output,
            Poll::Pending => {
                // Dropped with the future if the client closes the connection.
                let _waiting = self.wait();
                future.await
            }
        }
    }

    async fn take_all(&self, sender: Sender, size: usize) -> Option<Turn> {
        // A turn of all is taken last: a sender that waits for its own share takes none from others.
        let machine = self.machines.take(sender, size).await?;
        let origin = self.origins.take(sender.origin, size).await?;
        let all = self.all.clone().acquire_owned().await.ok()?;
        Some(Turn { _permits: [machine, origin, all] })
    }
}

/// A body that waits, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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

    /// Waits for `size` turns of a sender, at least one and at most all of them.
    async fn take(&self, sender: K, size: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(size.clamp(1, self.each)).ok()?;
        self.of(sender).acquire_many_owned(permits).await.ok()
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
    use axum::http::header::AUTHORIZATION;

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
            held.push(turns.take(sender(1, 1), 1).await.unwrap());
        }
        assert!(turns.take(sender(1, 1), 1).await.is_none());
        for _ in 0..2 {
            held.push(turns.take(sender(1, 2), 1).await.unwrap());
        }
        assert!(
            turns.take(sender(1, 3), 1).await.is_none(),
            "six of eight is the share of an address"
        );
        for _ in 0..2 {
            held.push(turns.take(sender(2, 1), 1).await.unwrap());
        }
        assert!(turns.take(sender(3, 1), 1).await.is_none());
        drop(held);
        assert!(turns.take(sender(1, 1), 1).await.is_some());
        assert_eq!(turns.waiting(), 0);
    }

    #[tokio::test]
    async fn large_body_counts_as_several_turns_of_its_sender() {
        let turns = Turns::new(8, Duration::from_millis(1));
        let large = turns.take(sender(1, 1), 64).await.unwrap();
        assert!(turns.take(sender(1, 1), 1).await.is_none());
        assert!(turns.take(sender(1, 2), 1).await.is_none());
        let other = turns.take(sender(2, 1), 3).await.unwrap();
        assert!(turns.take(sender(2, 1), 2).await.is_none(), "one of four is left");
        assert!(turns.take(sender(2, 1), 1).await.is_some());
        drop((large, other));
        assert!(turns.take(sender(1, 2), 64).await.is_some());
    }

    #[test]
    fn users_of_a_machine_are_different_senders() {
        let turns = Turns::new(8, Duration::from_millis(1));
        let of = |user: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::MACHINE_ID, "a".parse().unwrap());
            headers.insert(header::USER, user.parse().unwrap());
            turns.sender(&headers, None)
        };
        assert_eq!(of("x"), of("x"));
        assert_ne!(of("x"), of("y"));
    }

    /// Names of schemes have no case: a token in 64 spellings had 64 shares of turns, and as many quotas.
    #[test]
    fn token_is_one_sender_in_each_spelling_of_its_scheme() {
        let turns = Turns::new(8, Duration::from_millis(1));
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            turns.sender(&headers, None)
        };
        assert_eq!(of("Bearer a"), of("bEARER a"));
        assert_ne!(of("Bearer a"), of("Bearer A"));
    }

    #[tokio::test]
    async fn body_of_a_closed_connection_waits_no_longer() {
        let turns = Turns::new(1, Duration::from_secs(3600));
        let _held = turns.take(sender(1, 1), 1).await.unwrap();
        {
            let mut waiting = pin!(turns.take(sender(2, 1), 1));
            let is_pending =
                poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending())).await;
            assert!(is_pending);
            assert_eq!(turns.waiting(), 1);
        }
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
