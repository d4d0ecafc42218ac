//! Commands against a server in the same process.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io;

use monitor_api::{
    bytes::is_unsafe,
    v1::{Alert, Severity, alert},
};

use super::{
    args::{Parsed, parse},
    *,
};
use crate::api::fixture::{Fixture, HOSTILE};

fn parsed(line: &[&str]) -> Result<Parsed, Failure> {
    let line = std::iter::once(&"monitorctl").chain(line);
    parse(line.map(Into::into))
}

fn arguments(address: &str, line: &[&str]) -> Arguments {
    match parsed(&[line, &["--address", address]].concat()) {
        Ok(Parsed::Run(arguments)) => arguments,
        other => panic!("{line:?}: {other:?}"),
    }
}

async fn ran(
    fixture: &Fixture,
    terminal: Option<Terminal>,
    line: &[&str],
) -> (String, Result<(), Failure>) {
    let mut written = Vec::new();
    let arguments = arguments(&fixture.address.to_string(), line);
    let result = run(arguments, &mut written, terminal).await;
    (String::from_utf8(written).unwrap(), result)
}

/// What a command prints to a pipe.
async fn printed(fixture: &Fixture, line: &[&str]) -> String {
    let (text, result) = ran(fixture, None, line).await;
    assert!(result.is_ok(), "{line:?}: {result:?}");
    text
}

fn append(fixture: &Fixture, severity: Severity) {
    fixture.log.append(Alert {
        kind: "exec_added".to_owned(),
        severity: severity.into(),
        message: "not in\nthe image".to_owned(),
        container: Some(alert::Container {
            id: "c1".to_owned(),
            ..alert::Container::default()
        }),
        file: Some(alert::File {
            path: HOSTILE.to_vec(),
            ..alert::File::default()
        }),
        ..Alert::default()
    });
}

/// The cursors of alerts printed as JSON.
fn cursors(text: &str) -> Vec<String> {
    let cursor = |line: &str| {
        let alert: serde_json::Value = serde_json::from_str(line).unwrap();
        alert["cursor"].as_str().unwrap().to_owned()
    };
    text.lines().map(cursor).collect()
}

#[tokio::test]
async fn alerts_start_and_end_where_they_should() {
    let fixture = Fixture::new();
    fixture.append(150);
    let check = async |line: &[&str], expect: std::ops::RangeInclusive<u64>| {
        let text = printed(&fixture, &[&["alerts", "-o", "json"], line].concat()).await;
        assert_eq!(
            cursors(&text),
            expect.map(|n| n.to_string()).collect::<Vec<_>>(),
            "{line:?}"
        );
    };
    check(&[], 51..=150).await;
    check(&["--since", "0"], 1..=150).await;
    check(&["--since", "149"], 150..=150).await;
    #[expect(clippy::reversed_empty_ranges, reason = "nothing is expected")]
    check(&["--since", "150"], 1..=0).await;
    check(&["--limit", "3"], 148..=150).await;
    check(&["--since", "10", "--limit", "2"], 11..=12).await;
    check(&["--follow", "--limit", "2"], 149..=150).await;
}

#[tokio::test]
async fn policies_and_exceptions_are_told_safely() {
    let fixture = Fixture::new();
    append(&fixture, Severity::High);
    let rules = printed(&fixture, &["policy", "list"]).await;
    assert!(rules.contains("default.shell"), "{rules}");
    let exceptions = printed(&fixture, &["exception", "list"]).await;
    assert!(exceptions.contains("exceptions.a"), "{exceptions}");
    assert!(exceptions.lines().all(|line| !line.contains(is_unsafe)));
    let refused = async |line: &[&str], expect: &str| {
        let (_, result) = ran(&fixture, None, line).await;
        let failure = result.unwrap_err();
        assert_eq!(failure.exit_status(), 1, "{line:?}");
        assert!(failure.to_string().contains(expect), "{failure}");
    };
    refused(&["exception", "remove", "a.b"], "no exception \"a.b\"").await;
    let add = |id| {
        let line = "exception add --until 2027-01-01T00:00:00Z --reason r --from-alert";
        [line.split(' ').collect::<Vec<_>>(), vec![id]].concat()
    };
    let id = "01KAZ3N0W5T1QG4XJX1D3B9V7E";
    refused(&add("x"), "no ULID").await;
    refused(&add(id), "no such alert").await;
    fixture.log.append(Alert {
        id: id.to_owned(),
        ..Alert::default()
    });
    let made = printed(&fixture, &add(id)).await;
    assert!(made.contains("exceptions.b"), "{made}");
    refused(&["policy", "test", "/no/such", "--events", "-"], "/no/such").await;
}

