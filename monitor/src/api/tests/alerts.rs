//! What the calls about alerts do beyond replaying and following.

use monitor_api::v1::{
    Alert, GetAlertRequest, ListAlertsRequest, Severity, get_alert_request::Alert as Which,
};

use super::*;

fn request(change: impl FnOnce(&mut Start)) -> AlertsRequest {
    let mut start = Start {
        position: Some(Position::After(0)),
        ..Start::default()
    };
    change(&mut start);
    AlertsRequest {
        start: Some(start),
        ..AlertsRequest::default()
    }
}

fn acknowledge(cursor: u64) -> AlertsRequest {
    AlertsRequest {
        acknowledge: cursor,
        ..AlertsRequest::default()
    }
}

fn credits(credits: u64) -> AlertsRequest {
    AlertsRequest {
        credits,
        ..AlertsRequest::default()
    }
}

#[tokio::test]
async fn a_cursor_of_another_journal_is_answered_with_all_there_is() {
    let fixture = Fixture::new();
    fixture.append(2);
    let mut client = fixture.client().await;
    let first = start("another", Some(Position::After(70)));
    let (_send, mut stream) = open(&mut client, first).await;
    expect(&mut stream, &["=2", "another journal", "1", "2"]).await;
}

#[tokio::test]
async fn a_named_consumer_resumes_after_what_it_acknowledged() {
    let fixture = Fixture::new();
    fixture.append(3);
    let mut client = fixture.client().await;
    let named = || {
        request(|start| {
            start.consumer = "soc".to_owned();
            start.position = Some(Position::Acknowledged(Acknowledged {}));
        })
    };
    let (send, mut stream) = open(&mut client, named()).await;
    expect(&mut stream, &["=3", "1", "2", "3"]).await;
    send.send(acknowledge(2)).await.unwrap();
    expect(&mut stream, &["+2"]).await;
    let (second, mut resumed) = open(&mut client, named()).await;
    expect(&mut resumed, &["=3", "3"]).await;
    assert_eq!(
        next(&mut stream).await,
        Err(Code::Aborted),
        "one of a name reads"
    );
    second.send(acknowledge(4)).await.unwrap();
    assert_eq!(next(&mut resumed).await, Err(Code::OutOfRange));

    let (send, mut nameless) = open(&mut client, request(|_| {})).await;
    expect(&mut nameless, &["=3", "1", "2", "3"]).await;
    send.send(acknowledge(1)).await.unwrap();
    assert_eq!(next(&mut nameless).await, Err(Code::InvalidArgument));
}

/// A stream of consumer `soc` of three alerts, that acknowledges `cursor`; what it says then.
async fn acknowledged(fixture: &Fixture, cursor: u64) -> Result<String, Code> {
    let mut client = fixture.client().await;
    let first = request(|start| start.consumer = "soc".to_owned());
    let (send, mut stream) = open(&mut client, first).await;
    expect(&mut stream, &["=3", "1", "2", "3"]).await;
    send.send(acknowledge(cursor)).await.unwrap();
    let said = next(&mut stream).await;
    if said.is_ok() {
        send.send(acknowledge(cursor + 1)).await.unwrap();
        expect(&mut stream, &[&format!("+{}", cursor + 1)]).await;
    }
    said
}

#[tokio::test]
async fn a_stream_s_first_acknowledgement_is_audited() {
    let fixture = Fixture::new();
    fixture.append(3);
    for cursor in [1, 2] {
        assert_eq!(
            acknowledged(&fixture, cursor).await,
            Ok(format!("+{cursor}"))
        );
    }
    let mut client = fixture.client().await;
    let page = client.list_audit(ListAuditRequest::default()).await;
    let records = page.unwrap().into_inner().records;
    let said: Vec<_> = records
        .iter()
        .map(|it| (it.object.as_str(), it.outcome.as_str()))
        .collect();
    let soc = "consumer/soc";
    assert_eq!(said, [(soc, "begun"), (soc, "done"), (soc, "done")]);
    let pid = format!("pid {}", std::process::id());
    assert!(records.iter().all(|it| it.peer == pid), "{records:?}");
}

