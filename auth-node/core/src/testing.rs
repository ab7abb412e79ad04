//! A small cluster in memory, for the tests of this crate: the built-in roles and one admin, `boss`.

use std::collections::BTreeMap;

use store_txn::{
    KeyRange, LogBounds, LogRecord, RawRow, Read, Transaction, TransactionExt, TxError, UnixMillis,
    memory::{MemoryStore, MemoryTransaction},
};

use crate::{
    Caller, Context, CoreError, Credential, Origin,
    audit::{self, AuditRow},
    context,
    evaluate::Traits,
    lockout::{SlotSecret, TypedName},
    login::{self, Attempt},
    names::{RoleName, SessionHandle, UserName},
    role,
    secret::{PasswordHash, SecretDigest, SecretKind},
    session::NewSession,
    tables::{
        AuthMethod, ClusterConfigKey, ClusterConfigRow, ClusterKey, ClusterRow, ConditionsRow, RoleKey,
        RoleRow, RuleRow, SessionRow, StringsRow,
    },
    user::{self, Grants, NewUser},
};

/// Life of a session in these tests, in milliseconds.
pub(crate) const SESSION_TTL_MS: u64 = 1_000_000;

pub(crate) fn name(text: &str) -> UserName {
    UserName::parse("name", text).unwrap()
}

pub(crate) fn role_name(text: &str) -> RoleName {
    RoleName::parse("name", text).unwrap()
}

pub(crate) fn hash(text: &str) -> PasswordHash {
    PasswordHash::new(format!("$hash of {text}"))
}

pub(crate) fn strings(values: &[&str]) -> StringsRow {
    StringsRow { values: values.iter().map(|&value| value.to_owned()).collect() }
}

pub(crate) fn traits(traits: &[(&str, &[&str])]) -> Traits {
    traits.iter().map(|(name, values)| ((*name).to_owned(), strings(values))).collect()
}

/// A role that opens methods by one rule.
pub(crate) fn role_with_rule(resource: &str, verb: &str) -> RoleRow {
    let rule = RuleRow { resources: vec![resource.into()], verbs: vec![verb.into()] };
    let allow = ConditionsRow { rules: vec![rule], ..ConditionsRow::default() };
    RoleRow { allow: Some(allow), ..RoleRow::default() }
}

pub(crate) fn grants(roles: &[&str]) -> Grants {
    Grants { roles: roles.iter().map(|role| role_name(role)).collect(), traits: BTreeMap::new() }
}

pub(crate) fn anonymous() -> Context {
    let origin = Origin {
        node_id: 1,
        request_id: "r".into(),
        client_address: "192.0.2.9".into(),
        ..Origin::default()
    };
    Context { caller: Caller::Anonymous, origin }
}

/// The id of the `number`th session, and what is stored of it.
pub(crate) fn session_id(number: u64) -> String {
    format!("secret session id {number}")
}

pub(crate) fn new_session(number: u64) -> NewSession {
    let mut random = [0; 16];
    random[..8].copy_from_slice(&number.to_be_bytes());
    NewSession {
        digest: SecretDigest::of(SecretKind::Session, &session_id(number)),
        handle: SessionHandle::from_random(random),
        method: AuthMethod::Password,
    }
}

