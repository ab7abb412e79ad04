//! The configuration of the whole cluster: what admins decide, and what counts where they have not.

use std::ops::RangeInclusive;

use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis, Versioned};

use crate::{
    Context, CoreError,
    audit::{self, EventType},
    names::DeviceId,
    session,
    tables::{ClusterConfigKey, ClusterConfigRow, DeviceKey, RecordingMode, SecondFactor},
    webauthn,
};

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Life of a session.
const SESSION_TTL_MS: RangeInclusive<u64> = MINUTE..=30 * DAY;
/// Life of a session where nobody has decided.
const DEFAULT_SESSION_TTL_MS: u64 = 12 * HOUR;
/// How long a session may be unused.
const IDLE_MS: RangeInclusive<u64> = MINUTE..=30 * DAY;
/// How long audit events are kept: less than a day could hide what was done in a night.
const RETENTION_MS: RangeInclusive<u64> = DAY..=100 * 366 * DAY;
/// How many audit events are kept.
const MAX_EVENTS: RangeInclusive<u64> = 1000..=1_000_000_000;
/// Failed logins before a lockout.
const LOCKOUT_THRESHOLD: RangeInclusive<u32> = 1..=1000;
/// Failed logins before a lockout where nobody has decided.
const DEFAULT_LOCKOUT_THRESHOLD: u32 = 10;
/// How long a lockout lasts.
const LOCKOUT_MS: RangeInclusive<u64> = SECOND..=DAY;
/// How long a lockout lasts where nobody has decided.
const DEFAULT_LOCKOUT_MS: u64 = 15 * MINUTE;

/// What counts now, defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// What a login needs beyond a password.
    pub second_factor: SecondFactor,
    /// Longest life of a session, in milliseconds.
    pub session_ttl_ms: u64,
    /// A session that is not used for so long ends, in milliseconds; `None`: it does not.
    pub session_idle_ms: Option<u64>,
    /// Since when that counts: no session is unused for longer.
    pub session_idle_since_ms: u64,
    /// Sessions that were used last then or before are over.
    pub session_over_before_ms: u64,
    /// How long audit events are kept, in milliseconds; `None`: for ever.
    pub audit_retention_ms: Option<u64>,
    /// How many audit events are kept; `None`: all.
    pub audit_max_events: Option<u64>,
    /// What happens to a session that cannot be recorded.
    pub recording_mode: RecordingMode,
    /// Failed logins before a lockout.
    pub lockout_threshold: u32,
    /// How long a lockout lasts, in milliseconds.
    pub lockout_ms: u64,
}

impl Settings {
    fn of(row: &ClusterConfigRow) -> Self {
        Self {
            second_factor: match row.second_factor() {
                SecondFactor::Unspecified => SecondFactor::Off,
                other => other,
            },
            session_ttl_ms: row.session_ttl_ms.unwrap_or(DEFAULT_SESSION_TTL_MS),
            session_idle_ms: row.session_idle_timeout_ms,
            session_idle_since_ms: row.session_idle_since_ms,
            session_over_before_ms: row.session_over_before_ms,
            audit_retention_ms: row.audit_retention_ms,
            audit_max_events: row.audit_max_events,
            recording_mode: match row.recording_mode() {
                RecordingMode::Unspecified => RecordingMode::BestEffort,
                other => other,
            },
            lockout_threshold: row.lockout_threshold.unwrap_or(DEFAULT_LOCKOUT_THRESHOLD),
            lockout_ms: row.lockout_duration_ms.unwrap_or(DEFAULT_LOCKOUT_MS),
        }
    }
}

/// What counts now.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn settings(state: &mut (impl Read + ?Sized)) -> Result<Settings, CoreError> {
    Ok(Settings::of(&get(state)?.row))
}

/// Revision before anybody has decided anything: no row has it, and unlike 0 it is not taken for any.
const UNDECIDED: u64 = 1;

/// What admins have decided; revision 1 before anybody has.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn get(state: &mut (impl Read + ?Sized)) -> Result<Versioned<ClusterConfigRow>, CoreError> {
    let nothing = Versioned { revision: UNDECIDED, row: ClusterConfigRow::default() };
    Ok(state.get(&ClusterConfigKey)?.unwrap_or(nothing))
}

/// Replaces the configuration, and answers it as it is stored. It counts at once; sessions that there are keep their end, and
/// how long they may be unused is counted from now on where it has changed.
///
/// # Errors
/// [`CoreError::Invalid`]; [`CoreError::StaleRevision`];
/// [`CoreError::Precondition`] for what would shut everybody out; [`CoreError::Storage`].
pub fn update(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    row: &ClusterConfigRow,
    revision: u64,
) -> Result<ClusterConfigRow, CoreError> {
    check(row)?;
    let before = get(tx)?;
    CoreError::check_revision("cluster", "configuration", revision, before.revision)?;
    leaves_a_way_in(tx, context, &before.row, row)?;
    let same_idle = row.session_idle_timeout_ms == before.row.session_idle_timeout_ms;
    let row = ClusterConfigRow {
        session_idle_since_ms: if same_idle { before.row.session_idle_since_ms } else { tx.now() },
        session_over_before_ms: if same_idle {
            before.row.session_over_before_ms
        } else {
            over_before(&before.row, tx.now())
        },
        ..row.clone()
    };
    tx.put(&ClusterConfigKey, &row);
    let changes = changed(&before.row, &row);
    audit::append(tx, context, EventType::ClusterConfigUpdate, "cluster_config", &changes);
    Ok(row)
}

