//! Joining by an AWS identity: one call in which the joiner says what it asks for, is given a challenge, and proves who it
//! is by a request to AWS that is signed over that. The challenge is known to this call alone, and is over with it.

use std::sync::Arc;

use auth_core::{
    CoreError,
    iam::{self, IamJoin},
    join::HostCertRequest,
    names::{AgentId, TokenName},
    presence::Report,
};
use futures::StreamExt as _;
use mezite_proto::v1::{
    RegisterUsingIamMethodRequest, RegisterUsingIamMethodResponse,
    register_using_iam_method_request as asked, register_using_iam_method_response as told,
};
use store_txn::Read as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::{Begun, Replies, convert, joining, within};
use crate::{authn::Call, error::ApiError, iam::Proof, service::Service};

/// Messages to a joiner: the challenge, and the end. Neither waits for it.
const REPLIES: usize = 2;

type Reply = Result<RegisterUsingIamMethodResponse, Status>;

fn reply(message: told::Message) -> RegisterUsingIamMethodResponse {
    RegisterUsingIamMethodResponse { message: Some(message) }
}

/// Carries the call out, in its deadline, and for as long as its client is there.
pub(super) fn exchange(
    service: Arc<Service>,
    begun: Begun,
    messages: Streaming<RegisterUsingIamMethodRequest>,
) -> Replies<RegisterUsingIamMethodResponse> {
    let (replies, receiver) = mpsc::channel(REPLIES);
    tokio::spawn(async move {
        let joined = within(begun.call.deadline, join(&service, &begun.call, messages, &replies));
        let result = tokio::select! {
            biased;
            () = replies.closed() => return,
            result = joined => result,
        };
        let last = begun.end(result).map(|joined| reply(told::Message::Joined(Response::into_inner(joined))));
        // The client may have gone.
        let _ = replies.send(last).await;
    });
    ReceiverStream::new(receiver).boxed()
}

/// What a joiner asks for, checked.
struct Asked {
    token: TokenName,
    request: HostCertRequest,
    report: Report,
}

impl Asked {
    fn parse(init: asked::Init) -> Result<Self, CoreError> {
        let (certs, agent) = (init.certs.unwrap_or_default(), init.agent.unwrap_or_default());
        for (field, token) in [("certs.token", &certs.token), ("agent.token", &agent.token)] {
            if !token.is_empty() {
                return Err(CoreError::invalid(
                    field,
                    "who joins by an AWS identity has no secret of a token",
                ));
            }
        }
        if agent.address.is_empty() {
            return Err(CoreError::invalid("address", "host:port where the service is reached"));
        }
        Ok(Self {
            token: TokenName::parse("token_name", &init.token_name)?,
            request: HostCertRequest::new(
                &certs.ssh_public_key,
                certs.tls_public_key.into(),
                &certs.hostname,
                &certs.additional_principals,
                convert::serial(),
            )?,
            report: Report::new(agent.version, agent.labels, agent.address, 0)?,
        })
    }
}

async fn join(
    service: &Service,
    call: &Call,
    mut messages: Streaming<RegisterUsingIamMethodRequest>,
    replies: &mpsc::Sender<Reply>,
) -> Result<told::Joined, ApiError> {
    let Some(asked::Message::Init(init)) = next(&mut messages).await? else { return Err(unexpected("init")) };
    let Asked { token, request, report } = Asked::parse(init)?;
    let challenge = convert::secret();
    // Who has gone sends no proof.
    let _ = replies.send(Ok(reply(told::Message::Challenge(challenge.as_str().to_owned())))).await;
    let Some(asked::Message::Proof(proof)) = next(&mut messages).await? else {
        return Err(unexpected("proof"));
    };
    let proof = Proof::parse(proof)?;
    let now = service.read(call, |view, _| Ok(view.now())).await?;
    let question = service.sts.rebuild(proof, &challenge, now)?;
    // Asked whether there is such a token or not: the time that the answer takes tells nobody.
    let attested = service.sts.ask(&call.origin.client_address, question).await?;
    let join = IamJoin { token, attested, request, report, fresh: AgentId::from_random(rand::random()) };
    let decided = service.decide(call, move |tx, context| iam::join(tx, context, &join)).await?;
    Ok(told::Joined {
        certs: Some(joining::sign(service, decided.certs)?),
        agent: Some(joining::registered(service, call, decided.registered).await?),
    })
}

/// The next message; `None`: there is none, or it is empty.
async fn next(
    messages: &mut Streaming<RegisterUsingIamMethodRequest>,
) -> Result<Option<asked::Message>, ApiError> {
    let message = messages.message().await.map_err(|status| ApiError::Relayed(Box::new(status)))?;
    Ok(message.and_then(|message| message.message))
}

fn unexpected(wanted: &str) -> ApiError {
    let reason = format!("{wanted} is the next message: first init, and after the challenge, proof");
    CoreError::invalid("message", reason).into()
}
