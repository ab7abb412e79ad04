//! The defaults that the page of the configurations names, beside what the programs say is in force where nothing is configured.

use std::{fs, process::Command, time::Duration};

use mezite_e2e::{Scratch, binary, run, tools::repository};
use toml::{Table, Value};

/// A program, and the least that it is configured with.
const PROGRAMS: [(&str, &str); 2] = [
    ("auth-node", "data_dir = '/data'\nadvertise = 'a:3025'\npeer_advertise = 'a:3026'\n"),
    (
        "recording-ingest",
        "data_dir = '/data'\nstore = 'file:///store'\nadvertise = 'a:3027'\nhostname = 'a.example'\n",
    ),
];
const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Compares those that are values, and answers how many are; others, such as a half of the processors, are in words.
pub(super) fn compare() -> usize {
    let page = fs::read_to_string(repository().join("deploy/configuration.md")).unwrap();
    let scratch = Scratch::new();
    PROGRAMS
        .into_iter()
        .map(|(program, least)| {
            let file = scratch.path().join(format!("{program}.toml"));
            fs::write(&file, least).unwrap();
            let printed =
                run(Command::new(binary(program)).args(["run", "--print-config", "--config"]).arg(&file))
                    .ok();
            let in_force: Table = printed.parse().unwrap();
            let section =
                page.split(&format!("\n## {program}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
            section.lines().filter(|line| is_compared(line, &in_force)).count()
        })
        .sum()
}

/// Compares the default in a row of the page, if it is a value.
fn is_compared(row: &str, in_force: &Table) -> bool {
    let Some((field, text)) = row.strip_prefix("| `").and_then(|row| row.split_once("` | ")) else {
        return false;
    };
    let Some(default) = text.split("Default: ").nth(1).and_then(|rest| rest.strip_suffix(". |")) else {
        return false;
    };
    let mut value = None;
    for part in field.split('.') {
        let table = value.map_or(Some(in_force), Value::as_table);
        value = table.and_then(|table| table.get(part));
    }
    match (value, default.strip_prefix('`').and_then(|default| default.strip_suffix('`'))) {
        (Some(Value::String(value)), Some(default)) => assert_eq!(value, default, "{field}"),
        (Some(Value::String(value)), None) => {
            let Ok(default) = humantime::parse_duration(default) else { return false };
            let value = humantime::parse_duration(value).unwrap();
            // It is printed to the second.
            assert!(value.abs_diff(default) < Duration::from_secs(1), "{field}: {value:?}, not {default:?}");
        }
        (Some(Value::Boolean(value)), _) => assert_eq!(value.to_string(), default, "{field}"),
        (Some(Value::Integer(value)), _) => match number(default) {
            Some(default) => assert_eq!(u64::try_from(*value).unwrap(), default, "{field}"),
            None => return false,
        },
        (Some(Value::Array(value)), _) => {
            assert!(value.is_empty() && default.starts_with("none"), "{field}: {default}")
        }
        _ => return false,
    }
    true
}

/// `10000`, `100,000`, `8 MiB`.
fn number(text: &str) -> Option<u64> {
    let (number, unit) = match text.split_once(' ') {
        Some((number, unit)) => (number, UNITS.iter().find(|(name, _)| *name == unit)?.1),
        None => (text, 1),
    };
    Some(number.replace(',', "").parse::<u64>().ok()? * unit)
}
