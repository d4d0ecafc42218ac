//! What containerd says happens, in types of our own.

use std::time::Duration;

use containerd_client::{
    services::v1::{PublishRequest, SubscribeRequest, events_client::EventsClient},
    types::Envelope,
};
use prost::Message;
use tokio::time::{interval, timeout};
use tonic::{Streaming, transport::Channel};

use super::{CALL_TIME_MAX, ContainerdError, MESSAGE_BYTES_MAX, call, late, within};

/// Told to containerd by us, to find out whether we hear it. The namespace is not created by this.
const OWN_TOPIC: &str = "/monitord/marker";
const OWN_NAMESPACE: &str = "monitord";

/// What happened in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A container was created.
    ContainerCreated {
        /// Its id.
        id: String,
        /// The image reference it was created with; may be empty.
        image: String,
    },
    /// A container was deleted.
    ContainerDeleted {
        /// Its id.
        id: String,
    },
    /// A container's init process exists and waits to be started.
    TaskCreated {
        /// The container's id.
        id: String,
        /// Where the runtime keeps it on the host; its root filesystem is `rootfs` in there.
        bundle: String,
        /// Process id of init in the pid namespace of containerd.
        pid: u32,
    },
    /// A container's init process exited.
    TaskExited {
        /// The container's id.
        id: String,
        /// Its process id.
        pid: u32,
    },
    /// An image reference was made or points elsewhere.
    ImageChanged {
        /// The reference.
        name: String,
    },
    /// An image reference was removed.
    ImageDeleted {
        /// The reference.
        name: String,
    },
    /// [`super::Client::mark`] was called with this text, and every event before that has been
    /// told.
    Marker {
        /// The text.
        text: String,
    },
}

// Only the fields that are read, so that nothing else in an event can make it unreadable.

#[derive(Clone, PartialEq, Eq, Message)]
struct OneName {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct ContainerCreate {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    image: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct TaskCreate {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, tag = "2")]
    bundle: String,
    #[prost(uint32, tag = "6")]
    pid: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct TaskExit {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, tag = "2")]
    id: String,
    #[prost(uint32, tag = "3")]
    pid: u32,
}

const TOPICS: [&str; 7] = [
    "/containers/create",
    "/containers/delete",
    "/tasks/create",
    "/tasks/exit",
    "/images/create",
    "/images/update",
    "/images/delete",
];

/// Reads an event by its topic; `Ok(None)` for what is not of interest.
fn decode(topic: &str, event: &[u8]) -> Result<Option<Event>, prost::DecodeError> {
    Ok(Some(match topic {
        "/containers/create" => {
            let event = ContainerCreate::decode(event)?;
            Event::ContainerCreated {
                id: event.id,
                image: event.image,
            }
        }
        "/containers/delete" => Event::ContainerDeleted {
            id: OneName::decode(event)?.name,
        },
        "/tasks/create" => {
            let event = TaskCreate::decode(event)?;
            Event::TaskCreated {
                id: event.container_id,
                bundle: event.bundle,
                pid: event.pid,
            }
        }
        "/tasks/exit" => {
            let event = TaskExit::decode(event)?;
            // An exec's exit has the exec's id here, init's the container's.
            if event.id != event.container_id {
                return Ok(None);
            }
            Event::TaskExited {
                id: event.container_id,
                pid: event.pid,
            }
        }
        "/images/create" | "/images/update" => Event::ImageChanged {
            name: OneName::decode(event)?.name,
        },
        "/images/delete" => Event::ImageDeleted {
            name: OneName::decode(event)?.name,
        },
        OWN_TOPIC => Event::Marker {
            text: OneName::decode(event)?.name,
        },
        _ => return Ok(None),
    }))
}

/// A subscription that is in force.
#[derive(Debug)]
pub struct Events {
    stream: Streaming<Envelope>,
}

impl Events {
    /// The next event and its namespace. An error means that the subscription has ended, or that
    /// an event could not be read; either way only a new listing tells what there is.
    pub async fn next(&mut self) -> Result<(String, Event), ContainerdError> {
        loop {
            let envelope = match self.stream.message().await {
                Ok(Some(envelope)) => envelope,
                Ok(None) => return Err(lost("the stream ended".to_owned())),
                Err(status) => return Err(lost(status.to_string())),
            };
            let bytes = envelope.event.map(|any| any.value).unwrap_or_default();
            match decode(&envelope.topic, &bytes) {
                Ok(Some(event)) => return Ok((envelope.namespace, event)),
                Ok(None) => {}
                Err(error) => {
                    return Err(lost(format!("event {:?}: {error}", envelope.topic)));
                }
            }
        }
    }
}

