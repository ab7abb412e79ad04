//! Printing: one report, three formats.

use std::{
    io::{self, Write as _},
    time::SystemTime,
};

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use prost_types::Timestamp;
use serde::Serialize;

use crate::cli::Format;

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
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
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
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for row in rows {
        // A line break in a cell would look like a row of its own.
        table.add_row(row.map(|cell| printable(&cell).replace('\n', "\u{fffd}")));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
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

/// Prints a list: its entries for programs, a table for people.
pub(crate) fn print_list<const N: usize, T: Row<N>>(format: Format, entries: Vec<T>) -> Result<()> {
    #[derive(Serialize)]
    #[serde(transparent)]
    struct Listing<T> {
        entries: Vec<T>,
        #[serde(skip)]
        text: String,
    }
    impl<T: Serialize> Report for Listing<T> {
        fn text(&self) -> String {
            self.text.clone()
        }
    }
    let text = table_of(&entries);
    print(format, &Listing { entries, text })
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
