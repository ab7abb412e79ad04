//! How text looks to people: as wide as their terminal, and with colours where they want them. What is printed is the same
//! without: nothing is told by a colour alone.

use std::{
    env,
    io::{self, IsTerminal},
};

use crossterm::{style::Stylize as _, terminal};

/// No column becomes narrower to make room.
const NARROWEST: u16 = 8;
/// Length of a UUID as text (RFC 9562).
const ID: usize = 36;

/// States in which all is well.
const GOOD: &[&str] = &["active", "approved", "complete", "online", "proven", "ready", "serves", "sound"];
/// States that pass, or should be looked at.
const WAITING: &[&str] = &["in-progress", "interrupted", "offline", "pending", "truncated", "unknown"];
/// States in which something is wrong.
const BAD: &[&str] = &[
    "NOT PROVEN",
    "NOT SOUND",
    "OLD",
    "denied",
    "failed",
    "no connection",
    "no leader with a quorum",
    "not ready",
    "not-proven",
    "unavailable",
    "unreachable",
];
/// What is wrong, whatever else is said.
const ALARM: &str = "database full";

/// Whether to use colours there: on a terminal that has them, unless the user wants none (<https://no-color.org>).
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    is_capable(stream) && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether it is a terminal that can do more than print one line below the other.
pub(crate) fn is_capable(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// Columns of the terminal that standard output is; `None`: it is none, or nobody knows.
pub(crate) fn width() -> Option<u16> {
    if !io::stdout().is_terminal() {
        return None;
    }
    terminal::size().ok().map(|(columns, _)| columns).filter(|columns| *columns > 0)
}

/// Makes columns, with `gap` between them, narrower until they fit into `room`: always the one that is widest, but those that
/// are `whole`, whose cells are to be copied.
pub(crate) fn fit(widths: &mut [u16], whole: &[bool], gap: u16, room: u16) {
    let gaps = usize::from(gap) * widths.len().saturating_sub(1);
    let mut sum = gaps + widths.iter().map(|&width| usize::from(width)).sum::<usize>();
    while sum > usize::from(room) {
        let narrowable =
            widths.iter_mut().zip(whole).filter(|(width, whole)| **width > NARROWEST && !**whole);
        match narrowable.map(|(width, _)| width).max() {
            Some(widest) => *widest -= 1,
            None => return,
        }
        sum -= 1;
    }
}

/// Whether a cell is an id that commands take: in two lines it is of use to nobody.
pub(crate) fn is_id(cell: &str) -> bool {
    cell.len() == ID && cell.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// Colours what is a heading or a state of something. It changes nothing of a text that has none.
pub(crate) fn paint(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| match line.strip_suffix('\n') {
            Some(line) => paint_line(line) + "\n",
            None => paint_line(line),
        })
        .collect()
}

fn paint_line(line: &str) -> String {
    if is_heading(line) {
        return line.bold().to_string();
    }
    let (mut painted, mut rest) = (String::new(), line);
    while !rest.is_empty() {
        let (cell, after) = rest.split_at(rest.find("  ").unwrap_or(rest.len()));
        let (gap, next) = after.split_at(after.len() - after.trim_start_matches(' ').len());
        painted += &paint_cell(cell);
        painted += gap;
        rest = next;
    }
    painted
}

/// Whether a line has the names of columns.
fn is_heading(line: &str) -> bool {
    line.contains("  ")
        && line.contains(|c: char| c.is_ascii_uppercase())
        && line.chars().all(|c| c.is_ascii_uppercase() || " -".contains(c))
}

fn paint_cell(cell: &str) -> String {
    let state = cell.split([':', ',']).next().unwrap_or_default();
    match () {
        () if cell.contains(ALARM) || BAD.contains(&state) => cell.red().to_string(),
        () if GOOD.contains(&state) => cell.green().to_string(),
        () if WAITING.contains(&state) => cell.yellow().to_string(),
        () => cell.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without what colours it.
    fn bare(text: &str) -> String {
        let mut parts = text.split("\x1b[");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |bare, part| bare + part.split_once('m').unwrap().1)
    }

    #[test]
    fn states_and_headings_are_coloured_and_nothing_is_changed() {
        let text = "NODE  HEALTH\n1     ready\n2     not ready: it lags\n3     ready, database full\n\nname: ready made";
        let painted = paint(text);
        assert_eq!(bare(&painted), text);
        let lines: Vec<_> = painted.lines().collect();
        assert!(lines[0].starts_with("\x1b[1m"), "{painted:?}");
        let colours: Vec<_> = lines[1..4].iter().map(|line| line.split('\x1b').nth(1).unwrap()).collect();
        assert!(colours[0] != colours[1] && colours[1].split('m').next() == colours[2].split('m').next());
        assert_eq!(lines[5], "name: ready made");
    }

    #[test]
    fn what_has_no_state_is_as_it_was() {
        for text in ["", "\n", "alice  dev\n", "Logged in.", "A", "readying  x"] {
            assert_eq!(paint(text), text);
        }
    }

    #[test]
    fn columns_fit_and_none_vanishes() {
        let fitted = |widths: &[u16], room| {
            let mut widths = widths.to_vec();
            fit(&mut widths, &[false; 3], 2, room);
            widths
        };
        assert_eq!(fitted(&[10, 10], 22), [10, 10]);
        assert_eq!(fitted(&[10, 36, 5], 40), [10, 21, 5]);
        assert_eq!(fitted(&[30, 31], 42), [20, 20]);
        assert_eq!(fitted(&[9, 9, 3], 5), [8, 8, 3]);
        assert_eq!(fitted(&[u16::MAX, u16::MAX], 80), [39, 39]);
        assert!(fitted(&[], 80).is_empty());
        let mut widths = [36, 10, 20];
        fit(&mut widths, &[true, false, false], 2, 60);
        assert_eq!(widths, [36, 10, 10]);
        assert!(
            is_id("6f9619ff-8b86-4011-b42d-00c04fc964ff") && !is_id("2026-11-24T09:20:00Z") && !is_id("")
        );
    }
}
