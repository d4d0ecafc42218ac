//! What a client wants of the alerts, as an expression in CEL over the alert as JSON.
//!
//! An alert on which it fails is wanted: a container cannot hide an alert by making it odd.

use monitor_api::{json, v1::Alert};

use crate::expression::{Expression, ExpressionError, TooSlow};

/// A checked expression.
pub struct Filter(Expression);

/// An expression is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter: {0}; `monitorctl alerts -o json` shows the fields of alerts")]
pub struct FilterError(#[from] ExpressionError);

impl Filter {
    /// Checks an expression; it must give a boolean.
    ///
    /// # Errors
    ///
    /// See [`ExpressionError`].
    pub fn new(expression: &str) -> Result<Self, FilterError> {
        let alert = json::alert(&Alert::default());
        let is_known = |name: &str| alert.get(name).is_some();
        Ok(Self(Expression::new(expression, &is_known)?))
    }

    /// Whether `alert` is wanted. One on which the expression fails, or gives no boolean, is.
    ///
    /// # Errors
    ///
    /// [`TooSlow`], after some alerts.
    pub fn wants(&mut self, alert: &Alert) -> Result<bool, TooSlow> {
        let holds = self.0.holds(&json::alert(alert))?;
        Ok(holds.unwrap_or(true))
    }

    /// Alerts on which the expression failed.
    pub fn failed(&self) -> u64 {
        self.0.failed()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use monitor_api::v1::{Severity, alert};

    use super::*;

    fn an_alert() -> Alert {
        Alert {
            kind: "exec_added".to_owned(),
            severity: Severity::Critical.into(),
            count: 3,
            container: Some(alert::Container {
                name: "web".to_owned(),
                ..alert::Container::default()
            }),
            process: Some(alert::Process {
                arguments: vec![b"/tmp/x".to_vec(), b"-v".to_vec()],
                ..alert::Process::default()
            }),
            ..Alert::default()
        }
    }

    #[test]
    fn an_expression_says_which_alerts_are_wanted() {
        let check = |expression: &str, expect: bool, failed: u64| {
            let mut filter = Filter::new(expression).unwrap();
            assert_eq!(filter.wants(&an_alert()), Ok(expect), "{expression}");
            assert_eq!(filter.failed(), failed, "{expression}");
        };
        check("true", true, 0);
        check("severity == 'critical'", true, 0);
        check("severity in ['low', 'medium']", false, 0);
        check(
            "kind.startsWith('exec_') && container.name == 'web'",
            true,
            0,
        );
        check("count > 2 && container.name.matches('^w.b$')", true, 0);
        check("process.arguments.exists(a, a == '-v')", true, 0);
        check("file != null && file.path == '/x'", false, 0);
        check("has(container.pod) && container.pod != null", false, 0);
        // An alert on which it fails is not kept back.
        check("process.arguments[7] == 'x'", true, 1);
        check("file.path == '/x'", true, 1);
        check("kind", true, 1);
    }
}