/// Refuses what would leave nobody who can log in, or undo it. A second factor is required of everybody only by somebody who
/// has logged in with one of this relying party: so it is known to be the right one; and while it is required, that one
/// stays.
fn leaves_a_way_in(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    before: &ClusterConfigRow,
    after: &ClusterConfigRow,
) -> Result<(), CoreError> {
    if after.second_factor() != SecondFactor::Webauthn {
        return Ok(());
    }
    if before.second_factor() == SecondFactor::Webauthn {
        if before.webauthn_rp_id != after.webauthn_rp_id {
            let reason =
                "another relying party makes all devices useless: set second_factor to optional first";
            return Err(CoreError::Precondition(reason.into()));
        }
        return Ok(());
    }
    let device = match DeviceId::parse(&context.caller.user()?.session.device) {
        Some(id) => tx.get(&DeviceKey(id))?.map(|device| device.row.relying_party),
        None => None,
    };
    if device.as_ref() != Some(&after.webauthn_rp_id) {
        let reason = "a second factor is required of everybody by who has one: register a device on the web pages, \
                      log in with it there, and set this over gRPC with that session, for mezctl logs in with no \
                      device (README.md, Passkeys and security keys)";
        return Err(CoreError::Precondition(reason.into()));
    }
    Ok(())
}

/// Sessions that were used last at this time or before have been unused for too long by now, whatever is decided next.
fn over_before(row: &ClusterConfigRow, now: UnixMillis) -> UnixMillis {
    let Some(idle) = row.session_idle_timeout_ms else { return row.session_over_before_ms };
    let over = now.saturating_sub(session::unused_ms(idle));
    if row.session_idle_since_ms <= over {
        row.session_over_before_ms.max(over)
    } else {
        row.session_over_before_ms
    }
}

fn check(row: &ClusterConfigRow) -> Result<(), CoreError> {
    fn within<T: PartialOrd>(
        field: &str,
        value: Option<T>,
        range: &RangeInclusive<T>,
        says: &str,
    ) -> Result<(), CoreError> {
        if value.is_none_or(|value| range.contains(&value)) {
            return Ok(());
        }
        Err(CoreError::invalid(format!("config.{field}"), says))
    }
    within("session_ttl", row.session_ttl_ms, &SESSION_TTL_MS, "from 1 minute to 30 days")?;
    within("session_idle_timeout", row.session_idle_timeout_ms, &IDLE_MS, "from 1 minute to 30 days")?;
    within("audit_retention", row.audit_retention_ms, &RETENTION_MS, "from 1 day to 100 years")?;
    within("audit_max_events", row.audit_max_events, &MAX_EVENTS, "from 1,000 to 1,000,000,000")?;
    within("lockout_threshold", row.lockout_threshold, &LOCKOUT_THRESHOLD, "from 1 to 1000")?;
    within("lockout_duration", row.lockout_duration_ms, &LOCKOUT_MS, "from 1 second to 1 day")?;
    // A release that does not know a value must not take it for the weakest one.
    if SecondFactor::try_from(row.second_factor).is_err() {
        return Err(CoreError::invalid("config.second_factor", "off, optional or webauthn"));
    }
    if RecordingMode::try_from(row.recording_mode).is_err() {
        return Err(CoreError::invalid("config.recording_mode", "off, best-effort or strict"));
    }
    webauthn::check_configured(row)?;
    if Settings::of(row).second_factor != SecondFactor::Off && webauthn::configured(row).is_none() {
        let reason = "it takes WebAuthn: set config.webauthn_rp_id, the domain of the cluster's web pages, first \
                      (README.md, Passkeys and security keys)";
        return Err(CoreError::invalid("config.second_factor", reason));
    }
    Ok(())
}

/// What is different, for the audit log.
fn changed(before: &ClusterConfigRow, after: &ClusterConfigRow) -> Vec<(&'static str, String)> {
    let shown = |row: &ClusterConfigRow| {
        let settings = Settings::of(row);
        let optional = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
        [
            ("second_factor", format!("{:?}", settings.second_factor)),
            ("session_ttl_ms", settings.session_ttl_ms.to_string()),
            ("session_idle_ms", optional(settings.session_idle_ms)),
            ("audit_retention_ms", optional(settings.audit_retention_ms)),
            ("audit_max_events", optional(settings.audit_max_events)),
            ("recording_mode", format!("{:?}", settings.recording_mode)),
            ("lockout_threshold", settings.lockout_threshold.to_string()),
            ("lockout_ms", settings.lockout_ms.to_string()),
            ("webauthn_rp_id", row.webauthn_rp_id.clone()),
            ("webauthn_origins", row.webauthn_origins.join(" ")),
        ]
    };
    audit::changes(shown(before), shown(after))
}

#[cfg(test)]
#[path = "cluster_config_tests.rs"]
mod tests;
