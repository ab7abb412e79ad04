//! Recordings: who may write or see them is decided here, and the rest by an ingest that is asked.
//!
//! An admin, and a role that allows it, sees all of them; any other user its own, and others look as if they
//! were not there.

use std::sync::Arc;

use auth_core::{
    Caller, Context, CoreError,
    names::AgentId,
    node,
    rules::{Resource, Verb},
    session::Owner,
};
use futures::StreamExt as _;
use mezite_proto::v1;
use tonic::{Code, Streaming};

use super::Replies;
use crate::{authn::Call, error::ApiError, relay::on_behalf, service::Service, standing};

/// Which recordings a caller sees.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
    All,
    /// Those of sessions of this user or agent identity.
    Own(Owner),
}

impl Scope {
    fn of(context: &Context, verb: Verb) -> Result<Self, CoreError> {
        match &context.caller {
            Caller::Ingest { .. } => Ok(Self::All),
            Caller::User(user) => Ok(if user.may(Resource::Recordings, verb) {
                Self::All
            } else {
                Self::Own(Owner::User(user.name.clone()))
            }),
            Caller::AgentIdentity(identity) => Ok(if identity.holder().may(Resource::Recordings, verb) {
                Self::All
            } else {
                Self::Own(Owner::AgentIdentity(identity.name.clone()))
            }),
            Caller::Anonymous
            | Caller::Init
            | Caller::Cluster
            | Caller::Remote(_)
            | Caller::Agent { .. }
            | Caller::Unregistered { .. } => Err(CoreError::Denied("recordings are read by users".into())),
        }
    }

    fn shows(&self, recording: Option<&v1::Recording>) -> bool {
        match self {
            Self::All => true,
            Self::Own(name) => {
                let metadata = recording.and_then(|recording| recording.metadata.as_ref());
                metadata.is_some_and(|metadata| metadata.user == name.to_string())
            }
        }
    }
}

/// The agent that calls, and the ingests that live.
async fn writer(service: &Service, call: &Call) -> Result<(AgentId, Vec<String>), ApiError> {
    let ttl = service.settings.presence_ttl;
    let read = service.read(call, move |view, context| match &context.caller {
        Caller::Agent { id, .. } => Ok((id.clone(), node::live_ingests(view, ttl)?)),
        _ => Err(CoreError::Denied("recordings are written by agents".into())),
    });
    read.await
}

/// What the caller sees, the ingests that live, and who the caller is, as the audit log names it.
async fn reader(
    service: &Service,
    call: &Call,
    verb: Verb,
) -> Result<(Scope, Vec<String>, String), ApiError> {
    let ttl = service.settings.presence_ttl;
    let read = service.read(call, move |view, context| {
        Ok((Scope::of(context, verb)?, node::live_ingests(view, ttl)?, context.caller.actor()))
    });
    read.await
}

pub(crate) async fn stream(
    service: &Service,
    call: &Call,
    messages: Streaming<v1::StreamSessionRecordingRequest>,
) -> Result<v1::StreamSessionRecordingResponse, ApiError> {
    let (agent, ingests) = writer(service, call).await?;
    service.relay.stream(ingests, &agent, messages).await
}

pub(crate) async fn upload(
    service: &Service,
    call: &Call,
    request: v1::UploadSessionRecordingRequest,
) -> Result<v1::UploadSessionRecordingResponse, ApiError> {
    let (agent, ingests) = writer(service, call).await?;
    let _place = service.relay.place(&agent)?;
    let agent = &agent;
    let ask = service.relay.ask(ingests, |mut ingest| {
        let request = request.clone();
        async move {
            let request = on_behalf(agent, request).map_err(|error| error.into_status(""))?;
            ingest.upload_session_recording(request).await
        }
    });
    ask.await
}

pub(crate) async fn list(
    service: &Service,
    call: &Call,
    mut request: v1::ListSessionRecordingsRequest,
) -> Result<v1::ListSessionRecordingsResponse, ApiError> {
    let (scope, ingests, _) = reader(service, call, Verb::List).await?;
    if let Scope::Own(name) = &scope {
        if !request.user.is_empty() && Owner::parse("user", &request.user)? != *name {
            return Ok(v1::ListSessionRecordingsResponse::default());
        }
        request.user = name.to_string();
    }
    let ask = service.relay.ask(ingests, |mut ingest| {
        let request = request.clone();
        async move { ingest.list_session_recordings(request).await }
    });
    let mut reply: v1::ListSessionRecordingsResponse = ask.await?;
    // An ingest filters; that it did is not left to it.
    reply.recordings.retain(|recording| scope.shows(Some(recording)));
    Ok(reply)
}

pub(crate) async fn get(
    service: &Service,
    call: &Call,
    request: v1::GetSessionRecordingRequest,
) -> Result<v1::GetSessionRecordingResponse, ApiError> {
    let (scope, ingests, _) = reader(service, call, Verb::Read).await?;
    if scope != Scope::All && request.limit > 0 {
        check_visible(service, ingests.clone(), &scope, &request.recording_id).await?;
    }
    let reply = fetch(service, ingests, &scope, request.clone()).await?;
    if scope.shows(reply.recording.as_ref()) { Ok(reply) } else { Err(not_found(&request.recording_id)) }
}

