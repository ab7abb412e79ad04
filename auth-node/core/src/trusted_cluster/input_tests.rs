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

/// An RSA key of 16384 bits, the largest that there is: as to its size, all bits of its modulus are set.
fn largest_key() -> String {
    format!("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAIAQD/{}/w==", "/".repeat(4 * 682))
}

#[test]
fn what_another_cluster_tells_is_bounded() {
    let tls = X509Ca::generate("t", 1, 2).unwrap().certificate_pem().to_owned();
    let line = SshCa::generate().unwrap().public_line();
    let told = |users: Vec<String>, hosts: Vec<String>| {
        let all = [(CaKind::User, users), (CaKind::Host, hosts), (CaKind::Tls, vec![tls.clone()])];
        Authorities::new(all.into(), 1)
    };
    // What is passed over in it counts too: it has to be read.
    let long = |bytes: usize| format!("{line} {}", "x".repeat(bytes - line.len() - 1));
    assert!(told(vec![long(8_192)], vec![line.clone()]).is_ok());
    assert_eq!(
        told(vec![long(8_193)], vec![line.clone()]).unwrap_err(),
        "its user CA: a key or certificate of 8193 bytes, and at most 8192 are taken"
    );
    // All together.
    let largest = largest_key();
    let fit = (65_536 - tls.len()) / largest.len();
    assert!(told(vec![largest.clone(); 16], vec![largest.clone(); fit - 16]).is_ok());
    let refused = told(vec![largest.clone(); 16], vec![largest; fit - 15]).unwrap_err();
    assert!(refused.contains("at most 65536 are taken"), "{refused}");
}
