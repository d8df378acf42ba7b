//! Reads bodies. Memory is reserved as their bytes arrive, and a body that arrives too slowly is refused.

use std::{future::poll_fn, pin::Pin, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{header::CONTENT_LENGTH, request::Parts},
};
use hyper::body::{Body as _, Frame};
use tokio::time::Instant;

use super::{
    Limits,
    problem::Rejection,
    turns::{Sender, Turn, Turns},
};
use crate::{
    connections::Occupancy,
    memory::{Budget, Reserved},
};

/// Size up to which a body needs no turn. All connections together may have such bodies.
const SMALL: usize = 4 << 10;
/// Memory for a turn, in bytes: bodies of agents are mostly smaller. A larger body counts as several turns
/// of its sender.
const TURN_BYTES: usize = 1 << 20;
/// Factor by which a body may be slower than permitted while no other body waits.
const SLOWDOWN: usize = 16;

/// Memory and turns for bodies.
#[derive(Debug)]
pub(super) struct Intake {
    small: Budget,
    large: Budget,
    pub(super) turns: Turns,
    body_timeout: Duration,
    body_rate: usize,
    stall: Duration,
}

impl Intake {
    /// Creates an intake with `memory` in bytes.
    pub(super) fn new(memory: usize, limits: &Limits) -> Self {
        let (small, large) = (memory / 4, memory / 4 * 3);
        Self {
            small: Budget::new(small, limits.patience),
            large: Budget::new(large, limits.patience),
            turns: Turns::new(large / TURN_BYTES, limits.patience),
            body_timeout: limits.body_timeout,
            body_rate: limits.body_rate.max(1),
            // A shorter time would be spent on looking.
            stall: limits.stall.max(Duration::from_millis(10)),
        }
    }

    /// Returns the memory that bodies have reserved, and the size of the budget, in bytes.
    pub(super) fn memory(&self) -> (usize, usize) {
        let Self { small, large, .. } = self;
        (small.reserved() + large.reserved(), small.total() + large.total())
    }

    /// Reads a body of at most `limit` bytes.
    pub(super) async fn receive(
        &self,
        sender: Sender,
        parts: &Parts,
        body: &mut Body,
        limit: usize,
    ) -> Result<(Vec<u8>, Reserved), Rejection> {
        let length = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let length = length.and_then(|length| length.parse().ok());
        if length.is_some_and(|length: usize| length > limit) {
            return Err(Rejection::BodyTooLarge { limit });
        }
        let expected = length.unwrap_or(limit);
        let memory = self.small.reserve(expected.min(SMALL)).await.ok_or(Rejection::Overloaded)?;
        let occupancy = parts.extensions.get().cloned();
        let mut reading = Reading { occupancy, ..Reading::new(self, sender, expected, memory) };
        while let Some(data) = reading.next(body).await? {
            reading.add(&data, limit).await?;
        }
        let Reading { bytes, mut memory, .. } = reading;
        memory.shrink_to(bytes.len());
        Ok((bytes, memory))
    }
}

/// A body that arrives.
struct Reading<'a> {
    intake: &'a Intake,
    sender: Sender,
    /// Length that the body will have at most, as far as it is known.
    expected: usize,
    bytes: Vec<u8>,
    memory: Reserved,
    turn: Option<Turn>,
    occupancy: Option<Occupancy>,
    /// Time until which more bytes must arrive. Each byte extends it.
    deadline: Instant,
    /// End of the current period, in which the rate is measured once the body has a turn.
    period_end: Instant,
    /// Number of bytes that arrived in the current period.
    arrived: usize,
}

impl<'a> Reading<'a> {
    fn new(intake: &'a Intake, sender: Sender, expected: usize, memory: Reserved) -> Self {
        let now = Instant::now();
        Self {
            intake,
            sender,
            expected,
            bytes: Vec::new(),
            memory,
            turn: None,
            occupancy: None,
            deadline: now + intake.body_timeout,
            period_end: now + intake.stall,
            arrived: 0,
        }
    }

    /// Returns the next bytes, `None` at the end of the body.
    async fn next(&mut self, body: &mut Body) -> Result<Option<Bytes>, Rejection> {
        loop {
            let Some(frame) = self.next_frame(body).await? else { return Ok(None) };
            if let Ok(data) = frame.map_err(Rejection::Body)?.into_data() {
                return Ok(Some(data));
            }
        }
    }

    async fn next_frame(
        &mut self,
        body: &mut Body,
    ) -> Result<Option<Result<Frame<Bytes>, axum::Error>>, Rejection> {
        loop {
            let is_measured = self.period_end < self.deadline;
            let until = if is_measured { self.period_end } else { self.deadline };
            if let Ok(frame) = tokio::time::timeout_at(until, next_frame(body)).await {
                return Ok(frame);
            }
            if !is_measured {
                return Err(Rejection::Slow);
            }
            self.check_rate(Instant::now())?;
        }
    }

