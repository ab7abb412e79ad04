//! The rotation of the authorities' keys.

use std::sync::Arc;

use auth_core::{
    CoreError,
    rotation::{self, Obstacles, Rotation, Step},
    tables::{CaKind, RotationPhase},
};
use mezite_daemon::clock;
use mezite_proto::v1;

use super::{convert, trust};
use crate::{authn::Call, ca_rotation, error::ApiError, once::Once, service::Service};

/// Takes a step. What stands against it is looked for in a view, outside of the transaction: that would otherwise conflict
/// with every heartbeat. The step is taken only on the state that the view showed.
pub(crate) async fn rotate(
    service: &Service,
    call: &Call,
    request: v1::RotateCaRequest,
) -> Result<v1::RotateCaResponse, ApiError> {
    let once = Once::of(call, &request);
    let step = parse(&request)?;
    let (kind, store, ttl) = (step.kind, service.store.clone(), service.settings.presence_ttl);
    let attendance = Arc::clone(&service.attendance);
    let look = service.unless_answered(call, &once, move |view, _| {
        let seen = rotation::get(view, kind)?;
        // Once the view is confirmed: before, this node may not have known of all of them.
        let obstacles = Obstacles::of(view, &seen, &ca_rotation::members(&store), ttl)?;
        // An outage that ended while the view was waited for has been seen by now.
        Ok((seen, obstacles.settling(attendance.settling())))
    });
    let (seen, obstacles) = match look.await? {
        std::ops::ControlFlow::Break(answered) => return Ok(answered),
        std::ops::ControlFlow::Continue(seen) => seen,
    };
    let new_key = match step.target {
        RotationPhase::Init => {
            Some(service.cas.generate(kind, &service.settings.cluster, clock::unix_seconds())?)
        }
        _ => None,
    };
    let write = service.write_once(call, once, move |tx, context| {
        let after = rotation::step(tx, context, &step, (&seen, &obstacles), new_key.clone())?;
        // Nobody has taken up what has just begun.
        Ok(v1::RotateCaResponse { rotation: Some(reply(&after, &Obstacles::default())) })
    });
    write.await
}

/// Answers where the rotation of each authority's key stands, and what stands against the next step.
pub(crate) async fn get(
    service: &Service,
    call: &Call,
    _request: v1::GetCaRotationRequest,
) -> Result<v1::GetCaRotationResponse, ApiError> {
    let (store, ttl) = (service.store.clone(), service.settings.presence_ttl);
    let attendance = Arc::clone(&service.attendance);
    let read = service.read(call, move |view, _| {
        let members = ca_rotation::members(&store);
        let rotations = rotation::all(view)?.into_iter().map(|rotation| {
            let obstacles = Obstacles::of(view, &rotation, &members, ttl)?;
            Ok(reply(&rotation, &obstacles.settling(attendance.settling())))
        });
        rotations.collect::<Result<Vec<_>, CoreError>>()
    });
    Ok(v1::GetCaRotationResponse { rotations: read.await? })
}

fn parse(request: &v1::RotateCaRequest) -> Result<Step, CoreError> {
    let kind = match request.kind() {
        v1::CaKind::User => CaKind::User,
        v1::CaKind::Host => CaKind::Host,
        v1::CaKind::Tls => CaKind::Tls,
        v1::CaKind::Peer => CaKind::Peer,
        v1::CaKind::Spiffe => CaKind::Spiffe,
        v1::CaKind::Audit => CaKind::Audit,
        v1::CaKind::Unspecified => {
            return Err(CoreError::invalid("kind", "user, host, tls, peer, spiffe or audit"));
        }
    };
    let target = match request.target_phase() {
        v1::RotationPhase::Standby => RotationPhase::Standby,
        v1::RotationPhase::Init => RotationPhase::Init,
        v1::RotationPhase::UpdateClients => RotationPhase::UpdateClients,
        v1::RotationPhase::UpdateServers => RotationPhase::UpdateServers,
        v1::RotationPhase::Rollback => RotationPhase::Rollback,
        v1::RotationPhase::Unspecified => {
            let reason = "init, update_clients, update_servers, standby or rollback";
            return Err(CoreError::invalid("target_phase", reason));
        }
    };
    let grace = request.grace_period.map(|grace| convert::duration_in("grace_period", grace)).transpose()?;
    Ok(Step { kind, target, grace, force: request.force, revision: request.revision })
}

fn reply(rotation: &Rotation, obstacles: &Obstacles) -> v1::CaRotation {
    v1::CaRotation {
        kind: trust::kind(rotation.kind).into(),
        phase: trust::rotation_phase(rotation.phase).into(),
        phase_started_at: rotation.phase_started_at_ms.map(convert::timestamp),
        next_phase_at: rotation.next_phase_at_ms.map(convert::timestamp),
        lagging_agents: obstacles.lagging,
        revision: rotation.revision,
        lagging_names: obstacles.named.clone(),
        absent_agents: obstacles.absent,
        outstanding_certificates: obstacles.certificates,
        outstanding_until: (obstacles.certificates > 0)
            .then(|| convert::timestamp(obstacles.certificates_end_ms)),
        force: rotation.force,
        absent_held_for: obstacles.absent_hold().map(convert::duration_out),
    }
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
