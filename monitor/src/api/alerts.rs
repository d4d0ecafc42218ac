//! The conversation about alerts.

use std::{future::pending, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use monitor_api::v1::{
    Alert, AlertsRequest, AlertsResponse,
    alerts_request::{self, start::Position},
    alerts_response::{Acknowledged, Expired, Gap, Heartbeat, JournalChanged, Response},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch},
    time::{Instant, sleep_until},
};
use tonic::{Status, Streaming};

use super::{
    HEARTBEAT_INTERVAL,
    fanout::{CHUNK_BYTES_MAX, Fanout, Part, Source, Taken, frame_alert},
    frames::frame,
    server::stopped,
    service::within,
};
use crate::{
    alerts::{
        AlertLog, Delivery, Filter, Next, Start,
        consumers::{NAME_BYTES_MAX, is_name},
    },
    audit::{Audit, Call, Outcome, Who},
};

/// Alerts that are looked at before other tasks have their turn.
pub(super) const SCANNED_AT_ONCE: usize = 64;

/// Least time between heartbeats that say how far a filter has looked.
const POSITION_INTERVAL: Duration = Duration::from_secs(1);

/// One conversation about alerts.
pub(super) struct AlertStream {
    pub(super) log: AlertLog,
    pub(super) audit: Audit,
    pub(super) who: Who,
    pub(super) fanout: Arc<Fanout>,
    pub(super) requests: Streaming<AlertsRequest>,
    /// Whole frames.
    pub(super) responses: mpsc::Sender<Result<Bytes, Status>>,
    pub(super) shutdown: watch::Receiver<bool>,
    /// Held for as long as it lasts, by those who call.
    pub(super) _permit: Option<OwnedSemaphorePermit>,
}

/// What the first request asked for, and how far it is.
struct Wanted {
    source: Source,
    filter: Option<Filter>,
    consumer: Option<Consumer>,
    /// Alerts that may be sent; `None` is no limit.
    credits: Option<u64>,
    journal_changed: Option<JournalChanged>,
    /// Alerts were not wanted since the last message.
    skipped: usize,
    heard: Instant,
}

/// The consumer that reads.
struct Consumer {
    name: String,
    /// Ends when another stream reads under the name.
    alone: watch::Receiver<()>,
    saved: watch::Receiver<u64>,
    /// The number of the last acknowledgement that is not told as kept, and its cursor.
    pending: Option<(u64, u64)>,
    has_acknowledged: bool,
}

impl Consumer {
    /// Waits until the pending acknowledgement is kept, or another stream reads under the name.
    async fn event(&mut self) -> Event {
        let number = self.pending.map_or(u64::MAX, |(number, _)| number);
        tokio::select! {
            // It ends with its sender, and says nothing before.
            _ = self.alone.changed() => Event::Superseded,
            Ok(_) = self.saved.wait_for(|saved| *saved >= number) => {
                let (_, cursor) = self.pending.take().unwrap_or_default();
                Event::Kept(cursor)
            }
        }
    }
}

/// What a conversation goes on with.
enum Event {
    Taken(Taken),
    Request(Option<AlertsRequest>),
    Kept(u64),
    Superseded,
    Heartbeat,
    /// Something was sent since the timer was set.
    Early,
    Gone,
    Stopping,
}

impl AlertStream {
    pub(super) async fn run(mut self) {
        if let Err(status) = self.converse().await {
            // A client that is gone does not need to be told why.
            let _ = self.responses.send(Err(status)).await;
        }
    }