#[tokio::test]
async fn no_consumer_is_registered_that_cannot_be_audited() {
    let directory = tempfile::TempDir::new().unwrap();
    std::fs::write(directory.path().join("audit"), "in the way").unwrap();
    let address = Address::Unix(directory.path().join("monitord.sock"));
    let fixture = Fixture::serving(AlertLog::new(), directory, &address, None);
    fixture.append(3);
    let refused = acknowledged(&fixture, 1).await;
    assert_eq!(refused, Err(Code::FailedPrecondition));
    assert_eq!(fixture.log.consumers().get("soc"), None);
    let status = fixture.client().await.status(StatusRequest {}).await;
    let audit = status.unwrap().into_inner().status.unwrap().audit.unwrap();
    assert!(!audit.fault.is_empty());
}

#[tokio::test]
async fn no_more_is_sent_than_credits_allow() {
    let fixture = Fixture::new();
    fixture.append(5);
    let mut client = fixture.client().await;
    let first = request(|start| {
        start.credits = Some(2);
        start.consumer = "soc".to_owned();
    });
    let (send, mut stream) = open(&mut client, first).await;
    expect(&mut stream, &["=5", "1", "2"]).await;
    // The answer to this comes before any further alert.
    send.send(acknowledge(1)).await.unwrap();
    expect(&mut stream, &["+1"]).await;
    send.send(credits(2)).await.unwrap();
    expect(&mut stream, &["3", "4"]).await;
}

#[tokio::test]
async fn a_filter_chooses_and_the_heartbeat_says_how_far_it_looked() {
    let fixture = Fixture::new();
    fixture.append(2);
    let severity = Severity::Critical.into();
    fixture.log.append(Alert {
        severity,
        ..Alert::default()
    });
    fixture.append(2);
    let mut client = fixture.client().await;
    let first = request(|start| start.filter = "severity == 'critical'".to_owned());
    let (_send, mut stream) = open(&mut client, first).await;
    expect(&mut stream, &["=5", "3"]).await;
    let Some(Response::Heartbeat(heartbeat)) = stream.message().await.unwrap().unwrap().response
    else {
        panic!("no heartbeat")
    };
    assert_eq!((heartbeat.position, heartbeat.filter_failed), (5, 0));
}

/// Many of them fit into what is sent at once.
#[tokio::test]
async fn none_of_many_short_alerts_is_passed_over() {
    const ALERTS: u64 = 500;
    let fixture = Fixture::new();
    for _ in 0..ALERTS {
        fixture.log.append(Alert::default());
    }
    let (_send, mut stream) = fixture.alerts(Position::After(0)).await;
    expect(&mut stream, &["=500"]).await;
    for cursor in 1..=ALERTS {
        expect(&mut stream, &[&cursor.to_string()]).await;
    }
}

