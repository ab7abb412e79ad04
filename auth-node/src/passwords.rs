//! Passwords: hashed and verified with Argon2id, so many at a time and so many waiting. Each takes tens of milliseconds
//! of a processor and 19 MiB, so a storm of logins is turned away at the door rather than starve what else the node does.
//!
//! No network has more than its share of the places, nor has a user: a stranger who takes all that it can leaves the others
//! to log in. Behind a load balancer that hides where clients are, they are one network.
//!
//! The name of a user that does not exist costs the same: a hash that nobody's password made is verified instead.
//!
//! What is hashed is a password's NFKC form. Earlier releases hashed what was typed: so a password that is spelt otherwise is
//! tried as it is, too.

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{Error as HashError, PasswordHasher as _, PasswordVerifier as _, phc},
};
use auth_core::{CoreError, lockout, password, secret::PasswordHash};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use tokio::sync::{Semaphore, oneshot};
use zeroize::Zeroizing;

use crate::{
    error::ApiError,
    places::{Place, Places, Room},
};

/// Memory of one hash, in KiB; with the passes and lanes, the first choice of OWASP's Password Storage Cheat Sheet.
const MEMORY_KIB: u32 = 19_456;
/// Passes over the memory.
const PASSES: u32 = 2;
/// Lanes.
const LANES: u32 = 1;
/// Of so many places, one caller or network may have one.
const SHARES: usize = 4;

/// Work for a thread of the pool.
type Job = Box<dyn FnOnce() + Send>;

/// The pool's own threads. An allocator keeps the memory of a hash for the thread that it was made on, so hashes on
/// whichever thread is free would in the end hold that of all of them.
#[derive(Clone)]
struct Threads {
    /// One permit a thread: what is sent is taken at once.
    free: Arc<Semaphore>,
    jobs: mpsc::Sender<Job>,
}

impl Threads {
    fn start(count: usize) -> Result<Self, CoreError> {
        let (jobs, waiting) = mpsc::channel::<Job>();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..count {
            let waiting = Arc::clone(&waiting);
            // Ends when the pool and all turns are gone.
            let work = move || loop {
                let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                match job {
                    Ok(job) => job(),
                    Err(mpsc::RecvError) => return,
                }
            };
            std::thread::Builder::new().name("password".into()).spawn(work).map_err(failed)?;
        }
        Ok(Self { free: Arc::new(Semaphore::new(count)), jobs })
    }
}

/// Bounds the passwords that are hashed at a time, and that wait for it.
pub(crate) struct PasswordPool {
    places: Places,
    threads: Threads,
    nobodys: PasswordHash,
}

/// A place in the pool, for the passwords of one call. Dropping it gives it up.
pub(crate) struct Turn {
    _place: Place,
    threads: Threads,
    nobodys: PasswordHash,
}

impl PasswordPool {
    /// A pool that hashes on at most `threads` threads, for which `queue` more calls may wait.
    ///
    /// # Errors
    /// [`CoreError::Internal`] when the operating system gives no randomness or memory.
    pub(crate) fn new(threads: usize, queue: usize) -> Result<Self, CoreError> {
        let unguessable = Zeroizing::new(STANDARD_NO_PAD.encode(rand::random::<[u8; 32]>()));
        let most = threads.saturating_add(queue);
        let room = Room {
            most,
            each: (most / SHARES).max(1),
            full: "too many passwords are being checked",
            own_full: "too many passwords of your network, or of yours, are being checked",
            measure: |_| (),
        };
        Ok(Self {
            places: Places::new(room),
            threads: Threads::start(threads)?,
            nobodys: hash(&unguessable)?,
        })
    }

    /// Takes a place, or refuses at once. For whoever has not proved who it is, as [`network`]; for others, by the name
    /// that they have in the audit log. Each has at most a quarter of all places, and one at least.
    ///
    /// # Errors
    /// [`ApiError::Busy`] when all places are taken, or all that the holder may have.
    pub(crate) fn admit(&self, holder: String) -> Result<Turn, ApiError> {
        let place = self.places.take(holder)?;
        Ok(Turn { _place: place, threads: self.threads.clone(), nobodys: self.nobodys.clone() })
    }
}

/// Who takes a place for whoever is at an address and has not proved who it is: its network, as lockouts count it.
pub(crate) fn network(client_address: &str) -> String {
    format!("network:{}", lockout::network(client_address))
}

impl Turn {
    /// Whether a password is the one of a hash. Without a hash it takes as long, and is not.
    ///
    /// # Errors
    /// [`CoreError::Internal`] for a hash that cannot be read.
    pub(crate) async fn verify(
        &self,
        known: Option<&PasswordHash>,
        password: &Zeroizing<String>,
    ) -> Result<bool, ApiError> {
        let exists = known.is_some();
        let (against, password) = (known.unwrap_or(&self.nobodys).clone(), password.clone());
        let matches = self.on_thread(move || {
            let form = password::normalized(&password);
            Ok(verify(&against, &form)? || *form != *password && verify(&against, &password)?)
        });
        let matches = matches.await?;
        Ok(matches && exists)
    }

