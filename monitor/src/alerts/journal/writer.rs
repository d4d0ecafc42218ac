//! The two threads that wait for the disk: one writes what is new, one syncs what is written.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use monitor_api::v1::Alert;
use tracing::{error, info, warn};
use ulid::Ulid;

use super::{
    Facts, GapReason, RESERVED, Recovered, Retention, SYNC_INTERVAL,
    directory::Active,
    head::{Head, HeadFile},
    record::{HEADER_BYTES, Header, encode},
    segment_path, unix_ms_now,
};
use crate::alerts::log::{Failure, Shared};

/// Pause before a disk that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often segments that are too old are looked for.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);

/// Most alerts of one write.
const BATCH_ALERTS_MAX: usize = 512;

/// A segment is ended after this part of the time that alerts are kept, so that they do not stay
/// much longer because nothing follows them.
const AGE_PER_SEGMENT: u32 = 8;

/// The threads of a log.
#[derive(Debug)]
pub(in crate::alerts) struct Writer {
    threads: Vec<JoinHandle<()>>,
}

impl Writer {
    /// Starts the threads; they end when the log is closed.
    ///
    /// # Errors
    ///
    /// The system's, for want of threads.
    pub(in crate::alerts) fn start(
        shared: &Arc<Shared>,
        directory: PathBuf,
        retention: Retention,
        boot: [u8; 16],
        recovered: Recovered,
    ) -> io::Result<Self> {
        let mut disk = Disk {
            shared: Arc::clone(shared),
            directory,
            retention,
            boot,
            head: None,
            active: recovered.active,
            others: recovered.others,
            memory_only_until: None,
            retained: Instant::now(),
        };
        // Before the first alert can come.
        let first = shared.kept().newest + 1;
        match recovered.head {
            Ok(head) => disk.head = Some(head),
            Err(error) => disk.fail(&error),
        }
        let syncing = Arc::clone(shared);
        let threads = vec![
            thread::Builder::new()
                .name("journal-sync".to_owned())
                .spawn(move || sync_loop(&syncing))?,
            thread::Builder::new()
                .name("journal-write".to_owned())
                .spawn(move || disk.run(first))?,
        ];
        Ok(Self { threads })
    }

    /// Waits until they have ended.
    pub(in crate::alerts) fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                error!("a thread of the journal panicked");
            }
        }
    }
}

enum Work {
    Write(Vec<Arc<Alert>>),
    Failed(io::Error),
    Retry,
    Retention,
    Stop,
}

/// What the writing thread owns.
struct Disk {
    shared: Arc<Shared>,
    directory: PathBuf,
    retention: Retention,
    boot: [u8; 16],
    head: Option<(HeadFile, Head)>,
    active: Option<Active>,
    others: VecDeque<(PathBuf, u64)>,
    /// The newest cursor that was given out without having been written, until it is.
    memory_only_until: Option<u64>,
    retained: Instant,
}

impl Disk {
    fn run(mut self, first: u64) {
        if self.active.is_none() && self.head.is_some() {
            // So that a journal is never without one.
            if let Err(error) = self.begin_segment(first) {
                self.fail(&error);
            }
        }
        loop {
            let done = match self.wait() {
                Work::Write(batch) => self.write(&batch),
                Work::Failed(error) => Err(error),
                Work::Retry => self.retry(),
                Work::Retention => self.retain(),
                Work::Stop => break,
            };
            if let Err(error) = done {
                self.fail(&error);
            }
        }
        if let Err(error) = self.close() {
            self.fail(&error);
        }
    }

    fn wait(&self) -> Work {
        let mut kept = self.shared.kept();
        loop {
            if let Some(error) = kept.sync_error.take() {
                return Work::Failed(error);
            }
            let pause = if let Some(failure) = &kept.failure {
                if kept.is_stopping {
                    return Work::Stop;
                }
                let pause = RETRY.saturating_sub(failure.tried.elapsed());
                if pause.is_zero() {
                    return Work::Retry;
                }
                pause
            } else {
                let batch = kept.unwritten(BATCH_ALERTS_MAX);
                if !batch.is_empty() {
                    return Work::Write(batch);
                }
                if kept.is_stopping {
                    return Work::Stop;
                }
                let pause = RETENTION_INTERVAL.saturating_sub(self.retained.elapsed());
                if pause.is_zero() {
                    return Work::Retention;
                }
                pause
            };
            kept = self.shared.wait_for_work(kept, pause);
        }
    }

    fn write(&mut self, batch: &[Arc<Alert>]) -> io::Result<()> {
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else {
            return Ok(());
        };
        self.reserve(last.cursor)?;
        let follows = self.shared.kept().written + 1 == first.cursor;
        let segment_bytes = self.retention.segment_bytes();
        if !follows
            || self
                .active
                .as_ref()
                .is_none_or(|active| active.bytes >= segment_bytes)
        {
            self.begin_segment(first.cursor)?;
            self.retain()?;
        }
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        for alert in batch {
            encode(&active.header, alert, &mut bytes);
        }
        (&*active.file).write_all(&bytes)?;
        active.bytes += bytes.len() as u64;
        if let Some((file, head)) = &mut self.head {
            head.newest = last.cursor;
            file.note(head)?;
        }
        let mut kept = self.shared.kept();
        kept.written = last.cursor;
        if let Some(facts) = kept.segments.back_mut() {
            facts.last = last.cursor;
            facts.bytes = active.bytes;
        }
        kept.unsynced(&active.file);
        self.shared.publish(&kept);
        drop(kept);
        if self
            .memory_only_until
            .is_some_and(|until| last.cursor >= until)
        {
            self.caught_up()?;
        }
        Ok(())
    }

