//! Programs that are used in a terminal.

use std::process::Command;

use serde_json::{Value, json};

use crate::{
    ctl::run,
    tools::{python, repository},
};

/// What became of a program in a terminal.
#[derive(Debug)]
pub struct Session {
    /// Its exit code; negative: the signal that ended it.
    pub code: i64,
    /// All that it wrote.
    pub output: String,
    /// Whether the terminal is set as it was before.
    pub restored: bool,
}

/// Runs a program in a terminal of 80 by 24 characters. When the text of a step has appeared, its keys are typed; `SIGTERM` and
/// the like are sent as signals, and `SIZE 100x30` gives the terminal another size. After the last one it ends by itself.
///
/// # Panics
/// When a text does not appear, or it does not end.
pub fn in_terminal(command: &Command, steps: &[(&str, &str)]) -> Session {
    let mut terminal = Command::new(python());
    terminal.arg(repository().join("tests/python/terminal.py")).arg("80x24").arg(json!(steps).to_string());
    terminal.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    let said: Value = serde_json::from_str(&run(&mut terminal).ok()).unwrap();
    Session {
        code: said["code"].as_i64().unwrap(),
        output: said["output"].as_str().unwrap().to_owned(),
        restored: said["restored"].as_bool().unwrap(),
    }
}
