//! What brings an image to containerd: its blobs, its name, and its layers unpacked.
//!
//! In containerd 1.6 a writer that is opened under a lease for a blob that is there already
//! is answered that it is, and the blob belongs to the lease from then on (`metadata/content.go`).

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use containerd_client::{
    services::v1::{
        ApplyRequest, CreateImageRequest, Image, Info, InfoRequest, UpdateRequest, WriteAction,
        WriteContentRequest, WriteContentResponse,
        content_client::ContentClient,
        diff_client::DiffClient,
        images_client::ImagesClient,
        snapshots::{CommitSnapshotRequest, snapshots_client::SnapshotsClient},
    },
    types::{Descriptor, Mount},
};
use prost_types::FieldMask;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::Streaming;

use super::{Client, ContainerdError, MESSAGE_BYTES_MAX, call, change::leased, within};
use crate::{
    digest::Digest,
    image::blobs::{BlobError, BlobStream},
};

/// How long containerd may take to write a piece of a blob, or to bring a whole one to disk.
const WRITE_TIME_MAX: Duration = Duration::from_secs(60);

/// A blob could not be brought to containerd.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Where it comes from did not give it.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// containerd did not take it, also because its bytes are others than its digest names.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// It is not wanted any more.
    #[error("it was given up")]
    GivenUp,
}

/// An object in the content store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

impl Blob {
    fn wire_size(&self) -> i64 {
        i64::try_from(self.size).unwrap_or(i64::MAX)
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.to_string(),
            size: self.wire_size(),
            annotations: HashMap::new(),
        }
    }
}

/// A layer that is to become a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLayer {
    /// Its blob.
    pub blob: Blob,
    /// Digest of the uncompressed layer, as the image's config says.
    pub diff_id: Digest,
    /// Name of the snapshot below; empty for the lowest layer.
    pub parent: String,
    /// Name of the snapshot.
    pub chain_id: Digest,
    /// Name of the snapshot while it is written, which nobody else uses.
    pub key: String,
}

impl Client {
    /// Whether the content store has a blob.
    ///
    /// # Errors
    ///
    /// Those of the call.
    pub async fn has_blob(
        &self,
        namespace: &str,
        digest: &Digest,
    ) -> Result<bool, ContainerdError> {
        let what = || format!("blob {digest} in namespace {namespace:?}");
        let request = InfoRequest {
            digest: digest.to_string(),
        };
        let mut client = ContentClient::new(self.channel.clone());
        match call(what, client.info(within(namespace, request)?)).await {
            Ok(_) => Ok(true),
            Err(ContainerdError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Brings a blob to the content store under a lease, with these labels, unless it is there. containerd
    /// compares its length and its digest. `open` gives its bytes and is called only if they are needed;
    /// `note` is told how many of each piece came, and whether to go on.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub async fn write_blob(
        &self,
        namespace: &str,
        lease: &str,
        blob: &Blob,
        labels: HashMap<String, String>,
        open: impl FnOnce() -> BlobStream,
        note: impl Fn(u64) -> bool,
    ) -> Result<(), WriteError> {
        let written = async {
            let mut writer = Writer::open(self, namespace, lease, blob).await?;
            // All of it is there if another namespace has it, or if only the end of a write was missing.
            if writer.offset < blob.wire_size() {
                writer.offset = 0;
                let mut bytes = open();
                while let Some(piece) = bytes.next().await {
                    let piece = piece?;
                    let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
                    writer.write(piece).await?;
                    if !note(length) {
                        return Err(WriteError::GivenUp);
                    }
                }
            }
            Ok(writer.commit(&labels).await?)
        };
        match written.await {
            // From before, or written by somebody else meanwhile.
            Err(WriteError::Containerd(ContainerdError::Exists(_))) => {
                Ok(self.label_blob(namespace, &blob.digest, labels).await?)
            }
            written => written,
        }
    }

    /// Sets labels of a blob, beside those that it has.
    ///
    /// # Errors
    ///
    /// [`ContainerdError::NotFound`] if there is no such blob.
    pub async fn label_blob(
        &self,
        namespace: &str,
        digest: &Digest,
        labels: HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        if labels.is_empty() {
            return Ok(());
        }
        let what = || format!("labels of blob {digest} in namespace {namespace:?}");
        let paths = labels.keys().map(|label| format!("labels.{label}"));
        let request = UpdateRequest {
            update_mask: Some(FieldMask {
                paths: paths.collect(),
            }),
            info: Some(Info {
                digest: digest.to_string(),
                labels,
                ..Info::default()
            }),
        };
        let mut client = ContentClient::new(self.channel.clone());
        let updated = client.update(within(namespace, request)?);
        call(what, updated).await.map(drop)
    }

    /// Gives an image its name.
    ///
    /// # Errors
    ///
    /// [`ContainerdError::Exists`] if the name is taken, by whatever image.
    pub async fn create_image(
        &self,
        namespace: &str,
        name: &str,
        target: &Blob,
    ) -> Result<(), ContainerdError> {
        let what = || format!("image {name:?} in namespace {namespace:?}");
        let request = CreateImageRequest {
            image: Some(Image {
                name: name.to_owned(),
                target: Some(target.descriptor()),
                ..Image::default()
            }),
            ..CreateImageRequest::default()
        };
        let mut client = ImagesClient::new(self.channel.clone());
        call(what, client.create(within(namespace, request)?))
            .await
            .map(drop)
    }

    /// Makes a snapshot of a layer on that of the layers below, under a lease, and compares what was
    /// unpacked with its diff ID. Takes as long as unpacking does. That there is such a snapshot is fine:
    /// others may unpack it at the same time.
    ///
    /// # Errors
    ///
    /// Those of the calls; [`ContainerdError::Failed`] also if the layer is not what the config says.
    pub async fn unpack_layer(
        &self,
        namespace: &str,
        snapshotter: &str,
        lease: &str,
        layer: &NewLayer,
    ) -> Result<(), ContainerdError> {
        let (key, parent) = (&layer.key, &layer.parent);
        let prepared = self.prepare_snapshot(namespace, snapshotter, key, parent, lease);
        let mounts = prepared.await?;
        let made = self
            .fill(namespace, snapshotter, lease, layer, mounts)
            .await;
        match made {
            Ok(()) => Ok(()),
            Err(error) => {
                if let Err(left) = self.remove_snapshot(namespace, snapshotter, key).await {
                    tracing::debug!(%left, "the lease's end clears it away");
                }
                match error {
                    ContainerdError::Exists(_) => Ok(()),
                    error => Err(error),
                }
            }
        }
    }

    async fn fill(
        &self,
        namespace: &str,
        snapshotter: &str,
        lease: &str,
        layer: &NewLayer,
        mounts: Vec<Mount>,
    ) -> Result<(), ContainerdError> {
        let digest = layer.blob.digest;
        let what = || format!("unpack layer {digest} in namespace {namespace:?}");
        let request = ApplyRequest {
            diff: Some(layer.blob.descriptor()),
            mounts,
            ..ApplyRequest::default()
        };
        // Not by `call`: large layers take longer.
        let mut client = DiffClient::new(self.channel.clone());
        let applied = client.apply(within(namespace, request)?).await;
        let applied = applied.map_err(|status| ContainerdError::of(what(), &status))?;
        let seen = applied.into_inner().applied.unwrap_or_default().digest;
        if seen != layer.diff_id.to_string() {
            let seen: String = seen.chars().take(100).collect();
            return Err(ContainerdError::Failed {
                what: what(),
                reason: format!(
                    "it unpacks to {seen:?}, and the image's config says {}",
                    layer.diff_id
                ),
            });
        }
        let name = layer.chain_id.to_string();
        let what = || format!("snapshot {name:?} of {snapshotter:?}");
        let request = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: name.clone(),
            key: layer.key.clone(),
            ..CommitSnapshotRequest::default()
        };
        let mut client = SnapshotsClient::new(self.channel.clone());
        let committed = client
            .commit(leased(within(namespace, request)?, lease)?)
            .await;
        committed
            .map(drop)
            .map_err(|status| ContainerdError::of(what(), &status))
    }
}

/// A blob that is being written.
struct Writer<'a> {
    blob: &'a Blob,
    reference: String,
    sender: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    /// Bytes that containerd has.
    offset: i64,
}

