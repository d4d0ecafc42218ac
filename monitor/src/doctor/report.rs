//! What the doctor found, for people and for scripts.

use std::io::{self, Write};

use serde::Serialize;

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Good,
    /// It works, and something stays unseen.
    Limited,
    /// The daemon cannot watch this node.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub finding: String,
    /// Why nothing better was.
    pub reasons: Vec<String>,
    /// What stays unseen on this node.
    pub not_seen: Vec<String>,
}

impl Line {
    pub(super) fn good(name: &str, finding: impl Into<String>) -> Self {
        Self::of(name, State::Good, finding.into())
    }

    pub(super) fn failed(name: &str, finding: impl Into<String>) -> Self {
        Self::of(name, State::Failed, finding.into())
    }

    fn of(name: &str, state: State, finding: String) -> Self {
        Self {
            name: name.to_owned(),
            state,
            finding,
            reasons: Vec::new(),
            not_seen: Vec::new(),
        }
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug)]
pub struct Report {
    /// In the order in which the daemon needs it.
    pub lines: Vec<Line>,
}

impl Report {
    /// Whether the daemon would start and see execs.
    pub fn can_watch(&self) -> bool {
        self.lines.iter().all(|line| line.state != State::Failed)
    }

    /// One JSON object per line.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub fn print_json(&self, writer: &mut impl Write) -> io::Result<()> {
        for line in &self.lines {
            writeln!(writer, "{}", serde_json::to_string(line)?)?;
        }
        Ok(())
    }

    /// A table for people, with the reasons below each line.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub fn print(&self, writer: &mut impl Write, colour: bool) -> io::Result<()> {
        let width = self.lines.iter().map(|line| line.name.len()).max();
        let width = width.unwrap_or_default();
        for line in &self.lines {
            let (word, code) = match line.state {
                State::Good => ("good   ", "32"),
                State::Limited => ("limited", "33"),
                State::Failed => ("FAILED ", "1;31"),
            };
            let word = if colour {
                format!("\u{1b}[{code}m{word}\u{1b}[0m")
            } else {
                word.to_owned()
            };
            writeln!(writer, "{word}  {:width$}  {}", line.name, line.finding)?;
            for reason in &line.reasons {
                writeln!(writer, "         {:width$}  {reason}", "")?;
            }
            for blind in &line.not_seen {
                writeln!(writer, "         {:width$}  not seen: {blind}", "")?;
            }
        }
        let verdict = if self.can_watch() {
            "this node can be watched"
        } else {
            "this node cannot be watched: see what FAILED"
        };
        writeln!(writer, "{verdict}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_means_that_the_node_cannot_be_watched() {
        let check = |states: &[State], expect: bool| {
            let lines = states
                .iter()
                .map(|state| Line::of("x", *state, String::new()));
            let report = Report {
                lines: lines.collect(),
            };
            assert_eq!(report.can_watch(), expect, "{states:?}");
        };
        check(&[State::Good, State::Limited], true);
        check(&[State::Good, State::Failed], false);
    }

    #[test]
    fn each_line_has_its_reasons() -> io::Result<()> {
        let line = Line {
            reasons: vec!["lsm refused: EPERM".to_owned()],
            not_seen: vec!["this".to_owned()],
            ..Line::of("hook.code", State::Limited, "tracepoint".to_owned())
        };
        let report = Report { lines: vec![line] };
        let (mut table, mut json) = (Vec::new(), Vec::new());
        report.print(&mut table, false)?;
        report.print_json(&mut json)?;
        assert_eq!(
            String::from_utf8_lossy(&table),
            "limited  hook.code  tracepoint\n                    lsm refused: EPERM\n                    \
             not seen: this\nthis node can be watched\n"
        );
        assert_eq!(
            String::from_utf8_lossy(&json),
            "{\"name\":\"hook.code\",\"state\":\"limited\",\"finding\":\"tracepoint\",\
             \"reasons\":[\"lsm refused: EPERM\"],\"not_seen\":[\"this\"]}\n"
        );
        Ok(())
    }
}
