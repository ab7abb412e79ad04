//! What was measured: one table for people as it comes, or JSON for programs at the end.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use mezite_e2e::percentile;
use serde::Serialize;

/// Width of a row's name.
const NAME: usize = 44;
/// Width of a column.
const COLUMN: usize = 11;

/// Collects rows, and prints them.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
    part: &'static str,
    columns: Vec<&'static str>,
    rows: Vec<Row>,
    begun: Instant,
}

/// One line: what a part has measured of a thing.
#[derive(Debug, Serialize)]
struct Row {
    part: &'static str,
    name: String,
    figures: serde_json::Map<String, serde_json::Value>,
}

/// A column's name, with its unit, and what is in it; nothing where it says nothing.
pub(crate) type Figure = (&'static str, Option<f64>);

impl Report {
    /// Prints nothing but JSON where that is wanted.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, part: "", columns: Vec::new(), rows: Vec::new(), begun: Instant::now() }
    }

    /// What follows is of this part; tells of the machine.
    pub(crate) fn part(&mut self, part: &'static str) -> Result<()> {
        self.part = part;
        self.columns.clear();
        let processors = std::thread::available_parallelism()?;
        let (load, after) = (load_average(), self.begun.elapsed().as_secs());
        self.note(&format!("\n== {part}: {processors} processors, load {load:.2}, after {after} s"));
        Ok(())
    }

    /// For people alone.
    pub(crate) fn note(&self, text: &str) {
        match self.json {
            true => eprintln!("{text}"),
            false => println!("{text}"),
        }
    }

    /// A row of the table. One whose columns are others than those of the row before has a heading.
    pub(crate) fn row(&mut self, name: impl Into<String>, figures: &[Figure]) {
        let (name, columns) = (name.into(), figures.iter().map(|(column, _)| *column).collect::<Vec<_>>());
        if columns != self.columns {
            let heading: String = columns.iter().map(|column| format!("{column:>COLUMN$}")).collect();
            self.note(&format!("\n{:<NAME$}{heading}", ""));
            self.columns = columns;
        }
        let values: String = figures
            .iter()
            .map(|(_, value)| format!("{:>COLUMN$}", value.map(shown).unwrap_or_default()))
            .collect();
        self.note(&format!("{name:<NAME$}{values}"));
        let figures =
            figures.iter().filter_map(|(column, value)| Some(((*column).to_owned(), (*value)?.into())));
        self.rows.push(Row { part: self.part, name, figures: figures.collect() });
    }

    /// All that was measured, for programs.
    ///
    /// # Errors
    /// A row that is no JSON.
    pub(crate) fn end(self) -> Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(&self.rows)?);
        }
        Ok(())
    }
}

/// With three digits that say something; counts as they are.
fn shown(value: f64) -> String {
    let decimals = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        100.0.. => 0,
        10.0..100.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// For people.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// For people.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Of times, which it puts in order: half of them, and 99 of a hundred, are no longer; and the longest. In milliseconds.
pub(crate) fn percentiles(times: &mut [Duration]) -> [f64; 3] {
    times.sort_unstable();
    [50, 99, 100].map(|share| percentile(times, share).map_or(f64::NAN, millis))
}

/// The load of the last minute.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}
