//! Profiles as documents.

use proptest::prelude::*;
use serde_json::Value;

use super::{super::*, at, events, learned, web};

const SCHEMA: &str = include_str!("../../../../docs/profile.schema.json");
const PAGE: &str = include_str!("../../../../docs/profile.md");

#[test]
fn a_document_is_read_as_it_was_written() {
    let document = web().document();
    let yaml = document.to_yaml();
    assert_eq!(Document::parse(&yaml), Ok(document), "{yaml}");
}

/// A document in which every key is.
fn full() -> String {
    let page = PAGE.split("```yaml\n").nth(1).unwrap();
    page.split("```").next().unwrap().to_owned()
}

#[test]
fn the_page_shows_a_document_as_it_is_written() {
    let document = Document::parse(&full()).unwrap();
    assert_eq!(document.to_yaml(), full());
}

#[test]
fn a_wrong_document_is_told_with_its_line() {
    let check = |from: &str, to: &str, line: u64, message: &str| {
        let text = full().replacen(from, to, 1);
        assert_ne!(text, full(), "{from}");
        match Document::parse(&text) {
            Err(DocumentError::At {
                line: seen,
                message: told,
                ..
            }) => {
                assert!(told.contains(message), "{told}");
                assert_eq!(seen, line, "{told}");
            }
            other => panic!("{to}: {other:?}"),
        }
    };
    check("kind: Profile", "kind: Policy", 2, "only Profile");
    check(
        "apiVersion: monitor.v1",
        "apiVersion: monitor.v2",
        1,
        "only monitor.v1",
    );
    check("state: ", "stat: ", 9, "unknown field");
    check(
        "state: frozen",
        "state: cold",
        9,
        "seeded, learning or frozen",
    );
    check("  reference: ", "  referenc: ", 4, "unknown field");
    for (from, to, message) in [
        (
            "access: readwrite",
            "access: execute",
            "read, write or readwrite",
        ),
        (
            "cidr: 10.0.0.7/32",
            "cidr: 10.0.0.7",
            "a network is written",
        ),
        ("cidr: 10.0.0.7/32", "cidr: 10.0.0.0/7", "written apart"),
        ("port: 5432", "port: 70000", ""),
        ("protocol: tcp", "protocol: TCP", "tcp, udp"),
        ("path: /usr/sbin/nginx", r"path: \q", "backslash"),
        ("/var/log/nginx/*.log", "/var/*log*", "one \"*\""),
        ("/var/log/nginx/*.log", "var/log", "begins with"),
        ("files /tmp/*/**", "much", "nothing that overflows"),
        ("at: \"2026", "at: \"once 2026", "a time is written"),
    ] {
        let text = full().replacen(from, to, 1);
        assert_ne!(text, full(), "{from}");
        match Document::parse(&text) {
            Err(DocumentError::At { message: told, .. }) => {
                assert!(told.contains(message), "{told}")
            }
            other => panic!("{to}: {other:?}"),
        }
    }
}

#[test]
fn the_schema_has_what_is_read() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let document: Value = serde_saphyr::from_str(&full()).unwrap();
    agree(&schema, &schema, &document, "");
}

