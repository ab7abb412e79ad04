//! `recordings`: session recordings, sent by hosts and fetched by people.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use mezite_client::{Client, Payload, Receipt, Retry, UploadLimits, Uploader};
use mezite_daemon::clock;
use mezite_proto::v1;
use recording_format::{Digest, PayloadHasher, RecordingId};
use serde::Serialize;

use crate::{
    agent_dir::AgentDir,
    args::{key_value, label_map, rfc3339},
    cmd::{agent, call, list, present},
    context::Context,
    exit::Usage,
    files::{PRIVATE, write_with},
    output::{self, Report, Row},
};

/// Bytes asked for at once: the most that is answered.
const RANGE: u32 = 1 << 20;

/// Commands on session recordings.
#[derive(Debug, Subcommand)]
pub(crate) enum Recordings {
    /// Send a recording, as the agent of this host, until there is a receipt for it; repeat to resume
    Upload(Upload),
    /// List recordings, newest first
    Ls(Ls),
    /// Show a recording, or fetch its payload
    Get(Get),
}

const UPLOAD_EXAMPLES: &str = "\
Examples:
  mezctl recordings upload session.cast --agent /etc/mezite --user alice --login root
  mezctl recordings upload session.cast --agent /etc/mezite --id UUID --receipt session.receipt

Delete your copy only when this has succeeded: the receipt proves that the cluster has all of it.";

/// Arguments of `recordings upload`.
#[derive(Debug, Args)]
#[command(after_help = UPLOAD_EXAMPLES)]
pub(crate) struct Upload {
    /// The payload
    file: PathBuf,
    /// Folder of the agent, as `agent join` wrote it
    #[arg(long, visible_alias = "dir", value_name = "DIR")]
    agent: PathBuf,
    /// UUID of the recording; give the same one to resume [default: a new one]
    #[arg(long, value_name = "UUID")]
    id: Option<String>,
    /// Mezite user of the session
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    user: String,
    /// Login on the host
    #[arg(long, value_name = "LOGIN", default_value = "", hide_default_value = true)]
    login: String,
    /// Format of the payload
    #[arg(long, default_value = "asciicast-v3", value_name = "NAME")]
    payload_format: String,
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

/// Arguments of `recordings ls`.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only this user's
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    user: String,
    /// Only this login's
    #[arg(long, default_value = "", hide_default_value = true)]
    login: String,
    /// Only of this node
    #[arg(long, default_value = "", hide_default_value = true, value_name = "HOSTNAME")]
    node: String,
    /// Only in this state: interrupted is sealed after its agent fell silent, truncated at the size limit
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only with all of these labels
    #[arg(long, value_delimiter = ',', value_parser = key_value, value_name = "KEY=VALUE,…")]
    labels: Vec<(String, String)>,
    /// Only sessions that went on at or after this time
    #[arg(long, value_parser = rfc3339, value_name = "TIME")]
    from: Option<SystemTime>,
    /// Only sessions that began before this time
    #[arg(long, value_parser = rfc3339, value_name = "TIME")]
    to: Option<SystemTime>,
    /// Stop after so many [default: all]
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
}

/// Arguments of `recordings get`.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// UUID of the recording
    id: String,
    /// File to write the payload to; `-` writes it to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// State of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    InProgress,
    Complete,
    Interrupted,
    Truncated,
}

impl From<State> for v1::RecordingState {
    fn from(state: State) -> Self {
        match state {
            State::InProgress => Self::InProgress,
            State::Complete => Self::Complete,
            State::Interrupted => Self::Interrupted,
            State::Truncated => Self::Truncated,
        }
    }
}

#[derive(Serialize)]
struct RecordingView {
    recording_id: String,
    state: &'static str,
    user: String,
    login: String,
    node: String,
    started_at: Option<String>,
    ended_at: Option<String>,
    payload_format: String,
    labels: BTreeMap<String, String>,
    size: u64,
    payload_sha256: String,
    manifest_sha256: String,
    agent_id: String,
}