    /// Writes down that cursors far beyond `cursor` may have been given out, before it is.
    fn reserve(&mut self, cursor: u64) -> io::Result<()> {
        let Some((_, head)) = &self.head else {
            return Err(io::Error::other("the journal has no head"));
        };
        if cursor + RESERVED / 2 <= head.reserved {
            return Ok(());
        }
        self.write_head(|head| head.reserved = cursor + RESERVED)
    }

    fn write_head(&mut self, change: impl FnOnce(&mut Head)) -> io::Result<()> {
        if let Some((file, head)) = &mut self.head {
            change(head);
            file.write(head)?;
        }
        Ok(())
    }

    /// Ends the segment that is written and begins one at `first`.
    fn begin_segment(&mut self, first: u64) -> io::Result<()> {
        let journal = self.shared.journal;
        let mut kept = self.shared.kept();
        let is_after_gap = first > kept.written + 1;
        let header = Header {
            journal,
            first,
            created_unix_ms: unix_ms_now(),
            gap: is_after_gap.then(|| kept.gap.take().unwrap_or(GapReason::NotWritten)),
        };
        drop(kept);
        let path = segment_path(&self.directory, journal, first);
        let made = self.create(&header, &path);
        let mut kept = self.shared.kept();
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                kept.gap = header.gap;
                drop(kept);
                // One that holds nothing would be taken for damage.
                let _ = fs::remove_file(&path);
                return Err(error);
            }
        };
        self.others.retain(|(other, _)| *other != path);
        kept.segments.retain(|facts| facts.path != path);
        kept.segments.push_back(Facts {
            path,
            first,
            last: first - 1,
            bytes: HEADER_BYTES as u64,
            created_unix_ms: header.created_unix_ms,
            gap: header.gap,
        });
        kept.written = first - 1;
        self.active = Some(Active {
            file: Arc::new(file),
            header,
            bytes: HEADER_BYTES as u64,
        });
        Ok(())
    }

    fn create(&self, header: &Header, path: &PathBuf) -> io::Result<File> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(&header.encode())?;
        // The name must last before what is in it is said to be durable.
        File::open(&self.directory)?.sync_all()?;
        Ok(file)
    }

    /// Goes on in memory: nothing waits for the disk any more until a retry succeeds.
    fn fail(&mut self, error: &io::Error) {
        self.active = None;
        let mut kept = self.shared.kept();
        let is_new = kept.failure.is_none();
        if is_new {
            error!(%error, directory = %self.directory.display(), "cannot write the journal: alerts are kept in memory alone; make room or mend the disk, it is tried again every second");
        }
        let since = kept
            .failure
            .as_ref()
            .map_or_else(Timestamp::now, |failure| failure.since);
        kept.failure = Some(Failure {
            since,
            tried: Instant::now(),
            error: error.to_string(),
        });
        // What was written and not synced may not be on disk; it is written again.
        for path in kept.roll_back() {
            let _ = fs::remove_file(path);
        }
        self.memory_only_until = Some(kept.newest);
        let newest = kept.newest;
        self.shared.publish(&kept);
        drop(kept);
        if is_new
            && let Err(error) = self.write_head(|head| {
                head.is_memory_only = true;
                head.reserved = newest + RESERVED;
            })
        {
            warn!(%error, "cannot note in the journal that alerts are in memory alone");
        }
    }

    /// Writes all that is not on disk, if it can be written now.
    fn retry(&mut self) -> io::Result<()> {
        let newest = self.shared.kept().newest;
        // Anew, since the directory itself may have been lost.
        fs::create_dir_all(&self.directory)?;
        let (mut file, _) = HeadFile::open(&self.directory.join("head"))?;
        let head = Head {
            journal: self.shared.journal,
            reserved: newest + RESERVED,
            newest: self.shared.kept().written,
            boot: self.boot,
            is_clean: false,
            is_memory_only: true,
        };
        file.write(&head)?;
        self.head = Some((file, head));
        let batch = self.shared.kept().unwritten(BATCH_ALERTS_MAX);
        let first = batch.first().map_or(newest + 1, |alert| alert.cursor);
        self.begin_segment(first)?;
        self.write(&batch)?;
        // To be sure before it is said that all is well.
        if let Some(active) = &self.active {
            active.file.sync_data()?;
        }
        let mut kept = self.shared.kept();
        kept.failure = None;
        let until = kept.newest;
        self.memory_only_until = (kept.written < until).then_some(until);
        let lost = kept.lost;
        self.shared.publish(&kept);
        drop(kept);
        info!(lost, "the journal is written again");
        if self.memory_only_until.is_none() {
            self.caught_up()?;
        }
        Ok(())
    }

    /// All that was given out from memory is on disk, or lost and told so.
    fn caught_up(&mut self) -> io::Result<()> {
        if self.shared.kept().failure.is_some() {
            return Ok(());
        }
        if let Some(active) = &self.active {
            active.file.sync_data()?;
        }
        self.memory_only_until = None;
        self.write_head(|head| head.is_memory_only = false)
    }

    /// Removes what is too old or too much.
    fn retain(&mut self) -> io::Result<()> {
        self.retained = Instant::now();
        let age_ms = i64::try_from(self.retention.age_max.as_millis()).unwrap_or(i64::MAX);
        let now = unix_ms_now();
        let (newest, is_ripe) = {
            let kept = self.shared.kept();
            let is_ripe = kept.segments.back().is_some_and(|facts| {
                let age = now.saturating_sub(facts.created_unix_ms);
                facts.last >= facts.first && age > age_ms / i64::from(AGE_PER_SEGMENT)
            });
            (kept.written, is_ripe)
        };
        if is_ripe && self.active.is_some() {
            self.begin_segment(newest + 1)?;
        }
        let mut removed = Vec::new();
        let mut kept = self.shared.kept();
        let mut bytes: u64 = kept.segments.iter().map(|facts| facts.bytes).sum();
        bytes += self.others.iter().map(|(_, bytes)| bytes).sum::<u64>();
        while let Some((path, size)) = self.others.front() {
            if bytes <= self.retention.bytes_max && !is_older(path, self.retention.age_max) {
                break;
            }
            bytes -= size;
            removed.extend(self.others.pop_front().map(|(path, _)| path));
        }
        while let (Some(oldest), Some(next)) = (kept.segments.front(), kept.segments.get(1)) {
            let is_old = now.saturating_sub(next.created_unix_ms) > age_ms;
            if bytes <= self.retention.bytes_max && !is_old {
                break;
            }
            bytes -= oldest.bytes;
            removed.extend(kept.segments.pop_front().map(|facts| facts.path));
        }
        drop(kept);
        for path in removed {
            if let Err(error) = fs::remove_file(&path) {
                warn!(%error, path = %path.display(), "cannot remove what the journal does not keep any longer");
            }
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        if self.shared.kept().failure.is_some() {
            self.retry()?;
            loop {
                let batch = self.shared.kept().unwritten(BATCH_ALERTS_MAX);
                if batch.is_empty() {
                    break;
                }
                self.write(&batch)?;
            }
        }
        let files = {
            let mut kept = self.shared.kept();
            // What the other thread has taken is on disk only when it says so.
            while kept.is_syncing {
                kept = self.shared.wait_for_work(kept, RETRY);
            }
            if let Some(error) = kept.sync_error.take() {
                return Err(error);
            }
            std::mem::take(&mut kept.unsynced)
        };
        for file in files {
            file.sync_data()?;
        }
        let mut kept = self.shared.kept();
        kept.durable = kept.written;
        let (written, newest) = (kept.written, kept.newest);
        self.shared.publish(&kept);
        drop(kept);
        // Cursors after a hole were given to nobody yet.
        let clean = newest.max(written);
        self.write_head(|head| {
            head.is_clean = clean == written;
            head.newest = written;
            head.reserved = clean;
        })
    }
}

