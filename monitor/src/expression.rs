//! Expressions in CEL over JSON, as clients and policies give them.
//!
//! They are hostile: their length, their depth (by the parser) and what they can repeat are bounded
//! before they run, and what they take is measured.

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

/// Most bytes of an expression.
pub const EXPRESSION_BYTES_MAX: usize = 1024;

/// Most `all`, `exists`, `exists_one`, `map` and `filter` in one expression; none inside another.
const COMPREHENSIONS_MAX: usize = 4;

/// Longest time that one evaluation may take, averaged over [`TIMED`].
const EVALUATION_TIME_MAX: Duration = Duration::from_millis(2);

/// Evaluations over which the time is averaged.
const TIMED: u32 = 64;

/// A checked expression.
pub struct Expression {
    expression: IdedExpr,
    env: Arc<Env>,
    names: BTreeSet<String>,
    timed: u32,
    spent: Duration,
    failed: u64,
}

/// An expression is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// Too long.
    #[error("it has {0} bytes; at most {EXPRESSION_BYTES_MAX} are taken")]
    TooLong(usize),
    /// Not CEL.
    #[error("it is no CEL: {0}")]
    Syntax(String),
    /// A name that is not there.
    #[error("it names {0:?}, which is not there")]
    UnknownName(String),
    /// It could run for long.
    #[error(
        "it has all, exists, map or filter inside one another, or more than {COMPREHENSIONS_MAX} of them"
    )]
    TooDeep,
}

/// An expression takes too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it takes more than {} ms each time; make it simpler", EVALUATION_TIME_MAX.as_millis())]
pub struct TooSlow;

impl Expression {
    /// Checks an expression; it must give a boolean. `is_known` tells which names there are.
    ///
    /// # Errors
    ///
    /// See [`ExpressionError`].
    pub fn new(text: &str, is_known: &dyn Fn(&str) -> bool) -> Result<Self, ExpressionError> {
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(ExpressionError::TooLong(text.len()));
        }
        // The crate's other parser, which is the default, recurses as deep as the text says.
        let expression = PrattParser::default()
            .parse(text)
            .map_err(|errors| ExpressionError::Syntax(errors.to_string()))?;
        let mut check = Check {
            is_known,
            names: BTreeSet::new(),
            bound: Vec::new(),
            comprehensions: 0,
        };
        check.expression(&expression)?;
        Ok(Self {
            expression,
            names: check.names,
            env: Arc::new(Env::stdlib()),
            timed: 0,
            spent: Duration::ZERO,
            failed: 0,
        })
    }

    /// The names that it looks at.
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// What it says of `facts`; `None` where it fails or gives no boolean.
    ///
    /// # Errors
    ///
    /// [`TooSlow`] after [`TIMED`] evaluations.
    pub fn holds(&mut self, facts: &serde_json::Value) -> Result<Option<bool>, TooSlow> {
        let began = Instant::now();
        let holds = self.evaluate(facts);
        self.spent += began.elapsed();
        self.timed += 1;
        if self.timed >= TIMED {
            if self.spent > EVALUATION_TIME_MAX * self.timed {
                return Err(TooSlow);
            }
            (self.timed, self.spent) = (0, Duration::ZERO);
        }
        self.failed += u64::from(holds.is_none());
        Ok(holds)
    }

    /// Evaluations that failed.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    fn evaluate(&self, facts: &serde_json::Value) -> Option<bool> {
        let mut context = Context::with_env(Arc::clone(&self.env));
        for name in &self.names {
            let value = to_value(facts.get(name)?).ok()?;
            context.add_variable_from_value(name.as_str(), value);
        }
        match context.resolve(&self.expression).ok()? {
            Value::Bool(holds) => Some(holds),
            _ => None,
        }
    }
}

/// Looks at an expression before it is run.
struct Check<'a> {
    is_known: &'a dyn Fn(&str) -> bool,
    names: BTreeSet<String>,
    /// Names that comprehensions bring.
    bound: Vec<String>,
    comprehensions: usize,
}

impl Check<'_> {
    fn expression(&mut self, at: &IdedExpr) -> Result<(), ExpressionError> {
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
                    return Err(ExpressionError::TooDeep);
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

    fn all(&mut self, expressions: &[IdedExpr]) -> Result<(), ExpressionError> {
        expressions.iter().try_for_each(|one| self.expression(one))
    }

    fn entries<'a>(
        &mut self,
        mut entries: impl Iterator<Item = &'a EntryExpr>,
    ) -> Result<(), ExpressionError> {
        entries.try_for_each(|entry| match entry {
            EntryExpr::StructField(field) => self.expression(&field.value),
            EntryExpr::MapEntry(entry) => {
                self.expression(&entry.key)?;
                self.expression(&entry.value)
            }
        })
    }

    fn name(&mut self, name: &str) -> Result<(), ExpressionError> {
        if self.bound.iter().any(|bound| bound == name) || name.starts_with('@') {
            return Ok(());
        }
        if !(self.is_known)(name) {
            return Err(ExpressionError::UnknownName(name.to_owned()));
        }
        self.names.insert(name.to_owned());
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn is_known(name: &str) -> bool {
        matches!(name, "kind" | "count" | "severity")
    }

    #[test]
    fn what_makes_no_sense_or_could_run_for_long_is_refused() {
        let check = |text: &str, expect: fn(&ExpressionError) -> bool| {
            let error = Expression::new(text, &is_known).err().unwrap();
            assert!(expect(&error), "{text}: {error:?}");
        };
        check("sevirity == 'critical'", |error| {
            *error == ExpressionError::UnknownName("sevirity".to_owned())
        });
        let list = "[1, 2].all(x, [1, 2].all(y, x == y))";
        check(list, |error| *error == ExpressionError::TooDeep);
        let many = ["[1].all(x, x > 0)"; 5].join(" && ");
        check(&many, |error| *error == ExpressionError::TooDeep);
        for text in ["", "kind ==", "((((", "'", "kind == 'a' 'b'"] {
            check(text, |error| matches!(error, ExpressionError::Syntax(_)));
        }
        check(&"x".repeat(1025), |error| {
            *error == ExpressionError::TooLong(1025)
        });
        for deep in ["(", "!", "-", "[", "kind ? ", "{1:", "a.b("] {
            let text: String = deep
                .repeat(EXPRESSION_BYTES_MAX)
                .chars()
                .take(1024)
                .collect();
            check(&text, |error| !matches!(error, ExpressionError::TooLong(_)));
        }
    }

    #[test]
    fn long_chains_neither_overflow_nor_fail() {
        let facts = serde_json::json!({"count": 3});
        for text in [["count"; 100].join("+") + " > 0", ["true"; 140].join("&&")] {
            let holds = Expression::new(&text, &is_known).unwrap().holds(&facts);
            assert_eq!(holds, Ok(Some(true)), "{text}");
        }
    }
}
