//! The thread that empties the ring buffer. It never judges and never waits for a judge longer
//! than the channel is full: then the ring fills, and the kernel side counts what did not fit.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use aya::maps::{MapData, RingBuf};
use monitor_common::WAKE_INTERVAL_MS;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;

use super::{
    decode,
    event::Event,
    hold::{self, Holder},
    link,
};

/// Records read before the held files are joined to them.
const BATCH: usize = 256;
/// How long the thread sleeps at most before it looks at fanotify's queue and at `stop`.
const PATIENCE_MS: u16 = 100;
/// The same after something was read: for so long, records of plain opens wake nobody.
const LINGER_MS: u16 = WAKE_INTERVAL_MS + 1;

#[derive(Default)]
pub(super) struct Counters {
    pub(super) received: AtomicU64,
    pub(super) undecodable: AtomicU64,
}

/// The running thread; stops when dropped.
pub(super) struct Reader {
    pub(super) counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    pub(super) fn start(
        records: RingBuf<MapData>,
        holder: Arc<Holder>,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("sensor".to_owned()).spawn({
            let (counters, stop) = (Arc::clone(&counters), Arc::clone(&stop));
            move || read(records, &holder, &events, &counters, &stop)
        })?;
        Ok(Self {
            counters,
            stop,
            thread: Some(thread),
        })
    }
}

impl Reader {
    /// Returns when all that was submitted before has been read.
    pub(super) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reads the ring buffer had panicked");
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop();
    }
}

fn read(
    mut records: RingBuf<MapData>,
    holder: &Holder,
    events: &mpsc::Sender<Event>,
    counters: &Counters,
    stop: &AtomicBool,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut patience = PATIENCE_MS;
    loop {
        // Before the batch, so that what was submitted before the stop is still read.
        let stopping = stop.load(Ordering::Relaxed);
        take_batch(&mut records, &mut batch, counters);
        // After the ring: see `hold`.
        holder.drain();
        if batch.is_empty() {
            if stopping {
                return;
            }
            wait(&records, patience);
            patience = PATIENCE_MS;
            continue;
        }
        patience = LINGER_MS;
        for mut event in batch.drain(..) {
            hold_files_of(&mut event, holder);
            if events.blocking_send(event).is_err() {
                return;
            }
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
        Event::Source(_) | Event::Fork(_) | Event::Exit(_) | Event::Connect(_) => {}
    }
}

fn take_batch(records: &mut RingBuf<MapData>, batch: &mut Vec<Event>, counters: &Counters) {
    while batch.len() < BATCH {
        let Some(record) = records.next() else { return };
        counters.received.fetch_add(1, Ordering::Relaxed);
        match decode::decode(&record) {
            Ok(event) => batch.push(event),
            Err(error) => {
                counters.undecodable.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "a record from the kernel was not readable");
            }
        }
    }
}

fn wait(records: &RingBuf<MapData>, patience: u16) {
    let mut ready = [PollFd::new(records.as_fd(), PollFlags::POLLIN)];
    if let Err(error) = poll(&mut ready, PollTimeout::from(patience))
        && error != nix::errno::Errno::EINTR
    {
        tracing::error!(%error, "cannot wait for the ring buffer");
    }
}
