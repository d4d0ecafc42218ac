//! What a registry asks for with its 401 (RFC 9110, 11.6.1).

/// How a registry wants to be told who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// By user name and password.
    Basic,
    /// By a token that `realm` gives.
    Bearer {
        /// URL of who gives tokens.
        realm: String,
        /// What the token is for, if the registry says so.
        service: Option<String>,
    },
}

/// Reads the value of `WWW-Authenticate`; `None` for what no registry asks for.
pub(super) fn parse(value: &str) -> Option<Challenge> {
    let (scheme, parameters) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    let mut rest = parameters;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = quoted(after.trim_start());
        let name = name.trim_matches([' ', ',', '\t']);
        if name.eq_ignore_ascii_case("realm") {
            realm = Some(value);
        } else if name.eq_ignore_ascii_case("service") {
            service = Some(value);
        }
        rest = after;
    }
    Some(Challenge::Bearer {
        realm: realm?,
        service,
    })
}

/// A value, in quotation marks or up to the next comma, and what follows.
fn quoted(text: &str) -> (String, &str) {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.trim().to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = inner.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, inner.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read_as_registries_write_it() {
        let check =
            |text: &str, expect: Option<Challenge>| assert_eq!(parse(text), expect, "{text}");
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
            })
        };
        check("Basic realm=\"a, b\"", Some(Challenge::Basic));
        check("basic", Some(Challenge::Basic));
        let all = r#"Bearer realm="https://a/t",service="s",scope="repository:x:pull,push""#;
        check(all, bearer("https://a/t", Some("s")));
        check(
            r#"bearer Service=s , realm="https://a/t""#,
            bearer("https://a/t", Some("s")),
        );
        check(r#"Bearer scope="a,realm=b",realm=c"#, bearer("c", None));
        check(r#"Bearer realm="a\"b"#, bearer("a\"b", None));
        check(r#"Bearer realm="a\"#, bearer("a", None));
        check("Bearer realm", None);
        check("Bearer", None);
        check("Negotiate", None);
        check("", None);
    }
}