    /// The hash of a password, with a new salt.
    ///
    /// # Errors
    /// [`CoreError::Internal`] when the operating system gives no randomness or memory.
    pub(crate) async fn hash(&self, password: &Zeroizing<String>) -> Result<PasswordHash, ApiError> {
        let form = password::normalized(password);
        self.on_thread(move || hash(&form)).await
    }

    /// Works on a thread of its own, once one is free. A call that is given up meanwhile keeps its thread to the end.
    async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, CoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let internal = |error: &dyn std::fmt::Display| ApiError::Internal(format!("password pool: {error}"));
        let thread =
            Arc::clone(&self.threads.free).acquire_owned().await.map_err(|error| internal(&error))?;
        let (reply, done) = oneshot::channel();
        let job = Box::new(move || {
            let result = work();
            drop(thread);
            // The call may have been given up.
            let _ = reply.send(result);
        });
        self.threads.jobs.send(job).map_err(|error| internal(&error))?;
        Ok(done.await.map_err(|error| internal(&error))??)
    }
}

fn failed(error: impl std::fmt::Display) -> CoreError {
    CoreError::Internal(format!("password hash: {error}"))
}

fn argon2id() -> Result<Argon2<'static>, CoreError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(failed)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// The hash of a password, with a new salt.
fn hash(password: &str) -> Result<PasswordHash, CoreError> {
    let hash: phc::PasswordHash = argon2id()?.hash_password(password.as_bytes()).map_err(failed)?;
    Ok(PasswordHash::new(hash.to_string()))
}

