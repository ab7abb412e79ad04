use mezite_pki::x509::{KeyPair, SvidSpec, X509Ca, certificate_der};

use super::*;

const NOW: u64 = 1_800_000_000;

fn ca(name: &str) -> X509Ca {
    X509Ca::generate(name, NOW - 1000, NOW + 1_000_000).unwrap()
}

fn bundle(authorities: &[&X509Ca]) -> SpiffeBundleRow {
    let x509_authorities = authorities.iter().map(|ca| ca.certificate_der().to_vec()).collect();
    SpiffeBundleRow { x509_authorities, ..SpiffeBundleRow::default() }
}

fn svid(ca: &X509Ca, id: &str, life: (u64, u64)) -> Vec<u8> {
    let spec = SvidSpec {
        public_key: KeyPair::generate_p256().unwrap().spki_der(),
        spiffe_id: id.into(),
        not_before: life.0,
        not_after: life.1,
    };
    certificate_der(&ca.issue_svid(&spec).unwrap()).unwrap()
}

#[test]
fn a_chain_is_good_by_the_bundle_of_its_trust_domain_in_its_time() {
    let (red, other) = (ca("red"), ca("red"));
    let chain = [svid(&red, "spiffe://red.example/a", (NOW - 60, NOW + 60))];
    assert_eq!(trust_domain(&chain).unwrap().as_str(), "red.example");
    let at = |now: u64, bundle: &SpiffeBundleRow| verify(&chain, bundle, now * 1000);
    let good = at(NOW, &bundle(&[&other, &red])).unwrap();
    assert_eq!((good.spiffe_id.as_str(), good.ends_at_ms), ("spiffe://red.example/a", (NOW + 61) * 1000));
    assert_eq!((good.bearer, good.issued_at_ms), (None, None));
    for (what, now, bundle) in [
        ("not yet", NOW - 61, bundle(&[&red])),
        ("ended", NOW + 61, bundle(&[&red])),
        ("an authority of the same name", NOW, bundle(&[&other])),
        ("nobody vouches", NOW, bundle(&[])),
    ] {
        assert!(at(now, &bundle).is_err(), "{what}");
    }
    // What is shown beside it vouches for nobody.
    let beside = [chain[0].clone(), red.certificate_der().to_vec()];
    assert!(verify(&beside, &bundle(&[&other]), NOW * 1000).is_err());
    let many = [vec![chain[0].clone()], vec![red.certificate_der().to_vec(); 9]].concat();
    assert!(verify(&many, &bundle(&[&red]), NOW * 1000).unwrap_err().contains("at most 8"));
    assert!(verify(&[], &bundle(&[&red]), NOW * 1000).is_err());
    assert!(verify(&[b"x".to_vec()], &bundle(&[&red]), NOW * 1000).is_err());
    // An authority is no workload.
    assert!(verify(&[red.certificate_der().to_vec()], &bundle(&[&red]), NOW * 1000).is_err());
}