/// Every key of the document is in the schema, and the other way round.
fn agree(root: &Value, schema: &Value, value: &Value, path: &str) {
    let schema = match schema.get("$ref").and_then(Value::as_str) {
        Some(name) => root.pointer(name.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    if let Some(choices) = schema.get("oneOf").and_then(Value::as_array) {
        let list = choices
            .iter()
            .find(|choice| choice["type"] == "array")
            .unwrap();
        if value.is_array() {
            agree(root, list, value, path);
        }
        return;
    }
    match value {
        Value::Object(members) => {
            assert_eq!(schema["additionalProperties"], Value::Bool(false), "{path}");
            let properties = schema["properties"].as_object().unwrap();
            for (key, value) in members {
                let known = properties
                    .get(key)
                    .unwrap_or_else(|| panic!("{path}/{key} is not in the schema"));
                agree(root, known, value, &format!("{path}/{key}"));
            }
            let required: Vec<&Value> = schema["required"].as_array().unwrap().iter().collect();
            for key in properties.keys() {
                let is_shown = members.contains_key(key);
                assert!(
                    is_shown || !required.contains(&&Value::String(key.clone())),
                    "{path}/{key}"
                );
            }
            if path.is_empty() {
                assert_eq!(properties.len(), members.len(), "the page shows every key");
            }
        }
        Value::Array(items) => {
            for item in items {
                agree(root, &schema["items"], item, &format!("{path}[]"));
            }
        }
        Value::String(text) => {
            assert_eq!(schema["type"], "string", "{path}");
            if let Some(words) = schema.get("enum").and_then(Value::as_array) {
                assert!(words.contains(value), "{path}: {text}");
            }
        }
        Value::Bool(_) => assert_eq!(schema["type"], "boolean", "{path}"),
        Value::Number(_) => assert_eq!(schema["type"], "integer", "{path}"),
        Value::Null => panic!("{path}: null"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn documents_are_read_as_they_were_written(events in events(), is_frozen: bool) {
        let mut profile = learned(&events);
        if is_frozen {
            profile.freeze("somebody: 'else' #1", at(2));
        }
        let document = profile.document();
        let yaml = document.to_yaml();
        let again = Document::parse(&yaml);
        prop_assert_eq!(again.as_ref(), Ok(&document), "{}", yaml);
        prop_assert_eq!(Profile::of(&document).unwrap().document(), document);
    }

    #[test]
    fn names_of_any_bytes_are_read_as_they_were_written(
        path in proptest::collection::vec(1u8..=255, 1..40),
    ) {
        let mut profile = super::empty();
        profile.started(1, at(0), false);
        let path = [b"/app/", path.as_slice()].concat();
        let what = [
            What::Open { path: &path, access: Access { read: true, write: true } },
            What::Socket { path: &path },
            What::Exec { path: &path, sha256: None, parent: Some(&path), arguments: &[], is_learnable: true },
        ];
        let arguments = vec![path.clone(), path.clone()];
        for what in what {
            profile.weigh(1, &Act { command: None, what }, at(1));
            profile.weigh(1, &Act { command: Some(&arguments), what }, at(1));
        }
        let document = profile.document();
        prop_assert_eq!(Document::parse(&document.to_yaml()), Ok(document));
    }

    #[test]
    fn merging_is_associative_commutative_and_idempotent(
        a in events(), b in events(), c in events(), frozen in any::<[bool; 3]>(),
    ) {
        let documents: Vec<Document> = [a, b, c]
            .iter()
            .zip(frozen)
            .map(|(events, is_frozen)| {
                let mut profile = learned(events);
                if is_frozen {
                    profile.freeze("somebody", at(2));
                }
                profile.document()
            })
            .collect();
        let [a, b, c] = documents.as_slice() else { panic!("three documents") };
        let both = |one: &Document, other: &Document| merge(one, other).unwrap();
        prop_assert_eq!(both(a, a), a.clone());
        prop_assert_eq!(both(a, b), both(b, a));
        prop_assert_eq!(both(&both(a, b), c), both(a, &both(b, c)));
    }

    #[test]
    fn damaged_documents_do_no_harm(
        changes in proptest::collection::vec((0usize..4000, any::<char>()), 1..4),
    ) {
        let mut text: Vec<char> = full().chars().collect();
        for (at, char) in changes {
            let length = text.len();
            *text.get_mut(at % length).unwrap() = char;
        }
        let text: String = text.into_iter().collect();
        if let Ok(document) = Document::parse(&text) {
            prop_assert_eq!(Document::parse(&document.to_yaml()), Ok(document));
        }
    }
}

#[test]
fn profiles_of_two_images_are_not_merged() {
    let one = web().document();
    let mut other = one.clone();
    other.image.manifest = other.image.config;
    assert!(matches!(
        merge(&one, &other),
        Err(MergeError::OtherImage(..))
    ));
}

#[test]
fn hostile_documents_are_refused() {
    let aliases = format!("a: &a [x]\n{}", "b: *a\n".repeat(1000));
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for text in ["", "[]", "- a", "\0", &aliases, &deep, &"x".repeat(9 << 20)] {
        assert!(Document::parse(text).is_err());
    }
}