pub(crate) struct Cluster {
    pub(crate) store: MemoryStore,
    /// The time of the next transaction, in milliseconds.
    pub(crate) now: u64,
    /// The session of `boss`.
    pub(crate) boss: SecretDigest,
    sessions: u64,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let boss = new_session(0).digest;
        let mut cluster = Self { store: MemoryStore::default(), now: 1000, boss, sessions: 0 };
        cluster
            .run(|tx| {
                tx.put(&ClusterKey, &ClusterRow { session_epoch: 1, ..ClusterRow::default() });
                let session_ttl_ms = Some(SESSION_TTL_MS);
                tx.put(
                    &ClusterConfigKey,
                    &ClusterConfigRow { session_ttl_ms, ..ClusterConfigRow::default() },
                );
                for role in role::built_ins() {
                    tx.put(&RoleKey(role.name), &role.row);
                }
                user::create_first_admin(tx, &anonymous(), &name("boss"), &hash("boss"))
            })
            .unwrap();
        cluster.log_in("boss");
        cluster
    }

    pub(crate) fn run<T>(
        &mut self,
        work: impl FnOnce(&mut MemoryTransaction<'_>) -> Result<T, CoreError>,
    ) -> Result<T, CoreError> {
        self.store.transact(self.now, work)
    }

    /// Works as the user of a session does: authenticated in the same transaction.
    pub(crate) fn call<T>(
        &mut self,
        session: SecretDigest,
        work: impl FnOnce(&mut MemoryTransaction<'_>, &Context) -> Result<T, CoreError>,
    ) -> Result<T, CoreError> {
        self.run(|tx| {
            let caller = context::authenticate(tx, &Credential::Session(session))?;
            work(tx, &Context { caller, ..anonymous() })
        })
    }

    /// The same as the admin `boss`.
    pub(crate) fn admin<T>(
        &mut self,
        work: impl FnOnce(&mut MemoryTransaction<'_>, &Context) -> Result<T, CoreError>,
    ) -> Result<T, CoreError> {
        self.call(self.boss, work)
    }

    pub(crate) fn is_honoured(&mut self, session: SecretDigest) -> bool {
        self.call(session, |_, _| Ok(())).is_ok()
    }

    pub(crate) fn add_role(&mut self, role: &str, row: &RoleRow) {
        self.admin(|tx, context| role::create(tx, context, &role_name(role), row)).unwrap();
    }

    /// Makes a user whose password's hash is `hash(user)`.
    pub(crate) fn add_user(&mut self, user: &str, grants: Grants) {
        let new = NewUser { name: name(user), grants, proof: hash(user).into() };
        self.admin(|tx, context| user::create(tx, context, &new)).unwrap();
    }

    /// Logs a user of [`Self::add_user`] in.
    pub(crate) fn log_in(&mut self, user: &str) -> SecretDigest {
        self.log_in_row(user).0
    }

    pub(crate) fn log_in_row(&mut self, user: &str) -> (SecretDigest, SessionRow) {
        let new = new_session(self.sessions);
        self.sessions += 1;
        let digest = new.digest;
        let row = self.try_log_in(&anonymous(), user, Some(hash(user)), new).unwrap();
        (digest, row)
    }

    /// Tries to log in with what the password was found to be the one of.
    pub(crate) fn try_log_in(
        &mut self,
        context: &Context,
        user: &str,
        verified: Option<PasswordHash>,
        new: NewSession,
    ) -> Result<SessionRow, CoreError> {
        let attempt = Attempt {
            name: UserName::parse("name", user).ok(),
            typed: TypedName::of(user),
            slot_secret: SlotSecret::from_random([7; 32]),
            verified,
            new,
        };
        self.run(|tx| login::conclude(tx, context, &attempt))?.into_result()
    }

    pub(crate) fn audit(&mut self) -> Vec<AuditRow> {
        let records = self.run(|tx| audit::records(tx, 1, usize::MAX)).unwrap();
        records.into_iter().map(|(_, row)| row).collect()
    }

    pub(crate) fn last_audit(&mut self) -> AuditRow {
        self.audit().pop().unwrap()
    }

    /// How many rows there are in a range of all keys, for tests of what is left behind.
    pub(crate) fn rows(&mut self, front: store_txn::KeyWriter) -> usize {
        use store_txn::Read as _;
        let range = store_txn::KeyRange::prefix(&front.finish());
        self.run(|tx| Ok(tx.scan_raw(&range, usize::MAX)?.len())).unwrap()
    }
}

/// Checks that a result is a refusal for this field.
#[track_caller]
pub(crate) fn assert_invalid<T: std::fmt::Debug>(result: Result<T, CoreError>, wanted: &str) {
    match result {
        Err(CoreError::Invalid { field, .. }) if field == wanted => {}
        other => panic!("expected a refusal of {wanted}, got {other:?}"),
    }
}

/// A transaction that counts what it observed: what it would have to be checked for.
pub(crate) struct Observed<'a, T> {
    tx: &'a mut T,
    pub(crate) keys: usize,
    pub(crate) ranges: usize,
}

impl<'a, T> Observed<'a, T> {
    pub(crate) fn new(tx: &'a mut T) -> Self {
        Self { tx, keys: 0, ranges: 0 }
    }
}

impl<T: Read> Read for Observed<'_, T> {
    fn now(&self) -> UnixMillis {
        self.tx.now()
    }

    fn get_raw(&mut self, key: &[u8]) -> Result<Option<RawRow>, TxError> {
        self.keys += 1;
        self.tx.get_raw(key)
    }

    fn scan_raw(&mut self, range: &KeyRange, limit: usize) -> Result<Vec<(Vec<u8>, RawRow)>, TxError> {
        self.ranges += 1;
        self.tx.scan_raw(range, limit)
    }

    fn log_records(&mut self, log: &str, from: u64, limit: usize) -> Result<Vec<LogRecord>, TxError> {
        self.tx.log_records(log, from, limit)
    }

    fn log_bounds(&mut self, log: &str) -> Result<LogBounds, TxError> {
        self.tx.log_bounds(log)
    }
}

impl<T: Transaction> Transaction for Observed<'_, T> {
    fn put_raw(&mut self, key: Vec<u8>, value: Vec<u8>, expires_at: Option<UnixMillis>) {
        self.tx.put_raw(key, value, expires_at);
    }

    fn delete_raw(&mut self, key: Vec<u8>) {
        self.tx.delete_raw(key);
    }

    fn append(&mut self, log: &'static str, record: Vec<u8>) {
        self.tx.append(log, record);
    }

    fn trim(&mut self, log: &'static str, before: u64) {
        self.tx.trim(log, before);
    }
}
