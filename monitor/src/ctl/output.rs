//! Lines and tables, safe for a terminal.

use std::io::{self, Write};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use monitor_api::{
    bytes::{escape, is_unsafe},
    json, v1,
};

use super::Format;

/// The terminal that the output goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Columns; `None` if it does not say.
    pub width: Option<u16>,
    /// It may be coloured.
    pub colour: bool,
}

/// Where a command prints, and how.
pub struct Output<'a> {
    writer: &'a mut (dyn Write + Send),
    format: Format,
    terminal: Option<Terminal>,
}

impl<'a> Output<'a> {
    /// Prints to `writer`, which is `terminal` if it is one.
    pub fn new(
        writer: &'a mut (dyn Write + Send),
        format: Format,
        terminal: Option<Terminal>,
    ) -> Self {
        Self {
            writer,
            format,
            terminal,
        }
    }

    /// Whether JSON is asked for, in whatever layout.
    pub(super) fn is_json(&self) -> bool {
        self.format != Format::Table
    }

    /// Whether alerts are asked for as OCSF.
    pub(super) fn is_ocsf(&self) -> bool {
        self.format == Format::Ocsf
    }

    /// One object, on a line of its own, flushed.
    pub(super) fn json(&mut self, value: &serde_json::Value) -> io::Result<()> {
        writeln!(self.writer, "{}", json::line(value))?;
        self.writer.flush()
    }

    /// A text of several lines, each made [`safe`].
    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        for line in text.lines() {
            writeln!(self.writer, "{}", safe(line))?;
        }
        self.writer.flush()
    }

    /// A line made of `cells`, cut at the terminal's width and flushed. Cells must be [`safe`].
    pub(super) fn line_that_fits(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        let width = self.terminal.and_then(|terminal| terminal.width);
        self.print(cells, width.map_or(usize::MAX, usize::from))
    }

    /// A line made of `cells`, whole however wide it is. Cells must be [`safe`].
    pub(super) fn line(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        self.print(cells, usize::MAX)
    }

    fn print(&mut self, cells: &[Cell<'_>], mut left: usize) -> io::Result<()> {
        let colour = self.terminal.is_some_and(|terminal| terminal.colour);
        let mut line = String::new();
        for (index, cell) in cells.iter().enumerate() {
            let is_last = index + 1 == cells.len();
            let width = if is_last { 0 } else { cell.width };
            let mut text = format!("{:width$}", cell.text);
            if !is_last {
                text.push_str("  ");
            }
            let text: String = text.chars().take(left).collect();
            left -= text.chars().count();
            match cell.colour.filter(|_| colour && !text.is_empty()) {
                Some(code) => line.push_str(&format!("\u{1b}[{code}m{text}\u{1b}[0m")),
                None => line.push_str(&text),
            }
        }
        writeln!(self.writer, "{}", line.trim_end())?;
        self.writer.flush()
    }

    /// A table without borders, each row on one line.
    pub(super) fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .force_no_tty()
            .set_truncation_indicator("…");
        table.set_header(header);
        if let Some(width) = self.terminal.and_then(|terminal| terminal.width) {
            table
                .set_width(width)
                .set_content_arrangement(ContentArrangement::Dynamic);
        }
        for row in rows {
            let cells = row.iter().map(|cell| safe(cell));
            let mut row = comfy_table::Row::from(cells.collect::<Vec<_>>());
            row.max_height(1);
            table.add_row(row);
        }
        let minimum = ColumnConstraint::LowerBoundary(Width::Fixed(6));
        table.set_constraints(header.iter().map(|_| minimum));
        for line in table.lines() {
            writeln!(self.writer, "{}", line.trim())?;
        }
        self.writer.flush()
    }
}

/// A part of a line.
pub(super) struct Cell<'a> {
    text: &'a str,
    width: usize,
    colour: Option<&'static str>,
}

impl<'a> Cell<'a> {
    pub(super) fn new(text: &'a str, width: usize) -> Self {
        Self {
            text,
            width,
            colour: None,
        }
    }

    pub(super) fn coloured(self, colour: Option<&'static str>) -> Self {
        Self { colour, ..self }
    }
}

/// The terminal's code for a severity.
pub(super) fn colour(severity: v1::Severity) -> Option<&'static str> {
    match severity {
        v1::Severity::Critical => Some("1;31"),
        v1::Severity::High => Some("31"),
        v1::Severity::Medium => Some("33"),
        v1::Severity::Low => Some("36"),
        v1::Severity::Info | v1::Severity::Unspecified => None,
    }
}

/// `text` with what a terminal acts on, or that hides other text, spelled out.
pub(super) fn safe(text: &str) -> String {
    let mut said = String::with_capacity(text.len());
    for char in text.chars() {
        if is_unsafe(char) {
            said.extend(char.escape_default());
        } else {
            said.push(char);
        }
    }
    said
}

/// A path or an argument for people.
pub(super) fn safe_bytes(bytes: &[u8]) -> String {
    safe(&escape(bytes))
}

/// Enough of a digest or an id to tell it from others by eye; others stay whole.
pub(super) fn short(text: &str) -> String {
    let (prefix, digits) = match text.split_once(':') {
        Some(("sha256", digits)) => ("sha256:", digits),
        _ => ("", text),
    };
    if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return format!("{prefix}{}", digits.get(..12).unwrap_or(digits));
    }
    safe(text)
}

/// `text`, or a dash for none.
pub(super) fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// A time in UTC to the second, or a dash.
pub(super) fn time(time: Option<&prost_types::Timestamp>) -> String {
    time.and_then(|time| jiff::Timestamp::new(time.seconds, time.nanos).ok())
        .map_or_else(|| "-".to_owned(), |time| format!("{time:.0}"))
}
