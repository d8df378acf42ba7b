//! Reads bodies. Memory is reserved as their bytes arrive, and a body that arrives too slowly is refused.

use std::{future::poll_fn, pin::Pin, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header::CONTENT_LENGTH},
};
use hyper::body::{Body as _, Frame};
use tokio::time::Instant;

use super::{
    Limits,
    problem::Rejection,
    turns::{Sender, Turn, Turns},
};
use crate::memory::{Budget, Reserved};

/// Size up to which a body needs no turn. All connections together may have such bodies.
const SMALL: usize = 4 << 10;
/// Memory for a turn, in bytes: bodies of agents are mostly smaller.
const TURN_BYTES: usize = 1 << 20;
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

    /// Reads a body of at most `limit` bytes.
    pub(super) async fn receive(
        &self,
        sender: Sender,
        headers: &HeaderMap,
        body: &mut Body,
        limit: usize,
    ) -> Result<(Vec<u8>, Reserved), Rejection> {
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let length = length.and_then(|length| length.parse().ok());
        if length.is_some_and(|length: usize| length > limit) {
            return Err(Rejection::BodyTooLarge { limit });
        }
        let expected = length.unwrap_or(limit);
        let memory = self.small.reserve(expected.min(SMALL)).await.ok_or(Rejection::Overloaded)?;
        let deadline = Instant::now() + self.body_timeout;
        let mut reading = Reading {
            intake: self,
            sender,
            expected,
            bytes: Vec::new(),
            memory,
            turn: None,
            deadline,
        };
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
    /// Time until which more bytes must arrive. Each byte extends it.
    deadline: Instant,
}

impl Reading<'_> {
    /// Returns the next bytes, `None` at the end of the body.
    async fn next(&self, body: &mut Body) -> Result<Option<Bytes>, Rejection> {
        loop {
            let Some(frame) = self.next_frame(body).await? else { return Ok(None) };
            if let Ok(data) = frame.map_err(Rejection::Body)?.into_data() {
                return Ok(Some(data));
            }
        }
    }

    async fn next_frame(
        &self,
        body: &mut Body,
    ) -> Result<Option<Result<Frame<Bytes>, axum::Error>>, Rejection> {
        let mut stalled = Instant::now() + self.intake.stall;
        while self.turn.is_some() && stalled < self.deadline {
            if let Ok(frame) = tokio::time::timeout_at(stalled, next_frame(body)).await {
                return Ok(frame);
            }
            if self.intake.turns.waiting() > 0 {
                return Err(Rejection::Slow);
            }
            stalled += self.intake.stall;
        }
        tokio::time::timeout_at(self.deadline, next_frame(body)).await.map_err(|_| Rejection::Slow)
    }

    async fn add(&mut self, data: &[u8], limit: usize) -> Result<(), Rejection> {
        let length = self.bytes.len() + data.len();
        if length > limit {
            return Err(Rejection::BodyTooLarge { limit });
        }
        if length > self.memory.bytes() {
            let begun = Instant::now();
            self.grow(length).await.ok_or(Rejection::Overloaded)?;
            // The sender is not to blame for the wait.
            self.deadline += begun.elapsed();
        }
        let room = self.memory.bytes().min(self.expected).max(length);
        self.bytes.reserve_exact(room - self.bytes.len());
        self.bytes.extend_from_slice(data);
        self.deadline += Duration::from_secs_f64(data.len() as f64 / self.intake.body_rate as f64);
        Ok(())
    }

    /// Reserves memory for `length` bytes, and for as many more if they may follow.
    async fn grow(&mut self, length: usize) -> Option<()> {
        let large = &self.intake.large;
        let wanted = length.max(2 * self.memory.bytes()).min(self.expected.max(length));
        if self.turn.is_none() {
            self.turn = Some(self.intake.turns.take(self.sender).await?);
            self.memory = large.reserve(wanted).await?;
            return Some(());
        }
        let more = wanted.min(large.total()).saturating_sub(self.memory.bytes());
        if more > 0 {
            self.memory.add(large.reserve(more).await?);
        }
        Some(())
    }
}

/// Returns the next frame of a body.
pub(super) async fn next_frame(body: &mut Body) -> Option<Result<Frame<Bytes>, axum::Error>> {
    poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}