impl<'a> Writer<'a> {
    /// [`ContainerdError::Exists`] if the blob is there; it belongs to the lease then.
    async fn open(
        client: &Client,
        namespace: &str,
        lease: &str,
        blob: &'a Blob,
    ) -> Result<Self, ContainerdError> {
        let reference = format!("{lease}-{}", blob.digest);
        // One at a time: each is answered.
        let (sender, receiver) = mpsc::channel(1);
        let first = request(blob, &reference, WriteAction::Stat);
        // There is room, and the other end is here.
        let _ = sender.try_send(first);
        let stream = within(namespace, ReceiverStream::new(receiver))?;
        let mut service =
            ContentClient::new(client.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let opening = service.write(leased(stream, lease)?);
        let opened = async {
            let mut answers = opening.await?.into_inner();
            let first = answers.message().await?;
            Ok((answers, first))
        };
        let opened = timeout(WRITE_TIME_MAX, opened).await;
        let (answers, first) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(status)) => return Err(ContainerdError::of(what(blob), &status)),
            Err(_) => return Err(late(blob)),
        };
        Ok(Self {
            blob,
            reference,
            sender,
            answers,
            offset: first.map_or(0, |first| first.offset),
        })
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), ContainerdError> {
        if piece.is_empty() {
            return Ok(());
        }
        let mut request = request(self.blob, &self.reference, WriteAction::Write);
        // At 0 what is there of an earlier write goes.
        request.offset = self.offset;
        request.data = piece.to_vec();
        self.offset = self.ask(request).await?;
        Ok(())
    }

    async fn commit(mut self, labels: &HashMap<String, String>) -> Result<(), ContainerdError> {
        let mut request = request(self.blob, &self.reference, WriteAction::Commit);
        request.offset = self.offset;
        request.labels.clone_from(labels);
        self.ask(request).await.map(drop)
    }

    /// How many bytes containerd has after a request.
    async fn ask(&mut self, request: WriteContentRequest) -> Result<i64, ContainerdError> {
        // That it has gone is said in its answer.
        let _ = self.sender.send(request).await;
        let answer = timeout(WRITE_TIME_MAX, self.answers.message()).await;
        match answer {
            Ok(Ok(Some(answer))) => Ok(answer.offset),
            Ok(Ok(None)) => Err(ContainerdError::Failed {
                what: what(self.blob),
                reason: "it ended the call".to_owned(),
            }),
            Ok(Err(status)) => Err(ContainerdError::of(what(self.blob), &status)),
            Err(_) => Err(late(self.blob)),
        }
    }
}

fn request(blob: &Blob, reference: &str, action: WriteAction) -> WriteContentRequest {
    WriteContentRequest {
        action: action.into(),
        r#ref: reference.to_owned(),
        total: blob.wire_size(),
        expected: blob.digest.to_string(),
        ..WriteContentRequest::default()
    }
}

fn what(blob: &Blob) -> String {
    format!("blob {}", blob.digest)
}

fn late(blob: &Blob) -> ContainerdError {
    ContainerdError::Failed {
        what: what(blob),
        reason: format!("no answer within {} s", WRITE_TIME_MAX.as_secs()),
    }
}
