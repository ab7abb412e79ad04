//! Printing: one report, three formats. All that commands print goes through here.

use std::{
    cell::RefCell,
    io::{self, Write as _},
    marker::PhantomData,
    ops::ControlFlow,
    time::SystemTime,
};

use anyhow::Result;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use crossterm::style::{StyledContent, Stylize as _};
use prost_types::Timestamp;
use serde::Serialize;

use crate::{
    cli::Format,
    hidden::{Escape, escaped, is_hidden},
    log, look,
};

pub(crate) use crate::hidden::printable;

/// Spaces between the columns of a table.
const GAP: u16 = 2;

/// What a command prints. Its fields are the JSON and YAML forms; names in them are stable.
pub(crate) trait Report: Serialize {
    /// For people.
    fn text(&self) -> String;
}

tokio::task_local! {
    /// What is printed, where somebody else shows it.
    static TAKEN: RefCell<String>;
}

/// Does some work, and takes what is printed by it instead of printing it.
pub(crate) async fn taken<T>(work: impl Future<Output = T>) -> (T, String) {
    let work = async { (work.await, TAKEN.with(RefCell::take)) };
    TAKEN.scope(RefCell::default(), work).await
}

/// Prints a report on standard output; of a service it is a line of the log.
pub(crate) fn print(format: Format, report: &impl Report) -> Result<()> {
    if log::has_begun() {
        tracing::info!("{}", in_one_line(&report.text()));
        return Ok(());
    }
    write_as(format, &render(format, report)?).map(drop)
}

/// Writes what is in a format on standard output: text looks as people like it. Breaks when nobody reads any more.
pub(crate) fn write_as(format: Format, text: &str) -> Result<ControlFlow<()>> {
    match format {
        // What is taken is coloured by who shows it.
        Format::Text if look::has_colours(&io::stdout()) && !is_taken() => write_some(&look::paint(text)),
        Format::Text | Format::Json | Format::Yaml => write_some(text),
    }
}

fn is_taken() -> bool {
    TAKEN.try_with(|_| ()).is_ok()
}

/// Writes a text on standard output, as it is.
pub(crate) fn write(text: &str) -> Result<()> {
    write_some(text).map(drop)
}

/// Writes to standard output; breaks when nobody reads any more.
pub(crate) fn write_some(text: &str) -> Result<ControlFlow<()>> {
    if TAKEN.try_with(|taken| taken.borrow_mut().push_str(text)).is_ok() {
        return Ok(ControlFlow::Continue(()));
    }
    let mut stdout = io::stdout().lock();
    // What is printed as it comes is there at once, also where it does not end a line.
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        written => Ok(ControlFlow::Continue(written?)),
    }
}

/// Says a line on standard error, beside what is printed. Further lines stand apart: none looks like one of ours.
pub(crate) fn say(text: &str) {
    match log::has_begun() {
        true => tracing::info!("{}", in_one_line(text)),
        false => say_line(&format!("{}\n", one_of_ours(text))),
    }
}

/// As [`say`], of what somebody should know, and that ends nothing.
pub(crate) fn warn(text: &str) {
    match log::has_begun() {
        true => tracing::warn!("{}", in_one_line(text)),
        false => say_after("warning:".yellow(), text),
    }
}

/// As [`say`], of what ends the program.
pub(crate) fn fail(text: &str) {
    match log::has_begun() {
        true => tracing::error!("{}", in_one_line(text)),
        false => say_after("error:".red().bold(), text),
    }
}

/// As [`say`], of what helps against a failure.
pub(crate) fn hint(text: &str) {
    match log::has_begun() {
        true => tracing::info!("hint: {}", in_one_line(text)),
        false => say_after("hint:".cyan(), text),
    }
}

fn say_after(word: StyledContent<&'static str>, text: &str) {
    let word = if look::has_colours(&io::stderr()) { word.to_string() } else { (*word.content()).to_owned() };
    say_line(&format!("{word} {}\n", one_of_ours(text)));
}

fn in_one_line(text: &str) -> String {
    let text = printable(text);
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(words).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

fn one_of_ours(text: &str) -> String {
    printable(text).replace('\n', "\n  ")
}

fn say_line(line: &str) {
    // What is done does not depend on whether anybody hears of it.
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

fn render(format: Format, report: &impl Report) -> Result<String> {
    let mut text = match format {
        Format::Text => printable(&report.text()),
        Format::Json => json(report)?,
        Format::Yaml => yaml(report)?,
    };
    end_line(&mut text);
    Ok(text)
}

fn end_line(text: &mut String) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
}

/// As JSON, in which nothing is hidden.
pub(crate) fn json(value: &(impl Serialize + ?Sized)) -> Result<String> {
    Ok(escaped(&serde_json::to_string_pretty(value)?, Escape::Json))
}

/// As YAML, in which nothing is hidden: where something would be, in the form of JSON, which has escapes for it. The mark in
/// front says that it is YAML all the same, which has other escapes.
pub(crate) fn yaml(value: &(impl Serialize + ?Sized)) -> Result<String> {
    let text = serde_norway::to_string(value)?;
    if text.chars().any(is_hidden) { Ok(format!("--- {}\n", flow(value)?)) } else { Ok(text) }
}

/// As JSON that is YAML too, in one line.
fn flow(value: &(impl Serialize + ?Sized)) -> Result<String> {
    let text = serde_json::to_string_pretty(value)?;
    let line = text.lines().map(str::trim_start).collect::<Vec<_>>().join(" ");
    Ok(escaped(&line, Escape::Yaml))
}

/// Entries of a list in YAML.
fn yaml_entries(entries: &[impl Serialize]) -> Result<String> {
    let text = serde_norway::to_string(entries)?;
    match text.chars().any(is_hidden) {
        true => entries.iter().map(|entry| Ok(format!("- {}\n", flow(entry)?))).collect(),
        false => Ok(text),
    }
}

/// A table with these columns.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    part_of_table(&mut [0; N], Some(header), rows)
}