pub(crate) async fn download(
    service: &Arc<Service>,
    call: &Call,
    request: v1::DownloadSessionRecordingRequest,
) -> Result<Replies<v1::DownloadSessionRecordingResponse>, ApiError> {
    let (scope, ingests, caller) = reader(service, call, Verb::Read).await?;
    let id = request.recording_id.clone();
    if scope != Scope::All {
        check_visible(service, ingests.clone(), &scope, &id).await?;
    }
    let shown = scope.clone();
    let lost = standing::lost(Arc::clone(service), call.clone(), move |context| {
        let now = Scope::of(context, Verb::Read)?;
        let sees_as_much = now == scope || now == Scope::All;
        sees_as_much
            .then_some(())
            .ok_or_else(|| CoreError::Denied("you see your own recordings alone".into()))
    });
    let pieces = service.relay.download(ingests, caller, request, lost, &call.origin.request_id).await;
    Ok(pieces.map_err(|error| hidden(error, &shown, &id))?.boxed())
}

/// Checks that a recording is one that the caller sees, before anything else is said of it.
async fn check_visible(
    service: &Service,
    ingests: Vec<String>,
    scope: &Scope,
    id: &str,
) -> Result<(), ApiError> {
    let request = v1::GetSessionRecordingRequest { recording_id: id.to_owned(), ..Default::default() };
    let reply = fetch(service, ingests, scope, request).await?;
    if scope.shows(reply.recording.as_ref()) { Ok(()) } else { Err(not_found(id)) }
}

async fn fetch(
    service: &Service,
    ingests: Vec<String>,
    scope: &Scope,
    request: v1::GetSessionRecordingRequest,
) -> Result<v1::GetSessionRecordingResponse, ApiError> {
    let ask = service.relay.ask(ingests, |mut ingest| {
        let request = request.clone();
        async move { ingest.get_session_recording(request).await }
    });
    ask.await.map_err(|error| hidden(error, scope, &request.recording_id))
}

fn not_found(id: &str) -> ApiError {
    CoreError::NotFound { kind: "recording", name: id.to_owned() }.into()
}

/// A recording that is not there and one that the caller may not see are answered alike; so is, to whoever sees its own
/// alone, one that is damaged: of that nobody can say whose it is.
fn hidden(error: ApiError, scope: &Scope, id: &str) -> ApiError {
    match error.code() {
        Code::NotFound => not_found(id),
        Code::DataLoss if *scope != Scope::All => not_found(id),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn of(user: &str) -> v1::Recording {
        let metadata = v1::RecordingMetadata { user: user.into(), ..Default::default() };
        v1::Recording { metadata: Some(metadata), ..Default::default() }
    }

    #[test]
    fn lists_are_filtered_as_the_single_reads_are() {
        let own = Scope::Own(Owner::parse("", "ann").unwrap());
        assert!(own.shows(Some(&of("ann"))));
        let bots = Scope::Own(Owner::parse("", "bot:ann").unwrap());
        assert!(bots.shows(Some(&of("bot:ann"))) && !bots.shows(Some(&of("ann"))));
        for other in
            [Some(of("bob")), Some(of("bot:ann")), Some(of("")), Some(v1::Recording::default()), None]
        {
            assert!(!own.shows(other.as_ref()), "{other:?}");
            assert!(Scope::All.shows(other.as_ref()));
        }
    }

    #[test]
    fn not_found_and_denied_look_alike_where_existence_is_a_secret() {
        let (all, own) = (Scope::All, Scope::Own(Owner::parse("", "ann").unwrap()));
        let hidden = |status: Status, scope| {
            let status = hidden(ApiError::Relayed(Box::new(status)), scope, "r").into_status("x");
            (status.code(), status.message().to_owned(), status.details().to_vec())
        };
        let denied = not_found("r").into_status("x");
        let denied = (denied.code(), denied.message().to_owned(), denied.details().to_vec());
        let (missing, damaged) =
            (Status::not_found("no such recording; send metadata"), Status::data_loss("it is damaged"));
        assert_eq!(hidden(missing.clone(), &own), denied);
        assert_eq!(hidden(missing, &all), denied);
        assert_eq!(hidden(damaged.clone(), &own), denied);
        assert_eq!(hidden(damaged, &all).0, Code::DataLoss);
    }

    #[test]
    fn an_agent_reads_no_recordings() {
        let context = Context { caller: Caller::Anonymous, origin: Default::default() };
        assert!(matches!(Scope::of(&context, Verb::Read), Err(CoreError::Denied(_))));
        let id = AgentId::from_random([1; 16]);
        let agent = Context { caller: Caller::Agent { id, node: Box::default() }, ..context };
        assert!(matches!(Scope::of(&agent, Verb::List), Err(CoreError::Denied(_))));
    }
}
