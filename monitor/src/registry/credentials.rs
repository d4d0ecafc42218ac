//! User names and passwords, from a file as `docker login` writes it.

use std::{collections::HashMap, fmt, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::header::HeaderValue;
use serde::Deserialize;

use super::{FileError, read};

/// Whom a registry knows us as. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    /// `USER:PASSWORD`, as HTTP has it.
    encoded: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials")
    }
}

impl Credentials {
    /// The value of `Authorization`.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        secret(&format!("Basic {}", self.encoded))
    }
}

/// A header's value that is not shown.
pub(super) fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// Whether the file can be read and is of the right form.
pub(super) fn check(path: &Path) -> Result<(), FileError> {
    parse(path, &read(path)?).map(drop)
}

/// What the file has for a registry.
pub(super) fn find(path: &Path, registry: &str) -> Result<Option<Credentials>, FileError> {
    let file = parse(path, &read(path)?)?;
    let entries = file.auths.into_iter();
    let found = entries
        .filter(|(key, _)| host(key) == host(registry))
        .find_map(|(_, entry)| encoded(entry));
    Ok(found.map(|encoded| Credentials { encoded }))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<File, FileError> {
    serde_json::from_slice(bytes).map_err(|error| {
        // The message may quote what is secret.
        let (line, column) = (error.line(), error.column());
        let what = format!(
            "line {line}, column {column}: not of the form \
             {{\"auths\": {{\"HOST\": {{\"auth\": \"BASE64 OF USER:PASSWORD\"}}}}}}"
        );
        FileError::new(path, what)
    })
}

fn encoded(entry: Entry) -> Option<String> {
    match entry {
        Entry {
            username: Some(user),
            password: Some(password),
            ..
        } => Some(STANDARD.encode(format!("{user}:{password}"))),
        Entry { auth, .. } => auth.filter(|auth| !auth.is_empty()),
    }
}

/// The registry that a key stands for: `HOST`, `https://HOST` or `https://HOST/v1/`.
fn host(key: &str) -> &str {
    let key = key.strip_prefix("https://").unwrap_or(key);
    let key = key.strip_prefix("http://").unwrap_or(key);
    match key.trim_end_matches('/') {
        "docker.io" | "index.docker.io" | "index.docker.io/v1" | "registry-1.docker.io" => {
            "docker.io"
        }
        other => ["/v1", "/v2"]
            .iter()
            .find_map(|version| other.strip_suffix(version))
            .unwrap_or(other),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_a_registry_is_found_by_whatever_form_its_key_has() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let check = |text: &str, registry: &str, expect: Option<&str>| {
            std::fs::write(file.path(), text).unwrap();
            let found = find(file.path(), registry).unwrap();
            let expect = expect.map(|text| format!("Basic {}", STANDARD.encode(text)));
            let found = found.and_then(|found| found.basic());
            let found = found.map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(found, expect, "{registry} in {text}");
        };
        // u:p and v:q
        let both = r#"{"auths": {"a.example": {"auth": "dTpw"}, "b.example:5000": {"username": "v", "password": "q"}}}"#;
        check(both, "a.example", Some("u:p"));
        check(both, "b.example:5000", Some("v:q"));
        check(both, "b.example", None);
        check(
            r#"{"auths": {"https://a.example/v2/": {"auth": "dTpw"}}}"#,
            "a.example",
            Some("u:p"),
        );
        let hub = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}}}"#;
        check(hub, "docker.io", Some("u:p"));
        check(
            r#"{"auths": {"a.example": {}}, "credsStore": "x"}"#,
            "a.example",
            None,
        );
        check("{}", "a.example", None);
    }

    #[test]
    fn nothing_secret_is_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"auths": {"a": "dTpzZWNyZXQ="}}"#).unwrap();
        let error = find(file.path(), "a").unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        assert!(!error.contains("dTpz"), "{error}");
        let value = secret("Basic dTpzZWNyZXQ=").unwrap();
        assert!(!format!("{value:?}").contains("dTpz"));
    }
}
