use std::collections::BTreeSet;

use super::*;
use crate::testing::{Cluster, name};

#[test]
fn fakes_are_the_same_always_and_look_like_what_authenticators_make() {
    let secret = WebauthnSecret::from_random([1; 32]);
    let (mut seen, mut counts, mut lengths) = (BTreeSet::new(), [0; 4], BTreeSet::new());
    for number in 0..500 {
        let of = format!("name{number}");
        let fakes = secret.fakes(&of).unwrap();
        assert_eq!(fakes, secret.fakes(&of).unwrap());
        counts[fakes.len()] += 1;
        for fake in fakes {
            lengths.insert(fake.len());
            assert!(seen.insert(fake), "each is another one");
        }
    }
    assert_eq!(counts[0], 0, "somebody without credentials would be known by it");
    assert!(counts[1] > counts[2] && counts[2] > counts[3] && counts[3] > 0, "{counts:?}");
    assert_eq!(lengths, ID_LENGTHS.into_iter().collect());
    assert_ne!(secret.fakes("ann").unwrap(), WebauthnSecret::from_random([2; 32]).fakes("ann").unwrap());
    assert_eq!(format!("{secret:?}"), "WebauthnSecret(..)");
}

#[test]
fn the_secret_is_made_once_and_what_depends_on_it_stays() {
    let mut cluster = Cluster::new();
    let (one, two) = (WebauthnSecret::from_random([1; 32]), WebauthnSecret::from_random([2; 32]));
    assert_eq!(cluster.run(|tx| one.load_or_keep(tx)), Ok(one.clone()));
    assert_eq!(cluster.run(|tx| two.load_or_keep(tx)), Ok(one.clone()));
    assert_ne!(one.user_handle(&name("ann")).unwrap(), one.user_handle(&name("bob")).unwrap());
    assert_eq!(one.user_handle(&name("ann")), one.user_handle(&name("ann")));
}
