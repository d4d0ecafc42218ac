//! What a NATS server sends, taken apart.

use bytes::{Buf as _, Bytes, BytesMut};
use serde::Deserialize;

/// Bytes of a line; that of a server in a large cluster names all others.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Bytes of a message; the largest is an alert, encoded once more.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// What the server says of itself, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Info {
    pub(super) max_payload: usize,
    pub(super) headers: bool,
    pub(super) nonce: String,
}

/// Something that the server sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Info(Info),
    Message(Message),
    Ping,
    Pong,
    Ok,
    Error(String),
}

/// A message that came for the connection's inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) subject: String,
    /// The server answers itself by a status: 503, nobody was there to take the request.
    pub(super) status: Option<u16>,
    pub(super) payload: Bytes,
}

/// Takes the first frame off the buffer, if it is there as a whole.
///
/// # Errors
///
/// It is none, or too long.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, String> {
    let Some(end) = buffer.windows(2).position(|bytes| bytes == b"\r\n") else {
        if buffer.len() > LINE_BYTES_MAX {
            return Err(format!(
                "it sent a line of more than {LINE_BYTES_MAX} bytes"
            ));
        }
        return Ok(None);
    };
    let line = String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).into_owned();
    let refused = || {
        let shown: String = line.chars().take(100).collect();
        format!("it sent {shown:?}, which is not NATS")
    };
    let (name, rest) = line.split_once([' ', '\t']).unwrap_or((&line, ""));
    let frame = match name.to_ascii_uppercase().as_str() {
        "INFO" => Frame::Info(serde_json::from_str(rest).map_err(|_| refused())?),
        "MSG" | "HMSG" => {
            let has_header = name.len() > 3;
            let head = Head::parse(rest, has_header).ok_or_else(refused)?;
            if head.bytes > MESSAGE_BYTES_MAX {
                return Err(format!(
                    "it sent a message of {} bytes, more than {MESSAGE_BYTES_MAX}",
                    head.bytes
                ));
            }
            let begin = end + 2;
            if buffer.len() < begin + head.bytes + 2 {
                return Ok(None);
            }
            buffer.advance(begin);
            let mut payload = buffer.split_to(head.bytes).freeze();
            buffer.advance(2);
            let header = payload.split_to(head.header_bytes);
            return Ok(Some(Frame::Message(Message {
                subject: head.subject,
                status: status(&header),
                payload,
            })));
        }
        "PING" => Frame::Ping,
        "PONG" => Frame::Pong,
        "+OK" => Frame::Ok,
        "-ERR" => Frame::Error(rest.trim().trim_matches('\'').chars().take(300).collect()),
        _ => return Err(refused()),
    };
    buffer.advance(end + 2);
    Ok(Some(frame))
}

struct Head {
    subject: String,
    header_bytes: usize,
    bytes: usize,
}

impl Head {
    /// `SUBJECT SID [REPLY] [HEADER BYTES] BYTES`.
    fn parse(text: &str, has_header: bool) -> Option<Self> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let (subject, lengths) = match (has_header, words.as_slice()) {
            (false, [subject, _, bytes] | [subject, _, _, bytes]) => (subject, ("0", *bytes)),
            (true, [subject, _, header, bytes] | [subject, _, _, header, bytes]) => {
                (subject, (*header, *bytes))
            }
            _ => return None,
        };
        let (header_bytes, bytes) = (lengths.0.parse().ok()?, lengths.1.parse().ok()?);
        (header_bytes <= bytes).then(|| Self {
            subject: (*subject).to_owned(),
            header_bytes,
            bytes,
        })
    }
}

/// `NATS/1.0 STATUS …`.
fn status(header: &[u8]) -> Option<u16> {
    let line = header.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The value of a header's field.
pub(super) fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    header
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn message(subject: &str, status: Option<u16>, payload: &'static str) -> Frame {
        Frame::Message(Message {
            subject: subject.to_owned(),
            status,
            payload: Bytes::from(payload),
        })
    }

    #[test]
    fn frames_are_taken_off_as_they_come() {
        let check = |sent: &str, expect: &[Frame]| {
            for cut in 0..sent.len() {
                let mut buffer = BytesMut::new();
                let mut found = Vec::new();
                for part in [&sent[..cut], &sent[cut..]] {
                    buffer.extend_from_slice(part.as_bytes());
                    while let Some(frame) = take(&mut buffer).unwrap() {
                        found.push(frame);
                    }
                }
                assert_eq!((found.as_slice(), buffer.len()), (expect, 0), "{cut}");
            }
        };
        check("PING\r\n+OK\r\n", &[Frame::Ping, Frame::Ok]);
        check(
            "INFO {\"max_payload\":7,\"headers\":true,\"x\":1} \r\nPONG\r\n",
            &[
                Frame::Info(Info {
                    max_payload: 7,
                    headers: true,
                    nonce: String::new(),
                }),
                Frame::Pong,
            ],
        );
        check(
            "MSG i.1 1  4\r\n\r\nab\r\nMSG i.2 1 reply 0\r\n\r\n",
            &[message("i.1", None, "\r\nab"), message("i.2", None, "")],
        );
        check(
            "HMSG i.1 1 16 18\r\nNATS/1.0 503\r\n\r\nab\r\n-ERR 'No way'\r\n",
            &[
                message("i.1", Some(503), "ab"),
                Frame::Error("No way".to_owned()),
            ],
        );
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let check = |sent: &[u8], part: &str| {
            let taken = take(&mut BytesMut::from(sent));
            let error = taken.unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        check(b"HTTP/1.1 400 Bad Request\r\n", "not NATS");
        check(b"INFO {\r\n", "not NATS");
        check(b"MSG i.1 4\r\nabcd\r\n", "not NATS");
        check(b"HMSG i.1 1 5 4\r\nabcd\r\n", "not NATS");
        check(b"MSG i.1 1 99999999\r\n", "99999999 bytes");
        check(b"MSG i.1 1 99999999999999999999\r\n", "not NATS");
        check(&vec![b'a'; LINE_BYTES_MAX + 1], "a line of more");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for prefix in ["", "MSG a 1 ", "HMSG a 1 9 9\r\n"] {
                let mut buffer = BytesMut::from(prefix);
                buffer.extend_from_slice(&bytes);
                while let Ok(Some(_)) = take(&mut buffer) {}
            }
        }
    }

    #[test]
    fn a_field_of_a_header_is_found() {
        let header = "NATS/1.0\r\nNats-Msg-Id: a/1\r\nOther:  x \r\n\r\n";
        let check = |name, expect| assert_eq!(field(header, name), expect);
        check("nats-msg-id", Some("a/1"));
        check("Other", Some("x"));
        check("None", None);
    }
}
