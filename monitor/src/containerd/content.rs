//! The content store as a source of blobs.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use containerd_client::services::v1::{
    ReadContentRequest, ReadContentResponse, content_client::ContentClient,
};
use tokio_stream::Stream;
use tonic::{Code, Response, Status, Streaming};

use super::{Client, ContainerdError, MESSAGE_BYTES_MAX, within};
use crate::{
    digest::Digest,
    image::blobs::{BlobError, BlobStream, Blobs},
};

impl Blobs for Client {
    fn open(&self, namespace: &str, digest: &Digest) -> BlobStream {
        let request = ReadContentRequest {
            digest: digest.to_string(),
            ..ReadContentRequest::default()
        };
        let request = within(namespace, request);
        let mut client =
            ContentClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let opening = async move {
            let request = request
                .map_err(|error: ContainerdError| Status::invalid_argument(error.to_string()))?;
            client.read(request).await
        };
        Box::pin(Content {
            digest: *digest,
            state: State::Opening(Box::pin(opening)),
        })
    }
}

type Opening =
    Pin<Box<dyn Future<Output = Result<Response<Streaming<ReadContentResponse>>, Status>> + Send>>;

enum State {
    Opening(Opening),
    Open(Box<Streaming<ReadContentResponse>>),
    Ended,
}

struct Content {
    digest: Digest,
    state: State,
}

impl Content {
    fn failure(&self, status: &Status) -> BlobError {
        if status.code() == Code::NotFound {
            BlobError::NotFound(self.digest)
        } else {
            BlobError::Unavailable(status.message().chars().take(500).collect())
        }
    }
}

impl Stream for Content {
    type Item = Result<Bytes, BlobError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let polled = match &mut self.state {
                State::Opening(opening) => match ready!(opening.as_mut().poll(context)) {
                    Ok(response) => {
                        self.state = State::Open(Box::new(response.into_inner()));
                        continue;
                    }
                    Err(status) => Some(Err(status)),
                },
                State::Open(stream) => ready!(Pin::new(&mut **stream).poll_next(context)),
                State::Ended => None,
            };
            return Poll::Ready(match polled {
                Some(Ok(message)) => Some(Ok(Bytes::from(message.data))),
                Some(Err(status)) => {
                    self.state = State::Ended;
                    Some(Err(self.failure(&status)))
                }
                None => {
                    self.state = State::Ended;
                    None
                }
            });
        }
    }
}
