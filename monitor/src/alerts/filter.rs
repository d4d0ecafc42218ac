//! What a client wants of the alerts, as an expression in CEL over the alert as JSON.
//!
//! The expression is hostile: its length, its depth (by the parser) and what it can repeat are
//! bounded before it runs, and what it takes is measured. An alert on which it fails is wanted: a
//! container cannot hide an alert by making it odd.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use cel::{
    Context, Env, IdedExpr, Value,
    common::ast::{EntryExpr, Expr},
    parser::PrattParser,
    to_value,
};
use monitor_api::{json, v1::Alert};

/// Most bytes of an expression.
pub const EXPRESSION_BYTES_MAX: usize = 1024;

/// Most `all`, `exists`, `exists_one`, `map` and `filter` in one expression; none inside another.
const COMPREHENSIONS_MAX: usize = 4;

/// Longest time that one expression may take per alert, averaged over [`TIMED_ALERTS`].
const EVALUATION_TIME_MAX: Duration = Duration::from_millis(2);

/// Alerts over which the time is averaged.
const TIMED_ALERTS: u32 = 64;

/// A checked expression.
pub struct Filter {
    expression: IdedExpr,
    env: Arc<Env>,
    variables: BTreeSet<String>,
    timed: u32,
    spent: Duration,
    failed: u64,
}

/// An expression is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Too long.
    #[error("filter has {0} bytes; at most {EXPRESSION_BYTES_MAX} are taken")]
    TooLong(usize),
    /// Not CEL.
    #[error("filter is no CEL: {0}")]
    Syntax(String),
    /// A name that alerts do not have.
    #[error(
        "filter names {0:?}, which alerts do not have; `monitorctl alerts -o json` shows their fields"
    )]
    UnknownName(String),
    /// It could run for long.
    #[error(
        "filter has all, exists, map or filter inside one another, or more than {COMPREHENSIONS_MAX} of them"
    )]
    TooDeep,
}

/// A filter takes too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "filter takes more than {} ms per alert; make it simpler",
    EVALUATION_TIME_MAX.as_millis()
)]
pub struct TooSlow;

impl Filter {
    /// Checks an expression; it must give a boolean.
    ///
    /// # Errors
    ///
    /// See [`FilterError`].
    pub fn new(expression: &str) -> Result<Self, FilterError> {
        if expression.len() > EXPRESSION_BYTES_MAX {
            return Err(FilterError::TooLong(expression.len()));
        }
        // The crate's other parser, which is the default, recurses as deep as the text says.
        let expression = PrattParser::default()
            .parse(expression)
            .map_err(|errors| FilterError::Syntax(errors.to_string()))?;
        let mut check = Check::default();
        check.expression(&expression)?;
        Ok(Self {
            expression,
            env: Arc::new(Env::stdlib()),
            variables: check.variables,
            timed: 0,
            spent: Duration::ZERO,
            failed: 0,
        })
    }

    /// Whether `alert` is wanted. One on which the expression fails, or gives no boolean, is.
    ///
    /// # Errors
    ///
    /// [`TooSlow`] after [`TIMED_ALERTS`].
    pub fn wants(&mut self, alert: &Alert) -> Result<bool, TooSlow> {
        let began = Instant::now();
        let wanted = self.evaluate(alert);
        self.spent += began.elapsed();
        self.timed += 1;
        if self.timed >= TIMED_ALERTS {
            if self.spent > EVALUATION_TIME_MAX * self.timed {
                return Err(TooSlow);
            }
            (self.timed, self.spent) = (0, Duration::ZERO);
        }
        if wanted.is_none() {
            self.failed += 1;
        }
        Ok(wanted.unwrap_or(true))
    }

    /// Alerts on which the expression failed.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    fn evaluate(&self, alert: &Alert) -> Option<bool> {
        let json = json::alert(alert);
        let mut context = Context::with_env(Arc::clone(&self.env));
        for name in &self.variables {
            let value = to_value(json.get(name)?).ok()?;
            context.add_variable_from_value(name.as_str(), value);
        }
        match context.resolve(&self.expression).ok()? {
            Value::Bool(wanted) => Some(wanted),
            _ => None,
        }
    }
}

