//! The rotation of an authority's key: which phase may follow which, what each does to the authority's row, and what
//! stands against the next one.
//!
//! A new key is first trusted by everybody, then signs for clients, then for servers, and then the old one is forgotten;
//! from each phase there is a way back. A phase is left when everybody has taken it up, unless it is forced: so at no
//! step does anybody show a certificate that somebody else does not trust. Each step is one transaction over one row.

use std::time::Duration;

use store_txn::{Key, Read, ReadExt, Transaction, TransactionExt, UnixMillis, Versioned};

use crate::{
    Context, CoreError,
    audit::{self, EventType},
    ca::{self, NewCa},
    presence::PresenceTtl,
    revocation::Revocations,
    tables::{
        CaKey, CaKeyRow, CaKind, CaRow, FollowedKey, FollowedRow, IssuedKey, IssuedRow, NodeKey, NodeKind,
        NodeRow, PresenceKey, PresenceRow, RotationPhase, RotationRow, TargetKind,
    },
};

use RotationPhase::{Init, Rollback, Standby, UpdateClients, UpdateServers};

/// Which phase may follow which: all of it.
const MOVES: [(RotationPhase, RotationPhase); 8] = [
    (Standby, Init),
    (Init, UpdateClients),
    (UpdateClients, UpdateServers),
    (UpdateServers, Standby),
    (Init, Rollback),
    (UpdateClients, Rollback),
    (UpdateServers, Rollback),
    (Rollback, Standby),
];
/// Phases that an automatic rotation stays in.
const AUTOMATIC_PHASES: u64 = 3;
/// Shortest automatic rotation: agents report once in some seconds.
const MIN_GRACE: Duration = Duration::from_secs(3);
/// Longest automatic rotation: two keys are trusted all the while.
const MAX_GRACE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Rows that are read at a time.
const CHUNK: usize = 512;
/// Most of those who lag that are named.
const MAX_NAMED: usize = 16;

impl RotationPhase {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Standby => "standby",
            Init => "init",
            UpdateClients => "update-clients",
            UpdateServers => "update-servers",
            Rollback => "rollback",
        }
    }

    /// The phases that may follow.
    fn followers(self) -> impl Iterator<Item = Self> {
        MOVES.into_iter().filter(move |(from, _)| *from == self).map(|(_, to)| to)
    }

    /// The phase that follows by itself where a rotation is automatic.
    fn forward(self) -> Option<Self> {
        if self == Standby { None } else { self.followers().find(|to| *to != Rollback) }
    }
}

/// Where the rotation of an authority's key stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// Of which authority.
    pub kind: CaKind,
    /// Where it stands.
    pub phase: RotationPhase,
    /// When this phase began; `None` in standby.
    pub phase_started_at_ms: Option<UnixMillis>,
    /// When it moves on by itself; `None`: when somebody moves it.
    pub next_phase_at_ms: Option<UnixMillis>,
    /// Whether it moves on by itself although something stands against it.
    pub force: bool,
    /// Revision of the authority's row.
    pub revision: u64,
    /// Certificates of users that stand against the next step were noted after the first and before the second of these
    /// revisions: the key that is to be forgotten has signed them, or hosts are to show a key that came after them.
    leaving: (u64, u64),
}

impl Rotation {
    fn of(kind: CaKind, stored: &Versioned<CaRow>) -> Self {
        let Versioned { revision, row } = stored;
        let none = RotationRow::default();
        let rotation = row.rotation.as_ref().unwrap_or(&none);
        let phase = row.phase();
        let leaving = match (kind, phase) {
            (CaKind::User | CaKind::Tls | CaKind::Spiffe, UpdateServers) => (0, rotation.switched_at),
            (CaKind::User | CaKind::Tls | CaKind::Spiffe, Rollback) if rotation.switched_at != 0 => {
                (rotation.switched_at, *revision)
            }
            // What users know hosts by came with their certificates.
            (CaKind::Host, UpdateClients) => (0, rotation.begun_at),
            _ => (0, 0),
        };
        Self {
            kind,
            phase,
            phase_started_at_ms: row.rotation.as_ref().map(|rotation| rotation.phase_started_at_ms),
            next_phase_at_ms: (rotation.phase_ms != 0)
                .then(|| rotation.phase_started_at_ms.saturating_add(rotation.phase_ms)),
            force: rotation.force,
            revision: *revision,
            leaving,
        }
    }

