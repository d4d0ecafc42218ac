//! The newest alerts for all streams: each encoded once, in chunks that the streams share.
//!
//! One task reads the log and wakes the streams, so that what a stream costs is a wake and a piece of
//! shared memory for each chunk, not an encoding for each alert. A stream that finds its place in no
//! chunk reads the log by itself until it does.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use monitor_api::v1::{Alert, AlertsResponse, alerts_response::Response};
use tokio::{sync::watch, time::sleep};

use super::frames::frame;
use crate::alerts::{AlertLog, AlertReader, Delivery, Next, Start};

/// Bytes after which a chunk is full. It can be longer by one alert.
pub(super) const CHUNK_BYTES_MAX: usize = 32 << 10;

/// Chunks that streams are woken for at once: more than a node writes while they take the last.
const CHUNKS_AT_ONCE: usize = 16;

/// Most bytes of the chunks that are kept: some seconds of as many alerts as a node can have.
const RING_BYTES_MAX: usize = 16 << 20;

/// What waking one stream costs, and its client. Chunks are not made sooner one after the other
/// than the streams can take them: then they take more alerts at once, instead of falling behind.
const COST_OF_STREAM: Duration = Duration::from_micros(25);

/// Less than this is not waited for; the timer has no finer steps.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// The newest alerts for all streams.
#[derive(Debug)]
pub(super) struct Fanout {
    log: AlertLog,
    ring: Mutex<Ring>,
    /// The newest cursor that streams are woken for.
    newest: watch::Sender<u64>,
}

/// Chunks in order; there may be holes between them.
#[derive(Debug, Default)]
struct Ring {
    chunks: VecDeque<Arc<Chunk>>,
    bytes: usize,
}

/// Alerts whose cursors follow one after the other.
#[derive(Debug, Default)]
struct Chunk {
    /// The cursor of the first.
    first: u64,
    bytes: Bytes,
    /// With the end of each in `bytes`.
    alerts: Vec<(Arc<Alert>, usize)>,
}

/// A part of a chunk.
#[derive(Clone, Debug)]
pub(super) struct Part {
    chunk: Arc<Chunk>,
    /// Of the chunk's alerts.
    range: Range<usize>,
}

impl Part {
    pub(super) fn alerts(&self) -> impl Iterator<Item = &Arc<Alert>> {
        let alerts = self.chunk.alerts.get(self.range.clone());
        alerts.unwrap_or_default().iter().map(|(alert, _)| alert)
    }

    /// The messages of these of its alerts.
    pub(super) fn bytes(&self, range: Range<usize>) -> Bytes {
        let end = |count: usize| {
            let last = (self.range.start + count).checked_sub(1);
            let last = last.and_then(|index| self.chunk.alerts.get(index));
            last.map_or(0, |(_, end)| *end)
        };
        self.chunk.bytes.slice(end(range.start)..end(range.end))
    }
}

impl Ring {
    fn push(&mut self, chunk: Chunk) {
        self.bytes += chunk.bytes.len();
        self.chunks.push_back(Arc::new(chunk));
        while self.bytes > RING_BYTES_MAX
            && let Some(gone) = self.chunks.pop_front()
        {
            self.bytes -= gone.bytes.len();
        }
    }
}

