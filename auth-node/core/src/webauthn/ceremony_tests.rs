use super::*;
use crate::{
    placed::{PLACES, SLOTS},
    testing::{Cluster, anonymous, hash, name},
};

fn new(purpose: Purpose, number: u64) -> NewCeremony {
    NewCeremony {
        purpose,
        digest: SecretDigest::of(SecretKind::WebauthnChallenge, &number.to_string()),
        random: number,
        state: vec![1],
        secret: WebauthnSecret::from_random([1; 32]),
    }
}

fn begin(cluster: &mut Cluster, from: &str, new: &NewCeremony, bound: &Bound<'_>) -> u64 {
    let mut context = anonymous();
    context.origin.client_address = from.into();
    let begin = |tx: &mut store_txn::memory::MemoryTransaction<'_>| {
        let secret = new.secret.load_or_keep(tx)?;
        put(tx, &context, &secret, new, bound)
    };
    cluster.run(begin).unwrap()
}

fn finish(cluster: &mut Cluster, place: u64, number: u64, purpose: Purpose) -> Option<CeremonyRow> {
    let challenge = ChallengeId::parse(&ChallengeId::text(place, &number.to_string()));
    cluster.run(|tx| take(tx, challenge.as_ref(), &[purpose])).unwrap()
}

#[test]
fn a_challenge_is_taken_once_and_for_its_purpose() {
    let mut cluster = Cluster::new();
    let (ann, password) = (name("ann"), hash("ann"));
    let bound = Bound { user: Some(&ann), proof: Some(&password), ..Bound::default() };
    let place = begin(&mut cluster, "192.0.2.1", &new(Purpose::StepUp, 1), &bound);
    assert_eq!(finish(&mut cluster, place, 2, Purpose::StepUp), None, "another secret takes nothing away");
    let taken = finish(&mut cluster, place, 1, Purpose::StepUp).unwrap();
    assert_eq!((taken.user.as_str(), taken.proof), ("ann", proof(&password)));
    assert_eq!(finish(&mut cluster, place, 1, Purpose::StepUp), None);

    let place = begin(&mut cluster, "192.0.2.1", &new(Purpose::Login, 3), &Bound::default());
    assert_eq!(finish(&mut cluster, place, 3, Purpose::Passkey), None);
    assert_eq!(finish(&mut cluster, place, 3, Purpose::Login), None, "it is gone");
}

#[test]
fn a_challenge_ends_after_five_minutes_and_with_the_cluster() {
    let mut cluster = Cluster::new();
    for (number, later, found) in [(1, LIFE_MS - 1, true), (2, LIFE_MS, false)] {
        let place = begin(&mut cluster, "192.0.2.1", &new(Purpose::Login, number), &Bound::default());
        cluster.now += later;
        assert_eq!(finish(&mut cluster, place, number, Purpose::Login).is_some(), found);
    }
    let place = begin(&mut cluster, "192.0.2.1", &new(Purpose::Login, 3), &Bound::default());
    cluster
        .run(|tx| {
            let mut row = tx.get(&crate::tables::ClusterKey)?.unwrap().row;
            row.session_epoch += 1;
            tx.put(&crate::tables::ClusterKey, &row);
            Ok(())
        })
        .unwrap();
    assert_eq!(finish(&mut cluster, place, 3, Purpose::Login), None);
}

#[test]
fn the_places_of_a_network_are_so_many_and_not_those_of_users() {
    use store_txn::Key as _;
    let mut cluster = Cluster::new();
    let ann = name("ann");
    let bound = Bound { user: Some(&ann), ..Bound::default() };
    let users = begin(&mut cluster, "192.0.2.1", &new(Purpose::Passkey, 9999), &bound);
    for number in 0..2 * PLACES {
        let place = begin(&mut cluster, "192.0.2.7", &new(Purpose::Login, number), &Bound::default());
        assert!(place < SLOTS * PLACES && users >= SLOTS * PLACES);
    }
    let rows = cluster.rows(store_txn::KeyWriter::table(CeremonyKey::TABLE));
    assert_eq!(rows, usize::try_from(PLACES).unwrap() + 1);
    assert!(finish(&mut cluster, users, 9999, Purpose::Passkey).is_some());
}

#[test]
fn what_names_no_ceremony_is_none() {
    for bad in ["", ".", "x.secret", "secret", "ffffffffffffffffff.s", &format!("1.{}", "s".repeat(300))] {
        assert_eq!(ChallengeId::parse(bad), None, "{bad}");
    }
    let good = ChallengeId::text(0x1f, "secret");
    assert_eq!((good.as_str(), ChallengeId::parse(&good).unwrap().place), ("1f.secret", 0x1f));
    assert!(!format!("{:?}", ChallengeId::parse(&good)).contains("secret"));
}
