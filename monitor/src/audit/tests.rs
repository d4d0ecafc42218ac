#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tempfile::TempDir;

use super::{fixture::who, *};

const CALL: Call<'static> = Call {
    method: "Approve",
    object: "image/x",
    detail: "",
};

/// A change that fails, or says when it is made.
async fn change(audit: &Audit, fails: bool) -> (Result<(), String>, bool) {
    let is_made = Arc::new(AtomicBool::new(false));
    let made = Arc::clone(&is_made);
    let who = who();
    let result = audit.change(&who, CALL, async move {
        if fails {
            return Err(Failed("no such image".to_owned()));
        }
        made.store(true, Ordering::Relaxed);
        Ok(())
    });
    let result = result.await.map_err(|error| error.0);
    (result, is_made.load(Ordering::Relaxed))
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

impl From<AuditError> for Failed {
    fn from(error: AuditError) -> Self {
        Self(error.to_string())
    }
}

async fn outcomes(audit: &Audit) -> Vec<(String, u64)> {
    let page = audit.page(0, 100).await.unwrap();
    let entries = page.into_iter().map(|record| record.entry);
    entries.map(|entry| (entry.outcome, entry.count)).collect()
}

#[tokio::test]
async fn a_change_has_a_record_before_it_and_one_after() {
    let directory = TempDir::new().unwrap();
    let audit = Audit::start(directory.path()).unwrap();
    assert_eq!(change(&audit, false).await, (Ok(()), true));
    let failed = Err("no such image".to_owned());
    assert_eq!(change(&audit, true).await, (failed, false));
    let expect = ["begun", "done", "begun", "failed"].map(|it| (it.to_owned(), 1));
    assert_eq!(outcomes(&audit).await, expect);
    let report = audit.check(None).await.unwrap();
    assert_eq!((report.records, report.broken), (4, 0));
    assert_eq!(report.last, Some(audit.summary().head));
}

#[tokio::test]
async fn nothing_is_changed_while_it_cannot_be_recorded() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("audit");
    fs::write(&path, "in the way").unwrap();
    let audit = Audit::start(&path).unwrap();
    let (result, is_made) = change(&audit, false).await;
    assert!(!is_made);
    assert!(result.unwrap_err().contains("Nothing was changed"));
    audit.note(&who(), CALL, Outcome::Refused).await;
    assert!(audit.summary().fault.is_some());
    fs::remove_file(&path).unwrap();
    assert_eq!(change(&audit, false).await, (Ok(()), true));
    audit.flush().await;
    assert_eq!(audit.summary().fault, None);
    let expect = ["begun", "done", "refused"].map(|it| (it.to_owned(), 1));
    assert_eq!(outcomes(&audit).await, expect);
}

#[tokio::test]
async fn repeats_are_counted() {
    let directory = TempDir::new().unwrap();
    let audit = Audit::start(directory.path()).unwrap();
    for _ in 0..100 {
        audit.note(&who(), CALL, Outcome::Refused).await;
    }
    audit.flush().await;
    let expect = [1, 99].map(|count| ("refused".to_owned(), count));
    assert_eq!(outcomes(&audit).await, expect);
}

#[test]
fn a_long_text_is_cut() {
    let who = Who {
        name: "é".repeat(TEXT_BYTES_MAX),
        ..who()
    };
    let entry = entry(&who, CALL, Outcome::Done);
    assert_eq!(entry.caller.chars().count(), TEXT_BYTES_MAX / 2 + 1);
}
