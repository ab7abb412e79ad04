//! `completion`: what a shell reads to complete commands and options.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{cli, output};

const EXAMPLES: &str = "\
Examples:
  source <(mezctl completion bash)
  mezctl completion zsh > ~/.zfunc/_mezctl
  mezctl completion fish > ~/.config/fish/completions/mezctl.fish";

/// Arguments of `completion`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn completion(args: &Completion) -> Result<()> {
    output::write(&script(args.shell))
}

fn script(shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "mezctl", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_every_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for command in cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell:?}: {}", command.get_name());
            }
            assert!(script.contains("password-file"), "{shell:?}");
        }
    }
}
