//! Where passwords and tokens come from: a file, standard input, or the terminal without echo. Never an argument,
//! which other users of the host can see.

use std::path::Path;

use anyhow::{Context as _, Result};
use zeroize::Zeroizing;

use crate::{exit::Usage, files::read_secret};

/// An existing password, from `file`, which `option` names, or the terminal.
pub(crate) fn existing(file: Option<&Path>, option: &str, prompt: &str) -> Result<Zeroizing<String>> {
    match file {
        Some(file) => line(file),
        None => ask(prompt, option),
    }
}

/// A new password, from `file`, which `option` names, or twice from the terminal.
pub(crate) fn new_password(file: Option<&Path>, option: &str, prompt: &str) -> Result<Zeroizing<String>> {
    let Some(file) = file else {
        let first = ask(prompt, option)?;
        if *first != *ask("Again: ", option)? {
            return Err(Usage("the passwords differ".into()).into());
        }
        return Ok(first);
    };
    line(file)
}

/// A secret file's only line, without its end.
pub(crate) fn line(file: &Path) -> Result<Zeroizing<String>> {
    let text = read_secret(file)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err(Usage(format!("{} is empty", file.display())).into());
    }
    if line.contains('\n') {
        return Err(Usage(format!("{} has more than one line", file.display())).into());
    }
    Ok(Zeroizing::new(line.to_owned()))
}

fn ask(prompt: &str, option: &str) -> Result<Zeroizing<String>> {
    let answer = rpassword::prompt_password(prompt);
    answer.map(Zeroizing::new).with_context(|| format!("there is no terminal to ask on: give {option}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{PRIVATE, write_atomic};

    #[test]
    fn one_line_without_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        for (content, secret) in [("a b\n", "a b"), ("a b", "a b"), (" x \r\n", " x ")] {
            write_atomic(&path, content.as_bytes(), PRIVATE).unwrap();
            assert_eq!(line(&path).unwrap().as_str(), secret);
        }
        for wrong in ["", "\n", "a\nb\n"] {
            write_atomic(&path, wrong.as_bytes(), PRIVATE).unwrap();
            assert!(line(&path).unwrap_err().is::<Usage>(), "{wrong:?}");
        }
    }
}
