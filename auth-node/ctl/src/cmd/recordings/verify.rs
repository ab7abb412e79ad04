//! `recordings verify`: whether recordings are what the cluster sealed.

mod audit;
mod verdict;

use std::{
    fs::File,
    io::Read as _,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use mezite_client::{Client, ClientError, PAGE_SIZE, Retry};
use mezite_daemon::clock;
use mezite_proto::v1;
use recording_format::{PayloadHasher, RecordingId};
use tonic::Code;

use self::{audit::Audit, verdict::Verdict};
use super::{RANGE, parse_id, range, state_name};
use crate::{
    args::rfc3339,
    cmd::{call, list, present},
    context::Context,
    exit::Usage,
    files::read_text,
    progress::Progress,
    recording_proof::{self, Authorities, Sealed},
};

const VERIFY_EXAMPLES: &str = "\
Examples:
  mezctl recordings verify 0190a1b2-0000-4000-8000-000000000001
  mezctl recordings verify --all --from 2026-11-01T00:00:00Z
  mezctl recordings verify session.cast --receipt session.receipt
  mezctl recordings verify session.cast --receipt session.receipt --authority host.pub --authority tls.pem
                                                                without the cluster

A recording is proven when its manifest is signed by a key that the cluster certified as an ingest's, its segments and chain
add up, and its payload has the digest that the manifest says. Where you may read the audit log, what it says of the
manifest must be the same, and an hour after the seal it must say something: whoever has stolen an ingest's key can sign, and
the log knows nothing of it. After a rotation of the host or TLS CA, recordings from before are proven with the authorities that
there were: keep what `mezctl auth export host` and `mezctl auth export tls` print, and name it with --authority.";

/// Arguments of `recordings verify`.
#[derive(Debug, Args)]
#[command(after_help = VERIFY_EXAMPLES)]
pub(crate) struct Verify {
    /// UUIDs of recordings; with --receipt, a file with a payload
    #[arg(value_name = "ID|FILE", required_unless_present = "all", conflicts_with = "all")]
    what: Vec<String>,
    /// All that you may see and that are sealed
    #[arg(long)]
    all: bool,
    /// With --all: only sessions that went on at or after this time
    #[arg(long, value_parser = rfc3339, value_name = "TIME", requires = "all")]
    from: Option<SystemTime>,
    /// With --all: only sessions that began before this time
    #[arg(long, value_parser = rfc3339, value_name = "TIME", requires = "all")]
    to: Option<SystemTime>,
    /// The receipt of a payload in a file, as `recordings upload --receipt` wrote it; the signature is beside it, in FILE.sig
    #[arg(long, value_name = "FILE", conflicts_with = "all")]
    receipt: Option<PathBuf>,
    /// File with public keys of the host CA, or certificates of the TLS CA, to trust: beside those of now, or, with --receipt,
    /// in place of them; can be given several times
    #[arg(long = "authority", value_name = "FILE")]
    authorities: Vec<PathBuf>,
}

/// Recordings that are not proven, or that the audit log should know and does not.
#[derive(Debug, thiserror::Error)]
#[error("{0} of {1} recordings are not proven")]
struct Unproven(usize, usize);

pub(super) async fn verify(context: &Context, args: Verify) -> Result<()> {
    let verdicts = match &args.receipt {
        Some(receipt) => {
            let [file] = args.what.as_slice() else {
                return Err(Usage("--receipt is of one file: name that, and nothing else".into()).into());
            };
            let verdict = of_file(context, Path::new(file), receipt, &args.authorities).await?;
            let (mut journal, bad) = (context.journal(), usize::from(verdict.is_bad()));
            let _ = journal.print(&verdict)?;
            journal.end()?;
            (bad, 1)
        }
        None => of_cluster(context, &args).await?,
    };
    match verdicts {
        (0, _) => Ok(()),
        (bad, all) => Err(Unproven(bad, all).into()),
    }
}

/// Verifies recordings of the cluster, and tells of each. Answers how many are not proven, and of how many.
async fn of_cluster(context: &Context, args: &Verify) -> Result<(usize, usize)> {
    let ids = args.what.iter().map(|id| id_of(id)).collect::<Result<Vec<_>>>()?;
    let client = context.user().await?;
    let mut authorities = of_bundle(&context.trust_bundle(&client).await?)?;
    add_files(&mut authorities, &args.authorities)?;
    let ids = if args.all { all(&client, args).await? } else { ids };
    let text = match ids.as_slice() {
        [one] => one.to_string(),
        _ => String::new(),
    };
    let audit = Audit::ask(&client, &text).await?;
    let mut journal = context.journal();
    let mut bad = 0;
    // Of one, its verdict is soon there.
    let progress = if ids.len() > 1 { Progress::things("verifying", ids.len()) } else { Progress::hidden() };
    for id in &ids {
        let verdict = one(&client, *id, &authorities, &audit).await?;
        bad += usize::from(verdict.is_bad());
        progress.advance(1);
        if progress.aside(|| journal.print(&verdict))?.is_break() {
            break;
        }
    }
    journal.end()?;
    Ok((bad, ids.len()))
}

/// The id that a text is; what is none can be a file.
fn id_of(text: &str) -> Result<RecordingId> {
    let hint = |error| Usage(format!("{error}; a payload in a file is verified with --receipt FILE")).into();
    parse_id(text).map_err(hint)
}

async fn all(client: &Client, args: &Verify) -> Result<Vec<RecordingId>> {
    let mut ids = Vec::new();
    let request = |page_token| v1::ListSessionRecordingsRequest {
        from: args.from.map(Into::into),
        to: args.to.map(Into::into),
        page_size: PAGE_SIZE,
        page_token,
        ..Default::default()
    };
    let collect = |page: Vec<v1::Recording>| {
        for recording in page {
            ids.push(parse_id(&recording.recording_id)?);
        }
        Ok::<_, anyhow::Error>(ControlFlow::Continue(()))
    };
    list!(client, list_session_recordings, recordings, |page_token| request(page_token), collect)?;
    Ok(ids)
}

/// Whom a cluster trusts now.
fn of_bundle(bundle: &v1::GetTrustBundleResponse) -> Result<Authorities> {
    let mut authorities = Authorities::of_cluster(&bundle.cluster_name);
    for ca in &bundle.authorities {
        match ca.kind() {
            v1::CaKind::Host => ca.ssh_public_keys.iter().try_for_each(|key| authorities.add_host(key))?,
            v1::CaKind::Tls => ca.certificates.iter().for_each(|pem| authorities.add_tls(pem)),
            _ => {}
        }
    }
    Ok(authorities)
}

fn add_files(authorities: &mut Authorities, files: &[PathBuf]) -> Result<()> {
    for file in files {
        authorities.add_file(&read_text(file)?).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// Verifies a recording of the cluster.
async fn one(client: &Client, id: RecordingId, authorities: &Authorities, audit: &Audit) -> Result<Verdict> {
    let mut verdict = Verdict::of(id);
    match compare(client, id, authorities, &mut verdict).await {
        Ok(Proof::Whole) => {
            verdict.ask(audit);
            Ok(verdict.conclude(clock::unix_ms()))
        }
        Ok(Proof::NotYet) => Ok(verdict.goes_on()),
        // An ingest tells what it finds to be damaged, and what is gone.
        Err(error) => match error.downcast_ref::<ClientError>().and_then(ClientError::code) {
            Some(Code::DataLoss | Code::NotFound | Code::OutOfRange) => {
                verdict.problems.push(format!("the cluster: {error:#}"));
                Ok(verdict)
            }
            _ => Err(error.context(format!("recording {id}"))),
        },
    }
}

/// Whether there is anything to prove.
enum Proof {
    Whole,
    NotYet,
}

/// Fetches a recording with its receipt, and takes down what is wrong with them.
async fn compare(
    client: &Client,
    id: RecordingId,
    authorities: &Authorities,
    verdict: &mut Verdict,
) -> Result<Proof> {
    let request = v1::GetSessionRecordingRequest {
        recording_id: id.to_string(),
        with_receipt: true,
        ..Default::default()
    };
    let reply = call!(client, Retry::Idempotent, get_session_recording, request)?;
    let recording = present(reply.recording, "the recording")?;
    verdict.state = state_name(recording.state());
    verdict.length = recording.size;
    let Some(receipt) = reply.receipt else {
        if recording.state() == v1::RecordingState::InProgress {
            return Ok(Proof::NotYet);
        }
        bail!("the cluster's reply lacks the receipt: its ingests are of a release that answers none");
    };
    let sealed = match recording_proof::sealed(id, &receipt.manifest, &receipt.signature, authorities) {
        Ok(sealed) => sealed,
        Err(problem) => {
            verdict.problems.push(problem);
            return Ok(Proof::Whole);
        }
    };
    verdict.take(&sealed);
    if recording.state() != v1::RecordingState::InProgress {
        verdict.problems.extend(differs(&recording, &sealed));
    }
    let (length, hasher) = fetch(client, id, sealed.manifest.length).await?;
    verdict.problems.extend(recording_proof::payload(&sealed.manifest, length, &hasher));
    Ok(Proof::Whole)
}

/// What the cluster tells of a recording is what was sealed.
fn differs(recording: &v1::Recording, sealed: &Sealed) -> Option<String> {
    let manifest = &sealed.manifest;
    let told = recording.metadata.clone().unwrap_or_default();
    let known = &manifest.metadata;
    let same = recording.manifest_sha256.as_ref() == sealed.sha256.as_bytes()
        && recording.payload_sha256.as_ref() == manifest.payload_sha256.as_bytes()
        && recording.agent_id == manifest.agent_id.to_string()
        && (told.user, told.login, told.node)
            == (known.user.clone(), known.login.clone(), known.node.clone());
    (!same).then(|| "what the cluster tells of the recording is not what its manifest says".to_owned())
}

/// Hashes so much of a payload; less where there is no more.
async fn fetch(client: &Client, id: RecordingId, length: u64) -> Result<(u64, PayloadHasher)> {
    let (mut hasher, mut offset) = (PayloadHasher::default(), 0_u64);
    while offset < length {
        let limit = u32::try_from(length - offset).unwrap_or(RANGE).min(RANGE);
        let (_, data) = range(client, id, offset, limit).await?;
        let data = data.slice(..data.len().min(limit as usize));
        if data.is_empty() {
            break;
        }
        hasher.update(&data);
        offset += data.len() as u64;
    }
    Ok((offset, hasher))
}

/// Verifies a payload in a file by its receipt.
async fn of_file(context: &Context, file: &Path, receipt: &Path, files: &[PathBuf]) -> Result<Verdict> {
    let document = std::fs::read(receipt).with_context(|| format!("cannot read {}", receipt.display()))?;
    let mut signature = receipt.as_os_str().to_owned();
    signature.push(".sig");
    let signature = read_text(Path::new(&signature))?;
    let mut authorities = Authorities::default();
    if files.is_empty() {
        let cluster = context.cluster(None).await?;
        authorities = of_bundle(&context.client(&cluster)?.trust_bundle().await?)?;
    }
    add_files(&mut authorities, files)?;
    let not_a_receipt = |reason: String| Usage(format!("{}: {reason}", receipt.display()));
    let id = recording_proof::recording_of(&document).map_err(not_a_receipt)?;
    let mut verdict = Verdict::of(id);
    match recording_proof::sealed(id, &document, &signature, &authorities) {
        Ok(sealed) => {
            verdict.take(&sealed);
            let (length, hasher) = hash(file, sealed.manifest.length)?;
            if length > sealed.manifest.length {
                verdict.problems.push("the file has more bytes than were recorded".to_owned());
            }
            verdict.problems.extend(recording_proof::payload(&sealed.manifest, length, &hasher));
        }
        Err(problem) => verdict.problems.push(problem),
    }
    Ok(verdict.conclude(clock::unix_ms()))
}

/// Length of a file, and the hash of as much of it.
fn hash(path: &Path, length: u64) -> Result<(u64, PayloadHasher)> {
    let unreadable = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(unreadable)?;
    let whole = file.metadata().with_context(unreadable)?.len();
    let (mut rest, mut hasher) = (file.take(length), PayloadHasher::default());
    let mut buffer = vec![0; RANGE as usize];
    loop {
        let read = rest.read(&mut buffer).with_context(unreadable)?;
        match buffer.get(..read) {
            Some(bytes) if !bytes.is_empty() => hasher.update(bytes),
            _ => return Ok((whole, hasher)),
        }
    }
}