    /// Until either side ends it.
    pub(super) async fn converse(&mut self) -> Result<(), Status> {
        let mut wanted = self.start().await?;
        let mut may_request = true;
        let mut first = vec![self.heartbeat(&wanted)];
        first.extend(wanted.journal_changed.take().map(Response::JournalChanged));
        for response in first {
            if !self.send(response).await {
                return Ok(());
            }
        }
        // Kept from one alert to the next, since two hundred streams wait for them.
        let mut shutdown = self.shutdown.clone();
        let mut stopping = pin!(stopped(&mut shutdown));
        let mut memory_only = pin!(changed(self.log.memory_only()));
        let mut due = pin!(sleep_until(wanted.heartbeat_due()));
        let responses = self.responses.clone();
        let mut gone = pin!(responses.closed());
        loop {
            let may_send = wanted.credits != Some(0);
            let is_stopping = *self.shutdown.borrow() || self.shutdown.has_changed().is_err();
            let event = if is_stopping {
                match wanted.source.rest().await {
                    Some(taken) if may_send => Event::Taken(taken),
                    _ => return Err(Status::unavailable("the daemon is stopping")),
                }
            } else {
                let at = wanted.heartbeat_due();
                if at < due.deadline() {
                    due.as_mut().reset(at);
                }
                tokio::select! {
                    taken = wanted.source.next(), if may_send => Event::Taken(taken),
                    request = self.requests.message(), if may_request => Event::Request(request?),
                    event = consumer_event(&mut wanted.consumer) => event,
                    receiver = memory_only.as_mut() => {
                        memory_only.set(changed(receiver));
                        Event::Heartbeat
                    }
                    () = due.as_mut() => {
                        due.as_mut().reset(at);
                        if Instant::now() < at { Event::Early } else { Event::Heartbeat }
                    }
                    () = gone.as_mut() => Event::Gone,
                    () = stopping.as_mut() => Event::Stopping,
                }
            };
            let response = match event {
                Event::Taken(taken) => {
                    let pieces = match taken {
                        Taken::Part(part) => wanted.pieces(&part)?,
                        Taken::Next(next) => wanted.encode(next).await?,
                    };
                    if pieces.is_empty() {
                        tokio::task::yield_now().await;
                    }
                    for piece in pieces {
                        wanted.heard = Instant::now();
                        if self.responses.send(Ok(piece)).await.is_err() {
                            return Ok(());
                        }
                    }
                    continue;
                }
                Event::Request(Some(request)) => {
                    self.heed(&mut wanted, &request).await?;
                    continue;
                }
                // The client has said all that it wants; it goes on reading.
                Event::Request(None) => {
                    may_request = false;
                    continue;
                }
                Event::Kept(cursor) => Response::Acknowledged(Acknowledged { cursor }),
                Event::Superseded => {
                    return Err(Status::aborted(
                        "another stream reads under this consumer's name now",
                    ));
                }
                Event::Heartbeat => {
                    wanted.skipped = 0;
                    self.heartbeat(&wanted)
                }
                Event::Gone => return Ok(()),
                Event::Early | Event::Stopping => continue,
            };
            wanted.heard = Instant::now();
            if !self.send(response).await {
                return Ok(());
            }
        }
    }

    /// What the first request asks for.
    async fn start(&mut self) -> Result<Wanted, Status> {
        let request = tokio::select! {
            request = within(self.requests.message()) => request??,
            () = stopped(&mut self.shutdown) => {
                return Err(Status::unavailable("the daemon is stopping"));
            }
        };
        let start = request
            .and_then(|request| request.start)
            .unwrap_or_default();
        let consumer = self.consumer(&start)?;
        let filter = filter(&start.filter)?;
        let delivery = if start.durable {
            Delivery::Durable
        } else {
            Delivery::Written
        };
        let (journal, position) = self.position(&start)?;
        let is_of_another = !journal.is_empty() && journal != self.log.journal();
        let reader = match position {
            _ if is_of_another => self.log.subscribe(Start::Oldest, delivery),
            Place::At(start) => self.log.subscribe(start, delivery),
            Place::Time(time) => Ok(self.log.subscribe_at(time, delivery)),
        };
        let reader = reader.map_err(|error| {
            Status::out_of_range(format!(
                "{error}; it is of another journal: start at the oldest"
            ))
        })?;
        Ok(Wanted {
            source: Source::new(reader, delivery, &self.fanout),
            filter,
            consumer,
            credits: start.credits,
            journal_changed: is_of_another.then(|| JournalChanged {
                from: journal,
                to: self.log.journal().to_owned(),
            }),
            skipped: 0,
            heard: Instant::now(),
        })
    }

    fn consumer(&self, start: &alerts_request::Start) -> Result<Option<Consumer>, Status> {
        let name = &start.consumer;
        if name.is_empty() {
            return Ok(None);
        }
        if !is_name(name) {
            return Err(Status::invalid_argument(format!(
                "consumer must have at most {NAME_BYTES_MAX} letters, digits, `.`, `_` and `-`"
            )));
        }
        let consumers = self.log.consumers();
        Ok(Some(Consumer {
            alone: consumers.begin(name),
            saved: consumers.saved(),
            name: name.clone(),
            pending: None,
            has_acknowledged: false,
        }))
    }

