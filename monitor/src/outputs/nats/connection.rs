//! A connection to a NATS server.
//!
//! It is one connection and never comes back: who publishes has to know which messages may still be
//! under way before sending any of them again, so nothing is kept and sent once more in here.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use rustls::pki_types::ServerName;
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use ulid::Ulid;

use super::{
    Settings,
    credentials::{self, Proof},
    frame::{self, Frame, Info, Message},
    tls,
};

/// How long is waited for a connection until it can be used, and for anything after that.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Bytes that are read at once.
const READ_BYTES: usize = 16 << 10;

/// Why a connection cannot be used, or can no longer.
#[derive(Debug, thiserror::Error)]
pub(in crate::outputs) enum Error {
    /// The system's.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Nothing came in time.
    #[error("no {0} within {TIME_MAX:?}")]
    Late(&'static str),
    /// What the server says.
    #[error("the server says: {0}")]
    Server(String),
    /// Nobody was there to take a request or message.
    #[error("nobody takes {0}")]
    NobodyThere(String),
    /// Anything else, as a sentence.
    #[error("{0}")]
    Other(String),
}

/// A message to be published.
pub(super) struct Publication<'a> {
    pub(super) subject: String,
    /// As it is sent, see [`header_text`]; empty without one.
    pub(super) header: String,
    pub(super) payload: &'a str,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(super) struct Connection {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    inbox: String,
    requests: u64,
    pub(super) info: Info,
}

#[derive(Serialize)]
struct Connect<'a> {
    verbose: bool,
    pedantic: bool,
    echo: bool,
    tls_required: bool,
    headers: bool,
    no_responders: bool,
    protocol: u8,
    lang: &'a str,
    version: &'a str,
    name: &'a str,
    #[serde(flatten)]
    proof: Proof,
}

impl Connection {
    /// Connects as `name`, for people, until requests can be made.
    pub(super) async fn open(settings: &Settings, name: &str) -> Result<Self, Error> {
        let opening = timeout(TIME_MAX, Self::open_late(settings, name)).await;
        opening.map_err(|_| Error::Late("connection"))?
    }

    async fn open_late(settings: &Settings, name: &str) -> Result<Self, Error> {
        let server = settings
            .server()
            .map_err(|error| Error::Other(error.to_string()))?;
        let tls = server.is_tls.then(|| tls::config(settings)).transpose();
        let tls = tls.map_err(Error::Other)?;
        let stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
        stream.set_nodelay(true)?;
        let inbox = format!("_INBOX.{}", Ulid::new());
        let mut connection = Self {
            stream: Box::new(stream),
            buffer: BytesMut::new(),
            inbox,
            requests: 0,
            info: Info::default(),
        };
        connection.info = match connection.next().await? {
            Frame::Info(info) => info,
            other => return Err(Error::Other(format!("it sent {other:?} before its INFO"))),
        };
        if !connection.info.headers {
            let text = "the server is too old, or set, to have no headers in messages";
            return Err(Error::Other(text.to_owned()));
        }
        if let Some(tls) = tls {
            // What was read so far could be from anybody, and none of it may pass for what follows.
            connection.buffer.clear();
            let name = ServerName::try_from(server.host).map_err(io::Error::other)?;
            let plain = connection.stream;
            let stream = TlsConnector::from(Arc::new(tls))
                .connect(name, plain)
                .await?;
            connection.stream = Box::new(stream);
        }
        let proof = match &settings.credentials {
            Some(path) => {
                let text = tls::read(path).map_err(Error::Other)?;
                let text = String::from_utf8_lossy(&text);
                credentials::prove(path, &text, &connection.info.nonce).map_err(Error::Other)?
            }
            None => Proof::default(),
        };
        let connect = Connect {
            verbose: false,
            pedantic: false,
            echo: false,
            tls_required: server.is_tls,
            headers: true,
            no_responders: true,
            protocol: 1,
            lang: "rust",
            version: env!("CARGO_PKG_VERSION"),
            name,
            proof,
        };
        let connect = serde_json::to_string(&connect).map_err(io::Error::other)?;
        let inbox = &connection.inbox;
        let lines = format!("CONNECT {connect}\r\nSUB {inbox}.* 1\r\nPING\r\n");
        connection.send(lines.as_bytes()).await?;
        while connection.next().await? != Frame::Pong {}
        Ok(connection)
    }

