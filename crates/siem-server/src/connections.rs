//! Table of open connections. When it is full, an idle connection makes room: of the network that has most
//! connections, the one that is idle longest. So a client with many connections cannot end those of others.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

/// Time after which another connection is selected to end, if the last one has not ended.
const ENDING: Duration = Duration::from_millis(20);

/// Open connections, at most as many as the process has files for.
#[derive(Debug)]
pub(crate) struct Connections {
    limit: usize,
    table: Mutex<Table>,
    /// Notified when a connection ends or becomes idle.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    open: usize,
    /// Number of the next change from busy to idle.
    next: u64,
    /// Connections by network.
    networks: HashMap<IpAddr, Network>,
    /// Number of idle connections.
    idle: usize,
    /// Number of connections that were selected to end, and are still open and idle.
    ending: usize,
}

/// Connections of a network.
#[derive(Debug, Default)]
struct Network {
    open: usize,
    /// Idle connections; the one that is idle longest comes first.
    idle: BTreeMap<u64, Arc<Notify>>,
}

/// Returns the network of an address: the address itself, or the upper half of one of IPv6, of which a client
/// may have all in the lower half.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address => address,
    }
}

impl Connections {
    /// Creates a table for `limit` connections, at least one.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let (table, changed) = (Mutex::default(), Notify::new());
        Arc::new(Self { limit: limit.max(1), table, changed })
    }

    /// Waits until the table has room, and asks an idle connection to end. Waits without asking while all
    /// connections are busy.
    pub(crate) async fn make_room(&self) {
        let mut is_overdue = false;
        loop {
            let changed = self.changed.notified();
            {
                let mut table = self.table();
                if table.open < self.limit {
                    return;
                }
                if (table.ending == 0 || is_overdue)
                    && let Some(evicted) = table.evict()
                {
                    table.ending += 1;
                    evicted.notify_one();
                }
            }
            is_overdue = tokio::time::timeout(ENDING, changed).await.is_err();
        }
    }

    /// Returns the number of connections with a request, of idle ones, and the limit of both.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let table = self.table();
        let idle = table.idle;
        (table.open.saturating_sub(idle), idle, self.limit)
    }

    /// Adds a connection from an address, which is idle until its first request.
    pub(crate) fn open(self: &Arc<Self>, address: IpAddr) -> Connection {
        let (evicted, network) = (Arc::new(Notify::new()), network(address));
        let mut table = self.table();
        table.open += 1;
        table.networks.entry(network).or_default().open += 1;
        let number = table.rest(network, &evicted);
        drop(table);
        let (idle, used) = (Mutex::new(Some(number)), AtomicBool::new(false));
        Connection { connections: self.clone(), network, evicted, idle, used }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Adds an idle connection, and returns its number.
    fn rest(&mut self, network: IpAddr, evicted: &Arc<Notify>) -> u64 {
        self.next += 1;
        self.idle += 1;
        let network = self.networks.entry(network).or_default();
        network.idle.insert(self.next, evicted.clone());
        self.next
    }

    /// Selects the idle connection that makes room.
    fn evict(&mut self) -> Option<Arc<Notify>> {
        let idle = self.networks.values_mut().filter(|network| !network.idle.is_empty());
        // Of equal ones, that with the connection that is idle longest.
        let rank = |network: &&mut Network| {
            let oldest = network.idle.keys().next().copied();
            (network.open, std::cmp::Reverse(oldest))
        };
        let (_, evicted) = idle.max_by_key(rank)?.idle.pop_first()?;
        self.idle -= 1;
        Some(evicted)
    }

    /// Ends the time that a connection was idle under `number`. Returns true if it was selected to end.
    fn leave_idle(&mut self, network: IpAddr, number: Option<u64>) -> bool {
        let Some(number) = number else { return false };
        let network = self.networks.get_mut(&network);
        let was_idle = network.is_some_and(|network| network.idle.remove(&number).is_some());
        self.idle -= usize::from(was_idle);
        self.ending -= usize::from(!was_idle);
        !was_idle
    }

    /// Removes a connection that is not idle.
    fn close(&mut self, network: IpAddr) {
        self.open -= 1;
        if let Some(found) = self.networks.get_mut(&network) {
            found.open -= 1;
            if found.open == 0 {
                self.networks.remove(&network);
            }
        }
    }
}

/// Handle to the number of connections with requests.
#[derive(Clone, Debug)]
pub(crate) struct Occupancy(Arc<Connections>);

impl Occupancy {
    /// Reports whether so many connections have requests that others may soon wait.
    pub(crate) fn is_dense(&self) -> bool {
        let (busy, _, limit) = self.0.counts();
        busy >= limit - limit / 8
    }
}

/// A connection in the table, until it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    connections: Arc<Connections>,
    network: IpAddr,
    evicted: Arc<Notify>,
    /// Number among the idle connections; `None` while a request runs.
    idle: Mutex<Option<u64>>,
    /// True after the start of the first request.
    used: AtomicBool,
}

