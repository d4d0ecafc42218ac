//! Waiting for a state, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long anything may take that a test waits for. Long, since machines that run tests are
/// loaded; a test that passes never waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long killed processes may take to go.
pub const TEARDOWN: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(10);

/// A point in time after which waiting is a failure.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// `duration` from now.
    pub fn after(duration: Duration) -> Self {
        Self(Instant::now() + duration)
    }

    /// Whether it lies in the past.
    pub fn passed(self) -> bool {
        Instant::now() >= self.0
    }

    /// Time left, zero when passed.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// The pause between two looks at what is waited for.
    pub fn pause(self) {
        thread::sleep(INTERVAL.min(self.left()));
    }
}

/// Looks until `look` gives a value; fails at `patience`, naming what was waited for and the last
/// answer that was not yet it.
pub fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Deadline::after(patience);
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if deadline.passed() => {
                bail!("waited {} s for {what}: {error:#}", patience.as_secs())
            }
            Err(_) => deadline.pause(),
        }
    }
}