    /// The journal and the place in it that the client means.
    fn position(&self, start: &alerts_request::Start) -> Result<(String, Place), Status> {
        let place = match &start.position {
            Some(Position::After(cursor)) => Place::At(Start::After(*cursor)),
            Some(Position::Oldest(_)) => Place::At(Start::Oldest),
            Some(Position::Now(_)) => Place::At(Start::Now),
            Some(Position::Last(count)) => Place::At(Start::Last(*count)),
            Some(Position::Time(time)) => Place::Time(*time),
            Some(Position::Acknowledged(_)) if start.consumer.is_empty() => {
                return Err(Status::invalid_argument(
                    "only a named consumer has acknowledged something: give `consumer`",
                ));
            }
            Some(Position::Acknowledged(_)) => {
                let before = self.log.consumers().get(&start.consumer);
                return Ok(before.map_or(
                    (start.journal.clone(), Place::At(Start::Oldest)),
                    |before| (before.journal, Place::At(Start::After(before.cursor))),
                ));
            }
            None => {
                return Err(Status::invalid_argument(
                    "the first request must say where to start: after, oldest, now, last, time or acknowledged",
                ));
            }
        };
        Ok((start.journal.clone(), place))
    }

    /// Does what a further request says.
    async fn heed(&self, wanted: &mut Wanted, request: &AlertsRequest) -> Result<(), Status> {
        if request.start.is_some() {
            return Err(Status::invalid_argument(
                "only the first request of an alert stream says where to start",
            ));
        }
        if request.credits > 0 {
            let credits = wanted.credits.as_mut().ok_or_else(|| {
                Status::invalid_argument("credits are only counted if the first request has some")
            })?;
            *credits = credits.saturating_add(request.credits);
        }
        if request.acknowledge > 0 {
            let position = wanted.source.reader.position();
            let consumer = wanted.consumer.as_mut().ok_or_else(|| {
                Status::invalid_argument("only a named consumer acknowledges: give `consumer`")
            })?;
            if request.acknowledge > position {
                return Err(Status::out_of_range(format!(
                    "cursor {} was not sent yet; the stream is at {position}",
                    request.acknowledge
                )));
            }
            let number = self.acknowledge(consumer, request.acknowledge).await?;
            consumer.pending = Some((number, request.acknowledge));
        }
        Ok(())
    }

    /// Keeps an acknowledgement. A stream's first has an audit record; it would be too many of them
    /// with the others, which tell nothing more of who reads under the name.
    async fn acknowledge(&self, consumer: &mut Consumer, cursor: u64) -> Result<u64, Status> {
        if consumer.has_acknowledged {
            return keep(&self.log, &consumer.name, cursor);
        }
        let call = Call {
            method: "Alerts",
            object: &format!("consumer/{}", consumer.name),
            detail: &format!("the stream's first acknowledgement: cursor {cursor}"),
        };
        let number = if self.log.consumers().get(&consumer.name).is_none() {
            let detail = &format!("a new name; {}", call.detail);
            let call = Call { detail, ..call };
            let (log, name) = (self.log.clone(), consumer.name.clone());
            let change = async move { keep(&log, &name, cursor) };
            self.audit.change(&self.who, call, change).await?
        } else {
            let number = keep(&self.log, &consumer.name, cursor)?;
            self.audit.note(&self.who, call, Outcome::Done).await;
            number
        };
        consumer.has_acknowledged = true;
        Ok(number)
    }

    fn heartbeat(&self, wanted: &Wanted) -> Response {
        let memory_only = self.log.summary().memory_only;
        Response::Heartbeat(Heartbeat {
            journal: self.log.journal().to_owned(),
            cursor: self.log.newest(),
            durable_cursor: self.log.durable(),
            position: wanted.source.reader.position(),
            memory_only: memory_only.map_or(String::new(), |(_, reason)| reason),
            filter_failed: wanted.filter.as_ref().map_or(0, Filter::failed),
        })
    }

    /// Waits for the client to make room; false if it is gone.
    async fn send(&self, response: Response) -> bool {
        let mut piece = Vec::new();
        let response = Some(response);
        frame(&AlertsResponse { response }, &mut piece);
        self.responses.send(Ok(piece.into())).await.is_ok()
    }
}

