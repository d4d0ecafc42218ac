//! Which objects a list or a watch is about.

use serde_json::Value;

use super::refused::Refused;

/// `labelSelector` and `fieldSelector`.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<(String, Test)>,
    fields: Vec<(String, Test)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Missing,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let is_in =
            |values: &[String]| value.is_some_and(|value| values.iter().any(|it| it == value));
        match self {
            Self::Exists => value.is_some(),
            Self::Missing => value.is_none(),
            Self::In(values) => is_in(values),
            Self::NotIn(values) => !is_in(values),
        }
    }
}

impl Selector {
    /// Reads both as they are in a query.
    ///
    /// # Errors
    ///
    /// A selector that is none, or of a field that objects of this resource cannot be found by.
    pub(super) fn read(resource: &str, labels: &str, fields: &str) -> Result<Self, Refused> {
        let labels = parts(labels)
            .into_iter()
            .map(requirement)
            .collect::<Option<_>>();
        let fields: Option<Vec<_>> = parts(fields).into_iter().map(requirement).collect();
        let (Some(labels), Some(fields)) = (labels, fields) else {
            return Err(Refused::Malformed("unable to parse requirement".to_owned()));
        };
        for (field, _) in &fields {
            let is_known = matches!(field.as_str(), "metadata.name" | "metadata.namespace")
                || resource == "pods" && matches!(field.as_str(), "spec.nodeName" | "status.phase");
            if !is_known {
                return Err(Refused::Malformed(format!(
                    "field label not supported: {field}"
                )));
            }
        }
        Ok(Self { labels, fields })
    }

    /// Whether it is about this object.
    pub(super) fn fits(&self, object: &Value) -> bool {
        let label = |name: &str| object.get("metadata")?.get("labels")?.get(name)?.as_str();
        let field = |path: &str| {
            let found = path
                .split('.')
                .try_fold(object, |value, name| value.get(name));
            // What is not there is empty.
            Some(found.and_then(Value::as_str).unwrap_or_default())
        };
        self.labels
            .iter()
            .all(|(name, test)| test.holds(label(name)))
            && self
                .fields
                .iter()
                .all(|(path, test)| test.holds(field(path)))
    }
}

/// What is between the commas that are not in parentheses.
fn parts(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let is_between = move |sign: char| {
        match sign {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        sign == ',' && depth == 0
    };
    let parts = text.split(is_between).map(str::trim);
    parts.filter(|part| !part.is_empty()).collect()
}

fn requirement(part: &str) -> Option<(String, Test)> {
    let named = |name: &str, test: Test| {
        let name = name.trim();
        let is_name = !name.is_empty() && !name.contains([' ', '(', ')', '!', '=']);
        is_name.then(|| (name.to_owned(), test))
    };
    let one = |value: &str| vec![value.trim().to_owned()];
    let set = |values: &str| -> Option<Vec<String>> {
        let values = values.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(
            values
                .split(',')
                .map(|value| value.trim().to_owned())
                .collect(),
        )
    };
    if let Some((name, values)) = part.split_once(" notin ") {
        return named(name, Test::NotIn(set(values)?));
    }
    if let Some((name, values)) = part.split_once(" in ") {
        return named(name, Test::In(set(values)?));
    }
    if let Some((name, value)) = part.split_once("!=") {
        return named(name, Test::NotIn(one(value)));
    }
    if let Some((name, value)) = part.split_once('=') {
        return named(
            name,
            Test::In(one(value.strip_prefix('=').unwrap_or(value))),
        );
    }
    match part.strip_prefix('!') {
        Some(name) => named(name, Test::Missing),
        None => named(part, Test::Exists),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_is_about_the_objects_that_it_describes() {
        let object = json!({
            "metadata": {"name": "a", "labels": {"app": "web", "tier": "front"}},
            "spec": {"nodeName": "n1"},
        });
        let check = |labels: &str, fields: &str, expect: Option<bool>| {
            let selector = Selector::read("pods", labels, fields).ok();
            let found = selector.map(|selector| selector.fits(&object));
            assert_eq!(found, expect, "{labels} {fields}");
        };
        check("", "", Some(true));
        check("app=web", "", Some(true));
        check("app==web,tier", "", Some(true));
        check("app!=web", "", Some(false));
        check("app in (api, web),tier notin (back)", "", Some(true));
        check("!app", "", Some(false));
        check("!other", "", Some(true));
        check("app in web", "", None);
        check("", "metadata.name=a,spec.nodeName=n1", Some(true));
        check("", "status.phase=Running", Some(false));
        check("", "spec.other=1", None);
    }
}
