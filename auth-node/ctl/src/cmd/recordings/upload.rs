//! `recordings upload`: as the agent of a host.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use indicatif::ProgressBarIter;
use mezite_client::{
    ClientError, End, Payload, Receipt, SetAside, SpoolError, UploadError, UploadLimits, Uploader,
};
use mezite_daemon::clock;
use mezite_proto::v1;
use recording_format::{Digest, RecordingId};
use serde::Serialize;
use tonic::Code;

use super::parse_id;
use crate::{
    agent_dir::AgentDir,
    args::{key_value, label_map, rfc3339},
    cmd::agent,
    context::Context,
    exit::Usage,
    files::{PRIVATE, write_with},
    output::{self, Report},
    progress::Progress,
    recording::{cast::FORMAT, new_id},
};

/// Labels of what was recorded under another id, and under another name of the host: the audit log knows the session by these.
const RECORDED_AS: &str = "recorded_as";
const RECORDED_ON: &str = "recorded_on";

const UPLOAD_EXAMPLES: &str = "\
Examples:
  mezctl recordings upload session.cast --agent /etc/mezite --user alice --login root
  mezctl recordings upload session.cast --agent /etc/mezite --id UUID --receipt session.receipt
  mezctl recordings upload /var/spool/mezite/aside/UUID --agent /etc/mezite        as `agent run` says

What `agent run` has set aside is sent as a new recording, of the same user, login and times, with the former id as its label
`recorded_as`.

Delete your copy only when this has succeeded: the receipt proves that the cluster has all of it.";

/// Arguments of `recordings upload`.
#[derive(Debug, Args)]
#[command(after_help = UPLOAD_EXAMPLES)]
pub(crate) struct Upload {
    /// The payload; or a folder that `agent run` has set aside, which says itself what the options below would
    file: PathBuf,
    /// Folder of the agent, as `agent join` wrote it
    #[arg(long, visible_alias = "dir", value_name = "DIR")]
    agent: PathBuf,
    /// UUID of the recording; give the same one to resume [default: a new one]
    #[arg(long, value_name = "UUID")]
    id: Option<String>,
    /// Mezite user of the session
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Login on the host
    #[arg(long, value_name = "LOGIN")]
    login: Option<String>,
    /// Format of the payload [default: asciicast-v3]
    #[arg(long, value_name = "NAME")]
    payload_format: Option<String>,
    /// Labels
    #[arg(long, value_delimiter = ',', value_parser = key_value, value_name = "KEY=VALUE,…")]
    labels: Vec<(String, String)>,
    /// When the session began [default: when the file was last changed]
    #[arg(long, value_parser = rfc3339, value_name = "TIME")]
    started_at: Option<SystemTime>,
    /// When the session ended [default: when the file was last changed]
    #[arg(long, value_parser = rfc3339, value_name = "TIME")]
    ended_at: Option<SystemTime>,
    /// File to write the receipt to: the signed manifest
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
}

#[derive(Serialize)]
struct Uploaded {
    recording_id: String,
    size: u64,
    payload_sha256: String,
    manifest_sha256: String,
    ingest_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<PathBuf>,
}

impl Report for Uploaded {
    fn text(&self) -> String {
        output::fields(&[
            ("recording", self.recording_id.clone()),
            ("size", format!("{} bytes", self.size)),
            ("sha256", self.payload_sha256.clone()),
            ("manifest", self.manifest_sha256.clone()),
            ("ingest", self.ingest_id.clone()),
            ("receipt", self.receipt.as_ref().map(|file| file.display().to_string()).unwrap_or_default()),
        ])
    }
}

/// What is sent.
struct Source {
    payload: PathBuf,
    metadata: v1::RecordingMetadata,
    /// As it was recorded; `None`: it is not known.
    end: Option<End>,
}

impl Source {
    /// A file of which nothing else is known.
    fn file(payload: PathBuf) -> Result<Self> {
        let changed =
            std::fs::metadata(&payload).with_context(|| format!("cannot read {}", payload.display()))?;
        let changed = Some(changed.modified().unwrap_or_else(|_| clock::now()).into());
        let (started_at, format) = (changed, FORMAT.into());
        let metadata = v1::RecordingMetadata { started_at, ended_at: changed, format, ..Default::default() };
        Ok(Self { payload, metadata, end: None })
    }

    /// What the host `node` has set aside, which may have had another name then.
    fn set_aside(dir: &Path, node: &str) -> Result<Self> {
        let SetAside { session, end, payload } = SetAside::read(dir).map_err(|error| match error {
            SpoolError::NoEntry { .. } => Usage(error.to_string()).into(),
            error => anyhow::Error::from(error),
        })?;
        let mut metadata = session.metadata();
        metadata.ended_at = end.as_ref().map(|end| at(end.ended_at_ms).into());
        metadata.labels.insert(RECORDED_AS.into(), session.recording_id.to_string());
        if session.node != node {
            metadata.labels.insert(RECORDED_ON.into(), session.node);
        }
        Ok(Self { payload, metadata, end })
    }

    /// As the options say, where they do.
    fn told(mut self, args: &Upload, node: String) -> Result<Self> {
        let metadata = &mut self.metadata;
        metadata.node = node;
        for (known, given) in [
            (&mut metadata.user, &args.user),
            (&mut metadata.login, &args.login),
            (&mut metadata.format, &args.payload_format),
        ] {
            if let Some(given) = given {
                known.clone_from(given);
            }
        }
        metadata.started_at = args.started_at.map(Into::into).or(metadata.started_at);
        metadata.ended_at = args.ended_at.map(Into::into).or(metadata.ended_at);
        metadata.labels.extend(label_map(&args.labels)?);
        Ok(self)
    }

