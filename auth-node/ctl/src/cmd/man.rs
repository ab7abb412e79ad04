//! `man`: manual pages, made of what `--help` says.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args;
use clap_mangen::Man as Page;

use crate::{cli, context::Context, output::Done};

const MAN_EXAMPLES: &str = "\
Examples:
  mezctl man --out ~/.local/share/man/man1       and then: man mezctl, man mezctl-users-add
  mezctl man --out /usr/local/share/man/man1";

/// Arguments of `man`.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(crate) struct Man {
    /// Folder to write the pages to: one for mezctl and one for each of its commands
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn man(context: &Context, args: &Man) -> Result<()> {
    let name = args.out.display();
    // For whoever reads manuals, so with the usual mode.
    fs::create_dir_all(&args.out)
        .and_then(|()| pages(&args.out))
        .with_context(|| format!("cannot write to {name}"))?;
    context.print(&Done::new(format!("Wrote the manual pages of mezctl to {name}.")))
}

/// Writes a page for each command.
fn pages(dir: &Path) -> io::Result<()> {
    let mut command = cli::command();
    // So that each is called by its whole name.
    command.build();
    page(command, dir)
}

fn page(command: clap::Command, dir: &Path) -> io::Result<()> {
    for sub in command.get_subcommands() {
        page(sub.clone(), dir)?;
    }
    let source = concat!("mezctl ", env!("CARGO_PKG_VERSION"));
    Page::new(command).source(source).manual("Mezite").generate_to(dir).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the commands of a command, with its own before them.
    fn names(command: &clap::Command, before: &str) -> Vec<String> {
        let name = format!("{before}{}", command.get_name());
        let below = command.get_subcommands().flat_map(|sub| names(sub, &format!("{name}-")));
        std::iter::once(name.clone()).chain(below).collect()
    }

    #[test]
    fn every_command_has_a_page_that_explains_its_options() {
        let dir = tempfile::tempdir().unwrap();
        super::pages(dir.path()).unwrap();
        let names = names(&cli::command(), "");
        assert!(names.len() > 80, "{names:?}");
        for name in names {
            assert!(dir.path().join(format!("{name}.1")).exists(), "{name}");
        }
        let page = fs::read_to_string(dir.path().join("mezctl-users-add.1")).unwrap();
        assert!(page.contains("password\\-file") && page.contains(".TH mezctl-users-add 1"), "{page}");
    }
}