pub(super) fn is_older(path: &PathBuf, age: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|found| found.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|since| since > age))
}

/// Syncs in groups until the log is closed.
fn sync_loop(shared: &Shared) {
    let mut began: Option<Instant> = None;
    loop {
        let mut kept = shared.kept();
        let files = loop {
            if kept.is_stopping {
                return;
            }
            let pause = began.map_or(Duration::ZERO, |began| {
                SYNC_INTERVAL.saturating_sub(began.elapsed())
            });
            if kept.unsynced.is_empty() {
                kept = shared.wait_for_written(kept, None);
            } else if pause.is_zero() {
                kept.is_syncing = true;
                break std::mem::take(&mut kept.unsynced);
            } else {
                kept = shared.wait_for_written(kept, Some(pause));
            }
        };
        let (target, generation) = (kept.written, kept.generation);
        drop(kept);
        began = Some(Instant::now());
        let synced = files.iter().try_for_each(|file| file.sync_data());
        let mut kept = shared.kept();
        kept.is_syncing = false;
        match synced {
            // What failed meanwhile is written again, and synced then.
            _ if kept.generation != generation => {}
            Ok(()) => {
                kept.durable = target;
                shared.publish(&kept);
            }
            Err(error) => kept.sync_error = Some(error),
        }
        drop(kept);
        shared.wake_writer();
    }
}

/// The kernel's id of this boot; zeros, which no boot has, if it does not tell.
pub fn boot_id() -> [u8; 16] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits = text.trim().replace('-', "");
    let mut id = [0; 16];
    if hex::decode_to_slice(digits, &mut id).is_err() {
        // Unlike any other, so that every stop counts as the node's.
        id = Ulid::new().to_bytes();
    }
    id
}
