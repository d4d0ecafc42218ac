//! NATS JetStream as an output: each alert is once in the stream, by subject of cluster, node and
//! severity.
//!
//! JetStream knows a message again by its id, `JOURNAL/CURSOR`, within a window of time only. So
//! whoever may have published before, be it this daemon over a connection that broke or the one
//! before it, is asked after in the stream itself: see [`place`]. What then still relies on the
//! window is a copy that the network holds back and delivers after its connection has ended.
//!
//! What would make the server itself check the order, `Nats-Expected-Last-Subject-Sequence`, needs
//! the sequence of the message before, and so its acknowledgement: one message per round trip.

mod connection;
mod credentials;
mod frame;
mod place;
mod settings;
mod tls;

use std::{borrow::Cow, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use monitor_api::json::{self, Missing};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use tokio::time::Instant;

pub use self::settings::{Settings, SettingsError};
use self::{
    connection::{Connection, Error, Publication},
    place::{Known, Place},
};
use super::{
    Kind,
    batch::{Batch, Item, MISSING, missing_line},
};
use crate::alerts::build::timestamp;

/// Messages that are published before their acknowledgements are waited for.
const IN_FLIGHT_MAX: usize = 64;

/// Messages that are looked through after an interruption; there are no more than were in flight,
/// unless others write under this node's name.
const LOOKED_THROUGH_MAX: usize = 1024;

/// After so long without a use a connection is not used again: the server may have closed it.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// JetStream's codes of errors.
const NO_STREAM: u32 = 10059;
const NO_MESSAGE: u32 = 10037;

/// The header with what the publisher knew to be stored.
const KNOWN: &str = "Monitord-Stored";
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// What came of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The stream has all of it; so many alerts were too long, and it has that in their place.
    Stored { too_long: u64 },
    /// The stream has lost what it had after this cursor.
    Lost { after: u64 },
}

/// Publishes the alerts of one node.
pub(super) struct Publisher {
    settings: Settings,
    kind: Kind,
    journal: String,
    /// As whom the server's people see it.
    name: String,
    /// How its subjects begin.
    subject: String,
    session: Option<Session>,
    used: Instant,
    /// Most bytes that the server takes, as far as it has said so to those that it knows.
    payload_max: usize,
}

struct Session {
    connection: Connection,
    /// Most bytes that the stream takes, headers included.
    message_max: usize,
    place: Place,
    before: Before,
}

/// What the stream had of this node at first.
enum Before {
    Nothing,
    Something,
    /// Up to this cursor of another journal; that has to be told.
    Journal(String, u64),
}

#[derive(Deserialize)]
struct ApiError {
    err_code: u32,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct Answer<T> {
    error: Option<ApiError>,
    #[serde(flatten)]
    found: Option<T>,
}

#[derive(Deserialize)]
struct StreamInfo {
    config: StreamConfig,
}

#[derive(Deserialize)]
struct StreamConfig {
    retention: String,
    #[serde(default)]
    no_ack: bool,
    #[serde(default)]
    max_msg_size: i64,
}

#[derive(Deserialize)]
struct Got {
    message: StoredMessage,
}

#[derive(Deserialize)]
struct StoredMessage {
    seq: u64,
    #[serde(default)]
    hdrs: String,
}

#[derive(Deserialize)]
struct Acknowledgement {
    error: Option<ApiError>,
    #[serde(default)]
    seq: u64,
}

/// A message of the stream, as far as it is one of ours.
struct Found {
    journal: String,
    cursor: u64,
    known: Known,
}

impl Publisher {
    pub(super) fn new(
        settings: &Settings,
        kind: Kind,
        journal: &str,
        cluster: &str,
        node: &str,
    ) -> Self {
        Self {
            settings: settings.clone(),
            kind,
            journal: journal.to_owned(),
            name: format!("monitord {node}"),
            subject: settings.node_subject(cluster, node),
            session: None,
            used: Instant::now(),
            payload_max: usize::MAX,
        }
    }

    /// Publishes what the stream does not have of a batch. `newest` is the newest cursor that the
    /// journal has. After an error, and when it is dropped, it is open which of it was stored.
    pub(super) async fn write(&mut self, batch: &Batch, newest: u64) -> Result<Outcome, Error> {
        let is_fresh = self.used.elapsed() < IDLE_MAX;
        // Taken, so that whatever goes wrong ends its connection.
        let mut session = match self.session.take().filter(|_| is_fresh) {
            Some(session) => session,
            None => self.open(batch, newest).await?,
        };
        let known = session.place.known();
        let outcome = match first(batch) {
            Some(first) if !session.place.has_all_before(first) => Outcome::Lost {
                after: known.cursor,
            },
            _ => self.publish(&mut session, batch).await?,
        };
        self.session = Some(session);
        self.used = Instant::now();
        Ok(outcome)
    }