    /// The payload, measured, and how far it is sent.
    async fn open(&self) -> Result<(Payload<ProgressBarIter<tokio::fs::File>>, Progress)> {
        let unreadable = || format!("cannot read {}", self.payload.display());
        let file = tokio::fs::File::open(&self.payload).await.with_context(unreadable)?;
        let length = file.metadata().await.with_context(unreadable)?.len();
        let progress = Progress::bytes("reading", length);
        let payload = Payload::measure(progress.read_async(file)).await?;
        progress.now("sending");
        if self.end.as_ref().is_some_and(|end| payload.sha256() != Some(end.sha256)) {
            bail!(
                "{} is not what was recorded any more; name that file itself to send it as it is",
                self.payload.display()
            );
        }
        Ok((payload, progress))
    }
}

fn at(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

pub(super) async fn upload(context: &Context, args: Upload) -> Result<()> {
    let id = args.id.as_deref().map_or_else(|| Ok(new_id()), parse_id)?;
    let dir = AgentDir::new(&args.agent)?;
    let (state, client) = agent::client(context, &dir).await?;
    let source = match args.file.is_dir() {
        true => Source::set_aside(&args.file, &state.hostname)?,
        false => Source::file(args.file.clone())?,
    };
    let source = source.told(&args, state.hostname)?;
    let (mut payload, progress) = source.open().await?;
    let ingests = client.ping().await?.ingest_addresses;
    if args.id.is_none() && io::stderr().is_terminal() {
        output::say(&format!("if this is interrupted, it goes on with --id {id}"));
    }
    let uploader = Uploader::new(client.for_recordings(&ingests)?, UploadLimits::default());
    let sent = uploader.upload(id, &source.metadata, &mut payload).await;
    drop(progress);
    let receipt = sent.map_err(|error| unsealed(id, error))?;
    if let Some(path) = &args.receipt {
        write_receipt(path, &receipt)?;
    }
    context.print(&Uploaded {
        recording_id: id.to_string(),
        size: receipt.manifest.length,
        payload_sha256: receipt.manifest.payload_sha256.to_string(),
        manifest_sha256: Digest::of(&receipt.signed.manifest).to_string(),
        ingest_id: receipt.manifest.ingest_id.to_string(),
        receipt: args.receipt,
    })
}

/// Why there is no receipt, and what helps.
fn unsealed(id: RecordingId, error: UploadError) -> anyhow::Error {
    let what = match &error {
        UploadError::Truncated { .. } => format!(
            "recording {id} is longer than the ingests take (`limits.max_recording_bytes`): keep your copy, for the rest is \
             nowhere else"
        ),
        error if error.is_of_another_agent() => {
            format!("recording {id} is not sent: without --id this agent sends it as a new recording")
        }
        UploadError::Differs(_) => {
            format!("recording {id} is not sent: check the id; without --id it is sent as a new recording")
        }
        error if passes(error) => format!("recording {id} is not sealed; send it again with --id {id}"),
        _ => format!("recording {id} is not sealed"),
    };
    anyhow::Error::new(error).context(what)
}

/// Whether the same command can succeed later, and goes on where this one was.
fn passes(error: &UploadError) -> bool {
    match error {
        UploadError::Client(ClientError::Config(_)) => false,
        UploadError::Client(error) => !matches!(
            error.code(),
            Some(
                Code::Unauthenticated
                    | Code::PermissionDenied
                    | Code::InvalidArgument
                    | Code::FailedPrecondition
            )
        ),
        UploadError::Stalled { .. } | UploadError::Payload(_) => true,
        _ => false,
    }
}

/// The manifest as it was signed, and the signature beside it: what `ssh-keygen -Y check-novalidate` takes.
fn write_receipt(path: &Path, receipt: &Receipt) -> Result<()> {
    let mut signature = path.as_os_str().to_owned();
    signature.push(".sig");
    write_with(Path::new(&signature), PRIVATE, |file| file.write_all(receipt.signed.signature.as_bytes()))?;
    write_with(path, PRIVATE, |file| file.write_all(&receipt.signed.manifest))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    #[test]
    fn what_helps_is_said_and_nothing_that_does_not() {
        let id = new_id();
        let said = |error| format!("{:#}", unsealed(id, error));
        let again = format!("send it again with --id {id}");
        let status =
            |code| UploadError::from(ClientError::Status(Box::new((&tonic::Status::new(code, "no")).into())));
        for passing in [
            UploadError::Stalled { committed: 1, total: 2 },
            status(Code::Unavailable),
            status(Code::Internal),
        ] {
            assert!(said(passing).contains(&again));
        }
        let truncated = said(UploadError::Truncated { committed: 1, total: 2 });
        let why = ErrorDetails::with_error_info("NOT_OWNER", "mezite", HashMap::new());
        let anothers = tonic::Status::with_error_details(Code::PermissionDenied, "another's", why);
        let anothers = said(ClientError::Status(Box::new((&anothers).into())).into());
        let differs = said(UploadError::Differs("it is sealed"));
        for (lasting, helps) in [
            (truncated, "keep your copy"),
            (anothers, "without --id"),
            (differs, "without --id"),
            (said(status(Code::Unauthenticated)), "is not sealed"),
            (said(status(Code::InvalidArgument)), "is not sealed"),
        ] {
            assert!(lasting.contains(helps) && !lasting.contains(&again), "{lasting}");
        }
    }

    #[test]
    fn ids_are_uuids_of_version_4() {
        let id = new_id().to_string();
        assert_eq!(&id[14..15], "4");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"));
        assert_ne!(new_id(), new_id());
        assert!(parse_id(&id).is_ok());
    }
}
