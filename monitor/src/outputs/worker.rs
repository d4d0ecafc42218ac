//! One output at work.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use monitor_api::json::Missing;
use tokio::{runtime::Handle, sync::watch, time::timeout};
use tracing::{info, warn};

use super::{
    Account, CONSUMER_PREFIX, Place,
    batch::Batch,
    nats::{Outcome, Publisher},
    sink::Sink,
};
use crate::alerts::{AlertLog, AlertReader, Delivery, Next, Start, build::timestamp};

/// Bytes of lines that are written at once; one line more than that is held.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Pause after a batch, for more to come: it bounds how often the disk is synced.
const BATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Pause after the first attempt that failed; it doubles with each.
const RETRY_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Longest pause after an attempt that failed.
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// Whether to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stop {
    #[default]
    No,
    /// Once what there is has been written, or could not be.
    WhenDone,
    /// Without reading anything more: the runtime is about to end.
    Now,
}

/// The thread of an output.
pub(super) struct Worker {
    account: Arc<Account>,
    consumer: String,
    log: AlertLog,
    runtime: Handle,
    stop: watch::Receiver<Stop>,
    target: Target,
    has_failed_to_acknowledge: bool,
}

/// Where batches go.
enum Target {
    Lines(Sink),
    Nats(Box<Publisher>),
}

/// What came of a batch.
enum Delivered {
    Yes,
    /// To be read again after this cursor: it was there and is no longer.
    Lost {
        after: u64,
    },
    /// Told to stop before.
    No,
}

impl Worker {
    pub(super) fn new(
        account: Arc<Account>,
        log: AlertLog,
        runtime: Handle,
        stop: watch::Receiver<Stop>,
        (cluster, node): (&str, &str),
    ) -> Self {
        let settings = &account.settings;
        let target = match settings.place() {
            Place::File(path) => Target::Lines(Sink::new(path)),
            Place::Nats(nats) => {
                let kind = settings.kind;
                Target::Nats(Box::new(Publisher::new(
                    nats,
                    kind,
                    log.journal(),
                    cluster,
                    node,
                )))
            }
        };
        Self {
            consumer: format!("{CONSUMER_PREFIX}{}", settings.name),
            target,
            account,
            log,
            runtime,
            stop,
            has_failed_to_acknowledge: false,
        }
    }

    /// Writes until it is told to stop.
    pub(super) fn run(mut self) {
        let (mut reader, mut batch) = self.start();
        loop {
            let is_last = !self.fill(&mut reader, &mut batch);
            if *self.stop.borrow() == Stop::Now {
                return;
            }
            if !batch.is_empty() {
                match self.deliver(&batch) {
                    Delivered::Yes => {}
                    Delivered::Lost { after } => {
                        reader = self.reader(Start::After(after));
                        batch = Batch::default();
                        continue;
                    }
                    Delivered::No => return,
                }
            }
            if is_last {
                return;
            }
            let is_full = batch.lines().len() >= BATCH_BYTES_MAX;
            batch = Batch::default();
            if !is_full {
                self.pause(BATCH_INTERVAL);
            }
        }
    }

    /// Where the daemon before this one was, or the oldest.
    fn start(&self) -> (AlertReader, Batch) {
        let mut batch = Batch::default();
        let start = match self.log.consumers().get(&self.consumer) {
            None => Start::Oldest,
            Some(before) if before.journal == self.log.journal() => Start::After(before.cursor),
            Some(before) => {
                let reason = "journal_changed";
                self.missing(&mut batch, &before.journal, before.cursor + 1, None, reason);
                Start::Oldest
            }
        };
        let reader = self.reader(start);
        self.account.counts().cursor = reader.position();
        (reader, batch)
    }

    fn reader(&self, start: Start) -> AlertReader {
        let reader = self.log.subscribe(start, Delivery::Written);
        reader.unwrap_or_else(|error| {
            warn!(%error, output = self.account.settings.name, "starting at the oldest alert");
            let ever = prost_types::Timestamp::default();
            self.log.subscribe_at(ever, Delivery::Written)
        })
    }

    /// Waits for alerts and takes what there is; false once there are to be no more.
    fn fill(&mut self, reader: &mut AlertReader, batch: &mut Batch) -> bool {
        let mut stop = self.stop.clone();
        self.runtime.block_on(async {
            let goes_on = tokio::select! {
                // First, so that at the end all that is there is written.
                biased;
                next = reader.next() => {
                    self.add(batch, next);
                    true
                }
                () = stopped(&mut stop) => false,
            };
            while batch.lines().len() < BATCH_BYTES_MAX && *self.stop.borrow() != Stop::Now {
                match reader.try_next().await {
                    Some(next) => self.add(batch, next),
                    None => break,
                }
            }
            goes_on
        })
    }