impl From<v1::Recording> for RecordingView {
    fn from(recording: v1::Recording) -> Self {
        let state = match recording.state() {
            v1::RecordingState::InProgress => "in-progress",
            v1::RecordingState::Complete => "complete",
            v1::RecordingState::Interrupted => "interrupted",
            v1::RecordingState::Truncated => "truncated",
            v1::RecordingState::Unspecified => "unknown",
        };
        let metadata = recording.metadata.unwrap_or_default();
        Self {
            recording_id: recording.recording_id,
            state,
            user: metadata.user,
            login: metadata.login,
            node: metadata.node,
            started_at: output::time(metadata.started_at.as_ref()),
            ended_at: output::time(metadata.ended_at.as_ref()),
            payload_format: metadata.format,
            labels: metadata.labels,
            size: recording.size,
            payload_sha256: hex::encode(&recording.payload_sha256),
            manifest_sha256: hex::encode(&recording.manifest_sha256),
            agent_id: recording.agent_id,
        }
    }
}

impl Report for RecordingView {
    fn text(&self) -> String {
        output::fields(&[
            ("recording", self.recording_id.clone()),
            ("state", self.state.into()),
            ("user", self.user.clone()),
            ("login", self.login.clone()),
            ("node", self.node.clone()),
            ("started", self.started_at.clone().unwrap_or_default()),
            ("ended", self.ended_at.clone().unwrap_or_default()),
            ("format", self.payload_format.clone()),
            ("labels", output::pairs(&self.labels)),
            ("size", format!("{} bytes", self.size)),
            ("sha256", self.payload_sha256.clone()),
            ("manifest", self.manifest_sha256.clone()),
            ("agent", self.agent_id.clone()),
        ])
    }
}