    /// Refuses the body if less of it arrived in the last period than must while others wait. A small body
    /// must arrive in one period while nearly all connections have requests.
    fn check_rate(&mut self, now: Instant) -> Result<(), Rejection> {
        if now < self.period_end {
            return Ok(());
        }
        if self.turn.is_none() {
            if self.occupancy.as_ref().is_some_and(Occupancy::is_dense) {
                return Err(Rejection::Slow);
            }
            self.start_period(now);
            return Ok(());
        }
        let Intake { turns, body_rate, stall, .. } = self.intake;
        let least = *body_rate as f64 * stall.as_secs_f64();
        if turns.waiting() > 0 && (self.arrived as f64) < least {
            return Err(Rejection::Slow);
        }
        self.start_period(now);
        Ok(())
    }

    fn start_period(&mut self, now: Instant) {
        (self.period_end, self.arrived) = (now + self.intake.stall, 0);
    }

    async fn add(&mut self, data: &[u8], limit: usize) -> Result<(), Rejection> {
        let length = self.bytes.len() + data.len();
        if length > limit {
            return Err(Rejection::BodyTooLarge { limit });
        }
        if length > self.memory.bytes() {
            let (begun, is_first) = (Instant::now(), self.turn.is_none());
            self.grow(length).await.ok_or(Rejection::Overloaded)?;
            // The sender is not to blame for the wait.
            let waited = begun.elapsed();
            self.deadline += waited;
            self.period_end += waited;
            if is_first {
                self.start_period(Instant::now());
            }
        }
        let room = self.memory.bytes().min(self.expected).max(length);
        self.bytes.reserve_exact(room - self.bytes.len());
        self.bytes.extend_from_slice(data);
        self.arrived += data.len();
        self.extend_deadline(data.len());
        self.check_rate(Instant::now())
    }

    /// Extends the deadline by what `length` bytes may take, to at most one timeout from now.
    fn extend_deadline(&mut self, length: usize) {
        let Intake { body_timeout, body_rate, .. } = self.intake;
        let more = (length * SLOWDOWN) as f64 / *body_rate as f64;
        let latest = Instant::now() + *body_timeout;
        self.deadline = (self.deadline + Duration::from_secs_f64(more)).min(latest);
    }

    /// Reserves memory for `length` bytes, and for as many more if they may follow.
    async fn grow(&mut self, length: usize) -> Option<()> {
        let Intake { large, turns, .. } = self.intake;
        let wanted = length.max(2 * self.memory.bytes()).min(self.expected.max(length));
        if self.turn.is_none() {
            let size = self.expected.div_ceil(TURN_BYTES);
            self.turn = Some(turns.take(self.sender, size).await?);
            self.memory = turns.count_wait(large.reserve(wanted)).await?;
            return Some(());
        }
        let more = wanted.min(large.total()).saturating_sub(self.memory.bytes());
        if more > 0 {
            self.memory.add(turns.count_wait(large.reserve(more)).await?);
        }
        Some(())
    }
}

/// Returns the next frame of a body.
pub(super) async fn next_frame(body: &mut Body) -> Option<Result<Frame<Bytes>, axum::Error>> {
    poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;

    use super::*;

    const LIMIT: usize = 1 << 20;

    fn reading(intake: &Intake) -> Reading<'_> {
        let sender = intake.turns.sender(&HeaderMap::new(), None);
        Reading::new(intake, sender, LIMIT, Reserved::default())
    }

    #[tokio::test]
    async fn slow_body_is_refused_only_while_others_wait() {
        let limits = Limits { stall: Duration::from_secs(1000), ..Limits::default() };
        let intake = Intake::new(limits.memory, &limits);
        let mut reading = reading(&intake);
        reading.add(&[0; 2 * SMALL], LIMIT).await.unwrap();
        assert!(reading.turn.is_some());
        reading.check_rate(reading.period_end).unwrap();
        let _waiting = intake.turns.wait();
        reading.arrived = 1000 * limits.body_rate;
        reading.check_rate(reading.period_end).unwrap();
        reading.arrived = 1000 * limits.body_rate - 1;
        let checked = reading.check_rate(reading.period_end);
        assert!(matches!(checked, Err(Rejection::Slow)), "{checked:?}");
    }

    #[tokio::test]
    async fn deadline_is_at_most_one_timeout_away() {
        let limits = Limits::default();
        let intake = Intake::new(limits.memory, &limits);
        let mut reading = reading(&intake);
        let begun = reading.deadline;
        reading.extend_deadline(1);
        assert!(reading.deadline < begun + Duration::from_secs(1));
        reading.extend_deadline(LIMIT);
        assert!(reading.deadline <= Instant::now() + limits.body_timeout);
    }

    #[tokio::test]
    async fn bodies_that_wait_for_memory_are_counted() {
        let limits = Limits { patience: Duration::from_secs(3600), ..Limits::default() };
        let intake = Intake::new(limits.memory, &limits);
        let _all = intake.large.reserve(intake.large.total()).await.unwrap();
        let mut reading = reading(&intake);
        let mut adding = std::pin::pin!(reading.add(&[0; 2 * SMALL], LIMIT));
        let first = poll_fn(|context| std::task::Poll::Ready(adding.as_mut().poll(context))).await;
        assert!(first.is_pending());
        assert_eq!(intake.turns.waiting(), 1);
    }
}