    /// The step that an automatic rotation takes at this time, if it is due.
    pub fn due(&self, now: UnixMillis) -> Option<Step> {
        let target = self.phase.forward().filter(|_| self.next_phase_at_ms.is_some_and(|at| at <= now))?;
        Some(Step { kind: self.kind, target, grace: None, force: self.force, revision: self.revision })
    }
}

/// Where the rotation of each authority's key stands, in the order of their kinds.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn all(state: &mut (impl Read + ?Sized)) -> Result<Vec<Rotation>, CoreError> {
    let mut all = Vec::new();
    for kind in CaKind::ALL {
        all.extend(state.get(&CaKey(kind))?.map(|stored| Rotation::of(kind, &stored)));
    }
    Ok(all)
}

/// Where the rotation of an authority's key stands.
///
/// # Errors
/// As [`ca::active`].
pub fn get(state: &mut (impl Read + ?Sized), kind: CaKind) -> Result<Rotation, CoreError> {
    Ok(Rotation::of(kind, &ca::row(state, kind)?))
}

/// What stands against leaving a phase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Obstacles {
    /// Live agents, ingests and auth nodes that have not taken the phase up.
    pub lagging: u32,
    /// Some of them, at most 16, as the audit log names them.
    pub named: Vec<String>,
    /// Agents and ingests that have not taken the phase up and are offline: they stand against nothing once they have had the time
    /// to report, and may have to join anew.
    pub absent: u32,
    /// Certificates of users, still good, of the key that is about to be forgotten; or that came without the key which
    /// hosts are about to show.
    pub certificates: u32,
    /// When the last of them ends.
    pub certificates_end_ms: UnixMillis,
    /// How long those that are absent may only not have been able to report: until then they stand against the step too.
    pub settling: Duration,
}

impl Obstacles {
    /// Looks for them. `members` are the ids of the auth nodes. It reads every node: call it in a view, not in a transaction.
    ///
    /// # Errors
    /// [`CoreError::Storage`].
    pub fn of(
        state: &mut (impl Read + ?Sized),
        rotation: &Rotation,
        members: &[u64],
        ttl: PresenceTtl,
    ) -> Result<Self, CoreError> {
        let mut found = Self::default();
        if rotation.phase == Standby {
            return Ok(found);
        }
        found.look_at_members(state, rotation, members)?;
        found.look_at_agents(state, rotation, ttl)?;
        found.look_at_certificates(state, rotation)?;
        Ok(found)
    }

    /// With the time that agents have left to report after an outage of the auth cluster.
    #[must_use]
    pub fn settling(self, settling: Duration) -> Self {
        Self { settling, ..self }
    }

    /// How long those that are absent stand against the step; `None`: they do not.
    pub fn absent_hold(&self) -> Option<Duration> {
        (self.absent > 0 && !self.settling.is_zero()).then_some(self.settling)
    }

    fn lags(&mut self, who: impl FnOnce() -> String) {
        self.lagging = self.lagging.saturating_add(1);
        if self.named.len() < MAX_NAMED {
            self.named.push(who());
        }
    }

    fn look_at_members(
        &mut self,
        state: &mut (impl Read + ?Sized),
        rotation: &Rotation,
        members: &[u64],
    ) -> Result<(), CoreError> {
        let follows = |row: FollowedRow| match rotation.kind {
            CaKind::Tls => row.tls >= rotation.revision,
            CaKind::Peer => row.peer >= rotation.revision,
            // They sign by the rows themselves.
            CaKind::User | CaKind::Host | CaKind::Spiffe | CaKind::Audit => true,
        };
        for member in members {
            let followed = state.get(&FollowedKey(*member))?.map(|stored| stored.row).unwrap_or_default();
            if !follows(followed) {
                self.lags(|| format!("auth_node:{member}"));
            }
        }
        Ok(())
    }

    fn look_at_agents(
        &mut self,
        state: &mut (impl Read + ?Sized),
        rotation: &Rotation,
        ttl: PresenceTtl,
    ) -> Result<(), CoreError> {
        let concerned = |node: &NodeRow| match rotation.kind {
            // Agents have SVIDs; ingests have none.
            CaKind::User | CaKind::Host | CaKind::Spiffe => node.kind() == NodeKind::Ssh,
            CaKind::Tls => true,
            CaKind::Peer | CaKind::Audit => false,
        };
        if matches!(rotation.kind, CaKind::Peer | CaKind::Audit) {
            return Ok(());
        }
        let now = state.now();
        each::<_, NodeKey>(state, |state, NodeKey(id), node| {
            if !concerned(&node.row) {
                return Ok(());
            }
            let presence = state.get(&PresenceKey(id.clone()))?.map(|stored| stored.row);
            let PresenceRow { followed_trust, last_seen_ms, .. } = presence.unwrap_or_default();
            if followed_trust >= rotation.revision {
                return Ok(());
            }
            if ttl.is_alive(last_seen_ms, now) {
                self.lags(|| crate::join::target(node.row.kind(), &id));
            } else {
                self.absent = self.absent.saturating_add(1);
            }
            Ok(())
        })
    }

