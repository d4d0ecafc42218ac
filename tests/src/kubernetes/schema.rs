//! What the schema of a `CustomResourceDefinition` says of an object: as much of `OpenAPI` v3 as
//! definitions here use. Semantics:
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/>.

use serde_json::Value;

/// Drops the fields of an object that its schema does not know.
pub(super) fn prune(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let Some(known) = schema.get("properties").and_then(Value::as_object) else {
                return;
            };
            fields.retain(|field, _| known.contains_key(field));
            for (field, value) in fields {
                if let Some(schema) = known.get(field) {
                    prune(schema, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| prune(schema, item));
            }
        }
        _ => {}
    }
}

/// What is wrong with a value: each place with why.
pub(super) fn problems(schema: &Value, value: &Value, place: &str) -> Vec<(String, String)> {
    let number = |name: &str| schema.get(name).and_then(Value::as_u64);
    let text = |name: &str| schema.get(name).and_then(Value::as_str);
    let mut found = Vec::new();
    let mut say = |what: String| found.push((place.to_owned(), format!("Invalid value: {what}")));
    let is_type = match text("type") {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !is_type {
        say(format!(
            "must be of type {}",
            text("type").unwrap_or_default()
        ));
    }
    let allowed = schema.get("enum").and_then(Value::as_array);
    if allowed.is_some_and(|allowed| !allowed.contains(value)) {
        say(format!(
            "{value}: supported values: {}",
            schema.get("enum").unwrap_or(&Value::Null)
        ));
    }
    let (size, least, most) = match value {
        Value::String(text) => (text.chars().count(), "minLength", "maxLength"),
        Value::Array(items) => (items.len(), "minItems", "maxItems"),
        _ => (0, "", ""),
    };
    let size = u64::try_from(size).unwrap_or(u64::MAX);
    if number(least).is_some_and(|least| size < least)
        || number(most).is_some_and(|most| size > most)
    {
        say(format!("{size} is too few or too many"));
    }
    if let Value::String(string) = value {
        let fits = |pattern: &str| {
            regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(string))
        };
        if text("pattern").is_some_and(|pattern| !fits(pattern)) {
            say(format!(
                "\"{string}\": should match '{}'",
                text("pattern").unwrap_or_default()
            ));
        }
        if text("format") == Some("date-time") && string.parse::<jiff::Timestamp>().is_err() {
            say(format!("\"{string}\": must be of type date-time"));
        }
    }
    let required = schema.get("required").and_then(Value::as_array);
    for field in required.into_iter().flatten().filter_map(Value::as_str) {
        if value.is_object() && value.get(field).is_none() {
            found.push((below(place, field), "Required value".to_owned()));
        }
    }
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let known = properties
            .iter()
            .filter_map(|(field, schema)| Some((field, schema, value.get(field)?)));
        for (field, schema, value) in known {
            found.extend(problems(schema, value, &below(place, field)));
        }
    }
    if let (Some(schema), Some(items)) = (schema.get("items"), value.as_array()) {
        for (index, item) in items.iter().enumerate() {
            found.extend(problems(schema, item, &format!("{place}[{index}]")));
        }
    }
    found
}

/// Containers of a built-in kind without what the API server asks of each.
pub(super) fn bare_containers(value: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for pods in [
        "spec",
        "spec.template.spec",
        "spec.jobTemplate.spec.template.spec",
    ] {
        for list in ["containers", "initContainers"] {
            let pointer = format!("/{}/{list}", pods.replace('.', "/"));
            let containers = value.pointer(&pointer).and_then(Value::as_array);
            for (index, container) in containers.into_iter().flatten().enumerate() {
                for field in ["name", "image"] {
                    if container.get(field).is_none() {
                        let place = format!("{pods}.{list}[{index}].{field}");
                        found.push((place, "Required value".to_owned()));
                    }
                }
            }
        }
    }
    found
}

fn below(place: &str, field: &str) -> String {
    match place {
        "" => field.to_owned(),
        place => format!("{place}.{field}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_as_its_schema_says() {
        let schema = json!({
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 3, "pattern": "^[a-z]*$"},
                "at": {"type": "string", "format": "date-time"},
                "list": {"type": "array", "maxItems": 1, "items": {"type": "string", "enum": ["x"]}},
            },
        });
        let check = |value: Value, expect: usize| {
            let found = problems(&schema, &value, "");
            assert_eq!(found.len(), expect, "{value}: {found:?}");
        };
        check(
            json!({"name": "abc", "at": "2026-11-28T08:00:00Z", "list": ["x"]}),
            0,
        );
        check(json!({}), 1);
        check(json!([]), 1);
        check(json!({"name": ""}), 1);
        check(json!({"name": "ABCD"}), 2);
        check(json!({"name": "a", "at": "today"}), 1);
        check(json!({"name": "a", "list": ["x", "x"]}), 1);
        check(json!({"name": "a", "list": ["y"]}), 1);
        let mut value = json!({"name": "a", "other": 1});
        prune(&schema, &mut value);
        assert_eq!(value, json!({"name": "a"}));
    }
}