    async fn open(&self, batch: &Batch, newest: u64) -> Result<Session, Error> {
        let Settings { stream, .. } = &self.settings;
        let mut connection = Connection::open(&self.settings, &self.name).await?;
        let about = format!("$JS.API.STREAM.INFO.{stream}");
        let info: Option<StreamInfo> = ask(&mut connection, &about, "", NO_STREAM).await?;
        let Some(StreamInfo { config }) = info else {
            return Err(self.unusable("is not there"));
        };
        if config.retention != "limits" {
            return Err(self.unusable("loses what was read, so it cannot tell what it has"));
        }
        if config.no_ack {
            return Err(self.unusable("acknowledges nothing"));
        }
        let mut session = Session {
            connection,
            message_max: usize::try_from(config.max_msg_size)
                .ok()
                .filter(|bytes| *bytes > 0)
                .map_or(self.payload_max, |bytes| bytes.min(self.payload_max)),
            place: Place::without(first(batch).unwrap_or(1).saturating_sub(1), 0),
            before: Before::Nothing,
        };
        self.look(&mut session).await?;
        let found = session.place.newest_cursor();
        if found > newest && !matches!(session.before, Before::Nothing) {
            return Err(Error::Other(format!(
                "stream {stream} has cursor {found} of journal {}, which has come to {newest} only: \
                 its directory was set back; remove it, so that another journal begins",
                self.journal
            )));
        }
        Ok(session)
    }

    /// Finds out what the stream has of this node.
    async fn look(&self, session: &mut Session) -> Result<(), Error> {
        let all = format!("{}.*", self.subject);
        let last = json!({"last_by_subj": all});
        let Some((sequence, last)) = self.get(&mut session.connection, &last).await? else {
            return Ok(());
        };
        let trusted = session.place.known().cursor;
        match last {
            Some(found) if found.journal == self.journal => {
                session.before = Before::Something;
                session.place = Place::told(found.known, sequence);
            }
            other => {
                session.place = Place::without(trusted, sequence);
                session.before = match other {
                    Some(found) => Before::Journal(found.journal, found.cursor),
                    None => Before::Something,
                };
                return Ok(());
            }
        }
        let mut from = session.place.known().sequence + 1;
        for _ in 0..LOOKED_THROUGH_MAX {
            let next = json!({"seq": from, "next_by_subj": all});
            let Some((sequence, found)) = self.get(&mut session.connection, &next).await? else {
                return Ok(());
            };
            if let Some(found) = found.filter(|found| found.journal == self.journal) {
                session.place.found(found.cursor, sequence);
            }
            from = sequence + 1;
        }
        Err(Error::Other(format!(
            "more than {LOOKED_THROUGH_MAX} messages of {all} follow what is known to be stored: \
             another writes them; only one node may have this name"
        )))
    }

    /// The sequence of a message, and what it is if it is one of ours.
    async fn get(
        &self,
        connection: &mut Connection,
        which: &serde_json::Value,
    ) -> Result<Option<(u64, Option<Found>)>, Error> {
        let subject = format!("$JS.API.STREAM.MSG.GET.{}", self.settings.stream);
        let got: Option<Got> = ask(connection, &subject, &which.to_string(), NO_MESSAGE).await?;
        Ok(got.map(|got| (got.message.seq, Found::read(&got.message))))
    }

    async fn publish(&mut self, session: &mut Session, batch: &Batch) -> Result<Outcome, Error> {
        let mut too_long = 0;
        let mut wanted: Vec<Outgoing<'_>> = Vec::new();
        let before = std::mem::replace(&mut session.before, Before::Something);
        if let Before::Journal(journal, cursor) = &before {
            wanted.push(Outgoing::other_journal(self.kind, journal, *cursor));
        }
        for item in batch.items() {
            let is_wanted = match item.cursor {
                // The stream knows better what it had.
                0 => matches!(before, Before::Nothing),
                cursor => !session.place.has(cursor),
            };
            if is_wanted {
                wanted.push(Outgoing::of(batch, item));
            }
        }
        for chunk in wanted.chunks_mut(IN_FLIGHT_MAX) {
            let known = session.place.known();
            let mut publications = Vec::new();
            for outgoing in &mut *chunk {
                let header = self.header(outgoing.cursor, known);
                if header.len() + outgoing.line.len() > session.message_max
                    && outgoing.severity != MISSING
                {
                    too_long += 1;
                    outgoing.is_missing(self.kind, &self.journal);
                }
                publications.push(Publication {
                    subject: format!("{}.{}", self.subject, outgoing.severity),
                    header,
                    payload: &outgoing.line,
                });
            }
            let last = publications.len().saturating_sub(1);
            let mut sequence = None;
            let published = session.connection.publish(&publications, |index, answer| {
                let stored = stored(&answer)?;
                if index == last {
                    sequence = Some(stored);
                }
                Ok(())
            });
            if let Err(error) = published.await {
                return Err(self.explained(error, &session.connection));
            }
            let cursor = chunk
                .last()
                .map_or(known.cursor, |outgoing| outgoing.cursor);
            session.place.advance(cursor, sequence);
        }
        session.place.advance(batch.cursor, None);
        Ok(Outcome::Stored { too_long })
    }