    /// A user's X.509 certificate ends with the SSH certificate that it came with. One that is revoked is waited for by nobody.
    fn look_at_certificates(
        &mut self,
        state: &mut (impl Read + ?Sized),
        rotation: &Rotation,
    ) -> Result<(), CoreError> {
        let (after, before) = rotation.leaving;
        if before == 0 {
            return Ok(());
        }
        let revocations = Revocations::read(state)?;
        each::<_, IssuedKey>(state, |_, _, issued| {
            let IssuedRow { expires_at_ms, .. } = issued.row;
            let signed = issued.revision > after && issued.revision < before;
            let is_good = signed && !revocations.hold(issued.revision, &issued.row);
            let concerned = match rotation.kind {
                // They have an SVID for as long as the credentials that are noted.
                CaKind::Spiffe => issued.row.kind() == TargetKind::AgentIdentity,
                CaKind::User | CaKind::Host | CaKind::Tls | CaKind::Peer | CaKind::Audit => {
                    issued.row.kind() != TargetKind::Node
                }
            };
            if is_good && concerned {
                self.certificates = self.certificates.saturating_add(1);
                self.certificates_end_ms = self.certificates_end_ms.max(expires_at_ms);
            }
            Ok(())
        })
    }

    /// Why a step must wait, for people; `None`: nothing stands against it.
    fn against(&self, target: RotationPhase, now: UnixMillis) -> Option<String> {
        if target == Rollback {
            return None;
        }
        let mut reasons = Vec::new();
        if self.lagging > 0 {
            let more = if usize::try_from(self.lagging).is_ok_and(|all| all > self.named.len()) {
                ", …"
            } else {
                ""
            };
            reasons.push(format!(
                "{} have not taken this phase up: {}{more}",
                self.lagging,
                self.named.join(", ")
            ));
        }
        if let Some(left) = self.absent_hold() {
            reasons.push(format!(
                "{} have not taken this phase up and are offline, and the auth cluster could not take reports a short while ago: \
                 they have {} s left to report",
                self.absent,
                left.as_millis().div_ceil(1000)
            ));
        }
        if self.certificates > 0 {
            let left = self.certificates_end_ms.saturating_sub(now).div_ceil(1000);
            reasons.push(format!(
                "certificates of users from before are still good: {}, the last for {left} s",
                self.certificates
            ));
        }
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// Walks through a table.
fn each<S: Read + ?Sized, K: Key + Clone>(
    state: &mut S,
    mut take: impl FnMut(&mut S, K, Versioned<K::Row>) -> Result<(), CoreError>,
) -> Result<(), CoreError> {
    let mut after = None;
    loop {
        let rows = state.scan::<K>(after.as_ref(), CHUNK)?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        after = Some(last.clone());
        for (key, row) in rows {
            take(state, key, row)?;
        }
    }
}

/// A step of a rotation, asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Of which authority.
    pub kind: CaKind,
    /// The phase to go to.
    pub target: RotationPhase,
    /// With the first step: go through all phases by itself in this time.
    pub grace: Option<Duration>,
    /// Go although something stands against it.
    pub force: bool,
    /// Revision of the rotation that the caller has seen; 0: any.
    pub revision: u64,
}

/// Takes a step, and answers where the rotation stands then, but for its revision. `seen` and `obstacles` are what a view
/// showed before; the step is taken on that state of the authority alone. A first step brings the new key.
///
/// # Errors
/// [`CoreError::Invalid`] for the grace period; [`CoreError::Precondition`] for a phase that cannot follow, and for what
/// stands against it; [`CoreError::StaleRevision`]; [`CoreError::Storage`].
pub fn step(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    step: &Step,
    (seen, obstacles): (&Rotation, &Obstacles),
    new_key: Option<NewCa>,
) -> Result<Rotation, CoreError> {
    let stored = ca::row(tx, step.kind)?;
    let revisions = [step.revision, seen.revision];
    for given in revisions {
        CoreError::check_revision("rotation of the CA", step.kind.name(), given, stored.revision)?;
    }
    let from = stored.row.phase();
    check_move(step.kind, from, step.target)?;
    let phase_ms = check_grace(step)?;
    let against = obstacles.against(step.target, tx.now());
    if let Some(reasons) = against.as_ref().filter(|_| !step.force) {
        let what = format!("{reasons}; wait for that, or force it: what has not followed is then cut off");
        return Err(CoreError::Precondition(what));
    }
    let row = moved(stored, step, phase_ms, new_key, tx.now())?;
    let fields = [
        ("from", from.name().to_owned()),
        ("to", step.target.name().to_owned()),
        ("force", step.force.to_string()),
        ("automatic", row.rotation.as_ref().is_some_and(|rotation| rotation.phase_ms != 0).to_string()),
        ("against", against.unwrap_or_default()),
    ];
    audit::append(tx, context, EventType::CaRotate, format!("ca:{}", step.kind.name()), &fields);
    tx.put(&CaKey(step.kind), &row);
    Ok(Rotation::of(step.kind, &Versioned { revision: 0, row }))
}

fn check_move(kind: CaKind, from: RotationPhase, to: RotationPhase) -> Result<(), CoreError> {
    if MOVES.contains(&(from, to)) {
        return Ok(());
    }
    let next: Vec<_> = from.followers().map(RotationPhase::name).collect();
    let (kind, from, to, next) = (kind.name(), from.name(), to.name(), next.join(" or "));
    Err(CoreError::Precondition(format!(
        "the {kind} CA is in {from}: from there it goes to {next}, not to {to}"
    )))
}

/// How long each phase is to last, in milliseconds; 0: until somebody moves it.
fn check_grace(step: &Step) -> Result<u64, CoreError> {
    let Some(grace) = step.grace else { return Ok(0) };
    if step.target != Init {
        let reason = "it comes with the first step, to init; later ones are taken by themselves";
        return Err(CoreError::invalid("grace_period", reason));
    }
    if !(MIN_GRACE..=MAX_GRACE).contains(&grace) {
        return Err(CoreError::invalid("grace_period", "3 seconds to 90 days"));
    }
    Ok(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) / AUTOMATIC_PHASES)
}

