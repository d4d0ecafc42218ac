//! What clients of the API are given.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fmt::Debug;

use monitor_api::v1::{
    AlertsRequest, AlertsResponse, ContainersRequest, ImageContentsRequest, ImagesRequest,
    ListAuditRequest, StatusRequest, VerifyAuditRequest,
    alerts_request::{Acknowledged, Now, Oldest, Start, start::Position},
    alerts_response::{Expired, Response},
    monitor_client::MonitorClient,
};
use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

mod alerts;
mod join;
mod tls;

use super::{fixture::Fixture, *};
use crate::alerts::AlertLog;

impl Fixture {
    async fn channel(&self) -> Channel {
        Endpoint::from_shared(self.address.to_string())
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    async fn client(&self) -> MonitorClient<Channel> {
        MonitorClient::new(self.channel().await)
    }

    /// A stream that starts at `position`; its request side stays open with the sender.
    async fn alerts(
        &self,
        position: Position,
    ) -> (mpsc::Sender<AlertsRequest>, Streaming<AlertsResponse>) {
        open(&mut self.client().await, start("", Some(position))).await
    }
}

fn start(journal: &str, position: Option<Position>) -> AlertsRequest {
    AlertsRequest {
        start: Some(Start {
            journal: journal.to_owned(),
            position,
            ..Start::default()
        }),
        ..AlertsRequest::default()
    }
}

async fn open(
    client: &mut MonitorClient<Channel>,
    first: AlertsRequest,
) -> (mpsc::Sender<AlertsRequest>, Streaming<AlertsResponse>) {
    let (send, requests) = mpsc::channel(1);
    send.send(first).await.unwrap();
    let stream = client
        .alerts(ReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    (send, stream)
}

/// The next message as text: `1` an alert, `=2` a heartbeat, `1..2` what expired.
async fn next(stream: &mut Streaming<AlertsResponse>) -> Result<String, Code> {
    let message = stream.message().await.map_err(|status| status.code())?;
    Ok(match message.and_then(|message| message.response) {
        Some(Response::Alert(alert)) => alert.cursor.to_string(),
        Some(Response::Heartbeat(heartbeat)) => format!("={}", heartbeat.cursor),
        Some(Response::Expired(Expired { from, before })) => format!("{from}..{before}"),
        Some(Response::Gap(gap)) => format!("{}..{} {}", gap.from, gap.before, gap.reason),
        Some(Response::JournalChanged(_)) => "another journal".to_owned(),
        Some(Response::Acknowledged(acknowledged)) => format!("+{}", acknowledged.cursor),
        None => "end".to_owned(),
    })
}

async fn expect(stream: &mut Streaming<AlertsResponse>, expect: &[&str]) {
    for expect in expect {
        assert_eq!(next(stream).await.as_deref(), Ok(*expect));
    }
}

fn code<T: Debug>(result: Result<T, tonic::Status>) -> Code {
    result.unwrap_err().code()
}

#[tokio::test]
async fn alerts_are_replayed_and_then_live() {
    let fixture = Fixture::new();
    fixture.append(2);
    let (_first, mut all) = fixture.alerts(Position::After(0)).await;
    let (_second, mut live) = fixture.alerts(Position::Now(Now {})).await;
    let (_third, mut last) = fixture.alerts(Position::Last(1)).await;
    let (_fourth, mut oldest) = fixture.alerts(Position::Oldest(Oldest {})).await;
    for stream in [&mut all, &mut live, &mut last, &mut oldest] {
        expect(stream, &["=2"]).await;
    }
    fixture.append(1);
    expect(&mut all, &["1", "2", "3"]).await;
    expect(&mut live, &["3"]).await;
    expect(&mut last, &["2", "3"]).await;
    expect(&mut oldest, &["1", "2", "3"]).await;
}

#[tokio::test]
async fn what_expired_is_told() {
    let fixture = Fixture::with(AlertLog::bounded(2, usize::MAX));
    fixture.append(5);
    let (_send, mut stream) = fixture.alerts(Position::After(1)).await;
    expect(&mut stream, &["=5", "2..4", "4", "5"]).await;
}

#[tokio::test]
async fn a_client_may_close_its_side_and_read_on() {
    let fixture = Fixture::new();
    let (send, mut stream) = fixture.alerts(Position::After(0)).await;
    drop(send);
    expect(&mut stream, &["=0"]).await;
    fixture.append(1);
    expect(&mut stream, &["1"]).await;
}

#[tokio::test]
async fn a_start_that_makes_no_sense_is_refused() {
    let fixture = Fixture::new();
    fixture.append(1);
    let mut client = fixture.client().await;
    let mut check = async |first: AlertsRequest, expect: Result<&str, Code>| {
        let (_send, mut stream) = open(&mut client, first.clone()).await;
        let said = next(&mut stream).await;
        assert_eq!(
            said.as_deref(),
            expect.as_ref().map(|text| &**text),
            "{first:?}"
        );
    };
    check(AlertsRequest::default(), Err(Code::InvalidArgument)).await;
    check(start("", None), Err(Code::InvalidArgument)).await;
    check(
        start("", Some(Position::Acknowledged(Acknowledged {}))),
        Err(Code::InvalidArgument),
    )
    .await;
    let with = |change: fn(&mut Start)| {
        let mut request = start("", Some(Position::After(0)));
        request.start.iter_mut().for_each(change);
        request
    };
    check(
        with(|start| start.filter = "sevirity == 'low'".to_owned()),
        Err(Code::InvalidArgument),
    )
    .await;
    check(
        with(|start| start.consumer = "a b".to_owned()),
        Err(Code::InvalidArgument),
    )
    .await;
    check(start("", Some(Position::After(2))), Err(Code::OutOfRange)).await;
    check(
        start(fixture.log.journal(), Some(Position::After(1))),
        Ok("=1"),
    )
    .await;
}

#[tokio::test]
async fn only_the_first_request_says_something() {
    let fixture = Fixture::new();
    let (send, mut stream) = fixture.alerts(Position::After(0)).await;
    expect(&mut stream, &["=0"]).await;
    send.send(start("", Some(Position::After(0))))
        .await
        .unwrap();
    assert_eq!(next(&mut stream).await, Err(Code::InvalidArgument));
}

#[tokio::test]
async fn one_that_does_not_read_slows_nobody() {
    const ALERTS: u64 = 20_000;
    let fixture = Fixture::new();
    let (_first, mut idle) = fixture.alerts(Position::After(0)).await;
    let (_second, mut busy) = fixture.alerts(Position::After(0)).await;
    expect(&mut busy, &["=0"]).await;
    for cursor in 1..=ALERTS {
        fixture.append(1);
        expect(&mut busy, &[&cursor.to_string()]).await;
    }
    // The idle one has each alert as well, or is told that it is gone.
    let mut read = 0;
    while read < ALERTS {
        match idle.message().await.unwrap().unwrap().response {
            Some(Response::Alert(alert)) => {
                assert_eq!(alert.cursor, read + 1);
                read = alert.cursor;
            }
            Some(Response::Expired(expired)) => {
                assert_eq!(expired.from, read + 1);
                read = expired.before - 1;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn too_many_alert_streams_are_refused_and_counted() {
    let fixture = Fixture::new();
    let mut open = Vec::new();
    for _ in 0..ALERT_STREAMS_MAX {
        let (send, mut stream) = fixture.alerts(Position::Now(Now {})).await;
        expect(&mut stream, &["=0"]).await;
        open.push((send, stream));
    }
    let mut client = fixture.client().await;
    let request = tokio_stream::once(start("", Some(Position::Now(Now {}))));
    assert_eq!(code(client.alerts(request).await), Code::ResourceExhausted);
    let api = client
        .status(StatusRequest {})
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap()
        .api;
    let api = api.unwrap();
    let limit = u64::try_from(ALERT_STREAMS_MAX).unwrap();
    assert_eq!((api.alert_streams, api.alert_streams_refused), (limit, 1));
}

#[tokio::test]
async fn too_many_connections_are_closed() {
    let fixture = Fixture::new();
    let mut client = fixture.client().await;
    let mut open = Vec::new();
    for _ in 1..CONNECTIONS_MAX {
        open.push(
            UnixStream::connect(fixture.address.path().unwrap())
                .await
                .unwrap(),
        );
    }
    let one_more = UnixStream::connect(fixture.address.path().unwrap())
        .await
        .unwrap();
    one_more.readable().await.unwrap();
    assert_eq!(
        one_more.try_read(&mut [0; 1]).ok(),
        Some(0),
        "the end of the stream"
    );
    let status = client
        .status(StatusRequest {})
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    let limit = u64::try_from(CONNECTIONS_MAX).unwrap();
    let api = status.api.unwrap();
    assert_eq!((api.connections, api.connections_refused), (limit, 1));
}

#[tokio::test]
async fn health_follows_readiness() {
    let fixture = Fixture::new();
    let mut client = HealthClient::new(fixture.channel().await);
    for service in ["", "monitor.v1.Monitor"] {
        fixture.ready.send_replace(false);
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut watch = client.watch(request).await.unwrap().into_inner();
        let mut last = None;
        for (ready, expect) in [(false, "NOT_SERVING"), (true, "SERVING")] {
            fixture.ready.send_replace(ready);
            while last != Some(expect) {
                let response = watch.message().await.unwrap().unwrap();
                last = Some(response.status().as_str_name());
            }
        }
    }
    let request = HealthCheckRequest {
        service: "another".to_owned(),
    };
    assert_eq!(code(client.check(request).await), Code::NotFound);
}

#[tokio::test]
async fn before_it_is_ready_health_says_so() {
    let fixture = Fixture::new();
    let mut client = HealthClient::new(fixture.channel().await);
    for service in ["", "monitor.v1.Monitor"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let response = client.check(request).await.unwrap().into_inner();
        assert_eq!(
            response.status().as_str_name(),
            "NOT_SERVING",
            "{service:?}"
        );
    }
}

#[tokio::test]
async fn reflection_lists_and_describes_the_service() {
    let fixture = Fixture::new();
    let mut client = ServerReflectionClient::new(fixture.channel().await);
    let requests = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("monitor.v1.Monitor".to_owned()),
        MessageRequest::FileByFilename("google/protobuf/struct.proto".to_owned()),
    ]
    .map(|request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    });
    let responses = client
        .server_reflection_info(tokio_stream::iter(requests))
        .await
        .unwrap();
    let mut responses = responses.into_inner();
    let mut next = async || {
        responses
            .message()
            .await
            .unwrap()
            .unwrap()
            .message_response
            .unwrap()
    };
    let MessageResponse::ListServicesResponse(services) = next().await else {
        panic!("not a list of services")
    };
    let mut names: Vec<_> = services
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "monitor.v1.Approvals",
            "monitor.v1.Monitor",
            "monitor.v1.Policies",
            "monitor.v1.Profiles",
            "monitor.v1.Rollbacks"
        ]
    );
    for _ in 0..2 {
        assert!(matches!(
            next().await,
            MessageResponse::FileDescriptorResponse(_)
        ));
    }
}

#[tokio::test]
async fn what_there_is_is_given_before_the_end() {
    let fixture = Fixture::new();
    let (_send, mut stream) = fixture.alerts(Position::After(0)).await;
    expect(&mut stream, &["=0"]).await;
    fixture.append(40);
    fixture.shutdown.send_replace(true);
    for cursor in 1..=40 {
        expect(&mut stream, &[&cursor.to_string()]).await;
    }
    assert_eq!(next(&mut stream).await, Err(Code::Unavailable));
    fixture.server.await.unwrap().unwrap();
    assert!(!fixture.address.path().unwrap().exists());
}

#[tokio::test]
async fn contents_come_in_messages_of_bounded_size() {
    let fixture = Fixture::new();
    let mut client = fixture.client().await;
    let mut check = async |image: &str, path: &[u8], expect: &[usize]| {
        let request = ImageContentsRequest {
            image: image.to_owned(),
            path: path.to_vec(),
        };
        let mut stream = client.image_contents(request).await.unwrap().into_inner();
        let mut sizes = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            assert_eq!(message.manifest_digest, "sha256:aa");
            sizes.push(message.entries.len());
        }
        assert_eq!(sizes, expect);
    };
    check("web", b"", &[128, 128, 44]).await;
    check("web", b"/bin/sh", &[1]).await;
    check("empty", b"", &[0]).await;
}

#[tokio::test]
async fn contents_that_cannot_be_had_are_an_error() {
    let fixture = Fixture::new();
    let mut client = fixture.client().await;
    let mut check = async |image: &str, path: &[u8], expect: Code| {
        let request = ImageContentsRequest {
            image: image.to_owned(),
            path: path.to_vec(),
        };
        assert_eq!(code(client.image_contents(request).await), expect);
    };
    check("", b"", Code::InvalidArgument).await;
    check(&"x".repeat(1025), b"", Code::InvalidArgument).await;
    check("web", &[b'x'; 4097], Code::InvalidArgument).await;
    check("web", b"/\0", Code::InvalidArgument).await;
    check("another", b"", Code::NotFound).await;
    check("corrupt", b"", Code::FailedPrecondition).await;
}

#[tokio::test]
async fn inventory_and_status_are_answered() {
    let fixture = Fixture::new();
    fixture.append(3);
    fixture.ready.send_replace(true);
    let mut client = fixture.client().await;
    let mut containers = client
        .containers(ContainersRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut count = 0;
    while containers.message().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 2);
    let mut images = client.images(ImagesRequest {}).await.unwrap().into_inner();
    assert_eq!(
        images
            .message()
            .await
            .unwrap()
            .unwrap()
            .image
            .unwrap()
            .state,
        "indexed"
    );

    let status = client
        .status(StatusRequest {})
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    let alerts = status.alerts.unwrap();
    assert_eq!((status.node.as_str(), status.ready), ("node-7", true));
    assert_eq!((alerts.oldest_cursor, alerts.newest_cursor), (1, 3));
    assert_eq!(alerts.by_kind.get("exec_added"), Some(&3));
    assert!(status.memory_resident_bytes > 0);
}