#[tokio::test]
async fn rollbacks_are_told_safely() {
    let fixture = Fixture::new();
    let check = async |line: &[&str], expect: &str| {
        let told = printed(&fixture, line).await;
        assert!(told.contains(expect), "{told}");
        assert!(told.lines().all(|line| !line.contains(is_unsafe)), "{told}");
    };
    check(&["rollback", "plan", "web"], "planned").await;
    check(&["rollback", "web", "--dry-run"], "note").await;
    check(
        &["rollback", "web", "--dry-run", "-o", "json"],
        "\"id\":\"01J\"",
    )
    .await;
    check(&["rollback", "status"], "TARGET").await;
}

#[tokio::test]
async fn alerts_are_findings_of_ocsf_if_asked_for() {
    let fixture = Fixture::new();
    append(&fixture, Severity::High);
    let text = printed(&fixture, &["alerts", "-o", "ocsf"]).await;
    let finding: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(finding["class_uid"], 2004);
    assert_eq!(finding["metadata"]["sequence"], 1);
}

#[tokio::test]
async fn without_alerts_there_is_nothing_to_print() {
    let fixture = Fixture::new();
    assert_eq!(printed(&fixture, &["alerts", "-o", "json"]).await, "");
}

#[tokio::test]
async fn what_expired_does_not_keep_it_from_ending() {
    let fixture = Fixture::with(crate::alerts::AlertLog::bounded(2, usize::MAX));
    fixture.append(5);
    let text = printed(&fixture, &["alerts", "--since", "0", "-o", "json"]).await;
    assert_eq!(cursors(&text), ["4", "5"]);
}

#[tokio::test]
async fn an_alert_is_one_line_that_fits_the_terminal() {
    let fixture = Fixture::new();
    append(&fixture, Severity::Critical);
    let (text, result) = ran(
        &fixture,
        Some(Terminal {
            width: Some(90),
            colour: false,
        }),
        &["alerts"],
    )
    .await;
    assert!(result.is_ok());
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines.iter().all(|line| line.chars().count() <= 90),
        "{text}"
    );
    let whole = printed(&fixture, &["alerts"]).await;
    assert!(whole.ends_with("not in\\nthe image\n"), "{whole}");
}

#[tokio::test]
async fn only_a_terminal_gets_colour() {
    let fixture = Fixture::new();
    append(&fixture, Severity::Critical);
    let check = async |terminal, expect: bool| {
        let (text, _) = ran(&fixture, terminal, &["alerts"]).await;
        assert_eq!(
            text.contains("\u{1b}[1;31mcritical"),
            expect,
            "{terminal:?}: {text:?}"
        );
    };
    check(
        Some(Terminal {
            width: None,
            colour: true,
        }),
        true,
    )
    .await;
    check(
        Some(Terminal {
            width: None,
            colour: false,
        }),
        false,
    )
    .await;
    check(None, false).await;
}

#[tokio::test]
async fn nothing_hostile_reaches_a_terminal() {
    let fixture = Fixture::new();
    append(&fixture, Severity::High);
    let path = "/\u{1b}[2J\u{202e}";
    for line in [
        &["alerts"][..],
        &["containers"],
        &["container", "show", "c22"],
        &["image", "list"],
        &["image", "contents", "web", path],
        &["status"],
    ] {
        for format in ["table", "json"] {
            let text = printed(&fixture, &[line, &["-o", format]].concat()).await;
            assert!(!text.is_empty());
            let hostile = text.lines().find(|line| line.contains(is_unsafe));
            assert_eq!(hostile, None, "{line:?} {format}");
        }
    }
}

#[tokio::test]
async fn inventory_is_a_table_or_one_object_a_line() {
    let fixture = Fixture::new();
    let table = printed(&fixture, &["container", "list"]).await;
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.starts_with("NAMESPACE"), "{table}");
    assert!(table.contains("sha256:aaaaaaaaaaaa "), "{table}");
    assert_eq!(table, printed(&fixture, &["containers"]).await);

    let list = printed(&fixture, &["container", "list", "-o", "json"]).await;
    assert_eq!(list.lines().count(), 2);
    let first: serde_json::Value = serde_json::from_str(list.lines().next().unwrap()).unwrap();
    assert_eq!((&first["id"], &first["pid"]), (&"c1".into(), &42.into()));

    let coverage = [
        "container",
        "coverage",
        "web",
        "--from",
        "1970-01-01T00:00:50Z",
    ];
    let table = printed(&fixture, &coverage).await;
    assert!(table.contains("1970-01-01T00:00:50"), "{table}");
    assert!(
        table.contains("7 exec") && table.contains("7 ring_full"),
        "{table}"
    );
    let json = printed(&fixture, &[&coverage[..], &["-o", "json"]].concat()).await;
    assert_eq!(json.lines().count(), 2, "{json}");
    assert!(
        json.contains(r#""causes":{"ring_full":7}"#) && json.contains(r#""id":"c1""#),
        "{json}"
    );
    let show = printed(&fixture, &["container", "show", "web", "-o", "json"]).await;
    assert_eq!(
        show.lines().collect::<Vec<_>>(),
        [list.lines().next().unwrap()]
    );

    let contents = printed(&fixture, &["image", "contents", "web", "-o", "json"]).await;
    assert_eq!(contents.lines().count(), 300);
    let status = printed(&fixture, &["status", "-o", "json"]).await;
    assert_eq!(status.lines().count(), 1);
}