/// The authority's row after a step that may be taken.
fn moved(
    stored: Versioned<CaRow>,
    step: &Step,
    phase_ms: u64,
    new_key: Option<NewCa>,
    now: UnixMillis,
) -> Result<CaRow, CoreError> {
    let Versioned { revision, mut row } = stored;
    let from = row.phase();
    match (from, step.target) {
        (_, Init) => row.trusted.insert(0, key_row(step.kind, new_key, now)?),
        (_, UpdateServers) | (UpdateServers, Rollback) => swap_keys(step.kind, &mut row)?,
        (_, Standby) => drop(row.trusted.drain(..row.trusted.len().min(1))),
        (_, UpdateClients | Rollback) => {}
    }
    let before = row.rotation.take().unwrap_or_default();
    let (phase_ms, force) = match step.target {
        Init => (phase_ms, step.force && phase_ms != 0),
        // Whoever takes it back decides when that is done.
        Rollback => (0, false),
        Standby | UpdateClients | UpdateServers => (before.phase_ms, before.force),
    };
    row.rotation = (step.target != Standby).then(|| RotationRow {
        phase: step.target.into(),
        phase_started_at_ms: now,
        phase_ms,
        force,
        switched_at: if from == UpdateClients { revision } else { before.switched_at },
        begun_at: if from == Init { revision } else { before.begun_at },
    });
    Ok(row)
}

fn key_row(kind: CaKind, new_key: Option<NewCa>, now: UnixMillis) -> Result<CaKeyRow, CoreError> {
    match new_key {
        Some(NewCa { kind: of, public, sealed_private }) if of == kind => {
            Ok(CaKeyRow { public, sealed_private, created_at_ms: now })
        }
        _ => Err(CoreError::Internal(format!("a rotation of the {} CA begins without a key", kind.name()))),
    }
}

fn swap_keys(kind: CaKind, row: &mut CaRow) -> Result<(), CoreError> {
    match (&mut row.active, row.trusted.first_mut()) {
        (Some(active), Some(other)) => {
            std::mem::swap(active, other);
            Ok(())
        }
        _ => Err(CoreError::Internal(format!("the {} CA is rotated and has but one key", kind.name()))),
    }
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
