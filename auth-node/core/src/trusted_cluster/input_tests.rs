use mezite_pki::{ssh::SshCa, x509::X509Ca};

use super::*;
use crate::testing::assert_invalid;

#[test]
fn every_field_is_checked() {
    let try_new = |name: &str, addresses: &[&str], mappings: &[(&str, &[&str])]| {
        let addresses = addresses.iter().map(|&address| address.to_owned()).collect();
        let mapping = |(remote, local): &(&str, &[&str])| RoleMappingRow {
            remote: (*remote).to_owned(),
            local: local.iter().map(|&role| role.to_owned()).collect(),
        };
        NewTrustedCluster::new(name, addresses, mappings.iter().map(mapping).collect(), false)
    };
    assert!(try_new("other", &["a:1", "[::1]:2"], &[("Dev", &["x"]), ("*", &["x", "y"])]).is_ok());
    assert_invalid(try_new("Other", &["a:1"], &[]), "trusted_cluster.name");
    assert_invalid(try_new("other", &[], &[]), "trusted_cluster.addresses");
    assert_invalid(try_new("other", &["a:1"; 17], &[]), "trusted_cluster.addresses");
    assert_invalid(try_new("other", &["a:1", "a"], &[]), "trusted_cluster.addresses[1]");
    assert_invalid(try_new("other", &["a:1", "a:1"], &[]), "trusted_cluster.addresses[1]");
    let mapping = |mappings: &[(&str, &[&str])]| try_new("other", &["a:1"], mappings);
    assert_invalid(mapping(&[("", &["x"])]), "trusted_cluster.role_mappings[0].remote");
    assert_invalid(mapping(&[("dev*", &["x"])]), "trusted_cluster.role_mappings[0].remote");
    assert_invalid(mapping(&[("dev", &[])]), "trusted_cluster.role_mappings[0].local");
    assert_invalid(mapping(&[("dev", &["*"])]), "trusted_cluster.role_mappings[0].local[0]");
    assert_invalid(mapping(&[("dev", &["x"]), ("Dev", &["y"])]), "trusted_cluster.role_mappings[1].remote");
    assert_invalid(mapping(&[("a", &["x"][..]); 65]), "trusted_cluster.role_mappings");

    let tls = X509Ca::generate("t", 1, 2).unwrap().certificate_pem().to_owned();
    let line = SshCa::generate().unwrap().public_line();
    let good = || vec![(CaKind::User, vec![line.clone()]), (CaKind::Host, vec![line.clone()])];
    let told = |keys: Vec<String>| Authorities::new([good(), vec![(CaKind::Tls, keys)]].concat(), 1);
    assert!(told(vec![tls.clone()]).is_ok());
    for bad in [vec![], vec!["x".to_owned()], vec![line.clone()], vec![tls; 17]] {
        assert!(told(bad).unwrap_err().contains("tls CA"));
    }
}

#[test]
fn what_another_cluster_tells_is_bounded() {
    let line = SshCa::generate().unwrap().public_line();
    let told = |users: Vec<String>, tls: Vec<String>| {
        let all = [(CaKind::User, users), (CaKind::Host, vec![line.clone()]), (CaKind::Tls, tls)];
        Authorities::new(all.into(), 1)
    };
    let certificate = |name: usize| {
        let pem = X509Ca::generate(&"x".repeat(name), 1, 2).unwrap().certificate_pem().to_owned();
        (pem.len(), pem)
    };
    // In PEM three bytes of a name are four, and it is in a certificate twice.
    let (large, pem) = certificate(2_800);
    assert!((7_000..=8_192).contains(&large), "{large}");
    assert!(told(vec![line.clone()], vec![pem.clone()]).is_ok());
    let (larger, too_long) = certificate(3_200);
    let refused = told(vec![line.clone()], vec![too_long]).unwrap_err();
    assert_eq!(
        refused,
        format!("its tls CA: a key or certificate of {larger} bytes, and at most 8192 are taken")
    );
    // Also what would be passed over in it.
    let refused = told(vec![format!("{line} {}", "x".repeat(8_192))], vec![pem.clone()]).unwrap_err();
    assert!(refused.starts_with("its user CA") && refused.contains("8192"), "{refused}");
    // All together.
    let fits = 65_536 / large;
    assert!(told(vec![line.clone()], vec![pem.clone(); fits]).is_ok());
    let refused = told(vec![line.clone()], vec![pem; fits + 1]).unwrap_err();
    assert!(refused.contains("at most 65536 are taken"), "{refused}");
}