/// Gives the acknowledgement's number.
fn keep(log: &AlertLog, consumer: &str, cursor: u64) -> Result<u64, Status> {
    let kept = log.consumers().acknowledge(consumer, log.journal(), cursor);
    kept.map_err(|error| Status::resource_exhausted(error.to_string()))
}

/// Where a stream starts.
enum Place {
    At(Start),
    Time(prost_types::Timestamp),
}

/// Waits until something changes; for ever once nobody is left who could change it.
async fn changed<T>(mut receiver: watch::Receiver<T>) -> watch::Receiver<T> {
    match receiver.changed().await {
        Ok(()) => receiver,
        Err(_) => pending().await,
    }
}

/// What happens to the consumer; nothing ever, if the stream has no name.
async fn consumer_event(consumer: &mut Option<Consumer>) -> Event {
    match consumer {
        Some(consumer) => consumer.event().await,
        None => pending().await,
    }
}

impl Wanted {
    /// Whether `alert` is to be sent, which takes a credit.
    fn takes(&mut self, alert: &Alert) -> Result<bool, Status> {
        if !wants(&mut self.filter, alert)? {
            self.skipped += 1;
            return Ok(false);
        }
        self.skipped = 0;
        if let Some(credits) = &mut self.credits {
            *credits = credits.saturating_sub(1);
        }
        Ok(true)
    }

    /// The alerts of `part` that are wanted, those that follow each other in one piece; up to the
    /// last that credits allow.
    fn pieces(&mut self, part: &Part) -> Result<Vec<Bytes>, Status> {
        let mut pieces = Vec::new();
        let mut run = 0..0;
        for (index, alert) in part.alerts().enumerate() {
            if self.credits == Some(0) {
                break;
            }
            self.source.reader.skip_to(alert.cursor);
            if self.takes(alert)? {
                if run.end < index {
                    pieces.extend((!run.is_empty()).then(|| part.bytes(run.clone())));
                    run.start = index;
                }
                run.end = index + 1;
            }
        }
        pieces.extend((!run.is_empty()).then(|| part.bytes(run)));
        Ok(pieces)
    }

    /// What is wanted of `next` and of what follows it at once, in one piece.
    async fn encode(&mut self, next: Next) -> Result<Vec<Bytes>, Status> {
        let mut next = Some(next);
        let mut piece = Vec::new();
        let mut scanned = 0;
        while let Some(taken) = next {
            match taken {
                Next::Alert(alert) => {
                    if self.takes(&alert)? {
                        frame_alert(alert, &mut piece);
                    }
                }
                Next::Expired { from, before } => {
                    let response = Some(Response::Expired(Expired { from, before }));
                    frame(&AlertsResponse { response }, &mut piece);
                }
                Next::Gap {
                    from,
                    before,
                    reason,
                } => {
                    let reason = reason.name().to_owned();
                    let response = Some(Response::Gap(Gap {
                        from,
                        before,
                        reason,
                    }));
                    frame(&AlertsResponse { response }, &mut piece);
                }
            }
            scanned += 1;
            // Before another is taken, which would be lost.
            if scanned == SCANNED_AT_ONCE
                || piece.len() >= CHUNK_BYTES_MAX
                || self.credits == Some(0)
            {
                break;
            }
            next = self.source.reader.try_next().await;
        }
        Ok((!piece.is_empty())
            .then(|| Bytes::from(piece))
            .into_iter()
            .collect())
    }

    fn heartbeat_due(&self) -> Instant {
        let silence = if self.skipped > 0 {
            POSITION_INTERVAL
        } else {
            HEARTBEAT_INTERVAL
        };
        self.heard + silence
    }
}

pub(super) fn filter(expression: &str) -> Result<Option<Filter>, Status> {
    if expression.is_empty() {
        return Ok(None);
    }
    Filter::new(expression)
        .map(Some)
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

pub(super) fn wants(filter: &mut Option<Filter>, alert: &Alert) -> Result<bool, Status> {
    filter.as_mut().map_or(Ok(true), |filter| {
        filter
            .wants(alert)
            .map_err(|error| Status::resource_exhausted(error.to_string()))
    })
}
