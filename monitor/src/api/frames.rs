//! The body of an alert stream: messages that were encoded before, many of them in one piece.
//!
//! tonic encodes each message for each stream, and copies it. Two hundred streams of the same alerts
//! need them encoded once, and sent without a copy, as many at once as there are. So what the
//! generated service answers for such a stream is only the head; [`Framed`] puts this body in.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::Frame;
use prost::Message;
use tokio::sync::mpsc;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

/// Puts `message` behind `into` as gRPC has it on the wire: not compressed, its length in four
/// bytes, itself.
pub(super) fn frame(message: &impl Message, into: &mut Vec<u8>) {
    let length = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
    into.push(0);
    into.extend(length.to_be_bytes());
    into.extend(message.encode_to_vec());
}

/// Whole frames to send, or how the stream ends.
type Pieces = mpsc::Receiver<Result<Bytes, Status>>;

/// What the generated service hands over within its response, which has to be cloneable.
#[derive(Clone)]
pub(super) struct Handover(Arc<Mutex<Option<Pieces>>>);

impl Handover {
    pub(super) fn new(pieces: Pieces) -> Self {
        Self(Arc::new(Mutex::new(Some(pieces))))
    }

    fn take(&self) -> Option<Pieces> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A service whose responses may hold a [`Handover`].
#[derive(Clone)]
pub(super) struct Framed<S>(pub(super) S);

impl<S: NamedService> NamedService for Framed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Framed<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            let handover = response.extensions_mut().remove::<Handover>();
            if let Some(pieces) = handover.and_then(|handover| handover.take()) {
                *response.body_mut() = Body::new(Stream {
                    pieces: Some(pieces),
                    has_trailers: true,
                });
            }
            Ok(response)
        })
    }
}

/// The body of a call, which ends with its pieces.
pub(super) fn request(pieces: Pieces) -> Body {
    Body::new(Stream {
        pieces: Some(pieces),
        has_trailers: false,
    })
}

/// Ends after its trailers, if it has any.
struct Stream {
    pieces: Option<Pieces>,
    has_trailers: bool,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(pieces) = &mut self.pieces else {
            return Poll::Ready(None);
        };
        let status = match ready!(pieces.poll_recv(context)) {
            Some(Ok(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.pieces = None;
        if !self.has_trailers {
            return Poll::Ready(None);
        }
        let mut trailers = http::HeaderMap::new();
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}
