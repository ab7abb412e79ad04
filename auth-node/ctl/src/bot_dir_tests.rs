use mezite_client::testing::TestCa;
use mezite_pki::ssh::SshCa;

use super::*;

/// An answer of the cluster `test`, whose certificate is not looked at here.
fn answer(generation: u64) -> v1::AgentIdentityCredentials {
    static CA: std::sync::OnceLock<v1::GetTrustBundleResponse> = std::sync::OnceLock::new();
    let bundle = CA.get_or_init(|| {
        let mut bundle = TestCa::new().bundle(&[]);
        for kind in [v1::CaKind::User, v1::CaKind::Host] {
            let ssh_public_keys = vec![SshCa::generate().unwrap().public_line()];
            bundle.authorities.push(v1::TrustedCa {
                kind: kind.into(),
                ssh_public_keys,
                ..Default::default()
            });
        }
        bundle
    });
    v1::AgentIdentityCredentials {
        ssh_certificate: format!("certificate {generation}"),
        tls_certificate: format!("tls {generation}"),
        session_id: format!("session {generation}"),
        generation,
        trust_bundle: Some(bundle.clone()),
        ..Default::default()
    }
}

fn whose() -> Whose {
    let name = answer(1).trust_bundle.unwrap().cluster_name;
    Whose::new("ci".into(), name, vec!["a:1".into()])
}

/// What a reader sees through `current`: all of one generation, with its keys.
fn seen(dir: &Path) -> Option<u64> {
    let current = dir.join(CURRENT);
    let about: About = read_json(&current.join(ABOUT)).unwrap()?;
    let generation = about.generation;
    let read = |name: &str| fs::read_to_string(current.join(name)).unwrap();
    assert_eq!(read(SSH_CERTIFICATE), format!("certificate {generation}\n"));
    assert_eq!(read(TLS_CERTIFICATE), format!("tls {generation}"));
    assert_eq!(read(SESSION), format!("session {generation}\n"));
    let key = SshKeyPair::from_openssh(&read_secret(&current.join(SSH_KEY)).unwrap()).unwrap();
    assert_eq!(read(SSH_PUBLIC).trim(), key.public_line());
    assert!(KeyPair::from_pem(&read_secret(&current.join(TLS_KEY)).unwrap()).is_ok());
    assert!(!current.join(CALL).exists());
    Some(generation)
}

/// A copy of a folder, as a process that dies leaves it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_symlink() {
            symlink(fs::read_link(&path).unwrap(), target).unwrap();
        } else if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn a_call_that_was_not_answered_is_the_same_after_a_restart_and_another_one_is_not() {
    let scratch = tempfile::tempdir().unwrap();
    let open = || BotDir::open(scratch.path()).unwrap();
    let first = open().prepare(0, "s").unwrap();
    let again = open().prepare(0, "s").unwrap();
    assert!(first.key == again.key && first.ssh.public_line() == again.ssh.public_line());
    assert_eq!(first.tls.spki_der(), again.tls.spki_der());
    let other = open().prepare(0, "another secret").unwrap();
    assert!(other.key != first.key && other.tls.spki_der() != first.tls.spki_der());
    open().keep(&whose(), &other, &answer(1)).unwrap();
    // The key for ssh stays, so that it fits both certificates; that of the identity does not.
    let renewal = open().prepare(1, "another secret").unwrap();
    assert_eq!(renewal.ssh.public_line(), other.ssh.public_line());
    assert!(renewal.key != other.key && renewal.tls.spki_der() != other.tls.spki_der());
}

#[test]
fn whoever_reads_sees_one_generation_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = BotDir::open(scratch.path()).unwrap();
    assert_eq!((seen(scratch.path()), dir.about().unwrap()), (None, None));
    for generation in 1..=3 {
        let prepared = dir.prepare(generation - 1, "s").unwrap();
        assert_eq!(seen(scratch.path()), Some(generation - 1).filter(|before| *before != 0));
        let about = dir.keep(&whose(), &prepared, &answer(generation)).unwrap();
        assert_eq!((about.generation, about.reload_pending), (generation, true));
        assert_eq!(seen(scratch.path()), Some(generation));
    }
    assert_eq!(dir.numbers().unwrap(), [3], "those before are gone");
    // A reset begins with generation 1 again, and is the last one all the same.
    let prepared = dir.prepare(0, "t").unwrap();
    dir.keep(&whose(), &prepared, &answer(1)).unwrap();
    assert_eq!((seen(scratch.path()), dir.numbers().unwrap()), (Some(1), vec![4]));
}