    fn add(&self, batch: &mut Batch, next: Next) {
        match next {
            Next::Alert(alert) => {
                batch.push_alert(self.account.settings.kind, &alert);
            }
            Next::Expired { from, before } => {
                self.missing(batch, self.log.journal(), from, Some(before), "expired");
            }
            Next::Gap {
                from,
                before,
                reason,
            } => self.missing(batch, self.log.journal(), from, Some(before), reason.name()),
        }
    }

    fn missing(
        &self,
        batch: &mut Batch,
        journal: &str,
        from: u64,
        before: Option<u64>,
        reason: &str,
    ) {
        let missing = Missing {
            journal,
            from,
            before,
            reason,
            time: timestamp(Timestamp::now()),
        };
        batch.push_missing(self.account.settings.kind, &missing);
    }

    /// Tries until it is written and acknowledged.
    fn deliver(&mut self, batch: &Batch) -> Delivered {
        let mut pause = RETRY_INTERVAL_MIN;
        loop {
            match self.write(batch) {
                Ok(Outcome::Stored { too_long }) => {
                    self.succeeded(batch, too_long);
                    return Delivered::Yes;
                }
                Ok(Outcome::Lost { after }) => {
                    let output = &self.account.settings.name;
                    warn!(
                        output,
                        after, "what was written is no longer there; writing it again"
                    );
                    return Delivered::Lost { after };
                }
                Err(error) => self.failed(&error),
            }
            if !self.pause(pause) {
                return Delivered::No;
            }
            pause = pause.saturating_mul(2).min(RETRY_INTERVAL_MAX);
        }
    }

    fn write(&mut self, batch: &Batch) -> Result<Outcome, String> {
        match &mut self.target {
            Target::Lines(sink) => {
                let written = sink.write(batch.lines().as_bytes());
                written.map_err(|error| error.to_string())?;
                Ok(Outcome::Stored { too_long: 0 })
            }
            Target::Nats(publisher) => {
                let mut stop = self.stop.clone();
                let newest = self.log.newest();
                self.runtime.block_on(async {
                    tokio::select! {
                        written = publisher.write(batch, newest) => {
                            written.map_err(|error| error.to_string())
                        }
                        _ = stop.wait_for(|stop| *stop == Stop::Now) => {
                            Err("the daemon ends".to_owned())
                        }
                    }
                })
            }
        }
    }

    fn failed(&self, error: &str) {
        let path = self.account.settings.place();
        let mut counts = self.account.counts();
        counts.failures += 1;
        let since = counts.failing.take().map(|(since, _)| since);
        if since.is_none() {
            let output = &self.account.settings.name;
            warn!(error, output, %path, "cannot write alerts; trying again");
        }
        let since = since.unwrap_or_else(Timestamp::now);
        counts.failing = Some((since, format!("cannot write {path}: {error}")));
    }

    fn succeeded(&mut self, batch: &Batch, too_long: u64) {
        let output = &self.account.settings.name;
        let mut counts = self.account.counts();
        counts.written += batch.alerts.saturating_sub(too_long);
        counts.missing += batch.missing + too_long;
        counts.cursor = counts.cursor.max(batch.cursor);
        let has_failed = counts.failing.take().is_some();
        drop(counts);
        if has_failed {
            info!(output, "alerts are written again");
        }
        let consumers = self.log.consumers();
        let kept = consumers.acknowledge(&self.consumer, self.log.journal(), batch.cursor);
        if let Err(error) = &kept
            && !self.has_failed_to_acknowledge
        {
            warn!(%error, output, "how far it has come is not kept: the next daemon writes all again");
        }
        self.has_failed_to_acknowledge = kept.is_err();
    }

    /// Waits; false at once when it is told to stop.
    fn pause(&mut self, time: Duration) -> bool {
        let stopped = stopped(&mut self.stop);
        let waited = self
            .runtime
            .block_on(async { timeout(time, stopped).await });
        waited.is_err()
    }
}

async fn stopped(stop: &mut watch::Receiver<Stop>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stop.wait_for(|stop| *stop != Stop::No).await;
}