#[tokio::test]
async fn the_exit_status_says_how_it_ended() {
    let fixture = Fixture::new();
    let check = async |line: &[&str], expect: u8| {
        let (_, result) = ran(&fixture, None, line).await;
        let failure = result.unwrap_err();
        assert_eq!(failure.exit_status(), expect, "{line:?}: {failure}");
        assert_eq!(failure.to_string().lines().count(), 1, "{failure}");
    };
    check(&["container", "show", "c"], 1).await;
    check(&["container", "show", "another"], 1).await;
    check(&["container", "coverage", "another"], 1).await;
    check(&["image", "contents", "another"], 1).await;
    check(&["image", "contents", "corrupt"], 4).await;
    check(&["alerts", "--since", "7"], 4).await;
    check(&["status", "-o", "ocsf"], 2).await;
    check(&["rollback", "plan", "another"], 4).await;
    check(&["rollback", "apply", "01J"], 4).await;
    check(&["rollback", "web", "--reason", "r"], 4).await;
    check(&["rollback", "web"], 2).await;
    check(&["rollback"], 2).await;
    fixture.shutdown.send_replace(true);
    fixture.server.await.unwrap().unwrap();
    let arguments = arguments(&fixture.address.to_string(), &["status"]);
    let failure = run(arguments, &mut Vec::new(), None).await.unwrap_err();
    assert_eq!(failure.exit_status(), 3, "{failure}");
    assert!(failure.to_string().contains("start monitord"), "{failure}");
    drop(fixture.directory);
}

#[test]
fn a_wrong_command_line_is_told_in_one_line() {
    let check = |line: &[&str], expect: &str| {
        let failure = parsed(line).unwrap_err();
        assert_eq!(failure.exit_status(), 2);
        let text = failure.to_string();
        assert!(text.contains(expect), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    };
    check(&[], "a command is missing");
    check(&["container"], "a command is missing");
    check(&["container", "show"], "<CONTAINER>");
    check(
        &["container", "coverage", "web", "--to", "noon"],
        "\"noon\" is no time",
    );
    check(&["rollout", "plan"], "unrecognized subcommand 'rollout'");
    check(&["rollback", "plan"], "<TARGET>");
    check(&["rollback", "web", "--to", "latest"], "sha256:");
    check(&["alerts", "--since", "x"], "--since");
    check(&["alerts", "--limit", "0"], "--limit");
    check(&["status", "-o", "yaml"], "table, json");
    check(&["status", "--address", "tcp://h:1"], "TLS");
}

#[test]
fn help_has_examples() {
    for line in [
        &["--help"][..],
        &["alerts", "--help"],
        &["image", "contents", "--help"],
    ] {
        let Ok(Parsed::Print(text)) = parsed(line) else {
            panic!("{line:?}")
        };
        assert!(text.contains("Examples:"), "{text}");
    }
}

/// Does something once something is written to it.
struct OnWrite<F>(F);

impl<F: FnMut() -> io::Result<()>> Write for OnWrite<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn output_that_nobody_reads_is_no_failure() {
    let fixture = Fixture::new();
    fixture.append(3);
    let mut closed = OnWrite(|| Err(io::ErrorKind::BrokenPipe.into()));
    for line in [&["alerts", "--follow"][..], &["status"], &["containers"]] {
        let arguments = arguments(&fixture.address.to_string(), line);
        let failure = run(arguments, &mut closed, None).await.unwrap_err();
        assert_eq!(failure.exit_status(), 0, "{failure}");
    }
}

#[tokio::test]
async fn following_ends_when_the_daemon_stops() {
    let fixture = Fixture::new();
    fixture.append(1);
    let arguments = arguments(
        &fixture.address.to_string(),
        &["alerts", "-f", "-o", "json"],
    );
    let mut stops = OnWrite(|| {
        fixture.shutdown.send_replace(true);
        Ok(())
    });
    let failure = run(arguments, &mut stops, None).await.unwrap_err();
    assert_eq!(failure.exit_status(), 3, "{failure}");
}

#[test]
fn following_ends_when_the_daemon_is_killed() {
    let daemon = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let fixture = daemon.block_on(async { Fixture::new() });
    fixture.append(1);
    let client = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let arguments = arguments(
        &fixture.address.to_string(),
        &["alerts", "-f", "-o", "json"],
    );
    let mut daemon = Some(daemon);
    let mut kills = OnWrite(|| {
        // Drops all sockets without a word, as a kill does.
        daemon
            .take()
            .into_iter()
            .for_each(tokio::runtime::Runtime::shutdown_background);
        Ok(())
    });
    let failure = client
        .block_on(run(arguments, &mut kills, None))
        .unwrap_err();
    assert_eq!(failure.exit_status(), 3, "{failure}");
}
