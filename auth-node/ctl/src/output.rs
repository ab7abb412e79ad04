//! Printing: one report, three formats.

use std::{
    io::{self, Write as _},
    marker::PhantomData,
    ops::ControlFlow,
    time::SystemTime,
};

use anyhow::Result;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use prost_types::Timestamp;
use serde::Serialize;

use crate::cli::Format;

/// Spaces between the columns of a table.
const GAP: u16 = 2;

/// What a command prints. Its fields are the JSON and YAML forms; names in them are stable.
pub(crate) trait Report: Serialize {
    /// For people.
    fn text(&self) -> String;
}

/// Prints a report on standard output.
pub(crate) fn print(format: Format, report: &impl Report) -> Result<()> {
    write(&render(format, report)?)
}

/// Writes a text on standard output, as it is.
pub(crate) fn write(text: &str) -> Result<()> {
    write_some(text).map(drop)
}

/// Writes to standard output; breaks when nobody reads any more.
fn write_some(text: &str) -> Result<ControlFlow<()>> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        written => Ok(ControlFlow::Continue(written?)),
    }
}

fn render(format: Format, report: &impl Report) -> Result<String> {
    let mut text = match format {
        Format::Text => printable(&report.text()),
        Format::Json => serde_json::to_string_pretty(report)?,
        Format::Yaml => serde_norway::to_string(report)?,
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Replaces control characters, so that what a host reports cannot steer the terminal of who reads it.
pub(crate) fn printable(text: &str) -> String {
    let keep = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
    text.chars().map(keep).collect()
}

/// A table with these columns.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    part_of_table(&mut [0; N], Some(header), rows)
}

/// Some rows of a table, below its header if they are its first. Columns are at least as wide as `widths`, which then says how
/// wide they are.
fn part_of_table<const N: usize>(
    widths: &mut [u16; N],
    header: Option<[&str; N]>,
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if let Some(header) = header {
        table.set_header(header);
    }
    for row in rows {
        // A line break in a cell would look like a row of its own.
        table.add_row(row.map(|cell| printable(&cell).replace('\n', "\u{fffd}")));
    }
    for (width, content) in widths.iter_mut().zip(table.column_max_content_widths()) {
        *width = content.max(*width);
    }
    for (column, width) in table.column_iter_mut().zip(widths) {
        column.set_padding((0, GAP));
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width.saturating_add(GAP))));
    }
    table.to_string().lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// `name: value` lines; those without a value are left out.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
    let given = fields.iter().filter(|(_, value)| !value.is_empty());
    given.map(|(name, value)| format!("{:width$} {value}\n", format!("{name}:"))).collect()
}

/// RFC 3339 in UTC, to the second; `None` when there is no such time.
pub(crate) fn time(timestamp: Option<&Timestamp>) -> Option<String> {
    let time = SystemTime::try_from(*timestamp?).ok()?;
    Some(humantime::format_rfc3339_seconds(time).to_string())
}

/// `a=1,b=2`.
pub(crate) fn pairs<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    map.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// A report that is one sentence.
#[derive(Debug, Serialize)]
pub(crate) struct Done {
    /// What was done.
    pub(crate) message: String,
}

impl Done {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

impl Report for Done {
    fn text(&self) -> String {
        self.message.clone()
    }
}

/// An entry of a list.
pub(crate) trait Row<const N: usize>: Serialize {
    /// Columns.
    const HEADER: [&'static str; N];

    /// Cells.
    fn row(&self) -> [String; N];
}

/// The table of a list.
pub(crate) fn table_of<const N: usize, T: Row<N>>(entries: &[T]) -> String {
    table(T::HEADER, entries.iter().map(Row::row))
}

/// A list in the making: entries for programs, a table for people. Its parts, one after the other, are what it looks like as a
/// whole, but that a column of a table becomes wider where an entry needs it.
pub(crate) struct Listing<const N: usize, T> {
    format: Format,
    begun: bool,
    /// Of the columns so far.
    widths: [u16; N],
    entries: PhantomData<fn(T)>,
}

impl<const N: usize, T: Row<N>> Listing<N, T> {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, begun: false, widths: [0; N], entries: PhantomData }
    }