/// Some rows of a table, below its header if they are its first. Columns are at least as wide as `widths`, which then says how
/// wide they are; unless the terminal is narrower: then cells have several lines.
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
    let mut whole = [false; N];
    for row in rows {
        for (whole, cell) in whole.iter_mut().zip(&row) {
            *whole |= look::is_id(cell);
        }
        // A line break in a cell would look like a row of its own.
        table.add_row(row.map(|cell| printable(&cell).replace('\n', "\u{fffd}")));
    }
    for (width, content) in widths.iter_mut().zip(table.column_max_content_widths()) {
        *width = content.max(*width);
    }
    if let Some(room) = look::width() {
        look::fit(widths, &whole, GAP, room);
    }
    for (column, width) in table.column_iter_mut().zip(widths) {
        column.set_padding((0, GAP));
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width.saturating_add(GAP))));
    }
    table.to_string().lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// `name: value` lines; those without a value are left out. Further lines of a value stand under its first: none looks like a
/// field of its own.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
    let given = fields.iter().filter(|(_, value)| !value.is_empty());
    let indented = |value: &str| value.trim_end().replace('\n', &format!("\n{:width$} ", ""));
    given.map(|(name, value)| format!("{:width$} {}\n", format!("{name}:"), indented(value))).collect()
}

/// RFC 3339 in UTC, to the second; `None` when there is no such time.
pub(crate) fn time(timestamp: Option<&Timestamp>) -> Option<String> {
    let time = SystemTime::try_from(*timestamp?).ok()?;
    Some(humantime::format_rfc3339_seconds(time).to_string())
}

/// Bytes, in the largest unit of 1024 of which there is one.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
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

/// The entries of a list, printed as they come. Its parts, one after the other, are what it looks like as a whole.
struct Entries {
    format: Format,
    begun: bool,
}

impl Entries {
    fn new(format: Format) -> Self {
        Self { format, begun: false }
    }

    /// Some entries; `text` is told whether they are the first.
    fn part(&mut self, entries: &[impl Serialize], text: impl FnOnce(bool) -> String) -> Result<String> {
        if entries.is_empty() {
            return Ok(String::new());
        }
        let first = !std::mem::replace(&mut self.begun, true);
        Ok(match self.format {
            Format::Text => text(first),
            Format::Json => {
                let whole = json(entries)?;
                let inner = whole.strip_prefix('[').and_then(|rest| rest.strip_suffix("\n]"));
                let front = if first { "[" } else { "," };
                format!("{front}{}", inner.unwrap_or_default())
            }
            Format::Yaml => yaml_entries(entries)?,
        })
    }

    /// What belongs after the last; `empty` is the text of none at all.
    fn rest(&self, empty: impl FnOnce() -> String) -> String {
        match (self.format, self.begun) {
            (Format::Text, false) => empty(),
            (Format::Json, true) => "\n]\n".into(),
            (Format::Json | Format::Yaml, false) => "[]\n".into(),
            (Format::Text | Format::Yaml, true) => String::new(),
        }
    }
}

/// A list in the making: entries for programs, a table for people. A column of the table becomes wider where an entry needs it.
pub(crate) struct Listing<const N: usize, T> {
    entries: Entries,
    /// Of the columns so far.
    widths: [u16; N],
    of: PhantomData<fn(T)>,
}

impl<const N: usize, T: Row<N>> Listing<N, T> {
    pub(crate) fn new(format: Format) -> Self {
        Self { entries: Entries::new(format), widths: [0; N], of: PhantomData }
    }

    /// Prints further entries; breaks when nobody reads any more.
    pub(crate) fn print(&mut self, entries: &[T]) -> Result<ControlFlow<()>> {
        let text = self.part(entries)?;
        write_as(self.entries.format, &text)
    }

    /// Prints what belongs after the last entry.
    pub(crate) fn end(self) -> Result<()> {
        write_as(self.entries.format, &self.rest()).map(drop)
    }

    fn part(&mut self, entries: &[T]) -> Result<String> {
        let widths = &mut self.widths;
        self.entries.part(entries, |first| {
            part_of_table(widths, first.then_some(T::HEADER), entries.iter().map(Row::row))
        })
    }

    fn rest(&self) -> String {
        self.entries.rest(|| table(T::HEADER, []))
    }
}

/// Reports that are printed one by one, each as soon as there is something to tell; for programs they are a list.
pub(crate) struct Journal {
    entries: Entries,
}

impl Journal {
    pub(crate) fn new(format: Format) -> Self {
        Self { entries: Entries::new(format) }
    }

    /// Prints a further one; breaks when nobody reads any more.
    pub(crate) fn print(&mut self, report: &impl Report) -> Result<ControlFlow<()>> {
        let text = self.part(report)?;
        write_as(self.entries.format, &text)
    }

    /// Whether anything was printed.
    pub(crate) fn has_begun(&self) -> bool {
        self.entries.begun
    }

    /// Prints what belongs after the last.
    pub(crate) fn end(&self) -> Result<()> {
        write(&self.entries.rest(String::new))
    }

    fn part(&mut self, report: &impl Report) -> Result<String> {
        self.entries.part(std::slice::from_ref(report), |_| {
            let mut text = printable(&report.text());
            end_line(&mut text);
            text
        })
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