#[tokio::test]
async fn each_stream_gets_what_it_wants_of_what_they_share() {
    const ALERTS: u64 = 300;
    let fixture = Fixture::new();
    let now = |change: fn(&mut Start)| {
        request(|start| {
            start.position = Some(Position::Now(Now {}));
            change(start);
        })
    };
    let mut client = fixture.client().await;
    let (_all, mut all) = open(&mut client, now(|_| {})).await;
    let critical = now(|start| start.filter = "severity == 'critical'".to_owned());
    let (_critical, mut critical) = open(&mut client, critical).await;
    let (credit, mut few) = open(&mut client, now(|start| start.credits = Some(2))).await;
    for stream in [&mut all, &mut critical, &mut few] {
        expect(stream, &["=0"]).await;
    }
    for cursor in 1..=ALERTS {
        let severity = if cursor % 50 < 3 {
            Severity::Critical
        } else {
            Severity::Info
        };
        fixture.log.append(Alert {
            severity: severity.into(),
            message: "x".repeat(1000),
            ..Alert::default()
        });
        if cursor % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let (_late, mut late) = fixture.alerts(Position::After(150)).await;
    expect(&mut late, &["=300"]).await;
    expect(&mut few, &["1", "2"]).await;
    credit.send(credits(150)).await.unwrap();
    for cursor in 1..=ALERTS {
        let text = cursor.to_string();
        expect(&mut all, &[&text]).await;
        if cursor % 50 < 3 {
            expect(&mut critical, &[&text]).await;
        }
        if (3..=152).contains(&cursor) {
            expect(&mut few, &[&text]).await;
        }
        if cursor > 150 {
            expect(&mut late, &[&text]).await;
        }
    }
}

#[tokio::test]
async fn a_stream_starts_at_a_time() {
    let fixture = Fixture::new();
    let at = |seconds| prost_types::Timestamp { seconds, nanos: 0 };
    for seconds in [10, 20, 30] {
        fixture.log.append(Alert {
            observed_time: Some(at(seconds)),
            ..Alert::default()
        });
    }
    let mut client = fixture.client().await;
    for (seconds, expected) in [
        (5, vec!["1", "2", "3"]),
        (11, vec!["2", "3"]),
        (20, vec!["2"]),
    ] {
        let first = request(|start| start.position = Some(Position::Time(at(seconds))));
        let (_send, mut stream) = open(&mut client, first).await;
        expect(&mut stream, &["=3"]).await;
        expect(&mut stream, &expected).await;
    }
}

#[tokio::test]
async fn alerts_are_listed_in_pages() {
    let fixture = Fixture::with(AlertLog::bounded(5, usize::MAX));
    fixture.append(7);
    let mut client = fixture.client().await;
    let mut list = async |page_token: &str, page_size| {
        let request = ListAlertsRequest {
            page_token: page_token.to_owned(),
            page_size,
            ..ListAlertsRequest::default()
        };
        client
            .list_alerts(request)
            .await
            .map(tonic::Response::into_inner)
    };
    let cursors = |alerts: &[Alert]| alerts.iter().map(|alert| alert.cursor).collect::<Vec<_>>();
    let first = list("", 3).await.unwrap();
    assert_eq!(cursors(&first.alerts), [3, 4, 5]);
    let second = list(&first.next_page_token, 3).await.unwrap();
    assert_eq!(cursors(&second.alerts), [6, 7]);
    assert_eq!(second.next_page_token, "");
    let token = format!("{}/1", fixture.log.journal());
    let expired = list(&token, 1).await.unwrap();
    assert_eq!(expired.expired.len(), 1);
    assert_eq!(code(list("another/1", 3).await), Code::FailedPrecondition);
    assert_eq!(code(list("nonsense", 3).await), Code::InvalidArgument);
    assert_eq!(code(list("", 1001).await), Code::InvalidArgument);
}

#[tokio::test]
async fn one_alert_is_found_by_cursor_and_in_its_last_revision_by_id() {
    let fixture = Fixture::new();
    let id = ulid::Ulid::new().to_string();
    for revision in 1..=3 {
        fixture.log.append(Alert {
            id: id.clone(),
            revision,
            ..Alert::default()
        });
    }
    let mut client = fixture.client().await;
    let mut get = async |alert| {
        let found = client.get_alert(GetAlertRequest { alert }).await;
        found.map(|found| found.into_inner().alert.unwrap().revision)
    };
    assert_eq!(get(Some(Which::Cursor(2))).await.unwrap(), 2);
    assert_eq!(get(Some(Which::Id(id))).await.unwrap(), 3);
    assert_eq!(code(get(Some(Which::Cursor(4))).await), Code::NotFound);
    let another = ulid::Ulid::new().to_string();
    assert_eq!(code(get(Some(Which::Id(another))).await), Code::NotFound);
    assert_eq!(
        code(get(Some(Which::Id("x".to_owned()))).await),
        Code::InvalidArgument
    );
    assert_eq!(code(get(None).await), Code::InvalidArgument);
}
