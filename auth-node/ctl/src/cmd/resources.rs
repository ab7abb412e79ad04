//! `get`, `create` and `rm`: resources of every kind, from and to documents.

use std::{ops::ControlFlow, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use zeroize::Zeroizing;

use crate::{
    cli::Format,
    context::Context,
    exit::{Usage, is_conflict},
    files,
    output::{self, Done, Journal, Report},
    resource::{self, AnyKind, Applied, Options, Reference},
    secret,
};

const KINDS: &str = "\
Kinds: user, role, token, lock, node, session, access_request, cluster_config, connector, trusted_cluster, agent_identity";

const GET_EXAMPLES: &str = "\
Examples:
  mezctl get users
  mezctl get role/developer -o yaml > developer.yaml
  mezctl get users,roles,user/alice -o yaml";

/// Arguments of `get`.
#[derive(Debug, Args)]
#[command(after_help = format!("{KINDS}\n\n{GET_EXAMPLES}"))]
pub(crate) struct Get {
    /// What to show: all of a kind, or one by its name
    #[arg(required = true, value_name = "KIND[/NAME],…")]
    what: Vec<String>,
}

const CREATE_HELP: &str = "\
A file holds documents as `mezctl get -o yaml` prints them, with `---` between them:

kind: user
metadata:
  name: alice
spec:
  roles: [developer]
  traits:
    logins: [alice, deploy]
---
kind: lock
spec:
  target: role:contractor
  message: call 1234
  ttl: 8h

All of them are read before the first is made; what follows one that is refused is not. What was done is printed one by
one; what is shown as a secret is shown once. The same file again, with --force, goes on from there: what already is as the
file says is unchanged, whatever the order of its lists. A field that is not known is an error. `status` is what the cluster
said when it was printed, and is ignored.

With --force a token needs a `metadata.name`. A lock or access request whose id is gone is the one that says the same, or is
made under another id, which is told. A file with a client secret must have mode 0600.";

/// Arguments of `create`.
#[derive(Debug, Args)]
#[command(after_help = format!("{KINDS}\n\n{CREATE_HELP}"))]
pub(crate) struct Create {
    /// File of documents, YAML or JSON; `-` reads standard input
    file: PathBuf,
    /// Replace what is there, if it is not as the file says; with `metadata.revision` only if it is still that one
    #[arg(long, short = 'f')]
    force: bool,
    /// Password of users that are made, mode 0600 [default: an invite for each, which is shown once]
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

const RM_EXAMPLES: &str = "\
Examples:
  mezctl rm user/alice
  mezctl rm role/developer,lock/1f0c…        the lock by the id that `mezctl get locks` shows";

/// Arguments of `rm`.
#[derive(Debug, Args)]
#[command(after_help = format!("{KINDS}\n\n{RM_EXAMPLES}"))]
pub(crate) struct Rm {
    /// What to remove
    #[arg(required = true, value_name = "KIND/NAME,…")]
    what: Vec<String>,
}

pub(crate) async fn get(context: &Context, args: Get) -> Result<()> {
    let references = resource::references(&args.what)?;
    let client = context.user().await?;
    let mut texts = Vec::new();
    for Reference { kind, name } in &references {
        texts.extend(kind.show(&client, name.as_deref(), context.format).await?);
    }
    // A script that asks for one gets one, and of a kind a list, however many there are.
    let single = matches!(references.as_slice(), [Reference { name: Some(_), .. }]);
    let text = match context.format {
        Format::Text => texts.join("\n"),
        // Nothing would be no file of documents.
        Format::Yaml if texts.is_empty() => "[]\n".into(),
        Format::Yaml => texts.join("---\n"),
        Format::Json if single => texts.concat(),
        Format::Json => format!("[\n{}]\n", texts.join(",\n")),
    };
    output::write_as(context.format, &text).map(drop)
}

impl Report for Applied {
    fn text(&self) -> String {
        let done = format!("{} {}/{}\n", self.action, self.kind, self.name);
        let instead = self.instead_of.as_ref();
        let instead = instead.map(|id| format!("  in place of {id}, which is gone\n")).unwrap_or_default();
        match (self.secret_of, &self.secret) {
            (Some(what), Some(secret)) => format!("{done}{instead}  {what}: {}\n", secret.as_str()),
            _ => done + &instead,
        }
    }
}

pub(crate) async fn create(context: &Context, args: Create) -> Result<()> {
    let text = Zeroizing::new(files::read_text(&args.file)?);
    let password = args.password_file.as_deref().map(secret::line).transpose()?;
    let user = context.login()?.map(|login| login.user).unwrap_or_default();
    let options = Options { force: args.force, password, user };
    let plans = plans(&text, &options).with_context(|| args.file.display().to_string())?;
    if plans.iter().any(|(_, plan)| plan.has_secret()) {
        files::refuse_open(&args.file)?;
    }
    let client = context.user().await?;
    let mut journal = context.journal();
    let (count, mut outcome) = (plans.len(), Ok(()));
    for (index, (title, plan)) in plans.into_iter().enumerate() {
        let can_force = plan.can_replace() && !args.force;
        let done = match plan.apply(&client, &options).await {
            // At once: a secret comes once, and what follows may fail, or take long.
            Ok(applied) => tell(&mut journal, &applied),
            Err(error) if can_force && is_conflict(&error) => {
                Err(error.context("--force replaces what is there"))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            let after = count - index - 1;
            let rest = format!("{title}; of the others, {index} were done and {after} were not tried");
            outcome = Err(error.context(if count > 1 { rest } else { title }));
            break;
        }
    }
    // Also when one failed: programs read a whole list, unless there is nothing to tell but the failure.
    if journal.has_begun() || outcome.is_ok() {
        journal.end()?;
    }
    outcome
}

/// Prints what was done. Who reads it must get it: nobody can be told a secret again.
fn tell(journal: &mut Journal, applied: &Applied) -> Result<()> {
    let lost =
        || format!("{}/{} was {}, and nobody could be told", applied.kind, applied.name, applied.action);
    match journal.print(applied).with_context(lost)? {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => {
            Err(anyhow::anyhow!("nobody reads standard output any more").context(lost()))
        }
    }
}

/// The documents of a file, all read.
fn plans(text: &str, options: &Options) -> Result<Vec<(String, Box<dyn resource::Plan>)>> {
    let sources = resource::read(text)?;
    let plan = |source: resource::Source<'_>| {
        let title = source.title();
        let kind = resource::kind(&source.kind).with_context(|| title.clone())?;
        Ok((title, kind.plan(source, options)?))
    };
    sources.into_iter().map(plan).collect()
}

pub(crate) async fn rm(context: &Context, args: Rm) -> Result<()> {
    let named = |Reference { kind, name }: Reference| match name {
        Some(name) => Ok((kind, name)),
        None => Err(Usage(format!("say which {} to remove: {}/NAME", kind.name(), kind.name()))),
    };
    let references = resource::references(&args.what)?;
    let references: Vec<(&dyn AnyKind, String)> =
        references.into_iter().map(named).collect::<Result<_, _>>()?;
    let client = context.user().await?;
    let mut done: Vec<String> = Vec::new();
    for (kind, name) in &references {
        let title = format!("{}/{name}", kind.name());
        if let Err(error) = kind.remove(&client, name).await {
            if !done.is_empty() {
                context.print(&Done::new(format!("Removed {}.", done.join(", "))))?;
            }
            return Err(error.context(title));
        }
        done.push(title);
    }
    context.print(&Done::new(format!("Removed {}.", done.join(", "))))
}