impl Connection {
    /// Marks the connection as busy until the guard is dropped.
    pub(crate) fn begin_request(self: &Arc<Self>) -> Busy {
        self.used.store(true, Ordering::Relaxed);
        let number = self.idle().take();
        if self.connections.table().leave_idle(self.network, number) {
            // Another connection has to end in its place.
            self.connections.changed.notify_waiters();
        }
        Busy(self.clone())
    }

    /// Returns a handle to the number of connections with requests.
    pub(crate) fn occupancy(&self) -> Occupancy {
        Occupancy(self.connections.clone())
    }

    /// Returns whether a request has begun on the connection.
    pub(crate) fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns whether no request runs.
    pub(crate) fn is_idle(&self) -> bool {
        self.idle().is_some()
    }

    /// Completes when the connection has to make room for another one.
    pub(crate) async fn evicted(&self) {
        loop {
            self.evicted.notified().await;
            // A request may have begun after the connection was selected.
            if self.is_idle() {
                return;
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Option<u64>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let number = self.idle().take();
        let mut table = self.connections.table();
        table.leave_idle(self.network, number);
        table.close(self.network);
        drop(table);
        self.connections.changed.notify_waiters();
    }
}

/// A request that runs on a connection.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Connection>);

impl Drop for Busy {
    fn drop(&mut self) {
        let connection = &self.0;
        let mut idle = connection.idle();
        let number = connection.connections.table().rest(connection.network, &connection.evicted);
        // The second request of a pipeline cannot begin before the first one ended.
        *idle = Some(number);
        drop(idle);
        connection.connections.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Poll};

    use std::net::Ipv4Addr;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Polls a future once.
    async fn is_ready<F: Future<Output = ()>>(future: F) -> bool {
        let mut future = pin!(future);
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
    }

    #[tokio::test]
    async fn longest_idle_connection_is_evicted() {
        let connections = Connections::new(3);
        let open = || Arc::new(connections.open(HERE));
        let (first, second, third) = (open(), open(), open());
        drop(first.begin_request());
        let _busy = second.begin_request();
        // The third one has been idle since it was opened, the first one since its request.
        let mut room = pin!(connections.make_room());
        assert!(!is_ready(room.as_mut()).await);
        assert!(is_ready(third.evicted()).await);
        assert!(!is_ready(first.evicted()).await);
        drop(third);
        room.await;
    }

    #[tokio::test]
    async fn busy_connections_are_not_evicted() {
        let connections = Connections::new(1);
        let only = Arc::new(connections.open(HERE));
        let busy = only.begin_request();
        let mut room = pin!(connections.make_room());
        assert!(!is_ready(room.as_mut()).await);
        assert!(!is_ready(only.evicted()).await);
        drop(busy);
        assert!(!is_ready(room.as_mut()).await, "the connection still has to end");
        assert!(is_ready(only.evicted()).await);
        drop(only);
        room.await;
    }

    #[tokio::test]
    async fn connection_with_a_request_ignores_its_eviction() {
        let connections = Connections::new(1);
        let only = Arc::new(connections.open(HERE));
        let mut room = pin!(connections.make_room());
        assert!(!is_ready(room.as_mut()).await);
        let busy = only.begin_request();
        assert!(!is_ready(only.evicted()).await);
        drop(busy);
        assert!(!is_ready(room.as_mut()).await);
        assert!(is_ready(only.evicted()).await, "it is selected again when it is idle again");
    }

    #[tokio::test]
    async fn request_on_a_selected_connection_makes_another_one_end() {
        let connections = Connections::new(2);
        let (first, second) = (Arc::new(connections.open(HERE)), Arc::new(connections.open(HERE)));
        let mut room = pin!(connections.make_room());
        assert!(!is_ready(room.as_mut()).await);
        let _busy = first.begin_request();
        assert!(!is_ready(room.as_mut()).await);
        assert!(is_ready(second.evicted()).await);
        assert!(first.was_used() && !second.was_used());
    }

    #[tokio::test]
    async fn connection_that_takes_long_to_end_is_not_waited_for() {
        let connections = Connections::new(2);
        let (_first, second) = (Arc::new(connections.open(HERE)), Arc::new(connections.open(HERE)));
        let evicted = async {
            second.evicted().await;
            drop(second);
        };
        tokio::join!(connections.make_room(), evicted);
    }

    /// A client with many connections ended those of others before their first request was read.
    #[tokio::test]
    async fn connection_of_the_network_with_most_is_evicted() {
        let connections = Connections::new(4);
        let open = |address: &str| Arc::new(connections.open(address.parse().unwrap()));
        // The second and the third one are of one network.
        let (old, busy) = (open("10.0.0.1"), open("2001:db8::1"));
        let (first, second) = (open("2001:db8::2"), open("2001:db8:0:1::1"));
        let _busy = busy.begin_request();
        let mut room = pin!(connections.make_room());
        assert!(!is_ready(room.as_mut()).await);
        assert!(!is_ready(old.evicted()).await && !is_ready(second.evicted()).await);
        assert!(is_ready(first.evicted()).await);
        drop(first);
        room.await;
        assert_eq!(connections.counts(), (1, 2, 4));
        drop((old, busy, second));
    }
}
