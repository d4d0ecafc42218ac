//! Why a request is refused, and the `Status` object that says so.

use serde_json::{Value, json};

use super::{fields::Conflict, store::Key};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// 400.
    Malformed(String),
    /// 401.
    Unauthorized,
    /// 403: whose the object is and what the user may not do.
    Forbidden(Key, String),
    /// 404: there is no such object.
    NotFound(Key),
    /// 404: there is no such resource.
    Unserved,
    /// 405.
    NotAllowed,
    /// 409: there is one.
    AlreadyExists(Key),
    /// 409: another version than was asked for.
    Outdated(Key),
    /// 409: another object of this name.
    Replaced(Key),
    /// 409: fields of others.
    Owned(Vec<Conflict>),
    /// 410: too old a version, and the oldest that there is.
    Expired(u64, u64),
    /// 413.
    TooLarge,
    /// 415.
    Unsupported(String),
    /// 422: the kind and the name of an object, and which of its fields are invalid and why.
    Invalid(String, String, Vec<(String, String)>),
    /// 500.
    Internal(String),
    /// A fault that a test asked for, with `Retry-After`.
    Fault(u16, Option<u32>),
}

impl Refused {
    /// The HTTP status.
    pub(super) fn code(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::Unauthorized => 401,
            Self::Forbidden(..) => 403,
            Self::NotFound(_) | Self::Unserved => 404,
            Self::NotAllowed => 405,
            Self::AlreadyExists(_) | Self::Outdated(_) | Self::Replaced(_) | Self::Owned(_) => 409,
            Self::Expired(..) => 410,
            Self::TooLarge => 413,
            Self::Unsupported(_) => 415,
            Self::Invalid(..) => 422,
            Self::Internal(_) => 500,
            Self::Fault(code, _) => *code,
        }
    }

    /// `Retry-After`, in seconds.
    pub(super) fn retry_after(&self) -> Option<u32> {
        match self {
            Self::Fault(_, seconds) => *seconds,
            _ => None,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::AlreadyExists(_) => "AlreadyExists",
            _ => match self.code() {
                400 => "BadRequest",
                401 => "Unauthorized",
                403 => "Forbidden",
                404 => "NotFound",
                405 => "MethodNotAllowed",
                409 => "Conflict",
                410 => "Expired",
                413 => "RequestEntityTooLarge",
                415 => "UnsupportedMediaType",
                422 => "Invalid",
                429 => "TooManyRequests",
                503 => "ServiceUnavailable",
                504 => "Timeout",
                _ => "InternalError",
            },
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Malformed(what) | Self::Unsupported(what) | Self::Internal(what) => what.clone(),
            Self::Unauthorized => "Unauthorized".to_owned(),
            Self::Forbidden(key, what) => format!("{} is forbidden: {what}", named(key)),
            Self::NotFound(key) => format!("{} not found", named(key)),
            Self::Unserved => "the server could not find the requested resource".to_owned(),
            Self::NotAllowed => {
                "the server does not allow this method on the requested resource".to_owned()
            }
            Self::AlreadyExists(key) => format!("{} already exists", named(key)),
            Self::Outdated(key) => format!(
                "Operation cannot be fulfilled on {}: the object has been modified; please apply your \
                 changes to the latest version and try again",
                named(key)
            ),
            Self::Replaced(key) => format!(
                "Operation cannot be fulfilled on {}: Precondition failed: the UID is another",
                named(key)
            ),
            Self::Owned(conflicts) => owned(conflicts),
            Self::Expired(asked, oldest) => {
                format!("too old resource version: {asked} ({oldest})")
            }
            Self::TooLarge => "Request entity too large".to_owned(),
            Self::Invalid(kind, name, fields) => {
                let fields = fields
                    .iter()
                    .map(|(field, what)| format!("{field}: {what}"));
                let fields: Vec<String> = fields.collect();
                format!("{kind} \"{name}\" is invalid: {}", fields.join(", "))
            }
            Self::Fault(..) => "asked for by the test".to_owned(),
        }
    }

    /// As `Status` of `meta/v1`.
    pub(super) fn status(&self) -> Value {
        let mut details = match self {
            Self::Forbidden(key, _)
            | Self::NotFound(key)
            | Self::AlreadyExists(key)
            | Self::Outdated(key)
            | Self::Replaced(key) => about(&key.resource, &key.name),
            Self::Invalid(kind, name, _) => about(kind, name),
            _ => json!({}),
        };
        let causes = self.causes();
        if !causes.is_empty() {
            details["causes"] = json!(causes);
        }
        if let Some(seconds) = self.retry_after() {
            details["retryAfterSeconds"] = json!(seconds);
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message(), "reason": self.reason(), "code": self.code(),
        });
        if details != json!({}) {
            status["details"] = details;
        }
        status
    }

    fn causes(&self) -> Vec<Value> {
        match self {
            Self::Owned(conflicts) => conflicts
                .iter()
                .map(|conflict| {
                    json!({
                        "reason": "FieldManagerConflict",
                        "message": format!("conflict with {}", conflict.owner),
                        "field": conflict.field,
                    })
                })
                .collect(),
            Self::Invalid(_, _, fields) => fields
                .iter()
                .map(|(field, what)| {
                    let reason = match what.starts_with("Required") {
                        true => "FieldValueRequired",
                        false => "FieldValueInvalid",
                    };
                    json!({"reason": reason, "message": what, "field": field})
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// `kind` with its group, as `details` say it.
pub(super) fn about(kind: &str, name: &str) -> Value {
    let (kind, group) = kind.split_once('.').unwrap_or((kind, ""));
    let mut about = json!({"kind": kind});
    for (field, value) in [("name", name), ("group", group)] {
        if !value.is_empty() {
            about[field] = json!(value);
        }
    }
    about
}

fn named(key: &Key) -> String {
    match key.name.as_str() {
        "" => key.resource.clone(),
        name => format!("{} \"{name}\"", key.resource),
    }
}

fn owned(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            only.owner, only.field
        );
    }
    let mut lines = Vec::new();
    let mut last = "";
    for conflict in conflicts {
        if conflict.owner != last {
            lines.push(format!("conflicts with {}:", conflict.owner));
            last = &conflict.owner;
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!(
        "Apply failed with {} conflicts: {}",
        conflicts.len(),
        lines.join("\n")
    )
}
