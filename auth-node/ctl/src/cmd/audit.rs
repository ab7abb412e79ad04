//! `audit`: what was done, by whom, and the proof that the log is whole.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Seek as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use mezite_client::Retry;
use mezite_pki::ssh::SshPublicKey;
use mezite_proto::v1;
use serde::Serialize;

use crate::{
    args::rfc3339,
    audit_proof::{self, Earlier, Export, Verified},
    cmd::call,
    context::Context,
    exit::Usage,
    files::{self, PRIVATE, Pending},
    output::{self, Done, Report, Row},
    progress::{self, Progress},
};

/// Commands on the audit log.
#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// List events, the newest first
    Ls(Ls),
    /// Write the whole log to a file, with the proof that nothing is missing
    Export(ExportTo),
    /// Verify an export: any change, gap or truncation is told, and the exit code is 1
    Verify(Verify),
}

const LS_EXAMPLES: &str = "\
Examples:
  mezctl audit ls --limit 20
  mezctl audit ls --event 'user.*' --event lock.create --actor alice
  mezctl audit ls --from 2026-11-24T00:00:00Z --text web1 --oldest-first --format json";

/// Arguments of `audit ls`.
#[derive(Debug, Args)]
#[command(after_help = LS_EXAMPLES)]
pub(crate) struct Ls {
    /// Only these events, such as `user.create`, or families, such as `user.*`
    #[arg(long = "event", value_name = "EVENT")]
    events: Vec<String>,
    /// Only what this user, agent or ingest did, by name or id
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    actor: String,
    /// Only from this time on
    #[arg(long, value_parser = rfc3339, value_name = "RFC3339")]
    from: Option<SystemTime>,
    /// Only before this time
    #[arg(long, value_parser = rfc3339, value_name = "RFC3339")]
    to: Option<SystemTime>,
    /// Only with this text in the target or in a field, whatever the case
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    text: String,
    /// At most so many
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    limit: usize,
    /// The oldest first
    #[arg(long)]
    oldest_first: bool,
}

const EXPORT_EXAMPLES: &str = "\
Examples:
  mezctl audit export --out audit.jsonl
  mezctl audit verify audit.jsonl

The file has one JSON object a line: a header, the events, and a checkpoint that the cluster signs.";

/// Arguments of `audit export`.
#[derive(Debug, Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub(crate) struct ExportTo {
    /// File to write, mode 0600
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

const VERIFY_EXAMPLES: &str = "\
Examples:
  mezctl audit verify audit.jsonl                          with the key that the cluster answers now
  mezctl audit verify audit.jsonl --key audit.pub          without the cluster; `mezctl auth export audit` prints the key
  mezctl audit verify today.jsonl --since yesterday.jsonl  the log went on from there, and was not made anew

`mezctl audit verify` needs a key that it can trust: keep the one that is printed here with your own records. After a rotation
of the audit CA, exports from before it are verified by the earlier key, and --key takes a file with both.";

/// Arguments of `audit verify`.
#[derive(Debug, Args)]
#[command(after_help = VERIFY_EXAMPLES)]
pub(crate) struct Verify {
    /// The export
    file: PathBuf,
    /// File with public keys of the cluster's audit authority, a line each: any of them may have signed [default: ask the
    /// cluster]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// An earlier export, of which this one must be the continuation
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
}

/// Between what was and what is, in a field of an event.
const CHANGE: &str = " -> ";
/// Longest value of a field in a table, in characters. JSON and YAML have all of it.
const MAX_SHOWN: usize = 120;

/// The last second of the year 9999.
const LAST_SECOND: i64 = 253_402_300_799;

#[derive(Serialize)]
struct EventView {
    index: u64,
    time: Option<String>,
    event: String,
    code: String,
    actor: String,
    target: String,
    success: bool,
    fields: BTreeMap<String, String>,
    node_id: u64,
    request_id: String,
    client_address: String,
}

impl From<v1::AuditEvent> for EventView {
    fn from(event: v1::AuditEvent) -> Self {
        Self {
            index: event.index,
            time: output::time(event.time.as_ref()),
            event: event.event,
            code: event.code,
            actor: event.actor,
            target: event.target,
            success: event.success,
            fields: event.fields,
            node_id: event.node_id,
            request_id: event.request_id,
            client_address: event.client_address,
        }
    }
}