    /// Prints further entries; breaks when nobody reads any more.
    pub(crate) fn print(&mut self, entries: &[T]) -> Result<ControlFlow<()>> {
        write_some(&self.part(entries)?)
    }

    /// Prints what belongs after the last entry.
    pub(crate) fn end(self) -> Result<()> {
        write(&self.rest())
    }

    fn part(&mut self, entries: &[T]) -> Result<String> {
        if entries.is_empty() {
            return Ok(String::new());
        }
        let first = !std::mem::replace(&mut self.begun, true);
        Ok(match self.format {
            Format::Text => {
                let header = first.then_some(T::HEADER);
                part_of_table(&mut self.widths, header, entries.iter().map(Row::row))
            }
            Format::Json => {
                let whole = serde_json::to_string_pretty(entries)?;
                let inner = whole.strip_prefix('[').and_then(|rest| rest.strip_suffix("\n]"));
                let front = if first { "[" } else { "," };
                format!("{front}{}", inner.unwrap_or_default())
            }
            Format::Yaml => serde_norway::to_string(entries)?,
        })
    }

    fn rest(&self) -> String {
        match (self.format, self.begun) {
            (Format::Text, false) => table(T::HEADER, []),
            (Format::Json, true) => "\n]\n".into(),
            (Format::Json | Format::Yaml, false) => "[]\n".into(),
            (Format::Text | Format::Yaml, true) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_three_forms() {
        let done = Done::new("done");
        assert_eq!(render(Format::Text, &done).unwrap(), "done\n");
        assert_eq!(render(Format::Json, &done).unwrap(), "{\n  \"message\": \"done\"\n}\n");
        assert_eq!(render(Format::Yaml, &done).unwrap(), "message: done\n");
    }

    #[test]
    fn what_a_host_reports_cannot_steer_the_terminal() {
        let text = table(["a", "b"], [["x\x1b[2J".to_owned(), "y\nz".to_owned()]]);
        assert_eq!(
            text,
            "a          b\nx\u{fffd}[2J  y\u{fffd}z\n".replace("a          b", text.lines().next().unwrap())
        );
        assert!(!text.contains('\x1b') && text.lines().count() == 2);
    }

    #[derive(Serialize)]
    struct Entry {
        name: &'static str,
        size: u32,
    }

    impl Row<2> for Entry {
        const HEADER: [&'static str; 2] = ["NAME", "SIZE"];

        fn row(&self) -> [String; 2] {
            [self.name.to_owned(), self.size.to_string()]
        }
    }

    fn listed(format: Format, pages: &[&[Entry]]) -> String {
        let mut listing = Listing::new(format);
        let text: String = pages.iter().map(|page| listing.part(page).unwrap()).collect();
        text + &listing.rest()
    }

    #[test]
    fn the_parts_of_a_list_are_the_list() {
        let entry = |name| Entry { name, size: 5 };
        let json = serde_json::to_string_pretty(&[entry("longer-1"), entry("x"), entry("y")]).unwrap() + "\n";
        for (format, whole) in [
            (Format::Text, "NAME      SIZE\nlonger-1  5\nx         5\ny         5\n"),
            (Format::Yaml, "- name: longer-1\n  size: 5\n- name: x\n  size: 5\n- name: y\n  size: 5\n"),
            (Format::Json, &json),
        ] {
            let one = listed(format, &[&[entry("longer-1"), entry("x"), entry("y")]]);
            let parts: [&[Entry]; 4] = [&[entry("longer-1")], &[], &[entry("x"), entry("y")], &[]];
            assert_eq!((one.as_str(), listed(format, &parts).as_str()), (whole, whole));
        }
        let empty = [Format::Text, Format::Json, Format::Yaml].map(|format| listed(format, &[]));
        assert_eq!(empty, ["NAME  SIZE\n", "[]\n", "[]\n"]);
    }

    #[test]
    fn times_are_rfc_3339() {
        let time = time(Some(&Timestamp { seconds: 1_795_512_000, nanos: 5 }));
        assert_eq!(time.as_deref(), Some("2026-11-24T09:20:00Z"));
        assert_eq!(super::time(None), None);
    }

    #[test]
    fn empty_fields_are_left_out() {
        assert_eq!(fields(&[("a", "1".into()), ("long", String::new())]), "a:    1\n");
    }
}
