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

/// What makes the pieces. It runs where they are sent, in one task: of two, each would wake the other
/// for each piece.
type Maker = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the generated service hands over within its response, which has to be cloneable.
#[derive(Clone)]
pub(super) struct Handover(Arc<Mutex<Option<Stream>>>);

impl Handover {
    /// `maker` makes `pieces`, whenever there is room for more.
    pub(super) fn new(pieces: Pieces, maker: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Stream {
            pieces: Some(pieces),
            maker: Some(Box::pin(maker)),
            has_trailers: true,
        }))))
    }

    fn take(&self) -> Option<Stream> {
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
            if let Some(stream) = handover.and_then(|handover| handover.take()) {
                *response.body_mut() = Body::new(stream);
            }
            Ok(response)
        })
    }
}

/// The body of a call, which ends with its pieces; another task makes them.
pub(super) fn request(pieces: Pieces) -> Body {
    Body::new(Stream {
        pieces: Some(pieces),
        maker: None,
        has_trailers: false,
    })
}

/// Ends after its trailers, if it has any.
struct Stream {
    pieces: Option<Pieces>,
    maker: Option<Maker>,
    has_trailers: bool,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(pieces) = &mut this.pieces else {
            return Poll::Ready(None);
        };
        let status = match ready!(poll_piece(pieces, &mut this.maker, context)) {
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

/// The next piece; `None` after the last.
fn poll_piece(
    pieces: &mut Pieces,
    maker: &mut Option<Maker>,
    context: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, Status>>> {
    if let Some(making) = maker {
        // What is there goes first, so that there is room for more.
        if let Ok(piece) = pieces.try_recv() {
            return Poll::Ready(Some(piece));
        }
        if making.as_mut().poll(context).is_pending() {
            let made = pieces.try_recv();
            return made.map_or(Poll::Pending, |piece| Poll::Ready(Some(piece)));
        }
        *maker = None;
    }
    pieces.poll_recv(context)
}
