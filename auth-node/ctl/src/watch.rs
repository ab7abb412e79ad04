//! `--watch`: a command that shows something, again and again.

use std::{io, time::Duration};

use anyhow::Result;

use crate::{
    cli::{Command, Format},
    cmd,
    context::Context,
    exit::{is_unavailable, tell},
    live,
    look::is_capable,
    output,
};

/// Carries out a command every so often: on a terminal each round takes the place of the one before, elsewhere it is printed
/// below it. While the cluster is unavailable, that is told.
///
/// # Errors
/// What else a round fails by.
pub(crate) async fn watch(
    context: &Context,
    every: Duration,
    command: impl Fn() -> Result<Command>,
) -> Result<()> {
    let round = async || match command() {
        Ok(command) => {
            let (outcome, text) = output::taken(cmd::run(context, command)).await;
            (text, outcome)
        }
        Err(error) => (String::new(), Err(error)),
    };
    if is_capable(&io::stdout()) && context.format == Format::Text {
        return live::show(every, round).await;
    }
    let mut first = true;
    loop {
        let (text, outcome) = round().await;
        if output::write_some(&(front(context.format, first, &text).to_owned() + &text))?.is_break() {
            return Ok(());
        }
        match outcome {
            Err(error) if is_unavailable(&error) => tell(&error),
            outcome => outcome?,
        }
        first &= text.is_empty();
        tokio::time::sleep(every).await;
    }
}

/// What tells a document from the one before.
fn front(format: Format, first: bool, text: &str) -> &'static str {
    match format {
        Format::Yaml if !text.is_empty() && !text.starts_with("---") => "---\n",
        Format::Text if !first && !text.is_empty() => "\n",
        Format::Text | Format::Json | Format::Yaml => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart() {
        assert_eq!(front(Format::Yaml, true, "- a\n"), "---\n");
        assert_eq!(front(Format::Yaml, false, "--- {}\n"), "");
        assert_eq!(front(Format::Yaml, false, ""), "");
        assert_eq!(front(Format::Text, true, "a"), "");
        assert_eq!(front(Format::Text, false, "a"), "\n");
        assert_eq!(front(Format::Text, false, ""), "");
        assert_eq!(front(Format::Json, false, "[]"), "");
    }
}