    fn header(&self, cursor: u64, known: Known) -> String {
        connection::header_text(&[
            (MESSAGE_ID, &format!("{}/{cursor}", self.journal)),
            ("Nats-Expected-Stream", &self.settings.stream),
            (KNOWN, &known.to_string()),
        ])
    }

    fn explained(&mut self, error: Error, connection: &Connection) -> Error {
        match error {
            // What it said before it was known to be the right one does not count.
            Error::Server(text) if text.contains("Maximum Payload") => {
                self.payload_max = connection.info.max_payload;
                Error::Server(text)
            }
            Error::NobodyThere(_) => self.unusable("does not take this node's subjects"),
            other => other,
        }
    }

    fn unusable(&self, what: &str) -> Error {
        let Settings {
            stream, subject, ..
        } = &self.settings;
        Error::Other(format!(
            "stream {stream} {what}; have one with subjects {subject}.>, retention limits and acknowledgements"
        ))
    }
}

/// A message to be published.
struct Outgoing<'a> {
    /// The last that it tells of; 0 if it tells of another journal.
    cursor: u64,
    from: u64,
    severity: &'static str,
    line: Cow<'a, str>,
}

impl<'a> Outgoing<'a> {
    fn of(batch: &'a Batch, item: &Item) -> Self {
        Self {
            cursor: item.cursor,
            from: item.from,
            severity: item.severity,
            line: batch.line(item).into(),
        }
    }

    fn other_journal(kind: Kind, journal: &str, cursor: u64) -> Self {
        let missing = Missing {
            journal,
            from: cursor.saturating_add(1),
            before: None,
            reason: "journal_changed",
            time: timestamp(Timestamp::now()),
        };
        Self {
            cursor: 0,
            from: 0,
            severity: MISSING,
            line: json::line(&missing_line(kind, &missing)).into(),
        }
    }

    /// Tells that the alert is missing instead.
    fn is_missing(&mut self, kind: Kind, journal: &str) {
        let missing = Missing {
            journal,
            from: self.from,
            before: Some(self.cursor.saturating_add(1)),
            reason: "too_long",
            time: timestamp(Timestamp::now()),
        };
        self.severity = MISSING;
        self.line = json::line(&missing_line(kind, &missing)).into();
    }
}

impl Found {
    fn read(message: &StoredMessage) -> Option<Self> {
        let header = STANDARD.decode(&message.hdrs).ok()?;
        let header = String::from_utf8(header).ok()?;
        let (journal, cursor) = frame::field(&header, MESSAGE_ID)?.rsplit_once('/')?;
        Some(Self {
            journal: journal.to_owned(),
            cursor: cursor.parse().ok()?,
            known: frame::field(&header, KNOWN)?.parse().ok()?,
        })
    }
}

/// The first cursor of this journal in a batch.
fn first(batch: &Batch) -> Option<u64> {
    let mut items = batch.items().iter();
    items.find(|item| item.cursor != 0).map(|item| item.from)
}

/// Asks JetStream's API; nothing if the error is the expected one.
async fn ask<T: DeserializeOwned>(
    connection: &mut Connection,
    subject: &str,
    question: &str,
    expected: u32,
) -> Result<Option<T>, Error> {
    let asked = connection.request(subject, question).await;
    let answer = asked.map_err(|error| match error {
        Error::NobodyThere(_) => {
            Error::Other("the server, or this account there, has no JetStream".to_owned())
        }
        other => other,
    })?;
    let answer: Answer<T> = parsed(&answer)?;
    match answer.error {
        Some(error) if error.err_code == expected => Ok(None),
        Some(error) => Err(Error::Server(error.description)),
        None => Ok(Some(answer.found.ok_or_else(|| no_sense(subject))?)),
    }
}

/// The sequence that a message is stored at.
fn stored(answer: &Bytes) -> Result<u64, Error> {
    let answer: Acknowledgement = parsed(answer)?;
    match answer.error {
        Some(error) => Err(Error::Server(error.description)),
        None if answer.seq == 0 => Err(no_sense("a message")),
        None => Ok(answer.seq),
    }
}

fn parsed<T: DeserializeOwned>(answer: &Bytes) -> Result<T, Error> {
    serde_json::from_slice(answer).map_err(|_| no_sense("a request"))
}

fn no_sense(what: &str) -> Error {
    Error::Other(format!(
        "what the server answers to {what} is not JetStream's"
    ))
}