impl Row<7> for RecordingView {
    const HEADER: [&'static str; 7] = ["RECORDING", "STATE", "USER", "LOGIN", "NODE", "STARTED", "SIZE"];

    fn row(&self) -> [String; 7] {
        [
            self.recording_id.clone(),
            self.state.into(),
            self.user.clone(),
            self.login.clone(),
            self.node.clone(),
            self.started_at.clone().unwrap_or_default(),
            self.size.to_string(),
        ]
    }
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

pub(crate) async fn run(context: &Context, command: Recordings) -> Result<()> {
    match command {
        Recordings::Upload(args) => upload(context, args).await,
        Recordings::Ls(args) => ls(context, args).await,
        Recordings::Get(args) => get(context, args).await,
    }
}

fn parse_id(text: &str) -> Result<RecordingId> {
    text.parse().map_err(|_| Usage(format!("`{text}` is not a recording's id: a UUID, lower case")).into())
}

/// A random UUID (RFC 9562, version 4).
fn new_id() -> RecordingId {
    let bits = u128::from_be_bytes(rand::random());
    let versioned = bits & !(0xf << 76) & !(0b11 << 62) | 0x4 << 76 | 0b10 << 62;
    RecordingId::from_bytes(versioned.to_be_bytes())
}

async fn upload(context: &Context, args: Upload) -> Result<()> {
    let id = args.id.as_deref().map_or_else(|| Ok(new_id()), parse_id)?;
    let dir = AgentDir::new(&args.agent)?;
    let (state, client) = agent::client(context, &dir).await?;
    let file = tokio::fs::File::open(&args.file).await;
    let file = file.with_context(|| format!("cannot read {}", args.file.display()))?;
    let changed = file.metadata().await?.modified().unwrap_or_else(|_| clock::now());
    let metadata = v1::RecordingMetadata {
        user: args.user,
        login: args.login,
        node: state.hostname,
        started_at: Some(args.started_at.unwrap_or(changed).into()),
        ended_at: Some(args.ended_at.unwrap_or(changed).into()),
        format: args.payload_format,
        labels: label_map(&args.labels)?,
    };
    let ingests = client.ping().await?.ingest_addresses;
    let uploader = Uploader::new(client.for_recordings(&ingests)?, UploadLimits::default());
    let mut payload = Payload::measure(file).await?;
    let receipt = uploader
        .upload(id, &metadata, &mut payload)
        .await
        .with_context(|| format!("recording {id} is not sealed; send it again with --id {id}"))?;
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

/// The manifest as it was signed, and the signature beside it: what `ssh-keygen -Y check-novalidate` takes.
fn write_receipt(path: &Path, receipt: &Receipt) -> Result<()> {
    let mut signature = path.as_os_str().to_owned();
    signature.push(".sig");
    write_with(Path::new(&signature), PRIVATE, |file| file.write_all(receipt.signed.signature.as_bytes()))?;
    write_with(path, PRIVATE, |file| file.write_all(&receipt.signed.manifest))
}

async fn ls(context: &Context, args: Ls) -> Result<()> {
    let labels = label_map(&args.labels)?;
    let client = context.user().await?;
    let request = |page_token, page_size| v1::ListSessionRecordingsRequest {
        user: args.user.clone(),
        login: args.login.clone(),
        node: args.node.clone(),
        state: args.state.map(v1::RecordingState::from).unwrap_or_default().into(),
        labels: labels.clone(),
        from: args.from.map(Into::into),
        to: args.to.map(Into::into),
        page_size,
        page_token,
    };
    let recordings = match args.limit {
        Some(limit) => first(&client, limit, request).await?,
        None => list!(client, list_session_recordings, recordings, |page_token| request(
            page_token,
            mezite_client::PAGE_SIZE
        ))?,
    };
    context.print_list(recordings.into_iter().map(RecordingView::from).collect())
}

/// The first `limit` entries, in as few pages as they take.
async fn first(
    client: &Client,
    limit: usize,
    request: impl Fn(String, u32) -> v1::ListSessionRecordingsRequest,
) -> Result<Vec<v1::Recording>> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let left = u32::try_from(limit.saturating_sub(all.len())).unwrap_or(u32::MAX);
        if left == 0 {
            return Ok(all);
        }
        let page = request(token, left.min(mezite_client::PAGE_SIZE));
        let reply = call!(client, Retry::Idempotent, list_session_recordings, page)?;
        all.extend(reply.recordings.into_iter().take(left as usize));
        token = reply.next_page_token;
        if token.is_empty() {
            return Ok(all);
        }
    }
}

async fn get(context: &Context, args: Get) -> Result<()> {
    let id = parse_id(&args.id)?;
    let client = context.user().await?;
    let (recording, _) = range(&client, id, 0, 0).await?;
    let Some(out) = args.out else { return context.print(&RecordingView::from(recording)) };
    if out == Path::new("-") {
        return fetch(&client, id, &recording, &mut io::stdout().lock()).await;
    }
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut whole =
        tempfile::tempfile_in(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    fetch(&client, id, &recording, &mut whole).await?;
    io::Seek::rewind(&mut whole)?;
    write_with(&out, PRIVATE, |file| io::copy(&mut whole, file).map(drop))?;
    context.print(&RecordingView::from(recording))
}

async fn range(
    client: &Client,
    id: RecordingId,
    offset: u64,
    limit: u32,
) -> Result<(v1::Recording, bytes::Bytes)> {
    let request = v1::GetSessionRecordingRequest { recording_id: id.to_string(), offset, limit };
    let reply = call!(client, Retry::Idempotent, get_session_recording, request)?;
    Ok((present(reply.recording, "the recording")?, reply.data))
}

/// Fetches the payload, as long as it was when it was looked at, and checks it where its digest is known.
async fn fetch(
    client: &Client,
    id: RecordingId,
    recording: &v1::Recording,
    out: &mut impl io::Write,
) -> Result<()> {
    let (mut hasher, mut offset) = (PayloadHasher::default(), 0_u64);
    while offset < recording.size {
        let limit = u32::try_from(recording.size - offset).unwrap_or(RANGE).min(RANGE);
        let (_, data) = range(client, id, offset, limit).await?;
        if data.is_empty() || data.len() > limit as usize {
            bail!(
                "the cluster answered {} bytes at offset {offset} where it has {}",
                data.len(),
                recording.size
            );
        }
        hasher.update(&data);
        out.write_all(&data)?;
        offset += data.len() as u64;
    }
    out.flush()?;
    let digest = hasher.digest();
    if !recording.payload_sha256.is_empty() && digest.as_bytes() != recording.payload_sha256.as_ref() {
        bail!("the payload is not the one that was recorded: its SHA-256 is {digest}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_of_version_4() {
        let id = new_id().to_string();
        assert_eq!(&id[14..15], "4");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"));
        assert_ne!(new_id(), new_id());
        assert!(parse_id(&id).is_ok());
        for wrong in ["", "../../etc", &id.to_uppercase(), "{x}"] {
            assert!(parse_id(wrong).unwrap_err().is::<Usage>(), "{wrong}");
        }
    }
}
