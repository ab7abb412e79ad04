//! `recordings upload`: as the agent of a host.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use clap::Args;
use mezite_client::{Payload, Receipt, UploadLimits, Uploader};
use mezite_daemon::clock;
use mezite_proto::v1;
use recording_format::Digest;
use serde::Serialize;

use super::parse_id;
use crate::{
    agent_dir::AgentDir,
    args::{key_value, label_map, rfc3339},
    cmd::agent,
    context::Context,
    files::{PRIVATE, write_with},
    output::{self, Report},
    recording::new_id,
};

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

pub(super) async fn upload(context: &Context, args: Upload) -> Result<()> {
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
    }
}
