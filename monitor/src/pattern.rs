//! Patterns of names, as people write them for repositories, namespaces and containers.

/// Whether a text is like a pattern, in which `*` stands for any number of characters.
pub(crate) fn is_like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asterisk_stands_for_anything() {
        let check = |pattern: &str, text: &str, expect: bool| {
            assert_eq!(is_like(pattern, text), expect, "{pattern} {text}");
        };
        check("nginx", "nginx", true);
        check("nginx", "nginx2", false);
        check("*", "", true);
        check("*/nginx", "docker.io/library/nginx", true);
        check("docker.io/*/nginx", "docker.io/library/nginx", true);
        check("docker.io/*/nginx", "docker.io/nginx", false);
        check("a*a", "a", false);
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "a-c-b", false);
        check("", "", true);
        check("", "a", false);
    }
}