impl Row<6> for EventView {
    const HEADER: [&'static str; 6] = ["INDEX", "TIME", "EVENT", "ACTOR", "TARGET", "FIELDS"];

    fn row(&self) -> [String; 6] {
        [
            self.index.to_string(),
            self.time.clone().unwrap_or_default(),
            self.event.clone(),
            self.actor.clone(),
            self.target.clone(),
            output::pairs(&self.fields.iter().map(readable).collect::<BTreeMap<_, _>>()),
        ]
    }
}

/// A field for people: what is stored in milliseconds as a time, or as how long something lasts. Of a change, both sides; of a
/// long one, what is gone and what is new.
fn readable((name, value): (&String, &String)) -> (String, String) {
    let Some(bare) = name.strip_suffix("_ms") else { return (name.clone(), brief(value)) };
    let is_time = bare == "at" || bare.ends_with("_at") || bare == "until";
    let side = |text: &str| match text.parse() {
        // No end.
        Ok(0) if is_time => "never".to_owned(),
        Ok(millis) if is_time => timestamp(millis).unwrap_or_else(|| text.to_owned()),
        Ok(millis) => humantime::format_duration(Duration::from_millis(millis)).to_string(),
        Err(_) => text.to_owned(),
    };
    (bare.to_owned(), value.split(CHANGE).map(side).collect::<Vec<_>>().join(CHANGE))
}

/// RFC 3339; `None` for a time that it cannot write.
fn timestamp(unix_millis: u64) -> Option<String> {
    let seconds = i64::try_from(unix_millis / 1000).ok().filter(|seconds| *seconds <= LAST_SECOND)?;
    output::time(Some(&prost_types::Timestamp { seconds, nanos: 0 }))
}

pub(crate) async fn run(context: &Context, command: Audit) -> Result<()> {
    match command {
        Audit::Ls(args) => ls(context, args).await,
        Audit::Export(args) => export(context, &args.out).await,
        Audit::Verify(args) => verify(context, args).await,
    }
}

async fn ls(context: &Context, args: Ls) -> Result<()> {
    let client = context.user().await?;
    let order = if args.oldest_first { v1::SortOrder::Ascending } else { v1::SortOrder::Descending };
    let mut request = v1::QueryAuditEventsRequest {
        events: args.events,
        actor: args.actor,
        from: args.from.map(Into::into),
        to: args.to.map(Into::into),
        text: args.text,
        order: order.into(),
        ..v1::QueryAuditEventsRequest::default()
    };
    let mut events = Vec::new();
    while events.len() < args.limit {
        let missing = u32::try_from(args.limit - events.len()).unwrap_or(u32::MAX);
        request.page_size = missing.min(mezite_client::PAGE_SIZE);
        let page = call!(client, Retry::Idempotent, query_audit_events, request.clone())?;
        events.extend(page.events.into_iter().map(EventView::from));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    context.print_list(events)
}

async fn export(context: &Context, out: &Path) -> Result<()> {
    let client = context.user().await?;
    let file = Pending::create(out)?;
    // A log can be larger than memory.
    let mut spool = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut export = Export::default();
    let progress = Progress::count("events exported:");
    let mut request = v1::QueryAuditEventsRequest {
        order: v1::SortOrder::Ascending.into(),
        page_size: mezite_client::PAGE_SIZE,
        with_proof: true,
        ..v1::QueryAuditEventsRequest::default()
    };
    loop {
        let page = call!(client, Retry::Idempotent, query_audit_events, request.clone())?;
        spool.write_all(export.page(&page)?.as_bytes())?;
        progress.advance(page.events.len() as u64);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    drop(progress);
    file.write(PRIVATE, |file| {
        spool.rewind()?;
        std::io::copy(&mut spool, file).map(drop)
    })?;
    context.print(&Done::new(format!("Wrote {} events to {}.", export.events, out.display())))
}

/// An export that is not what the cluster signed.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not the log that the cluster signed: {1} problems")]
struct Tampered(String, usize);

#[derive(Serialize)]
struct Verdict {
    /// The export.
    file: String,
    #[serde(flatten)]
    found: Verified,
    sound: bool,
    /// Keys that were trusted.
    keys: Vec<String>,
}

impl Report for Verdict {
    fn text(&self) -> String {
        let Verified { cluster_id, first_index, last_index, events, signed_at, problems, .. } = &self.found;
        let verdict = if self.sound { "sound: nothing is changed, missing or cut off" } else { "NOT SOUND" };
        let mut text = output::fields(&[
            ("export", self.file.clone()),
            ("cluster id", cluster_id.clone()),
            ("events", format!("{events}, {first_index} to {last_index}")),
            ("signed at", signed_at.clone()),
            ("key", self.keys.join("\n")),
            ("verdict", verdict.into()),
        ]);
        for problem in problems {
            text += &format!("  {problem}\n");
        }
        text
    }
}

async fn verify(context: &Context, args: Verify) -> Result<()> {
    let lines = match &args.key {
        Some(file) => files::read_text(file)?.lines().map(str::to_owned).collect(),
        None => audit_keys(context).await?,
    };
    let lines: Vec<String> = lines.into_iter().filter(|line| !line.trim().is_empty()).collect();
    let keys = lines.iter().map(|line| SshPublicKey::parse(line)).collect::<Result<Vec<_>, _>>();
    let keys = keys.map_err(|error| Usage(format!("the key of the audit authority: {error}")))?;
    let earlier = match &args.since {
        Some(file) => {
            let found = proven(file, &keys, None)?;
            if found.problem_count > 0 {
                return tell(context, file, found, lines);
            }
            Some(found.earlier())
        }
        None => None,
    };
    tell(context, &args.file, proven(&args.file, &keys, earlier.as_ref())?, lines)
}

/// Prints what was found of an export, and fails by it unless it is sound.
fn tell(context: &Context, path: &Path, found: Verified, keys: Vec<String>) -> Result<()> {
    let (file, count) = (path.display().to_string(), found.problem_count);
    context.print(&Verdict { file: file.clone(), found, sound: count == 0, keys })?;
    if count == 0 { Ok(()) } else { Err(Tampered(file, count).into()) }
}

/// Verifies an export.
fn proven(path: &Path, keys: &[SshPublicKey], since: Option<&Earlier>) -> Result<Verified> {
    let file = open(path)?;
    let progress = Progress::bytes("verifying", progress::length(&file));
    let verified = audit_proof::verify(BufReader::new(progress.read(file)), keys, since);
    verified.with_context(|| format!("cannot read {}", path.display()))
}

/// Opens an export, which is read more than once: of what cannot be, such as a pipe, a copy on disk.
fn open(path: &Path) -> Result<File> {
    let unreadable = |error| Usage(format!("cannot read {}: {error}", path.display()));
    let mut file = File::open(path).map_err(unreadable)?;
    if file.stream_position().is_err() {
        let mut copy = tempfile::tempfile().context("cannot make a temporary file")?;
        std::io::copy(&mut file, &mut copy)?;
        copy.rewind()?;
        file = copy;
    }
    Ok(file)
}

/// The public keys of the cluster's audit authority.
async fn audit_keys(context: &Context) -> Result<Vec<String>> {
    let cluster = context.cluster(None).await?;
    let bundle = context.client(&cluster)?.trust_bundle().await?;
    let authority = bundle.authorities.into_iter().find(|ca| ca.kind() == v1::CaKind::Audit);
    Ok(authority.map(|authority| authority.ssh_public_keys).unwrap_or_default())
}

/// A value for a table. Lists that were changed are told by what is different.
fn brief(value: &str) -> String {
    let front = |text: &str| match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    };
    match value.split_once(CHANGE) {
        Some((before, after)) if value.chars().count() > MAX_SHOWN => {
            let (before, after): (Vec<_>, Vec<_>) = (before.split(',').collect(), after.split(',').collect());
            let gone = before.iter().filter(|item| !after.contains(item)).map(|item| format!("-{item}"));
            let new = after.iter().filter(|item| !before.contains(item)).map(|item| format!("+{item}"));
            front(&new.chain(gone).collect::<Vec<_>>().join(" "))
        }
        _ => front(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_short_in_a_table_and_long_changes_are_what_is_different() {
        assert_eq!(brief("a,b -> a,c"), "a,b -> a,c");
        let many: Vec<String> = (0..100).map(|n| format!("login-{n}")).collect();
        let before = many.join(",");
        assert_eq!(brief(&format!("{before} -> {},root", before.replace("login-7,", ""))), "+root -login-7");
        assert_eq!(brief(&"ü".repeat(121)), "ü".repeat(120) + "…");
        assert_eq!(brief(&"ü".repeat(120)), "ü".repeat(120));
    }

    #[test]
    fn people_read_times_and_spans_and_programs_what_is_stored() {
        for (name, value, shown) in [
            ("expires_at_ms", "1795000000123", "expires_at=2026-11-18T11:06:40Z"),
            ("until_ms", "1795000000000", "until=2026-11-18T11:06:40Z"),
            ("at_ms", "1795000000000", "at=2026-11-18T11:06:40Z"),
            ("expires_at_ms", "0", "expires_at=never"),
            ("expires_at_ms", "18446744073709551615", "expires_at=18446744073709551615"),
            ("session_ttl_ms", "28800000 -> 5400000", "session_ttl=8h -> 1h 30m"),
            ("session_idle_ms", "unset -> 1800000", "session_idle=unset -> 30m"),
            ("lockout_ms", "x", "lockout=x"),
            ("rooms", "7", "rooms=7"),
        ] {
            let fields = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let event = EventView::from(v1::AuditEvent { fields: fields.clone(), ..Default::default() });
            assert_eq!(event.row()[5], shown);
            assert_eq!(event.fields, fields);
        }
    }
}
