use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;
use crate::exit::Usage;

const GOLDEN: &str = include_str!("../golden/profile.json");

fn golden() -> Profile {
    let login = LoginState {
        user: "alice".into(),
        session: SessionSecret::new("c0ffee".into()).unwrap(),
        expires_at: Some("2026-11-24T20:00:00Z".into()),
    };
    Profile {
        addresses: vec!["a.example:3025".into(), "b.example:3025".into()],
        trust: ClusterTrust::new("example", include_str!("../golden/ca.pem")).unwrap(),
        last_user: Some("alice".into()),
        login: Some(login),
    }
}

fn home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(dir.path().join("home"), "default".into());
    (dir, home)
}

#[test]
fn the_format_is_golden() {
    assert_eq!(golden().encode().unwrap().as_str(), GOLDEN);
    let read = Profile::decode(GOLDEN, Path::new("profile.json")).unwrap();
    assert_eq!(read.encode().unwrap().as_str(), GOLDEN);
}

#[test]
fn a_profile_is_kept_for_its_owner_alone() {
    let (_dir, home) = home();
    assert!(home.load().unwrap().is_none());
    home.save(&golden()).unwrap();
    assert_eq!(fs::metadata(home.file()).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(&home.dir).unwrap().mode() & 0o7777, 0o700);
    let login = home.load().unwrap().unwrap().login.unwrap();
    assert_eq!((login.user.as_str(), login.session.expose()), ("alice", "c0ffee"));
}

#[test]
fn a_profile_that_others_can_read_is_refused() {
    let (_dir, home) = home();
    home.save(&golden()).unwrap();
    fs::set_permissions(home.file(), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(home.load().err().unwrap().is::<Usage>());
}

#[test]
fn a_logout_leaves_no_session_behind() {
    let (_dir, home) = home();
    home.save(&golden()).unwrap();
    home.save(&Profile { login: None, ..golden() }).unwrap();
    let text = fs::read_to_string(home.file()).unwrap();
    assert!(!text.contains("c0ffee") && !text.contains("session") && text.contains("example"));
    let left = home.load().unwrap().unwrap();
    assert!(left.login.is_none() && left.last_user.as_deref() == Some("alice"));
}

#[test]
fn another_version_or_a_damaged_file_is_refused() {
    for (from, to) in [
        ("\"version\": 1", "\"version\": 2"),
        ("mezite.ctl.profile", "mezite.ctl.agent"),
        ("\"user\"", "\"usr\""),
        ("BEGIN CERTIFICATE", "BEGIN SOMETHING"),
        ("}", ""),
    ] {
        let text = GOLDEN.replace(from, to);
        assert_ne!(text, GOLDEN);
        assert!(Profile::decode(&text, Path::new("profile.json")).is_err(), "{to}");
    }
}

/// Each as a process of its own would: none overwrites what another has written.
#[test]
fn those_who_write_at_a_time_take_turns() {
    let (_dir, home) = home();
    home.save(&Profile { addresses: Vec::new(), ..golden() }).unwrap();
    let add = |address: String| {
        let added = |profile: Option<Profile>| {
            let mut profile = profile.unwrap();
            profile.addresses.push(address);
            Some(profile)
        };
        assert!(home.update(added).unwrap());
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let add = &add;
            scope.spawn(move || (0..8).for_each(|turn| add(format!("{thread}.example:{turn}"))));
        }
    });
    assert_eq!(home.load().unwrap().unwrap().addresses.len(), 32);
    assert!(!home.update(|_| None).unwrap());
}

#[test]
fn a_profile_is_removed_with_its_keys_and_without_what_is_not_its_own() {
    let (_dir, home) = home();
    home.save(&golden()).unwrap();
    fs::create_dir(home.ssh()).unwrap();
    fs::write(home.ssh().join("key"), "").unwrap();
    fs::write(home.dir.join("notes"), "").unwrap();
    home.remove().unwrap();
    assert!(!home.exists() && !home.ssh().exists() && home.dir.join("notes").exists());
    assert!(home.remove().is_err());
    fs::remove_file(home.dir.join("notes")).unwrap();
    home.save(&golden()).unwrap();
    home.remove().unwrap();
    assert!(!home.dir.exists());
}
