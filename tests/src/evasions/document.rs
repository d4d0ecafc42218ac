//! The document of what came of the techniques, see `docs/evasions.md`. Each kernel has a column,
//! and a run renews its own.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{TABLE, Technique, techniques};

const HEAD: &str = "\
# Evasions

Ways to run code in a container that its image does not account for, and to reach for peers that no
container should, each carried out in a real container at a real daemon, and what was raised on each
kernel by which hook. Written by
`cargo xtask evasions` from such runs; `cargo xtask test` fails when it is stale. The rows are in
`tests/src/evasions/`.

\"nothing, watched by\" means that the container raised what it must for another program right
after: what was quiet before was judged, not missed.

The kernels stand for the three sets of hooks: 6.18 lets no program in by a trampoline, so there are
tracepoints alone; 6.12 has the security module for eBPF active; 6.1 is told not to.
";

/// What the columns of kernels follow.
const COLUMNS: [&str; 3] = ["technique", "what it does", "must raise"];

/// Cells by technique and column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cells(BTreeMap<String, BTreeMap<String, String>>);

impl Cells {
    /// Reads what a document says.
    pub fn read(document: &str) -> Self {
        let mut cells = Self::default();
        let mut columns: Vec<&str> = Vec::new();
        for line in document.lines() {
            let Some(words) = row(line) else {
                continue;
            };
            let Some((name, rest)) = words.split_first() else {
                continue;
            };
            if *name == COLUMNS[0] {
                columns = words;
                continue;
            }
            for (column, cell) in columns.iter().skip(1).zip(rest).skip(COLUMNS.len() - 1) {
                cells.set(name, column, cell);
            }
        }
        cells
    }

    /// Replaces a cell.
    pub fn set(&mut self, technique: &str, column: &str, cell: &str) {
        let cells = self.0.entry(technique.to_owned()).or_default();
        cells.insert(column.to_owned(), cell.to_owned());
    }

    /// Columns, the newest kernel first.
    pub fn columns(&self) -> Vec<&str> {
        let mut columns: Vec<&str> = self
            .0
            .values()
            .flat_map(|cells| cells.keys().map(String::as_str))
            .collect();
        columns.sort_by_key(|column| {
            let numbers = column.split('.').map(|number| number.parse::<u32>().ok());
            std::cmp::Reverse(numbers.collect::<Vec<_>>())
        });
        columns.dedup();
        columns
    }

    /// The document.
    pub fn write(&self) -> String {
        let columns = self.columns();
        let mut text = HEAD.to_owned();
        for (title, rows) in TABLE {
            let _ = write!(text, "\n## {title}\n\n|");
            for column in COLUMNS.iter().chain(&columns) {
                let _ = write!(text, " {column} |");
            }
            let _ = writeln!(
                text,
                "\n|{}",
                " --- |".repeat(COLUMNS.len() + columns.len())
            );
            for technique in rows {
                let _ = write!(
                    text,
                    "| {} | {} | {} |",
                    technique.name,
                    technique.what,
                    must(technique)
                );
                for column in &columns {
                    let cell = self.0.get(technique.name).and_then(|row| row.get(*column));
                    let _ = write!(text, " {} |", cell.map_or("not run", String::as_str));
                }
                text.push('\n');
            }
        }
        text.push_str("\n## Missed, and why\n\n");
        for technique in techniques() {
            for (hook, reason) in technique.missed {
                let _ = writeln!(text, "- {}, by {hook}: {reason}.", technique.name);
            }
        }
        text
    }
}

fn must(technique: &Technique) -> String {
    if technique.raises.is_empty() {
        return "nothing".to_owned();
    }
    let raises: Vec<String> = technique
        .raises
        .iter()
        .map(|raises| format!("`{}`", raises.escape_debug()))
        .collect();
    raises.join(", ")
}

/// The cells of a line that is a row of a table.
fn row(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix("| ")?.strip_suffix(" |")?;
    let words: Vec<&str> = inner.split(" | ").collect();
    (words.len() > COLUMNS.len() && words.first() != Some(&"---")).then_some(words)
}

/// Where the document lies.
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/evasions.md")
}

/// What the document should be after a run on the kernel of `column`.
pub fn renewed<'a>(
    document: &str,
    column: &str,
    outcomes: impl Iterator<Item = (&'a str, &'a str)>,
) -> String {
    let mut cells = Cells::read(document);
    for (technique, cell) in outcomes {
        cells.set(technique, column, cell);
    }
    cells.write()
}

/// Reads the document.
///
/// # Errors
///
/// There is none.
pub fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read {}; `cargo xtask evasions` writes it",
            path.display()
        )
    })
}

/// What is to be said of a document that is not what a run says.
pub fn stale(path: &Path) -> String {
    format!(
        "{} is stale: `cargo xtask evasions` writes it anew",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut cells = Cells::default();
        for technique in techniques() {
            for column in ["6.1", "6.12", "6.18"] {
                cells.set(
                    technique.name,
                    column,
                    &format!("{} on {column}", technique.name),
                );
            }
        }
        assert_eq!(cells.columns(), ["6.18", "6.12", "6.1"]);
        assert_eq!(Cells::read(&cells.write()), cells);
    }

    #[test]
    fn a_run_renews_its_own_column() {
        let old = renewed("", "6.1", [("hard link", "old")].into_iter());
        let new = renewed(&old, "6.12", [("hard link", "new")].into_iter());
        assert!(new.contains("| new | old |"), "{new}");
        assert!(new.contains("| not run | not run |"), "{new}");
    }
}