fn verify(hash: &PasswordHash, password: &str) -> Result<bool, CoreError> {
    let hash = phc::PasswordHash::new(hash.as_str()).map_err(failed)?;
    match argon2id()?.verify_password(password.as_bytes(), &hash) {
        Ok(()) => Ok(true),
        Err(HashError::PasswordInvalid) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
impl PasswordPool {
    /// Takes a thread: while all are taken, no password is hashed.
    pub(crate) async fn take_thread(&self) -> tokio::sync::OwnedSemaphorePermit {
        Arc::clone(&self.threads.free).acquire_owned().await.unwrap()
    }

    /// How many calls are admitted.
    pub(crate) fn taken_places(&self) -> usize {
        self.places.count()
    }

    /// Takes all places, as so many networks.
    pub(crate) fn take_places(&self) -> Vec<Turn> {
        (0..).map_while(|number| self.admit(format!("network:test {number}")).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder() -> String {
        network("192.0.2.1")
    }

    fn password(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    /// Made by the reference implementation, libargon2: `argon2id_hash_encoded` with salt `somesaltsomesalt`.
    const REFERENCE: &str =
        "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$k9ohroejZy1PN5E1SbHNPug6vB8eQAahb5SOAp6iGF4";

    #[tokio::test]
    async fn the_password_of_a_hash_is_known_and_another_is_not() {
        let pool = PasswordPool::new(1, 0).unwrap();
        let turn = pool.admit(holder()).unwrap();
        let hash = turn.hash(&password("correct horse")).await.unwrap();
        assert!(hash.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.as_str());
        assert!(turn.verify(Some(&hash), &password("correct horse")).await.unwrap());
        for wrong in ["", "correct hors", "correct horse ", "Correct horse"] {
            assert!(!turn.verify(Some(&hash), &password(wrong)).await.unwrap());
        }
        assert_ne!(hash, turn.hash(&password("correct horse")).await.unwrap());
    }

    #[tokio::test]
    async fn a_password_is_one_however_it_is_spelt_and_one_that_was_hashed_as_it_was_typed_is_good_still() {
        let turn = PasswordPool::new(1, 0).unwrap().admit(holder()).unwrap();
        let (composed, decomposed) = (password("pässwörter"), password("pa\u{308}sswo\u{308}rter"));
        for typed in [&composed, &decomposed] {
            let made = turn.hash(typed).await.unwrap();
            assert!(turn.verify(Some(&made), &composed).await.unwrap());
            assert!(turn.verify(Some(&made), &decomposed).await.unwrap());
        }
        let of_old = hash(&decomposed).unwrap();
        assert!(turn.verify(Some(&of_old), &decomposed).await.unwrap());
        assert!(!turn.verify(Some(&of_old), &composed).await.unwrap());
        assert!(!turn.verify(None, &decomposed).await.unwrap());
    }

    #[tokio::test]
    async fn hashes_are_those_of_the_reference_implementation() {
        let turn = PasswordPool::new(1, 0).unwrap().admit(holder()).unwrap();
        let reference = PasswordHash::new(REFERENCE.to_owned());
        assert!(turn.verify(Some(&reference), &password("correct horse")).await.unwrap());
        assert!(!turn.verify(Some(&reference), &password("correct house")).await.unwrap());
        let rubbish = PasswordHash::new("not a hash".into());
        assert!(matches!(
            turn.verify(Some(&rubbish), &password("x")).await,
            Err(ApiError::Core(CoreError::Internal(_)))
        ));
    }

    #[test]
    fn an_unknown_user_costs_the_same_hash_and_a_match_on_it_still_fails() {
        let unguessable = password("what the dummy is of");
        let turn = Turn {
            nobodys: hash(&unguessable).unwrap(),
            ..PasswordPool::new(1, 0).unwrap().admit(holder()).unwrap()
        };
        let costs = |hash: &PasswordHash| hash.as_str().rsplitn(3, '$').last().unwrap().to_owned();
        assert_eq!(costs(&turn.nobodys), costs(&hash("another").unwrap()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(verify(&turn.nobodys, &unguessable).unwrap());
        assert!(!runtime.block_on(turn.verify(None, &unguessable)).unwrap());
    }

    #[tokio::test]
    async fn past_the_bound_a_call_is_refused_at_once() {
        let pool = PasswordPool::new(1, 1).unwrap();
        let (first, second) = (pool.admit(holder()).unwrap(), pool.admit(network("198.51.100.1")).unwrap());
        let refused = pool.admit(network("203.0.113.1")).err().unwrap();
        assert!(matches!(refused, ApiError::Busy { .. }));
        let status = refused.into_status("r");
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(tonic_types::StatusExt::get_details_retry_info(&status).is_some());

        // One works; the other waits until it is done, and not longer.
        let (go, wait) = mpsc::channel::<()>();
        let (began, begin) = tokio::sync::oneshot::channel();
        let working = tokio::spawn(async move {
            let work = move || {
                began.send(()).unwrap();
                wait.recv().map_err(failed)
            };
            first.on_thread(work).await
        });
        begin.await.unwrap();
        let mut waiting = tokio::spawn(async move { second.on_thread(|| Ok(7)).await });
        tokio::task::yield_now().await;
        assert_eq!(pool.threads.free.available_permits(), 0);
        assert!(!waiting.is_finished());
        go.send(()).unwrap();
        working.await.unwrap().unwrap();
        assert_eq!((&mut waiting).await.unwrap().unwrap(), 7);
        assert!(pool.admit(holder()).is_ok());
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_keeps_its_thread_until_it_is_done() {
        let pool = PasswordPool::new(1, 0).unwrap();
        let turn = pool.admit(holder()).unwrap();
        let (go, wait) = mpsc::channel::<()>();
        let (began, begin) = tokio::sync::oneshot::channel();
        let work = move || {
            began.send(()).unwrap();
            wait.recv().map_err(failed)
        };
        let given_up = tokio::spawn(async move { turn.on_thread(work).await });
        begin.await.unwrap();
        given_up.abort();
        assert!(given_up.await.is_err());
        // Its place is free, its thread is not.
        assert!(pool.admit(holder()).is_ok());
        assert_eq!(pool.threads.free.available_permits(), 0);
        go.send(()).unwrap();
        drop(pool.threads.free.acquire().await.unwrap());
    }

    #[test]
    fn a_network_or_a_user_has_its_share_of_the_places_and_others_still_get_in() {
        let pool = PasswordPool::new(2, 10).unwrap();
        let taken = |address: &str| {
            let turns = (0..20).map(|_| pool.admit(network(address)));
            let (had, refused): (Vec<_>, Vec<_>) = turns.partition(Result::is_ok);
            for refused in refused {
                let status = refused.err().unwrap().into_status("r");
                assert_eq!(status.code(), tonic::Code::ResourceExhausted);
                assert!(tonic_types::StatusExt::get_details_retry_info(&status).is_some());
            }
            had
        };
        // A whole /24 or /64 is one network, in either notation.
        let strangers = taken("192.0.2.1");
        assert_eq!((strangers.len(), taken("192.0.2.77").len(), taken("::ffff:192.0.2.5").len()), (3, 0, 0));
        let others = taken("2001:db8::1");
        assert_eq!((others.len(), taken("2001:db8::2").len()), (3, 0));
        // Who has proved who it is does not depend on where it is.
        let user = pool.admit("user:ann".into()).unwrap();
        drop(strangers);
        assert_eq!(taken("192.0.2.77").len(), 3);
        drop((others, user));
        assert_eq!(pool.taken_places(), 0);
    }

    #[test]
    fn a_small_pool_leaves_everybody_a_place() {
        let pool = PasswordPool::new(1, 1).unwrap();
        let turn = pool.admit(network("192.0.2.1")).unwrap();
        assert!(pool.admit(network("192.0.2.1")).is_err());
        assert!(pool.admit(network("198.51.100.1")).is_ok());
        drop(turn);
        assert!(pool.admit(network("192.0.2.1")).is_ok());
    }
}