impl Fanout {
    pub(super) fn new(log: AlertLog) -> Self {
        Self {
            newest: watch::Sender::new(log.newest()),
            ring: Mutex::default(),
            log,
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest cursor that a stream should look for.
    pub(super) fn upto(&self, delivery: Delivery) -> watch::Receiver<u64> {
        match delivery {
            Delivery::Written => self.newest.subscribe(),
            // Synced in groups, so these are woken seldom enough.
            Delivery::Durable => self.log.durable_cursor(),
        }
    }

    /// Alerts from `cursor` on, none after `limit`.
    pub(super) fn find(&self, cursor: u64, limit: u64) -> Option<Part> {
        let ring = self.ring();
        let after = ring.chunks.partition_point(|chunk| chunk.first <= cursor);
        let chunk = Arc::clone(ring.chunks.get(after.checked_sub(1)?)?);
        drop(ring);
        let start = usize::try_from(cursor - chunk.first).ok()?;
        let wanted = usize::try_from((limit + 1).saturating_sub(chunk.first)).ok()?;
        let range = start..wanted.min(chunk.alerts.len());
        (range.start < range.end).then_some(Part { chunk, range })
    }

    /// Makes chunks for as many streams as `streams` says, without end.
    pub(super) async fn run(&self, streams: impl Fn() -> usize) {
        let Ok(mut reader) = self
            .log
            .subscribe(Start::After(*self.newest.borrow()), Delivery::Written)
        else {
            return;
        };
        loop {
            let mut next = Some(reader.next().await);
            let streams = streams();
            if streams == 0 {
                *self.ring() = Ring::default();
            } else {
                let mut left = CHUNKS_AT_ONCE;
                while let Some(first) = next.take() {
                    let chunk = chunk(first, &mut reader).await;
                    left -= 1;
                    if left > 0 && chunk.bytes.len() >= CHUNK_BYTES_MAX {
                        next = reader.try_next().await;
                    }
                    if !chunk.alerts.is_empty() {
                        self.ring().push(chunk);
                    }
                }
            }
            self.newest.send_replace(reader.position());
            let pause = COST_OF_STREAM * u32::try_from(streams).unwrap_or(u32::MAX);
            if pause >= WAIT_MIN {
                sleep(pause).await;
            }
        }
    }
}

/// What there is from `next` on, up to the first alert that is missing: streams come upon that by
/// themselves.
async fn chunk(next: Next, reader: &mut AlertReader) -> Chunk {
    let mut chunk = Chunk::default();
    let mut bytes = Vec::new();
    let mut next = Some(next);
    while let Some(Next::Alert(alert)) = next {
        if chunk.alerts.is_empty() {
            chunk.first = alert.cursor;
        }
        frame_alert(Arc::clone(&alert), &mut bytes);
        chunk.alerts.push((alert, bytes.len()));
        if bytes.len() >= CHUNK_BYTES_MAX {
            break;
        }
        next = reader.try_next().await;
    }
    chunk.bytes = bytes.into();
    chunk
}

pub(super) fn frame_alert(alert: Arc<Alert>, into: &mut Vec<u8>) {
    let alert = Box::new(Arc::unwrap_or_clone(alert));
    let response = Some(Response::Alert(alert));
    frame(&AlertsResponse { response }, into);
}

/// Where the alerts of a stream come from.
pub(super) struct Source {
    /// Holds the stream's place.
    pub(super) reader: AlertReader,
    upto: watch::Receiver<u64>,
    fanout: Arc<Fanout>,
}

/// What a stream goes on with.
pub(super) enum Taken {
    /// Encoded for all streams; the place is still before it.
    Part(Part),
    /// Read by this stream alone; the place is behind it.
    Next(Next),
}

impl Source {
    /// From where `reader` stands, as far as `delivery` lets it.
    pub(super) fn new(reader: AlertReader, delivery: Delivery, fanout: &Arc<Fanout>) -> Self {
        Self {
            reader,
            upto: fanout.upto(delivery),
            fanout: Arc::clone(fanout),
        }
    }

    /// Waits for what comes next. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Taken {
        loop {
            // Marked as seen before looking, so that what comes after the look wakes.
            self.upto.mark_unchanged();
            let limit = *self.upto.borrow();
            if self.reader.position() < limit
                && let Some(taken) = self.upto(limit).await
            {
                return taken;
            }
            // The sender lives as long as `self.fanout`, so this cannot fail.
            let _ = self.upto.changed().await;
        }
    }

    /// What is there when the daemon stops, whether or not streams were woken for it.
    pub(super) async fn rest(&mut self) -> Option<Taken> {
        let limit = *self.upto.borrow();
        self.upto(limit).await
    }

    async fn upto(&mut self, limit: u64) -> Option<Taken> {
        let next = self.reader.position() + 1;
        if !self.reader.looks_for_time()
            && let Some(part) = self.fanout.find(next, limit)
        {
            return Some(Taken::Part(part));
        }
        self.reader.try_next().await.map(Taken::Next)
    }
}
