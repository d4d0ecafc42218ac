//! The thread that empties the ring buffer. It never judges and never waits for a judge longer
//! than the channel is full: then the ring fills, and the kernel side counts what did not fit.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use monitor_common::{RING_HELD_BYTES_MAX, WAKE_INTERVAL_MS};
use tokio::sync::mpsc;

use super::{
    decode,
    event::{Event, FileUse},
    hold::{self, Holder},
    link,
    ring::Ring,
    unsettled::{Progress, Receipt, Unsettled},
};

/// Records read before the held files are joined to them.
const BATCH: usize = 256;
/// How long the thread sleeps at most before it looks at fanotify's queue and at `stop`.
const PATIENCE_MS: u16 = 100;
/// The same after something was read: for so long, records of plain opens wake nobody.
const LINGER_MS: u16 = WAKE_INTERVAL_MS + 1;
/// The same when as much is held in the ring as may be.
const FULL_MS: u16 = 1;

#[derive(Default)]
pub(super) struct Counters {
    pub(super) received: AtomicU64,
    pub(super) undecodable: AtomicU64,
    /// Read from rings of other versions.
    pub(super) superseded: AtomicU64,
    pub(super) progress: Arc<Progress>,
}

/// Where records come from.
pub(super) struct Rings {
    /// The ring of the hooks in force.
    pub(super) own: Ring,
    /// What hooks of other versions left, to be read first, up to when the new ones were attached.
    pub(super) superseded: Vec<Ring>,
    /// When that was, in nanoseconds since boot.
    pub(super) attached_boot_ns: u64,
    /// The hooks go on when the reader ends.
    pub(super) is_pinned: bool,
}

/// The running thread; stops when dropped.
pub(super) struct Reader {
    pub(super) counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Read>>,
}

impl Reader {
    pub(super) fn start(
        rings: Rings,
        holder: Arc<Holder>,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("sensor".to_owned()).spawn({
            let (counters, stop) = (Arc::clone(&counters), Arc::clone(&stop));
            move || read(rings, &holder, &events, &counters, &stop)
        })?;
        Ok(Self {
            counters,
            stop,
            thread: Some(thread),
        })
    }

    /// Ends it; what is given lets go of what has been judged when it is dropped.
    pub(super) fn stop(&mut self) -> Option<Read> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take()?.join();
        if ended.is_err() {
            tracing::error!("the thread that reads the ring buffer had panicked");
        }
        ended.ok()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The ring, and which of its records were read and not judged yet. Dropping it lets go of all that
/// were judged.
pub(super) struct Read {
    ring: Ring,
    unsettled: Unsettled,
    /// Without pins there is no successor to leave anything to.
    is_pinned: bool,
    counters: Arc<Counters>,
}

impl Read {
    fn new(ring: Ring, is_pinned: bool, counters: Arc<Counters>) -> Self {
        Self {
            is_pinned,
            unsettled: Unsettled::new(ring.let_go_mark()),
            ring,
            counters,
        }
    }

    /// Reads what fits beside what is held, or, at the end of the hooks, all.
    fn take_batch(&mut self, batch: &mut Vec<Event>, stopping: bool) {
        while batch.len() < BATCH && (stopping || !self.is_full()) {
            let Some(record) = self.ring.next() else {
                return;
            };
            self.counters.received.fetch_add(1, Ordering::Relaxed);
            let mut event = decoded(record, &self.counters);
            let end = self.ring.read_mark();
            let hook = event.as_ref().map(Event::kind);
            let used = event.as_mut().and_then(Event::used_mut);
            let receipt = hook.zip(used).map(|(hook, used)| {
                used.receipt = Receipt::new(hook, end, &self.counters.progress);
                &used.receipt
            });
            self.unsettled.read(end, receipt);
            batch.extend(event);
        }
    }

    fn is_full(&self) -> bool {
        let (read, let_go) = (self.ring.read_mark(), self.ring.let_go_mark());
        read.position - let_go.position >= RING_HELD_BYTES_MAX
    }

    /// Lets go of what is settled.
    fn let_go(&mut self) {
        let settled = self.unsettled.settled();
        if let Err(error) = self.ring.let_go(settled) {
            tracing::error!(%error, "cannot let go of records in the ring buffer");
            return;
        }
        // Only now, so that nothing counts as told later that does not count as untold yet.
        self.unsettled.let_go();
        let read = self.ring.read_mark();
        self.counters.progress.set(read, settled);
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        self.let_go();
    }
}

fn read(
    rings: Rings,
    holder: &Holder,
    events: &mpsc::Sender<Event>,
    counters: &Arc<Counters>,
    stop: &AtomicBool,
) -> Read {
    let mut read = Read::new(rings.own, rings.is_pinned, Arc::clone(counters));
    let mut batch = Vec::with_capacity(BATCH);
    for ring in rings.superseded {
        if !read_superseded(ring, rings.attached_boot_ns, holder, events, counters) {
            return read;
        }
    }
    let mut patience = PATIENCE_MS;
    loop {
        // Before the batch, so that what was submitted before the stop is still read; of hooks that
        // go on there is no end.
        let stopping = stop.load(Ordering::Relaxed);
        if stopping && read.is_pinned {
            return read;
        }
        read.let_go();
        read.take_batch(&mut batch, stopping);
        // After the ring: see `hold`.
        holder.drain();
        if batch.is_empty() {
            if stopping {
                return read;
            }
            let patience_ms = if read.is_full() { FULL_MS } else { patience };
            if let Err(error) = read.ring.wait(patience_ms) {
                tracing::error!(%error, "cannot wait for the ring buffer");
            }
            patience = PATIENCE_MS;
            continue;
        }
        patience = LINGER_MS;
        for mut event in batch.drain(..) {
            hold_files_of(&mut event, holder);
            if events.blocking_send(event).is_err() {
                return read;
            }
        }
    }
}

/// Reads what hooks saw that are no longer attached; false if nobody takes it.
fn read_superseded(
    mut ring: Ring,
    until_boot_ns: u64,
    holder: &Holder,
    events: &mpsc::Sender<Event>,
    counters: &Counters,
) -> bool {
    while let Some(record) = ring.next() {
        let event = decoded(record, counters);
        // The new hooks saw it as well.
        let is_seen_again = |used: &FileUse| used.time_boot_ns >= until_boot_ns;
        let used = event.as_ref().and_then(Event::used);
        if used.is_some_and(is_seen_again) {
            continue;
        }
        counters.superseded.fetch_add(1, Ordering::Relaxed);
        let Some(mut event) = event else { continue };
        hold_files_of(&mut event, holder);
        if events.blocking_send(event).is_err() {
            return false;
        }
    }
    true
}

fn decoded(record: &[u8], counters: &Counters) -> Option<Event> {
    match decode::decode(record) {
        Ok(event) => Some(event),
        Err(error) => {
            counters.undecodable.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%error, "a record from the kernel was not readable");
            None
        }
    }
}

/// Takes hold of the files that became code, before they go.
fn hold_files_of(event: &mut Event, holder: &Holder) {
    match event {
        Event::Exec(exec) => {
            exec.held = holder.take(exec);
            exec.program = hold::program(exec);
        }
        Event::Code(code) if code.is_anonymous => {
            code.libraries = link::mapped(code.used.process.pid);
        }
        Event::Code(code) => code.held = holder.mapped(code),
        Event::Open(open) if open.is_interpreted => open.held = holder.opened(open),
        Event::Open(_) => {}
        Event::Source(_)
        | Event::Fork(_)
        | Event::Exit(_)
        | Event::Connect(_)
        | Event::Answer(_) => {}
    }
}