/// Looks at an expression before it is run.
#[derive(Default)]
struct Check {
    variables: BTreeSet<String>,
    /// Names that comprehensions bring.
    bound: Vec<String>,
    comprehensions: usize,
}

impl Check {
    fn expression(&mut self, at: &IdedExpr) -> Result<(), FilterError> {
        match &at.expr {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => self.expression(&select.operand),
            Expr::List(list) => self.all(&list.elements),
            Expr::Call(call) => {
                if let Some(target) = &call.target {
                    self.expression(target)?;
                }
                self.all(&call.args)
            }
            Expr::Map(map) => self.entries(map.entries.iter().map(|entry| &entry.expr)),
            Expr::Struct(made) => self.entries(made.entries.iter().map(|entry| &entry.expr)),
            Expr::Comprehension(comprehension) => {
                self.comprehensions += 1;
                if self.comprehensions > COMPREHENSIONS_MAX || !self.bound.is_empty() {
                    return Err(FilterError::TooDeep);
                }
                self.expression(&comprehension.iter_range)?;
                self.bound.push(comprehension.iter_var.clone());
                self.bound.extend(comprehension.iter_var2.clone());
                self.bound.push(comprehension.accu_var.clone());
                self.expression(&comprehension.accu_init)?;
                self.expression(&comprehension.loop_cond)?;
                self.expression(&comprehension.loop_step)?;
                self.expression(&comprehension.result)?;
                self.bound.clear();
                Ok(())
            }
        }
    }

    fn all(&mut self, expressions: &[IdedExpr]) -> Result<(), FilterError> {
        expressions.iter().try_for_each(|one| self.expression(one))
    }

    fn entries<'a>(
        &mut self,
        mut entries: impl Iterator<Item = &'a EntryExpr>,
    ) -> Result<(), FilterError> {
        entries.try_for_each(|entry| match entry {
            EntryExpr::StructField(field) => self.expression(&field.value),
            EntryExpr::MapEntry(entry) => {
                self.expression(&entry.key)?;
                self.expression(&entry.value)
            }
        })
    }

    fn name(&mut self, name: &str) -> Result<(), FilterError> {
        if self.bound.iter().any(|bound| bound == name) || name.starts_with('@') {
            return Ok(());
        }
        if json::alert(&Alert::default()).get(name).is_none() {
            return Err(FilterError::UnknownName(name.to_owned()));
        }
        self.variables.insert(name.to_owned());
        Ok(())
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

    #[test]
    fn an_expression_that_makes_no_sense_or_could_run_for_long_is_refused() {
        let check = |expression: &str, expect: fn(&FilterError) -> bool| {
            let error = Filter::new(expression).err().unwrap();
            assert!(expect(&error), "{expression}: {error:?}");
        };
        check("sevirity == 'critical'", |error| {
            *error == FilterError::UnknownName("sevirity".to_owned())
        });
        let list = "[1, 2].all(x, [1, 2].all(y, x == y))";
        check(list, |error| *error == FilterError::TooDeep);
        let many = ["[1].all(x, x > 0)"; 5].join(" && ");
        check(&many, |error| *error == FilterError::TooDeep);
        for text in ["", "kind ==", "((((", "'", "kind == 'a' 'b'"] {
            check(text, |error| matches!(error, FilterError::Syntax(_)));
        }
        check(&"x".repeat(1025), |error| {
            *error == FilterError::TooLong(1025)
        });
        for deep in ["(", "!", "-", "[", "kind ? ", "{1:", "a.b("] {
            let text: String = deep
                .repeat(EXPRESSION_BYTES_MAX)
                .chars()
                .take(1024)
                .collect();
            check(&text, |error| !matches!(error, FilterError::TooLong(_)));
        }
    }

    #[test]
    fn long_chains_neither_overflow_nor_fail() {
        let text = ["count"; 100].join("+") + " > 0";
        assert_eq!(Filter::new(&text).unwrap().wants(&an_alert()), Ok(true));
        let text = ["true"; 140].join("&&");
        assert_eq!(Filter::new(&text).unwrap().wants(&an_alert()), Ok(true));
    }
}
