#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;

use monitor_api::{json, v1::Alert};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::alerts::Retention;

const PATIENCE: Duration = Duration::from_secs(30);

fn settings(name: &str, kind: Kind, path: PathBuf) -> Settings {
    Settings {
        name: name.to_owned(),
        kind,
        path: Some(path),
        nats: None,
    }
}

fn start(outputs: &[Settings], log: &AlertLog) -> io::Result<Outputs> {
    Outputs::start(outputs, log, "", "node")
}

fn append(log: &AlertLog, count: usize) {
    for number in 0..count {
        log.append(Alert {
            schema: monitor_api::SCHEMA.to_owned(),
            message: format!("alert {number}"),
            ..Alert::default()
        });
    }
}

async fn until(outputs: &Outputs, is_done: impl Fn(&v1::status::Output) -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !outputs.status().iter().all(&is_done) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "{:#?}", outputs.status());
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn open(directory: &TempDir) -> AlertLog {
    let retention = Retention {
        bytes_max: 1 << 20,
        age_max: Duration::from_secs(3600),
    };
    AlertLog::open(&directory.path().join("journal"), retention).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_go_on_where_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let (jsonl, ocsf) = (
        directory.path().join("jsonl"),
        directory.path().join("ocsf"),
    );
    let all = [
        settings("a", Kind::Jsonl, jsonl.clone()),
        settings("b", Kind::Ocsf, ocsf.clone()),
    ];
    let mut expect = Vec::new();
    for round in 1..=2 {
        let log = open(&directory);
        let outputs = start(&all, &log).unwrap();
        append(&log, 100);
        expect.extend(log.recent().iter().map(|alert| json::alert(alert)));
        expect.dedup_by_key(|alert| alert["cursor"].clone());
        log.close();
        outputs.stop().await;
        log.consumers().save().await.unwrap();
        assert_eq!(outputs.status()[0].written, 100, "round {round}");
        assert_eq!(outputs.status()[0].cursor, round * 100);
    }
    assert_eq!(lines(&jsonl).len(), 200);
    expect.sort_by_key(|alert| alert["cursor"].as_str().unwrap().parse::<u64>().unwrap());
    expect.dedup();
    assert_eq!(lines(&jsonl), expect);
    let uids = lines(&ocsf);
    let uids = uids.iter().map(|finding| &finding["metadata"]["sequence"]);
    assert!(uids.eq(&(1..=200).map(|n| json!(n)).collect::<Vec<_>>()));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_write_tries_again_and_tells_what_expired() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("missing/alerts");
    let good = directory.path().join("good");
    let log = AlertLog::bounded(10, 1 << 20);
    let broken = settings("broken", Kind::Jsonl, path.clone());
    let outputs = start(&[broken, settings("good", Kind::Jsonl, good.clone())], &log).unwrap();
    append(&log, 1);
    until(&outputs, |output| {
        output.name == "good" || output.failures > 1
    })
    .await;
    for _ in 0..10 {
        let before = log.newest();
        append(&log, 5);
        until(&outputs, |output| {
            output.name == "broken" || output.cursor == before + 5
        })
        .await;
    }
    assert!(outputs.status()[0].error.contains("missing/alerts"));
    fs::create_dir(path.parent().unwrap()).unwrap();
    until(&outputs, |output| output.cursor == 51).await;
    assert_eq!(lines(&good).len(), 51, "nobody else waited");
    let written = lines(&path);
    let gap = written
        .iter()
        .find(|line| line.get("missing").is_some())
        .unwrap();
    assert_eq!(gap["missing"]["before"], "42");
    assert_eq!(gap["missing"]["reason"], "expired");
    assert_eq!(gap["journal"], log.journal());
    let from: u64 = gap["missing"]["from"].as_str().unwrap().parse().unwrap();
    let status = &outputs.status()[0];
    assert_eq!((status.missing, status.error.as_str()), (42 - from, ""));
    let cursors = written.iter().filter_map(|line| line.get("cursor"));
    let expect = (1..from)
        .chain(42..=51)
        .map(|cursor| json!(cursor.to_string()));
    assert!(cursors.eq(&expect.collect::<Vec<_>>()), "{written:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_journal_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("alerts");
    let log = AlertLog::new();
    log.consumers().acknowledge("output:a", "gone", 7).unwrap();
    let outputs = start(&[settings("a", Kind::Jsonl, path.clone())], &log).unwrap();
    append(&log, 1);
    until(&outputs, |output| output.cursor == 1).await;
    let written = lines(&path);
    let told = json!({"from": "8", "before": null, "reason": "journal_changed"});
    assert_eq!(
        (&written[0]["journal"], &written[0]["missing"]),
        (&json!("gone"), &told)
    );
    assert_eq!(written[1]["cursor"], "1");
}
