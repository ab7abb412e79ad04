//! `recordings get`: what is known of a recording, and its payload.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Error, Result, bail};
use clap::Args;
use mezite_client::Client;
use mezite_proto::v1;
use recording_format::{PayloadHasher, RecordingId};

use super::{RANGE, RecordingView, parse_id, range, tell_missing};
use crate::{
    context::Context,
    files::{PRIVATE, write_with},
    progress::Progress,
};

/// Arguments of `recordings get`.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// UUID of the recording
    id: String,
    /// File to write the payload to; `-` writes it to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) async fn get(context: &Context, args: Get) -> Result<()> {
    let id = parse_id(&args.id)?;
    let client = context.user().await?;
    let (recording, _) = range(&client, id, 0, 0).await?;
    tell_missing(&client, &recording).await?;
    let Some(out) = args.out else { return context.print(&RecordingView::from(recording)) };
    if out == Path::new("-") {
        return match fetch(&client, id, &recording, &mut io::stdout().lock(), &Progress::hidden()).await {
            // Whoever read it has seen enough.
            Err(error) if is_unread(&error) => Ok(()),
            fetched => fetched,
        };
    }
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut whole =
        tempfile::tempfile_in(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    let progress = Progress::bytes("fetching", recording.size);
    fetch(&client, id, &recording, &mut whole, &progress).await?;
    drop(progress);
    io::Seek::rewind(&mut whole)?;
    write_with(&out, PRIVATE, |file| io::copy(&mut whole, file).map(drop))?;
    context.print(&RecordingView::from(recording))
}

fn is_unread(error: &Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Fetches the payload, as long as it was when it was looked at, and checks it where its digest is known.
async fn fetch(
    client: &Client,
    id: RecordingId,
    recording: &v1::Recording,
    out: &mut impl io::Write,
    progress: &Progress,
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
        progress.advance(data.len() as u64);
    }
    out.flush()?;
    let digest = hasher.digest();
    if !recording.payload_sha256.is_empty() && digest.as_bytes() != recording.payload_sha256.as_ref() {
        bail!("the payload is not the one that was recorded: its SHA-256 is {digest}");
    }
    Ok(())
}
