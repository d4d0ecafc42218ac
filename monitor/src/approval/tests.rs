#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use super::*;
use crate::image::manifest::digest_of;

const REPOSITORY: &str = "example.org/web";

fn digest(name: &str) -> Digest {
    digest_of(name.as_bytes())
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// `+a` approves and `-a` revokes the image `a`; `+a<9` approves until second 9. Each a second after
/// the one before, from second 1 on.
fn document(said: &str) -> Document {
    let mut document = Document::new(REPOSITORY);
    for (word, second) in said.split_whitespace().zip(1..) {
        let (sign, rest) = word.split_at(1);
        let (name, until) = rest.split_once('<').unwrap_or((rest, ""));
        document.statements.push(Statement {
            digest: digest(name),
            state: if sign == "+" {
                State::Approved
            } else {
                State::Revoked
            },
            by: "alice".to_owned(),
            at: at(second),
            reason: word.to_owned(),
            until: until.parse().ok().map(at),
        });
    }
    document
}

#[test]
fn the_newest_statement_of_a_digest_counts() {
    let check = |said: &str, names: &str, now: i64, expect: &str| {
        let approvals = Approvals::new(&[document(said)]).unwrap();
        let digests: Vec<Digest> = names.split_whitespace().map(digest).collect();
        let standing = approvals.standing(REPOSITORY, &digests, at(now));
        assert_eq!(standing.name(), expect, "{names} of {said} at {now}");
    };
    check("+a", "a", 5, "approved");
    check("+a", "b", 5, "unapproved");
    check("+a", "", 5, "unapproved");
    check("+a -a", "a", 5, "revoked");
    check("+a -a +a", "a", 5, "approved");
    check("-a", "a", 5, "revoked");
    check("+a<4", "a", 3, "approved");
    check("+a<4", "a", 4, "expired");
    check("+a<4 +a", "a", 5, "approved");
    // Before its time a statement does not hold.
    check("+b +a", "a", 1, "unapproved");
    check("+a -a", "a", 1, "approved");
    // Known by its manifest and by its index.
    check("+index", "manifest index", 5, "approved");
    check("+index -manifest", "manifest index", 5, "revoked");
    check("+manifest -index", "manifest index", 5, "revoked");
    check("+index<2 +manifest", "manifest index", 5, "expired");
    check("+other", "manifest index", 5, "unapproved");
}

#[test]
fn of_two_at_the_same_time_the_revocation_counts() {
    let (mut approved, revoked) = (document("+a"), document("-a"));
    approved.statements.extend(revoked.statements);
    let approvals = Approvals::new(&[approved]).unwrap();
    let standing = approvals.standing(REPOSITORY, &[digest("a")], at(9));
    assert_eq!(standing.name(), "revoked");
}

#[test]
fn a_repository_without_statements_is_unmanaged() {
    let approvals = Approvals::new(&[document("+a")]).unwrap();
    let standing = approvals.standing("example.org/other", &[digest("a")], at(9));
    assert_eq!(standing, Standing::Unmanaged);
    let worst = approvals.worst("example.org/other", &[], at(9));
    assert_eq!(worst, Standing::Unmanaged);
    assert_eq!(
        approvals.worst(REPOSITORY, &[], at(9)),
        Standing::Unapproved
    );
}

#[test]
fn of_several_candidates_each_must_be_approved() {
    let check = |said: &str, candidates: &[&str], expect: &str| {
        let approvals = Approvals::new(&[document(said)]).unwrap();
        let images: Vec<Vec<Digest>> = candidates.iter().map(|it| vec![digest(it)]).collect();
        let worst = approvals.worst(REPOSITORY, &images, at(9));
        assert_eq!(worst.name(), expect, "{candidates:?} of {said}");
    };
    check("+a +b", &["a", "b"], "approved");
    check("+a", &["a", "b"], "unapproved");
    check("+a +b -b", &["a", "b"], "revoked");
}

#[test]
fn approved_before_is_newest_first() {
    let check = |said: &str, running: &str, expect: &[&str]| {
        let approvals = Approvals::new(&[document(said)]).unwrap();
        let before = approvals.approved_before(REPOSITORY, &digest(running), at(9));
        let before: Vec<Digest> = before.iter().map(|it| it.digest).collect();
        let expect: Vec<Digest> = expect.iter().map(|it| digest(it)).collect();
        assert_eq!(before, expect, "before {running} of {said}");
    };
    check("+a +b +c", "c", &["b", "a"]);
    check("+a +b +c", "b", &["a"]);
    check("+a +b +c", "a", &[]);
    // Never approved: whatever is.
    check("+a +b", "z", &["b", "a"]);
    // Revoked or over by now.
    check("+a +b +c -b", "c", &["a"]);
    check("+a<5 +b +c", "c", &["b"]);
    check("+a +b -b", "b", &["a"]);
    // Approved again later, which is not before.
    check("+a +b +a", "b", &["a"]);
    check("+a +b +a", "a", &["b"]);
}

#[test]
fn what_is_said_changes_at_the_times_of_statements() {
    let approvals = Approvals::new(&[document("+a +b<7")]).unwrap();
    let check = |now: i64, expect: Option<i64>| {
        assert_eq!(approvals.next_change(at(now)), expect.map(at), "{now}");
    };
    check(0, Some(1));
    check(1, Some(2));
    check(2, Some(7));
    check(7, None);
}

#[test]
fn a_full_document_makes_room_only_where_nothing_changes() {
    let said = |name: &str, sign: &str| document(&format!("{sign}{name}")).statements.remove(0);
    let full = |first: &str| {
        let mut document = document(first);
        let more = (document.statements.len()..STATEMENTS_MAX)
            .map(|index| said(&format!("n{index}"), "+"));
        document.statements.extend(more);
        document
    };
    let check = |first: &str, elsewhere: &str, expect: bool| {
        let mut document = full(first);
        let elsewhere = Approvals::new(&[self::document(elsewhere)]).unwrap();
        let added = document.add(said("new", "+"), &elsewhere);
        assert_eq!(added.is_ok(), expect, "{first}, elsewhere {elsewhere:?}");
        assert_eq!(document.statements.len(), STATEMENTS_MAX);
    };
    check("+a", "", false);
    check("+a -a", "", true);
    check("-a", "", true);
    // Without the revocation the approval elsewhere would hold again.
    check("-a", "+a", false);
    let mut revoked_again = full("+a");
    let added = revoked_again.add(said("a", "-"), &Approvals::default());
    assert!(added.is_ok());
}

#[test]
fn a_document_is_taken_whole_or_refused_with_its_place() {
    let hex = "ab".repeat(32);
    let header = format!("apiVersion: monitor.v1\nkind: ImageApproval\nrepository: {REPOSITORY}\n");
    let statement = format!(
        "statements:\n- digest: sha256:{hex}\n  state: approved\n  by: alice\n  at: 2026-11-27T10:00:00Z\n  reason: release 42\n"
    );
    let check = |text: &str, expect: Result<(), &str>| match (Document::parse(text), expect) {
        (Ok(document), Ok(())) => {
            let again = Document::parse(&document.to_yaml().unwrap()).unwrap();
            assert_eq!(again, document);
        }
        (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{text}: {error}"),
        (found, _) => panic!("{text}: {found:?}"),
    };
    let whole = format!("{header}{statement}");
    check(&whole, Ok(()));
    check(&format!("{whole}  until: 2026-12-01T00:00:00Z\n"), Ok(()));
    check(&whole.replace("approved", "revoked"), Ok(()));
    check(&whole.replace("monitor.v1", "v2"), Err("apiVersion"));
    check(&whole.replace("reason", "why"), Err("why"));
    check(&whole.replace("approved", "maybe"), Err("maybe"));
    check(&whole.replace(&hex, "ab"), Err("sha256"));
    check(&whole.replace("/web", "/web:1"), Err("has a tag"));
    check(&whole.replace("/web", "/w b"), Err("no repository"));
    check(&whole.replace("release 42", "''"), Err("reason has 1 to"));
    check(
        &format!("{whole}  until: 2026-11-27T10:00:00Z\n"),
        Err("until is not after at"),
    );
    check(
        &format!(
            "{}  until: 2026-12-01T00:00:00Z\n",
            whole.replace("approved", "revoked")
        ),
        Err("a revocation has no end"),
    );
    check("", Err(""));
}