/// Every state between two steps of a renewal: files that are written so far, one after the other.
#[test]
fn a_process_that_dies_between_any_two_steps_leaves_the_old_set_or_the_new_one() {
    let scratch = tempfile::tempdir().unwrap();
    let base = scratch.path().join("base");
    let dir = BotDir::open(&base).unwrap();
    let prepared = dir.prepare(0, "s").unwrap();
    dir.keep(&whose(), &prepared, &answer(1)).unwrap();
    let call = dir.prepare(1, "s").unwrap();
    drop(dir);
    // What `keep` writes, in its order.
    let files = [CA, KNOWN_HOSTS, SSH_CERTIFICATE, TLS_CERTIFICATE, SESSION, ABOUT];
    let done = scratch.path().join("done");
    copy(&base, &done);
    BotDir::open(&done).unwrap().keep(&whose(), &call, &answer(2)).unwrap();
    for written in 0..=files.len() {
        let torn = scratch.path().join(format!("torn-{written}"));
        copy(&base, &torn);
        for file in &files[..written] {
            fs::copy(done.join(CURRENT).join(file), torn.join(NEXT).join(file)).unwrap();
        }
        // It still has its call, and makes it again.
        let dir = BotDir::open(&torn).unwrap();
        assert_eq!(seen(&torn), Some(1), "{written}");
        let again = dir.prepare(1, "s").unwrap();
        assert!(again.key == call.key && again.tls.spki_der() == call.tls.spki_der(), "{written}");
        dir.keep(&whose(), &again, &answer(2)).unwrap();
        assert_eq!(seen(&torn), Some(2), "{written}");
    }
    // All is written, and the call is gone; then it has its number; then `current` leads to it.
    for step in 0..3 {
        let torn = scratch.path().join(format!("late-{step}"));
        copy(&base, &torn);
        for file in files {
            fs::copy(done.join(CURRENT).join(file), torn.join(NEXT).join(file)).unwrap();
        }
        fs::remove_file(torn.join(NEXT).join(CALL)).unwrap();
        if step > 0 {
            fs::rename(torn.join(NEXT), torn.join(SETS).join("2")).unwrap();
        }
        if step > 1 {
            symlink("sets/2", torn.join(".current")).unwrap();
        }
        assert_eq!(seen(&torn), Some(1), "{step}");
        let dir = BotDir::open(&torn).unwrap();
        assert_eq!((seen(&torn), dir.about().unwrap().unwrap().generation), (Some(2), 2), "{step}");
        assert_eq!(dir.numbers().unwrap(), [2], "{step}");
    }
}

#[test]
fn an_answer_without_a_certificate_for_ssh_leaves_none_of_another() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = BotDir::open(scratch.path()).unwrap();
    let prepared = dir.prepare(0, "s").unwrap();
    // Of an answer that was lost half way.
    fs::write(scratch.path().join(NEXT).join(SSH_CERTIFICATE), "old").unwrap();
    let without = v1::AgentIdentityCredentials { ssh_certificate: String::new(), ..answer(1) };
    dir.keep(&whose(), &prepared, &without).unwrap();
    assert!(!scratch.path().join(CURRENT).join(SSH_CERTIFICATE).exists());
}

#[test]
fn one_process_keeps_a_folder_at_a_time() {
    let scratch = tempfile::tempdir().unwrap();
    let held = BotDir::open(scratch.path()).unwrap();
    assert!(BotDir::open(scratch.path()).unwrap_err().is::<Usage>());
    drop(held);
    assert!(BotDir::open(scratch.path()).is_ok());
}

#[test]
fn no_path_adds_a_word_to_ssh_config() {
    let scratch = tempfile::tempdir().unwrap();
    for bad in ["a\"b", "a%h", "a${HOME}", "a\nHost x"] {
        let dir = BotDir::open(&scratch.path().join(bad)).unwrap();
        assert!(dir.ssh_config().unwrap_err().is::<Usage>(), "{bad:?}");
    }
    let dir = BotDir::open(&scratch.path().join("a b")).unwrap();
    assert!(dir.ssh_config().unwrap().contains("a b/current/key\"\n"));
}
