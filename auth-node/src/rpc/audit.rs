//! The audit log: what data planes tell, and what was told.

use std::time::Duration;

use auth_core::{
    CoreError, audit,
    audit_log::{self, Entry, Filter, Order},
    ca,
    tables::CaKind,
};
use bytes::Bytes;
use mezite_pki::ssh::SshCa;
use mezite_proto::v1;
use store_txn::{LogBounds, Read as _, UnixMillis};

use super::convert;
use crate::{authn::Call, error::ApiError, once::Once, service::Service};

/// What signatures of checkpoints are for: `ssh-keygen -Y verify -n` wants it.
const NAMESPACE: &str = "audit@mezite";

/// Writes what an agent, an ingest or an admin tells.
pub(crate) async fn emit(
    service: &Service,
    call: &Call,
    request: v1::EmitAuditEventRequest,
) -> Result<v1::EmitAuditEventResponse, ApiError> {
    let once = Once::of(call, &request);
    let emit = service.write_once(call, once, move |tx, context| {
        audit::emit(tx, context, &request.event, &request.target, &request.fields)?;
        Ok(v1::EmitAuditEventResponse { request_id: context.origin.request_id.clone() })
    });
    emit.await
}

/// Answers events.
pub(crate) async fn query(
    service: &Service,
    call: &Call,
    request: v1::QueryAuditEventsRequest,
) -> Result<v1::QueryAuditEventsResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token)?;
    let order = match request.order() {
        v1::SortOrder::Ascending => Order::Ascending,
        v1::SortOrder::Descending | v1::SortOrder::Unspecified => Order::Descending,
    };
    let moment =
        |field, time: Option<prost_types::Timestamp>| time.map(|time| moment(field, time)).transpose();
    let times = (moment("from", request.from)?, moment("to", request.to)?);
    let filter = Filter::new(&request.events, request.actor, times, &request.text, request.from_index)?;
    let with_proof = request.with_proof;
    let read = service.read(call, move |view, _| {
        let page = audit_log::query(view, &filter, order, &page)?;
        let proof = match with_proof {
            true => Some((view.log_bounds(audit::LOG)?, view.now(), ca::active(view, CaKind::Audit)?)),
            false => None,
        };
        Ok((page, proof))
    });
    let (page, proof) = read.await?;
    let checkpoint = match proof {
        Some((bounds, now, authority)) => {
            Some(checkpoint(&service.settings.cluster_id, &bounds, now, &*service.cas.ssh(&authority)?)?)
        }
        None => None,
    };
    let page = page.map(|entry| event(entry, with_proof));
    Ok(v1::QueryAuditEventsResponse {
        events: page.items,
        next_page_token: convert::page_token(page.next),
        checkpoint,
    })
}

/// A time in milliseconds since the Unix epoch.
fn moment(field: &str, time: prost_types::Timestamp) -> Result<UnixMillis, CoreError> {
    let since = prost_types::Duration { seconds: time.seconds, nanos: time.nanos };
    let since: Duration = convert::duration_in(field, since)
        .map_err(|_| CoreError::invalid(field, "this is no time, or one before 1970"))?;
    Ok(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn event((record, row): Entry, with_proof: bool) -> v1::AuditEvent {
    v1::AuditEvent {
        index: record.index,
        event: row.event,
        code: row.code,
        time: Some(convert::timestamp(record.time)),
        actor: row.actor,
        target: row.target,
        success: row.success,
        fields: row.fields,
        node_id: row.node_id,
        request_id: row.request_id,
        client_address: row.client_address,
        chain_hash: Bytes::copy_from_slice(&record.hash),
        record: if with_proof { record.record.into() } else { Bytes::new() },
    }
}

/// What the log is now, signed.
fn checkpoint(
    cluster_id: &str,
    bounds: &LogBounds,
    now: UnixMillis,
    authority: &SshCa,
) -> Result<v1::AuditCheckpoint, ApiError> {
    let LogBounds { first, last, anchor, head } = bounds;
    let (anchor_hex, head_hex) = (hex::encode(anchor), hex::encode(head));
    let statement = format!(
        "mezite audit checkpoint v1\ncluster_id {cluster_id}\nfirst {first}\nanchor {anchor_hex}\nlast {last}\n\
         hash {head_hex}\ntime_ms {now}\n"
    );
    Ok(v1::AuditCheckpoint {
        cluster_id: cluster_id.into(),
        first_index: *first,
        anchor_hash: Bytes::copy_from_slice(anchor),
        last_index: *last,
        last_hash: Bytes::copy_from_slice(head),
        time: Some(convert::timestamp(now)),
        signature: authority.sign_sshsig(NAMESPACE, statement.as_bytes())?,
        statement,
    })
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