fn lost(reason: String) -> ContainerdError {
    ContainerdError::Failed {
        what: "events".to_owned(),
        reason,
    }
}

/// containerd answers a subscription with nothing at all until there is an event, so that a
/// listing begun after `subscribe` was only sent could miss what happens in between. So a marker is
/// published, again and again, until the answer begins: then the subscription is in force.
pub(super) async fn subscribe(channel: Channel) -> Result<Events, ContainerdError> {
    let what = || "subscribe to events".to_owned();
    let filters = TOPICS
        .iter()
        .chain(&[OWN_TOPIC])
        .map(|topic| format!("topic==\"{topic}\""))
        .collect();
    let mut subscriber =
        EventsClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let subscribing = subscriber.subscribe(SubscribeRequest { filters });
    let publishing = async {
        let mut again = interval(Duration::from_millis(20));
        loop {
            again.tick().await;
            mark(channel.clone(), "").await?;
        }
    };
    let in_force = async {
        tokio::select! {
            answer = subscribing => answer.map_err(|status| ContainerdError::of(what(), &status)),
            error = publishing => error,
        }
    };
    let answer = timeout(CALL_TIME_MAX, in_force)
        .await
        .map_err(|_| late(what()))??;
    Ok(Events {
        stream: answer.into_inner(),
    })
}

/// Publishes a marker. containerd hands each event to all subscribers before the next one, so who
/// hears the marker has heard what was published before it.
pub(super) async fn mark(channel: Channel, text: &str) -> Result<(), ContainerdError> {
    let marker = OneName {
        name: text.to_owned(),
    };
    let request = PublishRequest {
        topic: OWN_TOPIC.to_owned(),
        // A type that other subscribers can read.
        event: Some(prost_types::Any {
            type_url: "google.protobuf.StringValue".to_owned(),
            value: marker.encode_to_vec(),
        }),
    };
    let request = within(OWN_NAMESPACE, request)?;
    let mut client = EventsClient::new(channel);
    call(|| "publish a marker".to_owned(), client.publish(request)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_by_topic() {
        #[track_caller]
        fn check(topic: &str, event: &[u8], expect: Option<Event>) {
            assert_eq!(decode(topic, event), Ok(expect), "{topic}");
        }
        let id = || "web".to_owned();
        check(
            "/containers/create",
            // Field 3 is the runtime, which is not read.
            b"\x0a\x03web\x12\x02im\x1a\x03\x0a\x01r",
            Some(Event::ContainerCreated {
                id: id(),
                image: "im".to_owned(),
            }),
        );
        check(
            "/containers/delete",
            b"\x0a\x03web",
            Some(Event::ContainerDeleted { id: id() }),
        );
        check(
            "/tasks/create",
            b"\x0a\x03web\x12\x02/b\x30\x07",
            Some(Event::TaskCreated {
                id: id(),
                bundle: "/b".to_owned(),
                pid: 7,
            }),
        );
        // Field 5, the time, in any form.
        check(
            "/tasks/exit",
            b"\x0a\x03web\x12\x03web\x18\x07\x2a\x02\xff\xff",
            Some(Event::TaskExited { id: id(), pid: 7 }),
        );
        check("/tasks/exit", b"\x0a\x03web\x12\x02e1\x18\x07", None);
        check(
            "/images/update",
            b"\x0a\x01r\x12\x00",
            Some(Event::ImageChanged {
                name: "r".to_owned(),
            }),
        );
        check(
            OWN_TOPIC,
            b"\x0a\x017",
            Some(Event::Marker {
                text: "7".to_owned(),
            }),
        );
        check("/snapshot/prepare", b"\xff", None);
        check("", b"", None);
    }

    #[test]
    fn an_event_that_cannot_be_read_is_an_error() {
        for event in [&b"\xff"[..], b"\x0a\x05web", b"\x0a\x01\xff", b"\x08\x01"] {
            assert!(decode("/containers/create", event).is_err(), "{event:?}");
        }
    }
}
