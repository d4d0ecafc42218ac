//! The content store as a source of blobs: the files where it keeps them, or its service where those
//! cannot be read. Sending a blob takes containerd and this program about as long as hashing it.

use std::{
    fs::File,
    future::Future,
    io, mem,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use containerd_client::services::v1::{
    InfoRequest, ListContentRequest, PluginsRequest, ReadContentRequest, ReadContentResponse,
    content_client::ContentClient, introspection_client::IntrospectionClient,
};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_stream::Stream;
use tonic::{Code, Status, Streaming};

use super::{Client, ContainerdError, MESSAGE_BYTES_MAX, bounded, call, next, within};
use crate::{
    digest::Digest,
    image::{
        blobs::{BlobError, BlobStream, Blobs},
        buffers::Buffers,
    },
};

/// Bytes of a file that are read at once, and ahead.
const CHUNK_BYTES: usize = 1 << 20;

impl Blobs for Client {
    fn open(&self, namespace: &str, digest: &Digest) -> BlobStream {
        let (client, namespace) = (self.clone(), namespace.to_owned());
        Box::pin(Content {
            digest: *digest,
            state: State::Opening(Box::pin(open(client, namespace, *digest))),
        })
    }
}

async fn open(client: Client, namespace: String, digest: Digest) -> Result<State, Status> {
    let refused = |error: ContainerdError| Status::invalid_argument(error.to_string());
    let mut service =
        ContentClient::new(client.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let digest_text = digest.to_string();
    if let Some(root) = client.content_root().await {
        let path = root.join("blobs/sha256").join(digest.0.to_string());
        let first =
            spawn_blocking(move || Chunk::read(File::open(path)?, Buffers::new(CHUNK_BYTES)));
        // The files are of all namespaces together.
        let asked = InfoRequest {
            digest: digest_text.clone(),
        };
        service
            .info(within(&namespace, asked).map_err(refused)?)
            .await?;
        match first.await {
            Ok(Ok(chunk)) => return Ok(State::Chunk(chunk)),
            Ok(Err(error)) => tracing::debug!(%digest, %error, "blob is asked of containerd"),
            Err(_) => return Err(Status::cancelled("monitord is ending")),
        }
    }
    let request = ReadContentRequest {
        digest: digest_text,
        ..ReadContentRequest::default()
    };
    let stream = service
        .read(within(&namespace, request).map_err(refused)?)
        .await?;
    Ok(State::Service(Box::new(stream.into_inner())))
}

/// What containerd labels manifests with, so that what they name is kept: of images, of other artifacts,
/// and of what a client put there by itself.
const MANIFEST_LABELS: [&str; 3] = [
    "containerd.io/gc.ref.content.config",
    "containerd.io/gc.ref.content.0",
    "containerd.io/gc.root",
];

impl Client {
    /// Digests of what may be manifests in a namespace, of at most `bytes_max` bytes each.
    pub async fn manifests(
        &self,
        namespace: &str,
        bytes_max: u64,
    ) -> Result<Vec<Digest>, ContainerdError> {
        let what = || format!("list manifests of namespace {namespace:?}");
        let filters = MANIFEST_LABELS.map(|label| format!("labels.\"{label}\""));
        let request = ListContentRequest {
            filters: filters.to_vec(),
        };
        let mut service =
            ContentClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut stream = call(what, service.list(within(namespace, request)?)).await?;
        let mut digests = Vec::new();
        while let Some(message) = next(what, &mut stream).await? {
            bounded("manifests", digests.len())?;
            let infos = message.info.into_iter();
            let small =
                infos.filter(|info| u64::try_from(info.size).is_ok_and(|it| it <= bytes_max));
            digests.extend(small.filter_map(|info| info.digest.parse::<Digest>().ok()));
        }
        Ok(digests)
    }

    /// Where containerd keeps its blobs, if it says so.
    async fn content_root(&self) -> Option<&PathBuf> {
        let asked = self.content_root.get_or_try_init(|| async {
            let mut service = IntrospectionClient::new(self.channel.clone());
            let filters = vec!["type==io.containerd.content.v1".to_owned()];
            let told = service.plugins(PluginsRequest { filters }).await?;
            let mut plugins = told.into_inner().plugins.into_iter();
            let root = plugins.find_map(|mut plugin| plugin.exports.remove("root"));
            Ok::<_, Status>(root.map(PathBuf::from))
        });
        asked.await.ok()?.as_ref()
    }
}

/// What was read of a file, and how to read on if that was not the end.
struct Chunk {
    bytes: Bytes,
    rest: Option<(File, Buffers)>,
}

impl Chunk {
    fn read(mut file: File, buffers: Buffers) -> io::Result<Self> {
        let bytes = buffers.read(&mut file)?;
        let rest = (bytes.len() == CHUNK_BYTES).then_some((file, buffers));
        Ok(Self { bytes, rest })
    }
}

type Opening = Pin<Box<dyn Future<Output = Result<State, Status>> + Send>>;

enum State {
    Opening(Opening),
    Chunk(Chunk),
    /// What comes next is read while that before is being used.
    File(JoinHandle<io::Result<Chunk>>),
    Service(Box<Streaming<ReadContentResponse>>),
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
                    Ok(opened) => {
                        self.state = opened;
                        continue;
                    }
                    Err(status) => Some(Err(status)),
                },
                State::Chunk(chunk) => {
                    let bytes = mem::take(&mut chunk.bytes);
                    self.state = match chunk.rest.take() {
                        Some((file, buffers)) => {
                            State::File(spawn_blocking(|| Chunk::read(file, buffers)))
                        }
                        None => State::Ended,
                    };
                    return Poll::Ready((!bytes.is_empty()).then_some(Ok(bytes)));
                }
                State::File(reading) => match ready!(Pin::new(reading).poll(context)) {
                    Ok(Ok(chunk)) => {
                        self.state = State::Chunk(chunk);
                        continue;
                    }
                    Ok(Err(error)) => Some(Err(Status::unavailable(error.to_string()))),
                    Err(_) => Some(Err(Status::cancelled("monitord is ending"))),
                },
                State::Service(stream) => {
                    let message = ready!(Pin::new(&mut **stream).poll_next(context));
                    message.map(|message| message.map(|message| Bytes::from(message.data)))
                }
                State::Ended => None,
            };
            return Poll::Ready(match polled {
                Some(Ok(chunk)) => Some(Ok(chunk)),
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