    /// What somebody answers to a request.
    pub(super) async fn request(&mut self, subject: &str, payload: &str) -> Result<Bytes, Error> {
        let publication = Publication {
            subject: subject.to_owned(),
            header: String::new(),
            payload,
        };
        let mut answer = None;
        self.publish(&[publication], |_, payload| {
            answer = Some(payload);
            Ok(())
        })
        .await?;
        answer.ok_or_else(|| Error::NobodyThere(subject.to_owned()))
    }

    /// Publishes all in order, and hands the answer to each, in whatever order they come.
    pub(super) async fn publish(
        &mut self,
        publications: &[Publication<'_>],
        mut take: impl FnMut(usize, Bytes) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let first = self.requests;
        let mut bytes = Vec::new();
        for publication in publications {
            let reply = format!("{}.{}", self.inbox, self.requests);
            self.requests += 1;
            encode(&mut bytes, publication, &reply);
        }
        self.send(&bytes).await?;
        let mut is_open = vec![true; publications.len()];
        while is_open.contains(&true) {
            let waiting = timeout(TIME_MAX, self.next_message()).await;
            let message = waiting.map_err(|_| Error::Late("answer"))??;
            let number = message.subject.rsplit('.').next();
            let number = number.and_then(|number| number.parse::<u64>().ok());
            let index = number.and_then(|number| number.checked_sub(first));
            let index = index.and_then(|index| usize::try_from(index).ok());
            // What came late is an answer to what nobody waits for any more.
            let Some((index, open)) =
                index.and_then(|index| Some((index, is_open.get_mut(index)?)))
            else {
                continue;
            };
            if message.status == Some(503) {
                let subject = publications.get(index).map(|it| it.subject.clone());
                return Err(Error::NobodyThere(subject.unwrap_or_default()));
            }
            if std::mem::take(open) {
                take(index, message.payload)?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let sending = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        let sent = timeout(TIME_MAX, sending).await;
        Ok(sent.map_err(|_| Error::Late("progress in sending"))??)
    }

    async fn next_message(&mut self) -> Result<Message, Error> {
        loop {
            if let Frame::Message(message) = self.next().await? {
                return Ok(message);
            }
        }
    }

    /// The next that the server sends and that is not answered here.
    async fn next(&mut self) -> Result<Frame, Error> {
        loop {
            match frame::take(&mut self.buffer).map_err(Error::Other)? {
                Some(Frame::Ping) => self.send(b"PONG\r\n").await?,
                Some(Frame::Error(text)) => return Err(Error::Server(text)),
                Some(frame) => return Ok(frame),
                None => {
                    self.buffer.reserve(READ_BYTES);
                    if self.stream.read_buf(&mut self.buffer).await? == 0 {
                        let text = "the server closed the connection";
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text).into());
                    }
                }
            }
        }
    }
}

fn encode(bytes: &mut Vec<u8>, publication: &Publication<'_>, reply: &str) {
    let Publication {
        subject,
        header,
        payload,
    } = publication;
    let all = header.len() + payload.len();
    let head = if header.is_empty() {
        format!("PUB {subject} {reply} {all}\r\n")
    } else {
        format!("HPUB {subject} {reply} {} {all}\r\n", header.len())
    };
    bytes.extend(head.bytes());
    bytes.extend(header.bytes());
    bytes.extend(payload.bytes());
    bytes.extend(b"\r\n");
}

/// A header as it is sent, of names and values without line ends.
pub(super) fn header_text(header: &[(&str, &str)]) -> String {
    let mut text = "NATS/1.0\r\n".to_owned();
    for (name, value) in header {
        text.push_str(name);
        text.push_str(": ");
        text.push_str(value);
        text.push_str("\r\n");
    }
    text + "\r\n"
}
